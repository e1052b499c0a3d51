"""What a U-Net does to images and volumes, as XLA's CPU backend computes it fast."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from chex import Array

from medjax.models import fast


def convolution(x: Array, kernel: Array, strides: Any, padding: Any, **rest: Any):
    """lax.conv_general_dilated as nn.Conv calls it: channels last."""
    return fast.convolution(x, kernel, strides, padding, **rest)


def grow(x: Array, kernel: Array) -> Array:
    """A transposed convolution whose stride is the kernel's size.

    Args:
      x: [B, (D,) H, W, I].
      kernel: [(d,) h, w, I, O].

    Returns:
      [B, (D d,) H h, W w, O].
    """
    *size, inner, outer = kernel.shape
    space = len(size)
    flat = x @ jnp.moveaxis(kernel, -2, 0).reshape(inner, -1)
    y = flat.reshape(*x.shape[:-1], *size, outer)
    order = [
        0,
        *(i for a in range(1, space + 1) for i in (a, a + space)),
        2 * space + 1,
    ]
    grown = [n * k for n, k in zip(x.shape[1:-1], size, strict=True)]
    return y.transpose(order).reshape(len(x), *grown, outer)


def moments(x: Array) -> tuple[Array, Array]:
    """The mean and the variance of each image's channels, [B, ..., C] -> [B, C]."""
    return jax.vmap(fast.moments)(x)


def normalise(x: Array, mean: Array, factor: Array, bias: Array, relu: bool) -> Array:
    """(x - mean) factor + bias, its negative part cut off by `relu`.

    Args:
      x: [B, ..., C].
      mean, factor: [B, C] float32.
      bias: [C] float32.
    """
    one = partial(fast.normalise, relu=relu)
    return jax.vmap(one, (0, 0, 0, None))(x, mean, factor, bias)

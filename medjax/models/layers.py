"""Convolution, normalisation and pooling, as every network here uses them."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from chex import Array


def conv(
    features: int,
    size: int,
    stride: int = 1,
    *,
    space: int,
    padding: int | str | Sequence[tuple[int, int]] | None = None,
    groups: int = 1,
    use_bias: bool = False,
    dtype: jnp.dtype,
    name: str,
) -> nn.Module:
    """A convolution [B, ..., I] -> [B, ..., features] with a cubic kernel.

    Args:
      size: of the kernel, along each of the axes.
      space: number of spatial axes, 2 or 3.
      padding: None keeps the size at stride 1, (size - 1) // 2 on each side.
      groups: of the channels; `features` of them is a depthwise convolution.
    """
    return nn.Conv(
        features,
        (size,) * space,
        stride,
        padding=(size - 1) // 2 if padding is None else padding,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.initializers.he_normal(),
        name=name,
    )


def norm(
    *, train: bool, dtype: jnp.dtype, axis_name: str | None, epsilon: float = 1e-5
) -> Callable[..., nn.Module]:
    """Batch normalisation, to be given a name.

    The running variance is the batch's own; torch's is larger by n / (n - 1).
    """
    # torch's momentum 0.1 is the share of the new value, Linen's 0.9 of the old.
    return partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        axis_name=axis_name if train else None,
    )


def max_pool(x: Array, size: int, stride: int, *, padding: int = 0) -> Array:
    """The maximum over cubes of `size`; padding never wins."""
    space = x.ndim - 2
    return nn.max_pool(
        x, (size,) * space, (stride,) * space, ((padding, padding),) * space
    )


def avg_pool(x: Array, size: int) -> Array:
    """The mean over cubes of `size` that don't overlap; a rest is left out."""
    return nn.avg_pool(x, (size,) * (x.ndim - 2), (size,) * (x.ndim - 2))

"""Convolution, normalisation and pooling, as every network here uses them."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from chex import Array
from jax import lax

from medjax.models import cpu


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
        conv_general_dilated=cpu.convolution,
        name=name,
    )


def norm(
    *, train: bool, dtype: jnp.dtype, axis_name: str | None, epsilon: float = 1e-5
) -> Callable[..., nn.Module]:
    """Batch normalisation, to be given a name."""
    return partial(Norm, train=train, epsilon=epsilon, dtype=dtype, axis_name=axis_name)


class Norm(nn.Module):
    """[B, ..., C], each channel to mean 0 and variance 1, then scaled and shifted.

    Parameters and statistics have the names that nn.BatchNorm gives them. The running
    variance is the batch's own; torch's is larger by n / (n - 1).

    Attributes:
      train: by the batch's statistics, which are averaged; else by the averages.
      epsilon: added to the variance.
      dtype: of the result.
      axis_name: the mapped axis over which batch statistics are shared, or None.
    """

    train: bool
    epsilon: float
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, *, relu: bool = False) -> Array:
        """`relu` cuts off what is negative in the end."""
        x, shape = x.astype(self.dtype), x.shape[-1:]
        means = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variances = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean, variance = means.value, variances.value
        if self.train:
            mean, variance = cpu.moments(x)
        if self.train and not self.is_initializing():
            if self.axis_name is not None and lax.axis_size(self.axis_name) > 1:
                # Shards differ in their means: about one number for all of them.
                about = variance + jnp.square(mean - means.value)
                mean, about = lax.pmean((mean, about), self.axis_name)
                variance = jnp.maximum(about - jnp.square(mean - means.value), 0)
            # torch's momentum 0.1 is the share of the new value too.
            means.value = 0.9 * means.value + 0.1 * mean
            variances.value = 0.9 * variances.value + 0.1 * variance
        factor = scale * lax.rsqrt(variance + self.epsilon)
        return cpu.normalise(x, mean, factor, bias, relu)


def max_pool(x: Array, size: int, stride: int, *, padding: int = 0) -> Array:
    """The maximum over cubes of `size`; padding never wins."""
    space = x.ndim - 2
    native = partial(
        nn.max_pool,
        window_shape=(size,) * space,
        strides=(stride,) * space,
        padding=((padding, padding),) * space,
    )
    return cpu.max_pool(x, size, stride, padding=padding, native=native)


def avg_pool(x: Array, size: int) -> Array:
    """The mean over cubes of `size` that don't overlap; a rest is left out."""
    return nn.avg_pool(x, (size,) * (x.ndim - 2), (size,) * (x.ndim - 2))

"""What the levels of a U-Net are made of."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from chex import Array

from medjax.errors import InputError
from medjax.models import fast3d


class Block(nn.Module):
    """Two convolutions beside the identity, or a product where the width changes."""

    features: int
    kernel: tuple[int, ...]
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        still = (1,) * len(self.kernel)
        layer = partial(conv, self.features, stride=still, dtype=self.dtype)
        new = layer(self.kernel, name="conv1")(x)
        new = Norm(self.groups, self.dtype, name="norm1")(new, relu=True)
        new = layer(self.kernel, name="conv2")(new)
        new = Norm(self.groups, self.dtype, name="norm2")(new)
        if x.shape[-1] != self.features:
            x = layer(still, name="shortcut")(x)
        return jax.nn.relu(x + new)


class Gate(nn.Module):
    """Weighs each voxel of what crosses over by what the coarser level saw there.

    x sigmoid(w . relu(A x + B g)), where g has been brought to the resolution of x
    before; the paper brings x to that of g, and the weights back.

    Source: Oktay et al., Attention U-Net (MIDL 2018), eq. 1 and 2.
    """

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, g: Array) -> Array:
        still = (1,) * (x.ndim - 2)
        layer = partial(conv, kernel=still, stride=still, dtype=self.dtype)
        inner = x.shape[-1]
        both = layer(inner, name="across")(x) + layer(inner, name="coarse")(g)
        both = Norm(self.groups, self.dtype, name="norm")(both, relu=True)
        return x * nn.sigmoid(layer(1, name="weight", use_bias=True)(both))


class Norm(nn.Module):
    """Each channel, or group of them, of each image to mean 0 and variance 1.

    Source: Ulyanov et al., Instance Normalization (2016); Wu & He, Group
    Normalization (ECCV 2018).
    """

    groups: int
    dtype: jnp.dtype
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, relu: bool = False) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean, variance = fast3d.moments(x)  # [B, C]
        if self.groups:
            if channels % self.groups:
                raise InputError(
                    f"model.groups: {channels} channels can't be divided by "
                    f"{self.groups}; give a divisor of all widths, or 0"
                )
            mean, variance = _pooled(mean, variance, self.groups)
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        return fast3d.normalise(x, mean, factor, bias, relu)


def _pooled(mean: Array, variance: Array, groups: int) -> tuple[Array, Array]:
    """The moments of groups of channels, at each of their channels, [B, C]."""
    means = mean.reshape(len(mean), groups, -1)
    variances = variance.reshape(means.shape)
    middle = jnp.mean(means, -1, keepdims=True)
    within = jnp.mean(variances + jnp.square(means - middle), -1, keepdims=True)
    return tuple(
        jnp.broadcast_to(x, means.shape).reshape(mean.shape) for x in (middle, within)
    )


class Grow(nn.Module):
    """A transposed convolution whose kernel is its stride: [B, ...] -> [B, ... * s]."""

    features: int
    stride: tuple[int, ...]
    dtype: jnp.dtype
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.stride, x.shape[-1], self.features)
        # Each output has one input voxel's channels to come from, as in a product.
        init = nn.initializers.he_normal(batch_axis=range(len(self.stride)))
        kernel = self.param("kernel", init, shape)
        y = fast3d.grow(x, kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += bias.astype(self.dtype)
        return y


def conv(
    features: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    *,
    dtype: jnp.dtype,
    name: str,
    use_bias: bool = False,
) -> nn.Module:
    """A convolution of stride 1 that keeps the size, or one whose kernel is its stride."""
    still = set(stride) == {1}
    return nn.Conv(
        features,
        kernel,
        stride,
        padding=[(n // 2, n // 2) if still else (0, 0) for n in kernel],
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=fast3d.convolution,
        name=name,
    )

"""Convolution, normalisation and pooling, as every network here uses them."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from flax.traverse_util import unflatten_dict
from jax import lax

from medjax.models import cpu


def conv(
    x: Array,
    features: int,
    size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    *,
    padding: int | str | Sequence[tuple[int, int]] | None = None,
    groups: int = 1,
    use_bias: bool = False,
    dtype: jnp.dtype,
    name: str,
) -> Array:
    """A convolution of the calling module, [B, ..., I] -> [B, ..., features].

    `size` and `stride` are one number, or one for each axis. Without `padding`, the
    result has the size of the image at stride 1: (size - 1) // 2 on each side.
    """
    size = (size,) * (x.ndim - 2) if isinstance(size, int) else tuple(size)
    if padding is None:
        padding = [((n - 1) // 2,) * 2 for n in size]
    convolution = nn.Conv(
        features,
        size,
        stride,
        padding=padding,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=cpu.convolution,
        name=name,
    )
    return convolution(x)


def drop(x: Array, keys: Array | None, rate: float, *, whole: bool) -> Array:
    """Sets values of x [B, ..., C] to 0 at this rate, and divides the others by 1 - rate.

    An image's values by its own key, of keys [B]; all of them together if `whole`, else
    each alone. Without keys x stays.
    """
    if keys is None or rate == 0:
        return x
    shape = (1,) * (x.ndim - 1) if whole else x.shape[1:]
    stays = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
    return jnp.where(stays, x / (1 - rate), 0)


def depth_rates(last: float, blocks: Sequence[int]) -> list[tuple[float, ...]]:
    """How often training leaves out each block of each stage: stochastic depth.

    Huang et al., ECCV 2016. The rates rise linearly from 0 in the first block to `last`
    in the last, as in ConvNeXt's published training.

    Raises:
      ValueError: `last` lies outside [0, 1).
    """
    if not 0 <= last < 1:
        raise ValueError(f"stochastic_depth={last}: give a share from 0 to below 1")
    rates = iter(np.linspace(0, last, sum(blocks)).tolist())
    return [tuple(itertools.islice(rates, number)) for number in blocks]


def fold_keys(keys: Array | None, number: int) -> Array | None:
    """Keys [B] for one place of a network."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def inflate(kernel: Array, depth: int) -> Array:
    """The kernel [depth, h, w, I, O] of volumes, from [h, w, I, O] of images.

    It answers what is constant along the depth as the image's kernel does.

    Source: Carreira & Zisserman, Quo Vadis, Action Recognition? (CVPR 2017), section 2.
    """
    return jnp.broadcast_to(kernel / depth, (depth, *kernel.shape))


def avg_pool(x: Array, size: int) -> Array:
    """The mean over cubes of `size` that don't overlap; a rest is left out."""
    return nn.avg_pool(x, (size,) * (x.ndim - 2), (size,) * (x.ndim - 2))


def makers(
    *, dtype: jnp.dtype, axis_name: str | None, epsilon: float = 1e-5, **options: Any
) -> dict[str, Callable]:
    """A network's convolution, with these options, and its maker of batch norms."""
    norm = partial(BatchNorm, epsilon=epsilon, dtype=dtype, axis_name=axis_name)
    return {"conv": partial(conv, dtype=dtype, **options), "norm": norm}


def stem(features: int, kind: str, **layer: Callable) -> Callable[[], nn.Module]:
    """Makes a `Stem`; refuses an unknown kind before it is called."""
    if kind not in ("imagenet", "half", "quarter"):
        raise ValueError(f"stem={kind!r}: use 'imagenet', 'half' or 'quarter'")
    return partial(Stem, features, kind, **layer)


class Stem(nn.Module):
    """[B, H, W, C] -> [B, h, w, features].

    The kind 'imagenet' is a 7 x 7 convolution of stride 2 and a max-pool of stride 2.
    For images of 64 to 128 pixels: 'half', a 5 x 5 convolution of stride 2; 'quarter'
    adds an average-pool of stride 2.
    """

    features: int
    kind: str
    conv: Callable[..., Array]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        size = 7 if self.kind == "imagenet" else 5
        x = self.conv(x, self.features, size, 2, name="conv")
        x = self.norm(train=train, name="norm")(x, relu=True)
        if self.kind == "imagenet":
            return cpu.max_pool(x)
        return avg_pool(x, 2) if self.kind == "quarter" else x


class BatchNorm(nn.Module):
    """[B, ..., C], each channel to mean 0 and variance 1, then scaled and shifted.

    Training uses the batch's statistics, which are shared over the mapped axis of that
    name, and updates the running ones; else these are used. Parameters and statistics
    have nn.BatchNorm's names. The running variance averages the batches' own variances;
    torch's is larger by n / (n - 1).
    """

    train: bool
    dtype: jnp.dtype
    axis_name: str | None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, relu: bool = False) -> Array:
        x, shape = x.astype(self.dtype), x.shape[-1:]
        means = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variances = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean, variance = means.value, variances.value
        if self.train:
            mean, variance = moments(x)
        if self.train and not self.is_initializing():
            if self.axis_name is not None and lax.axis_size(self.axis_name) > 1:
                # The shards' means differ: average the squares about a common point.
                square = variance + jnp.square(mean - means.value)
                mean, square = lax.pmean((mean, square), self.axis_name)
                variance = jnp.maximum(square - jnp.square(mean - means.value), 0)
            # As torch's momentum of 0.1, which is the new value's share.
            means.value = 0.9 * means.value + 0.1 * mean
            variances.value = 0.9 * variances.value + 0.1 * variance
        factor = scale * lax.rsqrt(variance + self.epsilon)
        return normalise(x, mean, factor, bias, relu)


@jax.custom_vjp
@jax.jit
def moments(x: Array) -> tuple[Array, Array]:
    """The mean and the variance of each channel, [..., C] -> [C], [C] float32."""
    axes = tuple(range(x.ndim - 1))

    def two_passes(x: Array) -> tuple[Array, Array]:
        mean = jnp.mean(x, axes)
        return mean, jnp.mean(jnp.square(x - mean), axes)

    def one_pass(x: Array) -> tuple[Array, Array]:
        mean = jnp.mean(x, axes)
        return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)

    x = x.astype(jnp.float32)
    return lax.platform_dependent(x, cpu=two_passes, default=one_pass)


def _moments_forward(x: Array) -> tuple:
    mean, variance = moments(x)
    return (mean, variance), (x, mean)


@jax.jit
def _moments_backward(kept: tuple, gradients: tuple) -> tuple[Array]:
    (x, mean), (d_mean, d_variance) = kept, gradients
    number = x.size // x.shape[-1]
    # Without x - mean: XLA would share it with the forward pass and so keep it, which
    # takes as much memory as x.
    slope = 2 / number * d_variance
    d_x = x.astype(jnp.float32) * slope + (d_mean / number - mean * slope)
    return (d_x.astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


# For all platforms: elementwise formulas and sums, which every compiler fuses. What its
# gradient keeps, x and the result, the convolutions keep anyway.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
@partial(jax.jit, static_argnums=4)
def normalise(x: Array, mean: Array, factor: Array, bias: Array, relu: bool) -> Array:
    """(x - mean) factor + bias of x [..., C], with negative values set to 0 if `relu`."""
    # Without x - mean, for the same reason as above; so is the backward pass.
    y = x.astype(jnp.float32) * factor + (bias - mean * factor)
    return (jnp.maximum(y, 0) if relu else y).astype(x.dtype)


def _normalise_forward(
    x: Array, mean: Array, factor: Array, bias: Array, relu: bool
) -> tuple:
    y = normalise(x, mean, factor, bias, relu)
    return y, (x, y, mean, factor)


@partial(jax.jit, static_argnums=0)
def _normalise_backward(relu: bool, kept: tuple, g: Array) -> tuple:
    (x, y, mean, factor), axes = kept, tuple(range(g.ndim - 1))
    g = (jnp.where(y > 0, g, 0) if relu else g).astype(jnp.float32)
    d_bias = jnp.sum(g, axes)
    d_factor = jnp.sum(x.astype(jnp.float32) * g, axes) - mean * d_bias
    return (g * factor).astype(x.dtype), -factor * d_bias, d_factor, d_bias


normalise.defvjp(_normalise_forward, _normalise_backward)


def batch_statistics(apply: Callable, variables: ArrayTree, image: Array) -> ArrayTree:
    """One batch's own statistics, float32, laid out as the model's batch_stats.

    The model runs in training mode, so the layers below normalise by this batch's
    statistics too. It has to be without remat, which would hide its layers.
    """
    statistics = {}

    def record(layer, args, kwargs, context):
        module = context.module
        normalises = module.has_variable("batch_stats", "mean")
        if normalises and context.method_name == "__call__":
            x = args[0].astype(jnp.float32)
            axes = tuple(range(x.ndim - 1))
            statistics[(*module.path, "mean")] = jnp.mean(x, axes)
            statistics[(*module.path, "var")] = jnp.var(x, axes)
        return layer(*args, **kwargs)

    with nn.intercept_methods(record):
        apply(variables, image, train=True, mutable=["batch_stats"])
    return unflatten_dict(statistics)


def pool_statistics(parts: Iterable[tuple[int, ArrayTree]]) -> ArrayTree:
    """The statistics of all images from (number of images, statistics) of each batch.

    The variance is the mean of the batches' variances plus the variance of their
    means; each batch is weighted by its number of images. Summed in float64.
    """
    sizes, trees = zip(*parts, strict=True)
    share = np.array(sizes, np.float64) / sum(sizes)

    def layer(*stats: ArrayTree) -> ArrayTree:
        mean, var = (np.stack([s[k] for s in stats]) for k in ("mean", "var"))
        centre = share @ mean
        spread = share @ (var + (mean - centre) ** 2)
        return {"mean": jnp.float32(centre), "var": jnp.float32(spread)}

    return jax.tree.map(layer, *trees, is_leaf=lambda tree: "mean" in tree)

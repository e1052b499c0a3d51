"""A residual U-Net for images and volumes, and its encoder as a classifier."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.errors import InputError
from medjax.models import cpu, layers
from medjax.models.classifier import Classifier

Size = int | Sequence[int]


class UNet(nn.Module):
    """Image [B, (D,) H, W, C] -> logits [B, (D,) H, W, K].

    The parameters lie under 'stem' (level 0, the finest), 'down1', 'down2', ... (into
    the coarser levels), ..., 'up2', 'up1' (back to the finer ones), and 'head'; with
    `deep` also 'head1', 'head2', ...

    The resolution changes by convolutions whose kernel is their stride, and by
    transposed ones: products of matrices. If the first stride isn't 1, no activation
    has the full resolution, and the head is a transposed convolution too.

    Source: Ronneberger et al., U-Net (MICCAI 2015); He et al. (CVPR 2016) for the
    blocks; Lee et al., Deeply-Supervised Nets (AISTATS 2015) for `deep`.
    """

    tasks: int  # K, the number of masks.
    widths: Sequence[int] = (16, 32, 64, 128)  # Channels of each level.
    # Into each level from the one before, or from the image; a number for all axes, or
    # one for each, such as (1, 2, 2) while slices lie further apart than pixels.
    strides: Sequence[Size] = (1, 2, 2, 2)
    kernels: int | Sequence[Size] = 3  # Odd sizes of each level's convolutions.
    blocks: int | Sequence[int] = 1  # Residual blocks of each level on the way down.
    up_blocks: int | Sequence[int] = 1  # The same on the way up; the last has none.
    groups: int = 0  # Of group normalisation; 0: each channel is normalised by itself.
    attention: bool = False  # Whether the skip connections pass a Gate.
    deep: int = 0  # Number of coarser levels that give logits too, for the loss.
    remat: bool = False  # Compute a level again for its gradient: slower, less memory.
    frozen: int = 0  # Number of first stages without a gradient, so they stay.
    dtype: jnp.dtype = jnp.float32  # Of the computation; parameters are float32.
    axis_name: str | None = None  # Unused: an image has statistics of its own.

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The parameters' top-level keys from the image on, but for the heads'."""
        down, up = range(1, len(self.widths)), range(len(self.widths) - 1, 0, -1)
        return ("stem", *(f"down{i}" for i in down), *(f"up{i}" for i in up))

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> Array | tuple[Array, ...]:
        """Logits float32 of standardised images, [B, (D,) H, W, K].

        With `deep` and in training a tuple of these and of those of levels 1, 2, ... at
        their resolutions.

        Raises:
          InputError: the image isn't divisible by the strides, or an option has
            another length than the others.
        """
        levels, space = len(self.widths), image.ndim - 2
        _each("widths", self.widths, levels, "levels")
        strides = _sizes("strides", self.strides, levels, space)
        kernels = _sizes("kernels", self.kernels, levels, space)
        blocks = _each("blocks", self.blocks, levels, "levels")
        up_blocks = _each(
            "up_blocks", self.up_blocks, levels - 1, "levels but the last"
        )
        if any(n % 2 == 0 for kernel in kernels for n in kernel):
            raise InputError(
                "model.kernels: an even size; odd ones keep the resolution"
            )
        if not 0 <= self.deep < levels:
            raise InputError(f"model.deep: {self.deep}; give 0 to {levels - 1}")
        _check_size(image.shape[1:-1], strides)
        down, up = (nn.remat(Down), nn.remat(Up)) if self.remat else (Down, Up)
        common = {"groups": self.groups, "dtype": self.dtype}
        frozen = self.stage_names[: self.frozen]

        def run(stage: nn.Module, *inputs: Array) -> Array:
            x = stage(*inputs)
            return jax.lax.stop_gradient(x) if stage.name in frozen else x

        x, kept = image.astype(self.dtype), []
        for i, level in enumerate(zip(self.widths, strides, kernels, blocks)):
            x = run(down(*level, **common, name=self.stage_names[i]), x)
            kept.append(x)
        heads = self.deep if train or self.is_initializing() else 0
        coarse = []
        for i in range(levels - 1, 0, -1):
            if i <= heads:
                coarse.insert(0, _logits(x, self.tasks, (1,) * space, f"head{i}"))
            level = (self.widths[i - 1], strides[i], kernels[i - 1], up_blocks[i - 1])
            stage = up(*level, **common, attention=self.attention, name=f"up{i}")
            x = run(stage, x, kept[i - 1])
        full = _logits(x, self.tasks, strides[0], "head")
        return (full, *coarse) if self.deep and train else full


def unet_encoder(
    tasks: int,
    *,
    widths: Sequence[int] = (16, 32, 64, 128),
    strides: Sequence[Size] = (1, 2, 2, 2),
    kernels: int | Sequence[Size] = 3,
    blocks: int | Sequence[int] = 1,
    groups: int = 0,
    masks: int = 0,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
    **rest: Any,
) -> Classifier:
    """A UNet's way down, with its options, and a classifier of its coarsest level.

    Its stages 'stem', 'stage1', ... are the U-Net's 'stem', 'down1', ...; with `masks` K
    it has the way up, too, to K masks. `axis_name` is unused, and the rest are
    Classifier's.
    """
    options = {"strides": strides, "kernels": kernels, "blocks": blocks}
    each = [_each(name, n, len(widths), "levels") for name, n in options.items()]
    stages = [
        partial(Down, *level, groups=groups, dtype=dtype)
        for level in zip(widths, *each, strict=True)
    ]
    sizes = {"widths": tuple(widths), "strides": strides, "kernels": kernels}
    decoder = partial(Decoder, masks, **sizes, groups=groups, dtype=dtype)
    return Classifier(
        tuple(stages), tasks, decoder=decoder if masks else None, dtype=dtype, **rest
    )


class Decoder(nn.Module):
    """A U-Net's way up: outputs of its levels, the finest first -> logits of K masks."""

    tasks: int
    widths: Sequence[int]
    strides: Sequence[Size]
    kernels: int | Sequence[Size]
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, outputs: Sequence[Array], size: Sequence[int]) -> Array:
        """[B, ..., K] float32, of the image's `size`.

        Raises:
          InputError: the size isn't divisible by the strides.
        """
        levels, space = len(outputs), len(size)
        strides = _sizes("strides", self.strides, levels, space)
        kernels = _sizes("kernels", self.kernels, levels, space)
        _check_size(size, strides)
        x = outputs[-1]
        for i in range(levels - 1, 0, -1):
            level = self.widths[i - 1], strides[i], kernels[i - 1], 1
            up = Up(*level, self.groups, self.dtype, attention=False, name=f"up{i}")
            x = up(x, outputs[i - 1])
        return _logits(x, self.tasks, strides[0], "head")


class Down(nn.Module):
    """[B, ..., c] -> [B, ... / stride, features]; in training as in evaluation."""

    features: int
    stride: Size
    kernel: Size
    blocks: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = partial(layers.conv, dtype=self.dtype, name="conv")
        stride = _each("strides", self.stride, x.ndim - 2, "axes of the image")
        if any(n > 1 for n in stride):
            x = conv(x, self.features, stride, stride, padding=0)
        else:
            x = conv(x, self.features, self.kernel)
        x = Norm(self.groups, self.dtype, name="norm")(x, relu=True)
        return _blocks(self, x)


class Up(nn.Module):
    """[B, ..., c], [B, ... * stride, features] -> [B, ... * stride, features]."""

    features: int
    stride: tuple[int, ...]
    kernel: tuple[int, ...]
    blocks: int
    groups: int
    dtype: jnp.dtype
    attention: bool

    @nn.compact
    def __call__(self, x: Array, across: Array) -> Array:
        """`across` is the finer level's output on the way down."""
        x = Grow(self.features, self.stride, self.dtype, name="conv")(x)
        x = Norm(self.groups, self.dtype, name="norm")(x, relu=True)
        if self.attention:
            across = Gate(self.groups, self.dtype, name="gate")(across, x)
        return _blocks(self, jnp.concatenate([across, x], axis=-1))


def _blocks(level: Down | Up, x: Array) -> Array:
    block = partial(ConvBlock, level.features, level.kernel, level.groups, level.dtype)
    for j in range(1, level.blocks + 1):
        x = block(name=f"block{j}")(x)
    return x


def _logits(x: Array, tasks: int, stride: tuple[int, ...], name: str) -> Array:
    head = Grow(tasks, stride, x.dtype, use_bias=True, name=name)
    return head(x).astype(jnp.float32)


def _each(field: str, value: Size | Sequence[Size], number: int, of: str) -> tuple:
    """One value for all levels or axes, or one for each of them."""
    values = (value,) if isinstance(value, int) else tuple(value)
    values *= number if len(values) == 1 else 1
    if len(values) != number:
        raise InputError(
            f"model.{field}: {len(values)} of them for {number} {of}; give one for "
            "each, or one for all (model.widths has as many as there are levels)"
        )
    return values


def _sizes(field: str, value: Size | Sequence[Size], levels: int, space: int) -> list:
    """For each level a tuple with a size for each axis."""
    each = _each(field, value, levels, "levels")
    return [_each(field, size, space, "axes of the image") for size in each]


def _check_size(size: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
    """Refuses an image whose size isn't divisible by the strides of all levels."""
    divisor, shape = np.prod(strides, axis=0), np.array(size)
    if np.any(shape % divisor):
        raise InputError(
            f"patch.size or data.shape: {_by(shape)} can't be divided by the network's "
            f"strides, {_by(divisor)} in all; pad it to {_by(-(-shape // divisor) * divisor)}"
        )


def _by(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))


class ConvBlock(nn.Module):
    """Two convolutions, added to the input; a 1 x 1 of it where the width changes."""

    features: int
    kernel: tuple[int, ...]
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = partial(layers.conv, features=self.features, dtype=self.dtype)
        new = conv(x, size=self.kernel, name="conv1")
        new = Norm(self.groups, self.dtype, name="norm1")(new, relu=True)
        new = conv(new, size=self.kernel, name="conv2")
        new = Norm(self.groups, self.dtype, name="norm2")(new)
        if x.shape[-1] != self.features:
            x = conv(x, size=1, name="shortcut")
        return jax.nn.relu(x + new)


class Gate(nn.Module):
    """Weights each voxel of a skip connection by the coarser level's view of it.

    x sigmoid(w . relu(A x + B g)), where g already has the resolution of x; the paper
    reduces x to that of g and enlarges the weights.

    Source: Oktay et al., Attention U-Net (MIDL 2018), eq. 1 and 2.
    """

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, g: Array) -> Array:
        conv, inner = partial(layers.conv, size=1, dtype=self.dtype), x.shape[-1]
        both = conv(x, inner, name="across") + conv(g, inner, name="coarse")
        both = Norm(self.groups, self.dtype, name="norm")(both, relu=True)
        return x * nn.sigmoid(conv(both, 1, use_bias=True, name="weight"))


class Norm(nn.Module):
    """Brings each channel, or group of channels, of an image to mean 0, variance 1.

    Source: Ulyanov et al., Instance Normalization (2016); Wu & He, Group
    Normalization (ECCV 2018).
    """

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, *, relu: bool = False) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean, variance = jax.vmap(layers.moments)(x)  # [B, C]
        if self.groups:
            if channels % self.groups:
                raise InputError(
                    f"model.groups: {channels} channels can't be divided by "
                    f"{self.groups}; give a divisor of all widths, or 0"
                )
            mean, variance = _pooled(mean, variance, self.groups)
        factor = scale * jax.lax.rsqrt(variance + 1e-5)
        normalise = partial(layers.normalise, relu=relu)
        return jax.vmap(normalise, (0, 0, 0, None))(x, mean, factor, bias)


def _pooled(mean: Array, variance: Array, groups: int) -> tuple[Array, Array]:
    """Each channel gets its group's mean and variance, [B, C]."""
    means = mean.reshape(mean.shape[0], groups, -1)
    variances = variance.reshape(means.shape)
    centre = jnp.mean(means, -1, keepdims=True)
    spread = jnp.mean(variances + jnp.square(means - centre), -1, keepdims=True)
    size = means.shape[-1]
    return tuple(jnp.repeat(x[..., 0], size, axis=1) for x in (centre, spread))


class Grow(nn.Module):
    """A transposed convolution whose kernel is its stride: [B, ...] -> [B, ... * s]."""

    features: int
    stride: tuple[int, ...]
    dtype: jnp.dtype
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.stride, x.shape[-1], self.features)
        # Each output sees the channels of one input voxel.
        init = nn.initializers.he_normal(batch_axis=range(len(self.stride)))
        y = cpu.grow(x, self.param("kernel", init, shape).astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += bias.astype(self.dtype)
        return y

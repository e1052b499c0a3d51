"""ConvNeXt (Liu et al., CVPR 2022), layer for layer as torchvision builds it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from chex import Array

from medjax.models import layers
from medjax.models.classifier import Classifier


def convnext(
    tasks: int,
    *,
    blocks: Sequence[int],
    widths: Sequence[int],
    stochastic_depth: float = 0.0,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
    **rest: Any,
) -> Classifier:
    """A stem and a stage for each width, which begins by halving the grid.

    The paper trains the tiny one with a stochastic depth of 0.1.

    Args:
      blocks: residual blocks in each stage.
      widths: channels of each stage.
      stochastic_depth: see layers.depth_rates.
      axis_name: unused, because nothing here depends on a batch.
      rest: of Classifier.
    """
    stages = [partial(PatchStem, width=widths[0], dtype=dtype)]
    rates = layers.depth_rates(stochastic_depth, blocks)
    for i, (of_blocks, width) in enumerate(zip(rates, widths, strict=True)):
        stages.append(
            partial(ConvNeXtStage, of_blocks, width, first=i == 0, dtype=dtype)
        )
    options = {"random": stochastic_depth > 0, "dtype": dtype, **rest}
    top = partial(norm, dtype=jnp.float32)
    return Classifier(tuple(stages), tasks, top=top, **options)


class PatchStem(nn.Module):
    """Patches of 4 pixels, [B, H, W, C] -> [B, H/4, W/4, width]."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Array | None = None) -> Array:
        patches = {"padding": 0, "use_bias": True, "dtype": self.dtype}
        x = layers.conv(x, self.width, 4, 4, **patches, name="conv")
        return norm(dtype=self.dtype, name="norm")(x)


class ConvNeXtStage(nn.Module):
    """Residual blocks, after a convolution of stride 2 unless it is the first stage."""

    rates: Sequence[float]  # Of each block: how often training leaves it out.
    width: int
    first: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Array | None = None) -> Array:
        conv = partial(layers.conv, features=self.width, use_bias=True)
        if not self.first:
            x = norm(dtype=self.dtype, name="down_norm")(x)
            halving = {"size": 2, "stride": 2, "padding": 0, "dtype": self.dtype}
            x = conv(x, **halving, name="down_conv")
        small = nn.initializers.truncated_normal(0.02)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=small)
        depthwise = partial(conv, size=7, groups=self.width, dtype=self.dtype)
        for j, rate in enumerate(self.rates, start=1):
            new = depthwise(x, name=f"block{j}_conv")
            new = norm(dtype=self.dtype, name=f"block{j}_norm")(new)
            new = dense(4 * self.width, name=f"block{j}_widen")(new)
            new = jax.nn.gelu(new, approximate=False)
            new = dense(self.width, name=f"block{j}_narrow")(new)
            # Each block begins near the identity: Touvron et al., CaiT, ICCV 2021.
            tiny = nn.initializers.constant(1e-6)
            scale = self.param(f"block{j}_scale", tiny, (self.width,))
            new = scale.astype(self.dtype) * new
            x = x + layers.drop(new, layers.fold_keys(keys, j), rate, whole=True)
        return x


def norm(*, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """Normalisation of each pixel over its channels."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


convnext_tiny = partial(convnext, blocks=(3, 3, 9, 3), widths=(96, 192, 384, 768))

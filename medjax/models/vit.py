"""Vision transformer (Dosovitskiy et al., ICLR 2021), layer for layer as timm builds it"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from chex import Array

from medjax.errors import InputError
from medjax.models import layers
from medjax.models.classifier import Classifier
from medjax.models.convnext import norm


def vit(
    tasks: int,
    *,
    width: int,
    heads: int,
    depth: int = 12,
    patch: int = 16,
    grid: int = 14,
    registers: int = 0,
    layer_scale: bool = False,
    pool: str = "token",
    stochastic_depth: float = 0.0,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
    **rest: Any,
) -> Classifier:
    """A stem that makes tokens, and a stage for each block.

    Args:
      width: C, of the tokens.
      heads: of the attention; they divide the width.
      depth: blocks.
      patch: pixels of a patch's side; a rest of the image is left out.
      grid: patches of a side for which positions are learnt: 14 of 224 pixels.
      registers: further tokens beside the class token (Darcet et al., ICLR 2024).
      layer_scale: whether each branch is scaled by channel (DINOv2).
      pool: 'token' reads the class token, 'mean' and 'mean_max' the patches.
      stochastic_depth: of each branch, see layers.depth_rates.
      axis_name: unused, because nothing here depends on a batch.
      rest: of Classifier.
    """
    stem = partial(TokenStem, width, patch, grid, 1 + registers, dtype)
    [rates] = layers.depth_rates(stochastic_depth, [depth])
    blocks = [
        partial(TransformerBlock, heads, layer_scale, rate, dtype) for rate in rates
    ]
    options = {"tokens": 1 + registers, "pool": pool, "dtype": dtype}
    options |= {"random": stochastic_depth > 0, **rest}
    top = partial(norm, dtype=jnp.float32)
    return Classifier((stem, *blocks), tasks, top=top, **options)


class TokenStem(nn.Module):
    """Tokens of the class, of registers and of patches, [B, H, W, C] -> [B, N, width].

    Sown as an intermediate: 'position', [h, w, width], of the patches.
    """

    width: int
    patch: int
    grid: int
    tokens: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Array | None = None) -> Array:
        if x.ndim != 4:
            raise InputError(
                "model.name: a ViT has positions in two dimensions: take another "
                "network for volumes"
            )
        patches = {"padding": 0, "use_bias": True, "dtype": self.dtype}
        x = layers.conv(x, self.width, self.patch, self.patch, **patches, name="conv")
        small = nn.initializers.truncated_normal(0.02)
        learnt = (self.grid, self.grid, self.width)
        position = self.param("position", small, learnt)
        tokens = self.param("tokens", small, (self.tokens, self.width))
        if x.shape[1:3] != learnt[:2]:
            # As timm does it. DINO's own code enlarges by another cubic kernel.
            position = jax.image.resize(position, x.shape[1:], "cubic")
        self.sow("intermediates", "position", position)
        x = x + position.astype(self.dtype)
        x = x.reshape(x.shape[0], -1, self.width)
        tokens = jnp.broadcast_to(
            tokens.astype(self.dtype), (x.shape[0], *tokens.shape)
        )
        return jnp.concatenate([tokens, x], axis=1)


class TransformerBlock(nn.Module):
    """Attention and a perceptron of each token, [B, N, C] -> [B, N, C].

    Sown as an intermediate: 'attention', [B, heads, N, N], of each token to all.
    """

    heads: int
    layer_scale: bool
    rate: float  # How often training leaves out a branch.
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Array | None = None) -> Array:
        width = x.shape[-1]
        small = nn.initializers.truncated_normal(0.02)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=small)
        normed = partial(norm, dtype=self.dtype)

        new = dense(3 * width, name="qkv")(normed(name="norm1")(x))
        new = new.reshape(*x.shape[:2], 3, self.heads, width // self.heads)
        q, k, v = jnp.moveaxis(new, 2, 0)  # [B, N, heads, width / heads]
        score = jnp.einsum("bqhc,bkhc->bhqk", q * q.shape[-1] ** -0.5, k)
        attention = jax.nn.softmax(score.astype(jnp.float32))
        self.sow("intermediates", "attention", attention)
        new = jnp.einsum("bhqk,bkhc->bqhc", attention.astype(self.dtype), v)
        new = dense(width, name="project")(new.reshape(x.shape))
        x = x + self._branch(new, 1, keys)

        new = dense(4 * width, name="widen")(normed(name="norm2")(x))
        new = jax.nn.gelu(new, approximate=False)
        new = dense(width, name="narrow")(new)
        return x + self._branch(new, 2, keys)

    def _branch(self, new: Array, number: int, keys: Array | None) -> Array:
        if self.layer_scale:
            tiny = nn.initializers.constant(1e-5)
            scale = self.param(f"scale{number}", tiny, new.shape[-1:])
            new = new * scale.astype(self.dtype)
        return layers.drop(new, layers.fold_keys(keys, number), self.rate, whole=True)


vit_small = partial(vit, width=384, heads=6)
vit_base = partial(vit, width=768, heads=12)

"""DenseNet (Huang et al., CVPR 2017), layer for layer as torchvision builds it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from chex import Array
from jax import lax

from medjax.models import layers
from medjax.models.classifier import Classifier


def densenet(
    tasks: int,
    *,
    blocks: Sequence[int],
    growth: int = 32,
    bottleneck: int = 4,
    features: int = 64,
    stem: str = "imagenet",
    epsilon: float = 1e-5,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
    **rest: Any,
) -> Classifier:
    """A stem and a stage for each dense block, which begins with the transition.

    In a volume every kernel and every stride has the same size along the depth.

    Args:
      tasks: T, the number of findings.
      blocks: layers in each dense block.
      growth: channels that each layer adds.
      bottleneck: a layer begins with a 1 x 1 convolution to so many times `growth`
        channels; 0 leaves it out.
      features: channels of the stem.
      stem: see Stem.
      epsilon: of the batch normalisation.
      dtype: of the computation.
      axis_name: the mapped axis over which batch statistics are shared, or None.
      rest: of Classifier.
    """
    layer = layers.makers(dtype=dtype, axis_name=axis_name, epsilon=epsilon)
    stage = partial(Stage, growth=growth, bottleneck=bottleneck, **layer)
    last = len(blocks) - 1
    stages = (
        partial(Stem, features=features, kind=stem, **layer),
        *(
            partial(stage, depth=number, first=i == 0, last=i == last)
            for i, number in enumerate(blocks)
        ),
    )
    return Classifier(stages, tasks, dtype=dtype, **rest)


class Stem(nn.Module):
    """[B, H, W, C] -> [B, h, w, features].

    Attributes:
      features: channels.
      kind: 'imagenet' is a 7 x 7 convolution of stride 2 and a max-pool of stride
        2. For images of 64 to 128 pixels: 'half', a 5 x 5 convolution of stride 2;
        'quarter' adds an average-pool of stride 2.
    """

    features: int
    kind: str
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.kind not in ("imagenet", "half", "quarter"):
            raise ValueError(f"{self.kind!r}: use 'imagenet', 'half' or 'quarter'")
        size = 7 if self.kind == "imagenet" else 5
        x = self.conv(self.features, size, 2, space=x.ndim - 2, name="conv")(x)
        x = self.norm(train=train, name="norm")(x, relu=True)
        if self.kind == "imagenet":
            return layers.max_pool(x)
        return layers.avg_pool(x, 2) if self.kind == "quarter" else x


class Stage(nn.Module):
    """A dense block; a transition before all but the first, a norm after the last.

    Attributes: as in densenet; `depth`: layers of this block; `first`, `last`: whether
    it is the first or the last block.
    """

    depth: int
    growth: int
    bottleneck: int
    first: bool
    last: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = partial(self.conv, space=x.ndim - 2)
        norm = partial(self.norm, train=train)
        if not self.first:
            # Both are linear, so pooling may come first: a quarter of the work.
            x = layers.avg_pool(norm(name="transition_norm")(x, relu=True), 2)
            x = conv(x.shape[-1] // 2, 1, name="transition_conv")(x)
        if not train:
            room = [(0, 0)] * (x.ndim - 1) + [(0, self.depth * self.growth)]
            wide = jnp.pad(x, room)
        for j in range(1, self.depth + 1):
            new = norm(name=f"layer{j}_norm1")(x, relu=True)
            if self.bottleneck:
                width = self.bottleneck * self.growth
                new = conv(width, 1, name=f"layer{j}_conv1")(new)
                new = norm(name=f"layer{j}_norm2")(new, relu=True)
            new = conv(self.growth, 3, name=f"layer{j}_conv2")(new)
            if train:
                x = jnp.concatenate([x, new], axis=-1)  # [B, h, w, c + growth]
                continue
            # No gradient needs the layers' inputs, so none of them is copied.
            axis, place = x.ndim - 1, x.shape[-1]
            wide = lax.dynamic_update_slice_in_dim(wide, new, place, axis)
            x = wide[..., : place + self.growth]
        return norm(name="norm")(x, relu=True) if self.last else x


densenet121 = partial(densenet, blocks=(6, 12, 24, 16))
densenet169 = partial(densenet, blocks=(6, 12, 32, 32))
densenet201 = partial(densenet, blocks=(6, 12, 48, 32))
densenet_small = partial(
    densenet, blocks=(2, 4, 4), growth=16, bottleneck=0, features=16, stem="half"
)

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

    Args:
      tasks: T, the number of findings.
      blocks: layers in each dense block.
      growth: channels that each layer adds.
      bottleneck: a layer begins with a 1 x 1 convolution to bottleneck x growth
        channels; 0 leaves it out.
      features, stem: the stem's channels, and its kind: see layers.stem.
      epsilon: of the batch normalisation.
      axis_name: the mapped axis over which batch statistics are shared, or None.
      rest: of Classifier.
    """
    layer = layers.makers(dtype=dtype, axis_name=axis_name, epsilon=epsilon)
    stages = [layers.stem(features, stem, **layer)]
    for i, depth in enumerate(blocks):
        ends = {"first": i == 0, "last": i == len(blocks) - 1}
        stages.append(
            partial(DenseNetStage, depth, growth, bottleneck, **ends, **layer)
        )
    return Classifier(tuple(stages), tasks, dtype=dtype, **rest)


class DenseNetStage(nn.Module):
    """A dense block; a transition before all but the first, a norm after the last."""

    depth: int
    growth: int
    bottleneck: int
    first: bool
    last: bool
    conv: Callable[..., Array]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = partial(self.norm, train=train)
        if not self.first:
            # Both are linear, so pooling may come first: a quarter of the work.
            x = layers.avg_pool(norm(name="transition_norm")(x, relu=True), 2)
            x = self.conv(x, x.shape[-1] // 2, 1, name="transition_conv")
        if not train:
            room = [(0, 0)] * (x.ndim - 1) + [(0, self.depth * self.growth)]
            wide = jnp.pad(x, room)
        for j in range(1, self.depth + 1):
            new = norm(name=f"layer{j}_norm1")(x, relu=True)
            if self.bottleneck:
                width = self.bottleneck * self.growth
                new = self.conv(new, width, 1, name=f"layer{j}_conv1")
                new = norm(name=f"layer{j}_norm2")(new, relu=True)
            new = self.conv(new, self.growth, 3, name=f"layer{j}_conv2")
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

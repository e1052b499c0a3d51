"""ResNet (He et al., CVPR 2016), layer for layer as torchvision builds it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from chex import Array

from medjax.models import layers
from medjax.models.classifier import Classifier


def resnet(
    tasks: int,
    *,
    blocks: Sequence[int],
    bottleneck: bool,
    width: int = 64,
    stem: str = "imagenet",
    stride_first: bool = False,
    use_bias: bool = False,
    epsilon: float = 1e-5,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
    **rest: Any,
) -> Classifier:
    """A stem and four stages of residual blocks, each half as wide and high as the last.

    Keras' ResNets have stride_first, use_bias and an epsilon of 1.001e-5.

    Args:
      blocks: residual blocks in each stage.
      bottleneck: a block is 1 x 1, 3 x 3 and 1 x 1 convolutions, to four times as many
        channels, instead of two 3 x 3.
      width: channels of the stem and of the first stage's 3 x 3.
      stem: see layers.stem.
      stride_first: a bottleneck's stride is on its first 1 x 1, as in the paper, and
        not on the 3 x 3, as in torchvision ('V1.5').
      use_bias: of the convolutions.
      tasks, epsilon, axis_name, rest: as in densenet.
    """
    options = {"dtype": dtype, "axis_name": axis_name, "epsilon": epsilon}
    layer = layers.makers(**options, use_bias=use_bias)
    block = {"bottleneck": bottleneck, "stride_first": stride_first, **layer}
    stages = [layers.stem(width, stem, **layer)]
    for i, depth in enumerate(blocks):
        # The stem has halved the grid of the first stage.
        stages.append(partial(ResNetStage, depth, width * 2**i, 2 if i else 1, **block))
    return Classifier(tuple(stages), tasks, dtype=dtype, **rest)


class ResNetStage(nn.Module):
    """`depth` residual blocks, [B, H, W, C] -> [B, h, w, width or 4 width]."""

    depth: int
    width: int
    stride: int
    bottleneck: bool
    stride_first: bool
    conv: Callable[..., Array]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = self.conv
        norm = partial(self.norm, train=train)
        for j in range(1, self.depth + 1):
            block, stride = f"block{j}", self.stride if j == 1 else 1
            convolutions = self._convolutions(stride)
            new = x
            for k, (features, size, step) in enumerate(convolutions, start=1):
                new = conv(new, features, size, step, name=f"{block}_conv{k}")
                new = norm(name=f"{block}_norm{k}")(new, relu=k < len(convolutions))
            if stride != 1 or x.shape[-1] != new.shape[-1]:
                x = conv(x, new.shape[-1], 1, stride, name=f"{block}_shortcut_conv")
                x = norm(name=f"{block}_shortcut_norm")(x)
            x = jax.nn.relu(x + new)
        return x

    def _convolutions(self, stride: int) -> tuple[tuple[int, int, int], ...]:
        """Features, size and stride of each convolution of a block."""
        if not self.bottleneck:
            return (self.width, 3, stride), (self.width, 3, 1)
        first, second = (stride, 1) if self.stride_first else (1, stride)
        return (self.width, 1, first), (self.width, 3, second), (4 * self.width, 1, 1)


resnet18 = partial(resnet, blocks=(2, 2, 2, 2), bottleneck=False)
resnet34 = partial(resnet, blocks=(3, 4, 6, 3), bottleneck=False)
resnet50 = partial(resnet, blocks=(3, 4, 6, 3), bottleneck=True)
resnet101 = partial(resnet, blocks=(3, 4, 23, 3), bottleneck=True)
# For some hundred images of 64 to 160 pixels: 0.7 million weights.
resnet_small = partial(resnet, blocks=(1, 1, 1, 1), bottleneck=False, width=24)

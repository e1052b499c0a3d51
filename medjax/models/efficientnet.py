"""EfficientNet (Tan & Le, ICML 2019), layer for layer as torchvision builds it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from chex import Array

from medjax.models import layers
from medjax.models.classifier import Classifier

# The paper's table 1: of each stage the expansion, the depthwise kernel's size, the
# stride, the channels and the blocks.
B0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def efficientnet(
    tasks: int,
    *,
    table: Sequence[tuple[int, int, int, int, int]],
    stem: int = 32,
    top: int = 1280,
    lite: bool = False,
    padding: str | None = None,
    stochastic_depth: float = 0.0,
    epsilon: float = 1e-5,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
    **rest: Any,
) -> Classifier:
    """A stem, a stage for each row of the table, and the last 1 x 1 convolution.

    Keras' EfficientNets and the published EfficientNet-Lite have padding 'SAME' and an
    epsilon of 1e-3. The paper trains B0 with a dropout and a stochastic depth of 0.2.

    Args:
      stem, top: channels of the stem, and of the last convolution.
      lite: EfficientNet-Lite (Liu, TensorFlow blog, 2020): no squeeze and excitation,
        and relu6 instead of swish.
      padding: None pads both sides equally; 'SAME' is TensorFlow's, which pads the end
        more. The two differ at stride 2 and an even size, and need different weights.
      stochastic_depth: see layers.depth_rates.
      tasks, epsilon, dtype, axis_name, rest: as in densenet.
    """
    layer = layers.makers(
        dtype=dtype, axis_name=axis_name, epsilon=epsilon, padding=padding
    )
    layer["activation"] = jax.nn.relu6 if lite else jax.nn.swish
    rates = layers.depth_rates(stochastic_depth, [row[-1] for row in table])
    stages = (
        partial(Unit, features=stem, size=3, stride=2, **layer),
        *(
            partial(EfficientNetStage, *row[:4], of_blocks, squeeze=not lite, **layer)
            for row, of_blocks in zip(table, rates, strict=True)
        ),
        partial(Unit, features=top, size=1, stride=1, **layer),
    )
    random = stochastic_depth > 0
    return Classifier(stages, tasks, dtype=dtype, random=random, **rest)


class Unit(nn.Module):
    """A convolution, its norm and its activation, [B, H, W, C] -> [B, h, w, features]."""

    features: int
    size: int
    stride: int
    conv: Callable[..., Array]
    norm: Callable[..., nn.Module]
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Array | None = None) -> Array:
        x = self.conv(x, self.features, self.size, self.stride, name="conv")
        return self.activation(self.norm(train=train, name="norm")(x))


class EfficientNetStage(nn.Module):
    """Inverted residual blocks, [B, H, W, C] -> [B, h, w, features].

    A block widens by 1 x 1, filters each channel alone, weights the channels by their
    means over the grid (squeeze and excitation, Hu et al., CVPR 2018) and narrows.
    """

    expansion: int
    size: int
    stride: int
    features: int
    rates: Sequence[float]  # Of each block: how often training leaves it out.
    squeeze: bool
    conv: Callable[..., Array]
    norm: Callable[..., nn.Module]
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Array | None = None) -> Array:
        conv, norm = self.conv, partial(self.norm, train=train)
        axes = tuple(range(1, x.ndim - 1))
        for j, rate in enumerate(self.rates, start=1):
            block, stride = f"block{j}", self.stride if j == 1 else 1
            width = self.expansion * x.shape[-1]
            new = x
            if self.expansion != 1:
                new = conv(new, width, 1, name=f"{block}_expand_conv")
                new = self.activation(norm(name=f"{block}_expand_norm")(new))
            depthwise = partial(conv, groups=width, name=f"{block}_depthwise_conv")
            new = depthwise(new, width, self.size, stride)
            new = self.activation(norm(name=f"{block}_depthwise_norm")(new))
            if self.squeeze:
                # A quarter of the block's input, not of its width, as the authors do.
                squeezed = max(1, x.shape[-1] // 4)
                dense = partial(conv, size=1, use_bias=True)
                weight = jnp.mean(new, axes, keepdims=True)  # [B, 1, 1, width]
                weight = dense(weight, squeezed, name=f"{block}_squeeze")
                weight = dense(self.activation(weight), width, name=f"{block}_excite")
                new = jax.nn.sigmoid(weight) * new
            new = conv(new, self.features, 1, name=f"{block}_project_conv")
            new = norm(name=f"{block}_project_norm")(new)
            if new.shape == x.shape:
                new = x + layers.drop(new, layers.fold_keys(keys, j), rate, whole=True)
            x = new
        return x


efficientnet_b0 = partial(efficientnet, table=B0)
efficientnet_lite0 = partial(efficientnet, table=B0, lite=True)

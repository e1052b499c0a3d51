"""DenseNet (Huang et al., CVPR 2017), layer for layer as torchvision builds it.

The names are torchvision's too (`denseblock1_denselayer1_conv1` for
`features.denseblock1.denselayer1.conv1`), so that its weights can be loaded.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from chex import Array


class DenseNet(nn.Module):
    """Image [B, H, W, C] or [B, D, H, W, C] -> logits [B, T].

    In a volume every kernel and every stride has the same size along the depth. The
    classifier's input, [B, F], is sown as the intermediate 'embedding'.

    Attributes:
      tasks: T, the number of findings.
      blocks: layers in each dense block.
      growth: channels that each layer adds.
      bottleneck: a 1 x 1 convolution to so many times `growth` channels comes first
        in a layer; 0 leaves it out.
      features: channels of the stem.
      stem: 'imagenet' is a 7 x 7 convolution of stride 2 and a max-pool of stride
        2. For films of 64 to 128 pixels: 'half', a 5 x 5 convolution of stride 2,
        and 'quarter', an average-pool of stride 2 after it.
      pool: 'mean' over the last grid, as torchvision's; 'mean_max' puts the maximum
        beside it, for findings of a few pixels.
      dtype: of the computation; parameters and statistics stay float32.
      axis_name: the mapped axis over which batch statistics are shared, or None.
    """

    tasks: int
    blocks: Sequence[int] = (6, 12, 24, 16)
    growth: int = 32
    bottleneck: int = 4
    features: int = 64
    stem: str = "imagenet"
    pool: str = "mean"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> Array:
        """Args: image, standardised. Returns: logits [B, T] float32."""
        space = image.ndim - 2
        axes = tuple(range(1, space + 1))
        # torch's momentum 0.1 is the share of the new value, Linen's 0.9 of the old.
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name if train else None,
        )
        conv = partial(
            nn.Conv,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
        )
        relu = jax.nn.relu

        x = image.astype(self.dtype)
        if self.stem == "imagenet":
            x = conv(self.features, (7,) * space, 2, padding=3, name="conv0")(x)
            x = relu(norm(name="norm0")(x))
            x = nn.max_pool(x, (3,) * space, (2,) * space, ((1, 1),) * space)
        elif self.stem in ("half", "quarter"):
            x = conv(self.features, (5,) * space, 2, padding=2, name="conv0")(x)
            x = relu(norm(name="norm0")(x))
            if self.stem == "quarter":
                x = nn.avg_pool(x, (2,) * space, (2,) * space)
        else:
            raise ValueError(f"{self.stem!r}: use 'imagenet', 'half' or 'quarter'")
        for i, layers in enumerate(self.blocks, start=1):
            for j in range(1, layers + 1):
                name = f"denseblock{i}_denselayer{j}"
                new = relu(norm(name=f"{name}_norm1")(x))
                if self.bottleneck:
                    width = self.bottleneck * self.growth
                    new = conv(width, (1,) * space, name=f"{name}_conv1")(new)
                    new = relu(norm(name=f"{name}_norm2")(new))
                new = conv(self.growth, (3,) * space, padding=1, name=f"{name}_conv2")(
                    new
                )
                x = jnp.concatenate([x, new], axis=-1)  # [B, h, w, c + growth]
            if i < len(self.blocks):
                x = relu(norm(name=f"transition{i}_norm")(x))
                x = conv(x.shape[-1] // 2, (1,) * space, name=f"transition{i}_conv")(x)
                x = nn.avg_pool(x, (2,) * space, (2,) * space)
        x = relu(norm(name="norm5")(x))
        x = x.astype(jnp.float32)
        if self.pool == "mean":
            x = jnp.mean(x, axes)  # [B, c]
        elif self.pool == "mean_max":
            x = jnp.concatenate([jnp.mean(x, axes), jnp.max(x, axes)], axis=1)
        else:
            raise ValueError(f"{self.pool!r}: use 'mean' or 'mean_max'")
        self.sow("intermediates", "embedding", x)
        return nn.Dense(self.tasks, name="classifier")(x)


densenet121 = DenseNet
densenet_small = partial(
    DenseNet, blocks=(2, 4, 4), growth=16, bottleneck=0, features=16, stem="half"
)

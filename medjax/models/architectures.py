"""The networks that a config's `model.name` can name."""

from medjax.models.convnext import convnext_tiny  # noqa: F401
from medjax.models.densenet import (  # noqa: F401
    densenet121,
    densenet169,
    densenet201,
    densenet_small,
)
from medjax.models.efficientnet import efficientnet_b0, efficientnet_lite0  # noqa: F401
from medjax.models.resnet import (  # noqa: F401
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet_small,
)
from medjax.models.unet import UNet as unet  # noqa: F401
from medjax.models.unet import unet_encoder  # noqa: F401
from medjax.models.vit import vit_base, vit_small  # noqa: F401

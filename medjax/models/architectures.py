"""The networks that a config's `model.name` can name."""

from medjax.models.densenet import (  # noqa: F401
    densenet121,
    densenet169,
    densenet201,
    densenet_small,
)

"""What a table of names is: whose weights go where in our networks.

A source's name is a module's and a variable's: `layer1.0.conv1` and `weight` in torch,
`conv1_bn` and `gamma` in Keras. A rule is for modules, its kind for their variables.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Leaf(NamedTuple):
    """Where a variable goes: the collection, what follows the module's path, and how."""

    collection: str
    suffix: str
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray


class Rule(NamedTuple):
    """Modules of one kind.

    Attributes:
      module: regular expression of the whole of a module's name.
      path: our path, or a function of the expression's groups, numbers as int.
      kind: the leaf of each variable; None leaves it out on purpose.
    """

    module: str
    path: str | Callable[..., str]
    kind: Mapping[str, Leaf | None]


class Table(NamedTuple):
    """How a framework writes a family of networks.

    Attributes:
      framework: its name.
      family: of the models, their names up to the number.
      rules: each name meets exactly one of them.
      options: of our maker, where this framework's layers are not torchvision's.
      bgr: the first convolution takes blue, green, red.
      mean, std: of red, green, blue: what images in [0, 1] are standardised by.
    """

    framework: str
    family: str
    rules: tuple[Rule, ...]
    options: Mapping = {}
    bgr: bool = False
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


BIAS = Leaf("params", "/bias")
SCALE = Leaf("params", "/scale")
MEAN = Leaf("batch_stats", "/mean")
VAR = Leaf("batch_stats", "/var")


def inputs_last(kernel: np.ndarray) -> np.ndarray:
    """[O, I, ...] -> [..., I, O]."""
    return np.moveaxis(kernel, (0, 1), (-1, -2)) if kernel.ndim > 1 else kernel


def inputs_before_last(kernel: np.ndarray) -> np.ndarray:
    """[..., C, 1], of one filter a channel, -> [..., 1, C]."""
    return kernel.swapaxes(-1, -2) if kernel.ndim > 1 else kernel

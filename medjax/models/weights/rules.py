"""What a table of names is: whose weights go where in our networks.

A source's name is a module's and a variable's: `layer1.0.conv1` and `weight` in torch,
`conv1_bn` and `gamma` in Keras. A rule is for modules, its kind for their variables.

The names that torchvision and timm give; see rules.

The names of keras.applications, and where its layers are not torchvision's.

DenseNet reads images as torchvision does, ResNet as Caffe did: blue first, in 0 to 255
and only centred. EfficientNet and ConvNeXt take 0 to 255 and standardise it in a layer,
by torchvision's numbers; the variables of that layer are left out.
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


LINEAR = {"weight": Leaf("params", "/kernel", inputs_last), "bias": BIAS}
LAYER_NORM = {"weight": SCALE, "bias": BIAS}
NORM = {
    **LAYER_NORM,
    "running_mean": MEAN,
    "running_var": VAR,
    "num_batches_tracked": None,
}
BLOCK_SCALE = Leaf("params", "_scale", np.squeeze)  # [C, 1, 1] -> [C]

# torchvision's first files have a dot in `norm.1` and `conv.1`.
DENSENET = (
    Rule(r"features\.conv0", "stem/conv", LINEAR),
    Rule(r"features\.norm0", "stem/norm", NORM),
    Rule(
        r"features\.denseblock(\d)\.denselayer(\d+)\.conv\.?([12])",
        lambda i, j, k: f"stage{i}/layer{j}_conv{k}",
        LINEAR,
    ),
    Rule(
        r"features\.denseblock(\d)\.denselayer(\d+)\.norm\.?([12])",
        lambda i, j, k: f"stage{i}/layer{j}_norm{k}",
        NORM,
    ),
    Rule(
        r"features\.transition(\d)\.conv",
        lambda i: f"stage{i + 1}/transition_conv",
        LINEAR,
    ),
    Rule(
        r"features\.transition(\d)\.norm",
        lambda i: f"stage{i + 1}/transition_norm",
        NORM,
    ),
    Rule(r"features\.norm5", "stage4/norm", NORM),
    Rule(r"classifier", "classifier", LINEAR),
)

RESNET = (
    Rule(r"conv1", "stem/conv", LINEAR),
    Rule(r"bn1", "stem/norm", NORM),
    Rule(
        r"layer(\d)\.(\d+)\.conv(\d)",
        lambda i, j, k: f"stage{i}/block{j + 1}_conv{k}",
        LINEAR,
    ),
    Rule(
        r"layer(\d)\.(\d+)\.bn(\d)",
        lambda i, j, k: f"stage{i}/block{j + 1}_norm{k}",
        NORM,
    ),
    Rule(
        r"layer(\d)\.(\d+)\.downsample\.0",
        lambda i, j: f"stage{i}/block{j + 1}_shortcut_conv",
        LINEAR,
    ),
    Rule(
        r"layer(\d)\.(\d+)\.downsample\.1",
        lambda i, j: f"stage{i}/block{j + 1}_shortcut_norm",
        NORM,
    ),
    Rule(r"fc", "classifier", LINEAR),
)


def _part(stage: int, block: int, number: int, what: str, names: tuple) -> str:
    """Blocks of the first stage don't widen, so there all numbers are one less."""
    return f"stage{stage}/block{block + 1}_{names[number + (stage == 1)]}_{what}"


PARTS = ("expand", "depthwise", "excitation", "project")
NORMS = ("expand", "depthwise", "project")
CONVS = {"pw": "expand", "dw": "depthwise", "pwl": "project"}
EXCITATION = {1: "squeeze", 2: "excite", "reduce": "squeeze", "expand": "excite"}

EFFICIENTNET = (
    Rule(r"features\.0\.0", "stem/conv", LINEAR),
    Rule(r"features\.0\.1", "stem/norm", NORM),
    Rule(
        r"features\.([1-7])\.(\d)\.block\.(\d)\.0",
        lambda i, j, k: _part(i, j, k, "conv", PARTS),
        LINEAR,
    ),
    Rule(
        r"features\.([1-7])\.(\d)\.block\.(\d)\.1",
        lambda i, j, k: _part(i, j, k, "norm", PARTS),
        NORM,
    ),
    Rule(
        r"features\.([1-7])\.(\d)\.block\.\d\.fc([12])",
        lambda i, j, k: f"stage{i}/block{j + 1}_{EXCITATION[k]}",
        LINEAR,
    ),
    Rule(r"features\.8\.0", "stage8/conv", LINEAR),
    Rule(r"features\.8\.1", "stage8/norm", NORM),
    Rule(r"classifier\.1", "classifier", LINEAR),
)
# Not for tf_efficientnet_b0, which has these names and shapes too, but TensorFlow's
# padding and epsilon, and its standardisation by the variant: no file says which.
TIMM_EFFICIENTNET = (
    Rule(r"conv_stem", "stem/conv", LINEAR),
    Rule(r"bn1", "stem/norm", NORM),
    Rule(r"blocks\.0\.0\.conv_dw", "stage1/block1_depthwise_conv", LINEAR),
    Rule(r"blocks\.0\.0\.conv_pw", "stage1/block1_project_conv", LINEAR),
    Rule(
        r"blocks\.([1-6])\.(\d)\.conv_(pw|dw|pwl)",
        lambda i, j, part: f"stage{i + 1}/block{j + 1}_{CONVS[part]}_conv",
        LINEAR,
    ),
    Rule(
        r"blocks\.([0-6])\.(\d)\.bn([123])",
        lambda i, j, k: _part(i + 1, j, k - 1, "norm", NORMS),
        NORM,
    ),
    Rule(
        r"blocks\.([0-6])\.(\d)\.se\.conv_(reduce|expand)",
        lambda i, j, part: f"stage{i + 1}/block{j + 1}_{EXCITATION[part]}",
        LINEAR,
    ),
    Rule(r"conv_head", "stage8/conv", LINEAR),
    Rule(r"bn2", "stage8/norm", NORM),
    Rule(r"classifier", "classifier", LINEAR),
)

# In torchvision the even numbers are what halves the grid before a stage.
CONVNEXT = (
    Rule(r"features\.0\.0", "stem/conv", LINEAR),
    Rule(r"features\.0\.1", "stem/norm", LAYER_NORM),
    Rule(
        r"features\.([246])\.0",
        lambda i: f"stage{i // 2 + 1}/down_norm",
        LAYER_NORM,
    ),
    Rule(r"features\.([246])\.1", lambda i: f"stage{i // 2 + 1}/down_conv", LINEAR),
    Rule(
        r"features\.([1357])\.(\d+)",
        lambda i, j: f"stage{i // 2 + 1}/block{j + 1}",
        {"layer_scale": BLOCK_SCALE},
    ),
    Rule(
        r"features\.([1357])\.(\d+)\.block\.2",
        lambda i, j: f"stage{i // 2 + 1}/block{j + 1}_norm",
        LAYER_NORM,
    ),
    Rule(
        r"features\.([1357])\.(\d+)\.block\.([035])",
        lambda i, j, k: f"stage{i // 2 + 1}/block{j + 1}_{LAYERS[k]}",
        LINEAR,
    ),
    Rule(r"classifier\.0", "top", LAYER_NORM),
    Rule(r"classifier\.2", "classifier", LINEAR),
)
LAYERS = {
    0: "conv",
    3: "widen",
    5: "narrow",
    "conv_dw": "conv",
    "mlp.fc1": "widen",
    "mlp.fc2": "narrow",
}
TIMM_CONVNEXT = (
    Rule(r"stem\.0", "stem/conv", LINEAR),
    Rule(r"stem\.1", "stem/norm", LAYER_NORM),
    Rule(
        r"stages\.(\d)\.downsample\.0", lambda i: f"stage{i + 1}/down_norm", LAYER_NORM
    ),
    Rule(r"stages\.(\d)\.downsample\.1", lambda i: f"stage{i + 1}/down_conv", LINEAR),
    Rule(
        r"stages\.(\d)\.blocks\.(\d+)",
        lambda i, j: f"stage{i + 1}/block{j + 1}",
        {"gamma": BLOCK_SCALE},
    ),
    Rule(
        r"stages\.(\d)\.blocks\.(\d+)\.norm",
        lambda i, j: f"stage{i + 1}/block{j + 1}_norm",
        LAYER_NORM,
    ),
    Rule(
        r"stages\.(\d)\.blocks\.(\d+)\.(conv_dw|mlp\.fc1|mlp\.fc2)",
        lambda i, j, k: f"stage{i + 1}/block{j + 1}_{LAYERS[k]}",
        LINEAR,
    ),
    Rule(r"head\.norm", "top", LAYER_NORM),
    Rule(r"head\.fc", "classifier", LINEAR),
)

TABLES = (
    Table("torch", "densenet", DENSENET),
    Table("torch", "resnet", RESNET),
    Table("torchvision", "efficientnet", EFFICIENTNET),
    Table("timm", "efficientnet", TIMM_EFFICIENTNET),
    Table("torchvision", "convnext", CONVNEXT),
    Table("timm", "convnext", TIMM_CONVNEXT),
)


LINEAR_KERAS_RULES = {"kernel": Leaf("params", "/kernel"), "bias": BIAS}
DEPTHWISE = {"kernel": Leaf("params", "/kernel", inputs_before_last)}
LAYER_NORM_KERAS_RULES = {"gamma": SCALE, "beta": BIAS}
NORM_KERAS_RULES = {
    **LAYER_NORM_KERAS_RULES,
    "moving_mean": MEAN,
    "moving_variance": VAR,
}
BLOCK_SCALE_KERAS_RULES = Leaf("params", "_scale")
CONSTANTS = {"mean": None, "variance": None, "count": None}

# Keras 2 wrote `conv1/conv`.
DENSENET_KERAS_RULES = (
    Rule(r"conv1[_/]conv", "stem/conv", LINEAR_KERAS_RULES),
    Rule(r"conv1[_/]bn", "stem/norm", NORM_KERAS_RULES),
    Rule(
        r"conv(\d)_block(\d+)_([12])_conv",
        lambda i, j, k: f"stage{i - 1}/layer{j}_conv{k}",
        LINEAR_KERAS_RULES,
    ),
    Rule(
        r"conv(\d)_block(\d+)_([01])_bn",
        lambda i, j, k: f"stage{i - 1}/layer{j}_norm{k + 1}",
        NORM_KERAS_RULES,
    ),
    Rule(r"pool(\d)_conv", lambda i: f"stage{i}/transition_conv", LINEAR_KERAS_RULES),
    Rule(r"pool(\d)_bn", lambda i: f"stage{i}/transition_norm", NORM_KERAS_RULES),
    Rule(r"bn", "stage4/norm", NORM_KERAS_RULES),
    Rule(r"predictions|fc1000", "classifier", LINEAR_KERAS_RULES),
)

RESNET_KERAS_RULES = (
    Rule(r"conv1_conv", "stem/conv", LINEAR_KERAS_RULES),
    Rule(r"conv1_bn", "stem/norm", NORM_KERAS_RULES),
    Rule(
        r"conv(\d)_block(\d+)_([123])_conv",
        lambda i, j, k: f"stage{i - 1}/block{j}_conv{k}",
        LINEAR_KERAS_RULES,
    ),
    Rule(
        r"conv(\d)_block(\d+)_([123])_bn",
        lambda i, j, k: f"stage{i - 1}/block{j}_norm{k}",
        NORM_KERAS_RULES,
    ),
    Rule(
        r"conv(\d)_block(\d+)_0_conv",
        lambda i, j: f"stage{i - 1}/block{j}_shortcut_conv",
        LINEAR_KERAS_RULES,
    ),
    Rule(
        r"conv(\d)_block(\d+)_0_bn",
        lambda i, j: f"stage{i - 1}/block{j}_shortcut_norm",
        NORM_KERAS_RULES,
    ),
    Rule(r"predictions|probs|fc1000", "classifier", LINEAR_KERAS_RULES),
)


def _block(stage: int, letter: str) -> str:
    return f"stage{stage}/block{ord(letter) - ord('a') + 1}"


EXCITATION_KERAS_RULES = {"reduce": "squeeze", "expand": "excite"}
EFFICIENTNET_KERAS_RULES = (
    Rule(r"normalization(?:_\d+)?", "", CONSTANTS),
    Rule(r"stem_conv", "stem/conv", LINEAR_KERAS_RULES),
    Rule(r"stem_bn", "stem/norm", NORM_KERAS_RULES),
    Rule(
        r"block(\d)([a-z])_dwconv",
        lambda i, j: f"{_block(i, j)}_depthwise_conv",
        DEPTHWISE,
    ),
    Rule(
        r"block(\d)([a-z])_bn",
        lambda i, j: f"{_block(i, j)}_depthwise_norm",
        NORM_KERAS_RULES,
    ),
    Rule(
        r"block(\d)([a-z])_(expand|project)_conv",
        lambda i, j, part: f"{_block(i, j)}_{part}_conv",
        LINEAR_KERAS_RULES,
    ),
    Rule(
        r"block(\d)([a-z])_(expand|project)_bn",
        lambda i, j, part: f"{_block(i, j)}_{part}_norm",
        NORM_KERAS_RULES,
    ),
    Rule(
        r"block(\d)([a-z])_se_(reduce|expand)",
        lambda i, j, part: f"{_block(i, j)}_{EXCITATION_KERAS_RULES[part]}",
        LINEAR_KERAS_RULES,
    ),
    Rule(r"top_conv", "stage8/conv", LINEAR_KERAS_RULES),
    Rule(r"top_bn", "stage8/norm", NORM_KERAS_RULES),
    Rule(r"predictions|probs", "classifier", LINEAR_KERAS_RULES),
)

LAYERS_KERAS_RULES = {
    "depthwise_conv": "conv",
    "pointwise_conv_1": "widen",
    "pointwise_conv_2": "narrow",
}
CONVNEXT_KERAS_RULES = (
    Rule(r"\w+_stem/\w+_stem_conv", "stem/conv", LINEAR_KERAS_RULES),
    Rule(r"\w+_stem/\w+_stem_layernorm", "stem/norm", LAYER_NORM_KERAS_RULES),
    Rule(
        r"\w+/\w+_downsampling_layernorm_(\d)",
        lambda i: f"stage{i + 2}/down_norm",
        LAYER_NORM_KERAS_RULES,
    ),
    Rule(
        r"\w+/\w+_downsampling_conv_(\d)",
        lambda i: f"stage{i + 2}/down_conv",
        LINEAR_KERAS_RULES,
    ),
    Rule(
        r"\w+_stage_(\d)_block_(\d+)_layer_scale",
        lambda i, j: f"stage{i + 1}/block{j + 1}",
        {"gamma": BLOCK_SCALE_KERAS_RULES},
    ),
    Rule(
        r"\w+_stage_(\d)_block_(\d+)_layernorm",
        lambda i, j: f"stage{i + 1}/block{j + 1}_norm",
        LAYER_NORM_KERAS_RULES,
    ),
    Rule(
        r"\w+_stage_(\d)_block_(\d+)_(depthwise_conv|pointwise_conv_[12])",
        lambda i, j, part: f"stage{i + 1}/block{j + 1}_{LAYERS_KERAS_RULES[part]}",
        LINEAR_KERAS_RULES,
    ),
    # Without the classifier this norm has no name of its own.
    Rule(
        r"\w+_head_layernorm|layer_normalization(?:_\d+)?",
        "top",
        LAYER_NORM_KERAS_RULES,
    ),
    Rule(r"\w+_head_dense", "classifier", LINEAR_KERAS_RULES),
)

CAFFE = {
    "bgr": True,
    "mean": (123.68 / 255, 116.779 / 255, 103.939 / 255),
    "std": (1 / 255, 1 / 255, 1 / 255),
}
TABLES_KERAS_RULES = (
    Table("keras", "densenet", DENSENET_KERAS_RULES, {"epsilon": 1.001e-5}),
    Table(
        "keras",
        "resnet",
        RESNET_KERAS_RULES,
        {"stride_first": True, "use_bias": True, "epsilon": 1.001e-5},
        **CAFFE,
    ),
    Table(
        "keras",
        "efficientnet",
        EFFICIENTNET_KERAS_RULES,
        {"padding": "SAME", "epsilon": 1e-3},
    ),
    Table("keras", "convnext", CONVNEXT_KERAS_RULES),
)

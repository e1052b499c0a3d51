"""The names of keras.applications, and where its layers are not torchvision's.

DenseNet reads images as torchvision does, ResNet as Caffe did: blue first, in 0 to 255
and only centred. EfficientNet and ConvNeXt take 0 to 255 and standardise it in a layer,
by torchvision's numbers; the variables of that layer are left out.
"""

from medjax.models.rules import (
    BIAS,
    MEAN,
    SCALE,
    VAR,
    Leaf,
    Rule,
    Table,
    inputs_before_last,
)

LINEAR = {"kernel": Leaf("params", "/kernel"), "bias": BIAS}
DEPTHWISE = {"kernel": Leaf("params", "/kernel", inputs_before_last)}
LAYER_NORM = {"gamma": SCALE, "beta": BIAS}
NORM = {**LAYER_NORM, "moving_mean": MEAN, "moving_variance": VAR}
BLOCK_SCALE = Leaf("params", "_scale")
CONSTANTS = {"mean": None, "variance": None, "count": None}

# Keras 2 wrote `conv1/conv`.
DENSENET = (
    Rule(r"conv1[_/]conv", "stem/conv", LINEAR),
    Rule(r"conv1[_/]bn", "stem/norm", NORM),
    Rule(
        r"conv(\d)_block(\d+)_([12])_conv",
        lambda i, j, k: f"stage{i - 1}/layer{j}_conv{k}",
        LINEAR,
    ),
    Rule(
        r"conv(\d)_block(\d+)_([01])_bn",
        lambda i, j, k: f"stage{i - 1}/layer{j}_norm{k + 1}",
        NORM,
    ),
    Rule(r"pool(\d)_conv", lambda i: f"stage{i}/transition_conv", LINEAR),
    Rule(r"pool(\d)_bn", lambda i: f"stage{i}/transition_norm", NORM),
    Rule(r"bn", "stage4/norm", NORM),
    Rule(r"predictions|fc1000", "classifier", LINEAR),
)

RESNET = (
    Rule(r"conv1_conv", "stem/conv", LINEAR),
    Rule(r"conv1_bn", "stem/norm", NORM),
    Rule(
        r"conv(\d)_block(\d+)_([123])_conv",
        lambda i, j, k: f"stage{i - 1}/block{j}_conv{k}",
        LINEAR,
    ),
    Rule(
        r"conv(\d)_block(\d+)_([123])_bn",
        lambda i, j, k: f"stage{i - 1}/block{j}_norm{k}",
        NORM,
    ),
    Rule(
        r"conv(\d)_block(\d+)_0_conv",
        lambda i, j: f"stage{i - 1}/block{j}_shortcut_conv",
        LINEAR,
    ),
    Rule(
        r"conv(\d)_block(\d+)_0_bn",
        lambda i, j: f"stage{i - 1}/block{j}_shortcut_norm",
        NORM,
    ),
    Rule(r"predictions|probs|fc1000", "classifier", LINEAR),
)


def _block(stage: int, letter: str) -> str:
    return f"stage{stage}/block{ord(letter) - ord('a') + 1}"


EXCITATION = {"reduce": "squeeze", "expand": "excite"}
EFFICIENTNET = (
    Rule(r"normalization(?:_\d+)?", "", CONSTANTS),
    Rule(r"stem_conv", "stem/conv", LINEAR),
    Rule(r"stem_bn", "stem/norm", NORM),
    Rule(
        r"block(\d)([a-z])_dwconv",
        lambda i, j: f"{_block(i, j)}_depthwise_conv",
        DEPTHWISE,
    ),
    Rule(r"block(\d)([a-z])_bn", lambda i, j: f"{_block(i, j)}_depthwise_norm", NORM),
    Rule(
        r"block(\d)([a-z])_(expand|project)_conv",
        lambda i, j, part: f"{_block(i, j)}_{part}_conv",
        LINEAR,
    ),
    Rule(
        r"block(\d)([a-z])_(expand|project)_bn",
        lambda i, j, part: f"{_block(i, j)}_{part}_norm",
        NORM,
    ),
    Rule(
        r"block(\d)([a-z])_se_(reduce|expand)",
        lambda i, j, part: f"{_block(i, j)}_{EXCITATION[part]}",
        LINEAR,
    ),
    Rule(r"top_conv", "stage8/conv", LINEAR),
    Rule(r"top_bn", "stage8/norm", NORM),
    Rule(r"predictions|probs", "classifier", LINEAR),
)

LAYERS = {
    "depthwise_conv": "conv",
    "pointwise_conv_1": "widen",
    "pointwise_conv_2": "narrow",
}
CONVNEXT = (
    Rule(r"\w+_stem/\w+_stem_conv", "stem/conv", LINEAR),
    Rule(r"\w+_stem/\w+_stem_layernorm", "stem/norm", LAYER_NORM),
    Rule(
        r"\w+/\w+_downsampling_layernorm_(\d)",
        lambda i: f"stage{i + 2}/down_norm",
        LAYER_NORM,
    ),
    Rule(
        r"\w+/\w+_downsampling_conv_(\d)", lambda i: f"stage{i + 2}/down_conv", LINEAR
    ),
    Rule(
        r"\w+_stage_(\d)_block_(\d+)_layer_scale",
        lambda i, j: f"stage{i + 1}/block{j + 1}",
        {"gamma": BLOCK_SCALE},
    ),
    Rule(
        r"\w+_stage_(\d)_block_(\d+)_layernorm",
        lambda i, j: f"stage{i + 1}/block{j + 1}_norm",
        LAYER_NORM,
    ),
    Rule(
        r"\w+_stage_(\d)_block_(\d+)_(depthwise_conv|pointwise_conv_[12])",
        lambda i, j, part: f"stage{i + 1}/block{j + 1}_{LAYERS[part]}",
        LINEAR,
    ),
    # Without the classifier this norm has no name of its own.
    Rule(r"\w+_head_layernorm|layer_normalization(?:_\d+)?", "top", LAYER_NORM),
    Rule(r"\w+_head_dense", "classifier", LINEAR),
)

CAFFE = {
    "bgr": True,
    "mean": (123.68 / 255, 116.779 / 255, 103.939 / 255),
    "std": (1 / 255, 1 / 255, 1 / 255),
}
TABLES = (
    Table("keras", "densenet", DENSENET, {"epsilon": 1.001e-5}),
    Table(
        "keras",
        "resnet",
        RESNET,
        {"stride_first": True, "use_bias": True, "epsilon": 1.001e-5},
        **CAFFE,
    ),
    Table("keras", "efficientnet", EFFICIENTNET, {"padding": "SAME", "epsilon": 1e-3}),
    Table("keras", "convnext", CONVNEXT),
)

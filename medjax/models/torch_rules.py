"""The names that torchvision and timm give; see rules."""

import numpy as np

from medjax.models.rules import BIAS, MEAN, SCALE, VAR, Leaf, Rule, Table, inputs_last

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

"""Which weights of other frameworks go where in our networks.

A name of the source is a module and a variable: `layer1.0.conv1` and `weight` in torch,
`conv1_bn` and `gamma` in Keras. A table's rules map the modules to ours: a regular
expression of the whole name, and our path or a function of the expression's groups,
numbers as int. What our module is, a convolution or a norm, its name says, and with
the framework it tells where each variable goes.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from medjax.errors import InputError


class Leaf(NamedTuple):
    """A variable's collection, what follows its module's path, and its transform."""

    collection: str
    suffix: str
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray


Arrays = Mapping[str, np.ndarray]
Rules = Mapping[str, str | Callable[..., str]]
Variables = Mapping[str, Leaf | None]  # None is left out on purpose.


class Table(NamedTuple):
    """How a framework names a family of networks."""

    framework: str
    family: str  # The models' names up to the number.
    rules: Rules  # Each name of the source meets exactly one.
    variables: Mapping[str, Variables]  # Of each kind of module.
    # Of our model's maker, where this framework's layers are not torchvision's.
    options: Mapping = {}
    # The arrays -> those that the rules are for, and further options that they ask for.
    prepare: Callable[[Arrays], tuple[Arrays, Mapping]] = lambda source: (source, {})
    file: str = ""  # A pattern of the file's folder and name, where names are shared.
    bgr: bool = False  # The first convolution takes blue, green, red.
    # Of red, green, blue: they standardise images in [0, 1].
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def kind(path: str) -> str:
    """What our module is: the key of Table.variables."""
    if not path:
        return "left out"
    if re.search(r"norm\d?$|^top$", path):
        return "norm"
    if re.search(r"^stem$|/scale\d$", path):
        return "learnt"
    if re.search(r"block\d+$", path):
        return "block"
    return "depthwise" if path.endswith("depthwise_conv") else "linear"


def inputs_last(kernel: np.ndarray) -> np.ndarray:
    """[O, I, ...] -> [..., I, O]."""
    return np.moveaxis(kernel, (0, 1), (-1, -2)) if kernel.ndim > 1 else kernel


def inputs_before_last(kernel: np.ndarray) -> np.ndarray:
    """[..., C, 1], one filter for each channel, -> [..., 1, C]."""
    return kernel.swapaxes(-1, -2) if kernel.ndim > 1 else kernel


BIAS, SCALE = Leaf("params", "/bias"), Leaf("params", "/scale")
MEAN, VAR = Leaf("batch_stats", "/mean"), Leaf("batch_stats", "/var")

# ----------------------------------------------------------------- torchvision and timm

LINEAR = {"weight": Leaf("params", "/kernel", inputs_last), "bias": BIAS}
BLOCK_SCALE = Leaf("params", "_scale", np.squeeze)  # [C, 1, 1] -> [C]
TORCH = {
    "linear": LINEAR,
    "depthwise": LINEAR,
    "norm": {"weight": SCALE, "bias": BIAS, "running_mean": MEAN, "running_var": VAR}
    | {"num_batches_tracked": None},
    "block": {"layer_scale": BLOCK_SCALE, "gamma": BLOCK_SCALE},
    "learnt": {
        "cls_token": Leaf("params", "/tokens"),
        "pos_embed": Leaf("params", "/position"),
        "gamma": Leaf("params", ""),
        # What stands for the patches that a pretext task hides.
        **dict.fromkeys(("mask_token", "decoder_pos_embed")),
    },
    "left out": dict.fromkeys(("weight", "bias", "weight_g", "weight_v")),
}
PARTS = ("expand", "depthwise", "excitation", "project")
NORMS = ("expand", "depthwise", "project")
PAIR = ("conv", "norm")  # 0 and 1 in a torch Sequential.
OURS = {  # Framework's part -> ours.
    "conv": "conv",
    "bn": "norm",
    "fc1": "squeeze",
    "fc2": "excite",
    "conv_reduce": "squeeze",
    "conv_expand": "excite",
    "conv_pw": "expand_conv",
    "conv_dw": "depthwise_conv",
    "conv_pwl": "project_conv",
}

TORCH_DENSENET: Rules = {
    r"features\.(conv|norm)0": lambda part: f"stem/{part}",
    # The dot in `norm.1` and `conv.1` is of torchvision's first files.
    r"features\.denseblock(\d)\.denselayer(\d+)\.(conv|norm)\.?([12])": (
        lambda i, j, part, k: f"stage{i}/layer{j}_{part}{k}"
    ),
    r"features\.transition(\d)\.(conv|norm)": (
        lambda i, part: f"stage{i + 1}/transition_{part}"
    ),
    r"features\.norm5": "stage4/norm",
    r"classifier": "classifier",
}
TORCH_RESNET: Rules = {
    r"conv1": "stem/conv",
    r"bn1": "stem/norm",
    r"layer(\d)\.(\d+)\.(conv|bn)(\d)": (
        lambda i, j, part, k: f"stage{i}/block{j + 1}_{OURS[part]}{k}"
    ),
    r"layer(\d)\.(\d+)\.downsample\.([01])": (
        lambda i, j, k: f"stage{i}/block{j + 1}_shortcut_{PAIR[k]}"
    ),
    r"fc": "classifier",
}
# Children of torchvision's networks by number, in a module called backbone.
RADIMAGENET_DENSENET: Rules = {
    rule.replace("features", r"backbone\.0"): path
    for rule, path in TORCH_DENSENET.items()
    if "features" in rule
}
RADIMAGENET_RESNET: Rules = {
    r"backbone\.([01])": lambda k: f"stem/{PAIR[k]}",
    r"backbone\.([4-7])\.(\d+)\.(conv|bn)(\d)": (
        lambda i, j, part, k: f"stage{i - 3}/block{j + 1}_{OURS[part]}{k}"
    ),
    r"backbone\.([4-7])\.(\d+)\.downsample\.([01])": (
        lambda i, j, k: f"stage{i - 3}/block{j + 1}_shortcut_{PAIR[k]}"
    ),
}
TORCHVISION_EFFICIENTNET: Rules = {
    r"features\.0\.([01])": lambda k: f"stem/{PAIR[k]}",
    # Blocks of the first stage don't expand, so their numbers are one less.
    r"features\.1\.(\d)\.block\.([0-2])\.([01])": (
        lambda j, k, m: f"stage1/block{j + 1}_{PARTS[k + 1]}_{PAIR[m]}"
    ),
    r"features\.([2-7])\.(\d)\.block\.([0-3])\.([01])": (
        lambda i, j, k, m: f"stage{i}/block{j + 1}_{PARTS[k]}_{PAIR[m]}"
    ),
    r"features\.([1-7])\.(\d)\.block\.\d\.(fc[12])": (
        lambda i, j, part: f"stage{i}/block{j + 1}_{OURS[part]}"
    ),
    r"features\.8\.([01])": lambda k: f"stage8/{PAIR[k]}",
    r"classifier\.1": "classifier",
}
# Not for tf_efficientnet_b0: it has these names and shapes too, but TensorFlow's padding
# and epsilon, and a standardisation that depends on the variant. No file says which.
TIMM_EFFICIENTNET: Rules = {
    r"conv_stem": "stem/conv",
    r"bn1": "stem/norm",
    r"blocks\.0\.0\.conv_dw": "stage1/block1_depthwise_conv",
    r"blocks\.0\.0\.conv_pw": "stage1/block1_project_conv",
    r"blocks\.([1-6])\.(\d)\.(conv_pw|conv_dw|conv_pwl)": (
        lambda i, j, part: f"stage{i + 1}/block{j + 1}_{OURS[part]}"
    ),
    r"blocks\.0\.(\d)\.bn([12])": (lambda j, k: f"stage1/block{j + 1}_{NORMS[k]}_norm"),
    r"blocks\.([1-6])\.(\d)\.bn([123])": (
        lambda i, j, k: f"stage{i + 1}/block{j + 1}_{NORMS[k - 1]}_norm"
    ),
    r"blocks\.([0-6])\.(\d)\.se\.(conv_reduce|conv_expand)": (
        lambda i, j, part: f"stage{i + 1}/block{j + 1}_{OURS[part]}"
    ),
    r"conv_head": "stage8/conv",
    r"bn2": "stage8/norm",
    r"classifier": "classifier",
}
# The package counts the blocks of all stages in one row.
LITE_BLOCKS = [
    f"stage{i}/block{j}"
    for i, blocks in enumerate((1, 2, 2, 3, 3, 4, 1), start=1)
    for j in range(1, blocks + 1)
]
EFFICIENTNET_LITE0: Rules = {
    r"_conv_stem": "stem/conv",
    r"_conv_head": "stage8/conv",
    r"_bn([01])": lambda k: f"{('stem', 'stage8')[k]}/norm",
    r"_blocks\.(\d|1[0-5])\._(expand_conv|depthwise_conv|project_conv)": (
        lambda n, part: f"{LITE_BLOCKS[n]}_{part}"
    ),
    r"_blocks\.(\d|1[0-5])\._bn([0-2])": (
        lambda n, k: f"{LITE_BLOCKS[n]}_{NORMS[k]}_norm"
    ),
    r"_fc": "classifier",
}
CONVNEXT_LAYERS = {
    name: ours
    for ours, names in {
        # torchvision's, timm's and Keras'.
        "conv": (0, "conv_dw", "depthwise_conv"),
        "norm": (2, "norm", "layernorm"),
        "widen": (3, "mlp.fc1", "pointwise_conv_1"),
        "narrow": (5, "mlp.fc2", "pointwise_conv_2"),
    }.items()
    for name in names
}
TORCHVISION_CONVNEXT: Rules = {
    r"features\.0\.([01])": lambda k: f"stem/{PAIR[k]}",
    # The even numbers halve the grid before a stage.
    r"features\.([246])\.([01])": (
        lambda i, k: f"stage{i // 2 + 1}/down_{('norm', 'conv')[k]}"
    ),
    r"features\.([1357])\.(\d+)": lambda i, j: f"stage{i // 2 + 1}/block{j + 1}",
    r"features\.([1357])\.(\d+)\.block\.([0235])": (
        lambda i, j, k: f"stage{i // 2 + 1}/block{j + 1}_{CONVNEXT_LAYERS[k]}"
    ),
    r"classifier\.0": "top",
    r"classifier\.2": "classifier",
}
TIMM_CONVNEXT: Rules = {
    r"stem\.([01])": lambda k: f"stem/{PAIR[k]}",
    r"stages\.(\d)\.downsample\.([01])": (
        lambda i, k: f"stage{i + 1}/down_{('norm', 'conv')[k]}"
    ),
    r"stages\.(\d)\.blocks\.(\d+)": lambda i, j: f"stage{i + 1}/block{j + 1}",
    r"stages\.(\d)\.blocks\.(\d+)\.(conv_dw|norm|mlp\.fc1|mlp\.fc2)": (
        lambda i, j, part: f"stage{i + 1}/block{j + 1}_{CONVNEXT_LAYERS[part]}"
    ),
    r"head\.norm": "top",
    r"head\.fc": "classifier",
}

VIT: Rules = {
    r"(?:backbone)?": "stem",
    r"(?:backbone\.)?patch_embed\.proj": "stem/conv",
    r"(?:backbone\.)?blocks\.(\d+)\.(norm[12])": lambda i, part: f"stage{i + 1}/{part}",
    r"(?:backbone\.)?blocks\.(\d+)\.attn\.(qkv|proj)": (
        lambda i, part: f"stage{i + 1}/{'qkv' if part == 'qkv' else 'project'}"
    ),
    r"(?:backbone\.)?blocks\.(\d+)\.mlp\.fc([12])": (
        lambda i, k: f"stage{i + 1}/{('widen', 'narrow')[k - 1]}"
    ),
    r"(?:backbone\.)?blocks\.(\d+)\.ls([12])": lambda i, k: f"stage{i + 1}/scale{k}",
}
TIMM_VIT: Rules = {**VIT, r"norm": "top", r"head": "classifier"}
MAE_CLASSIFIER: Rules = {**VIT, r"fc_norm": "top", r"head": "classifier"}
# What only the pretext task needs is left out.
PRETRAINED_VIT: Rules = {
    **VIT,
    r"(?:backbone\.)?norm": "top",
    r"decoder_(?:embed|norm|pred|blocks\.\d+\.\S+)": "",
    r"(?:dino_|ibot_)?head\.(?:mlp\.\d+|last_layer)": "",
}


def prepare_vit(source: Arrays) -> tuple[Arrays, Mapping]:
    """One array of the class token and registers, and positions on a square grid.

    A position of the class token is added to it (Darcet et al., ICLR 2024, have none of
    their registers). Without these arrays nothing changes: they will be missed.
    """
    names = {name.rpartition(".")[2]: name for name in source if "blocks" not in name}
    learnt = ("cls_token", "reg_token", "register_tokens", "pos_embed")
    parts = {name: source[names[name]] for name in learnt if name in names}
    ends = {part.shape[-1:] if part.ndim == 3 else () for part in parts.values()}
    if not {"cls_token", "pos_embed"} <= parts.keys() or len(ends) > 1 or () in ends:
        return source, {}
    parts = {name: part.reshape(-1, part.shape[-1]) for name, part in parts.items()}
    position = parts.pop("pos_embed")
    tokens = np.concatenate([*parts.values()]).astype(np.float32)
    side = math.isqrt(len(position))
    placed = len(position) - side**2  # Tokens that have a position.
    if placed > len(tokens) or not side:
        raise InputError(
            f"{names['pos_embed']}: {len(position)} positions are no square grid beside "
            f"{len(tokens)} tokens; take the weights of square images"
        )
    tokens[:placed] += position[:placed]
    arrays = {k: v for k, v in source.items() if k not in map(names.get, parts)}
    arrays[names["cls_token"]] = tokens
    arrays[names["pos_embed"]] = position[placed:].reshape(side, side, -1)
    options = {"grid": side, "registers": len(tokens) - 1}
    for name in source:
        if name.endswith("patch_embed.proj.weight") and source[name].ndim == 4:
            options["patch"] = min(max(source[name].shape[-1], 1), 64)
    return arrays, options | {"layer_scale": any(".ls1." in name for name in source)}


# ------------------------------------------------------------------ keras.applications

KERAS = {
    "linear": {"kernel": Leaf("params", "/kernel"), "bias": BIAS},
    "depthwise": {"kernel": Leaf("params", "/kernel", inputs_before_last)},
    "norm": {"gamma": SCALE, "beta": BIAS, "moving_mean": MEAN, "moving_variance": VAR},
    "block": {"gamma": Leaf("params", "_scale")},
    "left out": {"mean": None, "variance": None, "count": None},
}

KERAS_DENSENET: Rules = {
    r"conv1[_/](conv|bn)": lambda part: f"stem/{OURS[part]}",  # Keras 2: `conv1/conv`.
    r"conv(\d)_block(\d+)_([12])_conv": (
        lambda i, j, k: f"stage{i - 1}/layer{j}_conv{k}"
    ),
    r"conv(\d)_block(\d+)_([01])_bn": (
        lambda i, j, k: f"stage{i - 1}/layer{j}_norm{k + 1}"
    ),
    r"pool(\d)_(conv|bn)": lambda i, part: f"stage{i}/transition_{OURS[part]}",
    r"bn": "stage4/norm",
    r"predictions|fc1000": "classifier",
}
KERAS_RESNET: Rules = {
    r"conv1_(conv|bn)": lambda part: f"stem/{OURS[part]}",
    r"conv(\d)_block(\d+)_([123])_(conv|bn)": (
        lambda i, j, k, part: f"stage{i - 1}/block{j}_{OURS[part]}{k}"
    ),
    r"conv(\d)_block(\d+)_0_(conv|bn)": (
        lambda i, j, part: f"stage{i - 1}/block{j}_shortcut_{OURS[part]}"
    ),
    r"predictions|probs|fc1000": "classifier",
}


def _block(stage: int, letter: str) -> str:
    return f"stage{stage}/block{ord(letter) - ord('a') + 1}"


KERAS_EFFICIENTNET: Rules = {
    # It standardises images in [0, 255] by torchvision's numbers.
    r"normalization(?:_\d+)?": "",
    r"stem_(conv|bn)": lambda part: f"stem/{OURS[part]}",
    r"block(\d)([a-z])_dwconv": lambda i, j: f"{_block(i, j)}_depthwise_conv",
    r"block(\d)([a-z])_bn": lambda i, j: f"{_block(i, j)}_depthwise_norm",
    r"block(\d)([a-z])_(expand|project)_(conv|bn)": (
        lambda i, j, part, layer: f"{_block(i, j)}_{part}_{OURS[layer]}"
    ),
    r"block(\d)([a-z])_se_(reduce|expand)": (
        lambda i, j, part: f"{_block(i, j)}_{OURS[f'conv_{part}']}"
    ),
    r"top_(conv|bn)": lambda part: f"stage8/{OURS[part]}",
    r"predictions|probs": "classifier",
}
KERAS_CONVNEXT: Rules = {
    r"\w+_stem/\w+_stem_conv": "stem/conv",
    r"\w+_stem/\w+_stem_layernorm": "stem/norm",
    r"\w+/\w+_downsampling_layernorm_(\d)": lambda i: f"stage{i + 2}/down_norm",
    r"\w+/\w+_downsampling_conv_(\d)": lambda i: f"stage{i + 2}/down_conv",
    r"\w+_stage_(\d)_block_(\d+)_layer_scale": (
        lambda i, j: f"stage{i + 1}/block{j + 1}"
    ),
    r"\w+_stage_(\d)_block_(\d+)_(layernorm|depthwise_conv|pointwise_conv_[12])": (
        lambda i, j, part: f"stage{i + 1}/block{j + 1}_{CONVNEXT_LAYERS[part]}"
    ),
    # Without the classifier this norm has no name of its own.
    r"\w+_head_layernorm|layer_normalization(?:_\d+)?": "top",
    r"\w+_head_dense": "classifier",
}

# Families that medjax doesn't have, by the names that their modules have.
OTHER_FAMILIES = {
    "an Inception of Keras": r"(conv2d|batch_normalization)(_\d+)?",
    "an Inception of torch": (
        r"(backbone\.\d+|Conv2d_\w+|Mixed_\w+)(\.branch\w+)?\.(conv|bn)"
    ),
    "a ViT by the names of transformers": (
        r"(.*\.)?encoder\.layer\.\d+\.(attention\.(attention|output)\.\w+|norm\w+|layernorm_\w+)"
    ),
    "a Swin transformer": r".*(layers|features)\.\d+\.(blocks\.)?\d+\.attn\.(qkv|proj)",
}
CAFFE = (123.68 / 255, 116.779 / 255, 103.939 / 255)  # As in Caffe, blue is first.
HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # From -1 to 1.
KERAS_NORM = {"epsilon": 1.001e-5}
KERAS_OPTIONS = {"stride_first": True, "use_bias": True, **KERAS_NORM}
TENSORFLOW = {"padding": "SAME", "epsilon": 1e-3}
# The package has TensorFlow's weights, of (pixel - 127) / 128.
LITE = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
CENTRED = {"bgr": True, "mean": CAFFE, "std": (1 / 255,) * 3}  # Images in [0, 255].
# Mei et al., Radiology: AI 2022; github.com/BMEII-AI/RadImageNet. The scripts for Keras
# (acl/acl_train.py) centre images as Caffe does and then divide them by 255, those for
# torch (pytorch_example.ipynb) take cv2's blue, green and red to (x - 127.5) 2 / 255.
RADIMAGENET_KERAS = {"bgr": True, "mean": CAFFE, "std": (1.0,) * 3}
RADIMAGENET_KERAS |= {"file": r"(?i)radimagenet|(^|/)rin[-_]"}
RADIMAGENET_TORCH = {"bgr": True, **HALVES}

TABLES = (
    Table("torch", "densenet", TORCH_DENSENET, TORCH),
    Table("torch", "resnet", TORCH_RESNET, TORCH),
    Table("RadImageNet", "densenet", RADIMAGENET_DENSENET, TORCH, **RADIMAGENET_TORCH),
    Table("RadImageNet", "resnet", RADIMAGENET_RESNET, TORCH, **RADIMAGENET_TORCH),
    Table("torchvision", "efficientnet", TORCHVISION_EFFICIENTNET, TORCH),
    Table("timm", "efficientnet", TIMM_EFFICIENTNET, TORCH),
    Table(
        *("efficientnet-lite-pytorch", "efficientnet", EFFICIENTNET_LITE0, TORCH),
        TENSORFLOW,
        **LITE,
    ),
    Table("torchvision", "convnext", TORCHVISION_CONVNEXT, TORCH),
    Table("timm", "convnext", TIMM_CONVNEXT, TORCH),
    # A file doesn't say how images were standardised. Those without a classifier are
    # taken for DINO's or MAE's, others for what timm publishes.
    Table("DINO or MAE", "vit", PRETRAINED_VIT, TORCH, prepare=prepare_vit),
    Table("timm", "vit", TIMM_VIT, TORCH, prepare=prepare_vit, **HALVES),
    Table("MAE", "vit", MAE_CLASSIFIER, TORCH, {"pool": "mean"}, prepare_vit),
    Table("keras", "densenet", KERAS_DENSENET, KERAS, KERAS_NORM),
    Table(
        *("RadImageNet", "densenet", KERAS_DENSENET, KERAS, KERAS_NORM),
        **RADIMAGENET_KERAS,
    ),
    Table("keras", "resnet", KERAS_RESNET, KERAS, KERAS_OPTIONS, **CENTRED),
    Table(
        *("RadImageNet", "resnet", KERAS_RESNET, KERAS, KERAS_OPTIONS),
        **RADIMAGENET_KERAS,
    ),
    Table("keras", "efficientnet", KERAS_EFFICIENTNET, KERAS, TENSORFLOW),
    Table("keras", "convnext", KERAS_CONVNEXT, KERAS),
)

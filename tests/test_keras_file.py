"""Keras' three file formats, written by Keras itself, by hand, and with ill intent."""

import os
import re
import shutil
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from conftest import check_equal

from medjax.errors import InputError
from medjax.models.weights import read

FORMATS = ("m.h5", "m.weights.h5", "m.keras")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")  # Before its import.
    return pytest.importorskip("keras")


def save(model, folder):
    """Writes a model in each format; randomised, so that a mix-up shows."""
    rng = np.random.default_rng(0)
    model.set_weights([rng.random(w.shape).astype(w.dtype) for w in model.weights])
    for name in FORMATS:
        (model.save_weights if "weights" in name else model.save)(folder / name)


def truth_of(model):
    """Keras' own names without the model's, and LayerScale's gamma, which has none."""
    arrays = {}
    for w in model.weights:
        name = w.path.removeprefix(f"{model.name}/")
        arrays[re.sub(r"/variable(_\d+)?$", "/gamma", name)] = np.asarray(w.value)
    assert len(arrays) == len(model.weights)
    return arrays


def of_every_layer(keras, *more):
    """A model of every class of layer that is known, two of them in an inner one."""
    from keras.src.applications.convnext import LayerScale

    layers = keras.layers
    parts = [
        layers.Normalization(name="norm"),
        layers.Conv2D(4, 3, use_bias=False, name="stem_conv"),
        layers.BatchNormalization(name="stem_bn"),
        layers.DepthwiseConv2D(3, name="dw"),
        layers.BatchNormalization(scale=False, center=False),
        *more,
        layers.SeparableConv2D(4, 3),
        layers.Conv2DTranspose(4, 2),
        layers.LayerNormalization(),
        layers.GroupNormalization(2),
        LayerScale(1e-6, 4, name="scale"),
        LayerScale(1e-6, 4, name="another"),
        keras.Sequential(
            [layers.Conv2D(4, 1, name="conv"), layers.BatchNormalization(), *more[3:]],
            name="inner",
        ),
        layers.Dropout(0.1),  # It saves a seed.
        layers.Reshape((7, 7, 1, 4)),
        layers.Conv3D(2, 1),
        layers.Conv3DTranspose(4, 1),
        layers.Reshape((49, 4)),
        layers.Conv1D(3, 2),
        layers.Flatten(),
        layers.Dense(2, name="head"),
    ]
    model = keras.Sequential([layers.Input((12, 12, 3)), *parts])
    model.compile(optimizer="adam", loss="mse")  # Its variables are no weights.
    return model


def test_the_three_formats_are_one(keras, tmp_path):
    model = of_every_layer(keras)
    save(model, tmp_path)
    for name in FORMATS:
        found = read(tmp_path / name)
        check_equal(found, truth_of(model))
        assert {"inner/conv/kernel", "scale/gamma", "another/gamma"} < found.keys()


def test_gamma_alone_or_beta_alone(keras, tmp_path):
    """Numbers don't tell which; the settings of a `.keras` file do."""
    layers = keras.layers
    model = of_every_layer(
        keras,
        layers.BatchNormalization(scale=False),
        layers.BatchNormalization(center=False),
        layers.LayerNormalization(scale=False, name="ln"),
    )
    save(model, tmp_path)
    check_equal(read(tmp_path / "m.h5"), truth_of(model))
    check_equal(read(tmp_path / "m.keras"), truth_of(model))
    with pytest.raises(InputError, match="has gamma or beta.*save the whole model"):
        read(tmp_path / "m.weights.h5")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EfficientNetB0", "ResNet50"])
def test_applications(keras, tmp_path, name):
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(32, 32, 3), include_top=False)
    save(model, tmp_path)
    for form in FORMATS:
        check_equal(read(tmp_path / form), truth_of(model))


def test_bfloat16(keras, tmp_path):
    layers = keras.layers
    dense = layers.Dense(2, dtype="bfloat16", name="d")
    model = keras.Sequential([layers.Input((3,)), dense])
    save(model, tmp_path)
    for name in FORMATS[1:]:
        found = read(tmp_path / name)
        check_equal(found, truth_of(model))
        assert found["d/kernel"].dtype == ml_dtypes.bfloat16


def test_layers_whose_variables_have_numbers_alone(keras, tmp_path):
    for layer in (keras.layers.PReLU(), keras.layers.MultiHeadAttention(1, 2)):
        entry = keras.Input((4, 3))
        one = isinstance(layer, keras.layers.PReLU)
        model = keras.Model(entry, layer(entry) if one else layer(entry, entry))
        save(model, tmp_path)
        with pytest.raises(InputError, match="names.*save the whole model as .h5"):
            read(tmp_path / "m.weights.h5")
        assert len(read(tmp_path / "m.h5")) == len(model.weights)


# -------------------------------------------------------------------------- by hand


def write(path, layers, *, whole=False, chunks=1):
    """As TensorFlow's Keras did: {layer: {variable: array}}, names with `:0`."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        names = np.array([layer.encode() for layer in layers])
        for number, part in enumerate(np.array_split(names, chunks)):
            root.attrs[f"layer_names{number if chunks > 1 else ''}"] = part
        for layer, variables in layers.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in variables]
            for name, array in variables.items():
                group[name] = array
        if whole:
            file["optimizer_weights/Adam/m:0"] = np.ones(3)
    return path


def array(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("chunks", [1, 3])
def test_files_of_older_keras(tmp_path, whole, chunks):
    layers = {
        "input_1": {},
        "conv1/conv": {"conv1/conv/kernel:0": array(7, 7, 3, 2)},
        "conv1/bn": {"conv1/bn/gamma:0": array(2), "conv1/bn/moving_mean:0": array(2)},
        "dw": {"dw/depthwise_kernel:0": array(3, 3, 2, 1)},
        "sep": {"sep/depthwise_kernel:0": array(3), "sep/pointwise_kernel:0": array(2)},
        "stem": {"stem_conv/kernel:0": array(1, 1, 3, 2)},
        "layer_scale": {"layer_scale/Variable:0": array(2)},
    }
    truth = {
        "conv1/conv/kernel": array(7, 7, 3, 2),
        "conv1/bn/gamma": array(2),
        "conv1/bn/moving_mean": array(2),
        "dw/kernel": array(3, 3, 2, 1),
        "sep/depthwise_kernel": array(3),
        "sep/pointwise_kernel": array(2),
        "stem/stem_conv/kernel": array(1, 1, 3, 2),
        "layer_scale/gamma": array(2),
    }
    path = write(tmp_path / "old.h5", layers, whole=whole, chunks=chunks)
    check_equal(read(path), truth)


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def replace(path, make):
    """Puts something else where the kernel is."""
    write(path, {"a": {"a/kernel:0": array(4)}})
    with h5py.File(path, "a") as file:
        group = file["a/a"]
        del group["kernel:0"]
        make(group)
    return path


def test_nothing_outside_of_the_file_is_read(tmp_path):
    secret = write(tmp_path / "secret.h5", {"a": {"a/kernel:0": array(4)}})
    (tmp_path / "raw").write_bytes(bytes(16))
    place = "/a/a/kernel:0"
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(secret, place, (4,))
    raw = [(str(tmp_path / "raw"), 0, 16)]
    for make, message in (
        (lambda g: g.update({"kernel:0": h5py.ExternalLink(secret, place)}), "links"),
        (lambda g: g.update({"kernel:0": h5py.SoftLink("/b")}), "links elsewhere"),
        (
            lambda g: g.create_dataset("kernel:0", (4,), "f4", external=raw),
            "a/kernel lies in another file",
        ),
        (lambda g: g.create_virtual_dataset("kernel:0", layout), "in another file"),
    ):
        refused(replace(tmp_path / "m.h5", make), message)


def test_what_is_no_array_of_numbers_or_too_large(tmp_path):
    text = h5py.string_dtype()
    zeros = {"shape": (1 << 30,), "dtype": "f4"}
    for make, message in (
        (lambda g: g.create_dataset("kernel:0", (2,), text), "not of numbers"),
        (lambda g: g.create_dataset("kernel:0", (2,), "V2"), "not of numbers"),
        (lambda g: g.create_group("kernel:0"), "is no array"),
        (lambda g: g.create_dataset("kernel:0", **zeros), "more than its size"),
        (lambda g: g.update({"other": array(2)}), "damaged"),
    ):
        refused(replace(tmp_path / "m.h5", make), message)


def test_one_array_under_many_names_is_too_large(tmp_path):
    layers = {f"l{n}": {f"l{n}/kernel": array(2)} for n in range(9)}
    path = write(tmp_path / "m.h5", layers)
    with h5py.File(path, "a") as file:
        file["big"] = array(20_000)
        for n in range(9):
            del file[f"l{n}/l{n}/kernel"]
            file[f"l{n}/l{n}/kernel"] = file["big"]
    refused(path, "more than its size")


def test_other_files(tmp_path):
    twice = {"a/b": {"a/b/kernel:0": array(2)}, "a": {"b/kernel:0": array(2)}}
    with h5py.File(tmp_path / "twice.h5", "w") as file:
        file.attrs["layer_names"] = list(twice)
        file["a/b/a/b/kernel:0"] = file["a/b/kernel:0"] = array(2)
        for layer, variables in twice.items():
            file[layer].attrs["weight_names"] = list(variables)
    refused(tmp_path / "twice.h5", "has a/b/kernel twice")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = array(3)
    refused(tmp_path / "data.h5", "no weights of Keras")
    with h5py.File(tmp_path / "early.h5", "w") as file:
        file["layers/conv2d/vars/0"] = array(3)
    refused(tmp_path / "early.h5", "does not name its layers")
    refused(write(tmp_path / "empty.h5", {"input": {}}), "holds no weights")
    refused(tmp_path / "missing.h5", "no such file")
    path = write(tmp_path / "m.h5", {"a": {"a/kernel:0": array(400)}})
    for length in (9, 100, 1000, path.stat().st_size - 8):
        (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:length])
        refused(tmp_path / "cut.h5", "damaged")


def test_settings_that_lie_and_bombs(keras, tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.BatchNormalization(scale=False, name="bn")]
    )
    save(model, tmp_path)
    with zipfile.ZipFile(tmp_path / "m.keras") as z:
        inside = {name: z.read(name) for name in z.namelist()}
    lie = inside["config.json"].replace(b'"center": true', b'"center": false')
    assert lie != inside["config.json"]
    path = tmp_path / "other.keras"
    for config, compression, message in (
        (lie, zipfile.ZIP_STORED, "bn has 3 variables, not"),
        (b"[" * 100_000, zipfile.ZIP_STORED, "damaged"),
        (b" " * 1_000_000, zipfile.ZIP_DEFLATED, "more than its size"),
    ):
        with zipfile.ZipFile(path, "w", compression) as z:
            z.writestr("model.weights.h5", inside["model.weights.h5"])
            z.writestr("config.json", config)
        refused(path, message)
    shutil.copy(tmp_path / "m.keras", path)
    check_equal(read(path), truth_of(model))

"""Keras' three file formats under one set of names, by h5py alone.

- `.h5`: layers and variables by name, in the attributes layer_names, weight_names.
- `.weights.h5`: each layer in a group named after its class (`conv2d_3`). The layer's
  name is an attribute; its variables are numbered, and the class implies their names.
- `.keras`: a zip of such a file and of config.json, plain data.

A weight's name is its layers' names, from the outermost, and the variable's:
`conv1_bn/moving_mean`, `convnext_tiny_stem/convnext_tiny_stem_conv/kernel`.
"""

import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator

import h5py
import ml_dtypes
import numpy as np

from medjax.errors import InputError

ARCHIVED_WEIGHTS = "model.weights.h5"
AFFINE = ("gamma", "beta")
VARIABLES = {  # By class, in the order of their numbers; the last may be missing.
    **dict.fromkeys(
        (
            *("conv1d", "conv2d", "conv3d", "conv2d_transpose", "conv3d_transpose"),
            *("depthwise_conv2d", "dense"),
        ),
        ("kernel", "bias"),
    ),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "batch_normalization": (*AFFINE, "moving_mean", "moving_variance"),
    "layer_normalization": AFFINE,
    "group_normalization": AFFINE,
    "normalization": ("mean", "variance", "count"),
    "layer_scale": ("gamma",),
}
REMEDY = "in Keras, save the whole model as .h5"
Weights = Iterator[tuple[str, h5py.Dataset]]


def read_zip(file: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """A `.keras` file, its size already checked."""
    data = file.read(ARCHIVED_WEIGHTS)
    config = json.loads(file.read("config.json"))
    return read(io.BytesIO(data), len(data), dict(_settings(config)))


def read(file, size: int, settings: dict | None = None) -> dict[str, np.ndarray]:
    """Reads an HDF5 file of `size` bytes; `settings`: each layer's config by its name."""
    with h5py.File(file, "r") as root:
        # First, because opening a link follows it. The visit stops at the first name.
        link = root.visititems_links(
            lambda name, link: None if isinstance(link, h5py.HardLink) else name
        )
        if link:
            raise InputError(f"{link} links elsewhere; {REMEDY}")
        group = root.get("model_weights", root)
        if _strings(group, "layer_names"):
            weights = list(_named(group))
        elif "layers" in root:
            weights = list(_numbered(root["layers"], "", settings or {}))
        else:
            raise InputError(f"an HDF5 file, but no weights of Keras; {REMEDY}")
        _check(weights, size)
        return {name: _array(dataset) for name, dataset in weights}


def _check(weights: list[tuple[str, h5py.Dataset]], size: int) -> None:
    """Refuses other things than numbers, double names and more bytes than the file's."""
    names = set()
    for name, dataset in weights:
        if name in names:
            raise InputError(f"has {name} twice; give the layers names of their own")
        names.add(name)
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(f"{name} is no array; {REMEDY}")
        if dataset.external or dataset.is_virtual:
            raise InputError(f"{name} lies in another file; {REMEDY}")
        if dataset.dtype.kind not in "fiub" and not _is_bfloat16(dataset):
            raise InputError(f"{name} is of {dataset.dtype}, not of numbers; {REMEDY}")
    if sum(dataset.nbytes for _, dataset in weights) > size:
        raise InputError("unpacks to more than its size; save it uncompressed")


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    return dataset.dtype == "V2" and dataset.attrs.get("dtype") == "bfloat16"


def _array(dataset: h5py.Dataset) -> np.ndarray:
    array = np.asarray(dataset[()])
    return array.view(ml_dtypes.bfloat16) if _is_bfloat16(dataset) else array


# ------------------------------------------------------------------- names in .h5


def _named(group: h5py.Group) -> Weights:
    for layer in _strings(group, "layer_names"):
        paths = _strings(group[layer], "weight_names")
        variables = [path.split("/")[-1].removesuffix(":0") for path in paths]
        for path, variable in zip(paths, variables, strict=True):
            # The path may begin with the model's name, and TensorFlow omits the outer
            # one of two nested models.
            owner = f"/{path.rpartition('/')[0]}/"
            _, inside, inner = owner.partition(f"/{layer}/")
            owner = f"{layer}/{inner if inside else owner}"
            owner = owner.replace("//", "/").strip("/")
            # Keras 2's name; Keras 3 has it only beside a pointwise kernel.
            if variable == "depthwise_kernel" and "pointwise_kernel" not in variables:
                variable = "kernel"
            # LayerScale doesn't name its gamma, so it is called `variable_17`.
            if re.fullmatch(r"variable(_\d+)?", variable, re.IGNORECASE):
                variable = "gamma"
            yield f"{owner}/{variable}", group[layer][path]


def _strings(group: h5py.Group, name: str) -> list[str]:
    """A list in an attribute, or, if it is too long for one, in name0, name1, ..."""
    names = [name]
    if name not in group.attrs:
        numbered = itertools.takewhile(
            group.attrs.__contains__, (f"{name}{i}" for i in itertools.count())
        )
        names = list(numbered)
    parts = [group.attrs[name] for name in names]
    texts = [text for part in parts for text in part]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


# ----------------------------------------------------------- numbers in .weights.h5


def _numbered(layers: h5py.Group, path: str, settings: dict) -> Weights:
    for key, layer in layers.items():
        variables = layer.get("vars", {})
        if "name" not in getattr(variables, "attrs", {}):
            raise InputError(f"does not name its layers (layer {key}); {REMEDY}")
        name = f"{path}{variables.attrs['name']}"
        for child in set(layer) - {"vars", "layers", "seed_generator"}:
            raise InputError(f"{name} has parts without names ({child}); {REMEDY}")
        kind = re.sub(r"_\d+$", "", key)
        for number, variable in enumerate(_variables(name, kind, variables, settings)):
            yield f"{name}/{variable}", variables[str(number)]
        if "layers" in layer:
            yield from _numbered(layer["layers"], f"{name}/", settings)


def _variables(name: str, kind: str, group: h5py.Group, settings: dict) -> list[str]:
    """The names of the variables 0, 1, ... of a layer."""
    if len(group) == 0:
        return []
    names, count = VARIABLES.get(kind, ()), len(group)
    if count > len(names):
        raise InputError(f"{name} is a {kind}, whose variables have no names; {REMEDY}")
    missing = len(names) - count
    if not set(AFFINE) <= set(names) or missing == 0:
        return list(names[:count])
    if missing == 1 and name not in settings:
        raise InputError(
            f"{name} has gamma or beta, and the file does not say which; in Keras, "
            "save the whole model as .keras or .h5"
        )
    layer = settings.get(name, {"scale": False, "center": False})
    has = {"gamma": layer["scale"], "beta": layer["center"]}
    kept = [variable for variable in names if has.get(variable, True)]
    if len(kept) != count:
        raise InputError(f"{name} has {count} variables, not {kept}; {REMEDY}")
    return kept


def _settings(config: dict, path: str = "") -> Iterator[tuple[str, dict]]:
    """Whether each normalization has a scale and a center, by the layer's name."""
    for layer in config["config"].get("layers", ()):
        settings = layer["config"]
        name = f"{path}{settings['name']}"
        if "scale" in settings and "center" in settings:
            yield name, settings
        if "layers" in settings:
            yield from _settings(layer, f"{name}/")

"""First weights of a run, `config.transfer.init`: of another run, or of a file."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import ArrayTree

from medjax import buckets
from medjax.config import Config, config_as_json, named, read_config
from medjax.errors import InputError
from medjax.files import write_json
from medjax.models import architectures, layers, weights
from medjax.models.weights import conversion
from medjax.tasks import parts, scans
from medjax.tasks.imbalance import REFITS, treats
from medjax.tasks.parts import Network
from medjax.training import workdir
from medjax.training.checkpoint import Checkpoints
from medjax.training.step import Trained, members

# Folders of checkpoints, after a refit of the classifier and of batch statistics.
REFITTED, ADAPTED = "refitted", "adapted"
# Options of a model that don't change its weights' meaning; those that only change the
# classifier's, which starts anew where the findings differ.
LOOSE, OF_CLASSIFIER = ("remat", "deep"), ("pool",)
# A U-Net's encoder as a classifier, and its options.
ENCODER = "unet_encoder"
OF_ENCODER = ("widths", "strides", "kernels", "blocks", "groups")


class Start(NamedTuple):
    """Variables to begin with, and what their numbers mean."""

    variables: ArrayTree
    names: tuple[str, ...]  # Of the findings or regions of the head; () without one.
    options: dict[str, Any]  # That the model has to be made with, its name among them.
    intensity: dict[str, Any]  # The normalisation that they expect; {} of volumes.
    sequences: tuple[str, ...] = ()  # That they were trained on; () of images.


def check_weights(config: Config) -> None:
    """Refuses weights that aren't there, and 'as_pretrained' without any."""
    init = config.transfer.init
    intensity = config.get("intensity", {})
    if not init and intensity.get("name") == "as_pretrained":
        raise InputError(
            "intensity.name='as_pretrained' without weights: set transfer.init, or "
            "another intensity.name"
        )
    if init and init != "imagenet" and not place(init).exists():
        raise _not_weights(config)


@functools.cache
def place(init: str) -> Path:
    """Where first weights lie; those of a bucket are fetched, once."""
    return buckets.fetch(init) if buckets.is_address(init) else Path(init).expanduser()


def settle_weights(
    config: Config, output: Any, network: Callable[..., Network]
) -> tuple[Config, Start | None]:
    """The config with what its weights bring along, and these.

    `intensity.name='as_pretrained'` becomes the normalisation that they expect, and
    their framework's options, such as another epsilon, become the model's. `network` is
    parts.classifier or parts.segmenter.
    """
    check_weights(config)
    init, mode = config.transfer.init, config.transfer.mode
    if not init:
        if mode not in ("all", "layerwise", "gradual"):
            print(f"note: transfer.mode={mode!r} without transfer.init freezes noise")
        return config, None
    start = _read(config, output, network)
    settled = config.copy_and_resolve_references().unlock()
    values = config_as_json(config)  # As the weights' options are: in lists.
    model, intensity = values["model"], values.get("intensity", {})
    loose = LOOSE if start.names == output.names else (*LOOSE, *OF_CLASSIFIER)
    for name, value in start.options.items():
        if name in loose:
            continue
        if model.get(name, value) != value:
            raise InputError(
                f"model.{name}={model[name]!r}: the weights of {init} go with {value!r}: "
                "take that, or other weights"
            )
        if name not in model:
            settled.model[name] = value
    if intensity.get("name") == "as_pretrained":
        settled.intensity = start.intensity
    elif intensity != start.intensity:
        print(f"note: {init} expects intensity={start.intensity}")
    if start.sequences and start.sequences != output.sequences:
        theirs, ours = ", ".join(start.sequences), ", ".join(output.sequences)
        print(f"note: {init} was trained on {theirs}, not on {ours}")
    return settled, start


def variables(fresh: ArrayTree, start: Start | None, output: Any) -> ArrayTree:
    """A model's variables: the given ones, and fresh ones where there are none."""
    if start is None:
        return fresh
    given = dict(start.variables["params"])
    given.pop("domain", None)  # Of an adapted run's own two domains.
    same = start.names == output.names
    heads = ("classifier", "decoder", "head")
    for name in [name for name in given if name.startswith(heads)]:
        # A U-Net may have more or fewer heads of coarser levels than the weights.
        if not same or name not in fresh["params"]:
            del given[name]
    if not same:
        head = "classifier" if "classifier" in fresh["params"] else "head"
        names = ", ".join(start.names) or "other classes"
        print(f"{head}: starts anew, as the weights are for {names}")
    stats = fresh.get("batch_stats", {}) | start.variables.get("batch_stats", {})
    merged = {"params": _inflated(fresh["params"] | given, fresh["params"])}
    if "batch_stats" in fresh or stats:
        merged["batch_stats"] = stats
    _refuse_other_shapes(merged, fresh)
    return jax.tree.map(jnp.asarray, merged)


def _inflated(given: ArrayTree, fresh: ArrayTree) -> ArrayTree:
    """The kernels of images, where the model has kernels of volumes, inflated."""
    if isinstance(given, dict):
        return {
            k: _inflated(v, fresh[k]) if k in fresh else v for k, v in given.items()
        }
    flat = np.ndim(given) == 4 and np.ndim(fresh) == 5
    return layers.inflate(given, len(fresh)) if flat else given


def _read(config: Config, output: Any, network: Callable[..., Network]) -> Start:
    """The weights of a run, of a converted folder, of a file, or published ones."""
    init, path = config.transfer.init, place(config.transfer.init)
    if (path / "config.json").exists():
        return _of_run(path, output, network, config.model.name)
    if (path / "task.json").exists():
        return _of_exported(path, output)
    if network is parts.segmenter:
        raise InputError(
            f"transfer.init={init!r}: give the folder of a run of segmentation, or an "
            "exported one; other files hold classifiers"
        )
    if init == "imagenet":
        path = weights.fetch(config.model.name)
    if (path / "card.json").exists():
        return _of_converted(path, output)
    if path.is_file():
        channels = output.shape[-1]
        converted = convert(path, config.model.name, channels=channels)
        return _start(converted.variables, converted._asdict(), output)
    raise _not_weights(config)


def _not_weights(config: Config) -> InputError:
    return InputError(
        f"transfer.init={config.transfer.init!r}: give 'imagenet', a file of weights, "
        "the folder of a run, or one that convert or export made"
    )


def _of_run(
    folder: Path, output: Any, network: Callable[..., Network], model: str
) -> Start:
    """The averaged weights of another run, as it predicts with them.

    The encoder of a segmentation may begin the `model` of a classification.
    """
    config, values = read_config(folder), workdir.read_task(folder)
    if encodes := model == ENCODER and "regions" in values:
        output, network = scans.MasksOutput({}, {}), parts.segmenter
    _check_kind(folder, values, output)
    trained = type(output)(**values)
    _, state = restore(config, folder, network(config, trained), trained)
    options = config_as_json(config)
    intensity, sequences = options.get("intensity", {}), values.get("sequences", ())
    variables, model = members(state)[0].averaged, options["model"]  # Of an ensemble.
    if not encodes:
        # Log-odds of a softmax are no sigmoid's: the head of the other starts anew.
        names = trained.names if trained.exclusive == output.exclusive else ()
        return Start(variables, names, model, intensity, sequences)
    params = {
        name.replace("down", "stage"): stage
        for name, stage in variables["params"].items()
        if name == "stem" or name.startswith("down")
    }
    if trained.units:
        print(f"note: {folder} was trained on {', '.join(trained.units)}")
    model = {"name": ENCODER} | {name: model[name] for name in OF_ENCODER}
    return Start({"params": params}, (), model, {"name": "z_scores"}, sequences)


def _check_kind(folder: Path, values: dict, output: Any) -> None:
    """Refuses the task.json of another kind of task."""
    if ("regions" in values) != hasattr(output, "regions"):
        kind = f"classification, or set model.name={ENCODER!r}"
        if hasattr(output, "regions"):
            kind = "segmentation"
        raise InputError(
            f"transfer.init={folder}: a run of another kind of task: give one of {kind}"
        )


def _of_exported(folder: Path, output: Any) -> Start:
    """Reads back what the command `export` wrote."""
    values = workdir.read_task(folder)
    _check_kind(folder, values, output)
    arrays = weights.read(folder / "weights.safetensors")
    print(
        f"note: {folder} doesn't say whom it was trained on: see that no patient of "
        "this run's test is among them"
    )
    variables, sequences = weights.nested(arrays)[0], values.get("sequences", ())
    names, model = tuple(values["names"]), values["model"]
    return Start(variables, names, model, values["intensity"], sequences)


def restore(
    config: Config, folder: Path, network: Network, output: Any
) -> tuple[int, Trained]:
    """The checkpoint with which a run predicts: its step and state."""
    where = ADAPTED if config.adapt.name == "adabn" else trained(config)
    return parts.restore(config, folder / where, network, output)


def trained(config: Config) -> str:
    """The folder of the checkpoint that training ends with."""
    return REFITTED if treats(config, REFITS) else "checkpoints"


def convert(path: Path, name: str, *, channels: int) -> conversion.Converted:
    """Another framework's weights as the variables of the network of that name.

    `channels` are those of the images. Where the file has no classifier, one of one
    class stands in its place.

    Raises:
      InputError: see weights.read and pretrained.convert; or, by the name of the file
        or of its folder, an EfficientNet that timm took over from TensorFlow.
    """
    source = weights.read(path)
    table = conversion.recognise(source, model=name, file=path)
    place = path.absolute()
    tensorflows = "tf_" in place.name or "tf_efficientnet" in str(place.parent)
    if table.framework == "timm" and table.family == "efficientnet" and tensorflows:
        raise InputError(
            f"{path}: timm's tf_ networks pad as TensorFlow does, and their names and "
            "shapes don't say so: take timm's efficientnet_b0, torchvision's or Keras'"
        )
    bias = conversion.held(source, table, conversion.HEAD[1])
    classes = 1 if bias is None else bias.size
    target = _shapes(name, dict(table.options), channels, classes=classes)
    return conversion.convert(source, target, model=name, file=path)


def fits(
    source: dict[str, np.ndarray], table: conversion.Table
) -> dict[str, conversion.Misfit]:
    """Lists what keeps weights from each network of their family, the closest first."""
    names = [name for name in vars(architectures) if name.startswith(table.family)]
    stem = conversion.held(source, table, conversion.STEM)
    channels = 3 if stem is None or stem.ndim < 2 else stem.shape[-2]
    shapes = {
        name: _shapes(name, dict(table.options), channels, classes=1) for name in names
    }
    misfits = {
        name: conversion.compare(source, target, table)
        for name, target in shapes.items()
    }
    return dict(sorted(misfits.items(), key=lambda item: sum(map(len, item[1]))))


def write_converted(path: Path, name: str, out: Path, *, channels: int) -> dict:
    """Converts a file of weights into an Orbax checkpoint with card.json beside it."""
    converted = convert(path, name, channels=channels)
    if out.is_file() or out.exists() and any(out.iterdir()):
        raise InputError(f"--out={out}: is there and isn't empty: give a new folder")
    card = conversion.card(converted, path)
    with Checkpoints(out) as checkpoints:
        checkpoints.save(0, converted.variables, card)
    write_json(out / "card.json", card)
    return card


def _of_converted(folder: Path, output: Any) -> Start:
    """Reads back what `write_converted` wrote."""
    try:
        card = json.loads((folder / "card.json").read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{folder}/card.json: {error}: convert again") from None
    theirs, channels = card["channels"][1], output.shape[-1]
    if theirs != channels:
        raise InputError(
            f"{folder}: converted for {theirs} channels, the images have {channels}: "
            f"convert again with --channels={channels}"
        )
    classes = card["classes"] or 1
    shapes = _shapes(card["model"], card["options"], channels, classes=classes)
    with Checkpoints(folder) as checkpoints:
        return _start(checkpoints.restore(parts.blank(shapes)).state, card, output)


def _start(variables: ArrayTree, card: dict, output: Any) -> Start:
    """Of converted variables and what their card says of them.

    The classifier comes along if it has an output for each of the run's findings.
    """
    params, names = dict(variables["params"]), tuple(card.get("findings", ()))
    options = {"name": card["model"], **card["options"]}
    head = params.pop("classifier", None)
    if not output.exclusive and set(output.names) <= set(names):
        columns = [names.index(name) for name in output.names]
        params["classifier"] = jax.tree.map(lambda leaf: leaf[..., columns], head)
        names, options["pool"] = output.names, "mean"
        print(f"classifier: the file's outputs for {', '.join(names)}")
    intensity = {"name": "standardise_each"}
    if card["standardise"]:
        intensity = {"name": "standardise", **card["standardise"]}
    return Start({**variables, "params": params}, names, options, intensity)


def _shapes(name: str, options: dict, channels: int, *, classes: int) -> ArrayTree:
    """The shapes of an architecture's variables, for 2-D images."""
    make = named(architectures, name, "model.name")
    image = jnp.zeros((1, 64, 64, channels))
    init = make(tasks=classes, **options).init
    return jax.eval_shape(lambda: init(jax.random.key(0), image, train=False))


def _refuse_other_shapes(given: ArrayTree, wanted: ArrayTree) -> None:
    """Refuses weights that aren't the model's, and names the first leaf that differs."""
    given, wanted = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (given, wanted))
    )
    for name in sorted(given.keys() | wanted.keys()):
        theirs, ours = (shapes.get(name, "nothing") for shapes in (given, wanted))
        if theirs != ours:
            raise InputError(
                f"transfer.init: {name} is {theirs} in the weights, {ours} in the model: "
                "give both the same network and images of as many channels"
            )

"""Where a run's weights start, `config.transfer.init`, and what travels with them.

Where a segmentation run's weights start, `config.transfer.init`.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import ArrayTree

from medjax import config as plain
from medjax.config import Config
from medjax.data.volumes import Prepared
from medjax.errors import InputError
from medjax.models import architectures
from medjax.models.weights import convert as pretrained
from medjax.models.weights import download
from medjax.models.weights import read as weights
from medjax.tasks import masks, parts
from medjax.tasks.study import SYNTHETIC, Task, treats
from medjax.training import folder as workdir
from medjax.training.checkpoint import Checkpoints

# Folders of the checkpoints whose classifier was fitted again, and whose batch
# statistics are another hospital's.
REFITTED, ADAPTED = "refitted", "adapted"
# Options of a model that its weights know nothing of; those that only its classifier
# does, which starts anew where the tasks differ.
LOOSE, OF_CLASSIFIER = ("remat",), ("pool",)


class Start(NamedTuple):
    """Variables to begin with, and what their numbers mean.

    variables: of the stages, and of the classifier where `tasks` says what for.
    tasks: names of the findings that the classifier knows; () without it.
    options: that the model has to be made with, its name among them.
    intensity: the preparation that the weights expect.
    """

    variables: ArrayTree
    tasks: tuple[str, ...]
    options: dict[str, Any]
    intensity: dict[str, Any]


def settle(config: Config, task: Task) -> tuple[Config, Start | None]:
    """The config with what its weights bring along, and these.

    `intensity.name='as_pretrained'` becomes the preparation that they expect, and
    their framework's options, such as another epsilon, become the model's.

    Raises:
      InputError: the weights can't be read, or are of another network.
    """
    own = config.intensity.name != "as_pretrained"
    if not config.transfer.init:
        if config.transfer.mode not in ("all", "layerwise", "gradual"):
            mode = config.transfer.mode
            print(f"note: transfer.mode={mode!r} without transfer.init freezes noise")
        if not own:
            raise InputError(
                "intensity.name='as_pretrained' without weights: set transfer.init, or "
                "another intensity.name"
            )
        return config, None
    found = read(config, task)
    settled = config.copy_and_resolve_references().unlock()
    asked = plain.as_json(config)["model"]  # As the weights' options are: in lists.
    loose = LOOSE if found.tasks == task.names else (*LOOSE, *OF_CLASSIFIER)
    for name, value in found.options.items():
        if name in loose:
            continue
        if asked.get(name, value) != value:
            raise InputError(
                f"model.{name}={asked[name]!r}: the weights of {config.transfer.init} go "
                f"with {value!r}: take that, or other weights"
            )
        if name not in asked:
            settled.model[name] = value
    if not own:
        settled.intensity = found.intensity
    elif plain.as_json(config)["intensity"] != found.intensity:
        print(f"note: {config.transfer.init} expects intensity={found.intensity}")
    return settled, found


def variables(fresh: ArrayTree, start: Start | None, task: Task) -> ArrayTree:
    """A model's variables: the given ones, and fresh ones where there are none."""
    if start is None:
        return fresh
    given = dict(start.variables["params"])
    given.pop("domain", None)  # Of an adapted run's own two domains.
    if start.tasks != task.names:
        given.pop("classifier", None)
        print("classifier: starts anew, for its tasks are other than the weights'")
    stats = fresh.get("batch_stats", {}) | start.variables.get("batch_stats", {})
    merged = {"params": fresh["params"] | given, "batch_stats": stats}
    check(merged, fresh)
    return jax.tree.map(jnp.asarray, merged)


def read(config: Config, task: Task) -> Start:
    """The weights of a run, of a converted folder, of a file, or published ones."""
    path = Path(config.transfer.init).expanduser()
    if config.transfer.init == "imagenet":
        path = download.fetch(config.model.name)
    if (path / "config.json").exists():
        return of_run(path)
    if (path / "card.json").exists():
        return of_converted(path, task)
    if path.is_file():
        converted = convert(
            path, config.model.name, channels=task.shape[-1], head=False
        )
        return _of(converted.variables, converted._asdict())
    raise InputError(
        f"transfer.init={config.transfer.init!r}: give 'imagenet', a file of weights, "
        "the folder of a run, or one that convert made"
    )


def of_run(folder: Path) -> Start:
    """The averaged weights of another run, as it predicts with them."""
    config = plain.read_config(folder)
    if config.task == "segmentation":
        raise InputError(
            f"transfer.init={folder}: a run of segmentation, which has no stages of a "
            "classifier: give a classifier's run"
        )
    task = Task(**workdir.read_task(folder))
    _, state = restore(config, folder, parts.network(config, task), task)
    settled = plain.as_json(config)
    return Start(state.averaged, task.names, settled["model"], settled["intensity"])


def restore(config: Config, folder: Path, network: parts.Network, task: Task):
    """The checkpoint of a run that is judged and predicts: its step and state."""
    where = ADAPTED if config.adapt.name == "adabn" else trained(config)
    return parts.restore(config, folder / where, network, task)


def trained(config: Config) -> str:
    """The folder of the checkpoint that training ends with."""
    return REFITTED if treats(config, SYNTHETIC) else "checkpoints"


def convert(
    path: Path, name: str, *, channels: int, head: bool
) -> pretrained.Converted:
    """Another framework's weights as the variables of a network.

    Args:
      path: of the file.
      name: of the architecture.
      channels: of the images.
      head: whether the file's classifier comes along, if it has one; else a
        classifier of one class stands in its place.

    Raises:
      InputError: see weights.read and pretrained.convert; or, by the name of the file
        or of its folder, an EfficientNet that timm took over from TensorFlow.
    """
    source = weights.read(path)
    table = pretrained.recognise(source, model=name)
    named = path.absolute()
    tensorflows = "tf_" in named.name or "tf_efficientnet" in str(named.parent)
    if table.framework == "timm" and table.family == "efficientnet" and tensorflows:
        raise InputError(
            f"{path}: timm's tf_ networks pad as TensorFlow does, and their names and "
            "shapes don't say so: take timm's efficientnet_b0, torchvision's or Keras'"
        )
    options = dict(table.options)
    shapes = functools.partial(_shapes, name, options, channels=channels)
    found = pretrained.convert(source, shapes(classes=1), model=name, head=False)
    if head and found.classes:
        target = shapes(classes=found.classes)
        return pretrained.convert(source, target, model=name)
    return found


def write_converted(path: Path, name: str, out: Path, *, channels: int) -> dict:
    """Converts a file of weights into an Orbax checkpoint with card.json beside it.

    Raises:
      InputError: see convert; nothing is written then.
    """
    if out.is_file() or out.exists() and any(out.iterdir()):
        raise InputError(f"--out={out}: is there and isn't empty: give a new folder")
    converted = convert(path, name, channels=channels, head=True)
    card = pretrained.card(converted, path)
    with Checkpoints(out) as checkpoints:
        checkpoints.save(0, converted.variables, card)
    (out / "card.json").write_text(json.dumps(card, indent=2))
    return card


def of_converted(folder: Path, task: Task) -> Start:
    """Reads back what `write_converted` wrote."""
    try:
        card = json.loads((folder / "card.json").read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{folder}/card.json: {error}: convert again") from None
    if card["channels"][1] != task.shape[-1]:
        raise InputError(
            f"{folder}: converted for {card['channels'][1]} channels, the images have "
            f"{task.shape[-1]}: convert again with --channels={task.shape[-1]}"
        )
    shapes = _shapes(
        card["model"],
        card["options"],
        channels=task.shape[-1],
        classes=card["classes"] or 1,
    )
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with Checkpoints(folder) as checkpoints:
        return _of(checkpoints.restore(blank).state, card)


def _of(found: ArrayTree, card: dict) -> Start:
    params = {k: v for k, v in found["params"].items() if k != "classifier"}
    intensity = {"name": "standardise_each"}
    if card["standardise"]:
        intensity = {"name": "standardise", **card["standardise"]}
    return Start(
        variables={**found, "params": params},
        tasks=(),
        options={"name": card["model"], **card["options"]},
        intensity=intensity,
    )


def _shapes(name: str, options: dict, *, channels: int, classes: int) -> ArrayTree:
    """Of an architecture's variables, for 2-D images."""
    make = plain.named(architectures, name, "model.name")
    image = jnp.zeros((1, 64, 64, channels))
    init = make(tasks=classes, **options).init
    return jax.eval_shape(lambda: init(jax.random.key(0), image, train=False))


def check(found: ArrayTree, wanted: ArrayTree) -> None:
    """Refuses weights that aren't the model's, leaf by leaf.

    Raises:
      InputError: the first that differs.
    """
    leaves = [
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in flat}
        for flat, _ in map(jax.tree_util.tree_flatten_with_path, (found, wanted))
    ]
    for name in sorted(leaves[0].keys() | leaves[1].keys()):
        given, own = (side.get(name, "nothing") for side in leaves)
        if given != own:
            raise InputError(
                f"transfer.init: {name} is {given} in the weights, {own} in the model: "
                "give both the same network and images of as many channels"
            )


HEADS_ALONE = "deep"  # The option of a U-Net that its other weights know nothing of.


def variables_start_segmentation(
    config: Config, fresh: ArrayTree, prepared: Prepared
) -> ArrayTree:
    """A U-Net's variables: the averaged ones of another run, if one is named.

    Its heads come along where it had the same regions.

    Args:
      config: of the run; an older one has no `transfer`.
      fresh: the variables to begin with where nothing is given.
      prepared: the volumes that the run is for.

    Raises:
      InputError: no run of segmentation is there, or one of another network.
    """
    transfer = config.get("transfer", {})
    if transfer.get("mode", "all") != "all":
        raise InputError(
            f"transfer.mode={transfer['mode']!r}: segmentation moves the whole network: "
            "use 'all'"
        )
    if not transfer.get("init", ""):
        return fresh
    folder = Path(transfer["init"]).expanduser()
    if not (folder / "config.json").exists():
        raise InputError(
            f"transfer.init={transfer['init']!r}: give the folder of a run of "
            "segmentation; other files hold classifiers"
        )
    old = plain.read_config(folder)
    if old.task != "segmentation":
        raise InputError(
            f"transfer.init={folder}: a classifier's run (task={old.task!r}): give one "
            "of segmentation"
        )
    _check_options(config, old, folder)
    meaning = workdir.read_task(folder)
    sequences, regions = tuple(meaning["sequences"]), tuple(meaning["regions"])
    network = masks.network(old, len(sequences), len(regions))
    place = folder / "checkpoints"
    _, state = masks.restore(old, place, network, len(regions))
    given = dict(state.averaged["params"])
    if sequences != tuple(prepared.sequences):
        now = ", ".join(prepared.sequences)
        print(f"note: {folder} was trained on {', '.join(sequences)}, not on {now}")
    same = regions == tuple(prepared.regions)
    for name in [name for name in given if name.startswith("head")]:
        if not same or name not in fresh["params"]:
            del given[name]
    if not same:
        print("head: starts anew, for its regions are other than the weights'")
    merged = {**fresh, "params": fresh["params"] | given}
    check(merged, fresh)
    return jax.tree.map(jnp.asarray, merged)


def _check_options(config: Config, old: Config, folder: Path) -> None:
    """Refuses another network, also where all shapes are the same: of `groups`, say."""
    asked = plain.as_json(config)["model"]
    for name, value in plain.as_json(old)["model"].items():
        if name != HEADS_ALONE and asked.get(name) != value:
            raise InputError(
                f"model.{name}={asked.get(name)!r}: the weights of {folder} go with "
                f"{value!r}: take that, or other weights"
            )

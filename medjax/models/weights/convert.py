"""Converts the weights of other frameworks to our networks' variables."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from medjax.errors import InputError
from medjax.files import digest
from medjax.models.weights.rules import TABLES, Leaf, Table, kind

STEM = "params/stem/conv/kernel"
HEAD = ("params/classifier/kernel", "params/classifier/bias")


class Converted(NamedTuple):
    """Our variables, and what their reader has to know."""

    variables: dict  # {'params', 'batch_stats'} of float32 arrays.
    model: str
    framework: str  # What wrote the weights.
    options: dict  # Those that the maker of the architecture needs.
    # {'mean', 'std'} of images in [0, 1], each a number or a list of one number a colour;
    # None where the source had other than 3 channels.
    standardise: dict | None
    channels: tuple[int, int]  # Of the source's images, and of ours.
    classes: int  # Of the source, 0 if it has no classifier.
    head: str  # 'source', or 'zeros', which give every finding a probability of 0.5.
    rules: dict[str, int]  # Number of leaves that each rule placed.
    dropped: tuple[str, ...]  # The source's names that were left out on purpose.


class Placed(NamedTuple):
    """An array of the source, its name there and the rule that it met."""

    name: str
    array: np.ndarray
    rule: str


def recognise(source: Mapping[str, np.ndarray], *, model: str) -> Table:
    """The table of the framework that wrote these weights of a model.

    The model has to be made with its `options`: without them the same weights give
    other numbers. Weights of another family of networks are an InputError.
    """
    family = re.match(r"[a-z]*", model)[0]
    tables = [table for table in TABLES if table.family == family]
    if not tables:
        families = ", ".join(sorted({table.family for table in TABLES}))
        raise InputError(f"model={model!r}: weights are converted for {families}")

    def share(table: Table) -> float:
        return sum(any(_meets(name, table)) for name in source) / len(source)

    best = max(TABLES, key=share)
    if best.family == family and share(best) > 0.5:
        return best
    names = "unknown names"
    if share(best) > 0.5:
        names = f"the names of a {best.family} of {best.framework}"
    frameworks = " or ".join(table.framework for table in tables)
    raise InputError(
        f"model={model!r}: expected the names of a {family} of {frameworks}, found "
        f"{names} ({_some(source)}); name the model that the weights are of"
    )


def convert(
    source: Mapping[str, np.ndarray],
    target: Mapping[str, Any],
    *,
    model: str,
    head: bool = True,
) -> Converted:
    """The variables of a network from another framework's weights for it.

    Each name of the source meets exactly one rule, and each leaf of the target is
    filled once, by an array of its shape. Only the classifier may be missing, or have
    other classes: it is then zeros (Kolesnikov et al., BiT, ECCV 2020).

    For images with other than 3 channels the stem is changed so that it responds to n
    equal channels as the source's stem does to that image in grey:
    - Colours and channels are paired in turn until all are paired: of 4 channels, red
      has the first and the last. A colour's kernel is divided by the number of its
      channels; a channel's kernel is the sum over its colours.
    - All channels are standardised by one mean and one deviation, the means over the
      colours. The kernel, and the norm or bias behind it, make up for the difference.

    This is exact but where the stem pads, because the padded 0 stands for each colour's
    own mean in the source. With random weights and 64 pixels the logits are off by
    0.6 % in DenseNet-121, 0.3 % in ResNet-18 and 8e-7 in ConvNeXt, which doesn't pad.

    Args:
      source: arrays by the names of `weights.read`.
      target: {'params', 'batch_stats'} with shapes, as `jax.eval_shape` of the model's
        `init` gives them; the model made with the options of `recognise`.
      head: whether to keep the source's classifier, if it has the target's shape.

    Raises:
      InputError: a name without a place or with two, a leaf that nothing fills, a
        wrong shape, NaN or infinity.
    """
    table = recognise(source, model=model)
    wanted = {path: leaf.shape for path, leaf in flatten_dict(target, sep="/").items()}
    placed, dropped = _place(source, table)
    classes = len(placed[HEAD[1]].array) if HEAD[1] in placed else 0
    fits = all(p in placed and placed[p].array.shape == wanted[p] for p in HEAD)
    # A file with half of a classifier is wrong: that half has to have its place.
    whole = len({path in placed for path in HEAD}) == 1
    without = [] if (head and fits) or not whole else list(HEAD)
    dropped += [placed.pop(path).name for path in without if path in placed]
    _check_complete(placed, set(wanted).difference(without), table, model)

    arrays = {path: entry.array.astype(np.float64) for path, entry in placed.items()}
    channels = (0, *arrays[STEM].shape)[-2], wanted[STEM][-2]
    arrays, standardise = _for_channels(arrays, channels, table, _constants(source))
    for path, array in arrays.items():
        name = placed[path].name
        if array.shape != wanted[path]:
            raise InputError(
                f"{name}: shape {source[name].shape} becomes {array.shape}, expected "
                f"{wanted[path]} as {path}; name the model that the weights are of"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{name}: holds NaN or infinity; get the weights again")
    arrays |= {path: np.zeros(wanted[path]) for path in without}
    arrays = {path: np.array(a, np.float32, order="C") for path, a in arrays.items()}
    return Converted(
        variables=unflatten_dict(arrays, sep="/"),
        model=model,
        framework=table.framework,
        options=dict(table.options),
        standardise=standardise,
        channels=channels,
        classes=classes,
        head="zeros" if without else "source",
        rules=dict(Counter(entry.rule for entry in placed.values())),
        dropped=tuple(dropped),
    )


def card(converted: Converted, path: Path) -> dict:
    """The facts about converted weights and their file, for JSON."""
    facts = {"file": path.name, "sha256": digest(path), **converted._asdict()}
    del facts["variables"]
    lists = {"channels": list(converted.channels), "dropped": list(converted.dropped)}
    return facts | lists


def _meets(name: str, table: Table) -> Iterator[tuple[str, str, Leaf | None]]:
    """The rules that a name meets, our module's path and the variable's leaf."""
    module, _, variable = name.rpartition("/" if "/" in name else ".")
    for rule, path in table.rules.items():
        if match := re.fullmatch(rule, module):
            if not isinstance(path, str):
                path = path(*(int(g) if g.isdigit() else g for g in match.groups()))
            variables = table.variables[kind(path)]
            if variable in variables:
                yield rule, path, variables[variable]


def _place(
    source: Mapping[str, np.ndarray], table: Table
) -> tuple[dict[str, Placed], list[str]]:
    """The source's arrays by our paths, and the names that are left out on purpose."""
    placed, dropped, unknown = {}, [], []
    for name, array in source.items():
        matches = list(_meets(name, table))
        if len(matches) > 1:
            rules = " and ".join(rule for rule, _, _ in matches)
            raise InputError(f"{name}: meets two rules, {rules}; correct one of them")
        if not matches:
            unknown.append(name)
            continue
        [(rule, module, leaf)] = matches
        if leaf is None:
            dropped.append(name)
            continue
        path = f"{leaf.collection}/{module}{leaf.suffix}"
        if path in placed:
            raise InputError(f"{name}: is {path}, as {placed[path].name}; remove one")
        placed[path] = Placed(name, leaf.transform(np.asarray(array)), rule)
    if unknown:
        raise InputError(
            f"{_some(unknown)}: no place in a {table.family} of {table.framework}; "
            "remove it from the weights, or name the model that they are of"
        )
    return placed, dropped


def _check_complete(
    placed: dict[str, Placed], wanted: set[str], table: Table, model: str
) -> None:
    surplus = [placed[path].name for path in placed if path not in wanted]
    missing = sorted(wanted.difference(placed))
    if not surplus and not missing:
        return
    parts = [f"{_some(surplus)} has no place in it"] if surplus else []
    parts += [f"it has nothing for {_some(missing)}"] if missing else []
    kernels = [
        sum(path.endswith("/kernel") and path not in HEAD for path in paths)
        for paths in (placed, wanted)
    ]
    raise InputError(
        f"model={model!r}: expected {kernels[1]} kernels, found a {table.family} of "
        f"{table.framework} with {kernels[0]} kernels: {', and '.join(parts)}; name "
        "the model that the weights are of, made with "
        f"{dict(table.options) or 'no options'}, or get the weights again"
    )


def _some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _constants(source: Mapping[str, np.ndarray]) -> dict[str, tuple[float, ...]]:
    """Mean and std of Keras' Normalization layer, if the file has one.

    In the published EfficientNets its variance holds the deviation. They standardise as
    torchvision does, by one more layer that has no variables.
    """
    constants = {
        name.rpartition("/")[2]: np.asarray(array, np.float64).ravel()
        for name, array in source.items()
        if re.fullmatch(r"normalization(?:_\d+)?/(mean|variance)", name)
    }
    if not constants:
        return {}
    mean, variance = constants["mean"], constants["variance"]
    if np.allclose(variance, Table._field_defaults["std"]):
        return {}
    return {"mean": mean.tolist(), "std": np.sqrt(variance).tolist()}


def _for_channels(
    arrays: dict[str, np.ndarray],
    channels: tuple[int, int],
    table: Table,
    constants: dict[str, tuple[float, ...]],
) -> tuple[dict[str, np.ndarray], dict | None]:
    """The arrays with a stem for the target's channels, and its standardisation.

    `channels` are the source's and the target's; `constants` replace the table's.
    """
    if channels[0] != 3:
        return arrays, None
    kernel = arrays[STEM][..., ::-1, :] if table.bgr else arrays[STEM]
    standardise = {"mean": table.mean, "std": table.std} | constants
    if channels[1] == 3:
        listed = {name: list(numbers) for name, numbers in standardise.items()}
        return arrays | {STEM: kernel}, listed
    mean, std = (np.array(standardise[name]) for name in ("mean", "std"))
    grey_mean, grey_std = mean.mean(), std.mean()
    pairs = np.zeros((3, channels[1]))
    for i in range(max(pairs.shape)):
        pairs[i % 3, i % channels[1]] = 1
    pairs *= grey_std / std[:, None] / pairs.sum(1, keepdims=True)
    changed = {STEM: np.einsum("...co,cn->...no", kernel, pairs)}
    # The colours' own means would have added this to each of the stem's channels.
    offset = (grey_mean - mean) / std @ kernel.sum(tuple(range(kernel.ndim - 2)))
    bias, average = "params/stem/conv/bias", "batch_stats/stem/norm/mean"
    if bias in arrays:
        changed[bias] = arrays[bias] + offset
    else:
        changed[average] = arrays[average] - offset
    return arrays | changed, {"mean": float(grey_mean), "std": float(grey_std)}

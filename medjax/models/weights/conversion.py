"""Converts the weights of other frameworks to our networks' variables."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from medjax.errors import InputError, some
from medjax.files import digest
from medjax.models.weights.rules import OTHER_FAMILIES, TABLES, Leaf, Table, kind

STEM = "params/stem/conv/kernel"
HEAD = ("params/classifier/kernel", "params/classifier/bias")
# The outputs of torchxrayvision's DenseNets in their order; a file that was trained on
# fewer findings has untrained outputs among them. Its images are grey, from -1024 to
# 1024. Source: Cohen et al., MIDL 2022; default_pathologies in its datasets.py and
# normalize in its utils.py, github.com/mlmed/torchxrayvision.
PATHOLOGIES = (
    *("Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema"),
    *("Emphysema", "Fibrosis", "Effusion", "Pneumonia", "Pleural_Thickening"),
    *("Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion", "Fracture"),
    *("Lung Opacity", "Enlarged Cardiomediastinum"),
)
XRAY = {"mean": (0.5,), "std": (1 / 2048,)}


class Converted(NamedTuple):
    """Our variables, and what their reader has to know."""

    variables: dict  # {'params', 'batch_stats'} of float32 arrays.
    model: str
    framework: str  # What wrote the weights.
    options: dict  # Those that the maker of the architecture needs.
    # {'mean', 'std'} of images in [0, 1], each a number or a list of one number a colour;
    # None where nobody says what the source's images were.
    standardise: dict | None
    channels: tuple[int, int]  # Of the source's images, and of ours.
    classes: int  # Of the source, 0 if it has no classifier.
    findings: tuple[str, ...]  # What these are, where the source is known to say so.
    head: str  # 'source', or 'zeros', which give every finding a probability of 0.5.
    rules: dict[str, int]  # Number of leaves that each rule placed.
    dropped: tuple[str, ...]  # The source's names that were left out on purpose.


class Placed(NamedTuple):
    """An array of the source, its name there and the rule that it met."""

    name: str
    array: np.ndarray
    rule: str


def recognise(
    source: Mapping[str, np.ndarray], *, model: str, file: Path | str = ""
) -> Table:
    """The table of the framework that wrote these weights of a model.

    The model has to be made with its `options`: without them the same weights give
    other numbers. Weights of another family of networks are an InputError.
    """
    family = re.match(r"[a-z]*", model)[0]
    tables = [table for table in TABLES if table.family == family]
    if not tables:
        families = ", ".join(sorted({table.family for table in TABLES}))
        raise InputError(f"model={model!r}: weights are converted for {families}")
    best = closest_table(source, file)
    if best is not None and best.family == family:
        return best
    kind = family_of(source)
    names = f"{kind}, which medjax doesn't read" if kind else "unknown names"
    if best is not None:
        names = f"the names of a {best.family} of {best.framework}"
    frameworks = " or ".join(dict.fromkeys(table.framework for table in tables))
    raise InputError(
        f"model={model!r}: expected the names of a {family} of {frameworks}, found "
        f"{names} ({some(list(source))}); name the model that the weights are of"
    )


def family_of(source: Mapping[str, np.ndarray]) -> str:
    """Guesses the family of weights that no table fits; '' where names don't tell it."""
    modules = [re.split(r"[./](?=[^./]*$)", name)[0] for name in source]
    for name, pattern in OTHER_FAMILIES.items():
        if sum(bool(re.fullmatch(pattern, m)) for m in modules) > len(modules) / 10:
            return name
    return ""


def convert(
    source: Mapping[str, np.ndarray],
    target: Mapping[str, Any],
    *,
    model: str,
    head: bool = True,
    file: Path | str = "",
) -> Converted:
    """The variables of a network from another framework's weights for it.

    Each name of the source meets exactly one rule, and each leaf of the target is
    filled once, by an array of its shape. Only the classifier may be missing, or have
    other classes: it is then zeros (Kolesnikov et al., BiT, ECCV 2020).

    For images of other channels than the source's 3 (or 1) the stem is changed so that
    it responds to n equal channels as the source's stem does to that image in grey:
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
      file: where the source lies; RadImageNet's files of Keras say what they are by
        their name or their folder's alone.

    Raises:
      InputError: a name without a place or with two, a leaf that nothing fills, a
        wrong shape, NaN or infinity.
    """
    table = recognise(source, model=model, file=file)
    wanted, (source, _) = _shapes(target), table.prepare(source)
    placed, dropped, surplus = _place(source, table)
    for why in surplus.values():
        names = some([name for name in surplus if surplus[name] == why])
        raise InputError(
            f"{names}: {why}; remove it from the weights, or name the model that they "
            "are of"
        )
    classes = len(placed[HEAD[1]].array) if HEAD[1] in placed else 0
    fits = all(p in placed and placed[p].array.shape == wanted[p] for p in HEAD)
    # A file with half of a classifier is wrong: that half has to have its place.
    whole = len({path in placed for path in HEAD}) == 1
    without = [] if (head and fits) or not whole else list(HEAD)
    dropped += [placed.pop(path).name for path in without if path in placed]
    _check_complete(placed, set(wanted).difference(without), table, model)

    arrays = {path: entry.array.astype(np.float64) for path, entry in placed.items()}
    channels = (0, *arrays[STEM].shape)[-2], wanted[STEM][-2]
    xray = (table.framework, table.family, channels[0]) == ("torch", "densenet", 1)
    findings = PATHOLOGIES if xray and classes == len(PATHOLOGIES) else ()
    constants = XRAY if findings else _constants(source)
    arrays, standardise = _for_channels(arrays, channels, table, constants)
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
        findings=findings,
        head="zeros" if without else "source",
        rules=dict(Counter(entry.rule for entry in placed.values())),
        dropped=tuple(dropped),
    )


def _shapes(target: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten_dict(target, sep="/").items()}


def closest_table(
    source: Mapping[str, np.ndarray], file: Path | str = ""
) -> Table | None:
    """The table whose rules most names meet, with all options that the model needs.

    None if these names are half of them or fewer.
    """

    place = "/".join(Path(file).absolute().parts[-2:]) if file else ""

    def share(table: Table) -> float:
        return sum(any(_meets(name, table)) for name in source) / len(source)

    def rank(table: Table) -> tuple[float, bool]:
        return share(table), bool(table.file)

    best = max((t for t in TABLES if re.search(t.file, place)), key=rank)
    if share(best) <= 0.5:
        return None
    return best._replace(options={**best.options, **best.prepare(source)[1]})


def held(
    source: Mapping[str, np.ndarray], table: Table, path: str
) -> np.ndarray | None:
    """The array that a source has for our path, or None."""
    for name, array in source.items():
        for _, place, leaf in _meets(name, table):
            if place == path:
                return leaf.transform(np.asarray(array))
    return None


class Misfit(NamedTuple):
    """What keeps weights from a network; nothing, where both are empty."""

    missing: list[str]  # Paths of the network that nothing fills.
    surplus: list[str]  # Names without a place, or of another shape than it.


def compare(
    source: Mapping[str, np.ndarray], target: Mapping[str, Any], table: Table
) -> Misfit:
    """Lists how weights differ from a network for images of as many channels.

    `target` is as in `convert`; the classifier may have any number of classes.
    """
    wanted, (source, _) = _shapes(target), table.prepare(source)
    placed, _, surplus = _place(source, table)
    others = [
        entry.name
        for path, entry in placed.items()
        if path not in HEAD and entry.array.shape != wanted.get(path)
    ]
    return Misfit(sorted({*wanted} - {*placed, *HEAD}), [*surplus, *others])


def card(converted: Converted, path: Path) -> dict:
    """The facts about converted weights and their file, for JSON."""
    facts = {"file": path.name, "sha256": digest(path), **converted._asdict()}
    del facts["variables"]
    names = ("channels", "findings", "dropped")
    return facts | {name: list(facts[name]) for name in names}


def _meets(name: str, table: Table) -> Iterator[tuple[str, str | None, Leaf | None]]:
    """The rules that a name meets, our variable's path and its leaf.

    Path and leaf are None for what is left out on purpose.
    """
    module, _, variable = name.rpartition("/" if "/" in name else ".")
    for rule, path in table.rules.items():
        if match := re.fullmatch(rule, module):
            if not isinstance(path, str):
                path = path(*(int(g) if g.isdigit() else g for g in match.groups()))
            variables = table.variables[kind(path)]
            if variable in variables:
                leaf = variables[variable]
                yield rule, leaf and f"{leaf.collection}/{path}{leaf.suffix}", leaf


def _place(
    source: Mapping[str, np.ndarray], table: Table
) -> tuple[dict[str, Placed], list[str], dict[str, str]]:
    """Finds the places of a source's arrays.

    Returns the arrays by our paths, the names that are left out on purpose, and the
    reasons why others have no place, by their names.
    """
    placed, dropped, surplus = {}, [], {}
    for name, array in source.items():
        matches = list(_meets(name, table))
        rule, path, leaf = matches[0] if matches else ("", "", None)
        if not matches:
            surplus[name] = f"no place in a {table.family} of {table.framework}"
        elif len(matches) > 1:
            rules = " and ".join(rule for rule, _, _ in matches)
            surplus[name] = f"meets two rules, {rules}"
        elif leaf is None:
            dropped.append(name)
        elif path in placed:
            surplus[name] = f"is {path}, as {placed[path].name}"
        else:
            placed[path] = Placed(name, leaf.transform(np.asarray(array)), rule)
    return placed, dropped, surplus


def _check_complete(
    placed: dict[str, Placed], wanted: set[str], table: Table, model: str
) -> None:
    surplus = [placed[path].name for path in placed if path not in wanted]
    missing = sorted(wanted.difference(placed))
    if not surplus and not missing:
        return
    parts = [f"{some(surplus)} has no place in it"] if surplus else []
    parts += [f"it has nothing for {some(missing)}"] if missing else []
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
    colours, number = channels
    if colours not in (1, 3):
        return arrays, None
    standardise = {"mean": table.mean, "std": table.std} if colours == 3 else {}
    standardise |= constants
    kernel = arrays[STEM][..., ::-1, :] if table.bgr and colours == 3 else arrays[STEM]
    if number == colours == 3:
        listed = {name: list(numbers) for name, numbers in standardise.items()}
        return arrays | {STEM: kernel}, listed
    mean, std = (
        np.array(standardise.get(name, [default]))
        for name, default in (("mean", 0.0), ("std", 1.0))
    )
    grey_mean, grey_std = mean.mean(), std.mean()
    pairs = np.zeros((colours, number))
    for i in range(max(pairs.shape)):
        pairs[i % colours, i % number] = 1
    pairs *= grey_std / std[:, None] / pairs.sum(1, keepdims=True)
    changed = {STEM: np.einsum("...co,cn->...no", kernel, pairs)}
    # The colours' own means would have added this to each of the stem's channels.
    offset = (grey_mean - mean) / std @ kernel.sum(tuple(range(kernel.ndim - 2)))
    bias, average = "params/stem/conv/bias", "batch_stats/stem/norm/mean"
    if bias in arrays:
        changed[bias] = arrays[bias] + offset
    else:
        changed[average] = arrays[average] - offset
    grey = {"mean": float(grey_mean), "std": float(grey_std)}
    return arrays | changed, grey if standardise else None

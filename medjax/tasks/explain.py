"""predict --explain and evaluate --localise: a run's heatmaps, drawn and measured."""

import collections
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from chex import Array
from rich.progress import track

from medjax.config import Config
from medjax.data import image_files, loader
from medjax.errors import InputError, check_choice
from medjax.evaluation import bootstrap, heatmaps, inference, localisation
from medjax.files import escaped, write_table
from medjax.reports import pictures
from medjax.tasks import adapt, films, parts, splitting
from medjax.tasks.task import Finished
from medjax.training import step

HEATMAPS_AT_ONCE = 256  # Images whose heatmaps are in memory at once.
GALLERY_BATCH = 8  # Images of a gallery in a batch: its size compiles one program.
RANDOMISED = 32  # Images of the randomisation check.
OUTCOMES = ("true_positive", "false_positive", "true_negative", "false_negative")
CERTAIN = ("most", "least")
# Methods that explain by pixels or by all stages, not by one.
WITHOUT_STAGE = ("integrated_gradients", heatmaps.ROLLOUT)


def explainer(
    run: Finished, *, method: str = heatmaps.METHODS[0], stage: str | None = None
) -> functools.partial:
    """image [D, B, ...] -> heatmaps [D, B, T, h, w] >= 0 of the averaged model.

    Of an ensemble, the mean of its members'. `stage` is the one of `stages(run)` whose
    output is weighted; None: the last.

    Raises:
      InputError: no such method or stage, or a stage for a method that has none.
    """
    methods = heatmaps.METHODS + (heatmaps.ROLLOUT,) * run.network.attention
    if method in WITHOUT_STAGE and stage is not None:
        raise InputError(
            f"--stage={stage}: {method} explains by the whole network and takes no "
            "stage: leave it out, or use --method=grad_cam"
        )
    stage = stage or stages(run)[-1]
    check_choice("--method", method, methods)
    check_choice("--stage", stage, stages(run))
    # No gradient passes a frozen stage.
    whole = parts.classifier(adapt.unfrozen(run.config), run.output)
    options = {"method": method, "stage": run.network.stages.index(stage)}
    options["token"] = run.network.token
    compiled = _compiled(apply=whole.apply, views=whole.look, **options)
    return functools.partial(_mean, compiled, run.state)


def stages(run: Finished) -> tuple[str, ...]:
    """Lists the stages whose output has a place in the image and leads to the logits.

    A ViT whose class token is read has no gradient by its last block's patches.
    """
    return run.network.stages[: -1 if run.network.token else None]


def _mean(compiled: Callable, state: step.Trained, image: Array) -> Array:
    each = [compiled(member, image) for member in step.members(state)]
    return sum(each) / len(each)


@functools.lru_cache(maxsize=4)
def _compiled(**parts: Any) -> Callable:
    """Runs that share a network share the compiled step."""
    return step.compile_eval(heatmaps.heatmap_step, **parts)


def draw(run: Finished, explain: Callable, predicted: pd.DataFrame, out: Path) -> int:
    """Writes a picture for each finding that a run sees in an image, and index.csv.

    A finding is seen if its probability (`predicted`, beside the `image`) reaches its
    threshold. For an image without any, and for classes, the likeliest is drawn.
    `explain` is `explainer`'s. Returns the number of pictures.
    """
    tasks, points = run.output.names, run.thresholds
    paths, options = list(predicted["image"]), splitting.shape(run.config)
    probability = predicted[list(tasks)].to_numpy(float)
    rows, names = [], collections.Counter()
    read = functools.partial(films.read, run.config, run.output)
    options["load"] = lambda path: read(path)[:1]  # Films may be large.
    answers = inference.predict_files(paths, explain, **options)
    answers = track(answers, "explain", total=len(paths))
    for (path, why, heatmap), row in zip(answers, probability, strict=True):
        if heatmap is None:  # It could be read a moment ago.
            raise InputError(why)
        record, film = read(path)
        for t in _seen(row, points, run.output.exclusive):
            name = f"{escaped(path.stem)}-" + re.sub(r"[^\w-]+", "_", tasks[t])
            names[name] += 1  # Two folders may hold films of one name.
            name += f"-{names[name]}.png" if names[name] > 1 else ".png"
            facts = {"task": tasks[t], "probability": row[t], "threshold": points[t]}
            if len(run.output.shape) == 3:
                pixels = image_files.with_channels(film.pixels, run.output.shape[-1])
                options = {"spacing": film.spacing, **facts}
                pictures.overlay(out / name, pixels, heatmap[t], **options)
            else:
                planes = _planes(run.output, image_files.eight_bits(record), heatmap[t])
                pictures.overlay(out / name, planes[0] / 255, planes[1], **facts)
            rows.append({"image": path, **facts, "heatmap": name})
    columns = ["image", "task", "probability", "threshold", "heatmap"]
    write_table(out / "index.csv", pd.DataFrame(rows, columns=columns))
    return len(rows)


def _planes(
    output: films.FindingsOutput, image: np.ndarray, heatmap: np.ndarray
) -> tuple:
    """pictures.through of a volume [D, H, W, C] uint8 and its heatmap [d, h, w]."""
    heatmap = np.asarray(heatmaps.enlarge(heatmap, image.shape[:-1]))
    return pictures.through(image, heatmap, output.spacing or (1.0, 1.0, 1.0))


def _seen(probability: np.ndarray, points: np.ndarray, exclusive: bool) -> np.ndarray:
    """The numbers of the tasks that are drawn."""
    above = np.flatnonzero(probability >= points)
    if exclusive or not above.size:
        return np.array([np.argmax(probability)])
    return above


class Example(NamedTuple):
    """An image, by its row and its task's number; one of OUTCOMES and one of CERTAIN."""

    row: int
    task: int
    kind: str
    certain: str


def choose(
    predictions: inference.Predictions, threshold, *, each: int
) -> list[Example]:
    """The images of every task and kind that the model is most and least certain of.

    An image is certain if its probability is far from the threshold. Nothing is drawn
    at random: of equal probabilities the lower id comes first.

    Args:
      threshold: [T]; a task whose threshold is NaN has no kinds, and no images.
      each: images of a kind; ceil(each / 2) of them are certain ones.

    Returns:
      The examples by task, kind, and certainty; no image twice in one kind.
    """
    examples = []
    for t, point in enumerate(np.asarray(threshold, np.float32)):
        if np.isnan(point):
            continue
        score, label, weight = (x[:, t] for x in predictions[2:5])
        called, positive = score >= point, label >= 0.5
        for kind in OUTCOMES:
            of_kind = (called == kind.endswith("positive")) & (weight > 0)
            of_kind &= (called == positive) == kind.startswith("true")
            rows = np.flatnonzero(of_kind)
            certainty = score[rows] if kind.endswith("positive") else -score[rows]
            rows = rows[np.lexsort((predictions.id[rows], -certainty))].tolist()
            most = (each + 1) // 2
            least = rows[most:][: -(each // 2) - 1 : -1]
            for certain, chosen in zip(CERTAIN, (rows[:most], least), strict=True):
                examples += [Example(row, t, kind, certain) for row in chosen]
    return examples


def gallery(
    run: Finished, data: films.FilmData, predicted: inference.Predictions, *, each: int
) -> dict[str, dict[str, list[dict]]]:
    """Images that a run classifies correctly and wrongly, each under its heatmap.

    Args:
      predicted: calibrated predictions of the split that is judged.
      each: images of a kind, see `choose`.

    Returns:
      {task: {kind: [{image, probability, certain, boxes: whether it has some, planes:
      whether it is a volume's, empty: whether its heatmap is 0, picture: a data URI,
      width, height}]}}.
    """
    chosen = choose(predicted, run.thresholds, each=each)
    if not chosen:
        return {}
    ids = np.unique(predicted.id[[example.row for example in chosen]])
    shape = splitting.shape(run.config) | {"batch": GALLERY_BATCH}
    source = data.films(ids)
    batches = loader.evaluation_batches(source, **shape)
    heatmap = inference.embed(batches, explainer(run))
    boxes = read_boxes(data, ids).groupby(["id", "task"])
    image = data.table.set_index("id")["image"]
    shown: dict[str, dict[str, list]] = {}
    for row, task, kind, certain in chosen:
        id = int(predicted.id[row])
        marks = _corners(boxes, id, task)
        at = np.searchsorted(ids, id)
        pair, side = (source.picture(at), heatmap[at, task]), pictures.SIDE
        if len(run.output.shape) == 4:
            pair, side = _planes(run.output, *pair), 3 * side
        picture, (width, height) = pictures.picture(*pair, marks, side=side)
        kinds = shown.setdefault(run.output.names[task], {k: [] for k in OUTCOMES})
        kinds[kind].append(
            {
                "image": str(image.at[id]),
                "probability": float(predicted.probability[row, task]),
                "certain": certain,
                "boxes": len(marks) > 0,
                "planes": len(run.output.shape) == 4,
                "empty": not heatmap[at, task].max() > 0,
                "picture": picture,
                "width": width,
                "height": height,
            }
        )
    return shown


def localise(
    run: Finished, data: films.FilmData, ids: np.ndarray, **how: str | None
) -> dict:
    """Measures whether heatmaps lie in the boxes, and whether they depend on the model.

    The images `ids` [N] may be used; `how`: see `explainer`. Returns what
    localisation.json holds: localisation.localise's, and about the heatmaps.
    """
    explain = explainer(run, **how)
    boxes = read_boxes(data, ids)
    if boxes.empty:
        raise InputError("--localise: no film of this split has a box of a finding")
    ids = np.unique(boxes["id"])
    marked = [
        _marked(run.config, explain, data, part, boxes)
        for part in np.split(ids, range(HEATMAPS_AT_ONCE, len(ids), HEATMAPS_AT_ONCE))
    ]
    heatmap, places, *about = zip(*marked, strict=True)
    marked = localisation.Marked(
        np.concatenate(heatmap),
        [*itertools.chain(*places)],
        *map(np.concatenate, about),
    )
    names, options = data.output.names, parts.bootstrap(run.config)
    measured = localisation.localise(marked, tasks=names, **options)
    some = splitting.evaluation_batches(run.config, data.films(ids[:RANDOMISED]))
    randomised = _randomisation(run, explain, some)
    method, last = how.get("method") or heatmaps.METHODS[0], stages(run)[-1]
    return {
        "method": method,
        "stage": how.get("stage") or (None if method in WITHOUT_STAGE else last),
        **measured,
        "randomisation": bootstrap.as_json(randomised),
    }


def read_boxes(data: films.FilmData, ids: Sequence[int]) -> pd.DataFrame:
    """The boxes of some images: id, task (its number), x0, y0, x1, y1 in pixels."""
    boxes = pd.read_csv(data.path / "boxes.csv")
    numbers = {name.lower(): t for t, name in enumerate(data.output.names)}
    boxes["task"] = boxes["task"].astype(str).str.lower().map(numbers)
    boxes = boxes[boxes["id"].isin(ids)].dropna(subset=["task"])
    return boxes.astype({"task": int})


def _corners(boxes, id: int, task: int) -> np.ndarray:
    """[n, 2, 2], the boxes of a task in an image; `boxes` are grouped by both."""
    if (id, task) not in boxes.groups:
        return np.zeros((0, 2, 2))
    group = boxes.get_group((id, task))
    return group[["y0", "x0", "y1", "x1"]].to_numpy().reshape(-1, 2, 2)


def _marked(
    config: Config,
    explain: Callable,
    data: films.FilmData,
    ids: np.ndarray,
    boxes: pd.DataFrame,
) -> localisation.Marked:
    """The heatmaps of the marked findings of these images, at the images' size."""
    batches = splitting.evaluation_batches(config, data.films(ids))
    heatmap = inference.embed(batches, explain)  # [n, T, h, w]
    groups = boxes[boxes["id"].isin(ids)].groupby(["id", "task"])
    pairs = np.array([*groups.groups])
    places = [_corners(groups, *pair) for pair in pairs]
    chosen = heatmap[np.searchsorted(ids, pairs[:, 0]), pairs[:, 1]]
    patients = data.table.set_index("id")["patient"]
    return localisation.Marked(
        np.asarray(heatmaps.enlarge(chosen, data.output.shape[:2])),
        places,
        pairs[:, 1],
        patients.loc[pairs[:, 0]].to_numpy(),
    )


def _randomisation(run: Finished, explain: Callable, batches) -> dict:
    """localisation.randomisation of the run's averaged model, or of its first member's."""
    batches, state = list(batches), step.members(run.state)[0]
    model, (compiled, _) = state.averaged, explain.args

    def of(variables):
        changed = state._replace(averaged=step.replicated(variables))
        return inference.embed(batches, functools.partial(compiled, changed))

    layers = ("classifier", "top", *reversed(run.network.stages))
    layers = [layer for layer in layers if layer in model["params"]]
    fresh = parts.fresh(run.config, run.network)
    return localisation.randomisation(of, model, fresh, layers)

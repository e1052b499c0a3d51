"""predict --explain and evaluate --localise: a run's heatmaps, drawn and measured."""

import collections
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import Progress

from medjax import config as plain
from medjax.config import Config
from medjax.data import images as data_images
from medjax.data import loader
from medjax.errors import InputError
from medjax.evaluation import heatmaps as gradcam
from medjax.evaluation import heatmaps as sanity
from medjax.evaluation import localisation, predict, results
from medjax.reports import images as reports_images
from medjax.tasks import adapt, study
from medjax.tasks import parts as model
from medjax.tasks.finished import Run
from medjax.training import step

FILMS = 256  # Whose heatmaps are in memory at once.
TOGETHER = 8  # Films of a gallery at once: any number of them needs one program.
RANDOMISED = 32  # Films of the randomisation check.
WHOLE = "integrated_gradients"  # A method that looks at no stage.


def explainer(
    run: Run, *, method: str = gradcam.METHODS[0], stage: str | None = None
) -> functools.partial:
    """image [D, B, ...] -> heatmaps [D, B, T, h, w] >= 0, the compiled step and state.

    Args:
      run: whose averaged model is explained.
      method: one of gradcam.METHODS.
      stage: one of run.network.stages, whose output is weighed; None is the last.
        Integrated gradients are of the image, and of no stage.

    Raises:
      InputError: no such method or stage, or a stage for a method that has none.
    """
    stages = run.network.stages
    if method == WHOLE and stage is not None:
        raise InputError(
            f"--stage={stage}: {WHOLE} are of the image itself, and of no stage: leave "
            "it out, or use --method=grad_cam"
        )
    stage = stage or stages[-1]
    for flag, value, known in (
        ("method", method, gradcam.METHODS),
        ("stage", stage, stages),
    ):
        if value not in known:
            raise InputError(f"--{flag}={value}: use one of {', '.join(known)}")
    # No gradient comes through a stage that training has frozen.
    whole = model.network(adapt.whole(run.config), run.task)
    compiled = _compiled(whole.apply, whole.look, method, stages.index(stage))
    return functools.partial(compiled, run.state)


@functools.lru_cache(maxsize=4)
def _compiled(apply: Callable, look: Callable, method: str, stage: int) -> Callable:
    """The step that explains; runs that share a network share what was compiled."""
    return step.compile_eval(
        gradcam.heatmap_step, apply=apply, views=look, method=method, stage=stage
    )


def draw(run: Run, explain: Callable, predicted: pd.DataFrame, out: Path) -> int:
    """Writes a picture for each finding that a run sees in a film, and index.csv.

    A finding is seen from its operating point on. Of a film without one, and where an
    image has one of several classes, the likeliest is drawn.

    Args:
      run: that predicted.
      explain: `explainer`'s.
      predicted: of the films, image and a probability a task.
      out: folder of the pictures.

    Returns:
      The number of pictures.
    """
    tasks = run.task.names
    points = np.array([run.thresholds[name] for name in tasks])
    answers = predict.predict_files(
        list(predicted["image"]),
        explain,
        shape=run.task.shape,
        **plain.shape(run.config),
    )
    probability = predicted[list(tasks)].to_numpy(float)
    out.mkdir(parents=True, exist_ok=True)
    rows, names = [], collections.Counter()
    with Progress() as progress:
        for (path, heatmap), said in zip(
            progress.track(answers, total=len(predicted), description="explain"),
            probability,
            strict=True,
        ):
            if isinstance(heatmap, str):  # It could be read a moment ago.
                raise InputError(heatmap)
            film = data_images.read(path, run.task.shape[-1])
            for t in _seen(said, points, run.task.exclusive):
                name = f"{path.stem}-" + re.sub(r"[^\w-]+", "_", tasks[t])
                names[name] += 1  # Two folders may hold films of one name.
                name += f"-{names[name]}.png" if names[name] > 1 else ".png"
                reports_images.overlay(
                    out / name,
                    film.pixels,
                    heatmap[t],
                    task=tasks[t],
                    probability=said[t],
                    threshold=points[t],
                    spacing=film.spacing,
                )
                rows.append([path, tasks[t], said[t], points[t], name])
    columns = ["image", "task", "probability", "threshold", "heatmap"]
    pd.DataFrame(rows, columns=columns).to_csv(out / "index.csv", index=False)
    return len(rows)


def _seen(probability: np.ndarray, points: np.ndarray, exclusive: bool) -> np.ndarray:
    """Which of the tasks are drawn."""
    above = np.flatnonzero(probability >= points)
    if exclusive or not above.size:
        return np.array([np.argmax(probability)])
    return above


def gallery(
    run: Run, data: study.Data, found: predict.Predictions, *, each: int
) -> dict[str, dict[str, list[dict]]]:
    """Films that a run calls rightly and wrongly, each under its heatmap.

    Args:
      run: that predicted.
      data: of the films.
      found: calibrated predictions of the split that is judged.
      each: films of a kind, see examples.choose.

    Returns:
      {task: {kind: [{image, probability, certain, boxes: whether it has some, picture:
      a data URI, width, height}]}}; {} where nothing is to be shown.
    """
    names = run.task.names
    points = [run.thresholds[name] for name in names]
    chosen = results.choose(found, points, each=each)
    if not chosen:
        return {}
    ids = np.unique(found.id[[one.row for one in chosen]])
    shape = plain.shape(run.config) | {"batch": TOGETHER}
    source = data.films(ids)
    batches = loader.evaluation_batches(source, **shape)
    heatmap = predict.embed(batches, explainer(run))
    boxes = read_boxes(data, ids).groupby(["id", "task"])
    image = data.table.set_index("id")["image"]
    shown = {names[one.task]: {kind: [] for kind in results.KINDS} for one in chosen}
    for one in chosen:
        id = int(found.id[one.row])
        marks = _corners(boxes, id, one.task)
        at = np.searchsorted(ids, id)
        picture, (width, height) = reports_images.picture(
            source[at]["image"], heatmap[at, one.task], marks
        )
        shown[names[one.task]][one.kind].append(
            {
                "image": str(image.at[id]),
                "probability": float(found.probability[one.row, one.task]),
                "certain": one.certain,
                "boxes": len(marks) > 0,
                "picture": picture,
                "width": width,
                "height": height,
            }
        )
    return shown


def localise(run: Run, data: study.Data, ids: np.ndarray, **how: str | None) -> dict:
    """Measures where the heatmaps of films with boxes lie, and what they depend on.

    Args:
      run: whose heatmaps.
      data: whose records hold boxes.
      ids: [N] of the films that may be used.
      how: see `explainer`.

    Returns:
      method, stage (None: of the image itself), what `localisation.summarise` says, and randomisation: correlation
      {layer: see sanity.py} and depends, whether the heatmaps depend on the model.

    Raises:
      InputError: none of the films has a box of one of the run's findings.
    """
    explain = explainer(run, **how)
    boxes = read_boxes(data, ids)
    if boxes.empty:
        raise InputError("--localise: no film of this split has a box of a finding")
    ids = np.unique(boxes["id"])
    parts = [
        _marked(run.config, explain, data, part, boxes)
        for part in np.split(ids, range(FILMS, len(ids), FILMS))
    ]
    heatmap, places, task, patient = zip(*parts, strict=True)
    found = localisation.summarise(
        localisation.Marked(
            np.concatenate(heatmap),
            [boxes for part in places for boxes in part],
            np.concatenate(task),
            np.concatenate(patient),
        ),
        tasks=data.task.names,
        **plain.bootstrap(run.config),
    )
    reports_images = data.films(ids[:RANDOMISED])
    alike = _randomisation(
        run, explain, study.evaluation_batches(run.config, reports_images)
    )
    method, last = how.get("method") or gradcam.METHODS[0], run.network.stages[-1]
    return {
        "method": method,
        "stage": how.get("stage") or (None if method == WHOLE else last),
        **found,
        "randomisation": {
            "correlation": {k: None if np.isnan(v) else v for k, v in alike.items()},
            "depends": sanity.depends_on_the_model(alike),
        },
    }


def read_boxes(data: study.Data, ids: Sequence[int]) -> pd.DataFrame:
    """The boxes of some films: id, task (its number), x0, y0, x1, y1 in pixels."""
    boxes = pd.read_csv(data.path / "boxes.csv")
    numbers = {name.lower(): t for t, name in enumerate(data.task.names)}
    boxes["task"] = boxes["task"].astype(str).str.lower().map(numbers)
    boxes = boxes[boxes["id"].isin(ids)].dropna(subset=["task"])
    return boxes.astype({"task": int})


def _corners(boxes, id: int, task: int) -> np.ndarray:
    """[n, 2, 2], a film's boxes of a task, of `read_boxes` grouped by both."""
    if (id, task) not in boxes.groups:
        return np.zeros((0, 2, 2))
    group = boxes.get_group((id, task))
    return group[["y0", "x0", "y1", "x1"]].to_numpy().reshape(-1, 2, 2)


def _marked(
    config: Config,
    explain: Callable,
    data: study.Data,
    ids: np.ndarray,
    boxes: pd.DataFrame,
) -> localisation.Marked:
    """The heatmaps of the marked findings of these films, as large as the films."""
    batches = study.evaluation_batches(config, data.films(ids))
    heatmap = predict.embed(batches, explain)  # [n, T, h, w]
    groups = boxes[boxes["id"].isin(ids)].groupby(["id", "task"])
    pairs = np.array(list(groups.groups))
    places = [_corners(groups, *pair) for pair in pairs]
    chosen = heatmap[np.searchsorted(ids, pairs[:, 0]), pairs[:, 1]]
    patients = data.table.set_index("id")["patient"]
    return localisation.Marked(
        np.asarray(gradcam.enlarge(chosen, data.task.shape[:2])),
        places,
        pairs[:, 1],
        patients.loc[pairs[:, 0]].to_numpy(),
    )


def _randomisation(run: Run, explain: Callable, batches) -> dict[str, float]:
    """sanity.randomisation of the run's averaged model; `explain` is `explainer`'s."""
    batches = list(batches)

    def of(variables):
        state = run.state._replace(averaged=variables)
        return predict.embed(batches, functools.partial(explain.func, state))

    layers = ("classifier", "top", *reversed(run.network.stages))
    known = [layer for layer in layers if layer in run.state.averaged["params"]]
    fresh = model.fresh(run.config, run.network)
    return sanity.randomisation(of, run.state.averaged, fresh, known)

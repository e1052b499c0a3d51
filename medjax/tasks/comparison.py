"""Compare finished runs on the images that all of them were tested on.

What is read of a run is a table, one row an image: its patient, the truth, and what the
run made of it. No model is needed. Runs can be compared where the patients and the truth
are the same for every image.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medjax.cohort import identity
from medjax.config import Config, affecting, flatten
from medjax.errors import InputError
from medjax.evaluation import areas, bootstrap, discrimination, reliability, seeds
from medjax.files import read_json
from medjax.training import workdir

PLACES = ("folder", "table", "file")  # Fields of data that only say where images lie.


class Kind(NamedTuple):
    """How the runs of one kind of task are compared."""

    primary: str  # The metric whose differences are tested.
    names: Callable  # task.json -> the T findings or regions.
    # (folder, split, names) -> a table with `image`, `patient`, and a column
    # NAME_truth beside others of each finding or region.
    read: Callable
    truth: str  # What a column NAME_truth holds, for messages.
    columns: tuple[str, ...]  # Suffixes of the other columns that `measure` needs.
    # (ArmsBySeeds, bootstrap) -> {metric: scores} of the arms of a sweep.
    measure: Callable
    metrics: tuple[str, ...]  # Those of them that the page of two runs shows.
    # ArmsBySeeds -> [T] each: positive and negative images, and patients: those of the
    # rarer class, or all whose mean it is.
    count: Callable
    # (ArmsBySeeds, arm) -> the Interval of its calibration error; None: has none.
    calibration: Callable | None


class ArmsBySeeds(NamedTuple):
    """The tables of A arms by S seeds side by side, on all N images of some seed."""

    columns: dict[str, np.ndarray]  # {suffix: [A, S, N, T]}, NaN without such an image.
    truth: np.ndarray  # [N, T], NaN where unknown.
    patient: np.ndarray  # [N].


def read(
    folders: Sequence[Path], kinds: Sequence[Kind], split: str
) -> tuple[tuple[str, ...], list[pd.DataFrame]]:
    """The names of the findings or regions, and each run's table, sorted by image."""
    how = kinds[0]
    names = how.names(workdir.read_task(folders[0]))
    tables = []
    for folder, kind in zip(folders, kinds, strict=True):
        if kind is not how:
            raise InputError(
                f"{folder}: a run of another kind of task than {folders[0]}: compare "
                "runs of the same task"
            )
        if differ := set(names) ^ set(how.names(workdir.read_task(folder))):
            raise InputError(
                f"{folder}: the runs don't have the same findings "
                f"({', '.join(sorted(differ))}): compare runs of the same task"
            )
        table = how.read(folder, split, names)
        twice = table["image"][table["image"].duplicated()]
        if len(twice):
            raise InputError(
                f"{folder}: image {twice.iloc[0]} occurs twice in {split}, and can't be "
                "paired: give the images of the data names of their own"
            )
        tables.append(table.set_index("image").sort_index())
    return names, tables


def prepared_otherwise(configs: Iterable[Config]) -> list[str]:
    """The fields of `data` in which runs prepared the same images otherwise."""
    data = [flatten(affecting(config, "records")["data"]) for config in configs]
    names = dict.fromkeys(name for fields in data for name in fields)
    apart = [n for n in names if any(d.get(n) != data[0].get(n) for d in data)]
    return [f"data.{name}" for name in apart if name not in PLACES]


def check_same_images(
    first: pd.DataFrame,
    second: pd.DataFrame,
    names: tuple[str, ...],
    folders: tuple[Path, Path],
    how: Kind,
) -> None:
    """Refuses two runs that were tested on other images, patients or truth."""
    for here, there, run in ((first, second, folders[1]), (second, first, folders[0])):
        missing = here.index.difference(there.index)
        if len(missing):
            raise InputError(
                f"{run}: its predictions lack {len(missing)} of the images of the other "
                f"run, such as {missing[0]}: compare runs of the same split"
            )
    columns = {"patient": "patient"}
    columns |= {f"{name}_truth": f"{name} {how.truth}" for name in names}
    for column, called in columns.items():
        a, b = first[column].to_numpy(), second[column].to_numpy()
        differs = ~((a == b) | (pd.isna(a) & pd.isna(b)))
        if differs.any():
            at = int(np.argmax(differs))
            values = [
                "unknown" if pd.isna(x) else x if isinstance(x, str) else f"{x:g}"
                for x in (a[at], b[at])
            ]
            raise InputError(
                f"{folders[1]}: the {called} of {differs.sum()} images is another, such "
                f"as of {first.index[at]}: {values[1]}, and {values[0]} in "
                f"{folders[0]}: compare runs of the same data"
            )


def side_by_side(
    tables: dict[tuple[int, int], pd.DataFrame],
    shape: tuple[int, int],
    names: tuple[str, ...],
    folders: dict[tuple[int, int], Path],
    how: Kind,
) -> ArmsBySeeds:
    """The tables of a sweep's finished runs, {(arm, seed): table}, as ArmsBySeeds.

    Raises:
      InputError: arms of one seed were tested on other images, or an image has another
        patient or truth for another seed.
    """
    first: dict[int, tuple[int, int]] = {}
    for at, table in tables.items():
        before = first.setdefault(at[1], at)
        check_same_images(
            tables[before], table, names, (folders[before], folders[at]), how
        )
    truth = ["patient", *(f"{name}_truth" for name in names)]
    images = pd.concat([tables[at][truth] for at in first.values()])
    images = images.groupby(level=0).agg(["min", "max"])
    lowest, highest = (images.xs(k, axis=1, level=1)[truth] for k in ("min", "max"))
    if not lowest.equals(highest):
        image = lowest.index[(lowest != highest).any(axis=1)][0]
        raise InputError(
            f"image {image} has another patient or {how.truth} in some runs: compare "
            "runs of the same data"
        )
    columns = {
        suffix: np.full((*shape, len(images), len(names)), np.nan, np.float32)
        for suffix in how.columns
    }
    for at, table in tables.items():
        rows = images.index.get_indexer(table.index)
        for suffix, array in columns.items():
            array[(*at, rows)] = table[[name + suffix for name in names]]
    patient = identity.column(lowest["patient"]).to_numpy()
    return ArmsBySeeds(columns, lowest[truth[1:]].to_numpy(float), patient)


def pair(folders: Sequence[Path], kinds: Sequence[Kind], split: str, **draws) -> dict:
    """Compares two runs, as two arms of one seed: how much better the first one is.

    Returns:
      films, patients, replicates; mean: {metric: {one, other, difference}}, and p, that
      of the mean's difference of the primary metric: the primary test; tasks: {name:
      {positives, negatives, p, holm, why, metrics: as mean}}. A difference is a
      seeds.Difference. With fewer than bootstrap.MIN_PATIENTS patients, of findings of
      either class, it has neither interval nor p; `why` gives the reason.
    """
    names, tables = read(folders, kinds, split)
    how, at = kinds[0], [(0, 0), (1, 0)]
    grid = side_by_side(
        *(dict(zip(at, tables)), (2, 1), names, dict(zip(at, folders)), how)
    )
    patients = len(np.unique(grid.patient))
    arms = seeds.compare(
        how.measure(grid, **draws),
        arms=("first", "second"),
        tasks=names,
        primary=how.primary,
        patients=patients,
        baseline=1,
    )["arms"]
    positives, negatives, people = how.count(grid)
    few = people < bootstrap.MIN_PATIENTS

    def pairs(of: Callable[[dict], dict], few: bool) -> dict:
        """{metric: both numbers and their difference} of the mean or of a task."""
        first, second = of(arms["first"]), of(arms["second"])
        gaps = of(arms["first"]["difference"])
        hidden = dict.fromkeys(("low", "high", "p"), None) if few else {}
        return {
            metric: {
                "one": first[metric]["estimate"],
                "other": second[metric]["estimate"],
                "difference": gaps[metric] | hidden,
            }
            for metric in how.metrics
        }

    def of_task(t: int) -> dict:
        metrics = pairs(lambda arm: arm["tasks"][names[t]], few[t])
        gap, why = metrics[how.primary]["difference"], ""
        if gap["estimate"] is None:
            why = f"no {'negative' if positives[t] else 'positive'} image"
        elif gap["p"] is None:
            why = (
                f"{bootstrap.NO_INTERVAL}, no test"
                if few[t]
                else "zero variance: no test"
            )
        return {
            "positives": float(positives[t]),
            "negatives": float(negatives[t]),
            "p": gap["p"],
            "why": why,
            "metrics": metrics,
        }

    rows = [of_task(t) for t in range(len(names))]
    adjusted = bootstrap.as_json(bootstrap.holm([row["p"] for row in rows]))
    for row, p in zip(rows, adjusted, strict=True):
        row["holm"] = row["metrics"][how.primary]["difference"]["holm"] = p
    mean = pairs(lambda arm: arm["mean"], few.all())
    return {
        "films": len(grid.truth),
        "patients": patients,
        "replicates": draws["replicates"],
        "mean": mean,
        "p": mean[how.primary]["difference"]["p"],
        "tasks": dict(zip(names, rows, strict=True)),
    }


def _there(path: Path, split: str) -> Path:
    if not path.exists():
        raise InputError(f"{path}: not there: evaluate that run on --split={split}")
    return path


# ------------------------------------------------------------------ findings


def _read_findings(folder: Path, split: str, names: tuple[str, ...]) -> pd.DataFrame:
    """predictions/<split>.csv: T probabilities, T_log_odds, which rank, and T_call.

    Of classes the likeliest is called; in images of other classes T_call is NaN.
    """
    path = _there(folder / "predictions" / f"{split}.csv", split)
    text = {"image": str, "patient": str}
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    exclusive = workdir.read_task(folder)["exclusive"]
    needed = ("_log_odds",) if exclusive else ("_log_odds", "_call")
    if missing := [n + end for n in names for end in needed if n + end not in table]:
        raise InputError(f"{path}: has no {missing[0]}: evaluate that run again")
    table = table.rename(columns={f"{name}_label": f"{name}_truth" for name in names})
    if exclusive:
        highest = table[[*names]].max(axis=1)
        for name in names:
            called = (table[name] == highest).astype(float)
            table[f"{name}_call"] = called.where(table[f"{name}_truth"] > 0)
    return table


def _measure_findings(grid: ArmsBySeeds, **options) -> dict[str, seeds.Scores]:
    probability, ranking, call = (grid.columns[suffix] for suffix in FINDINGS.columns)
    weight = ~np.isnan(grid.truth) & ~np.isnan(probability)
    return seeds.measure_predictions(
        np.nan_to_num(probability),
        np.nan_to_num(grid.truth),
        weight.astype(np.float32),
        grid.patient,
        ranking=ranking,
        call=call,
        **options,
    )


def _count_findings(grid: ArmsBySeeds) -> tuple[np.ndarray, ...]:
    known, label = ~np.isnan(grid.truth), np.nan_to_num(grid.truth)
    positives = label.sum(axis=0)
    rarer = discrimination.rarer_patients(label, known.astype(float), grid.patient)
    return positives, known.sum(axis=0) - positives, rarer


def _calibration_of_findings(grid: ArmsBySeeds, arm: int) -> bootstrap.Interval:
    probability = grid.columns[""][arm]
    weight = ~np.isnan(grid.truth) & ~np.isnan(probability)
    given = (np.nan_to_num(x) for x in (probability, grid.truth))
    return reliability.error_of_runs(*given, weight.astype(float), grid.patient)


# ------------------------------------------------------------------ masks

OF_MASKS = ("dice", "nsd", "lesion_f1")


def _read_masks(folder: Path, split: str, names: tuple[str, ...]) -> pd.DataFrame:
    """The volumes of report.json: OF_MASKS of each region, and its true volume."""
    path = folder / ("report.json" if split == "test" else f"report-{split}.json")
    rows = read_json(_there(path, split))["rows"]
    volumes: dict[str, dict] = {}
    for row in rows:
        name, region = row["name"], row["region"]
        who = {"image": name, "patient": str(row["patient"])}
        volume = volumes.setdefault(name, who)
        volume[f"{region}_truth"] = row["true_ml"]
        volume |= {f"{region}_{metric}": row[metric] for metric in OF_MASKS}
    return pd.DataFrame(volumes.values())


def _measure_masks(grid: ArmsBySeeds, **options) -> dict[str, seeds.Scores]:
    values = {metric: grid.columns[f"_{metric}"] for metric in OF_MASKS}
    return seeds.measure_cases(values, grid.patient, **options)


def _count_masks(grid: ArmsBySeeds) -> tuple[np.ndarray, ...]:
    there = grid.truth > 0
    patients = np.full(there.shape[1], len(np.unique(grid.patient)))
    return there.sum(axis=0), (~there).sum(axis=0), patients


FINDINGS = Kind(
    primary="auroc",
    names=lambda task: tuple(task["names"]),
    read=_read_findings,
    truth="label",
    columns=("", "_log_odds", "_call"),
    measure=_measure_findings,
    metrics=areas.AREAS,
    count=_count_findings,
    calibration=_calibration_of_findings,
)
MASKS = Kind(
    primary=OF_MASKS[0],
    names=lambda task: tuple(task["regions"]),
    read=_read_masks,
    truth="volume",
    columns=tuple(f"_{metric}" for metric in OF_MASKS),
    measure=_measure_masks,
    metrics=OF_MASKS,
    count=_count_masks,
    calibration=None,
)

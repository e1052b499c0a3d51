"""The command `evaluate`: a run's numbers on its own data or others.

--localise and --corrupt measure more of one run, --against compares two.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from medjax import tasks
from medjax.cohort import manifests
from medjax.config import Config, config_as_json, read_config
from medjax.data import prepared
from medjax.errors import InputError, check_choice
from medjax.files import read_json
from medjax.reports import comparison_page, report
from medjax.reports.classification import write_localisation
from medjax.tasks import (
    adapt,
    comparison,
    data_fields,
    explain,
    external,
    parts,
    perturb,
    splitting,
)
from medjax.tasks.task import Finished, Task
from medjax.training import devices, journal, workdir


class EvaluatedImages(NamedTuple):
    """The images that a run is judged on."""

    # 'test', 'validation', 'train', or 'target': the test images of the data that the
    # run was adapted to.
    split: str = "test"
    # Its data are evaluated as a whole instead; `split` then only names the report.
    other: Config | None = None
    claim: external.Claim = external.Claim()  # What the user says of these.

    def check(self, config: Config) -> None:
        """Refuses a split that isn't there, and its name for other data."""
        names, split = adapt.splits_of(config), self.split
        if self.other is None:
            check_choice("--split", split, names)
        if self.other is not None and (split in names or not split.isidentifier()):
            raise InputError(
                f"--split={split}: give the report on other data its own name"
            )


TEST = EvaluatedImages()


def fix(folder: Path) -> tuple[Finished, Any, pd.DataFrame]:
    """Chooses on validation what is then fixed, thresholds or the like, once.

    Returns the run with it, its data, and their split.
    """
    task = tasks.of(read_config(folder))
    run = task.read(folder)
    data, manifest = _trained(task, run)
    return task.fix(run, data, manifest), data, manifest


def evaluate(folder: Path, images: EvaluatedImages = TEST) -> dict:
    """Reports a run on one of its splits, or on all images of other data; see `fix`.

    Returns:
      The results, also written as `report.*` (for another split than test
      `report-<split>.*`) and `predictions/<split>.csv`. Of several processes the first
      alone has and writes them; the others get {}.

    Raises:
      InputError: no run there, no such split, nobody in it, or other data that the
        run has seen.
    """
    config, (split, other, *_) = read_config(folder), images
    task = tasks.of(config)
    images.check(config)
    run, data, manifest = fix(folder)
    about = parts.about(config) | {
        "split": split,
        "checkpoint": run.number,
        "external": other is not None or split == adapt.SPLIT,
        "cohort": manifests.account(
            data.table, manifest, run.output.names, data.pairs()
        ),
        "source": adapt.source_of(config, split, other),
    }
    if other is not None:
        about["split_by"] = "other"
    data, manifest, overlap = _judged(task, run, data, manifest, images)
    judged = manifest["id"][manifest["split"] == split]
    if judged.empty:
        raise InputError(f"--split={split}: nobody is in that split of the run")
    rows = data.table[data.table["id"].isin(judged)]
    about["cohort"] |= {"flow": _flow(data)}
    about["cohort"]["sides"][split] = manifests.side(rows, run.output.names)
    about["pictures"] = workdir.of_pictures(data.path, rows)
    results, pictures = task.measure(run, data, manifest, split)
    if not devices.first():
        return {}
    results = about | results
    if overlap:
        results |= {"overlap": overlap}
    if about["external"]:
        results |= _internal(folder, results)
    if "--corrupt" not in task.refused:
        results |= _earlier(folder, split, _stamps(run, about["source"]))
    page = report.write(
        results,
        journal.read(folder / "metrics.jsonl"),
        folder,
        _file(folder, "report", split).stem,
        recipe=parts.recipe(config),
        config=config_as_json(config),
        environment=read_json(folder / "environment.json"),
        pictures=pictures,
    )
    report.show(results)
    print(f"report: {page}")
    return results


def _flow(data: Any) -> dict:
    """How many files there were, and what became of them; see the page's Participants."""
    left_out, table = prepared.left_out(data.path), prepared.read_table(data.path)
    return {
        "files": len(table) + left_out,
        "left_out": left_out,
        "images": len(table),
        "patients": table["patient"].nunique(),
    }


def _internal(folder: Path, results: dict) -> dict:
    """External results beside the run's own test, if that was reported."""
    path, internal = _written(folder, "report", "test")
    if not internal:  # Of joined runs that leave nobody to test there is none.
        return {}
    if not external.comparable(internal, results):
        print(f"note: {path} isn't of this model: evaluate it to see both side by side")
        return {}
    return {"internal": external.beside(internal, results)}


MEASUREMENTS = {  # {flag: how its files are called, how they are measured and written}.
    "--localise": ("localisation", explain.localise, write_localisation),
    "--corrupt": ("robustness", perturb.corrupt, perturb.write),
}


def beside(
    flag: str, folder: Path, images: EvaluatedImages = TEST, **options: Any
) -> dict:
    """Measures and writes what stands beside the report; renews the split's page.

    --localise: where the heatmaps lie in images whose findings have boxes, as
    localisation.json; --corrupt: predictions of corrupted images, as robustness.json
    and .csv (of another split than test `localisation-<split>.json`). The options are
    those of explain.localise and perturb.corrupt.
    """
    kind, measure, write = MEASUREMENTS[flag]
    config = read_config(folder)
    task = tasks.of(config)
    task.refuse(flag)
    images.check(config)
    split, other, *_ = images
    run = task.finished(folder)
    data, manifest, _ = _judged(task, run, *_trained(task, run), images)
    stamp = _stamps(run, adapt.source_of(config, split, other))[kind]
    measured = measure(run, data, splitting.ids_in(manifest, split), **options)
    result = {"split": split, **stamp, **measured}
    path = _file(folder, kind, split)
    write(result, path)
    print(f"{kind}: {path}")
    if _file(folder, "report", split).exists():
        evaluate(folder, images)
    return result


def compare(folder: Path, against: Path, *, split: str = "test") -> Path:
    """Writes against.html and against.json of a run, and returns the page.

    Both runs must have been evaluated on the split, and agree in findings, images,
    patients and truth: else the difference is not the models' alone. Where both
    prepared their images alike, the pictures must be the same, too.
    """
    runs = (folder, against)
    configs = [read_config(run) for run in runs]
    kinds = [tasks.of(config).comparison for config in configs]
    paired = comparison.pair(runs, kinds, split, **parts.bootstrap(configs[0]))
    abouts = [parts.about(config) for config in configs]
    written = [_written(run, "report", split)[1] for run in runs]
    first, second = (report.get("pictures") for report in written)
    apart = comparison.prepared_otherwise(configs)
    # Digests, None of a run without a report; images prepared otherwise have others.
    if not apart and None not in (first, second) and first != second:
        raise InputError(
            f"{against}: was tested on other pictures of the same names than {folder}: "
            "evaluate both on the same data"
        )
    summary = {
        "split": split,
        "prepared": apart,
        # Of another split than the run's own the report alone says it.
        "source": written[0].get("source", abouts[0]["source"]),
        "runs": [
            {
                "folder": str(run),
                "seen": report.get("overlap", {}).get("images", 0),
                **{k: about[k] for k in ("model", "imbalance")},
            }
            for run, report, about in zip(runs, written, abouts, strict=True)
        ],
        "primary": kinds[0].primary,
        **paired,
    }
    page = comparison_page.write_pair(summary, folder)
    comparison_page.show_pair(summary)
    print(f"against: {page}")
    return page


def _trained(task: Task, run: Finished) -> tuple[Any, pd.DataFrame]:
    """The data of a run, and their split as it was when the run began."""
    data, manifest = task.data(run.config), workdir.sides(run.folder)
    task.audit(run.config, data, manifest, needed=())  # It was checked at the start.
    return data, manifest


def _judged(
    task: Task,
    run: Finished,
    data: Any,
    manifest: pd.DataFrame,
    images: EvaluatedImages,
) -> tuple[Any, pd.DataFrame, dict]:
    """The data on which a run with these data is judged, their manifest, and what the
    run has seen of them, or the run of its first weights."""
    split, other, claim = images
    if other is None and split != adapt.SPLIT:
        overlap = {}
        if split == "test":
            overlap = external.audit_test(run.config, task.data, data, manifest)
        return data, manifest, overlap
    target = adapt.target(run.config, data)
    if other is None:
        sides = workdir.sides(run.folder, "target.csv")
        task.audit(run.config, target.data, sides)
        judged = target.data, sides[sides["split"] == "test"].assign(split=split)
        # adapt.data says so, and the training is done.
        claim = external.Claim(other_hospital=True, allow_overlap=True)
    else:
        data_fields.check_alike(run.config, other, "--config")
        strangers = task.other(run, tasks.of(other).data(other))
        judged = strangers, strangers.table.assign(split=split)
        if target is not None and target.data.path == strangers.path:
            print(
                f"note: {len(target.ids)} of these images were seen without labels: "
                f"--split={adapt.SPLIT} is about others"
            )
    runs = [external.SeenImages(run.folder, data, manifest)]
    runs += external.ancestors(run.config, task.data)
    path = run.folder / f"overlap-{split}.csv"
    return *judged, external.audit(runs, *judged, claim, path)


def _stamps(run: Finished, source: str) -> dict[str, dict]:
    """{kind: what its numbers depend on}: with other values they are out of date."""
    images = {"checkpoint": run.number, "source": source}
    chosen = {"rule": run.fixed.rule, "value": run.fixed.value}
    chosen["calibration"] = run.fixed.calibration.method
    return {"robustness": images | chosen, "localisation": images}


def _earlier(folder: Path, split: str, stamps: dict[str, dict]) -> dict[str, dict]:
    """{kind: what `corrupt` or `localise` wrote under these stamps}."""
    results = {}
    for kind, stamp in stamps.items():
        path, written = _written(folder, kind, split)
        if stamp.items() <= written.items():
            results[kind] = written
        elif written:
            print(f"note: {path} is of other choices or data: left out of the page")
    return results


def _file(folder: Path, kind: str, split: str) -> Path:
    return folder / f"{kind if split == 'test' else f'{kind}-{split}'}.json"


def _written(folder: Path, kind: str, split: str) -> tuple[Path, dict]:
    """The file of that kind, and what an earlier command wrote into it, if any."""
    path = _file(folder, kind, split)
    return path, read_json(path) if path.exists() else {}

"""The command `evaluate`: a run's numbers on its own data or others.

--localise and --corrupt measure more of one run, --against compares two.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from medjax import tasks
from medjax.cohort import identity
from medjax.cohort import manifest as manifests
from medjax.config import Config, as_json, read_config
from medjax.errors import InputError
from medjax.reports import compare as comparison
from medjax.reports import report
from medjax.reports.classification import write_localisation
from medjax.tasks import adapt, explain, films, parts, perturb
from medjax.tasks import compare as pairing
from medjax.tasks.task import Finished, Task
from medjax.training import devices, journal
from medjax.training import folder as workdir


def evaluate(
    folder: Path, *, split: str | None = "test", other: Config | None = None
) -> dict:
    """Reports a run on one of its splits, or on all images of other data.

    What is fixed on validation, thresholds or the like, is chosen first where it is
    missing.

    Args:
      split: 'test', 'validation', 'train', or 'target': the test images of the data
        that the run was adapted to; None: nothing is reported.
      other: a config whose data are evaluated as a whole instead; `split` then
        only names the report.

    Returns:
      The results, also written as `report.*` (for another split than test
      `report-<split>.*`) and `predictions/<split>.csv`. Of several processes the first
      alone has and writes them; the others get {}.

    Raises:
      InputError: no run there, no such split, or nobody in it.
    """
    config = read_config(folder)
    task = tasks.of(config)
    if split is not None:
        _check_split(config, split, other)
    run = task.read(folder)
    data, manifest = _trained(task, run)
    run = task.fix(run, data, manifest)
    if split is None:
        return {}
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
    data, manifest = _judged(task, run, data, manifest, split, other)
    if not (manifest["split"] == split).any():
        raise InputError(f"--split={split}: nobody is in that split of the run")
    results, pictures = task.measure(run, data, manifest, split)
    if not devices.first():
        return {}
    results = about | results
    if "--corrupt" not in task.refused:
        results |= _earlier(folder, split, _stamps(run, about["source"]))
    page = report.write(
        results,
        journal.read(folder / "metrics.jsonl"),
        folder,
        _file(folder, "report", split).stem,
        config=as_json(config),
        environment=json.loads((folder / "environment.json").read_text()),
        pictures=pictures,
    )
    report.show(results)
    print(f"report: {page}")
    return results


def localise(
    folder: Path, *, split: str, other: Config | None = None, **how: str | None
) -> dict:
    """Reports where a run's heatmaps (by `how`) lie in images whose findings have boxes.

    Also written as `localisation.json` (for another split than test
    `localisation-<split>.json`), and shown on the split's page, if any.
    """
    return _beside(folder, split, other, "--localise", **how)


def corrupt(
    folder: Path, *, split: str, other: Config | None = None, films: int = 0
) -> dict:
    """Reports a run's predictions of corrupted images, of so many at most (0: all).

    As `localise`; the files are `robustness.json` and `.csv`, see perturb.corrupt.
    """
    return _beside(folder, split, other, "--corrupt", most=films)


BESIDE = {  # {flag: how its files are called, how they are measured and written}.
    "--localise": ("localisation", explain.localise, write_localisation),
    "--corrupt": ("robustness", perturb.corrupt, perturb.write),
}


def _beside(
    folder: Path, split: str, other: Config | None, flag: str, **options: Any
) -> dict:
    """Measures and writes what stands beside the report; renews the split's page."""
    kind, measure, write = BESIDE[flag]
    config = read_config(folder)
    task = tasks.of(config)
    task.refuse(flag)
    _check_split(config, split, other)
    run = task.finished(folder)
    data, manifest = _judged(task, run, *_trained(task, run), split, other)
    stamp = _stamps(run, adapt.source_of(config, split, other))[kind]
    measured = measure(run, data, films.ids_in(manifest, split), **options)
    result = {"split": split, **stamp, **measured}
    path = _file(folder, kind, split)
    write(result, path)
    print(f"{kind}: {path}")
    if _file(folder, "report", split).exists():
        evaluate(folder, split=split, other=other)
    return result


def compare(folder: Path, against: Path, *, split: str = "test") -> Path:
    """Writes against.html and against.json of a run, and returns the page.

    Both runs must have been evaluated on the split, and agree in findings, images,
    patients and truth: else the difference is not the models' alone.
    """
    runs = (folder, against)
    configs = [read_config(run) for run in runs]
    kinds = [tasks.of(config).comparison for config in configs]
    names, tables = pairing.read(runs, kinds, split)
    pairing.check(*tables, names, runs, kinds[0])
    abouts = [parts.about(config) for config in configs]
    summary = {
        "split": split,
        "source": abouts[0]["source"],
        "runs": [
            {"folder": str(run), **{k: about[k] for k in ("model", "imbalance")}}
            for run, about in zip(runs, abouts, strict=True)
        ],
        "primary": kinds[0].primary,
        **kinds[0].pair(*tables, names, **parts.bootstrap(configs[0])),
    }
    page = comparison.write_pair(summary, folder)
    comparison.show_pair(summary)
    print(f"against: {page}")
    return page


def _check_split(config: Config, split: str, other: Config | None) -> None:
    """Refuses a split that isn't there, and its name for other data."""
    names = adapt.splits_of(config)
    if other is None and split not in names:
        raise InputError(f"--split={split}: use one of {', '.join(names)}")
    if other is not None and (split in names or not split.isidentifier()):
        raise InputError(f"--split={split}: give the report on other data its own name")


def _trained(task: Task, run: Finished) -> tuple[Any, pd.DataFrame]:
    """The data of a run, and their split as it was when the run began."""
    data, manifest = task.data(run.config), workdir.sides(run.folder)
    task.audit(run.config, data, manifest)
    return data, manifest


def _judged(
    task: Task, run: Finished, data, manifest, split: str, other: Config | None
) -> tuple[Any, pd.DataFrame]:
    """The data on which a run with these data is judged, and their manifest."""
    if other is None and split != adapt.SPLIT:
        return data, manifest
    target = adapt.target(run.config, data)
    if other is None:
        manifest = workdir.sides(run.folder, "target.csv")
        task.audit(run.config, target.data, manifest)
        tested = manifest[manifest["split"] == "test"]
        return target.data, tested.assign(split=split)
    strangers = task.other(run, tasks.of(other).data(other))
    if target is not None and target.data.path == strangers.path:
        print(
            f"note: {len(target.ids)} of these images were seen without labels: "
            f"--split={adapt.SPLIT} is about others"
        )
    trains = manifest["patient"][manifest["split"] == "train"]
    if shared := identity.shared(strangers.table["patient"], trains):
        print(
            f"note: {len(shared)} patient ids occur in training too, such as "
            f"{shared[0]!r}: make sure that these are other people"
        )
    return strangers, strangers.table.assign(split=split)


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
        path = _file(folder, kind, split)
        written = json.loads(path.read_text()) if path.exists() else {}
        if stamp.items() <= written.items():
            results[kind] = written
        elif written:
            print(f"note: {path} is of other choices or data: left out of the page")
    return results


def _file(folder: Path, kind: str, split: str) -> Path:
    return folder / f"{kind if split == 'test' else f'{kind}-{split}'}.json"

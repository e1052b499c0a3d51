"""The command `join`: finished runs, such as those of all folds, as one ensemble."""

from pathlib import Path

import numpy as np
import pandas as pd

from medjax import tasks
from medjax.cohort import manifests
from medjax.cohort.manifests import SPLITS, UNUSED
from medjax.commands import arms
from medjax.commands.evaluate import TEST, evaluate, fix
from medjax.config import Config, config_as_json, flatten, read_config
from medjax.errors import InputError
from medjax.files import read_json
from medjax.tasks import check, parts, start
from medjax.training import workdir

APART = ("seed", "split")  # Sections in which joined runs may differ.
JOIN_REMEDY = f"join runs that differ in {' and '.join(APART)} alone"


def join(runs: list[Path], folder: Path) -> None:
    """Writes a run whose members are the networks of finished runs, and evaluates it.

    An image that one of the runs trained or validated on is no test image. What is
    chosen on validation is chosen on all images that some run didn't train on, each
    predicted by such runs alone.

    Raises:
      InputError: fewer than two runs, an unfinished one, runs that differ in more than
        seed and split, or a folder that isn't empty.
    """
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise InputError("--run: give two or more runs, each once: --run=A --run=B")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--workdir={folder}: isn't empty: give a new folder")
    configs = [read_config(run) for run in runs]
    for run, config in zip(runs, configs, strict=True):
        _check(run, config, runs[0], configs[0])
    config, task = configs[0], tasks.of(configs[0])
    finished = [task.finished(run) for run in runs]
    data = task.data(config)
    manifest, held_out = sides([workdir.sides(run) for run in runs])
    task.audit(config, data, manifest, needed=())
    config = arms.configured(config, {"ensemble": len(runs)})
    workdir.claim(folder, config_as_json(config))
    workdir.hold(folder, data.path, manifest)
    manifests.write(manifest, folder / "splits.csv")
    workdir.write_task(folder, finished[0].output)
    workdir.write_held_out(folder, held_out)
    seen = manifest["id"][manifest["split"].isin(SPLITS[:2])]
    task.record(folder, data, seen.to_numpy())
    with parts.checkpoints(config, folder / start.trained(config)) as checkpoints:
        states = tuple(run.state for run in finished)
        number = max(run.number for run in finished)
        checkpoints.save(number, states, {"runs": [*map(str, runs)]})
    print(f"joined: {folder} ({len(runs)} networks)")
    if (manifest["split"] == "test").any():
        evaluate(folder, TEST)
    else:
        fix(folder)
        print(
            "note: every image was seen by some run: test on other data, by "
            "evaluate --config=configs/X.py --split=NAME"
        )


def _check(run: Path, config: Config, first: Path, as_first: Config) -> None:
    """Refuses a run that can't be joined with the first one."""
    check.check_joined(run, config)
    ours, theirs = (
        {
            k: v
            for k, v in flatten(config_as_json(c)).items()
            if k.split(".")[0] not in APART
        }
        for c in (config, as_first)
    )
    workdir.refuse_other(run, ours, theirs, JOIN_REMEDY)
    for name, what in (("task.json", None), ("provenance.json", "data")):
        values = [read_json(folder / name) for folder in (run, first)]
        ours, theirs = (each if what is None else each[what] for each in values)
        workdir.refuse_other(run, ours, theirs, JOIN_REMEDY)


def sides(tables: list[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The manifest of joined runs, and who predicts its validation images.

    Returns:
      manifest: an image is of `test` if no run trained or validated on it and one
        tested it; of `validation` if there is a run that didn't train on it.
      held_out: `id` of each validation image, and `run`: the number of the run that
        tested it, or else validated on it; -1 where none trained on it.
    """
    ids = tables[0]["id"]
    split = np.stack(
        [each.set_index("id")["split"].loc[ids].to_numpy() for each in tables]
    )
    tested, validated, trained = (split == side for side in ("test", *SPLITS[1::-1]))
    unseen = ~(trained | validated).any(axis=0)
    held_out = ~unseen & (tested | validated).any(axis=0)
    joined = np.select(
        [held_out, ~unseen, tested.any(axis=0)], ["validation", "train", "test"], UNUSED
    )
    first = np.where(
        tested.any(axis=0), tested.argmax(axis=0), validated.argmax(axis=0)
    )
    run = np.where(trained.any(axis=0), first, -1)[held_out]
    held_out = pd.DataFrame({"id": ids[held_out], "run": run})
    return tables[0].assign(split=joined), held_out

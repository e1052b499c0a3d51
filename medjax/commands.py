"""prepare, train, evaluate, predict: the parts that build.py makes, put to work."""

import functools
from pathlib import Path

import jax
import pandas as pd
from rich.progress import Progress

from medjax import build
from medjax.build import Config
from medjax.cohort import splits
from medjax.data import reading
from medjax.errors import InputError
from medjax.evaluation import inference, results
from medjax.reports import page
from medjax.training import journal, loop, workdir


def prepare(config: Config) -> build.Data:
    """Makes the records of `config.data`, and says what became of the files.

    Raises:
      InputError: the raw files aren't there, or too many can't be read.
    """
    data = build.data(config)
    left_out = len(pd.read_csv(data.path / "quarantine.csv"))
    print(f"prepared: {data.path} ({len(data.table)} films, {left_out} quarantined)")
    return data


def train(config: Config, folder: Path) -> None:
    """Trains, or goes on training, and reports the test split.

    Args:
      config: of the run.
      folder: the run's; holds everything that comes out.

    Raises:
      InputError: a mistake in the config or the data, or a diverged training.
    """
    workdir.claim(folder, build.as_json(config))
    data = prepare(config)
    manifest = build.manifest(config, data)
    splits.write(manifest, folder / "splits.csv")
    films = data.films(manifest, "train")
    validation = data.films(manifest, "validation")
    network = build.network(config, len(data.tasks))
    state = build.initial_state(
        config, network, build.class_weights(config, data, films)
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    sides = ", ".join(f"{n} {s}" for s, n in manifest["split"].value_counts().items())
    print(f"model: {size:,} parameters; films: {sides}")
    batches = build.train_batches(config, films)
    with build.checkpoints(config, folder) as checkpoints:
        complete = loop.fit(
            state,
            workdir=folder,
            step=build.train_step(config, network),
            batches=batches,
            evaluate=lambda state: results.means(
                predictions(config, network, state, validation)
            ),
            checkpoints=checkpoints,
            **build.schedule(config),
        )
    batches.close()
    if complete:
        evaluate(folder)


def evaluate(folder: Path, *, split: str = "test", other: Config | None = None) -> dict:
    """Reports a run on one of its splits, or on all films of other data.

    Args:
      folder: of the run.
      split: 'test', 'validation' or 'train'.
      other: a config whose data are evaluated as a whole instead; `split` then
        only names the report.

    Returns:
      The results, see evaluation/results.py; also written as `report.*` (for
      another split than test `report-<split>.*`) and `predictions/<split>.csv`.

    Raises:
      InputError: no run there, or no such split.
    """
    config = build.read_config(folder)
    if other is None and split not in splits.SPLITS:
        raise InputError(f"--split={split}: use one of {', '.join(splits.SPLITS)}")
    if other is not None and (split in splits.SPLITS or not split.isidentifier()):
        raise InputError(f"--split={split}: give the report on other data its own name")
    data = build.data(config)
    manifest = splits.read(folder / "splits.csv")
    build.audit(config, manifest, data)
    network = build.network(config, len(data.tasks))
    number, state = build.restore(config, folder, network, len(data.tasks))
    frozen = workdir.read_thresholds(folder)
    if not frozen or frozen[0] != number:
        found = predictions(config, network, state, data.films(manifest, "validation"))
        _write(folder, "validation", data, found)
        chosen = dict(zip(data.tasks, results.thresholds(found).tolist(), strict=True))
        frozen = number, chosen
        workdir.write_thresholds(folder, *frozen)
    if other is not None:
        trained = set(manifest["patient"][manifest["split"] == "train"])
        data = build.data(other)._replace(tasks=data.tasks)
        shared = len(trained & set(data.table["patient"]))
        if shared:
            print(
                f"note: {shared} patient numbers occur in training too: other people?"
            )
        manifest = data.table.assign(split=split)
    found = predictions(config, network, state, data.films(manifest, split))
    _write(folder, split, data, found)
    summary = results.summarise(
        found,
        tasks=data.tasks,
        threshold=[frozen[1][task] for task in data.tasks],
        **build.bootstrap(config),
    )
    about = build.about(config)
    if other is not None:
        about |= {"source": build.about(other)["source"], "split_by": "other"}
    summary = {"split": split, "checkpoint": number, **about, **summary}
    name = "report" if split == "test" else f"report-{split}"
    written = page.write(summary, journal.read(folder / "metrics.jsonl"), folder, name)
    page.show(summary)
    print(f"report: {written}")
    return summary


def predict(folder: Path, *, images: list[str], out: Path) -> list[str]:
    """Writes a run's probabilities for new image files.

    Args:
      folder: of a finished run.
      images: files or folders.
      out: CSV: image, then a column a task, in the run's order.

    Returns:
      One line for each file that could not be read; they have no row.

    Raises:
      InputError: no finished run there, or no image.
    """
    config = build.read_config(folder)
    frozen = workdir.read_thresholds(folder)
    if frozen is None:
        raise InputError(f"{folder}: the run isn't finished: train it to its end first")
    tasks = tuple(frozen[1])
    network = build.network(config, len(tasks))
    _, state = build.restore(config, folder, network, len(tasks))
    paths = [path for image in images for path in reading.film_paths(image)]
    answers = inference.predict_files(
        paths, functools.partial(network.predict, state), **build.shape(config)
    )
    rows, unread = [], []
    with Progress() as progress:
        for path, found in progress.track(
            answers, total=len(paths), description="predict"
        ):
            if isinstance(found, str):
                unread.append(found)
            else:
                rows.append([path, *found])
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["image", *tasks]).to_csv(out, index=False)
    print(f"predictions: {out} ({len(rows)} films, {len(unread)} unreadable files)")
    return unread


def predictions(config: Config, network, state, films) -> inference.Predictions:
    """What the network says of every film, once."""
    batches = build.evaluation_batches(config, films)
    return inference.predict(batches, functools.partial(network.predict, state))


def _write(folder: Path, split: str, data: build.Data, found) -> None:
    path = folder / "predictions" / f"{split}.csv"
    workdir.write_predictions(path, data.tasks, data.table["image"], found)

"""New images, predicted by a finished run: rows of a CSV, warnings, masks and heatmaps."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
from chex import Array
from rich.progress import track
from scipy.special import expit

from medjax.cohort import appearance
from medjax.data import image_files, loader
from medjax.data.dicom import Film
from medjax.data.prepared import first_duplicate, once
from medjax.data.scan import Scan
from medjax.errors import InputError, some
from medjax.evaluation.inference import predict_files
from medjax.files import read_json, write_json, write_table
from medjax.tasks import answers, explain, films, splitting
from medjax.tasks.task import Finished
from medjax.training import step, workdir

NOVELTY = "novelty.json"  # What a run's training images look like.
MAX_FILMS = 2000  # Enough for the 0.5th percentile.


class New(NamedTuple):
    """An image as it was read."""

    pixels: np.ndarray  # As the network sees it.
    warning: str = ""  # How it is unlike the training images.
    scan: Scan | None = None  # Of a run that draws masks: what they are written for.


def record_novelty(folder: Path, data: films.FilmData, ids: np.ndarray) -> None:
    """Writes novelty.json: what 2-D training images look like; once."""
    path = folder / NOVELTY
    if len(data.output.shape) != 3 or path.exists():
        return
    ids = np.unique(ids)
    if len(ids) > MAX_FILMS:
        ids = np.sort(np.random.default_rng(0).choice(ids, MAX_FILMS, replace=False))
    batches = loader.evaluation_batches(data.films(ids), batch=256, devices=1)
    images = (
        image_files.eight_bits(image)
        for batch in batches
        for image in batch["image"][0][batch["id"][0] >= 0]
    )
    table = data.table.set_index("id").loc[ids]
    reference = appearance.reference(images, table["width"] / table["height"])
    write_json(path, reference)


def predict(
    run: Finished,
    *,
    images: list[str],
    out: Path,
    explain_in: Path | None = None,
    **how: str | None,
) -> list[str]:
    """Writes a CSV of calibrated probabilities, a row for each image that can be read.

    Its columns are the image; of classes the likeliest, `class`; a column a task; of
    findings also T_threshold and T_call, 1 from the fixed threshold on; those of
    answers.columns; T_log_odds, by which images are ranked (float32 has ties at 1); and
    `warning`: how an image is unlike the training images, see cohort/appearance.py. `explain_in`
    gets pictures of the evidence for each finding that is seen. A run that draws masks
    writes them into the folder OUT_masks.
    """
    _check(run, out)
    explainer = explain.explainer(run, **how)  # Before hours of predictions.
    paths, others = _find(run, images)
    if explain_in is not None:
        explain_in.mkdir(parents=True, exist_ok=True)
    unread: list[str] = []
    answered = list(_answers(run, paths, unread, out.with_name(f"{out.stem}_masks")))
    table = _table(run, answered)
    write_table(out, table)
    print(f"predictions: {out} ({len(table)} images, {len(unread)} unreadable files)")
    if others:
        names = some(others, most=10)
        print(f"left out: {len(others)} files that are no images ({names})")
    if len(run.output.shape) == 3:
        print(
            f"warnings: {sum(table['warning'] != '')} of {len(table)} images look unlike "
            "the training images (see the column warning)"
        )
    if run.output.masks:
        print(f"masks: {out.with_name(f'{out.stem}_masks')} ({len(table)} files)")
    if explain_in is not None:
        number = explain.draw(run, explainer, table, explain_in)
        print(f"heatmaps: {explain_in} ({number} pictures)")
    return unread


def _check(run: Finished, out: Path) -> None:
    """Refuses a place where nothing can be written, and runs that read no files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--out={out}: can't be written: give a new file.csv")
    if out.is_file() and out.stat().st_size and not _is_ours(out):
        raise InputError(f"--out={out}: isn't of predict: give a new file.csv")
    if len(run.output.shape) > 3 and not run.output.spacing:
        raise InputError(
            f"{run.folder}: the run was trained on the volumes of a MedMNIST file, and "
            "predict reads NIfTI files and DICOM series: train with data.source=volumes"
        )


def _is_ours(path: Path) -> bool:
    """Whether a CSV is of `predict`, by its first and its last column."""
    with open(path, "rb") as file:
        columns = file.readline().strip().split(b",")
    return (columns[0], columns[-1]) == (b"image", b"warning")


def _find(run: Finished, images: list[str]) -> tuple[list[Path], list[str]]:
    """The images in files and folders, and the names of the other files beside them."""
    listed = [films.find(run.config, image) for image in images]
    paths = once([path for of_images, _ in listed for path in of_images], lambda p: [p])
    others = once([path for _, left_out in listed for path in left_out], lambda p: [p])
    if run.output.masks and (twice := first_duplicate(map(_mask_of, paths))):
        raise InputError(
            f"--images: two volumes would have the masks {twice}: predict them apart"
        )
    return paths, [path.name for path in others]


def _mask_of(path: Path) -> str:
    """The name of a volume's masks."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    return f"{stem}_label.nii.gz"


def _answers(
    run: Finished, paths: list[Path], unread: list[str], folder: Path
) -> Iterator[tuple[Path, str, np.ndarray]]:
    """Each image that can be read, its warning, and the members' log-odds [M, T].

    It is read once. Why one can't be read goes into `unread`, and the masks, if the run
    draws some, into `folder`.
    """
    flat, output = len(run.output.shape) == 3, run.output
    reference = read_json(run.folder / NOVELTY) if flat else None

    def load(path: Path) -> New:
        pixels, read = films.read(run.config, output, path)
        if flat:
            return New(pixels, warning=_warning(pixels, read, reference))
        return New(pixels, scan=read if output.masks else None)

    states = step.members(run.state)

    def members(image: np.ndarray) -> Array:  # -> log-odds [D, B, M, T]
        return jnp.stack(
            [run.network.predict(member, image) for member in states], axis=2
        )

    options = splitting.shape(run.config)
    predicted = predict_files(paths, members, load=load, **options)
    for path, new, log_odds in track(predicted, "predict", total=len(paths)):
        if log_odds is None:
            unread.append(new)
            continue
        if output.masks:
            answers.write_masks(run, new.pixels, new.scan, folder / _mask_of(path))
        yield path, new.warning, log_odds


def _warning(pixels: np.ndarray, film: Film, reference: dict) -> str:
    """How a film is unlike the training images; '' for nothing."""
    dim = appearance.few(8 * pixels.itemsize) * appearance.is_dim(pixels)
    unlike = appearance.warning(film.pixels, image_files.eight_bits(pixels), reference)
    return "; ".join(filter(None, (unlike, dim, film.doubt)))


def _table(run: Finished, answered: list[tuple]) -> pd.DataFrame:
    """The rows of `predict`'s CSV, of what `_answers` yields."""
    names, chosen = list(run.output.names), run.fixed
    paths, warnings, log_odds = zip(*answered) if answered else [()] * 3
    shape = (len(paths), len(step.members(run.state)), len(names))
    log_odds = np.reshape(log_odds, shape).astype(np.float32)  # Of no image, too.
    of_members = expit(log_odds)
    probability = chosen.calibrated(of_members.mean(axis=1))
    mean = np.asarray(step.log_odds_of_mean(log_odds.swapaxes(0, 1)))
    table = pd.DataFrame(probability, columns=names)
    table.insert(0, "image", paths)
    if run.output.exclusive:
        likeliest = table[names].idxmax(axis=1) if paths else []
        table.insert(1, "class", likeliest)
    else:
        table = workdir.with_calls(table, names, run.thresholds)
    more = answers.columns(run, probability, of_members.swapaxes(0, 1))
    ranking = zip(names, chosen.ranking(mean).T, strict=True)
    more |= {f"{name}_log_odds": z for name, z in ranking}
    return table.assign(**more, warning=warnings)

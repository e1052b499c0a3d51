"""A trained segmenter at work: read back, judged on volumes, its masks written."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medjax.config import Config
from medjax.data import nifti, scan, volumes
from medjax.data.scan import Scan
from medjax.data.volumes import Prepared
from medjax.errors import InputError
from medjax.evaluation import masks as evaluation_masks
from medjax.evaluation import segmentation as measures
from medjax.evaluation.masks import Post
from medjax.reports import segmentation as reports_segmentation
from medjax.tasks import masks as tasks_masks
from medjax.training import folder as workdir
from medjax.training import step

COARSER = 1.5  # By so much voxels may differ from those learnt from, unmentioned.


class Run(NamedTuple):
    """A run, as read back.

    sequences: C names of an image's channels, in their order.
    regions: K names of a mask's channels, and their values in a file.
    spacing: [3] mm along D, H, W, the median volume's; () in runs of older versions.
    """

    config: Config
    sequences: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    network: tasks_masks.Network
    step: int
    state: step.State
    spacing: tuple[float, ...] = ()


def read(folder: Path) -> Run:
    """Reads a run that has a checkpoint."""
    config = Config(workdir.read_config(folder))
    meaning = workdir.read_task(folder)
    sequences, regions = meaning["sequences"], meaning["regions"]
    network = tasks_masks.network(config, len(sequences), len(regions))
    found = tasks_masks.restore(config, folder / "checkpoints", network, len(regions))
    spacing = tuple(meaning.get("spacing", ()))
    return Run(config, sequences, regions, network, *found, spacing)


def strange(run: Run, case: Scan) -> str:
    """What a patient's grid has that the training volumes' hadn't; '' for nothing."""
    if not run.spacing:
        return ""
    ratio = np.divide(case.spacing, run.spacing)
    if np.max(np.maximum(ratio, 1 / ratio)) <= COARSER:
        return ""
    theirs, own = (
        " x ".join(f"{mm:.3g}" for mm in spacing)
        for spacing in (case.spacing, run.spacing)
    )
    return (
        f"voxels of {theirs} mm, and the run learnt from {own}: its masks may be "
        "wrong; train with data.spacing set"
    )


def answers(
    run: Run, prepared: Prepared, parts: dict[str, volumes.Part]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each volume the image, probability, label, all [D, H, W, ...], and spacing."""
    for part in parts.values():
        image, label = volumes.read(prepared.folder, part)
        spacing = volumes.load(prepared, part.id).spacing
        probability = tasks_masks.probability(run.config, run.network, run.state, image)
        yield image, probability, np.asarray(label), spacing


def judged(
    run: Run,
    prepared: Prepared,
    parts: dict[str, volumes.Part],
    posts: list[Post],
) -> Iterator[tuple[reports_segmentation.Case, list[dict]]]:
    """Each volume with its prediction, and what is measured of it."""
    found = answers(run, prepared, parts)
    for (name, part), (image, probability, label, spacing) in zip(
        parts.items(), found, strict=True
    ):
        masks = evaluation_masks.masks(probability, spacing, posts)
        rows = measures.measure_regions(
            masks,
            label,
            spacing,
            regions=list(prepared.regions),
            tolerance=run.config.evaluation.tolerance,
            name=name,
            patient=part.patient,
        )
        seen = np.asarray(image[..., 0], np.float32)
        yield reports_segmentation.Case(name, seen, label, masks, spacing), rows


def chosen(
    run: Run, folder: Path, prepared: Prepared, validation: dict[str, volumes.Part]
) -> list[Post]:
    """What is done to the probabilities: chosen on validation, once for a checkpoint."""
    path = folder / "postprocessing.json"
    if path.exists() and json.loads(path.read_text())["checkpoint"] == run.step:
        return read_posts(folder, run.regions)
    posts = [Post()] * len(run.regions)
    if validation and run.config.evaluation.choose:
        found = answers(run, prepared, validation)
        cases = ((probability, label, mm) for _, probability, label, mm in found)
        posts = list(evaluation_masks.choose(cases))
    each = dict(zip(run.regions, [post._asdict() for post in posts], strict=True))
    frozen = {"checkpoint": run.step, "regions": each}
    path.write_text(json.dumps(frozen, indent=2))
    return posts


def read_posts(folder: Path, regions: Iterable[str]) -> list[Post]:
    """What `chosen` chose, for each region.

    Raises:
      InputError: the run isn't finished.
    """
    path = folder / "postprocessing.json"
    if not path.exists():
        raise InputError(f"{folder}: the run isn't finished: train it to its end first")
    each = json.loads(path.read_text())["regions"]
    return [Post(**each[region]) for region in regions]


def stem(name: str) -> str:
    """How a patient's files begin; a name may be a path below the folder."""
    return name.replace("/", "_")


def write(
    run: Run,
    posts: list[Post],
    name: str,
    case: Scan,
    probability: np.ndarray,
    out: Path,
) -> None:
    """Writes one patient's mask and probability on the grid of the file.

    The mask is made on the grid that the model saw: components are counted there.
    """
    masks = evaluation_masks.masks(probability, case.spacing, posts)
    nifti.write_label_map(
        out / f"{stem(name)}_label.nii.gz",
        scan.to_original(masks, case, order=0),
        case.original,
        regions=run.regions,
    )
    nifti.write_probabilities(
        out / f"{stem(name)}_prob.nii.gz",
        scan.to_original(probability, case),
        case.original,
    )

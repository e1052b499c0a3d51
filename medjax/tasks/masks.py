"""Masks that a classification draws beside its answer: measured, and written as files."""

import functools
from pathlib import Path

import jax
import numpy as np

from medjax.data import loader, nifti, scan
from medjax.data.sources import volumes
from medjax.evaluation import predict, segmentation
from medjax.tasks import films, parts, splitting
from medjax.tasks.task import Finished

TOLERANCE = 1.0  # mm, of the surfaces.


def measure(run: Finished, data: films.Data, ids: np.ndarray) -> dict:
    """A segmentation.Summary of the volumes that have a mask; {} if none has.

    A voxel from the probability 0.5 on is inside.
    """
    names = data.table.set_index("id")[["image", "patient"]]
    batches = splitting.evaluation_batches(run.config, data.films(ids))
    masks, rows = functools.partial(run.network.masks, run.state), []
    for batch in predict.each(batches, masks, "log_odds", ("id", "mask")):
        for id, mask, z in zip(*(batch.get(k, ()) for k in ("id", "mask", "log_odds"))):
            drawn, true = (z > 0) & (mask > 0), mask == volumes.INSIDE
            name, patient = names.loc[id]
            rows += [
                {"name": name, "patient": patient, "region": region}
                | segmentation.measure(
                    *(drawn[..., k], true[..., k], run.output.spacing),
                    tolerance=TOLERANCE,
                )
                for k, region in enumerate(run.output.masks)
                if mask.any()
            ]
    if not rows:
        return {}
    measured = segmentation.summarise(rows, **parts.bootstrap(run.config))
    return measured | {"tolerance": TOLERANCE}


def write(run: Finished, image: np.ndarray, case: scan.Scan, path: Path) -> None:
    """Draws the masks of a volume, and writes them on the grid of its first sequence.

    `image` [D, H, W, C] is `case` as the network sees it.
    """
    rows = loader.pad({"image": image[None]}, 1, jax.local_device_count())["image"]
    z = jax.device_get(run.network.masks(run.state, rows))[0, 0]
    mask = volumes.centred(z > 0, case.image.shape[:3]).astype(np.uint8)
    whole = scan.to_original(mask, case, order=0)
    label = nifti.paint(whole, films.regions_of(run.config))
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, label, case.original, case.header)

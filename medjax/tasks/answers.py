"""What a run answers for images: predictions, their table, and masks drawn beside them.

The predictions of a run are its members', or their mean.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from scipy.special import expit

from medjax.config import Config
from medjax.data import loader, nifti, scan
from medjax.data.sources import volumes
from medjax.evaluation import (
    bootstrap,
    conformal,
    discrimination,
    inference,
    mask_metrics,
)
from medjax.evaluation.inference import Predictions
from medjax.tasks import films, fixed, parts, scans, splitting
from medjax.tasks.task import Finished
from medjax.training import devices, step, workdir


def predictions(config: Config, network, state, images) -> Predictions:
    """The uncalibrated predictions of images, once each; every host predicts a part."""
    mine = images.part(jax.process_index(), jax.process_count())
    predicted = inference.predict(
        splitting.evaluation_batches(config, mine),
        functools.partial(network.predict, state),
    )
    return devices.gather(predicted, len(images))


def members_predictions(
    run: Finished, data: films.FilmData, ids: np.ndarray
) -> list[Predictions]:
    """The uncalibrated predictions of each network."""
    return [
        predictions(run.config, run.network, state, data.films(ids))
        for state in step.members(run.state)
    ]


def mean(members: Sequence[Predictions]) -> Predictions:
    """The predictions of the members' mean probability."""
    if len(members) == 1:
        return members[0]
    z = np.asarray(step.log_odds_of_mean(np.stack([m.log_odds for m in members])))
    return members[0]._replace(probability=expit(z), log_odds=z)


def without_copies(
    run: Finished, data: films.FilmData, ids: np.ndarray
) -> Predictions | None:
    """The predictions without evaluation.copies, where there are some."""
    config = run.config.copy_and_resolve_references()
    if not config.evaluation.copies:
        return None
    config.evaluation.copies = 0
    network = parts.classifier(config, run.output)
    return predictions(config, network, run.state, data.films(ids))


def write(
    run: Finished,
    data: films.FilmData,
    split: str,
    raw: Predictions,
    members: Sequence[Predictions],
) -> Predictions:
    """Writes predictions/<split>.csv; returns the calibrated predictions.

    It has uncalibrated probabilities too where findings are calibrated; a softmax's
    calibration mixes classes.
    """
    calibrated = run.fixed.apply(raw)
    exclusive = run.output.exclusive
    apart = run.fixed.calibration.fit is not None and not exclusive
    if devices.first():
        workdir.write_predictions(
            run.folder / "predictions" / f"{split}.csv",
            run.output.names,
            data.table,
            calibrated,
            raw.probability if apart else None,
            threshold=None if exclusive else run.thresholds,
            more=columns(
                run, calibrated.probability, [each.probability for each in members]
            ),
        )
    return calibrated


def columns(
    run: Finished, probability: np.ndarray, members: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """The columns beside calibrated probabilities [N, T]: conformal.columns, T_spread.

    T_spread is the standard deviation of the members' calibrated probabilities. They
    come uncalibrated, [N, T] each. A single network has none.
    """
    names, limits, more = run.output.names, run.fixed.limits, {}
    if limits is not None:
        more = conformal.columns(limits, probability, names, run.output.exclusive)
    if len(members) > 1:
        deviation = np.std([run.fixed.calibrated(p) for p in members], axis=0)
        more |= {f"{task}_spread": deviation[:, t] for t, task in enumerate(names)}
    return more


SURFACE_TOLERANCE = 1.0  # mm, of the surfaces.


def fix_masks(run: Finished, data: films.FilmData, manifest: pd.DataFrame) -> None:
    """Chooses on validation how probabilities become masks, where that is missing."""

    def cases():
        for networks, ids in run.held_out(manifest):
            for _, *case in _predicted(run._replace(state=networks), data, ids):
                yield *case, run.output.spacing

    with devices.in_turn():  # The first process chooses, the others read it.
        fixed.settle_posts(run.folder, run.number, run.output.masks, cases)


def measure_masks(run: Finished, data: films.FilmData, ids: np.ndarray) -> dict:
    """mask_metrics.SegmentationResults of the volumes with a mask; {} if none has."""
    names = data.table.set_index("id")[["image", "patient"]]
    posts, rows = fixed.read_posts(run.folder, run.output.masks), []
    for id, probability, true in _predicted(run, data, ids):
        name, patient = names.loc[id]
        drawn = _masks(run, posts, probability)
        rows += [
            {"name": name, "patient": patient, "region": region}
            | mask_metrics.measure(
                *(drawn[..., k], true[..., k], run.output.spacing),
                tolerance=SURFACE_TOLERANCE,
            )
            for k, region in enumerate(run.output.masks)
        ]
    if not rows:
        return {}
    draws = parts.bootstrap(run.config)
    return mask_metrics.summarise(rows, **draws) | {
        "tolerance": SURFACE_TOLERANCE,
        "posts": {k: post._asdict() for k, post in zip(run.output.masks, posts)},
        "auroc": _auroc(rows, run.output.masks, **draws),
    }


def _auroc(rows: list[dict], regions: tuple[str, ...], **draws) -> dict[str, dict]:
    """Computes the AUROC of each region's predicted volume for its presence."""
    table = pd.DataFrame(rows)
    drawn, true = (
        table[name].to_numpy().reshape(-1, len(regions))
        for name in ("predicted_ml", "true_ml")
    )
    patient = pd.factorize(table["patient"][:: len(regions)])[0]
    data = (true > 0).astype(np.float32), np.ones(true.shape, np.float32), patient
    areas = discrimination.intervals(drawn, *data, None, **draws)["auroc"]
    intervals = [
        bootstrap.interval(
            bootstrap.at(areas, k),
            "all volumes have the region, or none has",
            patients=int(number),
            replicates=draws["replicates"],
        )
        for k, number in enumerate(discrimination.rarer_patients(*data))
    ]
    return bootstrap.as_json(dict(zip(regions, intervals, strict=True)))


def _predicted(
    run: Finished, data: films.FilmData, ids: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The id of each volume that has a mask, its probability and the truth.

    These are [D, H, W, K], and 0 where nobody has labelled a voxel.
    """
    batches = splitting.evaluation_batches(run.config, data.films(ids))
    draw = functools.partial(run.network.masks, run.state)
    for batch in inference.each(batches, draw, "log_odds", ("id", "mask")):
        for id, mask, z in zip(*(batch.get(k, ()) for k in ("id", "mask", "log_odds"))):
            if mask.any():
                yield id, expit(z) * (mask > 0), mask == volumes.INSIDE


def _masks(
    run: Finished, posts: Sequence[mask_metrics.Post], probability: np.ndarray
) -> np.ndarray:
    """[D, H, W, K] bool masks by the rules that were chosen on validation."""
    apart = scans.MasksOutput((), films.regions_of(run.config)).apart
    return mask_metrics.masks(probability, run.output.spacing, posts, apart)


def write_masks(run: Finished, image: np.ndarray, case: scan.Scan, path: Path) -> None:
    """Draws the masks of a volume, and writes them on the grid of its first sequence.

    `image` [D, H, W, C] is `case` as the network sees it.
    """
    rows = loader.pad({"image": image[None]}, 1, jax.local_device_count())["image"]
    z = jax.device_get(run.network.masks(run.state, rows))[0, 0]
    shape = case.image.shape[:3]
    posts = fixed.read_posts(run.folder, run.output.masks)
    own = volumes.centred(np.ones((*shape, 1), bool), z.shape[:3])  # Not padding.
    mask = volumes.centred(_masks(run, posts, expit(z) * own), shape)
    whole = scan.to_original(mask.astype(np.uint8), case, order=0)
    label = nifti.paint(whole, films.regions_of(run.config))
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, label, case.original, case.header)

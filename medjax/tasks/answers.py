"""What a run answers for images: its members' predictions, their mean, and their table."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from scipy.special import expit

from medjax.config import Config
from medjax.evaluation import conformal, predict
from medjax.evaluation.predict import Predictions
from medjax.tasks import films, parts, splitting
from medjax.tasks.task import Finished
from medjax.training import devices, step
from medjax.training import folder as workdir


def predictions(config: Config, network, state, images) -> Predictions:
    """The uncalibrated predictions of images, once each; every host predicts a part."""
    mine = images.part(jax.process_index(), jax.process_count())
    predicted = predict.predict(
        splitting.evaluation_batches(config, mine),
        functools.partial(network.predict, state),
    )
    return devices.gather(predicted, len(images))


def of_members(run: Finished, data: films.Data, ids: np.ndarray) -> list[Predictions]:
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
    run: Finished, data: films.Data, ids: np.ndarray
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
    data: films.Data,
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

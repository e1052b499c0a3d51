"""How a run's weights come about: by steps, by a fit of the classifier, by a restatement."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from medjax import config as plain
from medjax.config import Config
from medjax.data import loader
from medjax.evaluation import predict, results
from medjax.tasks import adapt, head, parts, start, study
from medjax.training import devices, loop, step
from medjax.training.checkpoint import Checkpoints


class Fit(NamedTuple):
    """A run that is ready to be trained.

    config: of the run; folder: the run's.
    network: its model; state: before the first update.
    data: what it is about.
    ids: [N] of the training images, as often as a plan shows them.
    validation: ids that choose the checkpoint.
    target: of the adaptation, if there is one.
    """

    config: Config
    folder: Path
    network: parts.Network
    state: step.State
    data: study.Data
    ids: np.ndarray
    validation: np.ndarray
    target: adapt.Target | None

    @property
    def checkpoints(self) -> Checkpoints:
        """Of its training."""
        return parts.checkpoints(self.config, self.folder / "checkpoints")


def by_steps(fit: Fit) -> bool:
    """Trains step by step; whether they came to their end."""
    stream = batches(fit)
    with fit.checkpoints as checkpoints:
        complete = loop.fit(
            fit.state,
            workdir=fit.folder,
            step=parts.train_step(fit.config, fit.network),
            batches=stream,
            evaluate=validation(fit),
            checkpoints=checkpoints,
            **plain.schedule(fit.config),
        )
    stream.close()
    return complete


def batches(fit: Fit, **where) -> loader.TrainBatches:
    """The training images in the run's order; see study.train_batches."""
    by_loss = fit.config.adapt.name in adapt.BY_LOSS
    seen = adapt.unlabelled(fit.target) if by_loss else None
    return study.train_batches(fit.config, fit.data.films(fit.ids), seen, **where)


def validation(fit: Fit) -> Callable[[step.State], dict[str, float]]:
    """What says how good a state of the run is."""
    films = fit.data.films(fit.validation)
    return lambda state: results.means(
        predictions(fit.config, fit.network, state, films)
    )


def counts(params, frozen: tuple[str, ...]) -> str:
    """How many parameters there are, and how many of them stay."""
    sizes = {
        stage: sum(leaf.size for leaf in jax.tree.leaves(leaves))
        for stage, leaves in params.items()
    }
    still = sum(sizes[stage] for stage in frozen)
    kept = f", {still:,} of them frozen" if still else ""
    return f"{sum(sizes.values()):,} parameters{kept}"


def classifier(fit: Fit, state: step.State, number: int = 0) -> None:
    """Fits the classifier, to embeddings of the training images and SMOTE's points.

    Args:
      fit: the run; gets a checkpoint more.
      state: whose averaged model embeds.
      number: of updates behind the state.
    """
    config, data, ids = fit.config, fit.data, fit.ids
    feature = head.embeddings(config, fit.network, state, data)[ids]
    layer, points = head.fitted(config, data.task, feature, data.label(ids))
    params = {**state.averaged["params"], "classifier": layer}
    state = state._replace(averaged={**state.averaged, "params": params})
    with parts.checkpoints(config, fit.folder / start.trained(config)) as checkpoints:
        checkpoints.save(number, state, {"images": len(ids)})
    between = f" and {points} between them" if points else ""
    print(f"classifier: fitted to {len(ids)} images{between}")


def restate(fit: Fit) -> None:
    """Gives the trained model the target's batch statistics, as its own checkpoint."""
    config, task = fit.config, fit.data.task
    where = fit.folder / start.trained(config)
    number, state = parts.restore(config, where, fit.network, task)
    state = adapt.restated(
        config,
        state,
        fit.target,
        apply=parts.network(adapt.whole(config), task).apply,
        prepare=parts.preparation(config),
    )
    with parts.checkpoints(config, fit.folder / start.ADAPTED) as checkpoints:
        checkpoints.save(number, state, {"images": len(fit.target.ids)})
    print(f"batch statistics: of {len(fit.target.ids)} target images")


def predictions(config: Config, network, state, films) -> predict.Predictions:
    """What the network says of every film, once; each host asks it of a part."""
    mine = films.part(jax.process_index(), jax.process_count())
    found = predict.predict(
        study.evaluation_batches(config, mine),
        functools.partial(network.predict, state),
    )
    return devices.gather(found, len(films))

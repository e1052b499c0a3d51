"""How a run's weights come about: by steps, by a fit of the classifier, by a restatement."""

import functools
from pathlib import Path

import jax
import numpy as np

from medjax.build import adapt, head, model, plain, start, study
from medjax.build.plain import Config
from medjax.evaluation import inference, results
from medjax.training import loop, step


def by_steps(
    config: Config,
    folder: Path,
    network: model.Network,
    state: step.State,
    data: study.Data,
    *,
    ids: np.ndarray,
    validation: np.ndarray,
    target: adapt.Target | None,
) -> bool:
    """Trains step by step; whether they came to their end.

    Args:
      ids: [N] of the training images, as often as a plan shows them.
      validation: ids that choose the checkpoint.
      target: of the adaptation, if there is one.
      The rest: as in `classifier`.
    """
    films = data.films(validation)
    seen = adapt.unlabelled(target) if config.adapt.name in adapt.BY_LOSS else None
    batches = study.train_batches(config, data.films(ids), seen)
    with model.checkpoints(config, folder / "checkpoints") as checkpoints:
        complete = loop.fit(
            state,
            workdir=folder,
            step=model.train_step(config, network),
            batches=batches,
            evaluate=lambda state: results.means(
                predictions(config, network, state, films)
            ),
            checkpoints=checkpoints,
            **plain.schedule(config),
        )
    batches.close()
    return complete


def counts(params, frozen: tuple[str, ...]) -> str:
    """How many parameters there are, and how many of them stay."""
    sizes = {
        stage: sum(leaf.size for leaf in jax.tree.leaves(leaves))
        for stage, leaves in params.items()
    }
    still = sum(sizes[stage] for stage in frozen)
    kept = f", {still:,} of them frozen" if still else ""
    return f"{sum(sizes.values()):,} parameters{kept}"


def classifier(
    config: Config,
    folder: Path,
    network: model.Network,
    state: step.State,
    data: study.Data,
    ids: np.ndarray,
    number: int = 0,
) -> None:
    """Fits the classifier, to embeddings of the training images and SMOTE's points.

    Args:
      config: of the run.
      folder: of the checkpoint to write.
      network: of the run.
      state: whose averaged model embeds.
      data: of the run.
      ids: [N] of the training images.
      number: of updates behind the state.
    """
    feature = head.embeddings(config, network, state, data)[ids]
    layer, points = head.fitted(config, data.task, feature, data.label(ids))
    params = {**state.averaged["params"], "classifier": layer}
    state = state._replace(averaged={**state.averaged, "params": params})
    with model.checkpoints(config, folder) as checkpoints:
        checkpoints.save(number, state, {"images": len(ids)})
    between = f" and {points} between them" if points else ""
    print(f"classifier: fitted to {len(ids)} images{between}")


def restate(
    config: Config,
    folder: Path,
    network: model.Network,
    task: study.Task,
    target: adapt.Target,
) -> None:
    """Gives the trained model the target's batch statistics, as its own checkpoint."""
    where = folder / start.trained(config)
    number, state = model.restore(config, where, network, task)
    state = adapt.restated(
        config,
        state,
        target,
        apply=model.network(adapt.whole(config), task).apply,
        prepare=model.preparation(config),
    )
    with model.checkpoints(config, folder / start.ADAPTED) as checkpoints:
        checkpoints.save(number, state, {"images": len(target.ids)})
    print(f"batch statistics: of {len(target.ids)} target images")


def predictions(config: Config, network, state, films) -> inference.Predictions:
    """What the network says of every film, once."""
    batches = study.evaluation_batches(config, films)
    return inference.predict(batches, functools.partial(network.predict, state))

"""After the last update: refit the classifier, or re-estimate batch statistics."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree

from medjax.cohort import balance
from medjax.config import Config, affecting
from medjax.data import loader
from medjax.data.normalisation import unit_range
from medjax.errors import InputError
from medjax.evaluation import inference
from medjax.files import whole
from medjax.models import layers
from medjax.tasks import adapt, imbalance, parts, splitting, start
from medjax.tasks.films import FilmData, FindingsOutput
from medjax.tasks.imbalance import SYNTHETIC, treats
from medjax.tasks.parts import Network
from medjax.tasks.task import Run
from medjax.training import head, step, workdir
from medjax.training.step import State


def refit_classifier(run: Run, state: State, number: int = 0) -> None:
    """Fits the classifier to the averaged model's embeddings, as a new checkpoint.

    `number` counts the updates behind the state.
    """
    config, data, ids = run.config, run.data, run.ids
    where = run.folder / start.trained(config)
    if _is_done(config, where, state, number):
        return
    if tau := config.resampling.tau:
        layer = head.normalised(state.averaged["params"]["classifier"], tau=tau)
        how = f"divided by its norms to the power {tau:g}"
    else:
        feature = embeddings(config, run.network, state, data)[ids]
        layer, points = fitted(config, data.output, feature, data.label(ids))
        between = f" and {points} between them" if points else ""
        how = f"fitted to {len(ids)} images{between}"
    params = {**state.averaged["params"], "classifier": layer}
    state = state._replace(averaged={**state.averaged, "params": params})
    with parts.checkpoints(config, where) as checkpoints:
        checkpoints.save(number, state, {"images": len(ids)})
    print(f"classifier: {how}")


def restate(run: Run) -> None:
    """Gives the trained model the target's batch statistics, as a new checkpoint."""
    config, output = run.config, run.data.output
    trained, where = (
        run.folder / name for name in (start.trained(config), start.ADAPTED)
    )
    number, state = parts.restore(config, trained, run.network, output)
    if _is_done(config, where, state, number):
        return
    state = restated(
        config,
        state,
        run.target,
        apply=parts.classifier(adapt.unfrozen(config), output).apply,
        prepare=parts.preparation(config),
    )
    with parts.checkpoints(config, where) as checkpoints:
        checkpoints.save(number, state, {"images": len(run.target.ids)})
    print(f"batch statistics: of {len(run.target.ids)} target images")


def _is_done(config: Config, where: Path, state: State, number: int) -> bool:
    """Whether the checkpoint is there, from a command that was stopped later.

    To write it again would first delete it, and a second stop leave none.
    """
    with parts.checkpoints(config, where) as checkpoints:
        if number in checkpoints.steps:
            with contextlib.suppress(InputError):  # It is damaged.
                return checkpoints.restore(state, step=number).step == number
    return False


def embeddings(
    config: Config, network: Network, state: State, data: FilmData
) -> np.ndarray:
    """[N, F] of all images of the data, by their id.

    They are kept beside the records, under a digest of all that they depend on.
    """
    below = {
        part: {stage: leaves for stage, leaves in tree.items() if stage != "classifier"}
        for part, tree in state.averaged.items()
    }
    options = affecting(config, "network")
    del options["transfer"], options["evaluation"]  # They change no embedding.
    text = workdir.of_weights(below) + json.dumps(options)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = data.path / "embeddings" / f"{digest}.npy"
    if not path.exists():
        images = data.films(data.table["id"].to_numpy())
        feature = inference.embed(
            splitting.evaluation_batches(config, images),
            functools.partial(network.embed, step.replicated(state)),
        )
        path.parent.mkdir(exist_ok=True)
        with whole(path) as partial:  # Two runs may compute the same.
            np.save(partial, feature)
    return np.load(path, mmap_mode="r")


def fitted(
    config: Config, output: FindingsOutput, feature: np.ndarray, label: np.ndarray
) -> tuple[dict[str, jax.Array], int]:
    """The classifier fitted to embeddings, as `config.imbalance` asks for it.

    Classes are weighted, or synthetic points between embeddings are added. (Where
    images are resampled, the caller has repeated their rows.) 'decoupled' weights a
    class by the inverse of its images: in the limit of a convex problem, that is the
    class-balanced sampling of cRT (Kang et al., ICLR 2020, section 4).

    Args:
      feature: [N, F], of the training images.
      label: [N, T], NaN where unknown.

    Returns:
      kernel [F, T] and bias [T], and the number of synthetic points.
    """
    label = label.astype(np.float32)
    between = _between(config, output, feature, label)
    scheme = "balanced" if config.imbalance == "decoupled" else ""
    kind = output.names, label, output.exclusive
    w = imbalance.class_weights(config, *kind, scheme)
    if output.exclusive:
        weight = np.sum(label * w["w"], axis=1, keepdims=True)
    else:
        weight = label * w["w_pos"] + (1 - label) * w["w_neg"]
    weight = np.nan_to_num(np.broadcast_to(weight, label.shape))
    how = {"exclusive": output.exclusive, "decay": config.transfer.penalty}
    layer = head.refit(feature, label, weight, between=between, **how)
    return layer, int(between.weight.sum())


def _between(
    config: Config, output: FindingsOutput, feature: np.ndarray, label: np.ndarray
) -> head.Synthetic:
    """The synthetic points of `config.imbalance`, or one of weight 0."""
    tasks = len(output.names)
    if not treats(config, SYNTHETIC):
        return head.no_points(tasks)
    positives, negatives = balance.frequencies(label)
    # A class is filled up to the largest class, a finding to those without it.
    wanted = positives.max() - positives
    if not output.exclusive:
        wanted = np.abs(positives - negatives)
    wanted = np.rint(wanted).astype(int).tolist()
    method, keys = getattr(head, config.imbalance), jax.random.key(config.seed)
    how = {"size": max(1, *wanted), "neighbours": config.resampling.neighbours}
    of_tasks = [
        method(key, feature, each, wanted=number, **how)
        for key, each, number in zip(jax.random.split(keys, tasks), label.T, wanted)
    ]
    return jax.tree.map(lambda *parts: np.stack(parts), *of_tasks)


def restated(
    config: Config,
    state: State,
    target: adapt.Target,
    *,
    apply: Callable,
    prepare: Callable,
) -> State:
    """The state whose averaged model has the target's batch statistics.

    They are over all of the target's training images, once each, without augmentation.
    As in training, a layer gets batches that the layers below normalised by the batch's
    statistics; batches are random samples of about `evaluation.batch` images, large
    enough that it hardly matters which. `apply` is of the network of `adapt.unfrozen`.

    Source: Li et al., Revisiting Batch Normalization for Practical Domain Adaptation
    (2016), algorithm 1.
    """

    def of_batch(model: ArrayTree, image: Array) -> ArrayTree:
        return layers.batch_statistics(apply, model, prepare(unit_range(image)))

    of_shards = jax.jit(jax.vmap(of_batch, (None, 0), axis_name=step.AXIS))
    model = jax.device_put(state.averaged)  # Once, and not with each batch.
    order = np.random.default_rng(config.seed).permutation(target.ids)
    batches = []
    # Batches of equal size, or one image less: padding would be in the mean.
    for ids in np.array_split(order, -(-len(order) // config.evaluation.batch)):
        (batch,) = loader.evaluation_batches(
            target.data.films(ids), batch=len(ids), devices=1
        )
        shards = jax.device_get(of_shards(model, batch["image"]))
        batches.append((len(ids), jax.tree.map(lambda leaf: leaf[0], shards)))
    stats = jax.tree.map(jnp.asarray, layers.pool_statistics(batches))
    return state._replace(averaged={**state.averaged, "batch_stats": stats})

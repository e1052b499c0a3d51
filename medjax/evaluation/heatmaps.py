"""Which parts of an image speak for a finding: heatmaps, as pure functions.

A heatmap says where the model looked, not where the disease is: whether the two are one
is measured in localisation.py, and whether it depends on the model at all in sanity.py.

  grad_cam                 a stage's channels, weighed by the logit's mean gradient
  grad_cam_plus_plus       the same, weighed so that small and repeated findings count
  integrated_gradients     each pixel's share of the logit: as fine as the image, and noisy

The logit is explained, not the probability: a sigmoid's gradient fades where it is sure.

Does a heatmap depend on what the model has learnt? Random weights must destroy it.

An edge detector's pictures look like explanations and know nothing of the model. So
the layers get random weights, one after the other from the classifier down, and the
heatmaps are compared with the trained model's: what stays alike explains the image, and
not the model.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from scipy import stats

METHODS = ("grad_cam", "grad_cam_plus_plus", "integrated_gradients")
STEPS = 32  # Of integrated_gradients.


def heatmap_step(
    state,
    image: Array,
    *,
    apply: Callable,
    views: Callable,
    method: str = METHODS[0],
    stage: int = -1,
) -> Array:
    """Heatmaps of one shard's rows, by the averaged model; see `heatmaps`.

    Args:
      state: whose field `averaged` are the variables.
      image: [B, H, W, C], this shard's rows as loaded.
      apply, method, stage: as in `heatmaps`.
      views: image -> [V, B, H, W, C], standardised; the first, the image as it is, is
        explained.
    """
    seen = views(image)[0]
    return heatmaps(state.averaged, seen, apply=apply, method=method, stage=stage)


def heatmaps(
    variables: ArrayTree,
    image: Array,
    *,
    apply: Callable,
    method: str = METHODS[0],
    stage: int = -1,
) -> Array:
    """What in each image speaks for each task.

    Args:
      variables: of the model.
      image: [B, H, W, C] or [B, D, H, W, C], standardised.
      apply: a Classifier's, see models/classifier.py.
      method: one of METHODS. The baseline of integrated_gradients is 0, the mean grey
        of a standardised image; of its channels' sum the positive part is shown.
      stage: whose output grad_cam and grad_cam_plus_plus weigh; -1 is the last. An
        earlier one is finer and knows less of the whole.

    Returns:
      [B, T, h, w] or [B, T, d, h, w] float32, >= 0, on the grid of that stage (of the
      image for integrated_gradients).
    """

    def logits_of(image):
        return apply(variables, image, train=False)

    if method == "integrated_gradients":
        found = integrated_gradients(image, logits_of, jnp.zeros_like(image))
        return jax.nn.relu(found.sum(axis=-1))
    of = {"grad_cam": grad_cam, "grad_cam_plus_plus": grad_cam_plus_plus}[method]
    _, sown = apply(variables, image, train=False, mutable=["intermediates"])
    stages = sown["intermediates"]["stages"]
    after = range(1, len(stages) + 1)[stage]

    def logits_from(feature):
        return apply(variables, feature, train=False, after=after)

    return of(stages[stage], logits_from)


def grad_cam(feature: Array, logits_from: Callable) -> Array:
    """Channels of a stage, weighed by the mean gradient, and their positive sum.

    Args:
      feature: [B, ..., c], the stage's output; any number of axes of space.
      logits_from: of the feature, [B, T]; an image's logits depend on its row alone.

    Returns:
      [B, T, ...] float, >= 0.

    Source: Selvaraju et al., ICCV 2017, eq. 1 and 2.
    """
    gradient = _gradients(logits_from, feature)
    weight = gradient.mean(axis=tuple(range(2, gradient.ndim - 1)))  # [B, T, c]
    return _weighed(feature, weight)


def grad_cam_plus_plus(feature: Array, logits_from: Callable) -> Array:
    """Grad-CAM that weighs the gradient by how much each pixel alone raises the score.

    The score is exp(logit), as in the paper, whose derivatives are powers of the
    logit's; the factor exp(logit) of the whole map is left out. The paper's features
    are those after a ReLU; a channel whose sum is negative counts as one that is 0.

    Args, Returns: as for `grad_cam`.

    Source: Chattopadhay et al., WACV 2018, eq. 5 and 19.
    """
    rising = jax.nn.relu(_gradients(logits_from, feature))
    space = tuple(range(2, rising.ndim - 1))
    total = jax.nn.relu(feature[:, None].sum(axis=space, keepdims=True))
    # alpha = g^2 / (2 g^2 + total g^3), where g^2 cancels; only g > 0 counts.
    weight = (rising / (2 + total * rising)).sum(axis=space)  # [B, T, c]
    return _weighed(feature, weight)


def integrated_gradients(
    image: Array, logits_of: Callable, baseline: Array, *, steps: int = STEPS
) -> Array:
    """What each pixel adds to each logit on the way from a baseline to the image.

    Over the pixels they add up to logit(image) - logit(baseline), as far as the sum
    over the steps is the integral.

    Args:
      image: [B, ..., C].
      logits_of: of images, [B, T].
      baseline: as the image: one that says nothing.
      steps: of the integral, each taken at its middle.

    Returns:
      [B, T, ..., C] float; negative where a pixel speaks against the task.

    Source: Sundararajan et al., ICML 2017, eq. 1 and 3.
    """
    way = image - baseline

    def add(total, share):
        return total + _gradients(logits_of, baseline + share * way), None

    shares = (jnp.arange(steps, dtype=image.dtype) + 0.5) / steps
    shape = jax.eval_shape(lambda x: _gradients(logits_of, x), image)
    total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), shares)
    return way[:, None] * total / steps


def enlarge(heatmap: Array, shape: Sequence[int]) -> Array:
    """Linear interpolation to the grid of an image, whose edges are the heatmap's.

    Args:
      heatmap: [..., h, w] or [..., d, h, w].
      shape: (H, W) or (D, H, W).
    """
    shape = (*heatmap.shape[: -len(shape)], *shape)
    return jax.image.resize(heatmap, shape, "linear", antialias=False)


def _gradients(logits_of: Callable, x: Array) -> Array:
    """The gradient of every logit: [B, ..., c] -> [B, T, ..., c] float32 or wider.

    One forward pass, and a backward one for each task, all abreast.
    """
    logits, pull = jax.vjp(logits_of, x)
    each = jnp.eye(logits.shape[1], dtype=logits.dtype)
    found = jax.vmap(lambda one: pull(jnp.broadcast_to(one, logits.shape))[0])(each)
    return jnp.moveaxis(found, 0, 1).astype(jnp.promote_types(x.dtype, jnp.float32))


def _weighed(feature: Array, weight: Array) -> Array:
    """[B, ..., c] and [B, T, c] -> [B, T, ...], the positive part."""
    return jax.nn.relu(jnp.einsum("b...c,btc->bt...", feature, weight))


LIMIT = 0.5  # A rank correlation from which on heatmaps count as alike.


def cascade(
    variables: ArrayTree, fresh: ArrayTree, layers: Sequence[str]
) -> Iterator[tuple[str, ArrayTree]]:
    """Yields each layer's name and the variables with it and those above it random.

    Args:
      variables: the trained ones: collections, 'params' among them, of layers.
      fresh: random ones, the same tree.
      layers: names, from the last to the first; what a collection lacks of them is
        no layer of it.
    """
    for name in layers:
        variables = {
            kind: {
                layer: fresh[kind][layer] if layer == name else part
                for layer, part in parts.items()
            }
            for kind, parts in variables.items()
        }
        yield name, variables


def randomisation(
    explain: Callable[[ArrayTree], Array],
    variables: ArrayTree,
    fresh: ArrayTree,
    layers: Sequence[str],
) -> dict[str, float]:
    """How alike heatmaps stay while the layers become random from the top down.

    Args:
      explain: variables -> heatmaps [B, T, ...].
      variables, fresh, layers: as in `cascade`.

    Returns:
      {layer: the mean rank correlation over images and tasks} after it and all
      above it are random: 1 is unchanged, about 0 unrelated; NaN if every heatmap of
      the trained model is of one value.

    Source: Adebayo et al., NeurIPS 2018, section 3, cascading randomisation.
    """
    trained = np.asarray(explain(variables))
    return {
        name: _mean(rank_correlation(trained, np.asarray(explain(changed))))
        for name, changed in cascade(variables, fresh, layers)
    }


def depends_on_the_model(similarity: dict[str, float], *, limit: float = LIMIT) -> bool:
    """Whether `randomisation` found heatmaps that random weights change enough.

    Args:
      similarity: of `randomisation`; what counts is the last, of all layers random.
      limit: from which on they count as unchanged.
    """
    return list(similarity.values())[-1] < limit


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation of heatmaps, pixel by pixel.

    Args:
      one, other: [B, T, ...].

    Returns:
      [B, T]; NaN where `one` is of one value; 0 where only `other` is, since what
      says nothing resembles nothing.
    """
    one, other = (
        stats.rankdata(x.reshape(*x.shape[:2], -1), axis=-1) for x in (one, other)
    )
    one, other = (x - x.mean(axis=-1, keepdims=True) for x in (one, other))
    both = (one * other).sum(axis=-1)
    scale = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    found = both / np.where(scale > 0, scale, 1)
    return np.where((one != 0).any(axis=-1), found, np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")

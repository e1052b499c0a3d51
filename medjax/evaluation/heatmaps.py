"""Which parts of an image speak for a finding: heatmaps, and whether they can be trusted.

  grad_cam                 a stage's channels, weighted by the logit's mean gradient
  grad_cam_plus_plus       the same, weighted so that small and repeated findings count
  integrated_gradients     each pixel's share of the logit: as fine as the image, and noisy

The logit is explained, not the probability: a sigmoid's gradient vanishes where it is
near 0 or 1. A heatmap says where the model looked, not where the disease is, so two
things are measured.

`localise`: whether heatmaps lie where findings are, on images with known boxes:
  pointing  whether the heatmap's maximum lies in a box of the finding
  iou       the overlap of the boxes with the pixels of at least half the maximum
A number alone says little: a large box is easily hit, and a heart is always in the
middle. So each stands beside two baselines that need no understanding of the image:
  chance    the same heatmap, moved to a random place (what leaves the image at one edge
            comes back at the other): for pointing the boxes' share of the area
  others    the heatmaps of other patients with the same finding, on this one's boxes

`randomisation`: whether they depend on what the model has learnt. An edge detector's
pictures look like explanations and know nothing of the model. So the layers get random
weights, one after the other from the classifier down, and the heatmaps are compared with
the trained model's: what stays alike explains the image, not the model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from scipy import stats

from medjax.evaluation import bootstrap
from medjax.evaluation.bootstrap import Interval

METHODS = ("grad_cam", "grad_cam_plus_plus", "integrated_gradients")
STEPS = 32  # Of integrated_gradients.
LIMIT = 0.5  # A rank correlation from which on heatmaps count as alike.
# Of the image's side: so far from its box the maximum still hits. Source: Zhang et al.,
# IJCV 126 (2018) 1084: 15 pixels; their images have about 500.
TOLERANCE = 0.03
SHARE = 0.5  # Of the maximum, from which on a pixel belongs to the heatmap's region.
MEASURES = ("pointing", "iou")
LEVELS = ("", "_chance", "_others", "_gain")  # The gain is over chance.
COLUMNS = tuple(measure + level for measure in MEASURES for level in LEVELS)


class Marked(NamedTuple):
    """N pairs of an image and a finding that is marked in it.

    heatmap: [N, H, W] or [N, D, H, W], >= 0, of the finding in the image.
    boxes: of each pair one or more boxes, [n, 2, 2] or [n, 2, 3]: the lower and the
      upper corner, in pixels of the heatmap from its first corner, in the order of its
      axes; pixel i reaches from i to i + 1.
    task: [N] int, the finding.
    patient: [N] int.
    """

    heatmap: np.ndarray
    boxes: Sequence[np.ndarray]
    task: np.ndarray
    patient: np.ndarray


class Measure(NamedTuple):
    """The mean of a measure, with its interval; gain: over chance."""

    estimate: float
    low: float
    high: float
    undefined: float
    why: str
    chance: float
    others: float
    gain: Interval


class Pairs(NamedTuple):
    """How many pairs and patients there are, and their measures."""

    pairs: int
    patients: int
    pointing: Measure
    iou: Measure


class Localisation(NamedTuple):
    """What `localise` says; tasks: by name, those that are marked."""

    replicates: int
    level: float
    all: Pairs
    tasks: dict[str, Pairs]


def heatmap_step(state, image: Array, *, views: Callable, **options) -> Array:
    """Heatmaps of one shard's rows, by the averaged model.

    Args:
      state: whose field `averaged` are the variables.
      image: [B, H, W, C], this shard's rows as loaded.
      views: image -> [V, B, H, W, C], standardised; the first, the image as it is, is
        explained.
      options: of `heatmaps`.
    """
    return heatmaps(state.averaged, views(image)[0], **options)


def heatmaps(
    variables: ArrayTree,
    image: Array,
    *,
    apply: Callable,
    method: str = METHODS[0],
    stage: int = -1,
) -> Array:
    """The heatmap of each image and task.

    Args:
      variables: of the model.
      image: [B, H, W, C] or [B, D, H, W, C], standardised.
      apply: a Classifier's, see models/classifier.py.
      method: one of METHODS. The baseline of integrated_gradients is 0, the mean grey
        of a standardised image; it shows the positive part of its channels' sum.
      stage: whose output grad_cam and grad_cam_plus_plus weight; -1 is the last. An
        earlier one is finer, but its pixels depend on less of the image.

    Returns:
      [B, T, h, w] or [B, T, d, h, w] float32, >= 0, on the grid of that stage (of the
      image for integrated_gradients).
    """

    def logits_of(image):
        return apply(variables, image, train=False)

    if method == "integrated_gradients":
        shares = integrated_gradients(image, logits_of, jnp.zeros_like(image), STEPS)
        return jax.nn.relu(shares.sum(axis=-1))
    cam = grad_cam if method == "grad_cam" else grad_cam_plus_plus
    _, sown = apply(variables, image, train=False, mutable=["intermediates"])
    stages = sown["intermediates"]["stages"]
    after = range(1, len(stages) + 1)[stage]

    def logits_from(feature):
        return apply(variables, feature, train=False, after=after)

    return cam(stages[stage], logits_from)


def grad_cam(feature: Array, logits_from: Callable) -> Array:
    """The positive part of a stage's channels, weighted by the mean gradient.

    Args:
      feature: [B, ..., c], the stage's output; any number of spatial axes.
      logits_from: feature -> [B, T]; an image's logits depend only on its row.

    Returns [B, T, ...] float, >= 0.

    Source: Selvaraju et al., ICCV 2017, eq. 1 and 2.
    """
    gradient = _gradients(logits_from, feature)
    weight = gradient.mean(axis=tuple(range(2, gradient.ndim - 1)))  # [B, T, c]
    return _weighted(feature, weight)


def grad_cam_plus_plus(feature: Array, logits_from: Callable) -> Array:
    """Grad-CAM that weights the gradient by how much each pixel alone raises the score.

    The score is exp(logit), as in the paper, whose derivatives are powers of the
    logit's; the factor exp(logit) of the whole map is left out. The paper's features
    are those after a ReLU; a channel with a negative sum counts as 0.

    Args, Returns: as for `grad_cam`.

    Source: Chattopadhay et al., WACV 2018, eq. 5 and 19.
    """
    rising = jax.nn.relu(_gradients(logits_from, feature))
    space = tuple(range(2, rising.ndim - 1))
    total = jax.nn.relu(feature[:, None].sum(axis=space, keepdims=True))
    # alpha = g^2 / (2 g^2 + total g^3), where g^2 cancels; only g > 0 counts.
    weight = (rising / (2 + total * rising)).sum(axis=space)  # [B, T, c]
    return _weighted(feature, weight)


def integrated_gradients(
    image: Array, logits_of: Callable, baseline: Array, steps: int
) -> Array:
    """What each pixel adds to each logit on the way from a baseline to the image.

    Over the pixels they add up to logit(image) - logit(baseline), up to the error of
    the sum that stands for the integral.

    Args:
      image: [B, ..., C].
      logits_of: images -> [B, T].
      baseline: of the image's shape, an image that shows nothing.
      steps: of the sum, each taken at its middle.

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
    """Linear interpolation to the grid of an image with the same edges.

    Args:
      heatmap: [..., h, w] or [..., d, h, w].
      shape: (H, W) or (D, H, W).
    """
    shape = (*heatmap.shape[: -len(shape)], *shape)
    return jax.image.resize(heatmap, shape, "linear", antialias=False)


def _gradients(logits_of: Callable, x: Array) -> Array:
    """The gradient of every logit: [B, ..., c] -> [B, T, ..., c] float32 or wider.

    One forward pass, and a backward one for each task, all at once.
    """
    logits, pull = jax.vjp(logits_of, x)
    each = jnp.eye(logits.shape[1], dtype=logits.dtype)
    gradients = jax.vmap(lambda task: pull(jnp.broadcast_to(task, logits.shape))[0])(
        each
    )
    return jnp.moveaxis(gradients, 0, 1).astype(jnp.promote_types(x.dtype, jnp.float32))


def _weighted(feature: Array, weight: Array) -> Array:
    """[B, ..., c] and [B, T, c] -> [B, T, ...], the positive part."""
    return jax.nn.relu(jnp.einsum("b...c,btc->bt...", feature, weight))


def measure(marked: Marked, *, tolerance: float = TOLERANCE) -> np.ndarray:
    """Pointing game and overlap of every pair, and what they are compared with.

    If several pixels are the maximum, each of them is pointed at equally often: a
    constant heatmap hits as often as chance does.

    Args:
      marked: what to measure.
      tolerance: of pointing, a share of the image's longest side.

    Returns:
      [N, 8] float, see COLUMNS; `others` is NaN where no other patient has the finding.

    Source: pointing game: Zhang et al., IJCV 126 (2018) 1084, section 4.2.
    """
    heat = np.asarray(marked.heatmap)
    shape = heat.shape[1:]
    margin = tolerance * max(shape)
    near = np.stack([inside(boxes, shape, margin=margin) for boxes in marked.boxes])
    box = np.stack([inside(boxes, shape) for boxes in marked.boxes])
    highest = heat.max(axis=tuple(range(1, heat.ndim)), keepdims=True)
    peak = (heat == highest).astype(np.float32)
    peak /= peak.sum(axis=tuple(range(1, heat.ndim)), keepdims=True)
    region = (heat >= SHARE * highest).astype(np.float32)
    columns = {name: np.full(len(heat), np.nan) for name in COLUMNS}
    for n in range(len(heat)):
        overlap = _overlap(_moved(region[n], box[n]), region[n].sum(), box[n].sum())
        columns["pointing"][n] = (peak[n] * near[n]).sum()
        columns["pointing_chance"][n] = near[n].mean()
        columns["iou"][n] = overlap.flat[0]
        columns["iou_chance"][n] = overlap.mean()
    for task in np.unique(marked.task):
        rows = np.flatnonzero(marked.task == task)
        peaks, nears, regions, boxes = (
            x[rows].reshape(len(rows), -1).astype(np.float32)
            for x in (peak, near, region, box)
        )
        areas = regions.sum(axis=1), boxes.sum(axis=1)[:, None]
        other = marked.patient[rows][:, None] != marked.patient[rows]
        with np.errstate(invalid="ignore"):  # 0 / 0: no other patient.
            for name, values in (  # [n, n]: the boxes of one, the heatmap of another
                ("pointing_others", nears @ peaks.T),
                ("iou_others", _overlap(boxes @ regions.T, *areas)),
            ):
                mean = (values * other).sum(axis=1) / other.sum(axis=1)
                columns[name][rows] = mean
    for name in MEASURES:
        columns[f"{name}_gain"] = columns[name] - columns[f"{name}_chance"]
    return np.stack(list(columns.values()), axis=1)


def inside(
    boxes: np.ndarray, shape: Sequence[int], *, margin: float = 0.0
) -> np.ndarray:
    """Which pixels have their middle in one of the boxes, or within a margin of it.

    Args:
      boxes: [n, 2, A], see Marked.
      shape: of the image, A axes.
      margin: pixels, by which each box is larger on every side.

    Returns:
      `shape` bool. A box that holds no pixel's middle gets the pixel that it is in.
    """
    mask = np.zeros(shape, bool)
    for low, high in np.asarray(boxes, float):
        middle = np.clip(np.floor((low + high) / 2), 0, np.subtract(shape, 1))
        first = np.minimum(np.ceil(low - margin - 0.5), middle)
        last = np.maximum(np.floor(high + margin - 0.5), middle)
        first, last = np.maximum(first, 0).astype(int), last.astype(int)
        mask[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
    return mask


def localise(
    marked: Marked,
    *,
    tasks: Sequence[str],
    key: Array,
    replicates: int,
) -> dict:
    """Means of `measure` over images, with intervals of a bootstrap over patients.

    Args:
      marked: what to measure.
      tasks: names by the numbers of marked.task.

    Returns:
      `Localisation` as JSON, see bootstrap.as_json.
    """
    numbers = np.unique(marked.task)
    chosen = marked.task == numbers[:, None]
    chosen = np.concatenate([chosen.any(axis=0, keepdims=True), chosen])
    value = measure(marked)[:, None]  # [N, 1, 8]
    value = np.where(chosen.T[..., None], value, np.nan)
    resampled = bootstrap.means(value, marked.patient, key=key, replicates=replicates)
    intervals = bootstrap.percentiles(resampled)

    def pairs(k: int) -> Pairs:
        patients = len(np.unique(marked.patient[chosen[k]]))

        def interval(name: str) -> Interval:
            return bootstrap.interval(
                bootstrap.at(intervals, (k, COLUMNS.index(name))),
                "no other patient",
                patients=patients,
                replicates=replicates,
                name=name,
            )

        measures = {
            name: Measure(
                *interval(name),
                chance=interval(f"{name}_chance").estimate,
                others=interval(f"{name}_others").estimate,
                gain=interval(f"{name}_gain"),
            )
            for name in MEASURES
        }
        return Pairs(int(chosen[k].sum()), patients, **measures)

    of_all, *of_tasks = map(pairs, range(len(chosen)))
    names = [tasks[t] for t in numbers]
    of_tasks = dict(zip(names, of_tasks, strict=True))
    return bootstrap.as_json(
        Localisation(replicates, bootstrap.LEVEL, of_all, of_tasks)
    )


def _moved(region: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How many pixels two masks share for every shift of one, first without a shift."""
    one, other = np.fft.rfftn(region), np.fft.rfftn(box)
    axes = tuple(range(region.ndim))
    return np.rint(np.fft.irfftn(one * np.conj(other), region.shape, axes))


def _overlap(shared: np.ndarray, region: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of areas; neither is empty."""
    return shared / (region + box - shared)


def cascade(
    variables: ArrayTree, fresh: ArrayTree, layers: Sequence[str]
) -> Iterator[tuple[str, ArrayTree]]:
    """Yields each layer's name and the variables with it and those above it random.

    Args:
      variables: the trained ones: collections, 'params' among them, of layers.
      fresh: random ones, the same tree.
      layers: names, from the last to the first; a collection may lack some.
    """
    for name in layers:
        variables = {
            kind: parts | ({name: fresh[kind][name]} if name in parts else {})
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
      the trained model is constant.

    Source: Adebayo et al., NeurIPS 2018, section 3, cascading randomisation.
    """
    trained = np.asarray(explain(variables))
    correlations = {}
    for name, changed in cascade(variables, fresh, layers):
        values = rank_correlation(trained, np.asarray(explain(changed)))
        defined = values[~np.isnan(values)]
        correlations[name] = float(defined.mean()) if defined.size else np.nan
    return correlations


def depends_on_the_model(similarity: dict[str, float]) -> bool:
    """Whether `randomisation` changed the heatmaps enough: the last layer's counts."""
    return list(similarity.values())[-1] < LIMIT


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation of heatmaps, pixel by pixel.

    Args:
      one, other: [B, T, ...].

    Returns:
      [B, T]; NaN where `one` is constant; 0 where only `other` is, as a heatmap that
      says nothing resembles no other.
    """
    one, other = (
        stats.rankdata(x.reshape(*x.shape[:2], -1), axis=-1) for x in (one, other)
    )
    one, other = (x - x.mean(axis=-1, keepdims=True) for x in (one, other))
    both = (one * other).sum(axis=-1)
    scale = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    correlation = both / np.where(scale > 0, scale, 1)
    return np.where((one != 0).any(axis=-1), correlation, np.nan)

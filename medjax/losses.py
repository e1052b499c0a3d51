"""Losses as pure functions that return (total, count).

Shards know different numbers of labels, so a mean of shard means is wrong: the
caller sums both parts over all shards and divides once.

All have the same first arguments and results, so that `compound` can add them:
  logits: [B, T] of images or [B, (D,) H, W, T] of voxels, log-odds that each finding
    or region is present. Any float type; computed in float32, since bfloat16 has 8
    bits, too few for a long sum.
  label: as logits, in [0, 1]; anything, NaN included, where the weight is 0.
  weight: [B, T] or as logits, >= 0; 0 where the label is unknown or the row is
    padding.
  total: [] float32, weighted and summed over images and tasks. An image and task
    adds the mean over its known voxels (one voxel if there is no space).
  count: [] float32, the images that know at least one label. So total / count is
    the mean over images of the sum over tasks.
Other arguments are [] or [T], and class weights are >= 0. Values and gradients stay
finite for saturated logits, because probabilities are kept as their logarithms:
log p = -softplus(-z) and log(1 - p) = -softplus(z).
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax import lax

from medjax.errors import InputError

# Smaller values count as 0: the square of their inverse is not a float32.
TINY = 1e-18
# Losses of classes that exclude each other. The others are of findings, or of regions.
SOFTMAX = ("softmax_cross_entropy", "balanced_softmax", "ldam_softmax")


def weighted_bce(
    logits: Array, label: Array, weight: Array, *, w_pos: Array, w_neg: Array
) -> tuple[Array, Array]:
    """Multi-label cross-entropy with a weight per class, in nats.

    -(w_pos y log p + w_neg (1 - y) log(1 - p)), summed over the tasks. With the
    'ratio' weights both classes of a task contribute equally.

    Source: Rajpurkar et al., CheXNet (2017), section 2.
    """
    z, y, weight = _prepare(logits, label, weight)
    present, absent = jax.nn.softplus(-z), jax.nn.softplus(z)
    return _total(w_pos * y * present + w_neg * (1 - y) * absent, weight)


def ldam(
    logits: Array,
    label: Array,
    weight: Array,
    *,
    w_pos: Array,
    w_neg: Array,
    prevalence: Array,
    margin: Array,
) -> tuple[Array, Array]:
    """weighted_bce with margins: the rarer class has to be right by more log-odds.

    -(w_pos y log sigmoid(z - m_pos) + w_neg (1 - y) log sigmoid(-z - m_neg)). A finding
    is two classes: `margin` is that of its rarer one, and margins are as n^(-1/4) of
    the n training images, so that of p positives m_pos = margin (min(p, 1 - p) / p)^(1/4).

    The paper divides embedding and weights by their norms, and multiplies logits by
    30: its margin of 0.5 is one of 15 in log-odds. Here there are no norms, and a
    margin of 1 to 3 is large. Class weights may begin later: see resampling.defer.

    Source: Cao et al., Learning Imbalanced Datasets with LDAM Loss (NeurIPS 2019),
    section 3.2; of two classes, section 3.1.
    """
    z, y, weight = _prepare(logits, label, weight)
    shares = jnp.stack([prevalence, 1 - prevalence])
    m_pos, m_neg = _margins(shares, margin)
    present, absent = jax.nn.softplus(m_pos - z), jax.nn.softplus(m_neg + z)
    return _total(w_pos * y * present + w_neg * (1 - y) * absent, weight)


def focal(
    logits: Array,
    label: Array,
    weight: Array,
    *,
    w_pos: Array,
    w_neg: Array,
    gamma: Array,
) -> tuple[Array, Array]:
    """weighted_bce with less weight for labels that are already predicted well.

    -(w_pos y (1 - p)^gamma log p + w_neg (1 - y) p^gamma log(1 - p)), gamma >= 0. The
    paper takes 2, and calls the class weights alpha and 1 - alpha.

    Source: Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), eq. 5.
    """
    z, y, weight = _prepare(logits, label, weight)
    present, absent = jax.nn.softplus(-z), jax.nn.softplus(z)
    # (1 - p)^gamma = exp(gamma log(1 - p)), and log(1 - p) = -absent.
    positive = w_pos * y * present * jnp.exp(-gamma * absent)
    negative = w_neg * (1 - y) * absent * jnp.exp(-gamma * present)
    return _total(positive + negative, weight)


def asymmetric(
    logits: Array,
    label: Array,
    weight: Array,
    *,
    w_pos: Array,
    w_neg: Array,
    gamma_pos: Array,
    gamma_neg: Array,
    clip: Array,
) -> tuple[Array, Array]:
    """Focal loss that reduces easy absent findings more than easy present ones.

    -(w_pos y (1 - p)^gamma_pos log p + w_neg (1 - y) q^gamma_neg log(1 - q)), where
    q = max(p - clip, 0): an absent finding with p < `clip` costs nothing. The paper
    takes a gamma_pos of 0 or 1, a gamma_neg of 4, a clip of 0.05 and no class weights.
    The gradient includes that of the focusing factors, which the authors' code omits.

    Source: Ridnik et al., Asymmetric Loss For Multi-Label Classification (ICCV
    2021), section 2.
    """
    z, y, weight = _prepare(logits, label, weight)
    present = jax.nn.softplus(-z) * jnp.exp(-gamma_pos * jax.nn.softplus(z))
    # log(1 - q) = log(1 - p + clip), from logarithms because 1 - p may round to 0.
    # Where q is 0, so is its power, for any gamma_neg.
    log_rest = jnp.logaddexp(-jax.nn.softplus(z), jnp.log(clip))
    shifted = jnp.maximum(jax.nn.sigmoid(z) - clip, 0)
    absent = -log_rest * _power(shifted, gamma_neg)
    return _total(w_pos * y * present + w_neg * (1 - y) * absent, weight)


def softmax_cross_entropy(
    logits: Array, label: Array, weight: Array, *, w: Array, smoothing: Array = 0.0
) -> tuple[Array, Array]:
    """Cross-entropy of classes that exclude each other, in nats.

    -sum_k w_k t_k log softmax(z)_k, with t = (1 - smoothing) y + smoothing / K. A label
    sums to 1 over the K classes, and the largest of an image's weights counts. The mean
    is over images of any class; torch's divides by the sum of w over the true classes.

    Source: Szegedy et al., Rethinking the Inception Architecture (CVPR 2016),
    section 7.
    """
    z, y, weight = _prepare(logits, label, weight)
    target = (1 - smoothing) * y + smoothing / y.shape[-1]
    loss = -jnp.sum(w * target * jax.nn.log_softmax(z), axis=-1, keepdims=True)
    return _total(loss, jnp.max(weight, axis=-1, keepdims=True))


def balanced_softmax(
    logits: Array,
    label: Array,
    weight: Array,
    *,
    w: Array,
    prevalence: Array,
    tau: Array,
) -> tuple[Array, Array]:
    """softmax_cross_entropy of logits + tau log(prevalence): logit adjustment.

    At prediction the logits stay as they are. With tau = 1, the balanced softmax, they
    are then those of classes that are equally frequent. (The offsets of Platt scaling
    bring the prevalence back: calibrate by temperature.) `prevalence` [K] is each class's
    share of the training images.

    There is none of findings, whose sigmoid would be shifted by a constant: the
    classifier's bias takes it back, and no rank changes.

    Source: Menon et al., Long-tail Learning via Logit Adjustment (ICLR 2021), eq. 10;
    tau = 1: Ren et al., Balanced Meta-Softmax (NeurIPS 2020), section 3.1.
    """
    prior = tau * jnp.log(jnp.maximum(prevalence, TINY))
    return softmax_cross_entropy(logits + prior, label, weight, w=w)


def ldam_softmax(
    logits: Array,
    label: Array,
    weight: Array,
    *,
    w: Array,
    prevalence: Array,
    margin: Array,
) -> tuple[Array, Array]:
    """softmax_cross_entropy of logits - y m: the true class has a margin.

    m_k = margin (min(p) / p_k)^(1/4) for the classes' shares p of the training images.
    Otherwise as `ldam`.
    """
    z, y, weight = _prepare(logits, label, weight)
    return softmax_cross_entropy(z - y * _margins(prevalence, margin), y, weight, w=w)


def auc_margin(
    logits: Array,
    label: Array,
    weight: Array,
    *,
    a: Array,
    b: Array,
    alpha: Array,
    prevalence: Array,
    margin: Array,
) -> tuple[Array, Array]:
    """AUC-M: a sum over images whose saddle point is a loss over pairs of images.

    With h = sigmoid(z) and p = prevalence, a known label adds
    (1 - p) y ((h - a)^2 - 2 alpha h) + p (1 - y) ((h - b)^2 + 2 alpha h)
    + p (1 - p) (2 alpha margin - alpha^2). The model, a and b minimise it, alpha >= 0
    maximises it. At the saddle point a and b are the mean h of the positives and of
    the negatives, alpha = max(margin + b - a, 0), and the mean over the images is
    p (1 - p) (var h+ + var h- + alpha^2). For alpha > 0 that is p (1 - p) times the
    mean of (margin - (h+ - h-))^2 over all pairs of a positive and a negative.

    LibAUC's AUCMLoss (version 'v1') is the same for one task, but takes scores for
    logits, and by default uses the batch's prevalence, which would make the loss
    depend on the sharding.

    Args:
      prevalence: share of positives among the known training labels.
      margin: in (0, 1], the wanted distance of the two means.

    Source: Yuan et al., Large-scale Robust Deep AUC Maximization (ICCV 2021).
    """
    z, y, weight = _prepare(logits, label, weight)
    h, p = jax.nn.sigmoid(z), prevalence
    positive = (1 - p) * y * ((h - a) ** 2 - 2 * alpha * h)
    negative = p * (1 - y) * ((h - b) ** 2 + 2 * alpha * h)
    constant = p * (1 - p) * alpha * (2 * margin - alpha)
    return _total(positive + negative + constant, weight)


def auc_margin_variables(tasks: int) -> dict[str, Array]:
    """The variables of auc_margin before the first update, [T] zeros each."""
    return {name: jnp.zeros(tasks) for name in ("a", "b", "alpha")}


def soft_dice(
    logits: Array, label: Array, weight: Array, *, smooth: Array
) -> tuple[Array, Array]:
    """One minus the Dice overlap, per image and class; classes may overlap.

    1 - (2 sum(p g) + s) / (sum(p^2) + sum(g^2) + s), over the image's known voxels.
    An empty prediction of an empty mask costs 0, also with s = 0. If weights differ
    within an image and class, the loss is multiplied by their mean over known voxels.

    Source: Milletari et al., V-Net (3DV 2016), section 3; s, `smooth`, as in MONAI.
    """
    z, g, weight = _prepare(logits, label, weight)
    p = jax.nn.sigmoid(z)
    # The same formula with the 1 inside, which cancels no digits.
    missed = _sum((p - g) ** 2, weight)
    size = _sum(p**2 + g**2, weight) + smooth
    return _total(_ratio(missed, size), weight)


def tversky(
    logits: Array,
    label: Array,
    weight: Array,
    *,
    alpha: Array,
    beta: Array,
    smooth: Array,
    gamma: Array,
) -> tuple[Array, Array]:
    """(1 - TI)^gamma of the Tversky index TI, per image and class.

    TI = (TP + s) / (TP + alpha FP + beta FN + s), with TP = sum(p g),
    FP = sum(p (1 - g)) and FN = sum((1 - p) g) over the image's known voxels, and s
    the argument `smooth`. With alpha = beta = 1/2 it is the Dice overlap of the plain,
    not squared, sums, (2 sum(p g) + 2 s) / (sum(p) + sum(g) + 2 s).

    Source: Salehi et al., Tversky Loss Function (MLMI 2017). Abraham & Khan, A Novel
    Focal Tversky Loss Function (ISBI 2019), swap alpha and beta and write 1 / gamma:
    their 4/3 is 0.75 here.
    """
    z, g, weight = _prepare(logits, label, weight)
    p, absent = jax.nn.sigmoid(z), jax.nn.sigmoid(-z)  # 1 - p would round to 0.
    missed = alpha * _sum(p * (1 - g), weight) + beta * _sum(absent * g, weight)
    size = _sum(p * g, weight) + missed + smooth
    return _total(_power(_ratio(missed, size), gamma), weight)


def compound(
    logits: Array, label: Array, weight: Array, *, parts: dict[str, dict]
) -> tuple[Array, Array]:
    """A weighted sum of losses.

    Args:
      parts: {loss of this module: {"share": its factor, **its other arguments}}.
    """
    return _compound(logits, label, weight, parts, lambda loss: loss)


def _compound(logits, label, weight, parts, of: Callable) -> tuple[Array, Array]:
    if not parts:
        raise InputError("loss.parts: empty; give one loss at least, soft_dice say")
    total = jnp.zeros(())
    for name, arguments in parts.items():
        rest = {key: value for key, value in arguments.items() if key != "share"}
        part, count = of(globals()[name])(logits, label, weight, **rest)
        total += arguments["share"] * part
    return total, count  # All parts count the same images.


def beside(loss: Callable) -> Callable:
    """The loss of an image's findings or classes and of its masks, of one network.

    Logits, labels and weights are pairs, first as `loss` takes them, then those of the
    masks, [B, (D,) H, W, K]. What is added for these is `masks` times their soft Dice
    and cross-entropy. An image counts if it knows a label or a voxel.
    """

    def summed(
        logits: tuple, label: tuple, weight: tuple, *, masks: Array, **rest: Array
    ) -> tuple[Array, Array]:
        findings, voxels = zip(logits, label, weight, strict=True)
        total, _ = loss(*findings, **rest)
        overlap, _ = soft_dice(*voxels, smooth=jnp.ones(()))
        entropy, _ = weighted_bce(*voxels, w_pos=jnp.ones(()), w_neg=jnp.ones(()))
        known = [jnp.any(w > 0, axis=range(1, w.ndim)) for w in weight]
        count = jnp.sum(known[0] | known[1], dtype=jnp.float32)
        return total + masks * (overlap + entropy), count

    return summed


def exclusive(loss: Callable) -> Callable:
    """The loss of regions that exclude each other, by their K logits.

    The background excludes them too: it is a class whose logit is 0. A loss of SOFTMAX
    sees K + 1 classes, the background last. Any other sees each region's log-odds
    against all other classes: their sigmoid is the softmax.
    """

    def summed(
        logits: Array, label: Array, weight: Array, **rest: Array
    ) -> tuple[Array, Array]:
        if loss is compound:
            return _compound(logits, label, weight, rest["parts"], exclusive)
        if loss.__name__ not in SOFTMAX:
            return loss(against_others(logits), label, weight, **rest)
        z, y, weight = _prepare(logits, label, weight)
        known = jnp.max(weight, axis=-1, keepdims=True)
        inside = jnp.sum(y, axis=-1, keepdims=True)
        y = jnp.append(y, jnp.maximum(1 - inside, 0), axis=-1)
        y /= jnp.maximum(inside, 1)  # Coarse voxels may cover several regions.
        weight = jnp.broadcast_to(known, y.shape)
        return loss(with_background(z), y, weight, **rest)

    return summed


def with_background(logits: Array) -> Array:
    """[..., K] of regions -> [..., K + 1] float32, the background's logit last."""
    z = jnp.asarray(logits, jnp.float32)
    return jnp.append(z, jnp.zeros_like(z[..., :1]), axis=-1)


def against_others(logits: Array) -> Array:
    """[..., K] -> each region's log-odds against all others and the background."""
    z = with_background(logits)
    # Not by 1 - p, which float32 rounds to 0: sums of those before and of those after.
    last = z.ndim - 1
    before = lax.cumlogsumexp(jnp.roll(z, 1, axis=-1), axis=last)[..., :-1]
    after = lax.cumlogsumexp(z[..., 1:-1], axis=last, reverse=True)
    none = jnp.full_like(z[..., :1], -jnp.inf)
    after = jnp.concatenate([after, none], axis=-1)
    return z[..., :-1] - jnp.logaddexp(before, after)


def deep(loss: Callable) -> Callable:
    """The loss of a tuple of logits: at the label's resolution, and at coarser ones.

    The losses have the shares 1, 1/2, 1/4, ..., divided by their sum. The label of a
    coarse voxel is the largest known one that it covers: this keeps lesions of few
    voxels, which taking every second voxel could miss.

    Source: Isensee et al., nnU-Net (Nature Methods 2021), for the shares.
    """

    def summed(
        logits: tuple[Array, ...], label: Array, weight: Array, **rest: Array
    ) -> tuple[Array, Array]:
        shares = 0.5 ** np.arange(len(logits))
        total = jnp.zeros(())
        for share, z in zip(shares / shares.sum(), logits, strict=True):
            part, count = loss(z, *_coarser(label, weight, z.shape), **rest)
            total += share * part
        return total, count  # A coarse voxel is known if one that it covers is.

    return summed


def _coarser(label: Array, weight: Array, shape: tuple) -> tuple[Array, Array]:
    """The maxima over the voxels that one of logits [B, ..., K] of `shape` covers."""
    split = [len(label)]
    for fine, coarse in zip(label.shape[1:-1], shape[1:-1], strict=True):
        split += [coarse, fine // coarse]
    split.append(label.shape[-1])
    within = tuple(range(2, len(split) - 1, 2))
    if weight.ndim == label.ndim:
        label = jnp.where(weight > 0, label, 0)
        weight = weight.reshape(split).max(within)
    return label.reshape(split).max(within), weight


def _prepare(logits, label, weight) -> tuple[Array, Array, Array]:
    """All as [B, ..., T] float32, and the label finite where it is unknown."""
    chex.assert_equal_shape([logits, label])
    if weight.ndim < logits.ndim:
        chex.assert_shape(weight, (logits.shape[0], logits.shape[-1]))
        weight = jnp.expand_dims(weight, range(1, logits.ndim - 1))
        weight = jnp.broadcast_to(weight, logits.shape)
    chex.assert_equal_shape([logits, weight])
    label = jnp.where(weight > 0, label, 0)  # First: NaN * 0 is NaN.
    return tuple(jnp.asarray(x, jnp.float32) for x in (logits, label, weight))


def _margins(share: Array, margin: Array) -> Array:
    """margin (least / share)^(1/4), by the classes' shares [C, ...]; of none it is 0."""
    shown = share > 0
    least = jnp.min(jnp.where(shown, share, 1), axis=0)
    return margin * jnp.where(shown, least / jnp.where(shown, share, 1), 0) ** 0.25


def _space(x: Array) -> tuple[int, ...]:
    """The axes between the first and the last."""
    return tuple(range(1, x.ndim - 1))


def _total(loss: Array, weight: Array) -> tuple[Array, Array]:
    """(total, count) of a loss [B, ..., T], or of one that broadcasts to it."""
    known = jnp.sum(weight > 0, axis=_space(weight))  # [B, T]
    part = jnp.sum(weight * loss, axis=_space(weight)) / jnp.maximum(known, 1)
    return jnp.sum(part), jnp.sum(jnp.any(known > 0, axis=1), dtype=jnp.float32)


def _sum(x: Array, weight: Array) -> Array:
    """The sum over the known voxels, [B, 1, ..., 1, T]."""
    return jnp.sum(x, axis=_space(x), keepdims=True, where=weight > 0)


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole for 0 <= part <= whole; 0 / 0 is 0."""
    return part / jnp.where(whole > TINY, whole, 1)


def _power(base: Array, exponent: Array) -> Array:
    """base ** exponent for base >= 0; at 0 both the value and the gradient are 0."""
    positive = base > TINY  # JAX differentiates both branches: change the base too.
    return jnp.where(positive, jnp.where(positive, base, 1) ** exponent, 0)

"""Which parts of an image speak for a finding: heatmaps of a trained classifier.

  grad_cam                 a stage's channels, weighted by the logit's mean gradient
  grad_cam_plus_plus       the same, weighted so that small and repeated findings count
  integrated_gradients     each pixel's share of the logit: as fine as the image, and noisy
  attention_rollout        of a ViT alone: which patches its attention leads to, the same
                           for every finding

The logit is explained, not the probability: a sigmoid's gradient vanishes where it is
near 0 or 1. A heatmap says where the model looked, not where the disease is: see
localisation.py for what can be measured of that.

Images are [B, H, W, C] or [B, D, H, W, C], `...` stands for their spatial axes or those
of a stage, and `logits_of` maps a batch to [B, T], each image for itself.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree

METHODS = ("grad_cam", "grad_cam_plus_plus", "integrated_gradients")
ROLLOUT = "attention_rollout"
STEPS = 32  # Of the sum that stands for the integral of integrated_gradients.


def heatmap_step(state, image: Array, *, views: Callable, **options) -> Array:
    """`heatmaps` of one shard's rows, by the averaged model.

    views: image as loaded -> [V, B, ..., C], standardised; the first, the image as it
    is, is explained.
    """
    return heatmaps(state.averaged, views(image)[0], **options)


def heatmaps(
    variables: ArrayTree,
    image: Array,
    *,
    apply: Callable,
    method: str = METHODS[0],
    stage: int = -1,
    token: bool = False,
) -> Array:
    """The heatmap of each image and task.

    Args:
      variables: of the model.
      image: standardised. The baseline of integrated_gradients is 0, the mean grey; it
        shows the positive part of its channels' sum.
      apply: a Classifier's, see models/classifier.py.
      method: one of METHODS, or of a ViT ROLLOUT.
      token: whether a ViT's classifier reads its class token, not its patches.
      stage: whose output grad_cam and grad_cam_plus_plus weight; -1 is the last. An
        earlier one is finer, but its pixels depend on less of the image.

    Returns:
      [B, T, ...] float32, >= 0, on the grid of that stage (of the patches of a ViT, of
      the image for integrated_gradients).
    """
    if method == "integrated_gradients":
        shares = integrated_gradients(
            image, lambda image: apply(variables, image, train=False)
        )
        return jax.nn.relu(shares.sum(axis=-1))
    cam = grad_cam if method == "grad_cam" else grad_cam_plus_plus
    logits, sown = apply(variables, image, train=False, mutable=["intermediates"])
    sown = sown["intermediates"]
    stages, after = sown["stages"], range(1, len(sown["stages"]) + 1)[stage]
    feature, others, grid = stages[stage], None, ()
    if feature.ndim == 3:  # Tokens, the patches' last.
        *grid, _ = sown["stem"]["position"][0].shape
        others, feature = jnp.split(feature, [feature.shape[1] - math.prod(grid)], 1)
    if method == ROLLOUT:
        blocks = [sown[f"stage{i}"] for i in range(1, len(stages))]
        attention = [block["attention"][0] for block in blocks]
        shares = rollout(attention, others.shape[1], token=token)
        shape = (len(image), logits.shape[1], *grid)
        return jnp.broadcast_to(shares.reshape(len(image), 1, *grid), shape)

    def logits_of(feature: Array) -> Array:
        if others is not None:
            patches = feature.reshape(len(feature), -1, feature.shape[-1])
            feature = jnp.concatenate([others, patches], axis=1)
        return apply(variables, feature, train=False, after=after)

    if others is not None:
        feature = feature.reshape(len(feature), *grid, -1)
    return cam(feature, logits_of)


@jax.default_matmul_precision("highest")  # An accelerator would round products.
def rollout(attention: Sequence[Array], others: int, *, token: bool) -> Array:
    """What the last block's tokens take from each patch at the first, [B, patches].

    Args:
      attention: [B, heads, N, N] of each block, from the image on; rows sum to 1.
      others: the number of tokens before the patches.
      token: of the first token; else of the mean patch.

    Source: Abnar & Zuidema, ACL 2020, eq. 1: heads are averaged, and the branch around
    the attention counts as much as it.
    """
    total = jnp.eye(attention[0].shape[-1])
    for block in attention:
        step = (block.mean(axis=1) + jnp.eye(block.shape[-1])) / 2
        total = step @ total
    rows = total[:, 0] if token else total[:, others:].mean(axis=1)
    return rows[:, others:]


def grad_cam(feature: Array, logits_of: Callable) -> Array:
    """[B, T, ...] >= 0: a stage's channels [B, ..., c], weighted by the mean gradient.

    Source: Selvaraju et al., ICCV 2017, eq. 1 and 2.
    """
    gradient = _gradients(logits_of, feature)
    weight = gradient.mean(axis=tuple(range(2, gradient.ndim - 1)))  # [B, T, c]
    return _weighted(feature, weight)


def grad_cam_plus_plus(feature: Array, logits_of: Callable) -> Array:
    """Grad-CAM that weights the gradient by how much each pixel alone raises the score.

    The score is exp(logit), as in the paper, whose derivatives are powers of the
    logit's; the factor exp(logit) of the whole map is left out. The paper's features
    are those after a ReLU; a channel with a negative sum counts as 0.

    Source: Chattopadhay et al., WACV 2018, eq. 5 and 19.
    """
    rising = jax.nn.relu(_gradients(logits_of, feature))
    space = tuple(range(2, rising.ndim - 1))
    total = jax.nn.relu(feature[:, None].sum(axis=space, keepdims=True))
    # alpha = g^2 / (2 g^2 + total g^3), where g^2 cancels; only g > 0 counts.
    weight = (rising / (2 + total * rising)).sum(axis=space)  # [B, T, c]
    return _weighted(feature, weight)


def integrated_gradients(image: Array, logits_of: Callable) -> Array:
    """What each pixel adds to each logit on the way from an image of zeros to this one.

    [B, T, ..., C], negative where a pixel speaks against the task. Over the pixels they
    add up to logit(image) - logit(0), up to the error of the sum that stands for the
    integral: STEPS terms, each taken at its middle.

    Source: Sundararajan et al., ICML 2017, eq. 1 and 3.
    """

    def add(total, share):
        return total + _gradients(logits_of, share * image), None

    shares = (jnp.arange(STEPS, dtype=image.dtype) + 0.5) / STEPS
    shape = jax.eval_shape(lambda x: _gradients(logits_of, x), image)
    total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), shares)
    return image[:, None] * total / STEPS


def enlarge(heatmap: Array, shape: Sequence[int]) -> Array:
    """Linear interpolation of [..., h, w] or [..., d, h, w] to another grid with the
    same edges; shape: (H, W) or (D, H, W)."""
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


@jax.default_matmul_precision("highest")  # An accelerator would round products.
def _weighted(feature: Array, weight: Array) -> Array:
    """[B, ..., c] and [B, T, c] -> [B, T, ...], the positive part."""
    return jax.nn.relu(jnp.einsum("b...c,btc->bt...", feature, weight))

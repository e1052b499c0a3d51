"""Stages, pooling, logits: what every network of this house is made of."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from chex import Array


class Classifier(nn.Module):
    """Image [B, H, W, C] or [B, D, H, W, C] -> logits [B, T].

    The parameters lie under the stages' names, 'stem', 'stage1', 'stage2' and so on,
    and 'classifier'. Sown as intermediates: 'stages', a tuple of each stage's output, and
    'embedding', what the classifier sees, [B, F].

    Attributes:
      stages: makers of the stages, (name=...) -> module; each maps [B, ..., c] to
        [B, ..., c'], by (x, train).
      tasks: T, the number of findings.
      pool: 'mean' over the last grid; 'mean_max' puts the maximum beside it, for
        findings of a few pixels.
      top: maker of a normalisation of the embedding, or None.
      frozen: so many of the first stages are kept as they are: their statistics are
        not the batch's, and no gradient is computed for them or for what is below.
      remat: computes each stage again in the backward pass instead of keeping its
        activations: less memory, more time.
      dtype: of the computation; parameters and statistics stay float32.
    """

    stages: Sequence[Callable[..., nn.Module]]
    tasks: int
    pool: str = "mean"
    top: Callable[..., nn.Module] | None = None
    frozen: int = 0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The parameters' top-level keys from the image on, but for 'classifier'."""
        return stage_names(len(self.stages))

    @nn.compact
    def __call__(self, image: Array, *, train: bool, after: int = 0) -> Array:
        """Logits [B, T] float32 of standardised images.

        Args:
          image: the image; after so many stages their output, [B, h, w, c], instead:
            with it the gradient of the logits by any stage's output is to be had.
          after: the number of stages that `image` has been through.
        """
        x = image.astype(self.dtype)
        for number, (name, make) in enumerate(
            zip(stage_names(len(self.stages)), self.stages, strict=True)
        ):
            if number < after:
                continue
            stage = make(name=name)
            training = train and number >= self.frozen
            if self.remat and training:
                x = nn.remat(lambda stage, x: stage(x, True))(stage, x)
            else:
                x = stage(x, training)
            if number + 1 == self.frozen:
                x = jax.lax.stop_gradient(x)
            self.sow("intermediates", "stages", x)
        axes = tuple(range(1, x.ndim - 1))
        x = x.astype(jnp.float32)
        if self.pool == "mean":
            x = jnp.mean(x, axes)  # [B, c]
        elif self.pool == "mean_max":
            x = jnp.concatenate([jnp.mean(x, axes), maximum(x)], axis=1)
        else:
            raise ValueError(f"{self.pool!r}: use 'mean' or 'mean_max'")
        if self.top is not None:
            x = self.top(name="top")(x)
        self.sow("intermediates", "embedding", x)
        return nn.Dense(self.tasks, name="classifier")(x)


def maximum(x: Array) -> Array:
    """The maximum over the grid, [B, ..., c] -> [B, c]; the first one has the gradient.

    For its gradient XLA may compute x anew and round it otherwise. By jnp.max no place
    then equals the maximum, and the gradient is 0 / 0; a place is a whole number. That
    holds on every platform, so all have this, which stands for no native operation.
    """
    x = x.reshape(len(x), -1, x.shape[-1])
    first = jnp.argmax(x, axis=1, keepdims=True)
    place = jax.lax.broadcasted_iota(first.dtype, x.shape, 1)
    return jnp.sum(jnp.where(place == first, x, 0), axis=1)


def stage_names(number: int) -> tuple[str, ...]:
    """'stem', 'stage1', ...: the names of so many stages."""
    return ("stem", *(f"stage{i}" for i in range(1, number)))[:number]

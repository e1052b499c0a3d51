"""Stages, pooling, logits: the frame of every classifier."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from chex import Array

from medjax.errors import InputError
from medjax.models import layers


class Classifier(nn.Module):
    """Image [B, H, W, C] or [B, D, H, W, C] -> logits [B, T].

    Between its stages are grids [B, ..., c], or tokens [B, N, c] of which the first
    `tokens` have no place in the image.

    The parameters lie under the names of the stages, 'classifier' and 'decoder'. Sown as
    intermediates: 'stages', each stage's output, and 'embedding', the classifier's
    input [B, F].
    """

    # Makers, (name=...) -> module; a stage maps [B, ..., c] to [B, ..., c'], by (x, train).
    stages: Sequence[Callable[..., nn.Module]]
    tasks: int  # T, the number of findings.
    # 'mean' over the last grid, 'mean_max': mean and maximum, for small findings; or
    # 'token': the first one.
    pool: str = "mean"
    tokens: int = 0
    top: Callable[..., nn.Module] | None = None  # Makes a norm of the embedding.
    # Makes what draws masks: (every stage's output, the image's size) -> logits.
    decoder: Callable[..., nn.Module] | None = None
    dropout: float = 0.0  # Share of the embedding's values that training sets to 0.
    random: bool = False  # Stages drop blocks: in training they also take keys [B].
    # Number of first stages that don't train: they get no gradient, and they normalise
    # by their running statistics, which stay.
    frozen: int = 0
    remat: bool = False  # Less memory, more time: the backward pass recomputes stages.
    dtype: jnp.dtype = jnp.float32  # Of the computation; parameters stay float32.

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown `pool` and a `dropout` outside [0, 1)."""
        pools = ("mean", "mean_max", "token")[: 3 if self.tokens else 2]
        if self.pool not in pools:
            names = " or ".join(map(repr, pools))
            raise ValueError(f"pool={self.pool!r}: use {names}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a share from 0 to below 1")
        super().__post_init__()

    @property
    def stage_names(self) -> tuple[str, ...]:
        """'stem', 'stage1', ..., from the image on."""
        return ("stem", *(f"stage{i}" for i in range(1, len(self.stages))))

    @nn.compact
    def __call__(
        self,
        image: Array,
        *,
        train: bool,
        after: int = 0,
        keys: Array | None = None,
        masks: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Logits [B, T] float32 of standardised images.

        With a decoder, in training and if `masks`, a pair: also those of the masks,
        [B, ..., K].

        `image` may also be the output [B, h, w, c] of the first `after` stages: this
        gives the gradient of the logits by any stage's output. With `keys` [B] each
        image draws what is dropped; without, nothing is.
        """
        x, outputs = image.astype(self.dtype), []
        for number in range(after, len(self.stages)):
            stage = self.stages[number](name=self.stage_names[number])
            training = train and number >= self.frozen
            draws = (
                (layers.fold_keys(keys, number),) if self.random and training else ()
            )
            if self.remat and training:
                x = nn.remat(_train)(stage, x, *draws)
            else:
                x = stage(x, training, *draws)
            if number + 1 == self.frozen:
                x = jax.lax.stop_gradient(x)
            self.sow("intermediates", "stages", x)
            outputs.append(x)
        if 0 in x.shape:
            raise InputError(
                f"images of {image.shape[1:-1]} are too small for this network, whose last "
                f"stage would be {x.shape[1:-1]}: give a larger data.side or data.shape, or "
                "another model"
            )
        axes = tuple(range(1, x.ndim - 1))
        x = x.astype(jnp.float32)
        placed = x[:, self.tokens :]
        if self.pool == "token":
            x = x[:, 0]
        elif self.pool == "mean":
            x = jnp.mean(placed, axes)  # [B, c]
        else:
            x = jnp.concatenate([jnp.mean(placed, axes), maximum(placed)], axis=1)
        if self.top is not None:
            x = self.top(name="top")(x)
        self.sow("intermediates", "embedding", x)
        x = layers.drop(x, keys if train else None, self.dropout, whole=False)
        layer = nn.Dense(self.tasks, precision="highest", name="classifier")
        logits = layer(x)  # An accelerator would round what `refit` fits exactly.
        if self.decoder is None or not (train or masks or self.is_initializing()):
            return logits
        return logits, self.decoder(name="decoder")(outputs, image.shape[1:-1])


def _train(stage: nn.Module, x: Array, *draws: Array | None) -> Array:
    return stage(x, True, *draws)


def maximum(x: Array) -> Array:
    """The maximum over the grid, [B, ..., c] -> [B, c]; the first has the gradient.

    XLA may compute x again for the gradient and round it differently. With jnp.max no
    element then equals the maximum, and the gradient is 0 / 0. An index is exact.
    """
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    first = jnp.argmax(x, axis=1, keepdims=True)
    place = jax.lax.broadcasted_iota(first.dtype, x.shape, 1)
    return jnp.sum(jnp.where(place == first, x, 0), axis=1)

"""Does a heatmap depend on what the model has learnt? Random weights must destroy it.

An edge detector's pictures look like explanations and know nothing of the model. So
the layers get random weights, one after the other from the classifier down, and the
heatmaps are compared with the trained model's: what stays alike explains the image, and
not the model.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from chex import Array, ArrayTree
from scipy import stats

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

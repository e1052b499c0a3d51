"""One number for all tasks: three means that say different things.

macro: every task counts alike, so a rare finding as much as a common one.
weighted: a task counts by its positives, so that common findings decide.
micro: every label of every image counts alike, as if of one task. It also asks whether
  a score means the same in all tasks, and may be high where no task is told apart: a
  model that knows the prevalences alone ranks the common findings' labels first.

Source: scikit-learn's `average=` of roc_auc_score, average_precision_score and f1_score.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def macro(value: Array, defined: Array) -> Array:
    """[...], the mean of [..., T] over the tasks that are defined; NaN without one."""
    return jnp.mean(value, axis=-1, where=defined)


def weighted(value: Array, positives: Array, defined: Array) -> Array:
    """[...], the mean of [..., T] by each task's positives [..., T]."""
    share = jnp.where(defined, positives, 0.0)
    total = share.sum(axis=-1)
    # A task without positives takes no part, however undefined its value is.
    value = jnp.where(share > 0, value, 0.0)
    mean = (value * share).sum(axis=-1) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, mean, jnp.nan)


def micro(matrix, defined: Array):
    """The confusion matrix of all tasks together: cells [..., T] -> [...]."""
    return jax.tree.map(lambda cell: cell.sum(axis=-1, where=defined), matrix)


def pooled(score, label, weight, patient) -> tuple:
    """Every label as an image of one task: [N, T] -> [N T, 1], patients [N T]."""
    tasks = score.shape[1]
    columns = (array.reshape(-1, 1) for array in (score, label, weight))
    return *columns, patient.repeat(tasks)

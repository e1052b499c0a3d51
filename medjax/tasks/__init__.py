"""Kinds of task: everything that differs between them, behind one interface."""

from medjax.config import Config
from medjax.errors import InputError
from medjax.tasks import classification, segmentation
from medjax.tasks.task import Task

KINDS = {
    "multilabel": classification.TASK,
    "multiclass": classification.TASK,
    "segmentation": segmentation.TASK,
}


def of(config: Config) -> Task:
    """The kind of task that a config asks for."""
    if config.task not in KINDS:
        kinds = ", ".join(map(repr, KINDS))
        raise InputError(f"task={config.task!r}: use one of {kinds}")
    return KINDS[config.task]

"""Kinds of task: everything that differs between them, behind one interface."""

from medjax.buckets import on_disk
from medjax.config import Config, flatten
from medjax.errors import check_choice
from medjax.tasks import classification, segmentation
from medjax.tasks.task import Task

TASKS = {
    "multilabel": classification.TASK,
    "multiclass": classification.TASK,
    "segmentation": segmentation.TASK,
}


def of(config: Config) -> Task:
    """The kind of task that a config asks for.

    Raises:
      InputError: there is none, or another field than transfer.init holds the address
        of a bucket: records are on a disk.
    """
    for field, value in flatten(config.to_dict()).items():
        if isinstance(value, str) and field != "transfer.init":
            on_disk(f"config.{field}", value)
    check_choice("task", config.task, TASKS)
    return TASKS[config.task]

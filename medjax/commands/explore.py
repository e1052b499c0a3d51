"""The commands `prepare` and `explore`: make records, and look at them before training.

With --audit-augment `explore` shows what a finished run's augmentations do.
"""

from pathlib import Path
from typing import Any

from medjax import tasks
from medjax.config import Config, read_config
from medjax.tasks import perturb
from medjax.training import folder as workdir


def prepare(config: Config) -> Any:
    """Makes the records of `config.data`, and says what became of the files.

    Raises:
      InputError: the raw files aren't there, or too many can't be read.
    """
    return tasks.of(config).prepare(config)


def explore(config: Config, folder: Path) -> Path:
    """Writes the page of `config.data`, or of scans their fingerprint.

    Returns:
      The path of explore.html, or of fingerprint.json.
    """
    task = tasks.of(config)
    path = task.explore(config, task.prepare(config), folder)
    print(f"explored: {path}")
    return path


def audit_augment(folder: Path) -> Path:
    """Writes augment.html: whether a run's augmentations keep the label.

    Raises:
      InputError: no finished run is there, or it has no findings.
    """
    config = read_config(folder)
    task = tasks.of(config)
    task.refuse("--audit-augment")
    run = task.finished(folder)
    path = perturb.audit(run, task.data(config), workdir.sides(folder))
    print(f"augmentations: {path}")
    return path

"""The command `explore`: what the data look like, and what a run's augmentations do."""

from pathlib import Path

from medjax import tasks
from medjax.config import Config, read_config
from medjax.tasks import perturb
from medjax.training import workdir


def explore(config: Config, folder: Path) -> Path:
    """Writes explore.html of `config.data`, or of scans fingerprint.json."""
    task = tasks.of(config)
    path = task.explore(config, task.prepare(config), folder)
    print(f"explored: {path}")
    return path


def audit_augment(folder: Path) -> Path:
    """Writes augment.html: whether a run's augmentations keep the label."""
    config = read_config(folder)
    task = tasks.of(config)
    task.refuse("--audit-augment")
    run = task.finished(folder)
    path = perturb.audit(run, task.data(config), workdir.sides(folder))
    print(f"augmentations: {path}")
    return path

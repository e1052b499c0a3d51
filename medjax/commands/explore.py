"""The command `explore`: what data look like, and what a run's augmentations do."""

from pathlib import Path

from medjax import tasks
from medjax.config import Config, read_config
from medjax.tasks import perturb
from medjax.training import folder as workdir


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

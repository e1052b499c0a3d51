"""What a run's training films look like, kept with it; predict warns of others."""

import json
from pathlib import Path

import numpy as np

from medjax.data import loader
from medjax.evaluation import novelty
from medjax.tasks import study

NAME = "domain.json"
FILMS = 2000  # Enough for the 0.5th percentile.


class Screen:
    """Looks at files as predict reads them, and keeps what it warns of, by path.

    Args:
      known: domain.reference's; None warns of nothing.
    """

    def __init__(self, known: dict | None):
        self._known = known
        self.warnings: dict[Path, str] = {}

    def look(self, path: Path, pixels: np.ndarray, image: np.ndarray) -> None:
        """For inference.predict_files."""
        if self._known is not None:
            self.warnings[path] = novelty.warning(pixels, image, self._known)

    def verdict(self) -> str:
        """One line for the terminal."""
        if self._known is None:
            return f"note: the run has no {NAME}: it can't tell unlike images"
        count = sum(map(bool, self.warnings.values()))
        return (
            f"warnings: {count} of {len(self.warnings)} images look unlike the training "
            "films (see the column warning)"
        )


def record(folder: Path, data: study.Data, ids: np.ndarray) -> None:
    """Writes domain.json of the training films, once; of volumes there is none.

    Args:
      folder: of the run.
      data: whose films.
      ids: [N] of those that train.
    """
    path = folder / NAME
    if len(data.task.shape) != 3 or path.exists():
        return
    ids = np.unique(ids)
    if len(ids) > FILMS:
        ids = np.sort(np.random.default_rng(0).choice(ids, FILMS, replace=False))
    batches = loader.evaluation_batches(data.films(ids), batch=256, devices=1)
    images = (
        image for batch in batches for image in batch["image"][0][batch["id"][0] >= 0]
    )
    table = data.table.set_index("id").loc[ids]
    known = novelty.reference(images, table["width"] / table["height"])
    path.write_text(json.dumps(known, indent=1))


def screen(folder: Path) -> Screen:
    """A run's Screen; an older run has no domain.json, and warns of nothing."""
    path = folder / NAME
    return Screen(json.loads(path.read_text()) if path.exists() else None)

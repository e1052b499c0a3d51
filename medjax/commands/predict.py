"""The command `predict`: a finished run on new files."""

from pathlib import Path

from medjax import tasks
from medjax.config import read_config


def predict(
    folder: Path,
    *,
    images: list[str],
    out: Path,
    explain: Path | None = None,
    **how: str | None,
) -> list[str]:
    """Writes a run's calibrated probabilities, or its masks, for new files.

    Args:
      images: files or folders.
      out: the CSV of a classification; the folder of a segmentation's NIfTI files.
      explain: folder of a classification's heatmaps, of this method and stage (`how`).

    Returns:
      One line for each file or patient that could not be read.
    """
    task = tasks.of(read_config(folder))
    if explain is not None:
        task.refuse("--explain")
    run = task.finished(folder)
    return task.predict(run, images=images, out=out, explain_in=explain, **how)

"""How augmentations move a trained model -> one self-contained HTML page, and JSON."""

import json
from pathlib import Path

import numpy as np

from medjax.reports.page import fit, middle, png, render

SIDE = 160  # Pixels of a picture in a strip.


def write(audit: dict, strips: dict[str, list[np.ndarray]], folder: Path) -> Path:
    """Writes augment.html and augment.json.

    Args:
      audit: source, split, images, patients, replicates, strengths, the example's name
        and ops: {op: {options, verdict: text, sound: bool, at: [{strength, mean_drop:
        interval, tasks: {task: {moved, flipped, drop: interval}}}]}}.
      strips: {op: [image as it is, and at each strength]}, float [.., C] in [0, 1].
      folder: where to.

    Returns:
      The page's path.
    """
    (folder / "augment.json").write_text(json.dumps(audit, indent=1))
    pictures = {
        op: [png(fit(_bytes(middle(image)), SIDE, enlarge=True)) for image in images]
        for op, images in strips.items()
    }
    path = folder / "augment.html"
    path.write_text(render("augment.html", audit=audit, strips=pictures))
    return path


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)

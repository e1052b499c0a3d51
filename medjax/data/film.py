"""What a film is, and what is refused in every format it comes in."""

from typing import NamedTuple

import numpy as np

from medjax.errors import InputError

MAX_PIXELS = 200_000_000


class Film(NamedTuple):
    """One film or picture as it was stored, at its full size.

    pixels: [H, W] float32 in [0, 1], or [H, W, 3] RGB; in a film white (1) is dense.
    spacing: (x, y), mm a pixel; NaN where the file doesn't say.
    """

    pixels: np.ndarray
    spacing: tuple[float, float]


def check_size(height: int, width: int) -> None:
    """Refuses a film without pixels, or with more than MAX_PIXELS."""
    if height < 1 or width < 1:
        raise spoilt(f"is {width} x {height} pixels")
    if height * width > MAX_PIXELS:
        raise InputError(
            f"is {width} x {height} pixels, more than {MAX_PIXELS // 10**6} "
            "megapixels; shrink it first"
        )


def spoilt(what: str) -> InputError:
    """Makes the error for a file whose content is wrong: only a new copy helps."""
    return InputError(f"{what}; fetch or export the file again")

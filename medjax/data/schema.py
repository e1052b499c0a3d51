"""Names, shapes, dtypes and units of an image's record, of the table and of a batch.

The table (`table.csv` beside the records) is what splitting, weighting and
evaluation read: one row an image, in the order of the records, no pixels.

    id         int     the record's index, 0 to N - 1
    image      str     the image's name in its data set's own table
    patient    int     whom the image shows: the unit of every split and interval
    view       str     'PA', 'AP', 'LATERAL' or '' (unknown)
    sex        str     'F', 'M' or ''
    age        float   years; NaN where unknown
    width, height      int, pixels of the original
    spacing_x, spacing_y  float, mm a pixel of the original; NaN where unknown
    official   str     'train', 'validation' or 'test' where the data set says so,
                       else ''
    follow_up  float   the image's number in the patient's history, 0 first; NaN
                       where unknown
    <task>     float   one column a finding or class: 1 present, 0 absent, NaN
                       unknown (between 0 and 1: a soft label)

A record holds the same and `pixels`, [H, W, C] or [D, H, W, C] uint8; in a film
white is dense.

A batch (host: numpy, device: jax), with D devices of B rows each:

    image      [D, B, H, W, C]  uint8 from the loader, float32 in [0, 1] after it;
                                a volume is [D, B, D', H, W, C]
    label      [D, B, T]        float32, 0 where unknown
    weight     [D, B, T]        float32, >= 0; 0 = unknown label or padding row
    id, patient, epoch, occurrence  [D, B] int32; id is -1 in a padding row

    domain     [D, B] int32, only where target images without labels stand beside the
               source's (config.adapt): 0 source, 1 target; a target image's id is
               -2 minus the record's index

An evaluation batch is the same without the epoch, the occurrence and the domain.

What a film is, and what is refused in every format it comes in.
"""

from typing import NamedTuple

import numpy as np

from medjax.errors import InputError

COLUMNS = (
    "id",
    "image",
    "patient",
    "view",
    "sex",
    "age",
    "width",
    "height",
    "spacing_x",
    "spacing_y",
    "official",
    "follow_up",
)


def tasks_of(table) -> tuple[str, ...]:
    """Returns the names of the findings or classes: what is no metadata."""
    return tuple(name for name in table.columns if name not in COLUMNS)


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

import math

import cv2
import numpy as np
import pytest
from scipy import ndimage

from medjax.reports import classification, pictures

SEEN = {"task": "pleural_thickening", "probability": 0.93, "threshold": 0.41}


def coloured(path):
    """Which pixels of a picture's film under the heatmap have a colour."""
    picture = cv2.imread(str(path)).astype(int)
    colour = np.ptp(picture, axis=-1) > 20
    runs, number = ndimage.label(colour.any(axis=0))
    return colour & (runs < number)  # The last is the colour bar.


def extent(mask):
    """Height and width of what is set."""
    return [np.ptp(np.flatnonzero(mask.any(axis=axis))) + 1 for axis in (1, 0)]


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((90, 60), (math.nan, math.nan)),
        ((60, 90, 3), (0.2, 0.2)),
        ((60, 60), (0.1, 0.15)),
        ((3000, 2000), (math.nan, math.nan)),
    ],
)
def test_a_film_keeps_its_shape(tmp_path, shape, spacing):
    path = tmp_path / "a.png"
    pictures.overlay(
        path, np.full(shape, 0.5), np.ones((4, 4)), spacing=spacing, **SEEN
    )
    high, wide = extent(coloured(path))
    expected = shape[0] / shape[1]
    if not math.isnan(spacing[0]):
        expected *= spacing[1] / spacing[0]
    assert high / wide == pytest.approx(expected, rel=0.02)
    assert max(high, wide) > 300


def test_the_colour_lies_where_the_heatmap_does(tmp_path):
    film = np.full((80, 80), 0.5)
    everywhere, corner = np.ones((4, 4)), np.zeros((4, 4))
    corner[3, 1] = 5.0  # The last of the rows, the second of the columns.
    for name, heatmap in (("all", everywhere), ("corner", corner)):
        pictures.overlay(tmp_path / f"{name}.png", film, heatmap, **SEEN)
    whole, part = (coloured(tmp_path / f"{n}.png") for n in ("all", "corner"))
    rows, columns = np.nonzero(whole)
    y, x = (np.mean(axis) for axis in np.nonzero(part))
    assert (y - rows.min()) / np.ptp(rows) == pytest.approx(3.5 / 4, abs=0.06)
    assert (x - columns.min()) / np.ptp(columns) == pytest.approx(1.5 / 4, abs=0.06)
    assert part.sum() < 0.4 * whole.sum()


def test_a_heatmap_of_zeros_colours_nothing(tmp_path):
    pictures.overlay(tmp_path / "a.png", np.ones((20, 20)), np.zeros((2, 2)), **SEEN)
    assert not coloured(tmp_path / "a.png").any()


@pytest.mark.parametrize(
    ("probability", "threshold", "expected"),
    [
        (0.93, 0.41, "Mass 0.93, above its threshold 0.41"),
        (0.3, 0.41, "Mass 0.30, below its threshold 0.41"),
        (0.41, 0.41, "Mass 0.41, above its threshold 0.41"),
        (0.3, math.nan, "Mass 0.30"),
    ],
)
def test_the_title_says_the_finding_and_how_sure_the_model_is(
    probability, threshold, expected
):
    assert pictures.title("mass", probability, threshold) == expected


def test_the_table_fits_a_terminal_and_says_what_is_undefined(tmp_path, capsys):
    def measure(value):
        interval = {"estimate": value, "low": None, "high": None}
        return {**interval, "chance": 0.125, "others": None, "gain": interval}

    one = {"pairs": 3, "patients": 2, "pointing": measure(0.5), "iou": measure(0.25)}
    found = {
        "method": "grad_cam",
        "stage": "stage4",
        "all": one,
        "tasks": {"pleural_thickening": one},
        "randomisation": {"correlation": {"classifier": 0.9, "stem": None}},
    }
    for depends in (True, False):
        found["randomisation"]["depends"] = depends
        path = classification.write_localisation(found, tmp_path / "localisation.json")
        printed = capsys.readouterr().out
        assert path.exists()
        assert "Pleural thickening" in printed and "0.50" in printed
        assert "0.25" in printed and "0.12" in printed and "stem –" in printed
        assert ("hardly depend" in printed) != depends
        table = [line for line in printed.splitlines() if "│" in line]
        assert max(map(len, table)) <= 80

"""The page of a segmentation says what was measured, and shows where it went wrong."""

import base64
import csv
import json
import re

import cv2
import jax
import numpy as np
import pandas as pd
import pytest
from conftest import Page
from small import RUN

from medjax.evaluation import mask_metrics
from medjax.evaluation.mask_metrics import Post
from medjax.reports import pictures, report, segmentation

SPACING = np.array([4.0, 2.0, 2.0])
SHAPE = (10, 24, 20)
REGIONS = ("whole", "<b>core</b>")
CURVE = [
    {"step": 10, "loss": 0.5},
    {"step": 10, "validation_dice": 0.6, "validation_core": None},
    {"step": 20, "loss": 0.4},
    {"step": 20, "validation_dice": 0.7, "validation_core": 0.1},
]
ABOUT = {
    "split": "test",
    "source": "phantom",
    "model": "unet",
    "steps": 20,
    "checkpoint": 10,
    "tolerance": 1.5,
    "rules_chosen": True,
    "posts": {r: Post(0.4, smallest=30)._asdict() for r in REGIONS},
    "shown": "FLAIR",
    "facts": {"Patch": "8 x 8 x 8 <voxels>"},
    "caveat": "",
}


def case(number):
    """0 is good; 1 misses its core; 2 has no core and none is said; 3 invents one."""
    label, predicted = np.zeros((2, *SHAPE, 2), bool)
    label[3:7, 6:14, 5:12, 0] = predicted[3:7, 7:14, 5 + number : 12, 0] = True
    label[4:6, 8:12, 7:10, 1] = number < 2
    predicted[4:6, 8:12, 7:10, 1] = number in (0, 3)
    image = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
    image[:, :2] = 0  # Outside the brain.
    return segmentation.PicturedVolume(
        f"case {number}", image, label, predicted, SPACING
    )


def results_of(cases, **about):
    rows = []
    for number, one in enumerate(cases):
        for k in range(one.label.shape[-1]):
            both = one.predicted[..., k], one.label[..., k]
            rows.append(
                {"name": one.name, "patient": number, "region": REGIONS[k]}
                | mask_metrics.measure(*both, SPACING, tolerance=1.5)
            )
    found = mask_metrics.summarise(rows, key=jax.random.key(0), replicates=50)
    return {**ABOUT, **found, **about}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    cases = [case(n) for n in range(4)]
    results = results_of(cases)
    folder = tmp_path_factory.mktemp("page")
    shown = (cases[n] for n in (1, 2, 3))
    path = report.write(results, CURVE, folder, "report", pictures=shown, **RUN)
    return results, folder, path.read_text()


def test_the_page_is_well_formed_and_asks_for_no_other_file(written):
    read = Page(written[2])
    assert read.stack == []
    # Three planes of both regions of 1 and 3, and of one of 2; volumes and training.
    pictures = [source for source in read.sources if not source.startswith("#")]
    assert len(pictures) == 3 * 5 and written[2].count("<svg") == 2 * 2 + 2
    assert all(source.startswith("data:image/") for source in pictures)
    assert not re.search(r"https?://|@import|url\(", written[2])


def test_every_picture_says_in_words_what_it_shows(written):
    images = re.findall(r"<img [^>]*>", written[2])
    alts = [re.search(r'alt="([^"]+)"', image).group(1) for image in images]
    assert len(set(alts)) == len(images)
    assert sum("case 3" in alt and "sagittal" in alt for alt in alts) == 2


def test_the_page_shows_the_numbers_and_the_worst_first(written):
    results, _, text = written
    read = Page(text).text
    dice = results["regions"]["whole"]["dice"]
    assert f"{dice['estimate']:.3f}" in read
    assert dice["low"] is None  # Of four patients.
    order = segmentation.worst_first(results)
    assert order[-1] == "case 0"
    means = [
        np.mean([r["dice"] for r in results["rows"] if r["name"] == name])
        for name in order
    ]
    assert means == sorted(means)
    table = read[read.rindex("the worst first") : read.rindex("Pictures of")]
    assert [table.index(name) for name in order] == sorted(map(table.index, order))
    pictured = read[read.rindex("Pictures of") : read.rindex("Agreement of")]
    places = [pictured.index(name) for name in order[:-1]]
    assert places == sorted(places)


def test_the_page_says_what_empty_masks_count_and_how_it_was_made(written):
    read = Page(written[2]).text
    for words in (
        "distances are the image's diagonal",
        "lesion F1 are 1",
        "of 2 patients",  # Sensitivity is undefined in two of four.
        "of 3 patients",  # PPV in one.
        "an IoU of at least 0.1",
        "dilated by 3 mm",
        "The true mask is empty but the prediction is not",
        "within 1.5 mm",
        "No intervals",
        "probability is 0.4 or more. Components smaller than 30 mm³ are removed",
    ):
        assert words in re.sub(" +", " ", read), words


def test_the_page_of_exclusive_regions_names_no_threshold(tmp_path):
    results = results_of([case(0)], exclusive=True)
    path = report.write(results, [], tmp_path, "page", **RUN)
    text = " ".join(Page(path.read_text()).text.split())
    assert "neither another region nor the background is likelier." in text
    assert "its probability is" not in text


@pytest.mark.parametrize("chosen", [True, False])
def test_the_page_says_who_chose_what_becomes_a_mask(tmp_path, chosen):
    results = results_of([case(0)], rules_chosen=chosen)
    text = report.write(results, [], tmp_path, "page", **RUN).read_text()
    assert ("chosen on the validation split and then fixed" in text) is chosen
    assert ("Nothing was chosen on validation" in text) is not chosen


def test_names_cannot_inject_markup(written):
    assert "<b>core</b>" not in written[2] and "<voxels>" not in written[2]
    assert "&lt;b&gt;core&lt;/b&gt;" in written[2]


def test_json_and_csv_hold_the_same_numbers(written):
    results, folder, _ = written
    assert json.loads((folder / "report.json").read_text()) == results
    with (folder / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["rows"]) == 8
    for row, expected in zip(rows, results["rows"], strict=True):
        assert (row["name"], row["region"]) == (expected["name"], expected["region"])
        for metric in mask_metrics.MASK_METRICS:
            value = float(row[metric]) if row[metric] else None
            assert value == expected[metric]


def test_a_new_metric_is_a_row_of_the_table_alone(tmp_path, monkeypatch):
    def ratio(pair):
        return pair.predicted_size / pair.true_size if pair.true_size else np.nan

    row = mask_metrics.MaskMetric("Size ratio", "count", np.nan, ratio)
    monkeypatch.setitem(mask_metrics.MASK_METRICS, "size_ratio", row)
    cases = [case(n) for n in range(4)]
    results = results_of(cases)
    text = report.write(results, CURVE, tmp_path, "report", **RUN).read_text()
    expected = [
        (one.predicted[..., 0] != 0).sum() / (one.label[..., 0] != 0).sum()
        for one in cases
        if np.any(one.label[..., 0])
    ]
    table = pd.read_csv(tmp_path / "report.csv")
    values = table["size_ratio"][table["region"] == REGIONS[0]].dropna()
    np.testing.assert_allclose(values, expected)
    mean = results["regions"][REGIONS[0]]["size_ratio"]["estimate"]
    np.testing.assert_allclose(mean, np.mean(expected))
    assert f"{mean:.2f}" in text and "Size ratio" in text


def test_a_caveat_stands_at_the_top_and_few_patients_have_no_limits(tmp_path):
    cases = [case(n) for n in range(2)]
    results = results_of(cases, caveat="The same people.")
    text = report.write(results, [], tmp_path, "page", **RUN).read_text()
    read = Page(text).text
    assert read.index("The same people.") < read.index("Regions")
    assert "too few volumes for limits" in re.sub(" +", " ", read)
    assert 'id="pictures"' not in text and 'id="training"' not in text
    assert "No intervals" in read


def test_one_region_is_not_averaged(tmp_path):
    one = case(0)
    one = one._replace(label=one.label[..., :1], predicted=one.predicted[..., :1])
    results = results_of([one])
    path = report.write(results, CURVE[:1], tmp_path, "page", pictures=[one], **RUN)
    text = path.read_text()
    assert 'class="mean"' not in text and "of the regions" not in text


def test_the_page_has_the_sections_that_every_report_has(tmp_path):
    value = {"estimate": 0.6, "low": 0.5, "high": 0.7, "why": ""}
    gap = {"estimate": 0.2, "low": -0.1, "high": 0.5, "between": ["F", "M"]}
    dice = dict.fromkeys(("mean", *REGIONS), value)
    group = {"volumes": 4, "patients": 4, "dice": dice}
    groups = {"groups": {"F": group, "M": group}, "gap": gap}
    side = {"films": 11, "patients": 7, "tasks": {}, "sex": {"F": 3, "M": 4}}
    results = results_of(
        [case(n) for n in range(2)],
        split_by="patient",
        groups={"sex": groups},
        cohort={"sides": {"train": side, "test": side}, "shared": 0},
    )
    text = report.write(results, CURVE, tmp_path, "page", **RUN).read_text()
    assert Page(text).stack == []
    for name in ("groups", "training", "split", "card", "settings"):
        assert f'<a href="#{name}">' in text and f'<section id="{name}"' in text
    read = Page(text).text
    for words in (
        "the mean Dice is 0.200 (-0.100 to 0.500): F over M.",
        "A difference of up to 0.500 is not ruled out.",
        "Train 11 volumes, 7 patients",
        "No patient is on two sides.",
        "Loss: weighted_bce; optimiser: adamw; imbalance: balanced; seed: 0.",
        "11 volumes of 7 patients",
        "There are only 2 patients",
        "Subgroups were evaluated by sex.",
        "config.loss.name weighted_bce",
        "python 3.11.9",
    ):
        assert words in read, words
    assert json.loads((tmp_path / "page.json").read_text()) == results


def colours(url):
    code = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def pixels(picture, colour):
    return (picture == colour).all(axis=-1)


def test_the_three_planes_go_through_the_largest_component_and_up_is_up():
    image = np.full(SHAPE, 0.5, np.float32)
    image[0], image[-1] = 1, 2  # Feet and head; the head is brighter.
    label, predicted = np.zeros((2, *SHAPE, 1), bool)
    label[2, 3, 16:19] = True  # Small, and elsewhere.
    label[6:9, 4:8, 3:6] = True
    results = {"regions": {"a": {}}, "rows": [{"name": "n", "region": "a"}]}
    one = segmentation.PicturedVolume("n", image, label, predicted, SPACING)
    (found,) = segmentation.planes(one, results)
    axial, coronal, sagittal = found["planes"]
    assert [p["slice"] - 1 for p in found["planes"]] == [6, 4, 3]
    assert [p["of"] for p in found["planes"]] == list(SHAPE)
    for plane in (coronal, sagittal):
        picture = colours(plane["picture"])
        assert picture[0].mean() > picture[-1].mean()
    # The whole volume is smaller than the field: 48 mm are 400 pixels.
    drawn = colours(axial["picture"])
    assert drawn.shape == (400, round(400 * 40 / 48), 3)
    rows, columns = np.nonzero(pixels(drawn, pictures.TRUE))
    step = 400 / 24  # Pixels a voxel.
    assert abs(rows.min() - 4 * step) < 2 and abs(rows.max() - 8 * step) < 2
    assert abs(columns.min() - 3 * step) < 2 and abs(columns.max() - 6 * step) < 2


def test_contours_are_of_the_truth_the_prediction_or_both():
    grey, true, said = np.full((20, 20), 0.5), *np.zeros((2, 20, 20), bool)
    true[4:12, 4:12] = said[4:12, 8:16] = True
    drawn = pictures.draw(pictures.Plane(grey[..., None], (true, said)), 10)
    left = pixels(drawn[:, :75], pictures.TRUE)
    right = pixels(drawn[:, 125:], pictures.PREDICTED)
    assert left.any() and right.any()
    assert not pixels(drawn[:, 125:], pictures.TRUE).any()
    assert not pixels(drawn[:, :75], pictures.PREDICTED).any()
    both = np.argwhere(pixels(drawn, pictures.BOTH))
    assert (both[:, 1] >= 80).all() and (both[:, 1] < 120).all()
    assert {40, 41, 118, 119} <= set(both[:, 0])


def test_a_small_lesion_is_shown_large_and_the_field_stays_inside():
    mask = np.zeros((30, 100, 100), bool)
    mask[1:3, 50:54, 97:99] = True
    _, box = segmentation._about(mask, np.array([5.0, 2.0, 2.0]))
    assert box[0].start == 0 and box[2].stop == 100
    extent = [(a.stop - a.start) * s for a, s in zip(box, (5, 2, 2), strict=True)]
    assert extent[1] == segmentation.FIELD
    for cut, where in zip(box, np.nonzero(mask), strict=True):
        assert cut.start <= where.min() and where.max() < cut.stop

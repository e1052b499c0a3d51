"""Two folders of runs, compared or refused."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import Page
from launching import run_here
from scipy import stats

from configs import quickstart, quickstart_mri
from medjax.cohort import duplicates
from medjax.commands import evaluate
from medjax.config import config_as_json
from medjax.errors import InputError
from medjax.evaluation.inference import Predictions
from medjax.reports import page
from medjax.training import workdir

NAMES = ("Mass", "Pleural_Thickening", "<b>odd</b>")
CONFIG = config_as_json(quickstart.get_config()) | {"seed": 3}
CONFIG["evaluation"]["replicates"] = 60


def films(gain, *, films=80):
    """What a model of that gain says of the same films; the last finding is rare."""
    rng = np.random.default_rng(0)
    label = (rng.random((films, 3)) < [0.4, 0.3, 0]).astype(np.float32)
    weight = (rng.random((films, 3)) < 0.9).astype(np.float32)
    score = rng.random((films, 3)) + gain * label
    score += 0.3 * np.random.default_rng(round(100 * gain)).random((films, 3))
    return Predictions(
        np.arange(films), np.arange(films) // 2, score.astype(np.float32), label, weight
    )


def write(folder, found, *, names=NAMES, config=CONFIG, split="test", images=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "task.json").write_text(json.dumps({"names": names, "exclusive": False}))
    images = images or [f"film {n}.png" for n in range(len(found.id))]
    path = folder / f"predictions/{split}.csv"
    patient = found.patient[np.argsort(found.id)]
    table = pd.DataFrame({"image": images, "patient": patient})
    cut = np.full(len(names), 0.5)
    workdir.write_predictions(path, names, table, found, threshold=cut)
    return folder


@pytest.fixture
def pair(tmp_path):
    return write(tmp_path / "a", films(0.8)), write(tmp_path / "b", films(0.1))


def test_the_numbers_are_those_of_the_two_files(pair):
    page = evaluate.compare(*pair)
    assert page == pair[0] / "against.html"
    found = json.loads((pair[0] / "against.json").read_text())
    for task in NAMES[:2]:
        gap = found["tasks"][task]["metrics"]["auroc"]["difference"]
        student = stats.t(1 / (1 / 39 + 1 / 59))  # Of patients and of replicates.
        assert (gap["high"] - gap["low"]) / 2 == pytest.approx(
            student.ppf(0.975) * gap["patients"]
        )
        p = 2 * student.sf(abs(gap["estimate"]) / gap["patients"])
        assert found["tasks"][task]["p"] == pytest.approx(p, rel=1e-6)
    assert found["tasks"]["Mass"]["p"] < found["tasks"]["Mass"]["holm"] < 0.05
    assert found["films"] == 80 and found["patients"] == 40
    assert [r["folder"] for r in found["runs"]] == [str(folder) for folder in pair]
    auroc = found["tasks"]["Mass"]["metrics"]["auroc"]
    assert auroc["one"] > auroc["other"]
    estimate = auroc["one"] - auroc["other"]
    assert auroc["difference"]["estimate"] == pytest.approx(estimate, abs=1e-6)


def test_the_order_of_images_and_of_findings_does_not_matter(pair):
    evaluate.compare(*pair)
    first = (pair[0] / "against.json").read_text()
    found, images = films(0.1), [f"film {n}.png" for n in range(80)]
    turn = np.random.default_rng(1).permutation(80)
    mixed = Predictions(
        *(x[turn] for x in found[:2]), *(x[turn][:, ::-1] for x in found[2:5])
    )
    write(pair[1], mixed, names=NAMES[::-1], images=images)
    evaluate.compare(*pair)
    assert (pair[0] / "against.json").read_text() == first


def test_the_page_is_whole_and_says_what_is_better(pair):
    text = evaluate.compare(*pair).read_text()
    read = Page(text)
    assert read.stack == [] and all(s.startswith("#") for s in read.sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "<b>odd</b>" not in text
    assert "A has the higher mean AUROC: A − B is +" in read.text
    assert "A has the higher AUROC for Mass" in read.text
    assert "no positive image" in read.text
    found = json.loads((pair[0] / "against.json").read_text())
    difference = found["tasks"]["Mass"]["metrics"]["average_precision"]["difference"]
    assert f"{difference['estimate']:+.3f}" in read.text
    assert f"{difference['low']:+.3f} to {difference['high']:+.3f}" in read.text
    assert page.p_value(found["tasks"]["Mass"]["holm"]) in read.text


def test_a_run_against_itself_shows_nothing(pair):
    text = Page(evaluate.compare(pair[0], pair[0]).read_text()).text
    assert "The mean AUROC may be the same: A − B is +0.000 (" in text
    assert "a difference of the AUROC is not ruled out for any of them" in text


def test_without_a_test_the_page_says_so(pair):
    for folder, gain in zip(pair, (0.8, 0.1), strict=True):
        found = films(gain)
        write(folder, found._replace(label=0 * found.label))
    text = Page(evaluate.compare(*pair).read_text()).text
    assert "The mean AUROC could not be tested." in text
    assert "No finding could be tested." in text


def rewrite(folder, found, raw):
    """The same run, whose probabilities are now calibrated into four values."""
    tied = np.floor(2 * found.probability) / 2
    path = folder / "predictions/test.csv"
    images = [f"film {n}.png" for n in range(len(found.id))]
    table = pd.DataFrame({"image": images, "patient": found.patient})
    found = found._replace(probability=tied)
    workdir.write_predictions(path, NAMES, table, found, raw, np.full(3, 0.5))
    config = json.loads((folder / "config.json").read_text())
    config["evaluation"]["calibration"] = "isotonic"
    (folder / "config.json").write_text(json.dumps(config))


def test_ties_of_a_calibration_change_no_difference_and_no_p(pair):
    evaluate.compare(*pair)
    before = json.loads((pair[0] / "against.json").read_text())
    said = films(0.1)
    rewrite(pair[1], said._replace(log_odds=said.probability), said.probability)
    evaluate.compare(*pair)
    assert json.loads((pair[0] / "against.json").read_text()) == before


def test_images_that_the_run_has_seen_are_said(pair):
    for split, word in (("train", "trained on these"), ("validation", "chosen")):
        for folder, gain in zip(pair, (0.8, 0.1), strict=True):
            write(folder, films(gain), split=split)
        text = Page(evaluate.compare(*pair, split=split).read_text()).text
        assert "too good" in text and word in text
    assert "too good" not in Page(evaluate.compare(*pair).read_text()).text


def test_the_page_s_tables_are_for_everyone(pair):
    text = evaluate.compare(*pair).read_text()
    assert len(re.findall(r"<th[ >]", text)) == len(re.findall(r"<th scope=", text))
    for table in re.findall(r'<div class="wide"[^>]*>', text):
        assert 'tabindex="0" role="region" aria-label="' in table
    assert 'class="wide"' in text


def test_other_splits_are_compared_too(pair):
    with pytest.raises(InputError, match=r"strangers\.csv: not there: evaluate"):
        evaluate.compare(*pair, split="strangers")
    write(pair[0], films(0.8, films=30), split="strangers")
    write(pair[1], films(0.1, films=30), split="strangers")
    evaluate.compare(*pair, split="strangers")
    found = json.loads((pair[0] / "against.json").read_text())
    assert (found["split"], found["films"]) == ("strangers", 30)
    report = pair[1] / "report-strangers.json"
    report.write_text(json.dumps({"overlap": {"images": 12}}))
    own = pair[0] / "report-strangers.json"
    own.write_text(json.dumps({"source": "chexpert"}))
    page = evaluate.compare(*pair, split="strangers").read_text()
    assert "12 of these images were seen by" in page and "chexpert ·" in page
    report.unlink()
    own.unlink()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t[3:], r"b: its predictions lack 3 .* film 0\.png"),
        (
            lambda t: t.drop(columns="Mass_call"),
            r"test\.csv: has no Mass_call: evaluate",
        ),
        (
            lambda t: pd.concat([t, t[:1].assign(image="new.png")]),
            r"a: its predictions lack 1 .* new\.png",
        ),
        (lambda t: pd.concat([t, t[5:6]]), r"film 5\.png occurs twice"),
        (
            lambda t: t.assign(patient=t["patient"] + (t["image"] == "film 4.png")),
            r"b: the patient of 1 images is another.*film 4\.png: 3, and 2 in .*a",
        ),
        (
            lambda t: t.assign(Mass_label=1 - t["Mass_label"]),
            r"b: the Mass label of \d+ images",
        ),
        (
            lambda t: t.assign(Mass_label=np.nan),
            r"b: the Mass label .* unknown, and [01] in .*a: compare",
        ),
    ],
)
def test_runs_of_other_films_or_labels_are_refused_by_name(pair, change, words):
    path = pair[1] / "predictions/test.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(InputError, match=words):
        evaluate.compare(*pair)
    assert not (pair[0] / "against.html").exists()


def test_other_pictures_of_the_same_names_are_refused(pair, capsys):
    for folder, pictures in zip(pair, "ab"):
        (folder / "report.json").write_text(json.dumps({"pictures": pictures}))
    with pytest.raises(InputError, match=r"b: was tested on other pictures .*/a"):
        evaluate.compare(*pair)
    config = CONFIG | {"data": CONFIG["data"] | {"side": 32}}
    write(pair[1], films(0.1), config=config)
    evaluate.compare(*pair)  # Prepared otherwise: the digests say nothing.
    assert "note: The runs differ in data.side: " in capsys.readouterr().out
    assert "The runs differ in data.side: " in (pair[0] / "against.html").read_text()
    (pair[1] / "report.json").write_text(json.dumps({"pictures": "a"}))
    write(pair[1], films(0.1))
    evaluate.compare(*pair)
    assert "note" not in capsys.readouterr().out
    assert "The runs differ" not in (pair[0] / "against.html").read_text()


def test_a_digest_of_pictures_is_of_what_they_show(tmp_path):
    def digest(name, pixels, rows):
        folder = tmp_path / name
        folder.mkdir()
        pixels = [np.asarray(image, np.uint8) for image in pixels]
        np.save(folder / "hashes.npy", [duplicates.hashes(image) for image in pixels])
        return workdir.of_pictures(folder, rows)

    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, 256, (3, 64, 64))
    rows = pd.DataFrame({"id": [0, 1], "image": ["a", "b"]})
    same = digest("one", [a, b], rows)
    others = pd.DataFrame({"id": [2, 0], "image": ["a", "b"]})
    assert digest("other ids", [b, c, a], others) == same
    assert digest("other order", [b, c, a], others[::-1]) == same
    assert digest("another picture", [a, c], rows) != same
    assert digest("changed about", [b, a], rows) != same


def test_other_findings_and_masks_are_refused(pair):
    write(pair[1], films(0.1), names=("Mass", "Nodule", "<b>odd</b>"))
    with pytest.raises(InputError, match="Nodule, Pleural_Thickening"):
        evaluate.compare(*pair)
    write(pair[1], films(0.1), config=config_as_json(quickstart_mri.get_config()))
    with pytest.raises(InputError, match="of the same task"):
        evaluate.compare(*pair)


def test_the_command_refuses_in_one_line(pair):
    write(pair[1], films(0.1, films=70))
    _, err = run_here(
        "evaluate", f"--workdir={pair[0]}", f"--against={pair[1]}", code=2
    )
    assert err.count("\n") == 1 and "lack 10 of the images" in err
    _, err = run_here(
        *("evaluate", f"--workdir={pair[0]}", f"--against={pair[1]}", "--localise"),
        code=2,
    )
    assert err.count("\n") == 1 and "--against: goes with" in err


def write_masks(folder, shift):
    """A run of masks whose Dice of 24 volumes of 12 patients is moved by so much."""
    rng = np.random.default_rng(0)
    rows = []
    for volume in range(24):
        for region in ("whole", "core"):
            noise = 0.02 * np.random.default_rng(volume + 100 * (shift > 0)).normal()
            row = {"name": f"v{volume:02d}", "patient": volume // 2, "region": region}
            row["true_ml"] = float(volume + 1)
            row["dice"] = 0.7 + 0.1 * rng.normal() + noise + shift
            rows.append(row | {"nsd": 0.5, "lesion_f1": None})
    folder.mkdir()
    config = config_as_json(quickstart_mri.get_config())
    (folder / "config.json").write_text(json.dumps(config))
    task = {"sequences": ["T1"], "regions": {"whole": [1], "core": [2]}}
    (folder / "task.json").write_text(json.dumps(task | {"spacing": [1, 1, 1]}))
    (folder / "report.json").write_text(json.dumps({"rows": rows}))
    return pd.DataFrame(rows)


def test_masks_are_compared_by_the_mean_dice_of_the_same_volumes(tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    one, other = map(write_masks, folders, (0.1, 0.0))
    page = evaluate.compare(*folders)
    found = json.loads((folders[0] / "against.json").read_text())
    apart = one["dice"] - other["dice"]
    core = found["tasks"]["core"]["metrics"]["dice"]
    rows = one["region"] == "core"
    assert core["one"] == pytest.approx(one["dice"][rows].mean(), abs=1e-6)
    assert core["difference"]["estimate"] == pytest.approx(apart[rows].mean(), abs=1e-6)
    mean = found["mean"]["dice"]["difference"]
    assert mean["estimate"] == pytest.approx(apart.mean(), abs=1e-6)
    by_patient = apart.groupby(one["patient"]).mean()
    error = by_patient.std(ddof=1) / np.sqrt(len(by_patient))
    assert mean["patients"] == pytest.approx(error, rel=0.25)  # By a small bootstrap.
    assert mean["low"] < apart.mean() < mean["high"] and mean["low"] > 0
    assert found["tasks"]["core"]["holm"] < 0.05
    assert "Dice" in Page(page.read_text()).text


def test_masks_of_another_truth_are_refused(tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        write_masks(folder, 0.0)
    report = json.loads((folders[1] / "report.json").read_text())
    report["rows"][3]["true_ml"] = 99.0
    (folders[1] / "report.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="core volume of 1 images is another.*v01"):
        evaluate.compare(*folders)

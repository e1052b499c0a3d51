import csv
import json
import re

import jax
import numpy as np
import pytest
from conftest import Page
from small import RUN

from medjax.evaluation import results
from medjax.evaluation.inference import Predictions
from medjax.reports import classification, page, report

CURVE = [
    {"step": 10, "loss": 0.5, "grad_norm": 1.0},
    {"step": 10, "validation_auroc": 0.6, "validation_average_precision": None},
    {"step": 20, "loss": 0.4, "grad_norm": 1.0},
    {"step": 20, "validation_auroc": 0.7, "validation_average_precision": 0.3},
]
TASKS = ("Pleural_Thickening", "<b>mass</b>")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rng = np.random.default_rng(0)
    label = np.stack([rng.random(60) < 0.4, np.zeros(60)], 1).astype(np.float32)
    score = (0.4 * label + 0.6 * rng.random((60, 2))).astype(np.float32)
    found = Predictions(np.arange(60), np.arange(60) // 2, score, label, 0 * label + 1)
    summary = results.summarise(
        found,
        tasks=TASKS,
        exclusive=False,
        threshold=np.array([0.5, np.nan], np.float32),
        key=jax.random.key(0),
        replicates=50,
    )
    about = {"split": "test", "source": "phantom", "model": "m", "split_by": "image"}
    about |= {"checkpoint": 20, "steps": 20}
    folder = tmp_path_factory.mktemp("page")
    for _ in range(2):  # The second page has nothing of the first.
        path = report.write({**about, **summary}, CURVE, folder, "report", **RUN)
    return summary, folder, path.read_text()


def test_the_page_is_well_formed_and_asks_for_no_other_file(written):
    read = Page(written[2])
    assert read.stack == []
    # Of the one task with both classes two curves; reliability; training.
    assert written[2].count("<svg") == 2 + 2 + 2
    anchors = [source[1:] for source in read.sources if source.startswith("#")]
    assert len(anchors) == len(read.sources) > 5
    listed = re.findall(r'<li><a href="#(.+?)"', written[2].split("</nav>")[0])
    assert len(listed) == len(set(listed)) > 2
    assert all(written[2].count(f'id="{anchor}"') == 1 for anchor in anchors)
    assert not re.search(r"https?://|@import|url\(", written[2])


def test_the_page_shows_the_numbers_and_why_some_are_missing(written):
    summary, _, text = written
    read = re.sub(r"\s+", " ", Page(text).text)
    auroc = summary["tasks"]["Pleural_Thickening"]["metrics"]["auroc"]
    assert f"{auroc['estimate']:.3f}" in read
    assert f"{auroc['low']:.3f}–{auroc['high']:.3f}" in read
    assert "no positive image" in read
    assert "Pleural Thickening" in read
    assert "both sides" in read  # The leaky split is said.
    assert "no threshold" in read  # Each empty cell says why,
    assert "(Youden's index)" in read  # and the page how thresholds were chosen.
    assert "LR+" in read and "Micro average" in read


@pytest.mark.parametrize("split", ["test", "train", "validation"])
def test_a_split_that_the_run_has_seen_is_said_in_red(written, tmp_path, split):
    found = json.loads((written[1] / "report.json").read_text())
    found |= {"split": split, "split_by": "patient"}
    text = report.write(found, CURVE, tmp_path, "report", **RUN).read_text()
    verdicts = re.findall(r'<p class="verdict bad">(.*?)</p>', text)
    assert [v for v in verdicts if "too good" in v] == (
        [] if split == "test" else verdicts
    )
    assert len(verdicts) == (split != "test")


def test_every_number_without_an_interval_says_why(written, tmp_path):
    found = json.loads((written[1] / "report.json").read_text())
    ends = {"estimate": 0.731, "low": None, "high": None}
    for n, name in enumerate(("auroc", "average_precision")):
        found["mean"][name] |= ends | {"why": f"reason {n}"}
    found["tasks"]["Pleural_Thickening"]["metrics"]["ppv"] |= ends | {"why": "reason 2"}
    value = {"estimate": 0.8, "low": 0.7, "high": 0.9, "undefined": 0, "why": ""}
    row = {"severity": 1, "value": 1.0, "auroc": value, "tasks": {}}
    row |= {"drop": value | ends | {"why": "reason 3"}}
    row |= {"agreement": value | ends | {"estimate": None, "why": "reason 4"}}
    found["robustness"] = {"films": 30, "patients": 15, "clean": {"auroc": value}}
    found["robustness"]["corruptions"] = {
        "blur": {"parameter": "pixels", "severities": [row]}
    }
    found["robustness"]["mean"] = [row]
    text = report.write(found, CURVE, tmp_path, "report", **RUN).read_text()
    headline = text[
        text.index('<div class="headline">') : text.index("The numbers in brackets")
    ]
    assert "reason 0" in headline and "reason 1" in headline
    for n in range(5):  # Once below each table, however many cells have it.
        assert text.count(f"<li>reason {n}</li>") == 1, n
    confusion = text[text.index('id="confusion"') :]
    notes = re.search(r'<ol class="notes">(.*?)</ol>', confusion, re.DOTALL).group(1)
    reasons = re.findall("<li>(.*?)</li>", notes)
    assert len(set(reasons)) == len(reasons)
    row = re.search(r"mass&lt;/b&gt;</th>(.*?)</tr>", confusion, re.DOTALL).group(1)
    numbers = [int(n) - 1 for n in re.findall(r"–<sup>(\d+)</sup>", row)]
    assert len(numbers) >= 5
    assert {reasons[n] for n in numbers} & {"no threshold", "no positive image"}


def test_a_finding_cannot_inject_markup(written):
    assert "<b>mass</b>" not in written[2]
    assert "&lt;b&gt;mass&lt;/b&gt;" in written[2]


def test_json_and_csv_hold_the_same_numbers(written):
    summary, folder, _ = written
    read = json.loads((folder / "report.json").read_text())
    assert read["tasks"] == summary["tasks"]
    with (folder / "report.csv").open() as file:
        rows = {row["task"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*TASKS, "mean", "weighted", "micro"]
    for task, one in summary["tasks"].items():
        assert float(rows[task]["positives"]) == one["positives"]
        for name, interval in one["metrics"].items():
            for end, column in (("estimate", ""), ("low", "_low"), ("high", "_high")):
                cell = rows[task][name + column]
                assert (float(cell) if cell else None) == interval[end]
    for kind in ("mean", "weighted", "micro"):
        assert float(rows[kind]["auroc"]) == summary[kind]["auroc"]["estimate"]


@pytest.mark.parametrize(
    ("module", "cut"),
    [(classification, "write_csv"), (page, "render"), (report.charts, "training")],
)
def test_a_report_that_was_cut_off_does_not_count_as_one(
    written, tmp_path, monkeypatch, module, cut
):
    about = json.loads((written[1] / "report.json").read_text())

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, cut, killed)
    with pytest.raises(KeyboardInterrupt):
        report.write(about, CURVE, tmp_path, "report", **RUN)
    assert not (tmp_path / "report.json").exists()
    assert {f.suffix for f in written[1].iterdir()} == {".json", ".csv", ".html"}


def test_a_run_without_a_curve_has_a_page_too(written, tmp_path):
    about = json.loads((written[1] / "report.json").read_text())
    text = report.write(about, [], tmp_path, "report", **RUN).read_text()
    assert 'id="training"' not in text


def test_classes_are_shown_with_who_is_taken_for_whom(tmp_path, capsys):
    rng = np.random.default_rng(0)
    label = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 90)]
    score = rng.random((90, 3)).astype(np.float32)
    found = Predictions(np.arange(90), np.arange(90), score, label, 0 * label + 1)
    summary = results.summarise(
        found,
        tasks=("mole", "wart", "scar"),
        exclusive=True,
        threshold=np.full(3, 0.5, np.float32),
        key=jax.random.key(0),
        replicates=50,
    )
    about = {"split": "test", "source": "table", "model": "m", "split_by": "patient"}
    about |= {"checkpoint": 20, "steps": 20}
    path = report.write({**about, **summary}, CURVE, tmp_path, "report", **RUN)
    html = path.read_text()
    text = " ".join(Page(html).text.split())
    for row in summary["classes"]["matrix"]:
        cells = [rf"<td[^>]*>{n:.0f}</td>\s*" for n in [*row, sum(row)]]
        assert re.search("".join(cells), html)
    accuracy = (score.argmax(1) == label.argmax(1)).mean()
    assert f"Accuracy {accuracy:.3f}" in text
    report.show(summary)
    assert f"Accuracy {accuracy:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.981, 0.99996, "0.981–>0.999"),
        (0.692, 1.0, "0.692–1"),  # The exact end of a share, which isn't rounded.
        (0.0002, 0.1, "<0.001–0.100"),
        (0.0, 0.1, "0–0.100"),
        (0.9993, 0.9994, "0.999–0.999"),
        (-0.0002, 0.1, "-0.000 to 0.100"),
        (1.2, 3.4, "1.200–3.400"),
    ],
)
def test_rounding_makes_no_end_of_an_interval_0_or_1(low, high, text):
    assert page.ends({"low": low, "high": high}) == text


def test_choices_on_few_validation_images_are_warned_of(written, tmp_path):
    found = json.loads((written[1] / "report.json").read_text())
    for number, task in zip((29.0, None), found["tasks"].values()):
        task["validation_positives"] = number
    text = report.write(found, CURVE, tmp_path, "report", **RUN).read_text()
    warning = "chosen with fewer than 30 positive images in validation"
    assert text.count(warning) >= 1
    first = Page(text).text
    first = first[first.index(warning) :][:120]
    names = [page.label(task) for task in found["tasks"]]
    assert f"{names[0]} 29." in first and names[1] not in first


def test_ends_of_thousands_are_printed_with_their_commas():
    likelihood_ratio = {"low": 2.5, "high": 2804.707}
    assert page.ends(likelihood_ratio) == "2.500–2,804.707"
    assert page.ends({"low": 0.0001, "high": 0.99999}) == "<0.001–>0.999"

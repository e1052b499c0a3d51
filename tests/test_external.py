"""Other data are external only if the run has seen no patient and no picture of them."""

import importlib
import json

import numpy as np
import pandas as pd
import pytest
import test_segmentation_page as masks
from conftest import Page
from scipy import stats
from small import RUN

from medjax.cohort import manifests
from medjax.config import config_as_json
from medjax.errors import InputError
from medjax.reports import report
from medjax.tasks import classification, external, segmentation
from medjax.tasks.external import Claim

FILMS = {"patients": 12, "side": 64, "seed": 3}
VOLUMES = {"patients": 8, "seed": 3, "shape": (16, 20, 16), "spacing": (10.0,) * 3}


@pytest.fixture(
    scope="module", params=["films", pytest.param("volumes", marks=pytest.mark.slow)]
)
def opened(request, tmp_path_factory):
    """(first patient) -> phantoms, and their split."""
    task, name, fields = {
        "films": (classification.TASK, "quickstart", FILMS),
        "volumes": (segmentation.TASK, "quickstart_mri", VOLUMES),
    }[request.param]
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.update(records=str(tmp_path_factory.mktemp("records")), **fields)

    def read(first=0):
        config.data.first_patient = first
        data = task.data(config)
        return data, task.split(config, data)

    return read


def audited(opened, others, folder, claim=external.CLAIMS["refuse"]):
    runs = [external.SeenImages(folder, *opened())]
    judged = others.table.assign(split="abroad")
    return external.audit(runs, others, judged, claim, folder / "overlap-abroad.csv")


def used_and_tested(opened):
    """The images of the run that train or validate, and those that test."""
    data, manifest = opened()
    table = data.table.set_index("id")
    tested = manifest["id"][manifest["split"] == "test"]
    used = manifest["id"][manifest["split"].isin(("train", "validation"))]
    return table.loc[used], table.loc[tested]


def renamed(data):
    """The same pictures of people with other ids."""
    names = [f"person {n}" for n in range(data.table["patient"].nunique())]
    codes = pd.factorize(data.table["patient"])[0]
    return data._replace(table=data.table.assign(patient=np.array(names)[codes]))


def test_a_run_s_own_images_are_refused_in_one_line_and_listed(opened, tmp_path):
    used, _ = used_and_tested(opened)
    with pytest.raises(InputError) as error:
        audited(opened, opened()[0], tmp_path)
    message = str(error.value)
    total = len(opened()[0].table)
    assert f"{len(used)} of {total} images were seen in training or vali" in message
    assert f"({used['patient'].nunique()} patient ids, {len(used)} pictures)" in message
    for words in ("--other-hospital", "--allow-overlap", f"{tmp_path}/overlap-abroad"):
        assert words in message
    assert "\n" not in message
    listed = pd.read_csv(tmp_path / "overlap-abroad.csv")
    assert sorted(listed["image"]) == sorted(used["image"])


def test_pictures_are_told_whoever_they_are_of(opened, tmp_path):
    used, _ = used_and_tested(opened)
    for claim in (external.Claim(), Claim(other_hospital=True)):
        with pytest.raises(
            InputError, match=rf"\(0 patient ids, {len(used)} pict"
        ) as e:
            audited(opened, renamed(opened()[0]), tmp_path, claim)
        assert "--other-hospital" not in str(e.value)
        assert f"{used['image'].iloc[0]} (" in str(e.value) or "=" in str(e.value)


def test_equal_ids_are_the_same_people_but_of_another_hospital(opened, tmp_path):
    others, _ = opened(500)
    assert audited(opened, others, tmp_path)["images"] == 0
    used, tested = used_and_tested(opened)
    # In another spelling, and of one image that only tests.
    ids = [f"00{used['patient'].iloc[0]}", str(tested["patient"].iloc[0])]
    ids += [f"x{n}" for n in range(len(others.table) - 2)]
    others = others._replace(table=others.table.assign(patient=ids))
    with pytest.raises(InputError, match=r"1 of \d+ images .*1 patient ids, 0 pict"):
        audited(opened, others, tmp_path)
    found = audited(opened, others, tmp_path, Claim(other_hospital=True))
    assert found["images"] == found["tested"] == 0 and found["other_hospital"]


def test_what_is_allowed_is_counted_and_said(opened, tmp_path, capsys):
    used, _ = used_and_tested(opened)
    claim = Claim(allow_overlap=True)
    found = audited(opened, opened()[0], tmp_path, claim)
    assert found["images"] == found["pictures"] == len(used)
    assert found["patients"] == used["patient"].nunique()
    assert f"warning: {len(used)} of" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture
def begun(opened, tmp_path):
    """(change of the first run's splits, transfer.overlap) -> the audit of the second's
    test, whose weights are of a third run with the first one's weights."""
    data, manifest = opened()

    def audit(splits, overlap="refuse", read=lambda config: data):
        config = importlib.import_module("configs.quickstart").get_config()
        for name in ("first", "third"):
            (tmp_path / name).mkdir()
            text = json.dumps(config_as_json(config))
            (tmp_path / name / "config.json").write_text(text)
            split = manifest["split"].replace(splits if name == "first" else {})
            manifests.write(
                manifest.assign(split=split), tmp_path / name / "splits.csv"
            )
            config.transfer.init = str(tmp_path / name)
        config.transfer.overlap = overlap
        return external.audit_test(config, read, data, manifest)

    return audit


SWAPPED = {"test": "train", "train": "test"}


def test_a_run_that_begins_with_weights_of_the_same_split_is_fine(begun, opened):
    _, tested = used_and_tested(opened)
    found = begun({})
    assert found["images"] == 0 and found["tested"] == len(tested)


def test_a_test_that_the_first_weights_were_trained_on_is_refused(begun, opened):
    """Also where two runs are between, and where that run's data are gone."""
    _, tested = used_and_tested(opened)
    n = len(tested)
    with pytest.raises(InputError, match=rf"{n} of {n} images .*first .*'allow'"):
        begun(SWAPPED)


def test_patients_are_compared_where_the_data_of_the_first_run_are_gone(
    begun, opened, capsys
):
    def gone(config):
        raise InputError("data.folder: nothing there")

    _, tested = used_and_tested(opened)
    with pytest.raises(
        InputError, match=rf"{tested['patient'].nunique()} .*ids, 0 pic"
    ):
        begun(SWAPPED, read=gone)
    assert "note: only patient ids" in capsys.readouterr().out


@pytest.mark.parametrize(("overlap", "patients"), [("allow", True), ("other", False)])
def test_an_overlap_with_the_first_run_s_training_is_allowed_or_disputed(
    begun, opened, overlap, patients
):
    _, tested = used_and_tested(opened)
    if overlap == "other":  # Equal ids of other people; the pictures are equal too.
        with pytest.raises(InputError, match=rf"0 patient ids, {len(tested)} pictures"):
            begun(SWAPPED, "other_hospital")
        return
    found = begun(SWAPPED, "allow")
    assert found["images"] == found["pictures"] == len(tested)
    assert found["patients"] == tested["patient"].nunique()
    assert found["run"].endswith("first")


def test_unused_images_and_those_of_the_test_were_not_seen():
    table = pd.DataFrame({"id": range(4), "image": list("abcd"), "patient": range(4)})
    manifest = table.assign(split=["train", "validation", "test", "unused"])
    copies = pd.DataFrame({"id": [1], "other": [3]})
    found = manifests.overlap(table, manifest, copies, other_hospital=False)
    assert found["ids"] == [0, 1, 3] and found["patients"] == ["0", "1"]
    assert found["tested"] == 1  # c, which is in the run's own test.
    assert found["pictures"] == 1 and "d = b (validation)" in found["examples"]


# ------------------------------------------------------------ beside the internal test


def value(estimate, width):
    ends = {"low": estimate - width, "high": estimate + width}
    return {"estimate": estimate, **ends, "why": ""}


def result(area, prevalence, **changes):
    """A report of findings of this AUROC and prevalence, each +- 0.03 and 0.04."""
    side = dict.fromkeys(external.PROBABILITY, value(0.2, 0.01))
    side["predicted"] = value(prevalence + 0.1, 0.01)
    names = ("auroc", "sensitivity", "specificity")
    rows = {
        task: {
            "threshold": 0.3,
            "metrics": dict.fromkeys(names, value(area, 0.03)),
            "calibration": {
                "prevalence": value(prevalence, 0.04),
                "before": side,
                "after": None,
            },
        }
        for task in ("mass", "nodule")
    }
    report = {"checkpoint": 5, "films": 90, "patients": 40, "tasks": rows}
    return report | {"mean": {"auroc": value(area, 0.02)}} | changes


def test_both_results_their_difference_and_what_shifted_are_there():
    found = external.beside(result(0.8, 0.2), result(0.7, 0.5))
    assert (found["films"], found["patients"]) == (90, 40)
    mass = found["tasks"]["mass"]["auroc"]
    assert mass["internal"]["estimate"] == 0.8
    assert mass["external"]["low"] == pytest.approx(0.67)
    # Two symmetric intervals of the same level: widths add as standard errors do.
    expected = [-0.1, -0.1 - 0.03 * 2**0.5, -0.1 + 0.03 * 2**0.5]
    got = [mass["difference"][name] for name in ("estimate", "low", "high")]
    np.testing.assert_allclose(got, expected)
    shift = found["shift"]["nodule"]
    assert list(shift) == ["prevalence", *external.PROBABILITY]
    np.testing.assert_allclose(shift["prevalence"]["difference"]["estimate"], 0.3)
    assert "auroc" in found["mean"] and "sensitivity" not in found["mean"]


def test_the_difference_of_two_skewed_shares_has_newcombe_s_interval():
    """His example (Stat. Med. 17 (1998) 873, method 10): 9 of 10 against 3 of 10."""
    both = []
    for hits in (3, 9):
        ends = stats.binomtest(hits, 10).proportion_ci(method="wilson")
        both.append({"estimate": hits / 10, "low": ends.low, "high": ends.high})
    apart = external.difference(*both)
    assert (apart["low"], apart["high"]) == pytest.approx((0.1705, 0.8090), abs=1e-4)


def test_means_over_other_findings_are_not_compared():
    there = result(0.7, 0.5)
    nothing = {**dict.fromkeys(("estimate", "low", "high")), "why": "no positive image"}
    row = there["tasks"]["mass"]
    row["metrics"] = row["metrics"] | {"auroc": nothing}
    found = external.beside(result(0.8, 0.2), there)
    assert found["mean"] == {}
    gap = found["tasks"]["mass"]["auroc"]["difference"]
    assert gap == dict.fromkeys(("estimate", "low", "high"))


def test_reports_of_another_model_or_other_thresholds_are_not_compared():
    assert external.comparable(result(0.8, 0.2), result(0.7, 0.1))
    assert not external.comparable(result(0.8, 0.2), result(0.8, 0.2, checkpoint=9))
    other = result(0.8, 0.2)
    other["tasks"]["mass"]["threshold"] = 0.4
    assert not external.comparable(result(0.8, 0.2), other)


@pytest.mark.slow
def test_the_interval_of_a_difference_of_two_skewed_shares_covers_it():
    """95 % of the differences, from Wilson's intervals of both shares."""
    rng, hits, shares = np.random.default_rng(0), [], (0.05, 0.2)
    for _ in range(2000):
        both = []
        for n, share in zip((80, 50), shares, strict=True):
            k = rng.binomial(n, share)
            low, high = stats.binomtest(k, n).proportion_ci(method="wilson")
            both.append({"estimate": k / n, "low": low, "high": high})
        apart = external.difference(*both)
        hits.append(apart["low"] <= shares[1] - shares[0] <= apart["high"])
    assert 0.93 < np.mean(hits) < 0.97


# ------------------------------------------------------------ the page


def test_a_side_is_described_by_patients_and_images():
    images = pd.DataFrame(
        {
            "patient": [1, 1, 2, 3],
            "age": [50.0, 51.0, np.nan, 60.0],
            "sex": ["F", "F", "M", ""],
            "view": ["PA", "AP", "PA", "PA"],
            "mass": [1.0, 0.0, np.nan, 0.7],
        }
    )
    assert manifests.side(images, ("mass",)) == {
        "films": 4,
        "patients": 3,
        "tasks": {"mass": {"positives": 2, "negatives": 1, "unknown": 1}},
        "age": {"median": 55.0, "low": 52.5, "high": 57.5, "unknown": 1},
        "sex": {"F": 1, "M": 1, "unknown": 1},
        "view": {"PA": 3, "AP": 1},
    }
    empty = images.assign(age=np.nan, sex="", view="")
    assert list(manifests.side(empty, ())) == ["films", "patients", "tasks"]


SIDE = {"films": 9, "patients": 5, "tasks": {}, "sex": {"F": 2, "M": 3}}
NONE = {"images": 0, "patients": 0, "pictures": 0, "examples": []}
SOME = {"images": 4, "patients": 2, "pictures": 1, "examples": ["patient '7'"]}


@pytest.mark.parametrize(
    ("change", "words", "never"),
    [
        (
            {"overlap": {**NONE, "other_hospital": False}},
            "no patient id and no pict",
            "!",
        ),
        (
            {"overlap": {**NONE, "other_hospital": True}},
            "ids were not compared",
            "no pati",
        ),
        (
            {"overlap": {**SOME, "other_hospital": False}},
            "4 of the volumes",
            "not in it",
        ),
        ({}, "were not compared with those of training", "not in it"),
    ],
)
def test_an_external_page_says_what_was_compared(tmp_path, change, words, never):
    sides = {"train": SIDE, "abroad": SIDE}
    cohort = {"sides": sides, "shared": 0, "pairs": 0, "leaks": 0}
    cases = [masks.case(n) for n in range(2)]
    about = {"split": "abroad", "external": True, "split_by": "other"}
    results = masks.results_of(cases, cohort=cohort, **about, **change)
    text = report.write(results, [], tmp_path, "report-abroad", **RUN).read_text()
    read = Page(text).text
    audit = read[read.index("These checks are repeated") : read.index("Model details")]
    assert words in audit and never not in audit
    assert "No patient is on two sides" not in read
    verdicts = [v for v in text.split('class="verdict bad"')[1:] if "were seen" in v]
    assert len(verdicts) == (change.get("overlap", NONE)["images"] > 0)

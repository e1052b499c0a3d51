"""What is frozen comes back as it was, of this medjax and of an older one."""

import json
import math

import pytest

from medjax.errors import InputError
from medjax.evaluation import calibration as recalibration
from medjax.training import fixed
from medjax.training.fixed import Calibration, Frozen

FITS = (
    recalibration.Logistic((0.7, 1.0), (-0.3, 0.0)),
    recalibration.Softmax((0.7, 0.7), (-0.3, 0.3)),
    recalibration.Isotonic(((0.1, 0.5, 0.9), ()), ((0.0, 0.2, 1.0), ())),
    None,
)


@pytest.mark.parametrize("fit", FITS)
def test_what_is_frozen_comes_back(tmp_path, fit):
    assert fixed.read(tmp_path) is None
    calibration = Calibration("platt", fit, "validation", 70, {"a": "too few"})
    given = Frozen(40, {"b": 0.25, "a": math.nan}, "cost", 3.0, calibration)
    fixed.write(tmp_path, given)
    found = fixed.read(tmp_path)
    assert list(found.thresholds) == ["b", "a"]
    assert found.thresholds["b"] == 0.25 and math.isnan(found.thresholds["a"])
    assert found._replace(thresholds={}, calibration=None) == (40, {}, "cost", 3, None)
    p = [[0.2, 0.7], [0.0, 1.0]]
    assert type(found.calibration.fit) is type(fit)
    expected, got = (
        recalibration.calibrate(f, p) for f in (fit, found.calibration.fit)
    )
    assert (expected == got).all()
    assert found.calibration._replace(fit=fit) == calibration


def test_thresholds_of_an_older_run_are_of_its_uncalibrated_probabilities(tmp_path):
    old = {"checkpoint": 7, "tasks": {"a": 0.5, "b": None}}
    (tmp_path / "thresholds.json").write_text(json.dumps(old))
    found = fixed.read(tmp_path)
    assert (found.checkpoint, found.rule, found.value) == (7, None, None)
    assert found.calibration == fixed.NONE
    assert found.thresholds["a"] == 0.5 and math.isnan(found.thresholds["b"])


def test_thresholds_without_their_calibration_are_refused(tmp_path):
    calibration = Calibration("platt", FITS[0], "validation", 70, {})
    given = Frozen(40, {"a": 0.5, "b": 0.5}, "youden", None, calibration)
    fixed.write(tmp_path, given)
    path = tmp_path / "calibration.json"
    other = json.loads(path.read_text()) | {"checkpoint": 41}
    path.write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"calibration\.json: not the calibration"):
        fixed.read(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"calibration\.json: not the calibration"):
        fixed.read(tmp_path)

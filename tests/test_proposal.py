"""Proposals by hand, those that nnU-Net publishes, and the properties of any."""

import math
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from medjax.config import flatten
from medjax.data import fingerprint
from medjax.data.fingerprint import Fingerprint
from medjax.tasks import segmentation

SIZES = st.tuples(*[st.integers(1, 400)] * 3)
SPACINGS = st.tuples(*[st.floats(0.2, 10)] * 3)


def found(box, spacing):
    box, spacing = np.atleast_2d(box), np.atleast_2d(np.array(spacing, float))
    none = np.zeros((1, 5))
    known = np.ones((len(box), 1))
    return Fingerprint(
        ("t1",), ("whole",), box, box, spacing, known > 0, none, none, known, known
    )


@pytest.mark.parametrize(
    ("size", "last"), [((28, 256, 256), (1, 2, 2)), ((28, 256, 224), (1, 2, 1))]
)
def test_the_levels_of_thick_slices_are_nnunets(size, last):
    # Its plans of COVID-19-20, CT of 5 x 0.742 x 0.742 mm: the default and the
    # residual network's, in nnunet/dataset_conversion/Task115_COVIDSegChallenge.py.
    spacing = (5.0, 0.742, 0.742)
    strides = fingerprint.level_strides(size, spacing, levels=7)
    flat, deep = (1, 2, 2), (2, 2, 2)
    assert strides == ((1, 1, 1), flat, flat, deep, deep, flat, last)
    kernels = fingerprint.kernel_sizes(spacing, strides, size)
    assert kernels == ((1, 3, 3),) * 2 + ((3, 3, 3),) * 5


def test_the_patch_of_cubic_voxels_is_nnunets():
    # Brain tumours of the Medical Segmentation Decathlon: 128 voxels a side, two.
    one = fingerprint.propose(found([[138, 169, 138]] * 484, [[1, 1, 1]] * 484))
    assert one.spacing == (1, 1, 1) and one.shape == (138, 169, 138)
    assert one.patch == (128, 128, 128) and one.batch == 2
    assert one.strides == ((1, 1, 1),) + ((2, 2, 2),) * 5
    assert one.kernels == ((3, 3, 3),) * 6


def test_isotropic_data_take_the_median_spacing():
    spacing = np.array([[1, 1, 1], [1, 2, 1], [3, 1.5, 1]])
    np.testing.assert_array_equal(fingerprint.target_spacing(spacing), (1, 1.5, 1))


def test_a_coarse_axis_takes_the_tenth_percentile():
    coarse = np.linspace(2, 12, 11)  # 2, 3, .. 12: the tenth percentile is the 2nd.
    spacing = np.stack([coarse, np.full(11, 0.5), np.full(11, 0.7)], axis=1)
    np.testing.assert_allclose(fingerprint.target_spacing(spacing), (3, 0.5, 0.7))
    spacing[:, 2] = 3.5  # Now the coarse axis' 7 is twice another's.
    np.testing.assert_allclose(fingerprint.target_spacing(spacing), (7, 0.5, 3.5))
    spacing = np.stack([np.full(11, 0.5), coarse / 10, np.full(11, 0.5)], axis=1)
    spacing[5:, 1] = 9  # Its tenth percentile, 0.3, is finer than the others.
    np.testing.assert_allclose(fingerprint.target_spacing(spacing), (0.5, 0.5, 0.5))


def test_the_shape_is_the_median_after_resampling():
    boxes = [[10, 20, 30], [20, 40, 60], [90, 90, 60]]
    one = fingerprint.propose(found(boxes, [[2, 2, 2], [1.5, 1.5, 1.5], [1, 1, 1]]))
    # At the median, 1.5 mm, they are 13, 27, 40; 20, 40, 60; 60, 60, 40.
    assert one.spacing == (1.5, 1.5, 1.5) and one.shape == (20, 40, 40)


def test_a_small_budget_cuts_the_largest_share_first():
    # 64 x 64 x 64 has 2^18. Halved thrice to 8: cut by 8 where most is left, in turn.
    size, strides = fingerprint.patch_size(
        (64, 64, 64), (1, 1, 1), voxels=2**17, levels=4
    )
    assert strides == ((1, 1, 1),) + ((2, 2, 2),) * 3
    assert sorted(size) == [48, 48, 56] and math.prod(size) == 129024 <= 2**17


def test_a_patch_has_the_aspect_of_the_whole():
    size, _ = fingerprint.patch_size((256, 64, 128), (1, 1, 1), voxels=2**18, levels=3)
    np.testing.assert_allclose(size, (128, 32, 64), atol=4)


def test_the_batch_grows_with_what_a_small_patch_leaves():
    many = found([[32, 32, 32]] * 1000, [[1, 1, 1]] * 1000)
    assert fingerprint.propose(many, voxels=10 * 32**3 + 5).batch == 10
    few = found([[32, 32, 32]] * 100, [[1, 1, 1]] * 100)
    assert fingerprint.propose(few, voxels=10 * 32**3 + 5).batch == 5  # 5 % of 100.
    one = found([[32, 32, 32]], [[1, 1, 1]])
    assert fingerprint.propose(one, voxels=10 * 32**3 + 5).batch == 2


@settings(max_examples=60, deadline=None)
@given(SIZES, SPACINGS, st.integers(1, 10**6), st.integers(1, 8))
def test_a_patch_is_divisible_and_within_shape_and_budget(
    shape, spacing, voxels, levels
):
    size, strides = fingerprint.patch_size(shape, spacing, voxels=voxels, levels=levels)
    total = np.prod(strides, axis=0)
    assert len(strides) <= levels and set(strides[0]) == {1}
    assert (np.array(size) % total == 0).all()
    assert (np.array(size) <= shape).all() and min(size) >= 1
    assert math.prod(size) <= voxels
    for axis in range(3):  # As large as it can be.
        larger = np.array(size)
        larger[axis] += total[axis]
        assert larger[axis] > shape[axis] or math.prod(larger.tolist()) > voxels


@settings(max_examples=60, deadline=None)
@given(SIZES, SPACINGS)
def test_no_level_halves_a_coarse_or_a_short_axis(size, spacing):
    size, spacing = np.array(size), np.array(spacing)
    strides = fingerprint.level_strides(size, spacing, levels=9)
    for stride in np.array(strides)[1:]:
        assert 2 in stride  # No level does nothing,
        halvable = size >= 8
        finest = spacing[halvable].min()
        np.testing.assert_array_equal(
            stride == 2, halvable & (spacing <= 2 * finest * (1 + 1e-6))
        )
        size, spacing = size // stride, spacing * stride
    assert len(strides) == 9 or (size < 8).all()  # and none is missing.


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(SIZES, SPACINGS), min_size=1, max_size=5),
    st.integers(2, 10**6),
)
def test_a_batch_keeps_the_budget(cases, voxels):
    boxes, spacing = zip(*cases, strict=True)
    one = fingerprint.propose(found(boxes, spacing), voxels=voxels)
    assert 2 <= one.batch and one.batch * math.prod(one.patch) <= voxels
    assert len(one.kernels) == len(one.strides)


def test_the_lines_name_what_is_proposed():
    proposal = fingerprint.propose(found([80, 64, 64], [2.5, 2, 2]))
    text = "\n".join(fingerprint.describe_proposal(proposal, {"model.widths": (16,)}))
    assert "2.5 x 2 x 2 mm" in text and "patch 80 x 64 x 64" in text
    assert "5 levels with strides 1x1x1 2x2x2" in text and "foreground body" in text


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("quickstart_mri", {}),
        ("ms_lesions_unet3d", {}),
        ("hippocampus", {"model.deep": 2}),
        ("ms_lesions_unet3d", {"patch.slices": True}),
    ],
)
@pytest.mark.parametrize(
    "data",
    [
        found([20, 27, 9], [1, 1, 1]),
        found([24, 80, 64], [5, 0.7, 0.7]),
        found([40, 40, 40], [2.5, 2, 2])._replace(kind="nonzero"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module")  # Of ml_collections.
def test_its_flags_run_as_they_are(config, changes, data):
    proposal = fingerprint.propose(data, voxels=2 * 32**3)
    path = Path(__file__).parents[1] / f"configs/{config}.py"

    def read(*arguments):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        options = [f"--config.{name}={value}" for name, value in changes.items()]
        argv = ["launch.py", f"--config={path}", *options, *arguments]
        with patch.object(sys, "argv", argv):
            values(argv)
        return values.config

    settings = flatten(read().to_dict())
    text = " ".join(fingerprint.flags(proposal, settings))
    config = read(*shlex.split(text))
    segmentation.check(config, 1)
    assert config.patch.size == proposal.patch and not config.patch.slices
    assert config.model.strides == proposal.strides
    assert config.model.kernels == proposal.kernels
    if "foreground" in config.data:
        assert config.data.foreground == data.kind

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import pytest

from medjax.augment import pixel_ops, safety
from medjax.augment.safety import POLICIES
from medjax.errors import InputError
from medjax.geometry import warp

NAMED = {  # What the issue of each policy was.
    ("chest_xray", "elastic"),
    ("ct", "gamma"),
    ("ct", "brightness"),
    ("brain_mri", "elastic"),
    ("ultrasound", "elastic"),
    ("nuclear", "gamma"),
    ("retina", "noise"),
    ("fluoroscopy", "clahe"),
}
AFFINE = {"flip": 0.0, "rotation": 5.0, "zoom": 0.1, "translation": 0.05}


@pytest.mark.parametrize("modality", POLICIES)
def test_every_op_stands_in_one_place_with_its_reason(modality):
    policy = POLICIES[modality]
    places = [policy.default, policy.caution, policy.unsafe]
    ops = {*pixel_ops.OPS, *warp.MOVES} - {"flip"}
    assert sorted(op for place in places for op in place) == sorted(ops)
    reasons = [*policy.caution.values(), *policy.unsafe.values(), policy.upright]
    reasons += [reason for _, reason in policy.limits.values()]
    assert all(len(reason.split()) >= 4 for reason in reasons)
    assert not any(reason.endswith(".") for reason in reasons)


@pytest.mark.parametrize("modality", POLICIES)
def test_a_default_is_safe_and_says_nothing(modality):
    ops = safety.default(modality)
    assert len(ops) >= 3 and ops[0][0] == "random_affine"
    assert safety.check_ops(ops, modality=modality) == ()
    ops[0][1]["flip"] = 9  # A copy.
    assert safety.default(modality)[0][1]["flip"] < 1


@pytest.mark.parametrize("modality", POLICIES)
def test_a_default_has_every_option_that_its_op_must_have(modality):
    """And the intensity ops run with theirs, on an image or a run of frames."""
    shape = (2, 8, 8, 1) if modality == "fluoroscopy" else (8, 8, 1)
    shape = (8, 8, 3) if modality == "retina" else shape
    for name, options in safety.default(modality):
        if name in warp.MOVES:
            inspect.signature(warp.MOVES[name]).bind(None, None, **options)
        else:
            image = jnp.full(shape, 0.5)
            op = getattr(pixel_ops, name)
            op = functools.partial(op, **options)
            got = jax.eval_shape(op, jax.random.key(0), image)
            assert got.shape == shape


@pytest.mark.parametrize(
    ("modality", "op"), [(m, op) for m, p in POLICIES.items() for op in p.unsafe]
)
def test_an_unsafe_op_is_refused_with_its_reason_unless_allowed(modality, op):
    reason = POLICIES[modality].unsafe[op]
    with pytest.raises(InputError) as error:
        safety.check_ops([(op, {})], modality=modality)
    for part in (repr(op), modality, reason, "augment.allow_unsafe=True"):
        assert part in str(error.value)
    said = safety.check_ops([(op, {})], modality=modality, allow_unsafe=True)
    assert reason in said[0]


def test_the_policies_leave_out_what_the_modality_asks_for():
    unsafe = {(m, op) for m, policy in POLICIES.items() for op in policy.unsafe}
    assert unsafe >= NAMED
    assert "elastic" in POLICIES["mammography"].default
    assert "bias_field" in POLICIES["brain_mri"].default
    assert "speckle" in POLICIES["ultrasound"].default
    assert "poisson_noise" in POLICIES["nuclear"].default
    assert "colour_jitter" in POLICIES["retina"].default


@pytest.mark.parametrize("modality", POLICIES)
def test_a_mirror_image_is_a_caution_and_refused_where_sides_count(modality):
    caution = POLICIES[modality].mirror
    for op in (
        ("random_affine", {**AFFINE, "flip": 0.5, "in_plane": True}),
        ("random_affine", {"rotation": 5.0, "in_plane": True}),  # flip=0.5 by default.
        ("flip", {"probability": 0.3}),
    ):
        said = safety.check_ops([op], modality=modality)
        assert len(said) == bool(caution) and all(caution in one for one in said)
        with pytest.raises(InputError, match="mirror.*depends on the side"):
            safety.check_ops([op], modality=modality, sided=True)
    still = ("random_affine", {**AFFINE, "in_plane": True})
    assert safety.check_ops([still], modality=modality, sided=True) == ()
    never = ("flip", {"probability": 0.0})
    assert safety.check_ops([never], modality=modality, sided=True) == ()


@pytest.mark.parametrize("modality", POLICIES)
def test_no_image_is_turned_upside_down(modality):
    reason = re.escape(POLICIES[modality].upright)
    with pytest.raises(InputError, match=rf"augment.flip.axis=0 is unsafe.*{reason}"):
        safety.check_ops([("flip", {"axis": 0})], modality=modality)


@pytest.mark.parametrize("rotation", [15.5, -16.0, (3.0, 20.0, 3.0)])
def test_a_range_beyond_its_limit_is_refused(rotation):
    op = ("random_affine", {**AFFINE, "rotation": rotation})
    with pytest.raises(InputError, match=r"random_affine.rotation=.*at most 15"):
        safety.check_ops([op], modality="chest_xray")
    said = safety.check_ops([op], modality="chest_xray", allow_unsafe=True)
    assert len(said) == 1


def test_a_caution_is_said_and_not_refused():
    (said,) = safety.check_ops([("blur", {"max_sigma": 0.5})], modality="chest_xray")
    assert "'blur'" in said and "pleural line" in said


def test_the_frames_of_a_run_have_one_draw():
    with pytest.raises(InputError, match=r"in_plane=False.*give True"):
        safety.check_ops([("random_affine", {"flip": 0.0})], modality="fluoroscopy")
    ops = [("random_affine", {"flip": 0.0, "in_plane": True})]
    assert safety.check_ops(ops, modality="fluoroscopy") == ()


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(InputError, match=r"modality='xray' is unknown: .*'chest_xray'"):
        safety.check_ops([], modality="xray")
    with pytest.raises(InputError, match=r"modality='' is unknown"):
        safety.default("")
    with pytest.raises(
        InputError, match=r"'blurr' is unknown: use .*'blur', 'brightness'"
    ):
        safety.check_ops([("blurr", {})], modality="ct")


def test_the_configs_of_today_pass_with_the_mirror_images_caution():
    """Both mirror chest films on purpose: the heart's side is no finding of theirs."""
    ops = [("random_affine", {"flip": 0.5, "rotation": 10.0, "zoom": 0.12})]
    ops += [("gamma", {}), ("contrast", {}), ("brightness", {}), ("noise", {})]
    (said,) = safety.check_ops(ops, modality="chest_xray")
    assert "dextrocardia" in said

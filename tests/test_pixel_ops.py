import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medjax.augment import pixel_ops
from medjax.data import normalisation
from medjax.errors import InputError

OPS = {
    "brightness": {"strength": 0.2},
    "contrast": {"strength": 0.2},
    "gamma": {"max_log_gamma": 0.3},
    "noise": {"std": 0.05},
    "colour_jitter": {"hue": 0.1, "saturation": 0.3, "brightness": 0.2},
    "equalise": {"strength": 1.0},
    "clahe": {"strength": 1.0},
    "rician_noise": {"std": 0.05},
    "speckle": {"std": 0.2},
    "poisson_noise": {"std": 0.1},
    "blur": {"max_sigma": 0.8},
    "low_resolution": {"strength": 0.9},
    "bias_field": {"strength": 0.4},
    "crop_pad": {"shift": 0.4},
    "cut_out": {"size": 0.4},
}
ONE_ULP = {"contrast"}  # It adds and takes off the mean.
KEYS = jax.random.split(jax.random.key(0), 500)
IMAGE = np.linspace(0.3, 0.7, 64, dtype=np.float32).reshape(8, 8, 1)
RNG = np.random.default_rng(0)
SPATIAL = ["blur", "low_resolution", "bias_field", "crop_pad", "cut_out"]
CASES = [*((n, (20, 17)) for n in OPS), *((n, (6, 9, 11)) for n in SPATIAL)]


def sample(shape):
    """A whole range of colours, black and white too, on the axes."""
    image = RNG.random((*shape, 3), np.float32)
    image.flat[:6] = [0, 0, 0, 1, 1, 1]
    return jnp.asarray(image)


@functools.cache
def results(shape):
    """Of all ops: an image, unchanged, changed by 40 keys, and by three alone."""

    names = [name for name, own in CASES if own == shape]

    def every(options):  # In one program: compiling is what takes the time.
        def run(key, image):
            return {n: getattr(pixel_ops, n)(key, image, **options[n]) for n in names}

        return jax.jit(jax.vmap(run, in_axes=(0, None)))

    image = sample(shape)
    zero = {name: dict.fromkeys(own, 0.0) for name, own in OPS.items()}
    same, op = every(zero)(KEYS[:1], image), every(OPS)
    if len(shape) == 3:  # To save a compilation, last in the batch and not alone.
        turned = op(KEYS[39::-1], image)
        alone = [{n: x[39 - i :] for n, x in turned.items()} for i in range(3)]
    else:
        alone = [op(k[None], image) for k in KEYS[:3]]
    return image, same, op(KEYS[:40], image), alone


def test_every_op_is_tested_here():
    assert pixel_ops.OPS.keys() == OPS.keys()
    assert all(callable(getattr(pixel_ops, name)) for name in OPS)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_strength_zero_is_the_identity(name, shape):
    image, same, _, _ = results(shape)
    atol = 1e-7 if name in ONE_ULP else 0
    np.testing.assert_allclose(same[name][0], image, rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_result_is_the_keys_own_in_any_batch(name, shape):
    image, _, changed, alone = results(shape)
    changed = np.asarray(changed[name])
    assert changed.shape == (40, *image.shape) and changed.dtype == np.float32
    assert changed.min() >= 0 and changed.max() <= 1
    assert len(np.unique(changed.reshape(40, -1), axis=0)) > 25
    again = np.stack([one[name][0] for one in alone])
    # Within a rounding: test_policy holds the program that a run uses to the bit.
    np.testing.assert_allclose(again, changed[:3], rtol=0, atol=5e-7)


def with_keys(op, image=IMAGE, **options):
    """The image changed by every key."""
    changed = jax.jit(jax.vmap(functools.partial(op, **options), (0, None)))
    return np.asarray(changed(KEYS, image))


def test_brightness_is_one_uniform_offset():
    change = with_keys(pixel_ops.brightness, strength=0.2) - IMAGE
    np.testing.assert_allclose(change.std(axis=(1, 2, 3)), 0, atol=1e-6)
    offset = change.mean(axis=(1, 2, 3))
    assert 0.19 < float(np.abs(offset).max()) <= 0.2 + 1e-6
    assert abs(float(offset.mean())) < 0.02


def test_contrast_keeps_the_mean_and_scales_the_deviation():
    got = with_keys(pixel_ops.contrast, strength=0.2)
    np.testing.assert_allclose(got.mean(axis=(1, 2, 3)), IMAGE.mean(), atol=1e-5)
    scale = got.std(axis=(1, 2, 3)) / IMAGE.std()
    assert 0.8 - 1e-4 <= float(scale.min()) < 0.82
    assert 1.18 < float(scale.max()) <= 1.2 + 1e-4


def test_gamma_is_one_power_and_keeps_black_and_white():
    ends = np.float32([0.0, 1.0, 0.5, 0.25]).reshape(4, 1, 1)
    got = with_keys(pixel_ops.gamma, ends, max_log_gamma=0.3)
    np.testing.assert_array_equal(got[:, 0], 0)
    np.testing.assert_array_equal(got[:, 1], 1)
    power = np.log(got[:, 2]) / np.log(0.5)
    np.testing.assert_allclose(np.log(got[:, 3]) / np.log(0.25), power, rtol=1e-4)
    assert 0.28 < float(np.abs(np.log(power)).max()) <= 0.3 + 1e-4


BY_CHANNEL = {  # What each channel must keep of its own, whatever was drawn.
    "brightness": ("strength", 0.2, lambda new, old: new - old),
    "contrast": (
        "strength",
        0.2,
        lambda new, old: (
            (new - new.mean((1, 2), keepdims=True))
            / (old - old.mean((0, 1), keepdims=True))
        ),
    ),
    "gamma": ("max_log_gamma", 0.3, lambda new, old: np.log(new) / np.log(old)),
}


@pytest.mark.parametrize("name", BY_CHANNEL)
def test_by_channel_each_channel_changes_alone(name):
    option, limit, drawn = BY_CHANNEL[name]
    image = np.concatenate([IMAGE, 0.4 + IMAGE / 4], axis=-1)
    op = getattr(pixel_ops, name)
    got = with_keys(op, image, **{option: limit}, by_channel=True)
    number = drawn(got.astype(np.float64), image.astype(np.float64))
    np.testing.assert_allclose(number.std(axis=(1, 2)), 0, atol=1e-3)
    one, other = number.mean(axis=(1, 2)).T
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15
    together = drawn(with_keys(op, image, **{option: limit}), image)
    assert name == "contrast" or together.std(axis=(1, 2, 3)).max() < 1e-3


def test_noise_has_its_deviation_and_differs_between_pixels():
    change = with_keys(pixel_ops.noise, std=0.05) - IMAGE
    assert abs(float(change.std()) - 0.05) < 1e-3
    assert abs(float(change.mean())) < 1e-3
    neighbours = np.corrcoef(change[:, 3, 3, 0], change[:, 3, 4, 0])[0, 1]
    assert abs(neighbours) < 0.15


# ------------------------------------------------------------------------- colour


def test_colour_jitter_turns_about_the_grey_axis():
    """One drawn angle, saturation and gain, found again from pure colours."""
    colours = jnp.array([[0.5, 0.3, 0.3], [0.3, 0.5, 0.4], [0.4, 0.4, 0.4]])[None]
    limits = OPS["colour_jitter"]
    op = jax.vmap(lambda k: pixel_ops.colour_jitter(k, colours, **limits))
    got = jax.jit(op)(KEYS)
    got = np.asarray(got, np.float64)[:, 0]
    gain = got[:, 2].mean(-1) / 0.4
    assert 0.8 - 1e-5 <= gain.min() < 0.82 and 1.18 < gain.max() <= 1.2 + 1e-5
    for c in range(2):  # Grey stays grey, and all are brightened alike.
        np.testing.assert_allclose(
            got[:, c].mean(-1) / colours[0, c].mean(), gain, 1e-5
        )
    np.testing.assert_allclose(np.ptp(got[:, 2], axis=-1), 0, atol=1e-6)

    old = np.asarray(colours[0], np.float64)
    old -= old.mean(-1, keepdims=True)
    new = got / gain[:, None, None]
    new -= new.mean(-1, keepdims=True)
    scale = np.linalg.norm(new[:, 0], axis=-1) / np.linalg.norm(old[0])
    assert 0.7 - 1e-5 <= scale.min() < 0.73 and 1.27 < scale.max() <= 1.3 + 1e-5
    axis = np.ones(3) / np.sqrt(3)
    sine = np.cross(old[0], new[:, 0]) @ axis
    angle = np.arctan2(sine, new[:, 0] @ old[0])
    assert 0.19 * np.pi < np.abs(angle).max() <= 0.2 * np.pi + 1e-5
    for n in range(20):
        turned = Rotation.from_rotvec(angle[n] * axis).apply(old) * scale[n]
        np.testing.assert_allclose(new[n], turned, atol=1e-6)


def test_a_hue_of_a_third_exchanges_the_colours():
    """The turn of 120 degrees is a permutation, and the hue is the usual one."""
    red = jnp.array([[[0.8, 0.2, 0.2]]])
    only_hue = {"hue": 1 / 3, "saturation": 0.0, "brightness": 0.0}
    op = jax.vmap(lambda k: pixel_ops.colour_jitter(k, red, **only_hue))
    got = jax.jit(op)(KEYS)
    hue = np.array([colorsys.rgb_to_hsv(*c)[0] for c in np.asarray(got)[:, 0, 0]])
    distance = np.minimum(hue, 1 - hue)
    assert 0.3 < distance.max() <= 1 / 3 + 0.02  # HSV's hexagon is not quite round.


def test_colour_jitter_refuses_grey_images_when_it_is_traced():
    op = functools.partial(pixel_ops.colour_jitter, **OPS["colour_jitter"])
    with pytest.raises(InputError, match=r"colour_jitter.*has 1: leave it out"):
        jax.eval_shape(op, KEYS[0], IMAGE)


# --------------------------------------------------------------------- histograms


@pytest.mark.parametrize("name", ["equalise", "clahe"])
def test_a_random_share_of_the_equalised_image_is_mixed_in(name):
    image = sample((20, 17))
    whole = np.asarray(jax.jit(getattr(normalisation, name))(image)) - image
    op = functools.partial(getattr(pixel_ops, name), strength=0.6)
    change = jax.jit(jax.vmap(lambda k: op(k, image)))(KEYS[:200]) - image
    share = np.sum(change * whole, axis=(1, 2, 3)) / np.sum(whole**2)
    np.testing.assert_allclose(change, share[:, None, None, None] * whole, atol=1e-6)
    assert 0 <= share.min() < 0.02 and 0.57 < share.max() <= 0.6


def test_clahe_refuses_a_volume():
    with pytest.raises(InputError, match=r"clahe.*volume.*'equalise'"):
        pixel_ops.clahe(KEYS[0], jnp.zeros((3, 8, 8, 1)), strength=1.0)

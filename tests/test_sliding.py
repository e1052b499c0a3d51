"""Windows blend into the volume that one large window would give."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medjax.errors import InputError
from medjax.evaluation import sliding

RNG = np.random.default_rng(0)


def same(variables, image):
    return image


def run(image, function=same, variables=None, bucket=8, **options):
    return sliding.volume_probability(
        function, variables, image, bucket=bucket, **options
    )


def volume(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"patch": (4, 6, 5)},
        {"patch": (4, 6, 5), "overlap": 0.8, "batch": 4},
        {"patch": (4, 6, 5), "overlap": 0.0, "flips": (0, 1, 2), "batch": 3},
        {"patch": (16, 4, 40)},  # Larger than the volume along two axes.
        {"patch": (5, 4)},
        {"patch": (30, 3), "flips": (2,)},
    ],
)
def test_a_model_that_returns_its_input_gives_the_volume_back(options):
    image = volume(9, 14, 11, 2)
    np.testing.assert_allclose(run(image, **options), image, atol=5e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 30),
    st.integers(0, 19).map(lambda n: n / 20),
)
@example(30, 10, 0.8)  # In floats 10 * (1 - 0.8) is below 2.
def test_windows_reach_both_edges_overlap_enough_and_weigh_one(size, window, overlap):
    space = (max(size, window), 1, 1)
    windows = sliding.place_windows(space, (window, 1, 1), overlap, 1)
    start = windows.start[:, 0]
    assert start[0] == 0 and start[-1] == space[0] - window
    assert (np.diff(start) > 0).all()
    step = max(1, math.floor(window * (1 - Fraction(str(overlap)))))
    assert (np.diff(start) <= step).all()
    # As few as that step allows.
    assert len(start) == -(-(space[0] - window) // step) + 1
    total = np.zeros(space[0])
    for first, weight in zip(start, windows.weight[0], strict=True):
        total[first : first + window] += weight
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_a_windows_weight_is_a_gaussian_of_an_eighth_of_its_size():
    """Two windows that share a voxel weigh there as their Gaussians do."""
    windows = sliding.place_windows((12, 1, 1), (8, 1, 1), 0.5, 1)
    first, second = windows.weight[0]
    for place in range(4, 8):
        away = [place - 3.5, place - 4 - 3.5]
        ratio = np.exp(-(away[0] ** 2) / 2) / np.exp(-(away[1] ** 2) / 2)
        np.testing.assert_allclose(first[place] / second[place - 4], ratio, rtol=1e-4)
    np.testing.assert_array_equal(first[:4], 1)


@pytest.mark.parametrize("patch", [(3, 4, 5), (9, 9, 9), (6, 4)])
def test_a_voxelwise_model_gives_the_same_whatever_the_patch(patch):
    image = volume(7, 9, 8, 2)

    def voxelwise(matrix, x):
        return jax.nn.sigmoid(x @ matrix)

    matrix = volume(2, 3)
    found = run(image, voxelwise, matrix, patch=patch)
    assert found.shape == (7, 9, 8, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, jax.nn.sigmoid(image @ matrix), atol=3e-6)


def test_away_from_window_edges_a_convolution_equals_that_of_the_whole_volume():
    """Each window's outermost voxel is wrong, and its weight there is small."""
    image = volume(12, 12, 12, 1)
    kernel = volume(3, 3, 3, 1, 1)

    def convolve(kernel, x):
        return jax.lax.conv_general_dilated(
            *(x, kernel, (1, 1, 1), "SAME"),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )

    whole = np.asarray(convolve(kernel, image[None])[0])
    one = run(image, convolve, kernel, patch=(12, 12, 12))
    np.testing.assert_allclose(one, whole, atol=1e-5)
    # Windows of 8 start at 0, 4: their edges inside the volume are at 4 and 7.
    found = run(image, convolve, kernel, patch=(8, 8, 8))
    far = [0, 1, 2, 3, 8, 9, 10, 11]
    corner = np.ix_(far, far, far)
    np.testing.assert_allclose(found[corner], whole[corner], atol=1e-5)
    assert 1e-4 < np.abs(found - whole).max() < 0.1 * np.abs(whole).max()


def test_flips_average_every_mirroring():
    image = volume(5, 6, 7, 1)
    ramp = volume(5, 6, 7, 1)

    def uneven(ramp, x):
        return x * ramp

    found = run(image, uneven, ramp, patch=(5, 6, 7), flips=(0, 2), batch=3)
    views = [
        np.flip(np.flip(image, axes) * ramp, axes) for axes in ((), (0,), (2,), (0, 2))
    ]
    np.testing.assert_allclose(found, np.mean(views, axis=0), atol=1e-5)


def test_a_model_of_slices_gets_each_with_its_neighbours_in_order():
    image = volume(6, 4, 5, 2)
    shapes = []

    def neighbours(variables, x):
        shapes.append(x.shape)
        return x

    found = run(image, neighbours, patch=(4, 5), slices=3, batch=2)
    assert shapes[0] == (2, 4, 5, 6)
    for z, of in itertools.product(range(6), range(3)):
        other = min(max(z + of - 1, 0), 5)  # The first and the last are repeated.
        part = found[z, ..., 2 * of : 2 * of + 2]
        np.testing.assert_allclose(part, image[other], atol=1e-6)


def test_sizes_of_one_bucket_share_a_program_and_others_do_not():
    traced = []

    def counted(variables, x):
        traced.append(x.shape)
        return x

    for shape in [(9, 10, 11, 1), (16, 16, 16, 1), (12, 9, 14, 1)]:
        image = volume(*shape)
        np.testing.assert_allclose(
            run(image, counted, patch=(4, 8, 8), batch=3), image, atol=3e-6
        )
    once = len(traced)
    assert once <= 2  # The result's shape, and the program.
    run(volume(17, 16, 16, 1), counted, patch=(4, 8, 8), batch=3)
    assert len(traced) == 2 * once


def compiled(overlap, batch=1, probability=same):
    space = (32, 32, 32)
    windows = sliding.place_windows(space, (8, 8, 8), overlap, 1)
    count = len(windows.start)
    dealt = jax.tree.map(lambda x: sliding._dealt(x, count, batch), windows)
    program = sliding._blend.lower(
        *(probability, None, np.zeros((*space, 2), np.float32), dealt, 1),
        views=((),),
        batch=batch,
        slices=1,
        planar=False,
    ).compile()
    return count, program.memory_analysis()


def test_memory_does_not_grow_with_the_number_of_windows():
    (few, before), (many, after) = compiled(0.0), compiled(0.75)
    assert many > 30 * few
    assert after.output_size_in_bytes == before.output_size_in_bytes == 32**3 * 2 * 4
    assert after.temp_size_in_bytes <= before.temp_size_in_bytes + 1024
    # Of the volume's result one copy: what this device adds to it.
    assert after.temp_size_in_bytes < 2 * 32**3 * 2 * 4


def test_only_the_windows_of_the_volume_itself_are_computed():
    """The bucket's rounding costs memory, not work."""
    computed = []

    def counted(variables, x):
        jax.debug.callback(lambda: computed.append(1))
        return x

    run(volume(9, 9, 9, 1), counted, patch=(8, 8, 8), batch=1, bucket=32)
    jax.effects_barrier()
    assert len(computed) == 8  # 2 x 2 x 2 windows, not the bucket's 7^3.


def test_a_half_precision_result_is_added_up_in_single():
    image = jnp.full((40, 4, 4, 1), 1 / 3)

    def rounded(variables, x):
        return x.astype(jnp.bfloat16)

    found = run(np.asarray(image), rounded, patch=(4, 4, 4), overlap=0.75)
    third = float(jnp.bfloat16(1 / 3))
    np.testing.assert_allclose(found, third, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch": (4, 0, 4)},
        {"overlap": 1.0},
        {"flips": (3,)},
        {"patch": (4, 4), "flips": (0,)},
        {"batch": 0},
    ],
)
def test_an_option_that_fits_no_window_is_refused(wrong):
    with pytest.raises(InputError, match=next(reversed(wrong)) + r"\S*="):
        run(volume(4, 4, 4, 1), **{"patch": (4, 4, 4), **wrong})

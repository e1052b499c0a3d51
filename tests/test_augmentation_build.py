"""The numbers of an op may be arrays, and then do what they do as plain numbers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from medjax.augment import intensity
from medjax.geometry import warp
from medjax.tasks import augmentation

KEY = jax.random.key(4)
FIXED = {"in_plane": False, "axis": -1, "tiles": 2, "fill": 0.5, "distance": 16.0}
FULL = {"rotation": 5.0, "probability": 1.0}
NAMES = sorted([*warp.MOVES, *intensity.__all__])


def config_of(name, share=1.0):
    """That op alone, its strengths at this share of what a test can see."""
    op = warp.MOVES.get(name) or getattr(intensity, name)
    numbers = [p for p in inspect.signature(op).parameters if p not in ("key", "image")]
    options = {
        n: FIXED.get(n, FULL.get(n, 0.4) * share) for n in numbers if n != "motion"
    }
    return ConfigDict({"augment": {"ops": (name,), name: options}})


def batch():
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 18, 3), dtype=np.uint8)
    numbers = {n: jnp.arange(3, dtype=jnp.int32) for n in ("id", "epoch", "occurrence")}
    return {"image": image, **numbers}


@pytest.mark.parametrize("name", NAMES)
def test_arrays_do_what_the_config_s_numbers_do(name):
    config = config_of(name)
    traced = jax.jit(augmentation.augment(config, lambda image: image))
    strengths = augmentation.strengths(config)
    found = traced(KEY, batch(), jax.tree.map(jnp.asarray, strengths))["image"]
    # The same ops, whose numbers are Python's own while they are traced.
    plain = jax.jit(
        lambda batch: augmentation.augment(config, lambda image: image)(
            KEY, batch, {name: {}}
        )
    )(batch())["image"]
    np.testing.assert_allclose(found, plain, atol=2e-6)
    unchanged = batch()["image"] / np.float32(255)
    assert np.abs(found - unchanged).max() > 0.01
    if strengths[name]:  # What the arrays say counts, not what the config said.
        weaker = augmentation.strengths(config_of(name, 0.5))
        other = traced(KEY, batch(), jax.tree.map(jnp.asarray, weaker))["image"]
        assert np.abs(found - other).max() > 1e-3


def test_a_number_that_sets_a_shape_is_no_array():
    static = {name for name, options in augmentation.STATIC.items() if options}
    for name in NAMES:
        given = augmentation.strengths(config_of(name))[name]
        numbers = config_of(name).augment[name]
        left = {n for n, v in numbers.items() if isinstance(v, float)} - set(given)
        assert bool(left) == (name in static)

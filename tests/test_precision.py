"""Products outside the networks, which an accelerator rounds by default, are exact.

A CPU rounds none, so these tests lower for a TPU and read the precision there.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from medjax.data import chest_phantom
from medjax.evaluation import areas, bootstrap, corruptions, heatmaps, thresholds
from medjax.geometry import registration, warp
from medjax.models import architectures
from medjax.tasks import adapt
from medjax.training import head


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def whole(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


KEY = jax.eval_shape(lambda: jax.random.key(0))
LEVEL = registration.Level(
    floats(8, 3), floats(8), floats(8), floats(4, 5, 6, 1), floats(4, 4), floats()
)
MODEL = architectures.densenet_small(3)
STAGES = len(MODEL.stages)


def classify(feature):
    """The network behind its last convolution: what `refit` fits."""
    variables = MODEL.init(jax.random.key(0), feature, train=False, after=STAGES)
    return MODEL.apply(variables, feature, train=False, after=STAGES)


MULTIPLY = {  # All that do outside of models/, but for the classifier of domains.
    "motion": (registration._motion, floats(6), floats()),
    "similarity": (registration._similarities, LEVEL, floats(2, 6)),
    "ascent": (registration._climb, LEVEL, floats(2, 6), floats()),
    "rollout": (
        functools.partial(heatmaps.rollout, others=1, token=False),
        [floats(1, 2, 5, 5)] * 2,
    ),
    "heatmap": (heatmaps._weighted, floats(2, 4, 4, 8), floats(2, 3, 8)),
    "phantom": (
        functools.partial(chest_phantom.patients, films=1, side=32),
        *(KEY, whole(2)),
    ),
    "refit": (
        functools.partial(head._loss, exclusive=False),
        *(floats(5, 3), floats(8, 4), floats(8, 3), floats(8, 3)),
        *(head.no_points(3), floats(4, 4), floats()),
    ),
    "classifier": (classify, floats(2, 4, 4, 16)),
    "reweigh": (bootstrap.reweigh, floats(5, 3), whole(5, 2)),
    "areas": (
        functools.partial(areas.of_tasks, max_fpr=0.1),
        *(floats(8, 3), floats(8, 3), floats(8, 3), whole(8), whole(5, 2)),
    ),
    "curves": (
        functools.partial(thresholds._curves, most=4),
        *((whole(3, 8), floats(3, 8), floats(3, 8), whole(8)), whole(5, 2)),
    ),
    "blur": (corruptions.blur, KEY, floats(16, 16, 1), floats()),
    "coral": (adapt.coral_distance, floats(8, 4), whole(8)),
    "elastic": (
        functools.partial(warp.on_grid, shape=(16, 16), distance=(4.0, 4.0)),
        floats(*warp.control_shape((16, 16), (4.0, 4.0)), 2),
    ),
    "times": (warp._times, floats(2, 2), floats(2, 3)),
}


@pytest.mark.parametrize("name", MULTIPLY)
def test_no_product_outside_a_network_is_rounded(name):
    function, *arguments = MULTIPLY[name]
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    products = re.findall(
        r"stablehlo\.(?:dot_general|convolution).*", lowered.as_text()
    )
    assert products
    for line in products:
        assert re.search(r"precision = \[HIGHEST, HIGHEST\]", line), line


def test_the_lowered_text_shows_what_would_be_rounded():
    rounded = jax.jit(jnp.matmul).trace(floats(4, 4), floats(4, 4))
    assert "HIGHEST" not in rounded.lower(lowering_platforms=("tpu",)).as_text()

"""How the tests run (devices, compilation, order), and fixtures that files share."""

import atexit
import functools
import gc
import math
import os
import re
import shutil
import tempfile
from html.parser import HTMLParser
from importlib.metadata import version

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # Also for workers and processes.
    compiled = tempfile.mkdtemp(prefix="medjax-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
if "MEDJAX_TESTS" not in os.environ:  # What workers share, see launching.ensemble.
    shared = tempfile.mkdtemp(prefix="medjax-tests-")
    atexit.register(shutil.rmtree, shared, ignore_errors=True)
    os.environ["MEDJAX_TESTS"] = shared
# Tests compile much and compute little: these divide the compiler's time by eight.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if version("jaxlib").startswith("0.10."):  # Later ones don't know the flag, and end.
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )

# Processes that tests start: their bits don't depend on this machine's cores.
os.environ["JAX_NUM_CPU_DEVICES"] = "1"

import jax
import numpy as np
import pytest

from medjax.data.prepared import Item
from medjax.data.records import Source

gc.set_threshold(20_000, 20, 20)  # What is traced stays: scanning it takes long.
jax.config.update("jax_num_cpu_devices", 4)  # Tests of the mapped step need some.
SIDE = 4
# The files that take longest. They start first, so that no worker is left with one.
LONG = (
    "test_sweep",
    "test_hosts",
    "test_end_to_end",
    "test_own_data",
    "test_step",
    "test_explain",
    "test_adaptation",
    "test_pretrained",
    "test_results",
    "test_export",
    "test_ensemble",
    "test_parts",
    "test_train_population",
    "test_segmentation_commands",
    "test_report_page",
    "test_registration",
    "test_architectures",
    "test_synthetic",
    "test_policy",
    "test_perturb",
    "test_gallery",
    "test_start",
    "test_losses",
    "test_patches",
    "test_phantom",
    "test_robustness",
)


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def forgotten():
    """Drops the compiled programs after each file.

    A process may map 65,530 regions of memory on Linux. The programs of all files need
    more, and then the process ends with a segmentation fault.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def optimised():
    """For files that compute more than they compile, or that test compiled code.

    It also holds in the processes that they start.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", True)


def _item(n: int, tasks: tuple[str, ...], shape: tuple[int, ...]) -> Item:
    """Film number n: every value tells n, so that a mix-up shows."""
    rng = np.random.default_rng(n)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    pixels[-1] = 0  # Encodings that strip zeros from the end would show.
    label = rng.choice([0.0, 1.0, 0.7, math.nan], len(tasks))
    row = {
        "image": f"film, {n}\u00e9.png",
        "patient": 100 + n // 2,
        "view": ("PA", "AP", "LATERAL", "")[n % 4],
        "sex": ("F", "M", "")[n % 3],
        "age": math.nan if n % 5 == 0 else 20.0 + n,
        "width": 1000 + n,
        "height": 2000 + n,
        "spacing_x": math.nan if n % 7 == 0 else 0.1234567 + n / 1000,
        "spacing_y": math.nan if n % 7 == 0 else 1 / (3 + n),
        "official": ("train", "validation", "test", "")[n % 4],
        "follow_up": math.nan if n % 6 == 0 else float(n % 5),
        **dict(zip(tasks, label.tolist(), strict=True)),
    }
    return Item(row, pixels, [(tasks[0], n, n + 0.25, n + 1, n + 2)] * (n % 3))


@pytest.fixture(scope="session")
def make_items():
    """(number of images, tasks, shape) -> their items."""

    def make(images, tasks=("a", "b", "c"), shape=(SIDE, SIDE, 1)) -> list[Item]:
        return [_item(n, tasks, shape) for n in range(images)]

    return make


@pytest.fixture(scope="session")
def make_source():
    """(items, tasks) -> a Source of them."""

    def make(items, tasks=("a", "b", "c")) -> Source:
        images = (item.content for item in items if item.content is not None)
        shape = next((image.shape for image in images), (1, 1, 1))
        return Source(tasks, shape, len(items), lambda: items)

    return make


class Page(HTMLParser):
    """A page as read: its text, what it asks for, and tags left open."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.stack, self.text = [], [], ""
        self.feed(text)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.stack.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.text += " " + data


@pytest.fixture
def put(tmp_path):
    """bytes -> the path of a file that holds them."""

    def write(data, name="weights.pth"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def check_equal(found, truth):
    """Two dicts of arrays are the same, to dtypes and bits."""
    assert found.keys() == truth.keys()
    for name, array in truth.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


def shapes(model, *shape):
    """Of a network's variables, without computing them."""
    image = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), image
    )

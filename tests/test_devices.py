"""What is compiled is traced fast, and kept where it was asked for."""

import gc
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from launching import ROOT, restored, run_here

import medjax
from medjax.commands import sweep, train
from medjax.training import devices, step


@pytest.fixture
def nothing_asked(monkeypatch):
    """A process whose JAX was given no folder; what it is left with goes again."""
    with restored():
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        jax.config.update("jax_compilation_cache_dir", None)
        yield


def found():
    return jax.config.jax_compilation_cache_dir


def test_without_being_asked_it_is_kept_at_home(nothing_asked, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    devices.keep()
    assert found() == str(tmp_path / ".cache/medjax/compiled")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == found()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_folder_of_the_users_stays(nothing_asked, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "variable"))
    devices.keep()
    assert found() == str(tmp_path / "variable")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "option"))
    devices.keep()
    assert found() == os.environ["JAX_COMPILATION_CACHE_DIR"] == f"{tmp_path}/option"


def test_the_programs_read_longest_ago_go_first(nothing_asked, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(devices, "CACHED", 250)
    reads = {"new-cache": 30, "oldest-cache": 10, "old-cache": 20, "thesis.tex": 5}
    for name, read in reads.items():
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (read, 99 - read))
    devices.keep()
    assert {path.name for path in tmp_path.iterdir()} == reads.keys() - {"oldest-cache"}


@pytest.mark.parametrize(
    "command",
    [
        lambda: medjax.launch(None, "nowhere"),
        lambda: medjax.sweep(None, [], "nowhere"),
        lambda: run_here("unknown", code=2),
    ],
)
def test_every_way_in_keeps_programs(command, nothing_asked, monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(train, "train", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "sweep", lambda *_, **__: {})
    monkeypatch.setattr(devices, "keep", lambda: kept.append(True))
    command()
    assert kept == [True]


@pytest.mark.slow
def test_a_process_that_has_compiled_already_keeps_the_rest(tmp_path):
    code = (
        "import jax; jax.jit(lambda x: x + 1)(1.0)\n"
        "from medjax.training import devices; devices.keep()\n"
        "jax.jit(lambda x: x * 2)(1.0)"
    )
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path)},
        check=True,
    )
    assert any((tmp_path / ".cache/medjax/compiled").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's option")
def test_freed_memory_is_there_for_what_comes_next():
    """Pages that the machine must clear, for buffers of the same size again and again."""
    code = (
        "import ctypes, resource, sys, threading\n"
        "if sys.argv[1] == 'kept': import medjax\n"
        "import pandas\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "libc, size = ctypes.CDLL(None), ctypes.c_size_t\n"
        "libc.malloc.argtypes, libc.malloc.restype = [size], ctypes.c_void_p\n"
        "libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, size]\n"
        "libc.free.argtypes = [ctypes.c_void_p]\n"
        "def update():\n"
        "    for _ in range(3):\n"
        "        blocks = [libc.malloc(number << 20) for number in (100, 30)]\n"
        "        for block in blocks: libc.memset(block, 1, 30 << 20)\n"
        "        for block in blocks: libc.free(block)\n"
        "def threaded():\n"
        "    thread = threading.Thread(target=update); thread.start(); thread.join()\n"
        "for work in (update, threaded):\n"
        "    work(); before = faults(); work(); print(faults() - before)\n"
    )
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.exists() and "[always]" in huge.read_text():
        pytest.skip("pages are huge here, and few")
    for state, few in [("given", False), ("kept", True)]:
        done = subprocess.run(
            [sys.executable, "-c", code, state],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        pages = list(map(int, done.stdout.split()))
        assert all((number < 10_000) == few for number in pages), (state, pages)


def test_the_deterministic_flag_reaches_xla(tmp_path):
    """Which writes down the options that it compiles with, those of the user's too."""
    code = (
        "from medjax.training import devices; devices.deterministic()\n"
        "import jax; jax.jit(lambda x: x + 1)(1.0)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": f"--xla_dump_to={tmp_path}"},
        check=True,
    )
    (options,) = tmp_path.glob("*.debug_options")
    assert "xla_gpu_deterministic_ops: true" in options.read_text()


@pytest.mark.parametrize("gpu", [True, False])
def test_the_deterministic_flag_says_where_it_changes_nothing(
    gpu, monkeypatch, tmp_path
):
    (tmp_path / "nvidia0").touch(exist_ok=True)
    place = tmp_path if gpu else tmp_path / "none"
    monkeypatch.setattr(devices, "GPUS", [f"{place}/nvidia[0-9]*"])
    out, _ = run_here("unknown", "--deterministic", code=2)
    assert ("--deterministic: " in out) is not gpu


@pytest.fixture
def collecting(monkeypatch):
    """What the collector does while a step is traced that stands for every one."""
    seen = []

    def traced(state, batch, key=None):
        seen.append(gc.isenabled())
        return state

    monkeypatch.setattr(step, "train_step", traced)
    return seen


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (step.compile_step, 3),
        (lambda: step.compile_arms(devices=1), 3),
        (
            lambda: step.compile_eval(lambda state, rows: step.train_step(rows, state)),
            2,
        ),
    ],
)
def test_the_garbage_collector_waits_for_what_is_traced(make, number, collecting):
    arguments = [jnp.zeros((jax.device_count(), 2)) for _ in range(number)]
    function = make()
    function(*arguments)
    if hasattr(function, "lower"):
        make().lower(*arguments)
    assert collecting and not any(collecting)
    assert gc.isenabled()


def test_the_garbage_collector_is_left_as_it_was():
    @devices.uncollected
    def fail():
        assert not gc.isenabled()
        raise ValueError

    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(ValueError):
                fail()
            assert gc.isenabled() == enabled
        finally:
            gc.enable()

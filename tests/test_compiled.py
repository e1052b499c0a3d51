"""What is compiled is traced fast, and kept where it was asked for."""

import gc
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from launching import ROOT, restored, run_here

import medjax
from medjax import commands
from medjax.sweeping import sweep
from medjax.training import compiled, step


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
    compiled.keep()
    assert found() == str(tmp_path / ".cache/medjax/compiled")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == found()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_folder_of_the_users_stays(nothing_asked, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "variable"))
    compiled.keep()
    assert found() == str(tmp_path / "variable")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "option"))
    compiled.keep()
    assert found() == os.environ["JAX_COMPILATION_CACHE_DIR"] == f"{tmp_path}/option"


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
    monkeypatch.setattr(commands, "train", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "sweep", lambda *_, **__: {})
    monkeypatch.setattr(compiled, "keep", lambda: kept.append(True))
    command()
    assert kept == [True]


def test_a_process_that_has_compiled_already_keeps_the_rest(tmp_path):
    code = (
        "import jax; jax.jit(lambda x: x + 1)(1.0)\n"
        "from medjax.training import compiled; compiled.keep()\n"
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
    arguments = [jnp.zeros((1, 2)) for _ in range(number)]
    make().lower(*arguments)
    make()(*arguments)
    assert collecting and not any(collecting)
    assert gc.isenabled()


def test_the_garbage_collector_is_left_as_it_was():
    @compiled.uncollected
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

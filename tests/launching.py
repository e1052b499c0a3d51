"""Commands as a user types them, and a phantom small enough for a test."""

import contextlib
import fcntl
import io
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pandas as pd
import small
from absl.testing import flagsaver

ROOT = Path(__file__).parents[1]
NIH = ROOT.parent / "shared/data/nih-sample"
SMALL = ["--config=tests/small.py"]
ENSEMBLE = [*SMALL, "--config.ensemble=2", "--config.train.keep=3"]
ENSEMBLE += ["--config.evaluation.calibration=platt"]


def process(*arguments):
    """How a command is started in a process of its own, on one device."""
    return {
        "args": [sys.executable, "launch.py", *map(str, arguments)],
        "cwd": ROOT,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def start(*arguments):
    """Starts a command in a process of its own."""
    return subprocess.Popen(**process(*arguments))


def run(*arguments, code=0):
    """Runs a command in a process of its own; what it said, and its errors."""
    done = subprocess.run(**process(*arguments), timeout=600, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@contextlib.contextmanager
def restored():
    """Puts back what a command sets for its whole process."""
    log, flags = logging.getLogger("medjax"), flagsaver.save_flag_values()
    handlers, propagate = list(log.handlers), log.propagate
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    options = {name: getattr(jax.config, name) for name in names}
    try:
        with mock.patch.dict(os.environ), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"the load_module\(\)")  # ml_collections
            yield
    finally:
        # Libraries that the command imported keep the flags that they brought along.
        found = flagsaver.save_flag_values()
        brought = {k: v for k, v in found.items() if not k.startswith("config.")}
        flagsaver.restore_flag_values(brought | flags)
        log.handlers, log.propagate = handlers, propagate
        for name, value in options.items():
            jax.config.update(name, value)


def run_here(*arguments, code=0, devices=1):
    """Runs a command in this process, where all is imported already.

    Args:
      arguments: of the command line, after launch.py.
      code: the exit code that it must have.
      devices: that it sees.

    Returns:
      What it said, and its errors.
    """
    import launch

    line = ["launch.py", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    seen = jax.local_devices()[:devices]
    with (
        restored(),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", line),
        mock.patch.object(jax, "device_count", lambda: devices),
        mock.patch.object(jax, "local_device_count", lambda: devices),
        mock.patch.object(jax, "local_devices", lambda: seen),
        mock.patch.object(jax, "devices", lambda: seen),
    ):
        try:
            found = launch.main(launch.parse(line))
        except SystemExit as stop:
            found = stop.code
    assert found == code, out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()


def ensemble():
    """The folder of a small ensemble, trained once for all files."""
    run = Path(os.environ["MEDJAX_TESTS"]) / "ensemble"
    with run.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "report.html").exists():
            out, _ = run_here("train", f"--workdir={run}", *ENSEMBLE)
            assert "2 members of" in out
    return run


def stored(path):
    """Each image of prepared records, its pixels and its row of the table: dicts."""
    text = dict.fromkeys(("view", "sex", "official"), str)
    options = {"keep_default_na": False, "na_values": [""], "dtype": text}
    table = pd.read_csv(path / "table.csv", **options).fillna(dict.fromkeys(text, ""))
    rows, pixels = table.to_dict("records"), np.load(path / "pixels.npy")
    return [row | {"pixels": of_row} for row, of_row in zip(rows, pixels, strict=True)]


def small_films():
    """Every film of the small config."""
    from medjax.tasks import films

    return stored(films.data(small.get_config()).path)

"""medjax: train, evaluate and explain models that read medical images.

    import medjax
    from configs import quickstart

    report = medjax.launch(quickstart.get_config(), "runs/quickstart")
    results = medjax.sweep(config, [{"seed": s} for s in range(5)], "runs/seeds")

These are the commands `train` and `sweep` of launch.py, and give the same. Nothing of
JAX is imported before they are called. Import medjax before NumPy, pandas and JAX: see
`keep_freed_memory`.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medjax.config import Config

__version__ = "0.3.0"

# Where Linux shows GPUs of NVIDIA and AMD, and TPUs, before JAX looks for them.
ACCELERATORS = "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*"
# Options of glibc's malloc.h: M_MMAP_MAX 0, M_ARENA_MAX 1, M_TRIM_THRESHOLD 2 GB. Large
# blocks come from the heap, all threads share it, and it keeps what is freed.
MALLOC = {-4: 0, -8: 1, -1: 2**31 - 1}


def keep_freed_memory() -> None:
    """Lets this process keep up to 2 GB of freed memory for what comes next.

    On a CPU, XLA frees its buffers after every update. By default glibc gives large
    ones back to the kernel, which must clear every page for the next update. Heaps of
    threads that are there already stay apart, so that this has to come before the
    libraries that start threads. A host with an accelerator keeps glibc's ways.
    """
    if not any(map(glob.glob, ACCELERATORS)):
        with contextlib.suppress(AttributeError, OSError, TypeError):  # No glibc.
            mallopt = ctypes.CDLL(None).mallopt
            for option, value in MALLOC.items():
                mallopt(option, value)


keep_freed_memory()


def launch(
    config: Config, workdir: str | os.PathLike, *, profile: str | None = None
) -> dict | None:
    """Trains a run, or goes on with the one in its folder, and reports its test split.

    `profile` is a folder for a trace of ten steps.

    Returns:
      What report.json says; None if it was stopped, or has nobody to test on.

    Raises:
      InputError: a mistake in the config or the data, or a diverged training.
    """
    from medjax import buckets
    from medjax.commands.train import train
    from medjax.training import devices

    devices.keep()
    with buckets.opened(workdir) as folder:
        train(config, folder, profile=profile)
        report = folder / "report.json"
        return json.loads(report.read_text()) if report.exists() else None


def sweep(
    config: Config,
    arms: Iterable[Mapping[str, Any]],
    workdir: str | os.PathLike,
    **options: Any,
) -> dict:
    """Trains a config under many overrides, and compares what comes out.

    Args:
      config: what all runs have in common.
      arms: the overrides of each: [{"imbalance": "ratio", "seed": 3}, ...].
      workdir: of the sweep; a run's is arms/<its overrides>/ in it.
      options: executor, baseline and slurm, see commands/sweep.py.

    Returns what sweep.json says; raises as `launch`, before anything runs.
    """
    from medjax.buckets import on_disk
    from medjax.commands.sweep import sweep as run_sweep
    from medjax.files import held
    from medjax.training import devices

    devices.keep()
    folder = on_disk("workdir", workdir)
    with held(folder):
        return run_sweep(config, arms, folder, **options)

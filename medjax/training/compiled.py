"""What precedes the first step: devices, tracing, and compiling once for all runs."""

import contextlib
import ctypes
import functools
import gc
import os
from collections.abc import Callable
from typing import Any

import jax

FOLDER = "~/.cache/medjax/compiled"
# Of glibc's malloc.h: no maps of their own for large blocks, one heap for all threads,
# and what is free at its end stays, up to so many bytes.
MALLOC = {-4: 0, -8: 1, -1: 2**31 - 1}
DEVICES = 8  # At most, of a CPU: each holds the state, and they wait for each other.


def keep() -> None:
    """Keeps what this process and the ones that it starts compile, for the next.

    In the folder that JAX was given already, by `jax_compilation_cache_dir` or by
    $JAX_COMPILATION_CACHE_DIR, else in FOLDER. This process also keeps the memory that
    it frees, for what it does next.
    """
    _keep_memory()
    given = jax.config.jax_compilation_cache_dir  # The variable too, if set in time.
    folder = given or os.environ.get("JAX_COMPILATION_CACHE_DIR") or FOLDER
    folder = os.path.expanduser(folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # A sweep's processes share it.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _keep_memory() -> None:
    """Lets glibc hold up to 2 GB of freed memory; elsewhere it does nothing.

    On a CPU, XLA frees an update's buffers after it. Given back to the machine, which
    is what glibc does with large ones, every page must be cleared for the next update:
    a fifth of the processors' time of the quickstart's.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # No glibc.
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in MALLOC.items():
            mallopt(option, value)


def use_cores(*batches: int, most: int = DEVICES) -> None:
    """Makes a JAX device of each core of a CPU.

    A step has small operations, which several cores share badly: two devices of one
    core each train the lesions' U-Net 1.3 times as fast as one of two cores, and
    predict by DenseNet-121 1.5 times. To be called before JAX looks for devices: it
    changes nothing after that, nor what was set as jax_num_cpu_devices, nor another
    platform.

    Args:
      batches: sizes, each of which the devices must be able to share.
      most: devices.
    """
    if jax.config.jax_num_cpu_devices > 0:
        return
    devices = max(min(os.cpu_count() or 1, most), 1)
    while any(max(batch, 1) % devices for batch in batches):
        devices -= 1
    with contextlib.suppress(RuntimeError):  # It has looked.
        jax.config.update("jax_num_cpu_devices", devices)


def uncollected(function: Callable) -> Callable:
    """A compiled function in whose calls Python's garbage collector waits.

    The first call traces, and makes hundreds of thousands of objects that stay: to
    look at them again and again took a third of the time for DenseNet-121's step.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        collects = gc.isenabled()
        gc.disable()
        try:
            return function(*arguments, **named)
        finally:
            if collects:
                gc.enable()

    if hasattr(function, "lower"):
        call.lower = uncollected(function.lower)
    return call

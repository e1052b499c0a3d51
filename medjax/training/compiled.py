"""What precedes the first step: tracing it fast, and compiling it once for all runs."""

import functools
import gc
import os
from collections.abc import Callable
from typing import Any

import jax

FOLDER = "~/.cache/medjax/compiled"


def keep() -> None:
    """Keeps what this process and the ones that it starts compile, for the next.

    In the folder that JAX was given already, by `jax_compilation_cache_dir` or by
    $JAX_COMPILATION_CACHE_DIR, else in FOLDER.
    """
    given = jax.config.jax_compilation_cache_dir  # The variable too, if set in time.
    folder = given or os.environ.get("JAX_COMPILATION_CACHE_DIR") or FOLDER
    folder = os.path.expanduser(folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # A sweep's processes share it.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


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

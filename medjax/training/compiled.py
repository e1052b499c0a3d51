"""Compiled programs that outlive their process: JAX's persistent cache, on by default."""

import os

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

"""What precedes the first step: devices, tracing, and compiling once for all runs.

Several processes that train one run: how they meet, agree and share the work.

Every process runs the same commands on a file system that all of them see. All of them
compute; process 0 alone writes, and prints.
"""

import contextlib
import ctypes
import functools
import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.errors import InputError

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


HEARTBEAT = 30  # Seconds of silence after which a process counts as dead.
MEET = 120  # Seconds that processes wait for each other at the start.
LONGEST = 24 * 3600  # Seconds that the others wait for one that works alone.

Rows = TypeVar("Rows", bound=tuple)


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meets the other processes; before anything else that asks for devices.

    If one of them dies, all others end with an error that says so, HEARTBEAT seconds
    later at most. If one doesn't come, those that did end after MEET seconds, with the
    exit code 2: JAX would abort them.

    Args:
      coordinator: 'HOST:PORT' of process 0, a free port there. With None here and
        below the cluster's environment says (SLURM, TPU pods, Open MPI).
      processes: how many.
      process: the number of this one.

    Raises:
      InputError: the three don't fit, or the environment is of no known cluster.
    """
    watch = threading.Timer(MEET, _give_up)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            _accelerators(),
            initialization_timeout=2 * MEET,  # Never to come: then it aborts.
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=LONGEST,
        )
        watch.cancel()
        _connect()
    except (RuntimeError, ValueError) as error:
        raise InputError(_apart(str(error).strip().splitlines()[0])) from None
    finally:
        watch.cancel()


def _apart(why: str) -> str:
    return (
        f"the processes of the run didn't meet ({why}): start each one with "
        "--coordinator=HOST:PORT, --processes=N and its own --process=0 to N - 1"
    )


def _give_up() -> None:
    """Ends this process, whose main thread waits in JAX and can't be told."""
    why = f"not all came within {MEET} seconds"
    print(f"error: {_apart(why)}", file=sys.stderr, flush=True)
    os._exit(2)


def _accelerators() -> list[int] | None:
    """Which of the node's accelerators are this process's: none named is all of them.

    Under SLURM JAX gives each process the one of its number on the node. That is right
    for a process a card; one that is alone on its node has them all.
    """
    tasks, nodes = map(os.environ.get, ("SLURM_NTASKS", "SLURM_STEP_NUM_NODES"))
    return [] if tasks and tasks == nodes else None


def _connect() -> None:
    """Lets all devices find each other now, when all processes are here.

    CPUs do so at their first sum over the same devices, and give up on one that comes
    30 seconds later, as a process that compiles beside another may. Later sums wait.
    """
    wait("to connect")  # A sum over the processes; now one over the devices.
    everywhere = NamedSharding(
        Mesh(jax.devices(), ("device",)), PartitionSpec("device")
    )
    count = jax.device_count()
    ones = jax.make_array_from_callback(
        (count,), everywhere, lambda part: np.ones(count, np.int32)[part]
    )
    together = NamedSharding(everywhere.mesh, PartitionSpec())
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=together)(ones))


def first() -> bool:
    """Whether this is process 0, which writes."""
    return jax.process_index() == 0


def alone() -> bool:
    """Whether there is no other process."""
    return jax.process_count() == 1


def wait(where: str) -> None:
    """Goes on when all processes have come here."""
    if not alone():
        multihost_utils.sync_global_devices(where)


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """A block that process 0 goes through before all others: they find what it made."""
    if not first():
        wait("for process 0")
    yield
    if first():
        wait("for process 0")


def any_of_us(flag: bool) -> bool:
    """Whether it is so for one process at least; all must ask."""
    if alone():
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def gather(mine: Rows, total: int) -> Rows:
    """Puts the processes' parts together again, in their order.

    Args:
      mine: a NamedTuple of arrays [n, ...], this process's: every P-th row of all, from its own number on.
      total: N, rows of all processes.
    """
    if alone():
        return mine
    most = math.ceil(total / jax.process_count())
    fill = [np.zeros((most - len(x), *x.shape[1:]), x.dtype) for x in mine]
    filled = [np.concatenate(pair) for pair in zip(mine, fill, strict=True)]
    parts = multihost_utils.process_allgather(filled)  # [P, most, ...]
    whole = [np.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:total] for x in parts]
    return type(mine)(*whole)

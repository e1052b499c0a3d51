"""Devices, hosts, and the compile cache: what precedes the first step.

Several processes, the hosts, may train one run: all run the same commands on a file
system that all of them see, all compute, and process 0 alone writes and prints.
"""

import contextlib
import functools
import gc
import glob
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import ArrayTree
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.errors import InputError

FOLDER = "~/.cache/medjax/compiled"
CACHED = 10 * 2**30  # Bytes of compiled programs that stay.
GPUS = ("/dev/nvidia[0-9]*", "/dev/kfd")  # Before JAX looks for them.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
MAX_CPU_DEVICES = 8  # Each holds the state, and they wait for each other.
HEARTBEAT = 30  # Seconds of silence after which a process counts as dead.
MEET = 120  # Seconds that processes wait for each other at the start.
LONGEST_WAIT = 24 * 3600  # Seconds that the others wait for one that works alone.


def keep() -> None:
    """Enables the persistent compilation cache.

    It is in the folder that JAX already has, from `jax_compilation_cache_dir` or
    $JAX_COMPILATION_CACHE_DIR, or else in FOLDER, and loses its oldest programs where it
    exceeds CACHED. Processes that this one starts share it.
    """
    configured = jax.config.jax_compilation_cache_dir  # Also from the variable.
    folder = configured or os.environ.get("JAX_COMPILATION_CACHE_DIR") or FOLDER
    folder = os.path.expanduser(folder)
    _prune(Path(folder))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def deterministic() -> bool:
    """Makes XLA take operations of a GPU that give the same bits in every run.

    They are slower. Without it the kernels are those that were fastest when tried, and
    some of them add up in any order. Call it before JAX looks for devices. It holds for
    processes that this one starts, too, and environment.json has it in XLA_FLAGS.

    Returns whether there is a GPU; all other devices give the same bits anyway.
    """
    flags = os.environ.get("XLA_FLAGS", ""), DETERMINISTIC
    os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))
    return any(map(glob.glob, GPUS))


def _prune(folder: Path) -> None:
    """Deletes the programs that were read longest ago, down to CACHED bytes in all.

    Other files of the folder, which the user may have named, stay.
    """
    if not folder.is_dir():
        return
    with contextlib.suppress(OSError):  # Another process prunes it, or owns it.
        files = [entry for entry in os.scandir(folder) if entry.name.endswith("-cache")]
        excess = sum(file.stat().st_size for file in files) - CACHED
        for file in sorted(files, key=lambda file: file.stat().st_atime):
            if excess <= 0:
                return
            excess -= file.stat().st_size
            os.unlink(file)


def use_cores(*batches: int, most: int = MAX_CPU_DEVICES) -> None:
    """Makes each CPU core a JAX device, at most `most`, as many as divide all batches.

    Several cores don't share the small operations of a step well: two devices of one
    core each train a U-Net and predict by DenseNet-121 faster than one device of two
    cores. Call it before JAX looks for devices; later it changes nothing. It respects
    jax_num_cpu_devices and other platforms.
    """
    if jax.config.jax_num_cpu_devices > 0:
        return
    from medjax.data.prepared import cores  # Late: pandas starts threads, and `keep`
    # must come before these.

    devices = max(min(cores(), most), 1)
    while any(max(batch, 1) % devices for batch in batches):
        devices -= 1
    with contextlib.suppress(RuntimeError):  # JAX has its devices.
        jax.config.update("jax_num_cpu_devices", devices)


def uncollected(function: Callable) -> Callable:
    """A compiled function that is called without Python's garbage collector.

    The first call traces, and makes hundreds of thousands of objects that stay. Scanning
    them again and again took a third of the time for DenseNet-121's step.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return function(*arguments, **named)
        finally:
            if enabled:
                gc.enable()

    if hasattr(function, "lower"):
        call.lower = uncollected(function.lower)
    return call


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Connects to the other processes; call it before JAX looks for devices.

    If a process dies, all others end with an error about it within HEARTBEAT seconds.
    If one doesn't come, the others end after MEET seconds with exit code 2; JAX would
    abort them.

    Args:
      coordinator: 'HOST:PORT' of process 0, a free port there. If all three are None,
        the cluster's environment gives them (SLURM, TPU pods, Open MPI).
      processes, process: their number, and that of this one.

    Raises:
      InputError: the three contradict each other, or no known cluster is found.
    """
    watch = threading.Timer(MEET, _give_up)
    watch.daemon = True
    watch.start()
    # Under SLURM JAX gives each process one card. A process alone on its node needs all.
    tasks, nodes = map(os.environ.get, ("SLURM_NTASKS", "SLURM_STEP_NUM_NODES"))
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            [] if tasks and tasks == nodes else None,  # [] is all, None JAX's choice.
            initialization_timeout=2 * MEET,  # JAX would abort: `watch` is earlier.
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=LONGEST_WAIT,
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
    """Ends this process, whose main thread waits in JAX and can't be interrupted."""
    why = f"not all came within {MEET} seconds"
    print(f"error: {_apart(why)}", file=sys.stderr, flush=True)
    os._exit(2)


def _connect() -> None:
    """Connects all devices now, while all processes are here.

    CPUs connect in their first sum over the same devices, and give up after 30 seconds,
    which a process that compiles more slowly than another may exceed. Later sums wait.
    """
    wait("to connect")  # This sums over the processes; what follows over the devices.
    mesh = Mesh(jax.devices(), ("device",))
    count = jax.device_count()
    ones = jax.make_array_from_callback(
        (count,),
        NamedSharding(mesh, PartitionSpec("device")),
        lambda part: np.ones(count, np.int32)[part],
    )
    together = NamedSharding(mesh, PartitionSpec())
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=together)(ones))


def first() -> bool:
    """Whether this is process 0, which writes."""
    return jax.process_index() == 0


def alone() -> bool:
    """Whether there is no other process."""
    return jax.process_count() == 1


def wait(where: str) -> None:
    """Waits until all processes are here."""
    if not alone():
        multihost_utils.sync_global_devices(where)


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """A block that process 0 runs before all others, which find its results."""
    if not first():
        wait("for process 0")
    yield
    if first():
        wait("for process 0")


def any_of_us(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes must call it."""
    if alone():
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def all_stop(step: int) -> bool:
    """Whether SIGTERM has reached any of several processes, before this step's end.

    JAX's preemption service tells all processes, which then hear it at the same step.
    All must ask at every step; it costs no communication (14 us on a CPU).
    """
    return not alone() and multihost_utils.reached_preemption_sync_point(step)


def gather(mine: ArrayTree, total: int) -> ArrayTree:
    """Puts the `total` rows of all processes together, in order.

    Of the P processes' rows, this one has every P-th from its own number on.
    """
    if alone():
        return mine
    most = math.ceil(total / jax.process_count())

    def fill(x: np.ndarray) -> np.ndarray:
        blank = np.zeros((most - len(x), *x.shape[1:]), x.dtype)
        return np.concatenate([x, blank])

    # [P, most, ...]
    parts = multihost_utils.process_allgather(jax.tree.map(fill, mine))
    return jax.tree.map(
        lambda x: np.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:total], parts
    )

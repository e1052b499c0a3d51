"""How long a host takes to issue an update where several processes train one run.

    python tests/bench_hosts.py [--processes=2] [--arrays=483]

The state has as many arrays as DenseNet-121's (parameters, moments and averages), of one
number each, so that nothing else takes time. Beside `step.compile_step` the same update
is issued by pmap. The time is the processor's, of the thread that calls, until the call
returns while the devices are idle: other work on the machine doesn't count.
"""

import argparse
import functools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from medjax import losses
from medjax.data import loader
from medjax.training import devices, optim, step

CALLS, FIRST = 20, 3  # Calls that are measured, after these.


def apply(variables, image, **_):
    """A network without layers: its parameters' sum times the image's mean."""
    weight = sum(jax.tree.leaves(variables["params"]))
    return weight * jnp.mean(image, axis=(1, 2, 3))[:, None], {}


def issuing(update, state, batch) -> float:
    """Milliseconds of the processor, the median of CALLS."""
    key, took = jax.random.key(0), []
    for _ in range(FIRST + CALLS):
        jax.block_until_ready(state)
        start = time.thread_time()
        state, scalars = update(state, batch, key)
        took.append(time.thread_time() - start)
        jax.block_until_ready(scalars)
    return 1e3 * float(np.median(took[FIRST:]))


def one(arrays: int) -> dict[str, float]:
    """Both ways, in this process of several."""
    parts = {
        "apply": apply,
        "augment": lambda key, batch: batch,
        "loss": losses.weighted_bce,
        "optimizer": optim.adamw(steps=1000, warmup=10, clip=1.0),
    }
    names = [f"layer{n}" for n in range(arrays)]
    weights = {"w_pos": jnp.ones(1), "w_neg": jnp.ones(1)}
    host = {
        "image": np.ones((1, 2, 4, 4, 1), np.float32),
        "label": np.ones((1, 2, 1), np.float32),
        "weight": np.ones((1, 2, 1), np.float32),
    }

    def state():
        return step.init_state(
            {"params": {"stage": {name: jnp.ones(1) for name in names}}},
            optimizer=parts["optimizer"],
            dual={},
            hyper=optim.Hyper(1e-3, 1e-5, 0.99, 0.1, weights),
        )

    update = step.compile_step(**parts)
    placed = step.everywhere(state()), loader.to_device(host)
    by_pmap = jax.pmap(
        functools.partial(step.train_step, **parts),
        axis_name=step.AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_argnums=0,
    )
    return {
        "arrays": len(jax.tree.leaves(state())),
        "ms": issuing(update, *placed),
        "pmap ms": issuing(by_pmap, jax.device_get(state()), host),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--arrays", type=int, default=483, help="of the parameters")
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process is not None:
        devices.join(f"localhost:{args.port}", args.processes, args.process)
        return print(json.dumps(one(args.arrays)))
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    flags = [f"--processes={args.processes}", f"--arrays={args.arrays}"]
    command = [sys.executable, __file__, *flags, f"--port={port}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    started = [
        subprocess.Popen(
            [*command, f"--process={number}"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(args.processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("a process failed")
    print(outputs[0].splitlines()[-1])


if __name__ == "__main__":
    main()

"""DenseNet-121's training step and inference beside PyTorch's, on one machine in one go.

    python tests/bench_step.py --peer-python=PATH [--device=cpu|cuda] [--rounds=3]
        [--volumes]

Each round runs the peer's script and then the same work here, each in a process of its
own: 224 x 224 x 3 -> 14 logits, on the CPU 16 images in float32, on a GPU 256 in
bfloat16. With --volumes it is 64 x 64 x 64 x 4, 2 or 32 of them, beside MONAI. The
peer's step is forward, binary cross-entropy, backward, Adam; ours is the whole of
`compile_step`: standardising, AdamW with clipping, and moving averages too.
Inference is what `evaluate` and `predict` run: `compile_eval`, with a device for each
core of a CPU, standardising and the sigmoid too.
The first round compiles, the others find that in JAX's persistent cache. The table has
the medians over the rounds and the median of the rounds' ratios; seconds of the
processors, user and system, tell more than seconds where others use the machine.
"""

import argparse
import functools
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from medjax import losses
from medjax.data import normalisation
from medjax.models import architectures
from medjax.training import optim, step
from medjax.training.devices import keep, use_cores

TASKS, SIDE = 14, 224
VOLUME = (64, 64, 64, 4)


def spent() -> float:
    """Seconds of the processors in this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(work, repeats=5) -> tuple[float, float]:
    """The median seconds and the mean processor seconds of a call, after two others."""
    seconds = []
    for i in range(repeats + 2):
        if i == 2:
            before = spent()
        start = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[2:])), (spent() - before) / repeats


def augment(key, batch):
    image = normalisation.standardise(batch["image"] / 255.0, mean=0.5, std=0.25)
    return batch | {"image": image}


def operations(function, *arguments) -> float:
    """The multiplications and additions of a call's convolutions and products.

    Those of one device, by its platform's native operations. The compiler's own count
    knows nothing of what it leaves to a library, as on GPUs.
    """
    return _operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def _operations(program, live=None) -> float:
    """Of those that the outputs depend on, all or the `live` ones."""
    pairs = zip(program.outvars, live or itertools.repeat(True), strict=False)
    needed = {id(value) for value, is_live in pairs if is_live}
    total = 0
    for equation in reversed(program.eqns):
        name, params = equation.primitive.name, equation.params
        used = [id(value) in needed for value in equation.outvars]
        if not any(used):
            continue
        needed |= {id(value) for value in equation.invars}
        if name in ("dot_general", "conv_general_dilated"):
            left, right = (value.aval for value in equation.invars[:2])
            dimensions = params["dimension_numbers"]
            if name == "dot_general":
                depth = math.prod(left.shape[axis] for axis in dimensions[0][0])
            else:  # Dilation fills a gradient with zeros.
                depth = right.size / right.shape[dimensions.rhs_spec[0]]
                depth /= math.prod(params["lhs_dilation"])
            total += 2 * equation.outvars[0].aval.size * depth
            continue
        inner = (x for x in jax.tree.leaves(params) if hasattr(x, "eqns"))
        outputs = None if name in ("scan", "while") else used
        each = [_operations(getattr(x, "jaxpr", x), outputs) for x in inner]
        if name == "cond":  # The last branch of platforms is the native one.
            each = each[-1:] if params["branches_platforms"] else [max(each)]
        total += params.get("length", 1) * sum(each)
    return total


def trained(update, state, batch, key) -> tuple[step.State, dict[str, float]]:
    """Compiles an update and repeats it: the last state, and what it took."""
    counted = operations(update, state, batch, key)
    start = time.perf_counter()
    lowered = update.lower(state, batch, key)
    traced = time.perf_counter()
    update = lowered.compile()
    compiled = time.perf_counter()

    def train():
        nonlocal state
        state, scalars = update(state, batch, key)
        return scalars

    took, worked = timed(train)
    issuing = time.perf_counter()
    train()
    issued = time.perf_counter()
    return jax.block_until_ready(state), {
        "step_s": took,
        "cpu_s": worked,
        "trace_s": traced - start,
        "compile_s": compiled - traced,
        "issue_s": issued - issuing,
        "tflops": counted / took / 1e12,
    }


def ours(
    images: int,
    dtype: str,
    *,
    network: str = "densenet121",
    shape: tuple[int, ...] = (SIDE, SIDE, 3),
) -> dict[str, float]:
    """One process's numbers, of so many images or volumes of this shape."""
    make = functools.partial(getattr(architectures, network), TASKS)
    model = make(axis_name=step.AXIS, dtype=jnp.dtype(dtype))
    optimizer = optim.adamw(steps=1000, warmup=10, clip=1.0)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, *shape)))
    weights = {"w_pos": jnp.ones(TASKS), "w_neg": jnp.ones(TASKS)}
    hyper = optim.Hyper(1e-4, 1e-5, 0.99, 0.1, weights)
    state = step.init_state(variables, optimizer=optimizer, dual={}, hyper=hyper)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (1, images, *shape), np.uint8),
        "label": rng.integers(0, 2, (1, images, TASKS)).astype(np.float32),
        "weight": np.ones((1, images, TASKS), np.float32),
    }
    batch = jax.pmap(lambda batch: batch, devices=jax.local_devices()[:1])(batch)
    key = jax.random.key(1)
    update = step.compile_step(
        apply=model.apply,
        augment=augment,
        loss=losses.weighted_bce,
        optimizer=optimizer,
    )
    state, row = trained(update, state, batch, key)
    image = jax.device_get(batch["image"])
    devices = jax.local_device_count()
    image = jnp.reshape(image, (devices, -1, *image.shape[2:]))
    image = jax.pmap(lambda image: image)(image)
    state = step.replicated(jax.device_get(state))
    predict = step.compile_eval(
        step.eval_step,
        apply=make(dtype=jnp.dtype(dtype)).apply,
        views=lambda image: augment(key, {"image": image})["image"][None],
        exclusive=False,
    )
    return row | {
        "train": images / row["step_s"],
        "infer": images / timed(lambda: predict(state, image))[0],
        "peak_GB": peak_memory() / 1e9,
    }


def peak_memory() -> int:
    """Bytes: of an accelerator's memory, or of this process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stats.get("peak_bytes_in_use", used)


def child(command, **rest) -> dict[str, float]:
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, **rest)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="of an environment with PyTorch, MONAI")
    peers = Path(__file__).parents[2] / "shared/peers"
    parser.add_argument("--peers", type=Path, default=peers)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--volumes", action="store_true", help="in three dimensions")
    parser.add_argument("--one", action="store_true", help="ours alone, as JSON")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    dtype = "float32" if on_cpu else "bfloat16"
    images, shape = 16 if on_cpu else 256, (SIDE, SIDE, 3)
    how = [args.peers / "train_step.py", "densenet121"]
    if args.volumes:
        images, shape = 2 if on_cpu else 32, VOLUME
        how = [Path(__file__).with_name("peer_volumes.py")]
    if args.one:
        keep()
        use_cores(images)
        return print(json.dumps(ours(images, dtype, shape=shape)))
    script = [args.peer_python, *how, f"--batch={images}", f"--device={args.device}"]
    here, peer = [], []
    with tempfile.TemporaryDirectory() as cache:
        variables = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PLATFORMS": args.device,
        }
        for _ in range(args.rounds):
            if args.peer_python:
                peer.append(child(script))
                print({k: v for k, v in peer[-1].items() if "_s" in k}, flush=True)
            again = [sys.executable, __file__, "--one", f"--device={args.device}"]
            again += ["--volumes"] * args.volumes
            here.append(child(again, env={**os.environ, **variables}))
            print({k: round(v, 2) for k, v in here[-1].items()}, flush=True)
    print(f"{'':8}{'here /s':>10}{'peer /s':>10}{'ratio':>8}")
    for name in ("train", "infer"):
        mine = [one[name] for one in here]
        theirs = [one[f"{name}_samples_per_s"] for one in peer] or [np.nan]
        ratio = np.median(np.divide(mine, theirs))
        print(f"{name:8}{np.median(mine):10.2f}{np.median(theirs):10.2f}{ratio:8.2f}")
    cached = np.median([one["compile_s"] for one in here[1:]] or [np.nan])
    print(f"compiling the step: {here[0]['compile_s']:.1f} s, {cached:.1f} s cached")
    for name, what in [("trace_s", "s of tracing"), ("cpu_s", "processor s a step")]:
        print(f"{np.median([one[name] for one in here]):.1f} {what}")
    print(f"{max(one['peak_GB'] for one in here):.1f} GB at the peak")


if __name__ == "__main__":
    main()

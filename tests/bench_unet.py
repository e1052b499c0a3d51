"""The 3-D U-Net's training step and inference beside MONAI's, on one machine in one go.

    python tests/bench_unet.py --peer-python=PATH [--device=cpu|cuda] [--rounds=3]
        [--options="{'widths': (16, 32, 64), 'strides': (2, 2, 2)}" ...]
    python tests/bench_unet.py --volume

Work: 2 patches of 64 x 64 x 64 x 4 -> 3 masks, soft Dice, AdamW; float32 on the CPU,
bfloat16 on a GPU. The peer is MONAI's UNet of widths 16, 32, 64, 128 with two residual
units, which halves the resolution at once. Ours is the whole of `compile_step`, on a
device for each core of a CPU as `train` makes them, once for each `--options` of the
network. Each round runs the peer and then ours, each in a
process of its own; the table has the medians over the rounds, and of their ratios.
Seconds of the processors tell more than seconds where others use the machine.

--volume says instead what a sliding window over 182 x 218 x 182 x 4 takes: seconds, and
the process's peak of memory.
"""

import argparse
import ast
import functools
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from bench_step import child, peak_memory, timed, trained

from medjax import losses
from medjax.evaluation import sliding
from medjax.models.architectures import unet
from medjax.training import optim, step
from medjax.training.devices import keep, use_cores

MASKS, SEQUENCES, PATCHES, SIDE = 3, 4, 2, 64
OPTIONS = (
    "{'widths': (16, 32, 64, 128), 'strides': (2, 2, 2, 1)}",  # The peer's levels.
    "{'widths': (16, 32, 64), 'strides': (2, 2, 2)}",
    "{'widths': (16, 32, 64, 128), 'strides': (2, 2, 2, 2), 'deep': 2}",
    "{'widths': (8, 16, 32, 64), 'strides': (1, 2, 2, 2)}",
)


def ours(
    options: dict, dtype: str, *, patches: int = PATCHES, side: int = SIDE
) -> dict[str, float]:
    """One process's numbers."""
    model = unet(MASKS, dtype=jnp.dtype(dtype), **options)
    optimizer = optim.adamw(steps=1000, warmup=10, clip=1.0)
    init = jax.jit(functools.partial(model.init, train=False))
    rng = np.random.default_rng(0)
    space = (side,) * 3
    shape = (devices := jax.local_device_count(), patches // devices)
    image = rng.random((*shape, *space, SEQUENCES), np.float32)
    batch = {
        "image": image,
        "label": np.float32(rng.random((*shape, *space, MASKS)) > 0.8),
        "weight": np.ones((*shape, MASKS), np.float32),
    }
    variables = init(jax.random.key(0), image[0])
    hyper = optim.Hyper(1e-3, 1e-5, 0.99, 0.0, {"smooth": jnp.ones(())})
    state = step.init_state(variables, optimizer=optimizer, dual={}, hyper=hyper)
    batch = jax.pmap(lambda batch: batch)(batch)
    state = step.replicated(state)
    update = step.compile_step(
        apply=model.apply,
        augment=lambda key, batch: batch,
        loss=losses.deep(losses.soft_dice) if model.deep else losses.soft_dice,
        optimizer=optimizer,
    )
    key = jax.random.key(1)
    state, row = trained(update, state, batch, key)
    infer = jax.pmap(functools.partial(model.apply, train=False), in_axes=(None, 0))
    averaged = step.replicated(jax.device_get(state.averaged))
    return row | {
        "train": patches / row["step_s"],
        "infer": patches / timed(lambda: infer(averaged, batch["image"]))[0],
        "peak_GB": peak_memory() / 1e9,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
    }


def volume() -> None:
    """Prints what a volume takes."""
    model = unet(MASKS, **ast.literal_eval(OPTIONS[0]))
    shape = (182, 218, 182, SEQUENCES)
    image = np.random.default_rng(0).random(shape, np.float32)
    patch = (SIDE,) * 3
    variables = model.init(jax.random.key(0), image[None, :64, :64, :64], train=False)
    run = functools.partial(
        sliding.volume_probability,
        lambda variables, image: model.apply(variables, image, train=False),
        variables,
        patch=patch,
    )
    start = time.perf_counter()
    run(image)
    took = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{took:.1f} s with compilation, {peak / 1e9:.2f} GB at the peak")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="of an environment with PyTorch, MONAI")
    peers = Path(__file__).parents[2] / "shared/peers"
    parser.add_argument("--peers", type=Path, default=peers)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", nargs="+", default=OPTIONS)
    parser.add_argument("--one", action="store_true", help="ours alone, as JSON")
    parser.add_argument("--volume", action="store_true", help="a sliding window's cost")
    args = parser.parse_args()
    if args.volume or args.one:
        keep()
    if args.volume:
        return volume()
    if args.one:
        use_cores(PATCHES)
        dtype = "float32" if args.device == "cpu" else "bfloat16"
        return print(json.dumps(ours(ast.literal_eval(args.options[0]), dtype)))
    how = ["unet3d", f"--batch={PATCHES}", f"--side={SIDE}", f"--device={args.device}"]
    script = [args.peer_python, args.peers / "train_step.py", *how]
    peer, here = [], {options: [] for options in args.options}
    with tempfile.TemporaryDirectory() as cache:
        variables = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": args.device}
        for _ in range(args.rounds):
            if args.peer_python:
                peer.append(child(script))
                print({k: v for k, v in peer[-1].items() if "per_s" in k}, flush=True)
            for options, found in here.items():
                again = [sys.executable, __file__, "--one", f"--device={args.device}"]
                again += ["--options", options]
                found.append(child(again, env={**os.environ, **variables}))
                print({k: round(v, 2) for k, v in found[-1].items()}, flush=True)
    for options, found in here.items():
        print(f"\n{options}\n{'':8}{'here /s':>10}{'peer /s':>10}{'ratio':>8}")
        for name in ("train", "infer"):
            mine = [one[name] for one in found]
            theirs = [one[f"{name}_samples_per_s"] for one in peer] or [np.nan]
            ratio = np.median(np.divide(mine, theirs))
            mine, theirs = np.median(mine), np.median(theirs)
            print(f"{name:8}{mine:10.2f}{theirs:10.2f}{ratio:8.2f}")
        for name in ("step_s", "cpu_s", "trace_s"):
            print(f"{name:8}{np.median([one[name] for one in found]):10.2f}")
        cached = np.median([one["compile_s"] for one in found[1:]] or [np.nan])
        print(
            f"compiling the step: {found[0]['compile_s']:.1f} s, {cached:.1f} s cached"
        )


if __name__ == "__main__":
    main()

"""The 3-D U-Net's training step and inference beside MONAI's, on one machine in one go.

    python tests/bench_unet.py --peer-python=PATH [--device=cpu|cuda] [--rounds=3]
        [--options="{'widths': (16, 32, 64), 'strides': (2, 2, 2)}" ...]

Work: 2 patches of 64 x 64 x 64 x 4 -> 3 masks, soft Dice, AdamW; float32 on the CPU,
bfloat16 on a GPU. The peer is MONAI's UNet of widths 16, 32, 64, 128 with two residual
units, which halves the resolution at once. Ours is the whole of `compile_step`, once for
each `--options` of the network. Each round runs the peer and then ours, each in a
process of its own; the table has the medians over the rounds, and of their ratios.
Seconds of the processors tell more than seconds where others use the machine.
"""

import argparse
import ast
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from bench_step import child, compiled, timed

from medjax import losses
from medjax.models.unet import unet
from medjax.training import optim, step

MASKS, SEQUENCES, PATCHES, SIDE = 3, 4, 2, 64
OPTIONS = (
    "{'widths': (16, 32, 64, 128), 'strides': (2, 2, 2, 1)}",  # The peer's levels.
    "{'widths': (16, 32, 64), 'strides': (2, 2, 2)}",
    "{'widths': (16, 32, 64, 128), 'strides': (2, 2, 2, 2), 'deep': 2}",
    "{'widths': (8, 16, 32, 64), 'strides': (1, 2, 2, 2)}",
)


def ours(options: dict, dtype: str) -> dict[str, float]:
    """One process's numbers."""
    model = unet(MASKS, dtype=jnp.dtype(dtype), **options)
    optimizer = optim.adamw(steps=1000, warmup=10, clip=1.0)
    init = jax.jit(functools.partial(model.init, train=False))
    rng = np.random.default_rng(0)
    space = (SIDE,) * 3
    image = rng.random((1, PATCHES, *space, SEQUENCES), np.float32)
    batch = {
        "image": image,
        "label": np.float32(rng.random((1, PATCHES, *space, MASKS)) > 0.8),
        "weight": np.ones((1, PATCHES, MASKS), np.float32),
    }
    variables = init(jax.random.key(0), image[0])
    hyper = optim.Hyper(1e-3, 1e-5, 0.99, 0.0, {"smooth": jnp.ones(())})
    state = step.init_state(variables, optimizer=optimizer, dual={}, hyper=hyper)
    batch = jax.pmap(lambda batch: batch, devices=jax.local_devices()[:1])(batch)
    update = step.compile_step(
        apply=model.apply,
        augment=lambda key, batch: batch,
        loss=losses.deep(losses.soft_dice) if model.deep else losses.soft_dice,
        optimizer=optimizer,
    )
    key = jax.random.key(1)
    start = time.perf_counter()
    lowered = update.lower(state, batch, key)
    traced = time.perf_counter() - start
    update, compiling = compiled(lowered)

    def train():
        nonlocal state
        state, scalars = update(state, batch, key)
        return scalars

    took, worked = timed(train)
    apply = jax.jit(functools.partial(model.apply, train=False))
    infer, _ = compiled(apply.lower(state.averaged, image[0]))
    return {
        "train": PATCHES / took,
        "infer": PATCHES / timed(lambda: infer(state.averaged, image[0]))[0],
        "step_s": took,
        "cpu_s": worked,
        "trace_s": traced,
        "compile_s": compiling,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="of an environment with PyTorch, MONAI")
    peers = Path(__file__).parents[2] / "shared/peers"
    parser.add_argument("--peers", type=Path, default=peers)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", nargs="+", default=OPTIONS)
    parser.add_argument("--one", action="store_true", help="ours alone, as JSON")
    args = parser.parse_args()
    if args.one:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
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

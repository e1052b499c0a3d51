"""Augmentation side by side with other libraries, on one machine in one go.

    python tests/bench_augment.py [--peer-python=PATH] [--peers=DIR] [--rounds=3]

Each round times a peer's script (its ops and ranges are in its docstring), in the
environment of --peer-python, and then the same work here: the median of 5 passes
over a batch on --devices CPU devices (1 or 2), each with a core, by pmap as in training. The table has the medians over the rounds, the median
of the rounds' ratios, the seconds of a first compilation, and the bytes that must
move (image and mask in and out once) as a share of what a plain copy moves a second.
"""

import argparse
import functools
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from medjax.augment import pixel_ops, policy
from medjax.geometry import warp

part = functools.partial
MOVED = ("image", "label")
TURN = {"rotation": 10.0, "zoom": 0.1}
FILM = [part(warp.random_affine, flip=0.5, translation=0.05, **TURN)]
GREY = [
    part(pixel_ops.brightness, strength=0.2),
    part(pixel_ops.contrast, strength=0.2),
    part(pixel_ops.noise, std=0.02),
]
VOLUME = [
    part(warp.flip, axis=0),
    part(warp.random_affine, flip=0.0, translation=0.0, **TURN),
]
VOXEL = [part(pixel_ops.gamma, max_log_gamma=0.5), part(pixel_ops.noise, std=0.02)]
# As smooth and as large as the peers': a Gaussian of deviation s is near a B-spline
# of control points 1.7 s apart, and the displacements have a deviation of 0.4 pixels.
BEND_2D = [part(warp.elastic, strength=1.5, distance=14.0)]
BEND_3D = [part(warp.elastic, strength=2.0, distance=12.0)]
CASES = {  # name: ops, the peer's command, what it counts.
    "2-D": (FILM + GREY, "augment2d.py albumentations", "images_per_s"),
    "2-D elastic": (
        FILM + BEND_2D + GREY,
        "augment2d.py albumentations --elastic",
        "images_per_s",
    ),
    "3-D": (VOLUME + VOXEL, "augment3d.py monai", "volumes_per_s"),
    "3-D elastic": (
        VOLUME + BEND_3D + VOXEL,
        "augment3d.py monai --elastic",
        "volumes_per_s",
    ),
}


def batch(name: str, films=(64, 224), volumes=(2, 96)) -> dict[str, jax.Array]:
    """The peers' images, spread over the devices: so many films of so many pixels a
    side, or volumes of 4 channels with a mask."""
    rng = np.random.default_rng(0)
    count, side = films if name.startswith("2-D") else volumes
    shape = (count, side, side, 1)
    if not name.startswith("2-D"):
        shape = (count, side, side, side, 4)
    given = {"image": rng.random(shape, np.float32)}
    if len(shape) == 5:
        mask = rng.random((*shape[:-1], 1)) > 0.9
        given["label"] = mask.astype(np.float32)
    numbers = np.arange(shape[0], dtype=np.int32)
    given |= {"id": numbers, "epoch": numbers * 0, "occurrence": numbers * 0}
    cores = jax.local_device_count()
    split = jax.tree.map(lambda x: x.reshape(cores, -1, *x.shape[1:]), given)
    return jax.pmap(lambda x: x)(split)


def seconds(work, passes=5) -> float:
    """The median time of a pass, after a first one that is not counted."""
    times = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def compiled(name, given) -> tuple[float, Callable]:
    """The seconds of compiling a case's policy, and its pass."""

    def work(key, given):
        found = policy.augment_batch(
            key, given, ops=CASES[name][0], prepare=lambda image: image
        )
        return {field: found[field] for field in MOVED if field in found}

    key = jax.random.key(0)
    run = jax.pmap(work, in_axes=(None, 0))
    start = time.perf_counter()
    jax.block_until_ready(run(key, given))
    return time.perf_counter() - start, part(run, key, given)


def copying(given) -> tuple[int, float]:
    """The bytes that a pass must move, in and out once, and the seconds of a copy."""
    pixels = {field: given[field] for field in MOVED if field in given}
    copy = jax.pmap(lambda pixels: jax.tree.map(lambda x: x + 1, pixels))
    moved = 2 * sum(value.nbytes for value in pixels.values())
    return moved, seconds(part(copy, pixels))


def peer_rate(python, folder, command, unit) -> float:
    """What a peer's script says that it does a second."""
    done = subprocess.run(
        [python, *command.split()],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])[unit]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="of an environment with the peers in it")
    parser.add_argument("--peers", default=Path(__file__).parents[2] / "shared/peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--devices", type=int, default=min(2, os.cpu_count()))
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    print(f"{'':14}{'compile s':>10}{'here /s':>10}{'peer /s':>10}{'ratio':>8}", end="")
    print(f"{'MB a pass':>11}{'of a copy':>11}")
    for name in args.cases:
        given = batch(name)
        took, run = compiled(name, given)
        count = given["id"].size
        here, peer = [], []
        for _ in range(args.rounds):
            if args.peer_python:
                _, command, unit = CASES[name]
                peer.append(peer_rate(args.peer_python, args.peers, command, unit))
            here.append(count / seconds(run))
        ratio = np.median(np.divide(here, peer)) if peer else np.nan
        moved, copied = copying(given)
        share = copied * np.median(here) / count
        print(f"{name:14}{took:10.1f}{np.median(here):10.1f}", end="")
        print(f"{np.median(peer) if peer else np.nan:10.1f}{ratio:8.2f}", end="")
        print(f"{moved / 1e6:11.1f}{share:11.1%}", flush=True)


if __name__ == "__main__":
    main()

"""What medjax does on this machine's device, and what limits it: one JSON, one table.

    python tests/bench_device.py [--out=device.json] [--peer-python=PATH] [--tiny]

Made for one GPU or TPU, in bfloat16. All takes --seconds at most, 8 minutes: each part
gets the time that is left, and the others are 'left out'. Each part is a process of its
own, so that a part that fails or fills the memory loses no other, and peaks of memory
are the part's. A CPU, or --tiny, gets sizes that only show that all runs.

  densenet121, resnet50  a whole training step and inference at 224 x 224 x 3
  deterministic          the same of ResNet-50 under launch.py's --deterministic, and
                         how many times as fast it trains as without
  unet                   the same at 128 x 128 x 128 x 4
  augment, augment 3-D   images a second, and the bytes that must move as a share of
                         what a plain copy moves
  population             updates of 1, 2 and 8 runs on each device at once, and how many
                         times as many a second these are as of 1
  bootstrap              1,000 replicates of 14 findings on 25,596 images
  loader                 images a second that the host decodes, and that are put on the
                         device, at 224 x 224, and how many times as many these are as
                         the training steps above take

tflops are a device's operations of a step's convolutions and products over its seconds;
`of_peak` is their share of the device's dense bfloat16 peak in its data sheet.
`issue_ms` is how long the host takes to issue a step. Where PyTorch and MONAI are
installed, or --peer-python has them, their steps of DenseNet-121 and of the U-Net run
on the same GPU; `times` is how many times as fast ours are.
"""

import argparse
import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import bench_augment
import bench_auroc
import bench_step
import bench_unet

from configs import base
from medjax import losses
from medjax.evaluation import discrimination
from medjax.models import architectures
from medjax.tasks import films, parts, splitting
from medjax.training import devices, optim, population, step, workdir

PEAKS = {  # Dense bfloat16 TFLOP/s of the data sheets; the longest name that fits.
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "L4": 121,
    "L40S": 362,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v6 lite": 918,
}
SMALL = "cpu"
ABREAST = (1, 2, 8)  # Runs of a population on each device at once.
# Our parts that shared/peers/train_step.py measures too: its name and sizes, tiny ones.
PEERS = {
    "densenet121": ("densenet121", (256, bench_step.SIDE), (4, 32)),
    "unet": ("unet3d", (4, 128), (1, 32)),
}


def network(name: str, tiny: bool) -> dict[str, float]:
    images, side = (8, 32) if tiny else (256, bench_step.SIDE)
    dtype = "float32" if tiny else "bfloat16"
    row = bench_step.ours(images, dtype, network=name, shape=(side, side, 3))
    return _step_row(row, "images/s")


def unet(tiny: bool) -> dict[str, float]:
    options = {"widths": (16, 32, 64, 128), "strides": (2, 2, 2, 1)}
    if tiny:
        options = {"widths": (4, 8), "strides": (2, 2)}
    sizes = {"patches": jax.local_device_count() * (1 if tiny else 4)}
    sizes["side"] = 16 if tiny else 128
    dtype = "float32" if tiny else "bfloat16"
    return _step_row(bench_unet.ours(options, dtype, **sizes), "patches/s")


def _step_row(row: dict[str, float], unit: str) -> dict[str, float]:
    rates = {f"train {unit}": row["train"], f"infer {unit}": row["infer"]}
    same = ("compile_s", "trace_s", "tflops", "peak_GB")
    return rates | {"issue_ms": 1e3 * row["issue_s"]} | {k: row[k] for k in same}


def augment(case: str, tiny: bool) -> dict[str, float]:
    each = 2 * jax.local_device_count()
    sizes = {"films": (512, 224), "volumes": (each, 96)}
    if tiny:
        sizes = {"films": (each, 32), "volumes": (each, 16)}
    given = bench_augment.batch(case, **sizes)
    _, run = bench_augment.compiled(case, given)
    took = bench_augment.seconds(run)
    moved, copied = bench_augment.copying(given)
    rate = {"images/s": given["id"].size / took, "GB/s": moved / took / 1e9}
    return rate | {"copy GB/s": moved / copied / 1e9, "of_copy": copied / took}


def runs(tiny: bool) -> dict[str, float]:
    """The quickstart's update, of so many runs on each device at once."""
    images, side = (4, 32) if tiny else (64, 64)
    model = architectures.densenet_small(6, axis_name=step.AXIS)
    optimizer = optim.adamw(steps=1000, warmup=10, clip=1.0)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.random((images, side, side, 1), np.float32),
        "label": rng.integers(0, 2, (images, 6)).astype(np.float32),
        "weight": np.ones((images, 6), np.float32),
    }
    init = jax.jit(functools.partial(model.init, train=False))
    weights = {"w_pos": jnp.ones(6), "w_neg": jnp.ones(6)}
    hyper = optim.Hyper(1e-3, 1e-5, 0.99, 0.1, weights)
    state = step.init_state(
        init(jax.random.key(0), batch["image"]),
        optimizer=optimizer,
        dual={},
        hyper=hyper,
    )
    program = {
        "apply": model.apply,
        "augment": lambda key, batch: batch,
        "loss": losses.weighted_bce,
        "optimizer": optimizer,
    }
    key = jax.random.key(1)

    def updates(abreast: int) -> float:
        number = abreast * jax.local_device_count()
        compiled = population.compiled(
            state, batch, key, arms=number, abreast=abreast, **program
        )
        stack = functools.partial(
            jax.tree.map, lambda x: jnp.stack([x] * compiled.wave)
        )
        arguments = jax.device_put(
            (stack(state), stack(batch), stack(key)), step.by_arm(compiled.devices)
        )
        current, *rest = arguments

        def update():
            nonlocal current
            current, scalars = compiled.step(current, *rest)
            return scalars

        return compiled.wave / bench_step.timed(update)[0]

    rates = {abreast: updates(abreast) for abreast in ABREAST}
    row = {f"updates/s of {abreast}": rate for abreast, rate in rates.items()}
    times = {f"times of {k}": rate / rates[1] for k, rate in rates.items() if k > 1}
    return row | times


def bootstrap(tiny: bool) -> dict[str, float]:
    score, label, weight, patient = bench_auroc.films(2_797)
    rows = slice(2_000) if tiny else slice(None)
    data = [x[rows] for x in (score, label, weight, patient)]
    threshold = np.full(label.shape[1], 0.7)
    options = {"key": jax.random.key(0), "replicates": 20 if tiny else 1000}
    first, _ = bench_auroc.timed(
        functools.partial(discrimination.intervals, *data, threshold, **options)
    )
    again, _ = bench_auroc.timed(
        functools.partial(discrimination.intervals, *data, threshold, **options)
    )
    return {"s": again, "first_s": first}


def loader(tiny: bool) -> dict[str, float]:
    config = base.classification("phantom")
    config.data.update(patients=20 if tiny else 500, side=32 if tiny else 224)
    config.train.batch = 8 * jax.device_count() if tiny else 256
    with tempfile.TemporaryDirectory() as folder:
        config.data.records = folder
        data = films.data(config)
        images = data.films(data.table["id"].to_numpy())
        rates = {}
        for where, on_host in (("host", True), ("device", False)):
            batches = splitting.train_batches(config, images, on_host=on_host)
            next(batches)
            start, count = time.perf_counter(), 2 if tiny else 20
            for _ in range(count):
                jax.block_until_ready(next(batches))
            took = time.perf_counter() - start
            rates[f"images/s on the {where}"] = count * parts.batch(config) / took
    return rates


PARTS = {
    "densenet121": functools.partial(network, "densenet121"),
    "resnet50": functools.partial(network, "resnet50"),
    "deterministic": functools.partial(network, "resnet50"),
    "unet": unet,
    "augment": functools.partial(augment, "2-D elastic"),
    "augment 3-D": functools.partial(augment, "3-D elastic"),
    "population": runs,
    "bootstrap": bootstrap,
    "loader": loader,
}


def device() -> dict:
    """What this is measured on, and with."""
    first = jax.devices()[0]
    names = [name for name in PEAKS if name in first.device_kind]
    about = workdir.environment()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "devices": jax.device_count(),
        "peak_tflops": PEAKS[max(names, key=len)] if names else None,
        "platform_version": " ".join(first.client.platform_version.split()),
        **{name: about[name] for name in ("python", "revision", "dirty")},
        **about["versions"],
    }


def part(name: str, tiny: bool) -> dict[str, float]:
    """One part's numbers, in this process."""
    devices.keep()
    if name == "deterministic":
        devices.deterministic()
    measured = PARTS[name](tiny or jax.default_backend() == SMALL)
    peak = device()["peak_tflops"]
    if "tflops" in measured and peak:
        measured["of_peak"] = measured["tflops"] / peak
    return measured


def child(*arguments: str, until: float) -> dict:
    """What this script prints last in a process of its own, or how it failed."""
    return last_line(sys.executable, __file__, *arguments, until=until)


def peer(
    name: str, row: dict, *command: str, platform: str, tiny: bool, until: float
) -> dict:
    """The peer's rates; but for tiny sizes, which differ, beside those of our `row`."""
    theirs, *sizes = PEERS[name]
    batch, side = sizes[tiny]
    where = "cuda" if platform == "gpu" else "cpu"
    flags = [f"--batch={batch}", f"--side={side}", f"--device={where}"]
    found = last_line(*command, theirs, *flags, until=until)
    ours = {key.split()[0]: value for key, value in row.items() if key.endswith("/s")}
    rates = {kind: found.get(f"{kind}_samples_per_s") for kind in ours}
    return found | {
        f"times {kind}": ours[kind] / rate
        for kind, rate in rates.items()
        if rate and not tiny
    }


def last_line(*command: str, until: float) -> dict:
    """What a command prints last, of JSON; or its error; or that no time was left.

    until: time.monotonic() of the end, at which the command is stopped.
    """
    left = until - time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=max(left, 0)
        )
    except subprocess.TimeoutExpired:
        return {"left out": f"{max(left, 0):.0f} s were left"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def relate(results: dict) -> None:
    """Adds what only two parts together say, where both were measured."""

    def times(name: str, key: str, other: str) -> None:
        row, rate = results.get(name, {}), results.get(other, {}).get("train images/s")
        if key in row and rate:
            row[f"times {other}"] = row[key] / rate

    times("deterministic", "train images/s", "resnet50")
    for other in ("densenet121", "resnet50"):
        times("loader", "images/s on the device", other)


def table(results: dict) -> str:
    """A line for each number, aligned."""
    lines = []
    for name, row in results.items():
        for key, value in row.items():
            text = f"{value:,.4g}" if isinstance(value, float) else str(value)
            lines.append(f"{name:18}{key:24}{text}")
            name = ""
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("device.json"))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--tiny", action="store_true", help="sizes of a test")
    parser.add_argument("--seconds", type=float, default=480, help="for all parts")
    has_torch = importlib.util.find_spec("torch") and sys.executable
    parser.add_argument(
        "--peer-python", default=has_torch, help="with PyTorch and MONAI"
    )
    peers = Path(__file__).parents[2] / "shared/peers"
    parser.add_argument("--peers", type=Path, default=peers)
    parser.add_argument("--one", choices=[*PARTS, "device"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measured = device() if args.one == "device" else part(args.one, args.tiny)
        return print(json.dumps(measured))
    until, results = time.monotonic() + args.seconds, {}

    def add(name: str, row: dict) -> None:
        results[name] = row
        relate(results)
        args.out.write_text(json.dumps(results, indent=1))
        ended = next((end for end in ("error", "left out") if end in row), "measured")
        left = max(until - time.monotonic(), 0)
        print(f"{name}: {ended}, {left:.0f} s left", flush=True)

    add("device", child("--one=device", until=until))
    for name in args.parts:
        add(name, child(f"--one={name}", *["--tiny"] * args.tiny, until=until))
    platform = results["device"].get("platform", SMALL)
    compared = args.peer_python and (platform == "gpu" or args.tiny)
    for name in PEERS.keys() & results.keys() if compared else ():
        command = args.peer_python, str(args.peers / "train_step.py")
        options = {"platform": platform, "tiny": args.tiny, "until": until}
        add(f"{name}, peer", peer(name, results[name], *command, **options))
    print(table(results))


if __name__ == "__main__":
    main()

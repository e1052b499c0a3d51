"""What medjax does on this machine's device, and what limits it: one JSON, one table.

    python tests/bench_device.py [--out=device.json] [--peer-python=PATH] [--tiny]

Made for one GPU or TPU, in bfloat16, where it takes some minutes. Each part is a
process of its own, so that a part that fails or fills the memory loses no other, and
peaks of memory are the part's. A CPU, or --tiny, gets sizes that only show that all
runs.

  densenet121, resnet50  a whole training step and inference at 224 x 224 x 3
  deterministic          the same of ResNet-50 under launch.py's --deterministic
  unet                   the same at 128 x 128 x 128 x 4
  augment, augment 3-D   images a second, and the bytes that must move as a share of
                         what a plain copy moves
  population             the updates of 8 runs as one program against one after another
  bootstrap              1,000 replicates of 14 findings on 25,596 images
  loader                 images a second that the host decodes, and that are put on the
                         device, at 224 x 224, and how many times as many these are as
                         the training steps above take

tflops are the compiler's count of operations over the seconds of a step; `of_peak` is
their share of the device's dense bfloat16 peak in its data sheet. `issue_ms` is how long
the host takes to issue a step. Where PyTorch and MONAI are installed, or --peer-python
has them, their steps of DenseNet-121 and of the U-Net run on the same device; `times`
is how many times as fast ours are.
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
from medjax.training import devices, optim, population, step

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
# Our parts that shared/peers/train_step.py measures too: its name and sizes, tiny ones.
PEERS = {
    "densenet121": ("densenet121", (256, bench_step.SIDE), (4, 32)),
    "unet": ("unet3d", (4, 128), (1, 32)),
}


def network(name: str, tiny: bool) -> dict[str, float]:
    images, side = (4, 32) if tiny else (256, bench_step.SIDE)
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
    shown = {f"train {unit}": row["train"], f"infer {unit}": row["infer"]}
    if "issue_s" in row:
        shown["issue_ms"] = 1e3 * row["issue_s"]
    compiling = {"compile_s": row["compile_s"], "trace_s": row["trace_s"]}
    return shown | compiling | {"tflops": row["tflops"], "peak_GB": row["peak_GB"]}


def augment(case: str, tiny: bool) -> dict[str, float]:
    sizes = {"films": (4, 32), "volumes": (2, 16)} if tiny else {"films": (512, 224)}
    given = bench_augment.batch(case, **sizes)
    _, run = bench_augment.compiled(case, given)
    took = bench_augment.seconds(run)
    moved, copied = bench_augment.copying(given)
    rate = {"images/s": given["id"].size / took, "GB/s": moved / took / 1e9}
    return rate | {"copy GB/s": moved / copied / 1e9, "of_copy": copied / took}


def runs(tiny: bool) -> dict[str, float]:
    """The quickstart's update, of 8 runs on one device."""
    arms, images, side = 8, 4 if tiny else 64, 32 if tiny else 64
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

    def seconds_of(number: int) -> float:
        compiled = population.compiled(
            state, batch, key, arms=number, abreast=number, **program
        )
        stack = functools.partial(jax.tree.map, lambda x: jnp.stack([x] * number))
        arguments = jax.device_put(
            (stack(state), stack(batch), stack(key)), step.by_arm(compiled.devices)
        )
        current, *rest = arguments

        def update():
            nonlocal current
            current, scalars = compiled.step(current, *rest)
            return scalars

        return bench_step.timed(update)[0]

    alone, together = seconds_of(1), seconds_of(arms)
    rates = {"updates/s alone": 1 / alone, "updates/s of 8": arms / together}
    return rates | {"times": arms * alone / together}


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
    """What this is measured on."""
    first = jax.devices()[0]
    names = [name for name in PEAKS if name in first.device_kind]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "devices": jax.device_count(),
        "peak_tflops": PEAKS[max(names, key=len)] if names else None,
        "jax": jax.__version__,
        "python": sys.version.split()[0],
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


def child(*arguments: str) -> dict:
    """What this script prints last in a process of its own, or how it failed."""
    return last_line(sys.executable, __file__, *arguments)


def peer(name: str, row: dict, *command: str, platform: str, tiny: bool) -> dict:
    """The peer's rates; but for tiny sizes, which differ, beside those of our `row`."""
    theirs, *sizes = PEERS[name]
    batch, side = sizes[tiny]
    where = "cuda" if platform == "gpu" else "cpu"
    flags = [f"--batch={batch}", f"--side={side}", f"--device={where}"]
    found = last_line(*command, theirs, *flags)
    ours = {key.split()[0]: value for key, value in row.items() if key.endswith("/s")}
    times = {
        f"times {kind}": ours[kind] / found[f"{kind}_samples_per_s"]
        for kind in ("train", "infer")
        if "error" not in found and kind in ours and not tiny
    }
    return found | times


def last_line(*command: str) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def needed(results: dict) -> dict[str, float]:
    """How many times as many images as a step takes the loader puts on the device."""
    has = results["loader"].get("images/s on the device")
    steps = {name: results.get(name, {}) for name in ("densenet121", "resnet50")}
    return {
        f"times {name}": has / row["train images/s"]
        for name, row in steps.items()
        if has and "train images/s" in row
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("device.json"))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--tiny", action="store_true", help="sizes of a test")
    has_torch = importlib.util.find_spec("torch") and sys.executable
    parser.add_argument(
        "--peer-python", default=has_torch, help="with PyTorch and MONAI"
    )
    peers = Path(__file__).parents[2] / "shared/peers"
    parser.add_argument("--peers", type=Path, default=peers)
    parser.add_argument("--one", choices=[*PARTS, "device"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    tiny = ["--tiny"] * args.tiny
    if args.one:
        measured = device() if args.one == "device" else part(args.one, args.tiny)
        return print(json.dumps(measured))
    results = {"device": child("--one=device")}
    print(results["device"], flush=True)
    for name in args.parts:
        results[name] = child(f"--one={name}", *tiny)
        if name == "loader":
            results[name] |= needed(results)
        show(name, results, args.out)
    platform = results["device"].get("platform", SMALL)
    for name in PEERS.keys() & results.keys() if args.peer_python else ():
        results[f"{name}, peer"] = peer(
            *(name, results[name], args.peer_python, str(args.peers / "train_step.py")),
            platform=platform,
            tiny=args.tiny or platform == SMALL,
        )
        show(f"{name}, peer", results, args.out)


def show(name: str, results: dict, out: Path) -> None:
    """Prints a part's row, and writes all that there are."""
    row = {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in results[name].items()
    }
    print(f"{name:12} {row}", flush=True)
    out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

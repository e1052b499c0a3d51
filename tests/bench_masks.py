"""A recipe of masks beside MONAI's U-Net, fold by fold.

    for k in 0 1 2 3 4; do python launch.py train --config=configs/hippocampus.py \\
        --workdir=runs/hippocampus_$k --config.split.folds=5 --config.split.fold=$k; done
    python tests/bench_masks.py --peer-python=PATH runs/hippocampus_*

Reads the runs' volumes as they were prepared, their splits and their report.csv;
peer_unet.py trains on each run's volumes outside its test, validation's too, since
nothing of it is chosen there. For regions that exclude each other. Prints each fold's
mean Dice by region, that over all folds, and its difference to the run's, paired by
volume, with a 95 % interval by patient. PATH is a Python that has torch and MONAI.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from medjax.config import read_config
from medjax.data import volumes
from medjax.evaluation import means
from medjax.tasks import scans


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def fold(run: Path, args: argparse.Namespace) -> tuple[pd.DataFrame, float]:
    """Of one run's test volumes a row each and region: both Dice; the peer's seconds."""
    data = scans.data(read_config(run))
    manifest = pd.read_csv(run / "splits.csv")
    arrays, truth = {}, {}
    for kind, used in (("train", ["train", "validation"]), ("test", ["test"])):
        ids = manifest["id"][manifest["split"].isin(used)].to_numpy()
        for n, (name, part) in enumerate(data.parts(ids).items()):
            image, label = volumes.read(data.path, part)
            label = np.asarray(label) > 0
            arrays[f"image_{kind}_{n}"] = np.asarray(image, np.float32)
            if kind == "train":
                number = label.argmax(-1) + 1
                arrays[f"label_train_{n}"] = np.where(label.any(-1), number, 0)
            else:
                truth[name] = label
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fold.npz"
        np.savez(file, **arrays)
        script = Path(__file__).with_name("peer_unet.py")
        options = [f"--{k}={getattr(args, k)}" for k in ("steps", "seed", "threads")]
        subprocess.run(
            [args.peer_python, script, f"--file={file}", *options], check=True
        )
        with np.load(f"{file}.masks.npz") as masks:
            seconds = float(masks["seconds"])
            rows = [
                (name, region, dice(masks[f"mask_{n}"] == k + 1, label[..., k]))
                for n, (name, label) in enumerate(truth.items())
                for k, region in enumerate(data.output.names)
            ]
    peer = pd.DataFrame(rows, columns=["name", "region", "peer"])
    ours = pd.read_csv(run / "report.csv", dtype={"name": str, "patient": str})
    return ours[["name", "patient", "region", "dice"]].merge(peer), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    args = parser.parse_args()
    tables = []
    for run in args.runs:
        table, seconds = fold(run, args)
        tables.append(table)
        print(f"{run.name}: the peer trained for {seconds:.0f} s")
        print(table.groupby("region")[["dice", "peer"]].mean().round(4), flush=True)
    table = pd.concat(tables)
    mean = table.groupby("name")[["dice", "peer"]].mean()
    patient = table.groupby("name")["patient"].first()
    gap = (mean["dice"] - mean["peer"]).to_numpy()
    linear = means.over_rows(gap, patient.to_numpy())
    gap = means.studentised(linear, key=jax.random.key(0), replicates=1000)
    print(
        f"medjax {mean['dice'].mean():.4f}, MONAI {mean['peer'].mean():.4f}: higher by "
        f"{gap.estimate:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
    )


if __name__ == "__main__":
    main()

"""A recipe of films beside a plain network in PyTorch and a linear floor, fold by fold.

    for k in 0 1 2 3 4; do python launch.py train --config=configs/nih_sample.py \\
        --workdir=runs/nih_$k --config.split.folds=5 --config.split.fold=$k \\
        --config.split.seed=0; done
    python tests/bench_films.py --peer-python=PATH runs/nih_*

Reads the runs' films, splits and predictions; peer_cnn.py trains on each run's films
outside its test, validation's too, since nothing of it is chosen there. Prints the mean
AUROC of each fold, that over all folds, and its paired difference to the run's, with
95 % intervals of a bootstrap over patients. PATH is a Python that has torch and
scikit-learn.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1]))

from medjax.config import read_config
from medjax.evaluation import discrimination
from medjax.tasks import films

PEERS = ("cnn", "linear")


def fold(run: Path, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Of one run's test films: patient [M], label and scores of all models [M, T]."""
    data = films.data(read_config(run))
    names = list(data.output.names)
    manifest = pd.read_csv(run / "splits.csv", dtype={"patient": str})
    predictions = pd.read_csv(run / "predictions/test.csv", dtype={"patient": str})
    predictions = predictions.merge(manifest, on="image")
    tested = predictions["id"].to_numpy()
    used = manifest["split"].isin(["train", "validation"])
    trained = manifest["id"][used].to_numpy()

    def pixels(ids: np.ndarray) -> np.ndarray:
        images = data.films(ids)
        return np.stack([images[n]["image"][..., 0] for n in range(len(ids))])

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fold.npz"
        arrays = {"train": pixels(trained), "test": pixels(tested)}
        np.savez(file, label=data.label(trained), **arrays)
        script = Path(__file__).with_name("peer_cnn.py")
        options = [f"--{k}={getattr(args, k)}" for k in ("epochs", "seed", "threads")]
        subprocess.run(
            [args.peer_python, script, f"--file={file}", *options], check=True
        )
        with np.load(f"{file}.scores.npz") as scores:
            peers = {name: scores[name] for name in (*PEERS, "seconds")}
    ours = predictions[[f"{name}_log_odds" for name in names]].to_numpy()
    return peers | {
        "patient": predictions["patient_x"].to_numpy(),
        "label": data.label(tested),
        "medjax": ours,
    }


def auroc(label: np.ndarray, score: np.ndarray) -> float:
    """The mean over findings."""
    known = ~np.isnan(label)
    pairs = zip(label.T, score.T, known.T, strict=True)
    return float(np.mean([roc_auc_score(y[k], s[k]) for y, s, k in pairs]))


def columns(folds: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """[M of all folds, folds x T], 0 outside of a column's fold."""
    width = folds[0]["label"].shape[1]
    return np.concatenate(
        [
            np.pad(f[name], ((0, 0), (k * width, (len(folds) - k - 1) * width)))
            for k, f in enumerate(folds)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--replicates", type=int, default=1000)
    args = parser.parse_args()
    folds, rows = [], []
    for run in args.runs:
        folds.append(fold(run, args))
        row = {n: auroc(folds[-1]["label"], folds[-1][n]) for n in ("medjax", *PEERS)}
        rows.append(row | {"cnn_seconds": float(folds[-1]["seconds"])})
        print(run.name, {name: round(x, 4) for name, x in rows[-1].items()}, flush=True)
    for f in folds:
        f["known"] = ~np.isnan(f["label"])
        f["label"] = np.nan_to_num(f["label"])
    patient = np.concatenate([f["patient"] for f in folds])
    patient = np.unique(patient, return_inverse=True)[1]
    ours, label, known = (columns(folds, n) for n in ("medjax", "label", "known"))
    options = {"key": jax.random.key(0), "replicates": args.replicates}
    print("medjax", round(np.mean([row["medjax"] for row in rows]), 4))
    for name in PEERS:
        gap = discrimination.difference(
            ours, columns(folds, name), label, known, patient, **options
        )["mean_auroc"]
        print(
            f"{name} {np.mean([row[name] for row in rows]):.4f}, medjax higher by "
            f"{gap.estimate:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
        )


if __name__ == "__main__":
    main()

"""Does a treatment of imbalance help? Paired, on the same folds and patients.

    python tests/bench_imbalance.py --config=configs/nih_sample.py --workdir=runs/imbalance

Trains each treatment on each fold (runs that are there go on or are only read), and
prints the mean AUROC of the held-out films and its paired difference to 'none', with
95 % intervals of a bootstrap over patients. A fold's films are only ever compared with
each other: each finding of each fold is a curve of its own, and the mean is over all.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from medjax import commands
from medjax.evaluation import intervals

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "a file of configs/")
flags.DEFINE_string("workdir", "runs/imbalance", "folder of all runs")
flags.DEFINE_integer("folds", 5, "of the cross-validation")
flags.DEFINE_integer("replicates", 1000, "of the bootstrap")
flags.DEFINE_list(
    "treatments",
    ["none", "ratio", "balanced", "over_sample", "under_sample", "smote"],
    "values of the config's imbalance; the first is the baseline",
)


def held_out(treatment: str, fold: int) -> pd.DataFrame:
    """Trains one run if it isn't there, and reads what it says of its test films."""
    folder = Path(FLAGS.workdir) / f"{treatment}-{fold}"
    path = folder / "predictions/test.csv"
    if not path.exists():
        config = FLAGS.config.copy_and_resolve_references()
        config.imbalance, config.split.folds = treatment, FLAGS.folds
        config.split.fold = fold
        commands.train(config, folder)
    return pd.read_csv(path).sort_values("image").assign(fold=fold)


def columns(found: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """score, label and weight [N, folds x T]; weight 0 outside the column's fold."""
    tasks = [name.removesuffix("_label") for name in found if name.endswith("_label")]
    inside = found["fold"].to_numpy()[:, None] == np.arange(FLAGS.folds)
    label = found[[f"{task}_label" for task in tasks]].to_numpy(float)
    known = inside[:, :, None] & ~np.isnan(label)[:, None, :]
    score = np.broadcast_to(found[tasks].to_numpy()[:, None], known.shape)
    label = np.broadcast_to(np.nan_to_num(label)[:, None], known.shape)
    return tuple(x.reshape(len(found), -1) for x in (score, label, known))


def main(_) -> None:
    found = {
        treatment: pd.concat([held_out(treatment, fold) for fold in range(FLAGS.folds)])
        for treatment in FLAGS.treatments
    }
    options = {"key": jax.random.key(0), "replicates": FLAGS.replicates}
    baseline = columns(found[FLAGS.treatments[0]])
    for treatment, rows in found.items():
        score, label, weight = columns(rows)
        patient = rows["patient"].to_numpy()
        threshold = np.full(score.shape[1], np.nan)
        alone = intervals.bootstrap(
            score, label, weight, patient, threshold, **options
        )["mean_auroc"]
        against = intervals.difference(
            score, baseline[0], label, weight, patient, **options
        )["mean_auroc"]
        print(
            f"{treatment:14s} {alone.estimate:.3f} ({alone.low:.3f} to {alone.high:.3f})"
            f"   {against.estimate:+.3f} ({against.low:+.3f} to {against.high:+.3f})"
            f"   {int(against.undefined)} of {FLAGS.replicates} replicates undefined"
        )


if __name__ == "__main__":
    app.run(main)

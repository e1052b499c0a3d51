"""Do target images without labels help? Paired, on target patients never seen.

    python tests/bench_adaptation.py --config=configs/phantom_to_nih.py --workdir=runs/adapt

Trains each method on each fold (runs that are there go on or are only read): one part of
the target's patients is held out, and films of the others are seen without labels.
Prints the mean AUROC of the held-out target films and its paired difference to the model
of the source alone, with 95 % intervals of a bootstrap over patients. The source alone is
what 'adabn' has trained before it looks at the target.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from medjax.commands import train
from medjax.evaluation import discrimination
from medjax.tasks import adapt, answers, films, parts, start
from medjax.training import workdir

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "a file of configs/")
flags.DEFINE_string("workdir", "runs/adapt", "folder of all runs")
flags.DEFINE_integer("folds", 2, "of the cross-validation")
flags.DEFINE_integer("replicates", 1000, "of the bootstrap")
flags.DEFINE_list(
    "methods", ["source", "adabn", "coral", "dann"], "first: the baseline"
)
# CORAL's distance is small: so that it counts beside the labels. DANN's paper has 1, at
# which the source's validation AUROC falls to 0.53 here (0.1: 0.65, 0.01: 0.81; without
# it 0.84).
WEIGHTS = {"adabn": 1.0, "coral": 100.0, "dann": 0.01}


def held_out(method: str, fold: int) -> pd.DataFrame:
    """Trains one run if it isn't there, and reads what it says of its target films."""
    config = FLAGS.config.copy_and_resolve_references()
    config.adapt.name = "adabn" if method == "source" else method
    config.adapt.weight = WEIGHTS[config.adapt.name]
    config.split.folds, config.split.fold = FLAGS.folds, fold
    folder = Path(FLAGS.workdir) / f"{config.adapt.name}-{fold}"
    path = folder / "predictions/target.csv"
    if not path.exists():
        train.train(config, folder)
        jax.clear_caches()  # Dozens of runs' programs are more than a process may map.
    if method == "source":
        path = folder / "predictions/target-before.csv"
        _predict(config, folder, path)
    return pd.read_csv(path).sort_values("image").assign(fold=fold)


def _predict(config, folder: Path, path: Path) -> None:
    """Writes what the model says before its batch statistics are replaced."""
    data = films.data(config)
    target = adapt.target(config, data)
    network = parts.classifier(config, data.output)
    _, state = parts.restore(
        config, folder / start.trained(config), network, data.output
    )
    tested = target.manifest["id"][target.manifest["split"] == "test"].to_numpy()
    images = target.data.films(tested)
    found = answers.predictions(config, network, state, images)
    workdir.write_predictions(path, data.output.names, target.data.table, found)


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
    found = {method: [] for method in FLAGS.methods}
    for fold in range(FLAGS.folds):
        for method in FLAGS.methods:
            found[method].append(held_out(method, fold))
    found = {method: pd.concat(rows) for method, rows in found.items()}
    options = {"key": jax.random.key(0), "replicates": FLAGS.replicates}
    baseline = columns(found[FLAGS.methods[0]])
    for method, rows in found.items():
        score, label, weight = columns(rows)
        patient = rows["patient"].to_numpy()
        threshold = np.full(score.shape[1], np.nan)
        alone = discrimination.intervals(
            score, label, weight, patient, threshold, **options
        )
        against = discrimination.difference(
            score, baseline[0], label, weight, patient, **options
        )["mean_auroc"]
        mean = alone["mean_auroc"]
        print(
            f"{method:8s} {mean.estimate:.3f} ({mean.low:.3f} to {mean.high:.3f})"
            f"   {against.estimate:+.3f} ({against.low:+.3f} to {against.high:+.3f})"
            f"   {int(against.undefined)} of {FLAGS.replicates} replicates undefined"
        )
        each = alone["auroc"].estimate.reshape(FLAGS.folds, -1)
        print("         by fold and finding:", np.round(each, 3).tolist())


if __name__ == "__main__":
    app.run(main)

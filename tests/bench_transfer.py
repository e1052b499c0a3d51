"""Does pre-training pay? Paired, on the same folds, films and patients.

    python tests/bench_transfer.py --workdir=runs/transfer --nih=FOLDER

Pre-trains nih_sample's network on the phantom's findings, or takes the run of --init
or, with --model=densenet121, another framework's weights (--init=imagenet or a file,
whose standardisation comes along), and goes on from it by each mode on few, more and all training patients of nih-sample,
beside the same training from scratch. Prints the mean AUROC of the held-out films and
its paired difference to 'scratch', with 95 % intervals of a bootstrap over patients. A
fold's films are only ever compared with each other: each finding of each fold is a
curve of its own, and the mean is over all. All arms of a size take the same steps.

What is there is only read, so an interrupted command goes on. results.jsonl gets a line
whenever a fold is done. --cost=CONFIG says instead what a step of each mode takes.
"""

import importlib
import json
import sys
import time
from pathlib import Path

import absl.logging
import jax
import numpy as np
import pandas as pd
from absl import app, flags
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import nih_sample, quickstart
from medjax.commands import train
from medjax.evaluation import discrimination
from medjax.tasks import films, parts
from medjax.training import step

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", "runs/transfer", "folder of all runs")
flags.DEFINE_string("nih", "../shared/data/nih-sample", "laid out as ChestX-ray14 is")
flags.DEFINE_string("init", "", "a run or weights; without it, the phantom's run")
flags.DEFINE_string("model", "", "an architecture; without it, nih_sample's network")
flags.DEFINE_list("patients", ["50", "150", "0"], "who train; 0: all")
flags.DEFINE_list("steps", ["100", "140", "200"], "of each number of patients")
flags.DEFINE_list(
    "arms",
    ["scratch", "all", "head", "features", "layerwise", "gradual", "stage1"],
    "from scratch, the baseline, and modes of transfer",
)
flags.DEFINE_integer("folds", 5, "of the cross-validation")
flags.DEFINE_integer("replicates", 1000, "of the bootstrap")
flags.DEFINE_integer("pretraining", 2000, "steps on the phantom")
flags.DEFINE_string("cost", "", "a config, nih_densenet121 say: its step by mode")


def base() -> ConfigDict:
    """nih_sample's config, reporting in little."""
    c = nih_sample.get_config("small")
    if FLAGS.model:
        with c.unlocked():
            c.model = {"name": FLAGS.model}
    c.data.folder = FLAGS.nih
    c.data.records = str(Path(FLAGS.workdir) / "records")
    c.evaluation.replicates = 20
    return c


def pretrained() -> str:
    """The folder of the run on the phantom, trained if it isn't there."""
    folder = Path(FLAGS.workdir) / "phantom"
    if not (folder / "report.json").exists():
        c, phantom = base(), quickstart.get_config().data
        phantom.update(side=c.data.side, patients=2500, records=c.data.records)
        c.data = phantom
        c.imbalance = "balanced"
        c.train.steps = c.train.evaluate_every = FLAGS.pretraining
        train.train(c, folder)
        jax.clear_caches()  # Dozens of runs' programs are more than a process may map.
    return str(folder)


def configured(arm: str, patients: int, steps: int, fold: int) -> ConfigDict:
    """The config of one run."""
    c = base()
    c.split.update(folds=FLAGS.folds, fold=fold, patients=patients)
    c.train.steps = c.train.evaluate_every = steps
    if arm == "gradual":
        c.transfer.every = steps // 10
    if arm != "scratch":
        c.transfer.update(init=FLAGS.init or pretrained(), mode=arm)
        if not FLAGS.init:  # A phantom's patient 7 isn't the hospital's.
            c.transfer.overlap = "other_hospital"
        # From scratch and for the phantom's run it is the config's own.
        if FLAGS.init and not (Path(FLAGS.init) / "config.json").exists():
            with c.unlocked():
                c.intensity = {"name": "as_pretrained"}
    return c


def held_out(arm: str, patients: int, steps: int, fold: int) -> pd.DataFrame:
    """Trains one run if it isn't there, and reads what it says of its test films."""
    folder = Path(FLAGS.workdir) / f"{patients}-{arm}-{fold}"
    path = folder / "predictions/test.csv"
    if not path.exists():
        began = time.perf_counter()
        train.train(configured(arm, patients, steps, fold), folder)
        jax.clear_caches()  # Dozens of runs' programs are more than a process may map.
        mean = json.loads((folder / "report.json").read_text())["mean"]["auroc"]
        line = {"patients": patients, "arm": arm, "fold": fold, "steps": steps}
        line |= {"auroc": mean["estimate"], "seconds": time.perf_counter() - began}
        with (Path(FLAGS.workdir) / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
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


def compare(patients: int, steps: int) -> None:
    """Prints every arm at one number of patients, and against the first."""
    options = {"key": jax.random.key(0), "replicates": FLAGS.replicates}
    baseline, lines = None, []
    for arm in FLAGS.arms:
        folds = range(FLAGS.folds)
        rows = pd.concat([held_out(arm, patients, steps, fold) for fold in folds])
        score, label, weight = columns(rows)
        baseline = score if baseline is None else baseline
        patient, no = rows["patient"].to_numpy(), np.full(score.shape[1], np.nan)
        alone = discrimination.intervals(score, label, weight, patient, no, **options)
        against = discrimination.difference(
            score, baseline, label, weight, patient, **options
        )
        one, two = alone["mean_auroc"], against["mean_auroc"]
        lines.append(
            f"{patients or 'all':>4} patients  {arm:10s}"
            f"  {one.estimate:.3f} ({one.low:.3f} to {one.high:.3f})"
            f"  {two.estimate:+.3f} ({two.low:+.3f} to {two.high:+.3f})"
            f"  {int(two.undefined)} of {FLAGS.replicates} replicates undefined"
        )
    print("", *lines, "", sep="\n", flush=True)


def cost(name: str, rows: int = 16) -> None:
    """Prints memory, operations and seconds of a step of each mode."""
    c = importlib.import_module(f"configs.{name}").get_config()
    c.train.dtype = "float32"
    task = films.FindingsOutput(("a", "b"), False, (c.data.side, c.data.side, 1))
    rng = np.random.default_rng(0)
    zeros = np.zeros((1, rows), np.int32)
    batch = {
        "image": rng.integers(0, 256, (1, rows, *task.shape), np.uint8),
        "label": rng.integers(0, 2, (1, rows, 2)).astype(np.float32),
        "weight": np.ones((1, rows, 2), np.float32),
        "id": zeros,
        "epoch": zeros,
        "occurrence": zeros,
    }
    for mode in ("all", "stage2", "head"):
        c.transfer.mode = mode
        network = parts.classifier(c, task)
        state = jax.device_get(parts.initial_state(c, network, task, np.eye(2)))
        key = jax.random.key(0)
        compiled = step.compile_step(**parts.step_parts(c, network))
        compiled = compiled.lower(state, batch, key).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        flops = compiled.cost_analysis()["flops"]
        state, _ = jax.block_until_ready(compiled(state, batch, key))
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(compiled(state, batch, key))
            seconds.append(time.perf_counter() - began)
        print(
            f"{name} {mode:8s} {rows} x {task.shape[0]} px: {memory / 2**20:6.0f} MiB "
            f"temporary, {flops / 1e9:6.1f} GFLOP, {min(seconds):.2f} s a step",
            flush=True,
        )


def main(_) -> None:
    absl.logging.set_verbosity(absl.logging.ERROR)  # The libraries chat at INFO.
    cache = Path(FLAGS.workdir).absolute() / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if FLAGS.cost:
        cost(FLAGS.cost)
        return
    for patients, steps in zip(FLAGS.patients, FLAGS.steps, strict=True):
        compare(int(patients), int(steps))


if __name__ == "__main__":
    app.run(main)

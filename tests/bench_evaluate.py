"""Time and memory of everything that evaluate does once the network has spoken.

    python tests/bench_evaluate.py [--replicates=1000] [--patients=2797] [--out=DIR]

A test set of the official ChestX-ray14's size, 25,596 images of 2,797 patients and 14
findings of 0.2 % to 20 %, with sex, age and view: the audit and the account of the split of
all 112,120 images, Platt scaling and operating points on a validation set of 11,212, the
predictions' CSV, the summary, calibration included, the groups, the bands, the threshold
explorer, the page, its JSON and CSV. Not timed: reading the records, the network, and the
gallery's heatmaps. Each part is timed as
in a fresh process, the compilation included unless JAX_COMPILATION_CACHE_DIR holds it.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_auroc import FINDINGS, IMAGES, films
from small import RUN

from medjax.cohort import manifests
from medjax.evaluation import recalibration, results, subgroups, thresholds
from medjax.evaluation.inference import Predictions
from medjax.reports import report
from medjax.training import workdir

TASKS = tuple(f"Finding_{n}" for n in range(FINDINGS))
SIDES = {"train": 75_312, "validation": 11_212, "test": IMAGES}
CURVE = [{"step": 100 * n, "loss": 1 / (n + 1)} for n in range(250)]


def study(patients: int) -> tuple[Predictions, np.ndarray, pd.DataFrame]:
    """Predictions, those before calibration, and the table of who is in the films."""
    score, label, weight, patient = films(patients)
    raw = (0.9 * score / score.max()).astype(np.float32)
    rng = np.random.default_rng(1)
    age, sex = rng.uniform(5, 95, patients), rng.choice(["F", "M"], patients)
    table = pd.DataFrame(
        {
            "sex": sex[patient],
            "age": age[patient],
            "view": rng.choice(["PA", "AP"], IMAGES),
        }
    )
    found = Predictions(np.arange(IMAGES), patient, raw**2, label, weight)
    return found, raw, table


def cohort() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The table of all images and their manifest, and no pair of one picture."""
    rng, images = np.random.default_rng(2), sum(SIDES.values())
    split = np.repeat(list(SIDES), list(SIDES.values()))
    table = pd.DataFrame({"id": np.arange(images)})
    table["image"] = [f"{n:08d}.png" for n in range(images)]
    table["patient"] = np.arange(images) // 4  # Each side has whole patients.
    shares = np.geomspace(0.002, 0.2, FINDINGS)
    label = rng.random((images, FINDINGS)) < shares
    table[list(TASKS)] = label.astype(np.float32)
    manifest = table[["id", "image", "patient"]].assign(split=split)
    return table, manifest, pd.DataFrame({"id": [], "other": []}, dtype=int)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--patients", type=int, default=2_797)
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    found, raw, table = study(args.patients)
    draws = {"key": jax.random.key(0), "replicates": args.replicates}
    common = {"tasks": TASKS, "threshold": np.full(FINDINGS, 0.3, np.float32)}
    spent: dict[str, dict[str, float]] = {}

    def timed(name, function):
        wall, cpu = time.perf_counter(), time.process_time()
        value = function()
        ends = time.perf_counter() - wall, time.process_time() - cpu
        spent[name] = dict(zip(("wall_s", "cpu_s"), map(float, ends), strict=True))
        return value

    table_of_all, manifest, pairs = cohort()
    timed(
        "audit",
        lambda: manifests.audit(manifest, table_of_all, TASKS, duplicates=pairs),
    )
    accounted = timed(
        "account", lambda: manifests.account(table_of_all, manifest, TASKS, pairs)
    )
    validation = found._replace(
        **{name: x[: SIDES["validation"]] for name, x in found._asdict().items()}
    )
    fit = timed(
        "calibration_fit",
        lambda: recalibration.fit_platt(raw[: SIDES["validation"]], *validation[3:]),
    )
    assert len(fit.slope) == FINDINGS
    timed("operating_points", lambda: thresholds.choose(validation))

    summary = timed(
        "summary",
        lambda: results.summarise(
            found._replace(log_odds=raw),
            exclusive=False,
            uncalibrated=raw,
            **common,
            **draws,
        ),
    )
    groups = subgroups.by_metadata(table)
    summary["subgroups"] = timed(
        "subgroups", lambda: subgroups.summarise(found, groups, **common, **draws)
    )
    summary["bands"] = timed(
        "bands", lambda: thresholds.bands(found, tasks=TASKS, **draws)
    )
    summary["explorer"] = timed(
        "explorer", lambda: thresholds.explorer(found, **common)
    )
    about = {"split": "test", "source": "nih", "model": "densenet121"}
    about |= {"split_by": "patient", "checkpoint": 25_000, "steps": 25_000}
    about |= {"cohort": accounted}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.out or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        csv = folder / "predictions/test.csv"
        timed(
            "predictions",
            lambda: workdir.write_predictions(csv, TASKS, table_of_all, found, raw),
        )
        path = timed(
            "page",
            lambda: report.write({**about, **summary}, CURVE, folder, "report", **RUN),
        )
        size = path.stat().st_size / 2**20
    parts = {k: {n: round(s, 2) for n, s in v.items()} for k, v in spent.items()}
    print(
        json.dumps(
            {
                **parts,
                "total_s": round(sum(one["wall_s"] for one in spent.values()), 1),
                "total_cpu_s": round(sum(one["cpu_s"] for one in spent.values()), 1),
                "page_mib": round(size, 2),
                "memory_gib": round(
                    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
                ),
                "replicates": args.replicates,
                "patients": args.patients,
                "cores": os.cpu_count(),
                "load": [round(x, 1) for x in os.getloadavg()],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

"""Time and memory of intervals, side by side with a loop over scikit-learn.

    python tests/bench_auroc.py [--replicates=1000] [--patients=2797]

Both resample a test set of the official ChestX-ray14's size, 25,596 images and 14
findings of 0.2 % to 20 %. scikit-learn's loop does so --loops times a round and is scaled
up to as many replicates; all it computes is the AUROC. `intervals.bootstrap` gives average
precision, every rate and the means besides. They take turns, so that other load falls on
both alike; printed are medians over rounds, by the wall and by CPU time, and the largest
memory before scikit-learn is imported.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from medjax.evaluation import delong, intervals

IMAGES, FINDINGS = 25_596, 14


def films(patients: int) -> tuple:
    """score, label, weight [N, T], and each image's patient [N]."""
    rng = np.random.default_rng(0)
    shares = np.geomspace(0.002, 0.2, FINDINGS)
    label = (rng.random((IMAGES, FINDINGS)) < shares).astype(np.float32)
    score = rng.random((IMAGES, FINDINGS)).astype(np.float32) + 0.3 * label
    return score, label, np.ones_like(label), np.arange(IMAGES) % patients


def timed(function, *arguments) -> tuple[float, float]:
    """Seconds by the wall and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patients", type=int, default=2_797)
    parser.add_argument("--loops", type=int, default=5)
    args = parser.parse_args()
    score, label, weight, patient = films(args.patients)

    def ours():
        intervals.bootstrap(
            *(score, label, weight, patient, np.full(FINDINGS, 0.7)),
            key=jax.random.key(0),
            replicates=args.replicates,
        )

    compiled, _ = timed(ours)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    from sklearn.metrics import roc_auc_score

    rng, known = np.random.default_rng(0), label.astype(np.int8)  # Its faster dtype.

    def loop():
        for _ in range(args.loops):
            rows = rng.integers(0, IMAGES, IMAGES)
            for t in range(FINDINGS):
                roc_auc_score(known[rows, t], score[rows, t])

    rounds = [(*timed(ours), *timed(loop)) for _ in range(args.rounds)]
    scale = args.replicates / args.loops
    wall, cpu, peer_wall, peer_cpu = map(statistics.median, zip(*rounds, strict=True))
    test, _ = timed(delong.paired, score, score[::-1], label, weight, patient)
    print(
        json.dumps(
            {
                "replicates": args.replicates,
                "medjax_s": round(wall, 2),
                "medjax_cpu_s": round(cpu, 2),
                "first_call_s": round(compiled, 2),
                "memory_gib": round(memory, 2),
                "scikit_learn_s": round(peer_wall * scale, 1),
                "scikit_learn_cpu_s": round(peer_cpu * scale, 1),
                "times_faster": round(peer_wall * scale / wall, 1),
                "times_less_cpu": round(peer_cpu * scale / cpu, 1),
                "delong_s": round(test, 3),
                "cores": os.cpu_count(),
                "load": [round(x, 1) for x in os.getloadavg()],
            }
        )
    )


if __name__ == "__main__":
    main()

"""Time and memory of intervals, side by side with a loop over scikit-learn.

    python tests/bench_auroc.py [--replicates=1000] [--patients=2797]
        [--peer-python=PATH] [--peers=DIR]

With --peer-python the peer is its script auroc.py of --peers, in that environment; without
it the same loop is run here. Both resample a test set of the official ChestX-ray14's size, 25,596 images and 14
findings of 0.2 % to 20 %. scikit-learn's loop does so --loops times a round and is scaled
up to as many replicates; all it computes is the AUROC. `intervals.bootstrap` gives average
precision, every rate and the means besides. They take turns, so that other load falls on
both alike; printed are medians over rounds, by the wall and by CPU time, and the largest
memory before scikit-learn is imported.
"""

import argparse
import functools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from medjax.evaluation import discrimination

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


def number(value: float) -> float | None:
    """One decimal; NaN is None."""
    return None if math.isnan(value) else round(value, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patients", type=int, default=2_797)
    parser.add_argument("--loops", type=int, default=5)
    parser.add_argument("--peer-python", help="of an environment with scikit-learn")
    parser.add_argument("--peers", default=Path(__file__).parents[2] / "shared/peers")
    args = parser.parse_args()
    score, label, weight, patient = films(args.patients)

    def ours():
        discrimination.intervals(
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

    def script():
        """The peer's own script, which scales to 1,000 replicates itself."""
        found = subprocess.run(
            [args.peer_python, "auroc.py", f"--bootstraps={args.loops}"],
            cwd=args.peers,
            stdout=subprocess.PIPE,
            check=True,
        )
        wall = json.loads(found.stdout)["bootstrap_1000_s"] / 1000 * args.loops
        return wall, math.nan  # Its CPU time is that of its imports, too.

    peer = script if args.peer_python else functools.partial(timed, loop)
    rounds = [(*timed(ours), *peer()) for _ in range(args.rounds)]
    scale = args.replicates / args.loops
    wall, cpu, peer_wall, peer_cpu = map(statistics.median, zip(*rounds, strict=True))
    print(
        json.dumps(
            {
                "replicates": args.replicates,
                "medjax_s": round(wall, 2),
                "medjax_cpu_s": round(cpu, 2),
                "first_call_s": round(compiled, 2),
                "memory_gib": round(memory, 2),
                "scikit_learn_s": round(peer_wall * scale, 1),
                "scikit_learn_cpu_s": number(peer_cpu * scale),
                "scikit_learn": "auroc.py" if args.peer_python else "the same loop",
                "times_faster": round(peer_wall * scale / wall, 1),
                "times_less_cpu": number(peer_cpu * scale / cpu),
                "cores": os.cpu_count(),
                "load": [round(x, 1) for x in os.getloadavg()],
            }
        )
    )


if __name__ == "__main__":
    main()

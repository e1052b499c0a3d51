"""Commands as processes of their own, and a phantom small enough for a test."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NIH = ROOT.parent / "shared/data/nih-sample"
SMALL = [
    "--config=configs/quickstart.py",
    "--config.data.patients=120",
    "--config.data.side=48",
    "--config.data.prevalence=(0.2,0.2,0.3,0.3,0.2,0.2)",
    "--config.train.steps=12",
    "--config.train.batch=8",
    "--config.train.evaluate_every=5",
    "--config.train.log_every=2",
    "--config.evaluation.replicates=50",
    "--config.evaluation.gallery=0",
    "--config.explore=False",
]


def start(*arguments, devices=1):
    """Starts a command in a process of its own, on one device."""
    environment = dict(os.environ, XLA_FLAGS="")
    if devices > 1:
        forced = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = forced
    return subprocess.Popen(
        [sys.executable, "launch.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, code=0, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out, err


def films_of(records):
    """Every film of the phantoms there."""
    import tensorflow_datasets as tfds

    return [
        film
        for path in (records / "images").glob("phantom-*/1.0.0")
        for film in tfds.builder_from_directory(str(path)).as_data_source("films")
    ]

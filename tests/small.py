"""The quickstart, small enough for a test: `--config=tests/small.py`."""

import os
from pathlib import Path

from configs import quickstart
from medjax.config import config_as_json
from medjax.tasks import parts


def get_config():
    c = quickstart.get_config()
    c.explore = False
    c.data.patients = 120
    c.data.side = 32
    if shared := os.environ.get("MEDJAX_TESTS"):  # Drawn once for all tests.
        c.data.records = str(Path(shared) / "records")
    c.data.prevalence = (0.2, 0.2, 0.3, 0.3, 0.2, 0.2)
    c.model.update(blocks=(1, 1), growth=8, features=8)
    c.train.update(steps=12, batch=8, evaluate_every=5, log_every=2)
    c.evaluation.update(replicates=20, gallery=0)
    return c


RUN = {  # What report.write is told of a run besides its results.
    "recipe": parts.recipe(get_config()),
    "config": config_as_json(get_config()),
    "environment": {
        "python": "3.11.9",
        "revision": None,
        "dirty": None,
        "versions": {"jax": "0.10.2"},
    },
}

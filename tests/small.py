"""The quickstart, small enough for a test: `--config=tests/small.py`."""

from configs import quickstart


def get_config():
    c = quickstart.get_config()
    c.explore = False
    c.data.patients = 120
    c.data.side = 32
    c.data.prevalence = (0.2, 0.2, 0.3, 0.3, 0.2, 0.2)
    c.model.update(blocks=(1, 1), growth=8, features=8)
    c.train.update(steps=12, batch=8, evaluate_every=5, log_every=2)
    c.evaluation.update(replicates=20, gallery=0)
    return c

"""Volumes to classify, small enough for a test: `--config=tests/small_volumes.py`."""

from configs import base, lesion_shape


def get_config():
    c = lesion_shape.get_config()
    c.explore = False
    c.data = base.data("volumes")
    c.data.labels = ("lesion",)
    c.data.shape = (16, 16, 12)
    c.data.spacing = (4.0, 4.0, 4.0)
    c.model = {"name": "densenet_small", "blocks": (1, 1), "growth": 4, "features": 4}
    c.split.update(test=0.3, validation=0.3)
    c.train.update(steps=4, batch=8, evaluate_every=4, log_every=2)
    c.evaluation.update(replicates=20, gallery=1)
    return c

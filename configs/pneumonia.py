"""Pneumonia on chest films of children, from ImageNet weights, on two cores.

    python launch.py train --config=configs/pneumonia.py --workdir=runs/pneumonia

With its causes, three classes that exclude each other:

    --config=configs/pneumonia.py:cause

`data.folder` holds `images` and `films.csv`, a row for each film: image, patient,
Pneumonia (1 or 0), cause (bacteria, virus, normal).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(target: str = "") -> ConfigDict:
    c = base.classification("table")
    c.explore = False
    c.modality = "chest_xray"
    c.data.folder = "../shared/data/pneumonia"
    c.data.table = "films.csv"
    c.data.labels = ("Pneumonia",)
    c.data.side = 128
    c.split.test = 0.15
    # Within these films 32 x 32 pixels tell pneumonia by how a film was made: so change
    # exposure, sharpness and scale, strongly.
    c.augment.ops = (
        *("random_affine", "gamma", "contrast", "brightness"),
        *("low_resolution", "noise"),
    )
    c.augment.random_affine.update(flip=0.5, rotation=10.0, zoom=0.2, translation=0.05)
    c.augment.gamma.max_log_gamma = 0.4
    c.augment.contrast.strength = 0.3
    c.augment.brightness.strength = 0.15
    c.augment.low_resolution.strength = 1.0
    c.intensity = {"name": "as_pretrained"}
    c.model = {"name": "efficientnet_lite0"}
    c.transfer.init = "imagenet"
    # The first stages see the most pixels: frozen, they cost a third of the time, and
    # what they see of a photograph, edges and spots, a film has too.
    c.transfer.mode = "stage2"
    c.imbalance = "ratio"
    c.optim.update(learning_rate=1e-3, weight_decay=0.05, warmup=60, clip=5.0)
    c.train.update(steps=600, batch=32, evaluate_every=300)
    c.evaluation.flip = True
    if target == "cause":
        c.task = "multiclass"
        c.loss = {"name": "softmax_cross_entropy"}
        c.data.labels, c.data.classes = (), "cause"
    return c

"""Findings of 700 real films of ChestX-ray14, by three networks, from scratch.

    python launch.py train --config=configs/nih_sample.py --workdir=runs/nih_sample

`configs/nih_sample.py:small` is a network of an eighth of the weights on smaller images,
for sweeps, and `:features` a classifier that is fitted to frozen ImageNet features.
`data.folder` is a folder laid out as ChestX-ray14 is. Half of these films show pneumonia,
so the prevalence is not the data set's. A tenth of them is too few to compare recipes:
cross-validate with --config.split.folds=5 --config.split.fold=K.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(network: str = "") -> ConfigDict:
    c = base.classification("nih")
    c.explore = False
    c.modality = "chest_xray"
    c.data.tasks = ("Pneumonia", "Infiltration", "Atelectasis", "Edema", "Effusion")
    c.data.folder = "../shared/data/nih-sample"
    c.split.test = 0.1
    c.augment.ops = ("random_affine", "gamma", "contrast", "brightness", "noise")
    c.augment.contrast.strength = 0.2
    c.imbalance = "ratio"
    c.evaluation.flip = True
    c.evaluation.checkpoint = "last"  # 70 validation films can't rank checkpoints.
    if network == "small":
        c.data.side = 96
        c.augment.random_affine.update(
            flip=0.5, rotation=10.0, zoom=0.12, translation=0.06
        )
        c.model = {
            "name": "densenet_small",
            "stem": "quarter",
            "blocks": (3, 3, 3),
            "features": 24,
        }
        c.resampling.target = 0.3
        c.optim.update(learning_rate=2e-3, weight_decay=0.05, warmup=40)
        c.train.update(steps=800, batch=32, evaluate_every=200)
        return c
    if network == "features":
        c.data.side = 224
        c.evaluation.flip = False
        c.intensity = {"name": "as_pretrained"}
        c.model = {"name": "efficientnet_lite0"}
        c.transfer.update(init="imagenet", mode="features", penalty=1.0)
        return c
    if network:
        raise ValueError(f"{network!r}: give small, features or nothing after :")
    c.ensemble = 3
    c.data.side = 128
    c.augment.random_affine.update(flip=0.5, rotation=10.0, zoom=0.1)
    # Of all films alike: how bright a film is says who was too ill to stand.
    c.intensity = {"name": "standardise", "mean": 0.5, "std": 0.25}
    c.model = {"name": "resnet_small", "stem": "quarter"}
    c.optim.update(learning_rate=2e-3, weight_decay=0.05, warmup=200, clip=5.0)
    c.train.update(steps=800, batch=32, evaluate_every=400)
    return c

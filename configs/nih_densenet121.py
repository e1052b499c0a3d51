"""CheXNet's recipe for the whole of ChestX-ray14, at 224 pixels.

    python launch.py train --config=configs/nih_densenet121.py --workdir=runs/nih \
        --config.data.folder=DIR

DIR holds `images*/**.png`, `Data_Entry_2017*.csv`, and the official lists, which become
the split. DenseNet-121, all 14 findings, weighted cross-entropy. This starts from
scratch; the paper starts from ImageNet weights:

    --config.transfer.init=imagenet --config.intensity.name=as_pretrained

Source: Rajpurkar et al., CheXNet (2017).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.classification("nih")
    c.explore = False
    c.modality = "chest_xray"
    c.split.duplicates = "warn"  # Others compare with the official lists.
    c.intensity = {"name": "standardise", "mean": 0.5, "std": 0.25}
    c.augment.random_affine.update(flip=0.5, zoom=0.1)
    c.model = {"name": "densenet121"}
    c.imbalance = "ratio"
    c.resampling.target = 0.05
    c.optim.update(learning_rate=5e-4, warmup=1000, ema=0.999)
    c.train.steps = 25000  # 20 epochs of 78,000 films
    c.train.dtype = "bfloat16"
    c.train.log_every = 50
    c.train.evaluate_every = 1250
    c.evaluation.batch = 256
    c.evaluation.flip = True
    return c

"""The embedded default: six findings on synthetic chest films, on a laptop.

python launch.py train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.classification("phantom")
    c.modality = "chest_xray"
    c.augment.random_affine.flip = 0.5
    c.evaluation.flip = True
    c.imbalance = "balanced"
    return c

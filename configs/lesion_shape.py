"""Lesions among vessels in synthetic liver MRI, which no slice alone can show.

    python launch.py train --config=configs/lesion_shape.py --workdir=runs/lesion_shape

For volumes of your own, `base.classification("volumes")` reads a table whose rows name
NIfTI files or DICOM series; its fields are in base.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.classification("liver_phantom")
    c.augment.random_affine.flip = 0.5
    c.model = {
        "name": "unet_encoder",
        "widths": (8, 16, 32),
        "strides": (1, 2, 2),
        "pool": "mean_max",
    }
    c.optim.update(ema=0.98)
    c.train.update(steps=400, batch=16, evaluate_every=100)
    c.evaluation.flip = True
    return c

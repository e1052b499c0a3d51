"""Lesions that one network finds and draws: the livers of `lesion_shape`, with masks.

    python launch.py train --config=configs/lesion_masks.py --workdir=runs/lesion_masks

Of volumes of your own, `data.mask` names the column of their masks: see base.py.
"""

from ml_collections import ConfigDict

from configs import lesion_shape


def get_config() -> ConfigDict:
    c = lesion_shape.get_config()
    c.data.masks = True
    c.loss.masks = 1.0  # of the masks' loss, beside that of the finding
    return c

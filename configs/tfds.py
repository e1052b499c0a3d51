"""A data set that TFDS has prepared, as array_record files, by its name or folder.

    python launch.py train --config=configs/tfds.py --workdir=runs/colorectal \
        --config.data.name=colorectal_histology --config.data.data_dir=DIR

`image` and `label` name features of the data set. A class label makes classes; a vector
of 0 and 1 makes findings, which need

    --config.task=multilabel --config.loss.name=weighted_bce

`patient` names the feature that says whom the image shows. Without it each image counts
as a patient of its own, and no split can be audited.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.classification("tfds")
    c.task = "multiclass"
    c.loss = {"name": "softmax_cross_entropy"}
    return c

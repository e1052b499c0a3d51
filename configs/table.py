"""Your own images: a CSV file with a row for each image, and a folder of files.

    python launch.py explore --config=configs/table.py --workdir=runs/mine
    python launch.py train --config=configs/table.py --workdir=runs/mine

Set `folder`, and name the columns of `labels.csv`: `image`, a path below the folder;
`patient`, whom the image shows; and either the columns of `labels`, each 1, 0 or blank
(unknown), or the one column of `classes`, which holds a name. The others are optional.
For classes set the task and the loss too, by flag or here:

    --config.task=multiclass --config.loss.name=softmax_cross_entropy
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.classification("table")
    c.imbalance = "ratio"
    c.model.stem = "quarter"
    # Where left and right may be swapped, set both: augment.random_affine.flip = 0.5
    # and evaluation.flip = True.
    return c

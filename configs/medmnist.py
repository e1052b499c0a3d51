"""A MedMNIST file (Yang et al., Scientific Data 2023) on its own splits.

    python launch.py train --config=configs/medmnist.py --workdir=runs/derma \
        --config.data.file=dermamnist_64.npz --config.data.side=64

For findings (ChestMNIST) or a single yes or no (PneumoniaMNIST) add

    --config.task=multilabel --config.loss.name=weighted_bce --config.imbalance=ratio

A file of volumes (OrganMNIST3D) has `side` cubed voxels. The files name no patients, so
their splits can't be audited by patient.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.classification("medmnist")
    c.task = "multiclass"
    c.loss = {"name": "softmax_cross_entropy"}
    c.split.duplicates = "warn"  # Others compare with the files' own splits.
    return c

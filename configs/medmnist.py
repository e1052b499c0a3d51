"""A MedMNIST file (Yang et al., Scientific Data 2023) on its own splits.

    python launch.py train --config=configs/medmnist.py --workdir=runs/derma \
        --config.data.file=dermamnist_64.npz --config.data.side=64

Several classes as it stands. For findings (ChestMNIST) or one yes or no
(PneumoniaMNIST) add --config.task=multilabel --config.loss.name=weighted_bce, and
--config.imbalance=ratio. A file of volumes (OrganMNIST3D) has `side` cubed voxels.

The files name no patients, so no split of theirs can be audited by patient.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.modality = ""  # e.g. 'chest_xray', 'retina': refuses what is unsafe for it
    c.task = "multiclass"
    c.transfer = {"init": "", "mode": "all", "decay": 0.75, "every": 100}
    c.loss = {"name": "softmax_cross_entropy"}
    c.imbalance = "none"
    c.data = {
        "source": "medmnist",
        "records": "records",
        "max_quarantined": 0.0,
        "tasks": (),
        "side": 28,
        "file": "dermamnist.npz",
        "names": (),  # of the classes; (): '0', '1' and on
    }
    c.split.duplicates = "warn"  # The files' splits are what others compare with.
    c.augment.random_affine.flip = 0.0
    c.evaluation.flip = False
    return c

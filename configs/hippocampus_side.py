"""Which side of the brain a hippocampus is of: a table of volumes, and exclusive classes.

    python tests/mirrored.py ../shared/data/hippocampus hippocampus_side
    python launch.py train --config=configs/hippocampus_side.py --workdir=runs/side

The Decathlon's crops all show one side, so half of them are mirrored, and the label says
which: no header does. Cross-validate with --config.split.folds=5 --config.split.fold=K.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.classification("volumes")
    c.task = "multiclass"
    c.modality = "brain_mri"
    c.augment.sided = True
    c.data.folder = "hippocampus_side"
    c.data.classes = "side"
    c.data.shape = (20, 28, 20)
    c.data.spacing = (2.0, 2.0, 2.0)
    c.model = {"name": "densenet_small", "pool": "mean_max"}
    c.loss = {"name": "softmax_cross_entropy"}
    c.optim.update(learning_rate=2e-3, ema=0.98)
    c.train.update(steps=150, batch=16, evaluate_every=50)
    return c

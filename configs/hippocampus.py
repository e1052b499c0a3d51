"""The anterior and the posterior hippocampus on brain MRI, by a 3-D U-Net.

    python launch.py train --config=configs/hippocampus.py --workdir=runs/hippocampus

`data.folder` is task 4 of the Medical Segmentation Decathlon. A tenth of the people is
too few to compare recipes: cross-validate with --config.split.folds=5
--config.split.fold=K. The numbers 2k - 1 and 2k seem to be two sides of one person (see
tests/README.md), so hippocampus.csv, which is of the command

    python -m configs.hippocampus > configs/hippocampus.csv

counts them as one patient.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.segmentation("decathlon")
    c.ensemble = 2
    c.modality = "brain_mri"
    c.data.folder = "../shared/data/hippocampus"
    c.data.patient = str(Path(__file__).resolve().with_suffix(".csv"))
    c.data.sequences = ("MRI",)
    c.data.regions = ("anterior", "posterior")
    c.data.values = {"anterior": (1,), "posterior": (2,)}
    c.data.exclusive = True
    c.split.test = 0.1
    c.patch.size = (32, 48, 32)
    c.patch.each = 1
    # A bent brain would read as a sick one; here its outline is all that is asked.
    c.augment.allow_unsafe = True
    c.augment.ops = ("random_affine", "elastic", "bias_field", "contrast", "gamma")
    c.augment.elastic.update(strength=2.0, distance=12.0)
    dice = {"share": 1.0, "smooth": 1.0}
    c.loss = {
        "name": "compound",
        "parts": {"soft_dice": dice, "softmax_cross_entropy": {}},
    }
    c.optim.update(learning_rate=4e-3, warmup=100, ema=0.995)
    c.train.update(steps=2200, batch=4, evaluate_every=1100)
    c.evaluation.checkpoint = "last"
    return c


if __name__ == "__main__":
    print("scan,patient")
    for number in range(1, 395):
        print(f"hippocampus_{number:03d},{(number + 1) // 2}")

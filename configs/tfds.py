"""A data set that TFDS has prepared, as array_record files, by its name or folder.

    python launch.py train --config=configs/tfds.py --workdir=runs/colorectal \
        --config.data.name=colorectal_histology --config.data.data_dir=DIR

`image` and `label` name its features; a class label makes classes, a vector of 0 and 1
findings (then set task and loss, as configs/table.py says). `patient` names the feature
that says whom the image shows: without it each image is a patient of its own, and no
split can be audited.
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
        "source": "tfds",
        "records": "records",
        "max_quarantined": 0.01,
        "tasks": (),
        "side": 64,
        "name": "colorectal_histology",
        "data_dir": "~/tensorflow_datasets",
        "image": "image",
        "label": "label",
        "labels": (),  # several features, each 0 or 1, instead of `label`
        "names": (),  # of the findings of a vector
        "patient": "",
        "view": "",
        "sex": "",
        "age": "",
        "follow_up": "",
        "channels": 3,
    }
    c.augment.random_affine.flip = 0.0
    c.evaluation.flip = False
    return c

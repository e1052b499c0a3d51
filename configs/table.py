"""Your own images: a CSV with a row an image, beside a folder of files.

    python launch.py explore --config=configs/table.py --workdir=runs/mine
    python launch.py train --config=configs/table.py --workdir=runs/mine

Set `folder`, and name the columns of `labels.csv`: `image`, a path below the folder;
`patient`, whom the image shows; and either the columns of `labels`, each 1, 0 or blank
(unknown), or the one column of `classes`, which holds a name. The rest are optional.
For classes set `task` and the loss too, by flag or here:

    --config.task=multiclass --config.loss.name=softmax_cross_entropy
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.modality = ""  # e.g. 'chest_xray', 'retina': refuses what is unsafe for it
    c.data = {
        "source": "table",
        "records": "records",
        "max_quarantined": 0.01,
        "tasks": (),
        "side": 128,
        "folder": "my_data",
        "table": "labels.csv",
        "image": "image",
        "patient": "patient",
        "labels": (),  # e.g. ("mass", "nodule")
        "classes": "",  # or e.g. "diagnosis"
        "view": "",
        "sex": "",
        "age": "",
        "follow_up": "",
        "official": "",
        "channels": 1,  # 3 keeps colour
    }
    c.imbalance = "ratio"
    c.augment.random_affine.flip = 0.0  # Set 0.5 where left and right may be swapped.
    c.evaluation.flip = False  # As above.
    c.model.stem = "quarter"
    return c

"""CheXNet's recipe for the whole of ChestX-ray14, at 224 pixels.

    python launch.py train --config=configs/nih_densenet121.py --workdir=runs/nih \\
        --config.data.folder=DIR

DIR holds `images*/**.png`, `Data_Entry_2017*.csv`, and the official lists, which
are used as the split. DenseNet-121, all 14 findings, weighted cross-entropy. From
scratch; from ImageNet weights, as in the paper, with

    --config.transfer.init=imagenet --config.intensity.name=as_pretrained

Not trained to its end yet: it has no result to show.

Source: Rajpurkar et al., CheXNet (2017).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.explore = False
    c.modality = "chest_xray"
    c.task = "multilabel"
    c.data = {
        "source": "nih",
        "records": "records",
        "max_quarantined": 0.01,
        "tasks": (),
        "side": 224,
        "folder": "nih",
    }
    c.split = {
        "by": "patient",
        "test": 0.2,
        "validation": 0.1,
        "minority": 0.1,
        "folds": 0,
        "fold": 0,
        "cut": 0,
        "patients": 0,
        "duplicates": "warn",  # The official lists are what others compare with.
    }
    c.intensity = {"name": "standardise", "mean": 0.5, "std": 0.25}
    c.augment = {
        "sided": False,
        "allow_unsafe": False,
        "ops": ("random_affine", "brightness", "contrast"),
        "random_affine": {
            "flip": 0.5,
            "rotation": 5.0,
            "zoom": 0.1,
            "translation": 0.05,
        },
        "brightness": {"strength": 0.1},
        "contrast": {"strength": 0.1},
    }
    c.model = {"name": "densenet121"}
    c.transfer = {"init": "", "mode": "all", "decay": 0.75, "every": 100}
    c.adapt = {"name": "none"}
    c.loss = {"name": "weighted_bce"}
    c.imbalance = "ratio"
    c.resampling = {
        "target": 0.05,
        "any_positive": False,
        "most": 10,
        "neighbours": 5,
        "drop": False,
    }
    c.optim = {
        "name": "adamw",
        "learning_rate": 5e-4,
        "weight_decay": 1e-2,
        "warmup": 1000,
        "clip": 1.0,
        "ema": 0.999,
    }
    c.train = {
        "steps": 25000,  # 20 epochs of 78,000 films
        "batch": 64,
        "dtype": "bfloat16",
        "threads": 0,
        "log_every": 50,
        "evaluate_every": 1250,
        "keep": 1,
    }
    c.evaluation = {
        "batch": 256,
        "flip": True,
        "checkpoint": "best",
        "rule": "youden",  # of the thresholds; or 'sensitivity', 'specificity', 'cost'
        "value": 0.9,  # of the other rules; of cost: of a miss, in false alarms
        # Of the probabilities, fitted on validation: 'platt', 'temperature' or
        # 'isotonic'; 'prior' undoes what `imbalance` did to them; or 'none'.
        "calibration": "platt",
        "prevalence": (),  # PPV and NPV there too: a number, or one a finding
        "replicates": 1000,
        "gallery": 2,  # films of each kind of call in the report; 0: none
    }
    return c

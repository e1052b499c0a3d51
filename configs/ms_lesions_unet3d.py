"""Multiple-sclerosis lesions on four sequences of brain MRI, by a 3-D U-Net.

    python launch.py train --config=configs/ms_lesions_unet3d.py --workdir=runs/ms

Trains on every patient of the folder, for use on others:

    python launch.py predict --workdir=runs/ms --images=DIR --out=DIR

--config.data.split=leave_one_out with --config.split.fold=0 or 1, or
--config.data.split=halves, measure what can be measured with two patients. Trained on
the left halves, Dice on the right ones: 0.897 (patient19, 50 ml of lesions) and 0.372
(patient07, 1.3 ml). Trained on one patient, by 1,000 steps, Dice of the other: 0.035
(patient19) and 0.067 (patient07); one patient teaches nothing of another, nor does it
MONAI's 3-D U-Net (0.051 and 0.058). Two cores take 10 to 18 minutes for the 2,200 steps.

In 2-D, of the same halves, the slices do as well where there are many lesions, and
worse where there are few: 0.905 (patient19) and 0.182 (patient07), in 13 minutes, with

    --config.data.split=halves --config.patch.slices=True
    --config.patch.size="(3,128,64)" --config.patch.each=32 --config.train.batch=64
    --config.train.steps=1100 --config.train.evaluate_every=1100
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.task = "segmentation"
    c.modality = "brain_mri"
    c.data = {
        "source": "folders",
        "records": "records",  # where prepared volumes lie, of all configs
        "max_quarantined": 0.0,  # share of the patients that may be unreadable
        "folder": "../shared/data/ms-lesion-sample",  # of a folder a patient
        "sequences": ("FLAIR", "T1", "T1POST", "T2"),  # in this order
        "files": {  # patterns of file names in the patient's folder
            "FLAIR": "FLAIR.nii.gz",
            "T1": "T1.nii.gz",
            "T1POST": "T1POST.nii.gz",
            "T2": "T2.nii.gz",
        },
        "patient": "",  # part of a volume's name, '(.*?)/' where visits lie in folders
        "mask": "lesion.nii.gz",
        "regions": ("lesion",),
        "values": {"lesion": (1,)},  # of the mask, in each region
        "spacing": (),  # mm along D, H, W; (): as in the files
        "grids": "refuse",  # sequences on other grids; or 'align'
        "missing": "refuse",  # a missing sequence; or 'fill' with zeros
        "split": "all",  # or 'leave_one_out', 'halves', 'patients'
    }
    c.split = {"test": 0.2, "validation": 0.1, "fold": 0}
    c.patch = {
        "size": (64, 64, 64),  # voxels along D, H, W
        "each": 1,  # patches of a volume in a step
        "foreground": 0.67,  # share of them about a voxel of a region, half by lesion
        "slices": False,  # 2-D: the middle slice, its d neighbours as channels
    }
    c.augment = {
        "sided": False,
        "allow_unsafe": False,
        "ops": ("random_affine", "bias_field", "contrast", "gamma", "rician_noise"),
        "random_affine": {
            "flip": 0.5,
            "rotation": 10.0,
            "zoom": 0.1,
            "translation": 0.0,
        },
        "bias_field": {"strength": 0.2},
        "contrast": {"strength": 0.1},
        "gamma": {"max_log_gamma": 0.2},
        "rician_noise": {"std": 0.02},
    }
    c.model = {
        "name": "unet",
        "widths": (24, 48, 96),
        "strides": (2, 2, 2),  # into each level, the first from the image
        "kernels": 3,
        "blocks": (0, 1, 1),
        "up_blocks": 1,
        "groups": 0,
        "attention": False,
        "deep": 0,
    }
    c.transfer = {"init": ""}  # a run of segmentation to begin with
    c.loss = {
        "name": "compound",
        "parts": {"soft_dice": {"share": 1.0, "smooth": 1.0}, "weighted_bce": {}},
    }
    c.optim = {
        "name": "adamw",
        "learning_rate": 4e-3,
        "weight_decay": 1e-2,
        "warmup": 150,
        "clip": 5.0,
        "ema": 0.995,
    }
    c.train = {
        "steps": 2200,
        "batch": 2,
        "dtype": "float32",
        "threads": 2,
        "log_every": 20,
        "evaluate_every": 550,
        "keep": 1,
    }
    c.evaluation = {
        "overlap": 0.5,
        "flips": (2,),
        "batch": 1,
        "checkpoint": "last",
        "choose": True,  # threshold and smallest lesion, on validation
        "tolerance": 1.0,  # mm, of the surface Dice
        "replicates": 1000,
    }
    return c

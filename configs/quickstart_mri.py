"""The embedded default of segmentation: tumours in synthetic brain MRI, on a laptop.

    python launch.py train --config=configs/quickstart_mri.py --workdir=runs/mri

Two cores, 1 min 33 s. Dice of 18 test patients: whole tumour 0.902 (0.883-0.915), core
0.886 (0.852-0.908), enhancing part 0.740 (0.644-0.813).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.task = "segmentation"
    c.modality = "brain_mri"  # what augmentation is safe for; '': not asked
    c.data = {
        "source": "brain_phantom",
        "records": "records",  # where prepared volumes lie, of all configs
        "max_quarantined": 0.0,  # share of the patients that may be unreadable
        "split": "patients",  # or 'leave_one_out', 'halves', 'all'
        "patients": 60,
        "first_patient": 0,  # other numbers are other people
        "seed": 0,
        "shape": (64, 80, 64),  # voxels along D, H, W
        "spacing": (2.5, 2.5, 2.5),  # mm
        "without_tumour": 0.0,  # shares of the patients
        "without_enhancing": 0.15,
    }
    c.split = {"test": 0.3, "validation": 0.1, "fold": 0}
    c.patch = {
        "size": (32, 40, 32),  # voxels along D, H, W
        "each": 2,  # patches of a volume in a step
        "foreground": 0.67,  # share of them about a voxel of a region
        "slices": False,  # 2-D: the middle slice, its d neighbours as channels
    }
    c.augment = {
        "sided": False,
        "allow_unsafe": False,
        "ops": ("random_affine", "bias_field", "contrast", "gamma"),
        "random_affine": {
            "flip": 0.5,
            "rotation": 10.0,
            "zoom": 0.1,
            "translation": 0.0,
        },
        "bias_field": {"strength": 0.2},
        "contrast": {"strength": 0.1},
        "gamma": {"max_log_gamma": 0.2},
    }
    c.model = {
        "name": "unet",
        "widths": (16, 32, 64),
        "strides": (2, 2, 2),  # into each level, the first from the image
        "kernels": 3,
        "blocks": 1,
        "up_blocks": 1,
        "groups": 0,  # 0: instance normalisation
        "attention": False,
        "deep": 0,  # coarser levels that have a loss too
    }
    c.transfer = {"init": ""}  # a run of segmentation to begin with
    c.loss = {
        "name": "compound",
        "parts": {"soft_dice": {"share": 1.0, "smooth": 1.0}, "weighted_bce": {}},
    }
    c.optim = {
        "name": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 1e-2,
        "warmup": 50,
        "clip": 1.0,
        "ema": 0.98,
    }
    c.train = {
        "steps": 800,
        "batch": 4,  # patches
        "dtype": "float32",
        "threads": 0,  # reading threads; 0: one a core
        "log_every": 10,
        "evaluate_every": 200,
        "keep": 1,
    }
    c.evaluation = {
        "overlap": 0.5,  # of neighbouring windows
        "flips": (2,),  # averaged over; 0, 1, 2: along D, H, W
        "batch": 4,  # windows at once
        "checkpoint": "best",
        "choose": True,  # threshold and smallest lesion, on validation
        "tolerance": 2.5,  # mm, of the surface Dice
        "replicates": 1000,
    }
    return c

"""Multiple-sclerosis lesions on four sequences of brain MRI, by a 3-D U-Net.

    python launch.py train --config=configs/ms_lesions_unet3d.py --workdir=runs/ms

It trains on all patients of the folder, to be used on others:

    python launch.py predict --workdir=runs/ms --images=DIR --out=DIR

--config.data.split=leave_one_out with --config.split.fold=0 or 1, or
--config.data.split=halves, measure what can be measured with two patients. In 2-D, on
slices:

    --config.data.split=halves --config.patch.slices=True --config.patch.lesions=0.0
    --config.patch.size="(3,128,64)" --config.patch.each=32 --config.train.batch=64
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.segmentation("folders")
    c.modality = "brain_mri"
    c.data.folder = "../shared/data/ms-lesion-sample"
    c.data.split = "all"
    c.patch.size = (64, 64, 64)
    c.patch.each = 1
    # Two patients' lesions are few, and all of two kinds.
    c.patch.lesions = 0.4
    # Between patients the sequences differ, each in its own way.
    c.augment.ops = (
        *("random_affine", "bias_field", "contrast", "brightness", "gamma"),
        "rician_noise",
    )
    c.augment.contrast.update(strength=0.25, by_channel=True)
    c.augment.brightness.update(strength=0.05, by_channel=True)
    c.augment.gamma.update(max_log_gamma=0.3, by_channel=True)
    c.model = {**c.model, "widths": (24, 48, 96), "blocks": (0, 1, 1)}
    c.optim.update(learning_rate=4e-3, warmup=150, clip=5.0, ema=0.995)
    # With more steps, less was found in another patient.
    c.train.update(steps=1100, batch=2, threads=2, log_every=20, evaluate_every=550)
    c.evaluation.batch = 1
    c.evaluation.checkpoint = "last"
    # Where nobody validates. Of a new patient's lesions a network is less sure than of
    # those that it learnt.
    c.evaluation.threshold = 0.3
    return c

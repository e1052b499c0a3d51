"""The embedded default of segmentation: tumours in synthetic brain MRI, on a laptop.

python launch.py train --config=configs/quickstart_mri.py --workdir=runs/mri
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.segmentation("brain_phantom")
    c.modality = "brain_mri"
    c.split.test = 0.3
    c.optim.ema = 0.98
    c.evaluation.tolerance = 2.5  # A voxel's side.
    return c

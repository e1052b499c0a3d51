"""The quickstart trained for the area under the curve itself, by AUC-M.

    python launch.py train --config=configs/auc_margin.py --workdir=runs/auc_margin

The loss learns the mean scores of both classes and their margin together with the model
(Yuan et al., ICCV 2021), so it needs no class weights. The paper starts from a model
that was trained with cross-entropy; this config starts from scratch.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.loss = {"name": "auc_margin", "margin": 1.0, "rate": 0.1}
    c.imbalance = "none"
    return c

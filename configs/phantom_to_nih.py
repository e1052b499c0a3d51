"""From phantoms with labels to real films without: unsupervised domain adaptation.

    python launch.py train --config=configs/phantom_to_nih.py --workdir=runs/dann \
        --config.adapt.name=coral --config.adapt.weight=100

`adapt.name` is 'none', 'adabn' (the target's batch statistics), 'coral' (equal
covariances of the embeddings) or 'dann' (a domain classifier that the embedding
deceives). Half of the real films, by patient, is used without labels; the report
`report-target.html` is about the other half. `python tests/bench_adaptation.py` compares
the four, with each half in turn.
"""

from ml_collections import ConfigDict

from configs import base, nih_sample


def get_config() -> ConfigDict:
    c = nih_sample.get_config("small")
    # The target; records, max_quarantined and tasks are the source's.
    target = {"source": "nih", "side": c.data.side, "folder": c.data.folder}
    c.adapt = {"name": "none", "weight": 0.01, "data": target}
    c.data = base.data("phantom")
    c.data.tasks = (
        *("Mass", "Nodule", "Effusion"),
        *("Cardiomegaly", "Pneumothorax", "Consolidation"),
    )
    c.data.side = 96
    c.data.patients = 1500
    c.data.prevalence = (0.12, 0.12, 0.2, 0.1, 0.1, 0.12)
    c.split.test = 0.5
    c.train.steps = 300
    c.train.evaluate_every = 300
    return c

"""How much a split by image flatters: few patients, many films of each.

    R=runs/leakage
    python launch.py train --config=configs/leakage.py --workdir=$R/image \
        --config.split.by=image
    python launch.py train --config=configs/leakage.py --workdir=$R/patient
    for by in image patient; do
        python launch.py evaluate --workdir=$R/$by --split=new_patients \
            --config=configs/leakage.py --config.data.first_patient=100000
    done

The films of a patient share anatomy, marks and mostly disease. A model that has trained
on some of them recognises the others. The loop evaluates both models on new patients.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.data.side = 48
    c.data.patients = 600
    c.data.films = 6
    c.data.contrast = 0.6
    c.data.prevalence = (0.15,) * 6  # Few positives would hide the gap in noise.
    c.split.test = 0.3
    c.augment.ops = ()
    c.train.steps = 400
    c.train.evaluate_every = 100
    c.evaluation.flip = False  # Training never mirrored.
    c.evaluation.checkpoint = "last"
    return c

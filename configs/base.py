"""Every field that a config can have, with what it does, its unit and its choices.

`classification()` and `segmentation()` return a complete config. A recipe changes what
it needs, and its docstring has its command:

    def get_config() -> ConfigDict:
        c = base.classification("table")
        c.data.folder = "my_data"
        c.model = {"name": "densenet121"}
        return c

A field that isn't declared here can't be set: neither by a recipe nor by a flag. The
exceptions are `model`, `loss`, `intensity` and `adapt`: these hold the arguments of the
function that they name, and that function refuses an unknown one.
"""

from ml_collections import ConfigDict

OPEN = ("model", "loss", "intensity", "adapt")


def classification(source: str = "phantom") -> ConfigDict:
    """Findings or classes of images, read from this source (see `data`)."""
    c = _shared(source)
    c.task = "multilabel"  # findings; or "multiclass": an image shows exactly one class
    c.explore = True  # Write explore.html before training.
    c.split.update(
        minority=0.1,  # least share of a finding's positives in test and validation
        cut=0,  # n: train on follow-ups below n, test other patients from n on; 0: off
    )
    # How images are standardised, on the device: a function of data/normalisation.py with its
    # arguments, or "as_pretrained": as the weights of transfer.init expect it.
    c.intensity = {"name": "standardise_each"}
    c.augment.ops = ("random_affine", "brightness", "contrast")
    if source in ("volumes", "liver_phantom"):
        c.intensity = {"name": "z_scores"}
        c.augment.ops = ("random_affine", "bias_field", "contrast", "gamma")
    # A network of models/architectures.py with its arguments: densenet_small,
    # densenet121/169/201, resnet_small, resnet18/34/50/101, unet_encoder, efficientnet_b0,
    # efficientnet_lite0, convnext_tiny, vit_small, vit_base. All have a dropout of the last
    # layer's input; the last five have stochastic_depth. Volumes make them 3-D, but the
    # last two are of images.
    c.model = {"name": "densenet_small", "stem": "half", "pool": "mean_max"}
    c.loss = {"name": "weighted_bce"}  # a loss of losses.py with its arguments
    c.evaluation.update(
        batch=128,  # images
        flip=False,  # Average the predictions of an image and its mirror image.
        copies=0,  # augmented copies of an image, by augment.ops, to average over as well
        # Thresholds, chosen on validation: "youden", "cost", "sensitivity" or
        # "specificity". `value` is the sensitivity or specificity to reach; for "cost" it
        # is what a missed finding costs, in false alarms.
        rule="youden",
        value=0.9,
        # Calibration of the probabilities, fitted on validation: "platt", "temperature",
        # "isotonic"; "prior" undoes the effect of `imbalance`; "adjust" makes classes
        # equally frequent; or "none".
        calibration="platt",
        # Conformal answers in the predictions, present, absent or uncertain, of which this
        # share may be wrong, among the present and the absent alike; 0: none.
        error_rate=0.0,
        prevalence=(),  # also report PPV and NPV there: one share, or one a finding
        ordered=False,  # Classes are grades, in data.tasks' order: adds their weighted kappa.
        gallery=2,  # images of each kind of call on the page; 0: none
    )
    return _locked(c)


def segmentation(source: str = "brain_phantom") -> ConfigDict:
    """Masks of scans, read from this source (see `data`)."""
    c = _shared(source)
    c.task = "segmentation"
    c.explore = False
    c.patch = {
        "size": (32, 40, 32),  # voxels along D, H, W
        "each": 2,  # patches of a volume in a step
        "foreground": 0.67,  # share of the patches drawn about a voxel of a region
        "slices": False,  # 2-D: the middle slice; its neighbours become channels
        # Share of the patches that get synthetic lesions too, of any size, in the tissue
        # about the scan's own and as bright as they: where few lesions are outlined. One
        # region alone, in 3-D.
        "lesions": 0.0,
    }
    c.augment.ops = ("random_affine", "bias_field", "contrast", "gamma")
    c.augment.random_affine.update(flip=0.5, rotation=10.0, zoom=0.1, translation=0.0)
    c.model = {
        "name": "unet",
        "widths": (16, 32, 64),  # channels of each level
        "strides": (2, 2, 2),  # into each level; the first: from the image
        "kernels": (3,),  # of each level; or one for all
        "blocks": 1,  # residual blocks of a level on the way down
        "up_blocks": 1,  # the same on the way up
        "groups": 0,  # of group normalisation; 0: instance normalisation
        "attention": False,  # gates on the skip connections
        "deep": 0,  # number of coarser levels that have a loss too
        "remat": False,  # Compute levels again for the gradient: slower, less memory.
    }
    c.loss = {
        "name": "compound",
        "parts": {"soft_dice": {"share": 1.0, "smooth": 1.0}, "weighted_bce": {}},
    }
    # What class weights count: "voxels" in and outside a region, or "patients" with and
    # without it.
    c.resampling.update(count="voxels")
    c.optim.learning_rate = 3e-3
    c.train.update(steps=800, batch=4, evaluate_every=200)
    c.evaluation.update(
        batch=4,  # windows
        overlap=0.5,  # share of a window that its neighbour covers too
        flips=(2,),  # average over mirror images along these axes: 0, 1, 2 for D, H, W
        copies=0,  # augmented copies of a window, by augment.ops, to average over as well
        # Choose the threshold on validation and, from 5 volumes on, the smallest lesion.
        choose=True,
        # The probability from which on a voxel is inside, where that isn't chosen: without
        # `choose`, or where nobody validates.
        threshold=0.5,
        tolerance=1.0,  # mm, of the surface Dice
    )
    return _locked(c)


def data(source: str) -> ConfigDict:
    """The fields of `data` for one source. Lengths are in mm, sides in pixels."""
    c = ConfigDict(_DATA[source])
    c.source = source
    c.records = "records"  # folder of the prepared data of all configs
    scans = "split" in c
    c.max_quarantined = (
        0.0 if scans or source == "medmnist" else 0.01
    )  # unreadable share
    if not scans:
        c.tasks = ()  # findings or classes to use; (): all
    return c.lock()


_COLUMNS = {"view": "", "sex": "", "age": "", "follow_up": ""}  # "": there is none
_TABLE = {
    "folder": "my_data",
    "table": "labels.csv",  # a row for each image; then names of its columns
    "image": "image",
    "patient": "patient",
    "labels": (),  # columns of findings: ("mass", "nodule")
    "classes": "",  # instead of labels, the one column of class names
    **_COLUMNS,
    "official": "",  # column of "train", "validation", "test", for every image
}
_READING = {
    "grids": "refuse",  # sequences on different grids; or "align": register all
    "missing": "refuse",  # a missing sequence; or "fill" with zeros
    # What isn't background: the "head"; the "body", all large parts, such as two legs;
    # "nonzero", all but the constant around it; or "none" is.
    "foreground": "body",
    "margin": 5.0,  # mm kept around the foreground
    # Of intensities: "z_scores" of each scan's foreground; "hounsfield", clipped and scaled
    # by the regions' voxels of the training patients; or "suv", also of DICOM in Bq/ml.
    # One for all sequences, or one each; (): hounsfield of modality ct, suv of nuclear,
    # else z_scores.
    "units": (),
    "clip": (0.1, 99.9),  # z_scores: percentiles within the foreground
    # hounsfield: ((centre, width), ...), a channel each, instead; to classify, always
    "windows": (),
}
_REGIONS = {
    "regions": ("lesion",),
    "values": {"lesion": (1,)},  # of the mask, in each region
    "background": (0,),  # other values of the mask
}
_SCANS = {
    "folder": "my_scans",  # It holds a folder for each patient.
    "sequences": ("FLAIR", "T1", "T1POST", "T2"),  # order of the channels
    # Pattern whose group is the patient in a scan's name: "(.*?)/" for folders of visits;
    # "": the subject of BIDS or BraTS, else each scan is of another patient. Or a table,
    # "people.csv", of the columns scan and patient, below the folder or anywhere.
    "patient": "",
    **_REGIONS,
    # Whether regions exclude each other: one softmax with the background, and a voxel gets
    # the likeliest. Else each has a sigmoid, and they may overlap.
    "exclusive": False,
    "spacing": (),  # mm along D, H, W; (): as in the files
    **_READING,
    "split": "patients",  # or "leave_one_out", "halves" of the brain, "all"
}
_DATA = {
    "phantom": {  # synthetic chest films
        "side": 64,
        "patients": 4000,
        "films": 2,  # of each patient
        "seed": 0,
        "first_patient": 0,  # Other numbers are other people.
        "contrast": 1.0,  # visibility of the findings
        # Share of the films: of six findings, or of 14 (see `chest_phantom`).
        "prevalence": (0.06, 0.12, 0.20, 0.01, 0.08, 0.05),
    },
    "nih": {"folder": "nih", "side": 224, "bits": 8},
    "chexpert": {
        "folder": "CheXpert",
        "side": 224,
        "bits": 8,
        "uncertain": "ignore",  # labels of -1; or "zeros", "ones", "soft" (0.7)
        "blank": "zeros",  # findings that aren't mentioned; or "ignore"
        "views": ("PA", "AP"),  # films to keep; also "LATERAL", ""
    },
    "mimic_cxr": {
        "folder": "mimic-cxr-jpg",
        "side": 224,
        "bits": 8,
        "labels": "chexpert",  # whose labels; or "negbio"
        "uncertain": "ignore",  # as in chexpert, from here on
        "blank": "zeros",
        "views": ("PA", "AP"),
    },
    "vindr_cxr": {
        "folder": "vindr-cxr",
        "side": 224,
        "bits": 8,
        "readers": "majority",  # that see a finding; or "any" of them
    },
    "table": {
        **_TABLE,
        "side": 128,
        "bits": 8,  # of a pixel; 16 keep the levels of 12-bit DICOM and 16-bit PNG
        "channels": 1,  # 3 keeps colour
    },
    "volumes": {  # a table of NIfTI files or DICOM series
        **_TABLE,
        "sequences": ("MRI",),  # order of the channels
        # Pattern of each sequence below the folder that a row names; {}: a row names a
        # file, whose volumes are the sequences, or the folder of a DICOM series.
        "files": {},
        # Column of each row's mask, blank where there is none: the network draws masks
        # beside its answer (unet_encoder; loss.masks). "": none is drawn.
        "mask": "",
        **_REGIONS,
        "shape": (64, 64, 64),  # voxels along D, H, W; the rest is cropped or padded
        "spacing": (2.0, 2.0, 2.0),  # mm along D, H, W
        **_READING,
    },
    "liver_phantom": {  # synthetic liver MRI
        "patients": 800,
        "first_patient": 0,  # Other numbers are other people.
        "seed": 0,
        "shape": (24, 24, 24),  # voxels along D, H, W
        "spacing": (2.5, 2.5, 2.5),
        "masks": False,  # whether the network draws the lesions, too
    },
    "medmnist": {
        "file": "dermamnist.npz",
        "side": 28,
        "names": (),  # of the classes; (): "0", "1", ...
    },
    "tfds": {
        "name": "colorectal_histology",
        "data_dir": "~/tensorflow_datasets",
        "side": 64,
        "bits": 8,
        "image": "image",  # names of features, from here on
        "label": "label",
        "labels": (),  # several features of 0 and 1, instead of `label`
        "names": (),  # of the findings in a vector
        "patient": "",
        **_COLUMNS,
        "channels": 3,
    },
    "brain_phantom": {  # synthetic brain MRI
        "patients": 60,
        "first_patient": 0,  # Other numbers are other people.
        "seed": 0,
        "shape": (64, 80, 64),  # voxels along D, H, W
        "spacing": (2.5, 2.5, 2.5),
        "without_tumour": 0.0,  # share of the patients
        "without_enhancing": 0.15,
        "split": "patients",  # see _SCANS
    },
    "folders": {  # NIfTI files or DICOM series
        **_SCANS,
        "files": {  # pattern of a file, or of a folder of DICOM slices
            "FLAIR": "FLAIR.nii.gz",
            "T1": "T1.nii.gz",
            "T1POST": "T1POST.nii.gz",
            "T2": "T2.nii.gz",
        },
        "mask": "lesion.nii.gz",
    },
    "decathlon": {**_SCANS, "part": "training"},  # or "test"
    "brats": {  # since 2023
        **_SCANS,
        "sequences": ("t2f", "t1n", "t1c", "t2w"),
        "regions": ("whole", "core", "enhancing"),
        "values": {"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)},
    },
    "bids": {
        **_SCANS,
        "sequences": ("FLAIR", "T1w"),  # ends of files' names
        "mask": "dseg",  # the same, in the session's folder or in derivatives/
    },
}


def check(config: ConfigDict) -> None:
    """Raises ValueError for a field that is missing, or of another type, as in JSON."""
    values = config.to_dict()
    data = values.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    if source not in _DATA:
        raise ValueError(f"data.source={source!r} is unknown: use {', '.join(_DATA)}")
    make = segmentation if values.get("task") == "segmentation" else classification
    _compare(make(source).to_dict(), values)


def _compare(expected: dict, given: dict, above: str = "") -> None:
    for name, default in expected.items():
        # Of these sections only the name is ours, and the other fields are the user's.
        if above + name in (*OPEN, "data.files", "data.values"):
            default = {key: default[key] for key in default if key == "name"}
        if name not in given:
            raise ValueError(f"has no field {above}{name}: add it, see configs/base.py")
        value = given[name]
        if isinstance(default, float) and type(value) is int:
            continue
        if type(value) is not type(default):
            kind = type(default).__name__
            raise ValueError(f"{above}{name}={value!r}: give a value of type {kind}")
        if isinstance(default, dict):
            _compare(default, value, f"{above}{name}.")


def _shared(source: str) -> ConfigDict:
    """What both kinds of task have."""
    c = ConfigDict()
    c.seed = 0
    # Networks that begin with other weights, and whose probabilities are averaged. They
    # train side by side, in as many times the time.
    c.ensemble = 1
    c.modality = ""  # Refuse what isn't safe for it: "chest_xray", ...; "": no check.
    c.data = data(source)
    c.split = {
        "by": "patient",  # "image" leaks: only to show by how much
        "test": 0.2,  # share of the patients
        "validation": 0.1,
        "folds": 0,  # k: k-fold cross-validation, which tests fold number `fold`; 0: off
        "fold": 0,
        "patients": 0,  # train on this many patients; 0: on all
        "seed": -1,  # of the split alone; -1: the run's seed
        "duplicates": "refuse",  # one image in two splits; or "warn"
    }
    c.augment = {
        "ops": (),  # in their order; each has its numbers below
        "sided": False,  # whether a label depends on left and right: no mirror images
        "allow_unsafe": False,
        "random_affine": {
            "flip": 0.0,  # probability of a left-right mirror image
            "rotation": 5.0,  # degrees, to either side
            "zoom": 0.05,  # share
            "translation": 0.05,  # share of the image's sides
            "in_plane": False,  # Keep every slice of a volume in its place.
        },
        "flip": {"probability": 0.5, "axis": -1},
        # Largest move of a control point in mm (pixels, if there is no spacing), and the
        # distance between control points in pixels.
        "elastic": {"strength": 4.0, "distance": 32.0, "in_plane": False},
        # Largest offset, of intensities in [0, 1]. With `by_channel`, here and below, each
        # channel changes alone, as the sequences of MRI do between scanners.
        "brightness": {"strength": 0.1, "by_channel": False},
        # Largest change of scale, about the mean.
        "contrast": {"strength": 0.1, "by_channel": False},
        "gamma": {"max_log_gamma": 0.2, "by_channel": False},
        "noise": {"std": 0.02},
        "rician_noise": {"std": 0.02},
        "speckle": {"std": 0.1},
        "poisson_noise": {"std": 0.1},  # deviation at intensity 1
        "blur": {"max_sigma": 0.6},  # pixels
        "low_resolution": {"strength": 0.5},  # pixels become up to 1.5 times as large
        "bias_field": {"strength": 0.2},  # largest change of gain
        "colour_jitter": {"hue": 0.01, "saturation": 0.1, "brightness": 0.1},
        "equalise": {"strength": 0.5},  # largest share of the equalised image
        "clahe": {"strength": 0.5, "clip": 2.0, "tiles": 8},
        "crop_pad": {"shift": 0.05},  # share of each side
        "cut_out": {"size": 0.2, "fill": 0.0},  # side of the box, as a share
    }
    c.transfer = {
        # First weights: the workdir of a run, a file of torchvision, timm or Keras,
        # "imagenet" (of efficientnet_lite0 those of a pip package, the extra [imagenet];
        # of the others torchvision's, downloaded), or "": random ones.
        "init": "",
        # Test images that the run of these weights has trained or validated on: "refuse";
        # "other_hospital": equal patient ids are other people's, equal pictures are still
        # refused; or "allow" them, under a warning on the page.
        "overlap": "refuse",
        # What trains: "all" layers; the "head", or it alone on "features" computed once;
        # "layerwise": learning rates that fall by `decay` for each stage down; "gradual":
        # a further stage `every` so many steps; or the last frozen stage: "stem",
        # "stage1", ...
        "mode": "all",
        "decay": 0.75,
        "every": 100,  # steps
        # What a classifier that is fitted to embeddings (features, or after training by
        # `imbalance`) pays for the sum of its squared weights. Many embeddings of few
        # images need 0.1 to 10.
        "penalty": 1e-3,
    }
    # Unsupervised domain adaptation to the unlabelled images of adapt.data, which has the
    # fields of data: "adabn", "coral", "dann" or "none".
    c.adapt = {
        "name": "none",
        "weight": 1.0,  # coral: of the distance; dann: of the reversed gradient
        "data": {},
    }
    # What is done about rare findings. Class weights of the loss: "ratio", "balanced",
    # "effective". Resampling of the images: "over_sample", "under_sample", "both",
    # "repeat_factor". A classifier refitted after training: with synthetic embeddings,
    # "smote" or "adasyn"; with balanced classes, "decoupled". Or "none".
    c.imbalance = "none"
    c.resampling = {
        "target": 0.2,  # least share of a finding's rarer class; repeat_factor: its t
        "any_positive": False,  # Take "any finding" as the one task.
        "most": 10,  # copies of an image
        "neighbours": 5,  # of a synthetic embedding
        # decoupled, of classes: the classifier isn't refitted, but each class's weights
        # are divided by their norm to this power; 0: refit
        "tau": 0.0,
        "defer": 0,  # step from which class weights count: before it, all weigh 1
        "drop": False,  # Weight a finding of only one class by 0, instead of refusing it.
    }
    c.optim = {
        "name": "adamw",  # or sgd, lamb, pesg
        "learning_rate": 4e-3,  # peak, of a cosine schedule
        "weight_decay": 1e-2,
        "warmup": 50,  # steps
        "clip": 1.0,  # largest norm of the gradient
        "ema": 0.99,  # decay of the averaged weights, which are the ones evaluated
    }
    c.train = {
        "steps": 1000,
        "batch": 64,  # images or patches of a step, on all devices together
        # Parts of a batch that a device computes one after the other, where the whole
        # doesn't fit its memory. Batch normalisation sees each part alone.
        "accumulate": 1,
        "dtype": "float32",  # of the computation; or "bfloat16"
        "threads": 0,  # that read; 0: one a core
        "log_every": 10,  # steps
        "evaluate_every": 250,  # steps
        "save_minutes": 30.0,  # A checkpoint also after so many; 0: never.
        "keep": 1,  # how many of the best checkpoints; the latest stays too
    }
    c.evaluation = {
        "checkpoint": "best",  # on validation; or "last"
        "replicates": 1000,  # of the bootstrap over patients
    }
    return c


def _locked(c: ConfigDict) -> ConfigDict:
    """Refuses new fields but in OPEN sections."""
    c.lock()
    for name in OPEN:
        if name in c:
            c[name].unlock()
    return c

"""Which augmentation ops keep the label of which modality's images, and why not.

A table for a radiologist to read and to object to. In each modality every op is one of:
  default: on, with these ranges;
  caution: off; may be used, with this sentence in mind;
  unsafe: refused for this reason, unless `augment.allow_unsafe` is set.
A left-right mirror image is off wherever it puts an organ on the other side. It is a
caution, not unsafe, because most findings are the same on either side and it doubles
the patients; where the label names a side (`sided`) it is refused. Other mirror images
are refused everywhere: no patient is imaged upside down.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.augment import pixel_ops
from medjax.errors import InputError, check_choice
from medjax.geometry import warp

Options = Mapping[str, Any]


class Policy(NamedTuple):
    """What may be done to one modality's images."""

    default: dict[str, dict[str, Any]]  # Op -> its options, in order.
    # Op -> one sentence. 'flip' is in none: see mirror, upright.
    caution: dict[str, str]
    unsafe: dict[str, str]
    mirror: str  # What a left-right mirror image does; '' if both sides are alike.
    upright: str  # What a mirror image of another axis does.
    limits: dict[str, tuple[float, str]]  # 'op.option' -> highest safe value, and why.
    frames: str = ""  # Why ops must treat all slices or frames alike, if they must.


def _affine(flip=0.0, rotation=5.0, zoom=0.1, translation=0.05, **more) -> dict:
    options = {"flip": flip, "rotation": rotation, "zoom": zoom}
    return options | {"translation": translation} | more


UNSAFE = {  # In every modality that doesn't say otherwise.
    "cut_out": "it can hide the only lesion while the label still says it is there",
    "rician_noise": "Rician noise occurs in MRI's magnitude images alone",
    "speckle": "speckle is the interference of echoes; here there are none",
    "colour_jitter": "its images are grey, and a colour would mean nothing",
}
CROPPED = "what leaves the frame can be the finding, and a mask does not move with it"
LOCAL = "the same tissue becomes lighter or darker with its surroundings"
ROUNDED = "noise of few counts; stored values don't follow the counts exactly"

POLICIES = {
    "chest_xray": Policy(
        default={
            "random_affine": _affine(rotation=7.0),
            "brightness": {"strength": 0.1},
            "contrast": {"strength": 0.2},
            "gamma": {"max_log_gamma": 0.2},
            "noise": {"std": 0.01},
        },
        caution={
            "poisson_noise": ROUNDED,
            "blur": "a pleural line or a reticular pattern is a pixel or two wide",
            "low_resolution": "a pleural line is a pixel or two wide",
            "equalise": "it evens out the exposure and raises the noise behind the heart",
            "clahe": LOCAL,
            "crop_pad": "a costophrenic angle or an apex may leave the frame",
        },
        unsafe={
            "elastic": "it bends the ribs and the heart's border, which are judged",
            "bias_field": "a shading over one lung reads as an effusion",
        },
        mirror="the heart moves to the other side: dextrocardia without its label",
        upright="no patient is imaged upside down; fluid settles at the bottom",
        limits={"random_affine.rotation": (15.0, "a film so tilted is repeated")},
    ),
    "mammography": Policy(
        default={  # The breast is pressed and positioned anew for each film.
            "random_affine": _affine(flip=0.5),
            "elastic": {"strength": 4.0, "distance": 48.0},
            "brightness": {"strength": 0.1},
            "contrast": {"strength": 0.1},
            "gamma": {"max_log_gamma": 0.1},
        },
        caution={
            "noise": "strong grain reads as microcalcifications; keep std under 0.01",
            "poisson_noise": "strong grain reads as microcalcifications",
            "crop_pad": "the axillary tail or the nipple may leave the frame",
        },
        unsafe={
            "blur": "it wipes out microcalcifications, a fraction of a mm wide",
            "low_resolution": "it wipes out microcalcifications",
            "equalise": "it changes the breast's density, which is a risk and is reported",
            "clahe": "it changes the breast's density and creates asymmetries",
            "bias_field": "a shaded side reads as an asymmetric density",
        },
        mirror="",  # A left breast becomes a right one.
        upright="in an oblique view the pectoral muscle is at the top",
        limits={
            "random_affine.rotation": (15.0, "the pectoral muscle's angle is judged")
        },
    ),
    "ct": Policy(
        default={
            "random_affine": _affine(rotation=10.0),
            "noise": {"std": 0.01},
            "blur": {"max_sigma": 0.6},  # Soft and sharp reconstruction kernels.
        },
        caution={
            "elastic": "organs deform with breath, bones and measured sizes do not",
            "low_resolution": "a small nodule fades into its slice",
            "crop_pad": CROPPED,
        },
        unsafe={
            "brightness": "a Hounsfield value is the tissue: 40 is blood, 0 is water",
            "contrast": "a Hounsfield value is the tissue: fat at -100 must stay there",
            "gamma": "Hounsfield values are a linear scale of attenuation",
            "equalise": "Hounsfield values, by which tissues are told apart, are lost",
            "clahe": "Hounsfield values, by which tissues are told apart, are lost",
            "bias_field": "one organ would have two attenuations, as with an infarct",
            "poisson_noise": "counts are of the projections, not of the slices",
        },
        mirror="the liver and the heart change sides: situs inversus unlabelled",
        upright="fluid and air would layer against gravity",
        limits={
            "random_affine.rotation": (20.0, "patients lie straighter than that"),
            "random_affine.zoom": (0.2, "a nodule of 5 mm is not one of 8"),
        },
    ),
    "brain_mri": Policy(
        default={
            "random_affine": _affine(zoom=0.05, translation=0.03),
            "bias_field": {"strength": 0.3},
            "contrast": {"strength": 0.1},
            "gamma": {"max_log_gamma": 0.2},
            "rician_noise": {"std": 0.02},
        },
        caution={
            "brightness": "an offset lifts the air too, which a gain would leave at 0",
            "noise": "a magnitude image's noise is Rician: air has a floor",
            "blur": "small lesions at the ventricles and in the cortex fade",
            "low_resolution": "small lesions fade into thick slices",
            "equalise": "the order of the tissues stays, their contrast does not",
            "crop_pad": CROPPED,
        },
        unsafe={
            "elastic": "landmarks move apart: a bent midline reads as mass effect",
            "clahe": "white matter beside a lesion changes, and reads as its edge",
            "cut_out": "a dark box reads as a cavity, and it can hide the lesion",
            "poisson_noise": "MRI measures a voltage and counts nothing",
        },
        mirror="the dominant hemisphere changes sides",
        upright="front and back, or crown and base, of the head are exchanged",
        limits={
            "random_affine.rotation": (15.0, "a head coil holds it straighter"),
            "random_affine.zoom": (0.15, "the size of the ventricles is a finding"),
        },
    ),
    "ultrasound": Policy(
        default={
            "random_affine": _affine(),
            "brightness": {"strength": 0.1},  # Gain,
            "contrast": {"strength": 0.15},  # and dynamic range.
            "gamma": {"max_log_gamma": 0.2},
            "speckle": {"std": 0.1},
        },
        caution={
            "noise": "grain shows outside the sector too, and in anechoic cysts",
            "blur": "margins of a lesion are read as sharp or not",
            "low_resolution": "margins of a lesion are read as sharp or not",
            "equalise": "cysts are told by being darker than all else",
            "clahe": "cysts are told by being darker than all else",
            "bias_field": "shadow and enhancement behind a lesion are shadings too",
            "crop_pad": CROPPED,
        },
        unsafe={
            "elastic": "shadows would leave the beams that cast them",
            "cut_out": "a dark box reads as a cyst or as a shadow",
            "poisson_noise": "an echo is a pressure and counts nothing",
            "colour_jitter": "where there is colour, it is the velocity of blood",
        },
        mirror="the mark of the probe, and with it the organ's sides, change",
        upright="the probe is at the top: depth and shadows run down from it",
        limits={"random_affine.rotation": (10.0, "the sector opens downwards")},
    ),
    "nuclear": Policy(  # PET and SPECT.
        default={
            "random_affine": _affine(zoom=0.05),
            "blur": {"max_sigma": 0.8},  # Cameras and reconstructions differ.
            "poisson_noise": {"std": 0.1},
        },
        caution={
            "noise": "cold regions have few counts, and so little noise",
            "low_resolution": "a small focus loses its peak uptake",
            "crop_pad": CROPPED,
        },
        unsafe={
            "brightness": "uptake is the measurement (SUV), and 0 is no activity",
            "contrast": "uptake relative to the background is the measurement",
            "gamma": "uptake is linear in activity: a response is read from its ratio",
            "equalise": "uptake, the measurement, is lost",
            "clahe": "uptake, the measurement, is lost",
            "bias_field": "a smooth loss reads as a defect of perfusion",
            "elastic": "a stretched focus has more total uptake, a thin wall less",
            "cut_out": "a cold box reads as a defect of perfusion",
            "colour_jitter": "colour is the display's, not the patient's",
        },
        mirror="the heart, the liver and the dominant hemisphere change sides",
        upright="the bladder and the brain, hot as a rule, exchange places",
        limits={"random_affine.rotation": (15.0, "patients lie straighter than that")},
    ),
    "fluoroscopy": Policy(  # [T, H, W, C]: one draw for all frames of a run.
        default={
            "random_affine": _affine(in_plane=True),
            "brightness": {"strength": 0.1},
            "contrast": {"strength": 0.15},
            "gamma": {"max_log_gamma": 0.15},
            "noise": {"std": 0.02},  # A new one in each frame, as quanta are.
        },
        caution={
            "poisson_noise": ROUNDED,
            "blur": "a guide wire is a pixel or two wide",
            "low_resolution": "a guide wire is a pixel or two wide",
            "equalise": "contrast medium is told by being darker than all else",
            "crop_pad": CROPPED,
        },
        unsafe={
            "elastic": "it bends vessels and wires, whose course is read",
            "bias_field": "a shading reads as a blush of contrast medium",
            "cut_out": "a vessel that stops at a box reads as occluded",
            "clahe": "frames would change by what moves in them: flow is read so",
        },
        mirror="left and right vessels are exchanged, and so is the view's angle",
        upright="contrast medium would settle upwards",
        limits={"random_affine.rotation": (15.0, "patients lie straighter than that")},
        frames="the anatomy would jump from one frame to the next; give True",
    ),
    "retina": Policy(
        default={
            "random_affine": _affine(flip=0.5, rotation=15.0, translation=0.03),
            "colour_jitter": {"hue": 0.01, "saturation": 0.1, "brightness": 0.1},
            "gamma": {"max_log_gamma": 0.1},
        },
        caution={
            "brightness": "colour_jitter has it too; an offset washes the colours out",
            "contrast": "the colours leave the retina's range; keep under 0.1",
            "clahe": "drusen and exudates are told by how bright they are",
            "crop_pad": "the disc or the macula may leave the frame",
        },
        unsafe={
            "noise": "grain at the optic disc blurs the cup, and reads as bleeds",
            "poisson_noise": "grain reads as microaneurysms and blurs the cup",
            "blur": "it wipes out microaneurysms, which are the first sign",
            "low_resolution": "it wipes out microaneurysms, which are the first sign",
            "equalise": "each colour on its own: pallor of the disc is lost",
            "bias_field": "each colour on its own: a stain, read as exudate or bleed",
            "elastic": "it bends vessels and changes the ratio of cup to disc",
            "cut_out": "a dark box reads as a bleed, and it can hide the lesion",
        },
        mirror="",  # A right eye becomes a left one.
        upright="the upper rim of the disc becomes the lower: glaucoma tells them",
        limits={
            "colour_jitter.hue": (0.03, "red is blood, yellow is exudate"),
            "random_affine.rotation": (30.0, "disc and macula leave their level"),
        },
    ),
}


for policy in POLICIES.values():
    for op, reason in UNSAFE.items():
        if op not in policy.default and op not in policy.caution:
            policy.unsafe.setdefault(op, reason)


def default(modality: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """(op, its options) of the modality's defaults, in order, as a copy."""
    return tuple((op, dict(o)) for op, o in _policy(modality).default.items())


def check_ops(
    ops: Sequence[tuple[str, Options]],
    *,
    modality: str,
    sided: bool = False,
    allow_unsafe: bool = False,
) -> tuple[str, ...]:
    """Refuses ops that can change the label; returns caveats for the report.

    Args:
      ops: (name, options) in order; an option that is left out has its default.
      sided: the label depends on left and right.
      allow_unsafe: turns the refusals into caveats.

    Raises:
      InputError: an op that is unsafe or unknown, or an unknown modality.
    """
    policy, caveats = _policy(modality), []
    for name, options in ops:
        options = _defaults(name) | dict(options)
        for where, reason in _reasons(name, options, policy, sided):
            what = f"augment.{where} is unsafe for {modality}: {reason}"
            if not allow_unsafe:
                raise InputError(
                    f"{what}; leave it out or set augment.allow_unsafe=True"
                )
            caveats.append(what)
        if name in policy.caution:
            caveats.append(f"augment.ops: {name!r}: {policy.caution[name]}")
        if policy.mirror and not sided and _mirrored(name, options) == "sides":
            caveats.append(f"augment.{name}, left-right mirror: {policy.mirror}")
    return tuple(caveats)


def _reasons(
    name: str, options: Options, policy: Policy, sided: bool
) -> Iterator[tuple[str, str]]:
    """(field, reason) of everything that makes an op unsafe with these options."""
    if name in policy.unsafe:
        yield f"ops: {name!r}", policy.unsafe[name]
    mirrored = _mirrored(name, options)
    if mirrored == "upright":
        yield f"{name}.axis={options['axis']}", f"{policy.upright} (left-right is -1)"
    if mirrored == "sides" and sided:
        yield f"{name}, left-right mirror", "the label depends on the side"
    for field, (most, reason) in policy.limits.items():
        op, _, option = field.partition(".")
        value = options.get(option, 0)  # The op reports a missing option.
        if op == name and np.max(np.abs(value)) > most:
            yield f"{field}={value}", f"{reason} (at most {most:g})"
    if policy.frames and options.get("in_plane") is False:
        yield f"{name}.in_plane=False", policy.frames


def mirrors(name: str, options: Options) -> bool:
    """Whether an op mirrors left and right; other options have their defaults."""
    return _mirrored(name, _defaults(name) | dict(options)) == "sides"


def _mirrored(name: str, options: Options) -> str:
    """'sides' for left and right, 'upright' for another axis, '' for none."""
    if name == "random_affine" and options["flip"] > 0:
        return "sides"
    if name == "flip" and options["probability"] > 0:
        return "sides" if options["axis"] == -1 else "upright"
    return ""


def _defaults(name: str) -> dict[str, Any]:
    """An op's default options."""
    ops = warp.MOVES | pixel_ops.OPS
    check_choice("augment.ops", name, sorted(ops))
    parameters = inspect.signature(ops[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _policy(modality: str) -> Policy:
    check_choice("modality", modality, POLICIES)
    return POLICIES[modality]

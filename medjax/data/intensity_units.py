"""Units of scans' intensities: how stored ones become the channels of a network.

`data.units` names one of UNITS for all sequences, or one for each:

  z_scores    MRI, whose intensities have no unit: of each scan's own foreground
  hounsfield  CT: clipped and scaled alike for all, by numbers of the training patients
              or by the windows that a reader would choose
  suv         PET, of DICOM in Bq/ml by `suv_factor`: as it is, up to HOTTEST, in steps of
              STEP; no scan's own scale hides it

Prepared z-scores are ready; Hounsfield units and SUV are prepared as they are, so that
the numbers can be those of a run's training patients, and are fixed with it. SUV is a
concentration over dose per weight: a voxel of a coarser grid holds the mean of what it
covers, as in every scan that is resampled, and never a sum.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.valuerep import DA, DT, TM

from medjax.data import series
from medjax.errors import InputError, reading

UNITS = ("z_scores", "hounsfield", "suv")
OF_MODALITY = {"ct": "hounsfield", "nuclear": "suv"}  # Others: z-scores.
CLIP = (0.1, 99.9)  # Percentiles of z-scores, where nothing else is said.
AIR = -1024.0  # HU; what is below pads a scanner's field of view.
MIN_HU_RANGE = 10.0  # HU between the darkest and the brightest voxel.
OFFSET = 300.0  # If no value is negative, percentile 95 above which it isn't HU.
HOTTEST, STEP = 40.0, 5.0  # SUV.
STRANGE = 50.0  # Mean above which an image isn't SUV, whose mean in a body is about 1.
MAX_STORED = 65504.0  # Of float16, in which scans are prepared: clips nothing.
NOT_0 = 1e-4  # Instead of 0, which is background, in HU, SUV or deviations.


class Channel(NamedTuple):
    """What a network sees of a sequence: (clip(x, low, high) - centre) / scale."""

    sequence: int  # Its number in the prepared image.
    low: float
    high: float
    centre: float
    scale: float


def channels(
    units: Sequence[str], windows: Sequence[tuple[float, float]]
) -> tuple[Channel, ...]:
    """The channels of sequences in these units, one each; () if all are z-scores.

    windows: (centre, width) in HU; each makes a channel of each CT, from -1 to 1.
      Without any, CT waits for `scaled`.
    """
    made = []
    for n, unit in enumerate(units):
        if unit == "hounsfield" and windows:
            made += [
                Channel(n, centre - width / 2, centre + width / 2, centre, width / 2)
                for centre, width in windows
            ]
        elif unit == "suv":
            made.append(Channel(n, 0.0, HOTTEST, 0.0, STEP))
        else:
            made.append(Channel(n, -MAX_STORED, MAX_STORED, 0.0, 1.0))
    return tuple(made) if {*units} - {"z_scores"} else ()


def scaled(channel: Channel, values: Sequence[float]) -> Channel:
    """A CT's channel, by the mean, deviation and percentiles of fingerprint.Fingerprint.

    Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, methods: clipped to
    the percentiles 0.5 and 99.5 of the training foreground, then its mean and deviation.
    """
    mean, deviation, low, _, high = map(float, values)
    return channel._replace(low=low, high=high, centre=mean, scale=deviation)


def normalise(
    image: np.ndarray, channels: Sequence[Channel], xp: Any = np
) -> np.ndarray:
    """Prepared [..., sequences] -> [..., channels]; background, 0, stays 0.

    xp: NumPy, or jax.numpy.
    """
    if not channels:
        return image
    seen = []
    for n, low, high, centre, scale in channels:
        stored = image[..., n].astype(np.float32)
        values = (xp.clip(stored, low, high) - centre) / np.float32(scale)
        seen.append(xp.where(stored == 0, 0, xp.where(values == 0, NOT_0, values)))
    return xp.stack(seen, axis=-1).astype(image.dtype)


def checked(voxels: np.ndarray, unit: str) -> np.ndarray:
    """[D, H, W] of a file in this unit, padding of CT as air.

    Raises:
      InputError: the values can't have the unit.
    """
    if unit == "hounsfield":
        shown = voxels[voxels >= AIR]  # Padding may be negative where nothing else is.
        if shown.size and shown.min() >= 0 and np.percentile(shown, 95) > OFFSET:
            raise InputError(
                "has no value from -1024 to 0, so it isn't in Hounsfield units, where air "
                "is -1000; export it with its rescale intercept, or set data.units"
            )
        ends = float(voxels.min()), float(voxels.max())
        if ends == (0, 255) or ends[1] - ends[0] <= MIN_HU_RANGE:
            raise InputError(
                "has values from {:.4g} to {:.4g}, so it isn't in Hounsfield units, but "
                "windowed or scaled; export it again, or set data.units".format(*ends)
            )
        return np.maximum(voxels, np.float32(AIR))
    if unit == "suv" and not 0 < (mean := voxels.mean()) <= STRANGE:
        raise InputError(
            f"has a mean of {mean:.4g}, so it isn't SUV, whose mean in a body is 1; give "
            "its DICOM series, whose header has dose and weight, or set "
            "data.units='z_scores'"
        )
    return voxels


INSTEAD = "give a series in SUV, or set data.units='z_scores'"
TRACER = "RadiopharmaceuticalInformationSequence"
SAME_TAGS = ("Units", "CorrectedImage", "DecayCorrection", "PatientWeight", TRACER)
TIMES = ("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime")
WHEN, TIME = "RadiopharmaceuticalStartDateTime", "RadiopharmaceuticalStartTime"
DAY = timedelta(days=1)
# Seconds; after longer half-lives a scan may be days later: zirconium's is 78 h.
BRIEF = 12 * 3600.0


def suv_factor(folder: Path) -> float:
    """Returns the factor that turns a PET series' values into SUV by body weight, g/ml.

    Of Bq/ml it is the weight in g over the dose. Values that are corrected for the decay
    since the scan's begin have the dose that is left then, dose 2^(-t / half-life). The
    scan begins at the series' time, or at its first acquisition if that is earlier.

    Raises:
      InputError: an element is missing or isn't as the formula needs it.

    Source: RSNA QIBA, Profile FDG-PET/CT (2016), appendix G, vendor-neutral
    pseudo-codes for SUV calculation; the makers' private elements aren't read.
    """
    with reading(folder, INSTEAD):
        headers = [*series.headers(folder, *SAME_TAGS, *TIMES, "SUVType")]
        first = headers[0]
        unit, kind = _element(first, "Units"), first.get("SUVType") or "BW"
        if (unit, kind) == ("GML", "BW"):
            return 1.0
        if unit != "BQML":
            text = f"are {unit}" + f" of the SUVType {kind}" * (unit == "GML")
            raise InputError(f"its Units {text}, not BQML: {INSTEAD}")
        for name in SAME_TAGS:
            if any(header.get(name) != first.get(name) for header in headers):
                raise InputError(f"its slices differ in their {name}: {INSTEAD}")
        corrections = _element(first, "CorrectedImage")
        for name in ("ATTN", "DECAY"):
            if name not in corrections:
                raise InputError(f"its CorrectedImage has no {name}: {INSTEAD}")
        tracer, weight = _element(first, TRACER)[0], _positive(first, "PatientWeight")
        dose = _positive(tracer, "RadionuclideTotalDose")
        since = _element(first, "DecayCorrection")
        if since == "START":
            half_life = _positive(tracer, "RadionuclideHalfLife")
            dose *= 2 ** (-_elapsed(headers, tracer, half_life) / half_life)
        elif since != "ADMIN":
            raise InputError(f"its DecayCorrection is {since}, not START: {INSTEAD}")
        return 1000 * weight / dose


def _elapsed(headers: list[Dataset], tracer: Dataset, half_life: float) -> float:
    """Seconds from the injection to the scan's begin.

    An injection whose date isn't given was within the day before.
    """
    acquired = min(_moment(header, "Acquisition") for header in headers)
    began = min(acquired, _moment(headers[0], "Series"))
    if tracer.get(WHEN) or half_life > BRIEF:
        injected = DT(_element(tracer, WHEN)).replace(tzinfo=None)
    else:
        injected = datetime.combine(began.date(), TM(_element(tracer, TIME)))
        injected -= DAY * (injected > began)
    elapsed = (began - injected).total_seconds()
    if not 0 <= elapsed <= 10 * half_life:
        raise InputError(
            f"was injected at {injected}, and its scan began at {began}, {elapsed:g} s "
            f"later, with a half-life of {half_life:g} s: {INSTEAD}"
        )
    return elapsed


def _moment(header: Dataset, what: str) -> datetime:
    """When the series or an acquisition began."""
    date, time = (_element(header, what + end) for end in ("Date", "Time"))
    return datetime.combine(DA(date), TM(time))


def _positive(header: Dataset, name: str) -> float:
    value = float(_element(header, name))
    if not 0 < value < float("inf"):
        raise InputError(f"its {name} is {value:g}: {INSTEAD}")
    return value


def _element(header: Dataset, name: str) -> Any:
    if header.get(name) in (None, "", []):
        raise InputError(f"has no {name}, which SUV needs: {INSTEAD}")
    return header[name].value

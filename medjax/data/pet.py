"""PET: how a DICOM series' values become SUV, by its header alone.

SUV is a concentration over dose per weight. So a voxel of a coarser grid holds the mean
of what it covers, as in every scan that is resampled, and never a sum.
"""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.valuerep import DA, DT, TM

from medjax.data import series
from medjax.errors import InputError, reading

INSTEAD = "give a series in SUV, or set data.units='z_scores'"
TRACER = "RadiopharmaceuticalInformationSequence"
ALIKE = ("Units", "CorrectedImage", "DecayCorrection", "PatientWeight", TRACER)
TIMES = ("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime")
WHEN, TIME = "RadiopharmaceuticalStartDateTime", "RadiopharmaceuticalStartTime"
DAY = timedelta(days=1)
BRIEF = (
    12 * 3600.0
)  # s; half-lives above may be scanned days later: zirconium's is 78 h.


def factor(folder: Path) -> float:
    """By what a PET series' values are multiplied to be SUV of the body weight, g/ml.

    Of Bq/ml it is the weight in g over the dose. Values that are corrected for the decay
    since the scan's begin have the dose that is left then, dose 2^(-t / half-life). The
    scan begins at the series' time, or at its first acquisition if that is earlier.

    Raises:
      InputError: an element is missing or isn't as the formula needs it.

    Source: RSNA QIBA, Profile FDG-PET/CT (2016), appendix G, vendor-neutral
    pseudo-codes for SUV calculation; the makers' private elements aren't read.
    """
    with reading(folder, INSTEAD):
        headers = [*series.headers(folder, *ALIKE, *TIMES, "SUVType")]
        first = headers[0]
        unit, kind = _element(first, "Units"), first.get("SUVType") or "BW"
        if (unit, kind) == ("GML", "BW"):
            return 1.0
        if unit != "BQML":
            text = f"are {unit}" + f" of the SUVType {kind}" * (unit == "GML")
            raise InputError(f"its Units {text}, not BQML: {INSTEAD}")
        for name in ALIKE:
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

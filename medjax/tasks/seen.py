"""The leakage audit of a test: which images has a run, or that of its first weights, seen?"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medjax.cohort import manifest as manifests
from medjax.config import Config, read_config
from medjax.errors import InputError, check_choice
from medjax.files import write_table
from medjax.tasks import start
from medjax.training import folder as workdir


class Claim(NamedTuple):
    """What a user says of the images that a run is judged on, see manifests.overlap."""

    other_hospital: bool = False  # So equal patient ids are of other people.
    allow_overlap: bool = False  # Reported under a warning instead of refused.


CLAIMS = {  # Of transfer.overlap.
    "refuse": Claim(),
    "other_hospital": Claim(other_hospital=True),
    "allow": Claim(allow_overlap=True),
}


class Trained(NamedTuple):
    """A run, and the images that it has seen."""

    folder: Path
    data: Any  # films.Data or scans.Data; None: gone.
    manifest: pd.DataFrame


def claim_of(config: Config) -> Claim:
    """What `config.transfer.overlap` says."""
    check_choice("transfer.overlap", config.transfer.overlap, CLAIMS)
    return CLAIMS[config.transfer.overlap]


def ancestors(config: Config, read: Callable) -> Iterator[Trained]:
    """The run whose weights a run begins with, the run that this one began with, ...

    read: config -> the data. Where they are gone, only patient ids can be compared.
    """
    while init := config.transfer.init:
        folder = start.place(init)
        if not (folder / "config.json").exists():
            return
        config, manifest = read_config(folder), workdir.sides(folder)
        try:
            data = read(config)
        except InputError as error:
            print(f"note: only patient ids were compared with {folder}: {error}")
            data = None
        yield Trained(folder, data, manifest)


def audit_test(
    config: Config, read: Callable, data: Any, manifest: pd.DataFrame
) -> dict:
    """What the runs whose weights a run begins with have seen of its test: as `audit`."""
    tests = manifest[manifest["split"] == "test"]
    runs = [*ancestors(config, read)]
    if not runs or tests.empty:
        return {}
    remedy = (
        "give these patients to training, or set transfer.overlap='other_hospital' if "
        "equal ids are other people's, or 'allow' to report them under a warning"
    )
    return audit(runs, data, tests, claim_of(config), lambda _: remedy)


def audit_other(
    runs: Iterable[Trained], data: Any, judged: pd.DataFrame, claim: Claim, path: Path
) -> dict:
    """What runs have seen of other data: as `audit`; refused images are listed in `path`."""

    def remedy(overlap: dict) -> str:
        rows = judged[judged["id"].isin(overlap["ids"])]
        write_table(path, rows[["image", "patient"]])
        people = "equal ids are other people's (--other-hospital), or "
        return (
            f"leave out those in {path}, or say that "
            f"{people * bool(overlap['patients'])}they may be reported under a warning "
            "(--allow-overlap)"
        )

    return audit(runs, data, judged, claim, remedy)


def audit(
    runs: Iterable[Trained],
    data: Any,
    judged: pd.DataFrame,
    claim: Claim,
    remedy: Callable[[dict], str],
) -> dict:
    """The largest overlap of the judged images with what one of the runs has seen.

    Args:
      judged: rows of the manifest of the data.
      remedy: of manifests.overlap, what to do about a refused overlap.

    Returns manifests.overlap's numbers, with `images` and the run's folder as `run`.

    Raises:
      InputError: an overlap that isn't allowed.
    """
    overlaps = []
    for folder, theirs, manifest in runs:
        used = manifest[manifest["split"] != manifests.UNUSED]
        copies = pd.DataFrame({"id": [], "other": []}, dtype=np.int64)
        if theirs is not None:
            ids = used["id"].to_numpy(), judged["id"].to_numpy()
            copies = theirs.copies(ids[0], data, ids[1])
        overlap = manifests.overlap(
            judged, used, copies, other_hospital=claim.other_hospital
        )
        ids, people = overlap.pop("ids"), overlap["patients"]
        counts = {"images": len(ids), "patients": len(people), "run": str(folder)}
        overlaps.append(overlap | counts)
        if not ids:
            continue
        what = (
            f"{len(ids)} of {len(judged)} images were seen in training or validation "
            f"of {folder} ({len(people)} patient ids, {overlap['pictures']} pictures), "
            f"e.g. {', '.join(overlap['examples'])}"
        )
        if not claim.allow_overlap:
            way = remedy({"ids": ids, "patients": people})
            raise InputError(f"{what}: {way}")
        print(f"warning: {what}: the results are too good")
    return max(overlaps, key=lambda overlap: overlap["images"])

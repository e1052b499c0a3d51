"""Layouts of raw data: each file here reads some of them.

Image layouts return a `records.Source`; those of scans return `scan_files.ScanFiles`.
All raise an InputError for a setting or a file that does not fit the layout.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medjax.data import image_files
from medjax.data.sources import (
    chest_xray,
    medmnist,
    physionet,
    scan_files,
    scan_layouts,
    tables,
    tfds,
    volumes,
)
from medjax.errors import InputError

ENDS = ("", ".gz")

# What `data.source` may name where images are classified.
IMAGES = {
    "chexpert": chest_xray.chexpert,
    "liver_phantom": volumes.phantom,
    "medmnist": medmnist.medmnist,
    "mimic_cxr": physionet.mimic_cxr,
    "nih": chest_xray.nih,
    "phantom": chest_xray.phantom,
    "table": tables.table,
    "tfds": tfds.tfds,
    "vindr_cxr": physionet.vindr_cxr,
    "volumes": volumes.volumes,
}
# And where masks are drawn.
SCANS = {
    "bids": scan_layouts.in_bids,
    "brats": scan_layouts.in_brats,
    "decathlon": scan_layouts.in_decathlon,
    "folders": scan_files.in_folders,
}


def _matching(*patterns: str) -> Callable[..., dict[str, Path]]:
    """Lists the files of a data set that match, and the images of folders that do.

    A folder's pattern ends in /, and any may name an option in braces. Tables may be
    gzipped; a backup has another suffix. The names are paths below the data set's folder.
    """

    def files(*, folder: Path, **options: Any) -> dict[str, Path]:
        folder, listed = Path(folder).expanduser(), []
        for pattern in (p.format(**options) + end for p in patterns for end in ENDS):
            for path in folder.glob(pattern):
                with contextlib.suppress(InputError):  # A folder without images.
                    listed += image_files.image_paths(path)[0]
        return {str(path.relative_to(folder)): path for path in sorted(listed)}

    return files


# The files that each layout of images reads, by name, of the same options. Files that don't exist
# may be among them; there is none where the data aren't on this machine.
FILES_OF = {
    "chexpert": _matching("train.csv", "valid.csv", "train/", "valid/"),
    "liver_phantom": lambda **_: {},
    "medmnist": medmnist.files,
    "mimic_cxr": _matching(
        *("mimic-cxr-*-metadata.csv", "mimic-cxr-*-split.csv"),
        *("mimic-cxr-*-{labels}.csv", "files/"),
    ),
    "nih": _matching(
        *("Data_Entry_2017*.csv", "BBox_List_2017.csv", "*_list.txt", "images*/")
    ),
    "phantom": lambda **_: {},
    "table": tables.files,
    "tfds": tfds.files,
    "vindr_cxr": _matching("annotations/*.csv", "train/", "test/"),
    "volumes": tables.files,
}

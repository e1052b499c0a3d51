"""Layouts of raw data: each file here reads some of them.

Image layouts return a `records.Source`; those of scans return `scans.ScanFiles`. All raise
an InputError for a setting or a file that does not fit the layout.
"""

from medjax.data.sources import (
    chest_xray,
    medmnist,
    physionet,
    scan_layouts,
    scans,
    tables,
    tfds,
    volumes,
)

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
    "folders": scans.in_folders,
}
# The files that each layout of images reads, by name, of the same options. Files that don't exist
# may be among them; there is none where the data aren't on this machine.
FILES = {
    "chexpert": chest_xray.chexpert_files,
    "liver_phantom": lambda **_: {},
    "medmnist": medmnist.files,
    "mimic_cxr": physionet.mimic_files,
    "nih": chest_xray.nih_files,
    "phantom": lambda **_: {},
    "table": tables.files,
    "tfds": tfds.files,
    "vindr_cxr": physionet.vindr_files,
    "volumes": tables.files,
}

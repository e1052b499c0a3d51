"""Layouts of raw data: each file here reads some of them.

Image layouts return a `prepared.Source`; those of scans return `scans.ScanFiles`. All raise
an InputError for a setting or a file that does not fit the layout.
"""

from medjax.data.sources import chest_xray, medmnist, tables, tfds

# What `data.source` may name where images are classified.
IMAGES = {
    "chexpert": chest_xray.chexpert,
    "medmnist": medmnist.medmnist,
    "nih": chest_xray.nih,
    "phantom": chest_xray.phantom,
    "table": tables.table,
    "tfds": tfds.tfds,
}

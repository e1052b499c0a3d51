"""What `data.source` may name: each takes its settings and returns a Source."""

from medjax.data.chest import nih, phantom
from medjax.data.chexpert import chexpert
from medjax.data.medmnist import medmnist
from medjax.data.table import table
from medjax.data.tfds import tfds

__all__ = ["chexpert", "medmnist", "nih", "phantom", "table", "tfds"]

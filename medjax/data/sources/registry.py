"""What `data.source` may name: each takes its settings and returns a Source."""

from medjax.data.sources.chexpert import chexpert
from medjax.data.sources.medmnist import medmnist
from medjax.data.sources.nih import nih, phantom
from medjax.data.sources.table import table
from medjax.data.sources.tfds import tfds

__all__ = ["chexpert", "medmnist", "nih", "phantom", "table", "tfds"]

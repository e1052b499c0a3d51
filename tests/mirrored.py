"""Mirrors half of a Decathlon task's images, chosen at random, and lists which: a table
whose label, the side, no header tells.

    python tests/mirrored.py ../shared/data/hippocampus hippocampus_side
"""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd


def main(folder: Path, out: Path) -> None:
    listed = json.loads((folder / "dataset.json").read_text())["training"]
    images = sorted(folder / pair["image"] for pair in listed)
    mirrored = np.random.default_rng(0).permutation(len(images)) % 2 == 1
    out.mkdir()
    for path, mirror in zip(images, mirrored, strict=True):
        volume = nibabel.as_closest_canonical(nibabel.load(path))
        voxels = volume.get_fdata(dtype=np.float32)
        voxels = voxels[::-1] if mirror else voxels
        nibabel.save(nibabel.Nifti1Image(voxels, volume.affine), out / path.name)
    names = [path.name for path in images]
    side = np.where(mirrored, "mirrored", "original")
    # 2k - 1 and 2k are of one person: their images are far more alike than others.
    numbers = [int(name.removesuffix(".nii.gz").rpartition("_")[2]) for name in names]
    patients = [f"person{(number + 1) // 2}" for number in numbers]
    table = pd.DataFrame({"image": names, "patient": patients, "side": side})
    table.to_csv(out / "labels.csv", index=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

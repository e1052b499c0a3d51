"""Real sequences from spoilt headers, against SimpleITK's rigid Mattes registration.

    python tests/bench_registration.py FOLDER [--seeds=10]

FOLDER holds study1_{FLAIR,T1W,T2W}.nii.gz and study1_*_intrastudy_to_FLAIR.txt. The
error is the mean distance, over FLAIR's foreground (above a third of its bright tissue,
12 in-plane voxels inside the head), of where the found and the reference transform take
a voxel. Times are of the same minute: each seed runs one after the other.
"""

import argparse
import time
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from scans import itk_matrix
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medjax.geometry import grid, registration

LPS = grid.RAS_TO_LPS


def spoil(seed, about):
    """+-15 degrees about each axis and +-20 mm along it, [4, 4]."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    turn = Rotation.from_euler("xyz", rng.uniform(-15, 15, 3), degrees=True)
    matrix[:3, :3] = turn.as_matrix()
    matrix[:3, 3] = about + rng.uniform(-20, 20, 3) - matrix[:3, :3] @ about
    return matrix


def foreground(image, affine):
    tissue = image > 0.3 * np.quantile(image[image > 0], 0.9)
    tissue = ndimage.binary_fill_holes(ndimage.binary_opening(tissue, iterations=2))
    inner = ndimage.binary_erosion(tissue, np.ones((3, 3, 1)), iterations=12)
    return grid.apply(affine, np.argwhere(inner)[::97])


def as_sitk(image, affine):
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    u, _, v = np.linalg.svd(lps[:3, :3] / spacing)
    volume = sitk.GetImageFromArray(np.ascontiguousarray(image.T))
    volume.SetSpacing(spacing.tolist())
    volume.SetDirection((u @ v).ravel().tolist())
    volume.SetOrigin(lps[:3, 3].tolist())
    return volume


def oracle(fixed, moving):
    """SimpleITK's rigid Mattes registration, three levels, 2 % of the voxels."""
    start = sitk.Euler3DTransform()
    middle = [(n - 1) / 2 for n in fixed.GetSize()]
    start.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint(middle))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.02, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(start.GetMatrix(), (3, 3))
    matrix[:3, 3] = start.TransformPoint((0, 0, 0))
    return LPS @ matrix @ LPS


def main(folder, seeds):
    def load(sequence):
        image = nibabel.load(folder / f"study1_{sequence}.nii.gz")
        return np.asarray(image.dataobj, np.float32), image.affine

    fixed, fixed_affine = load("FLAIR")
    points = foreground(fixed, fixed_affine)

    def error(found, truth):
        apart = grid.apply(found, points) - grid.apply(truth, points)
        return np.linalg.norm(apart, axis=1).mean()

    for sequence in ("T1W", "T2W"):
        moving, affine = load(sequence)
        reference = itk_matrix(folder / f"study1_{sequence}_intrastudy_to_FLAIR.txt")
        middle = grid.apply(affine, (np.array(moving.shape) - 1) / 2)
        registration.register(fixed, fixed_affine, moving, affine)  # Compiles.
        for seed in range(seeds):
            motion = spoil(seed, middle)
            truth = motion @ reference
            line = f"{sequence} seed {seed}: before {error(np.eye(4), truth):.2f} mm"
            began = time.perf_counter()
            found = registration.register(fixed, fixed_affine, moving, motion @ affine)
            seconds = time.perf_counter() - began
            line += f", medjax {error(found.matrix, truth):.2f} in {seconds:.1f} s"
            pair = as_sitk(fixed, fixed_affine), as_sitk(moving, motion @ affine)
            began = time.perf_counter()
            matrix = oracle(*pair)
            seconds = time.perf_counter() - began
            print(f"{line}, SimpleITK {error(matrix, truth):.2f} in {seconds:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    main(args.folder, args.seeds)

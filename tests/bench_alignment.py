"""Whether an aligned sequence is the patient's own: the scores behind alignment.FLAT, OWN.

    python tests/bench_alignment.py ../shared/data [--thickness 3 5]
    python tests/bench_alignment.py ../shared/data --grid

Aligns the T2 and T1 of each person, thick slices after a known motion, with the FLAIR of
each, and prints what is left of the similarity beside the alignment, of the sequence and
of its mirror image, and how many times as similar the sequence is as that. With `--grid`
the same of sequences as they lie on one grid, as `prepare` compares them.
"""

import argparse
import itertools
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medjax.data import brain_phantom
from medjax.geometry import registration

NAMES = {"FLAIR": "FLAIR", "T1": "T1W", "T2": "T2W"}  # Ours -> of the raw study.
PHANTOM = {name: brain_phantom.SEQUENCES.index(name.lower()) for name in NAMES}


def load(path):
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj, np.float32), image.affine


def phantom(number):
    drawn = brain_phantom.patient(number, seed=0, shape=(64, 80, 64), spacing=[2.5] * 3)
    back = nibabel.Nifti1Image(drawn.image, drawn.affine)
    image = nibabel.as_closest_canonical(back)
    return {
        n: (image.get_fdata(dtype=np.float32)[..., c], image.affine)
        for n, c in PHANTOM.items()
    }


def thicker(voxels, affine, millimetres):
    """Averages neighbours until voxels are that large along each axis, or larger."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    k = np.maximum(np.rint(np.array(millimetres) / spacing).astype(int), 1)
    whole = voxels[tuple(slice(0, n // q * q) for n, q in zip(voxels.shape, k))]
    shape = np.stack([np.array(whole.shape) // k, k], axis=1).ravel()
    scaled = affine @ np.diag([*k, 1.0])
    scaled[:3, 3] = affine[:3, 3] + affine[:3, :3] @ (k - 1) / 2
    return whole.reshape(shape).mean((1, 3, 5)), scaled


def cohort(folder):
    people = {f"phantom {n}": phantom(n) for n in range(2)}
    for name in ("patient07", "patient19"):
        files = folder / "ms-lesion-sample" / name
        people[name] = {n: load(files / f"{n}.nii.gz") for n in NAMES}
    return people


CHANGES = {  # Of [W, H, D] in voxels of 1 to 2.5 mm.
    "own": lambda v, mm: v,
    "mirrored": lambda v, mm: v[::-1],
    "slices of 6 mm": lambda v, mm: ndimage.zoom(
        ndimage.zoom(v, (1, 1, mm / 6), order=1, grid_mode=True, mode="nearest"),
        (1, 1, v.shape[2] / round(v.shape[2] * mm / 6)),
        order=1,
        grid_mode=True,
        mode="nearest",
    ),
    "blurred by 6 mm": lambda v, mm: ndimage.gaussian_filter(v, 6 / 2.355 / mm),
    "moved by 2 mm": lambda v, mm: ndimage.shift(v, (0, 2 / mm, 0), order=1),
    "moved by 5 mm": lambda v, mm: ndimage.shift(v, (0, 5 / mm, 0), order=1),
}


def on_one_grid(people):
    for who, other in itertools.permutations(people, 2):
        if who.split()[0][:7] != other.split()[0][:7]:
            continue
        for first, second in itertools.combinations(NAMES, 2):
            fixed, affine = people[who][first]
            mm = np.linalg.norm(affine[:3, 0])
            ways = {what: (who, change) for what, change in CHANGES.items()}
            ways |= {"of the other": (other, CHANGES["own"])}
            for what, (whose, change) in ways.items():
                moving = change(people[whose][second][0], mm)
                turned = affine[:, [2, 1, 0, 3]]  # Left and right come last.
                at, beside, mirrored = registration.compare(fixed.T, moving.T, turned)
                print(
                    f"{who}, {second} {what} on {first}: beside {beside:.3f}, "
                    f"{(at - 1) / (mirrored - 1):.3f} times as similar as mirrored",
                    flush=True,
                )


def main(folder, thickness):
    people = cohort(folder)
    files = folder / "ms-raw-sample/patient01"
    people["raw"] = {n: load(files / f"study1_{m}.nii.gz") for n, m in NAMES.items()}
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("y", 8, degrees=True).as_matrix()
    motion[:3, 3] = 5, -4, 6
    for millimetres in thickness:
        for who, own in people.items():
            fixed = thicker(*own["FLAIR"], (2, 2, 2))
            for other, theirs in people.items():
                if who.startswith("phantom") != other.startswith("phantom"):
                    continue
                for name in ("T2", "T1"):
                    voxels, affine = thicker(*theirs[name], (2, 2, millimetres))
                    both = [
                        registration.register(*fixed, v, motion @ affine)
                        for v in (voxels, voxels[::-1])
                    ]
                    times = (both[0].metric - 1) / (both[1].metric - 1)
                    print(
                        f"{who}, {name} of {other}, {millimetres:g} mm: beside "
                        f"{both[0].beside:.3f}, mirrored {both[1].beside:.3f}, "
                        f"{times:.3f} times as similar",
                        flush=True,
                    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--thickness", type=float, nargs="+", default=[6.0], help="of slices, mm"
    )
    parser.add_argument("--grid", action="store_true", help="as they lie, instead")
    args = parser.parse_args()
    if args.grid:
        on_one_grid(cohort(args.folder))
    else:
        main(args.folder, args.thickness)

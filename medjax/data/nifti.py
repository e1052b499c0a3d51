"""NIfTI files -> a volume with canonical axes, or one clear error; and masks -> files."""

import logging
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel import orientations

from medjax.errors import InputError, reading
from medjax.files import whole
from medjax.geometry import grid

NIFTI_SUFFIXES = (".nii", ".nii.gz")
AXES = ("S", "P", "L")  # The directions in which the indices of D, H and W grow.
MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # By the header's code; 0 is unknown.
# nibabel logs the headers that it corrects; here they are refused, or sound.
nibabel.imageglobals.logger.setLevel("CRITICAL")
# How a file begins: the size of its header, in either order of bytes.
HEADER_SIZES = [struct.pack(f"{order}i", size) for order in "<>" for size in (348, 540)]
REMEDY = "export it again as NIfTI (.nii or .nii.gz)"
SAME = 0.1  # Tolerance of two equal grids: how far corners may lie apart, in voxels.
EDGES = 0.01, 50.0  # mm: shortest and longest ones of voxels that aren't asked about.
PLACED = (  # What a header says of where voxels lie.
    *("pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
log = logging.getLogger("medjax")


class SequenceFile(NamedTuple):
    """The file of one sequence of a patient."""

    path: Path  # A NIfTI file, or a folder of one DICOM series.
    channel: int | None = None  # Which volume of a file of four axes,
    count: int | None = None  # and how many it must have.


class Grid(NamedTuple):
    """Where voxels lie."""

    shape: tuple[int, int, int]
    affine: np.ndarray  # [4, 4] float64, indices of voxels to RAS millimetres.


class Volume(NamedTuple):
    """One volume in radiological orientation.

    A slice is axial, from the feet up, with the front at the top and the patient's
    right on the left.
    """

    voxels: np.ndarray  # [D, H, W] float32 in the file's units; a stack [D, H, W, C].
    affine: np.ndarray  # [4, 4] float64, indices of voxels to RAS millimetres.
    stored: Grid  # Of the file, before its axes were turned.
    header: nibabel.Nifti1Header | None = None  # The file's, if it is NIfTI.
    doubt: str = ""  # How that contradicts itself.

    @property
    def spacing(self) -> np.ndarray:
        """[3] mm along D, H, W."""
        return grid.spacing_of(self.affine)


def is_volume(path: str | os.PathLike) -> bool:
    """Whether a file's name is that of a NIfTI file."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)


def read(path: str | os.PathLike, *, stack: bool = False) -> Volume:
    """Reads one volume. The axes are exchanged and turned; no voxel is interpolated.

    A stack may have a fourth axis C of volumes on one grid, as the Decathlon keeps a
    patient's sequences; C is 1 in a file of three axes. A header that contradicts
    itself is warned of.

    Raises:
      InputError: the file is missing, cut off, damaged, no NIfTI, of other axes, in
        colour or complex, holds more slices than its header says, or has voxels that
        are not finite, a spacing that isn't positive or an affine that can't be
        inverted.
    """
    with reading(path, REMEDY):
        head, size = _whole(Path(path))
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise InputError(f"is {type(image).__name__}, no NIfTI; {REMEDY}")
        kind = type(image).header_class  # Of nibabel.load it is corrected.
        header = kind(head[: kind.sizeof_hdr], check=False)
        affine = _affine(image, header, stack)
        _check_end(image, header, size)
        if doubt := _doubt(image, header) or _size(affine):
            log.warning("%s: %s", path, doubt)
        with np.errstate(over="ignore"):  # Refused below.
            voxels = image.get_fdata(dtype=np.float32, caching="unchanged")
        if not np.isfinite(voxels).all():
            exact = image.get_fdata(caching="unchanged")
            if wrong := int(np.sum(~np.isfinite(exact))):
                raise InputError(f"{wrong} voxels are no numbers; {REMEDY}")
            most = np.abs(exact).max()
            raise InputError(f"holds {most:.3g}, beyond float32's 3.4e+38; scale it")
    channels = (-1,) if stack else ()
    volume = canonical(voxels.reshape(*voxels.shape[:3], *channels), affine)
    return volume._replace(header=image.header, doubt=doubt)


def _whole(path: Path) -> tuple[bytes, int]:
    """A file's first KB, unzipped, and its size; reads all of it."""
    with path.open("rb") as file:
        begin = file.read(8)
    zipped = begin[:2] == b"\x1f\x8b"
    if begin and not zipped and begin[:4] not in HEADER_SIZES:
        raise InputError(f"is no NIfTI file (it begins with {begin!r}); {REMEDY}")
    if is_volume(path) and zipped != (path.suffix.lower() == ".gz"):
        state = "zipped" if zipped else "not zipped"
        raise InputError(f"is {state}, and its name says otherwise; rename it")
    with nibabel.openers.ImageOpener(path) as file:
        head = file.read(1 << 10)
        size = len(head)
        if zipped and is_volume(path) and head[:4] not in HEADER_SIZES:
            raise InputError(
                f"is zipped, and no NIfTI file (it is {head[:8]!r}); {REMEDY}"
            )
        while part := file.read(1 << 24):  # To its end: there stands gzip's checksum.
            size += len(part)
    return head, size


def _check_end(image: nibabel.Nifti1Image, header, size: int) -> None:
    """Refuses a file without its voxels, or with more slices than its header says."""
    if header["magic"] in (b"ni1", b"ni2"):
        raise InputError(f"is a header without its voxels (.hdr); {REMEDY}")
    if (start := int(header["vox_offset"])) < header.sizeof_hdr:
        raise InputError(f"begins its voxels at byte {start}, in its header; {REMEDY}")
    voxel, shape = image.get_data_dtype().itemsize, image.shape
    more = size - image.dataobj.offset - voxel * math.prod(shape)
    if more >= voxel * shape[0] * shape[1]:
        raise InputError(
            f"holds {more} bytes after the {' x '.join(map(str, shape))} voxels of its "
            f"header: there are more slices than it says; {REMEDY}"
        )


def _affine(image: nibabel.Nifti1Image, header: nibabel.Nifti1Header, stack: bool):
    """In mm; refuses what nibabel corrects in silence, or reads as something else."""
    shape, kind = image.shape, image.get_data_dtype()
    more = [n for n in shape[3:] if n > 1]
    if len(shape) < 3 or min(shape) < 1 or len(more) > stack:
        raise InputError(f"has the shape {shape}; give one volume of three axes")
    if kind.kind not in "iuf":
        raise InputError(f"has voxels of {kind}; give real numbers")
    spacing = header["pixdim"][1:4]
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise InputError(f"has a spacing of {spacing} mm; give positive ones: {REMEDY}")
    unit = int(header["xyzt_units"]) & 7
    if unit not in MM:
        raise InputError(f"has lengths in an unknown unit (code {unit}); {REMEDY}")
    scale = np.diag([MM[unit]] * 3 + [1.0])
    return grid.check_affine("its affine", scale @ image.affine)


def _doubt(image: nibabel.Nifti1Image, header: nibabel.Nifti1Header) -> str:
    """How a header contradicts what counts here; '' if it doesn't.

    The sform counts before the qform; other programs choose otherwise.
    """
    affine, scale, added = image.affine, header["scl_slope"], header["scl_inter"]
    if not (np.isfinite(scale) and scale) and np.nan_to_num(added):
        return (
            f"its scl_slope is {scale:g}, so its scl_inter {added:g} isn't added: other "
            "programs add it; correct one of them"
        )
    if not header["sform_code"] and not header["qform_code"]:
        return (
            "its sform and qform codes are 0, so nothing says where left is: programs "
            "differ; set them"
        )
    sizes, lengths = header["pixdim"][1:4], nibabel.affines.voxel_sizes(affine)
    if not np.allclose(sizes, lengths, rtol=0.01):
        return (
            f"its pixdim says voxels of {_by(sizes)}, its affine {_by(lengths)}: the "
            "affine counts; correct one of them"
        )
    if header["sform_code"] and header["qform_code"]:
        try:
            qform = image.header.get_qform()  # A pixdim[0] of 0 is 1.
        except ValueError:
            return "its qform is no rotation, so the sform counts; correct it"
        apart = corners(image.shape[:3], affine, qform).max()
        if apart > SAME * lengths.min():
            return (
                f"its sform and qform lie up to {apart:.3g} apart: the sform counts "
                "here, and the qform in some programs; correct one of them"
            )
    return ""


def _size(affine: np.ndarray) -> str:
    """What is odd about the voxels' edges; '' for nothing."""
    lengths = nibabel.affines.voxel_sizes(affine)
    if EDGES[0] <= lengths.min() and lengths.max() <= EDGES[1]:
        return ""
    return f"its voxels are {_by(lengths)} mm: is its unit (xyzt_units) right?"


def _by(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def corners(shape: Sequence[int], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[8], how far the corners of a grid lie apart by two affines."""
    index = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(shape) - 1)
    return np.linalg.norm(grid.apply(a, index) - grid.apply(b, index), axis=-1)


def canonical(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    """Turns the axes of [A, B, C] or [A, B, C, N] to AXES, whatever their order was."""
    shape = voxels.shape[:3]
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(AXES)
    )
    turned = affine @ orientations.inv_ornt_aff(turn, shape)
    voxels = orientations.apply_orientation(voxels, turn)
    return Volume(np.ascontiguousarray(voxels), turned, Grid(shape, affine))


def check_regions(regions: Mapping[str, Sequence[int]]) -> None:
    """Refuses regions that a file of one value a voxel can't hold, see `paint`."""
    values = sorted({value for inside in regions.values() for value in inside})
    member = np.array([[v in inside for inside in regions.values()] for v in values])
    painted = paint(member, regions)
    for value, before, after in zip(values, member, painted, strict=True):
        if (before != member[values.index(after)]).any():
            names = [name for name, there in zip(regions, before, strict=True) if there]
            raise InputError(
                f"data.values: {value} is in {' and '.join(names)}, and would be written "
                f"as {after}, which isn't: let regions lie apart or one inside the other, "
                "from outer to inner, or make them disjoint"
            )


def paint(label: np.ndarray, regions: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Overlapping regions [..., K] -> one value a voxel [...], as in a mask's file.

    The regions are painted in their order, later ones over earlier ones, each with its
    first value that no later region has. So regions from the outer to the inner return
    to the values they were made of: whole (1, 2, 4), core (1, 4), enhancing (4,) are
    painted 2, 1 and 4.

    Raises:
      InputError: a region has no value of its own, or one beyond 65535.
    """
    values = list(regions.values())
    largest = max((max(inside, default=0) for inside in values), default=0)
    painted = np.zeros(label.shape[:-1], np.uint8 if largest < 256 else np.uint16)
    for channel, name in enumerate(regions):
        later = {value for inner in values[channel + 1 :] for value in inner}
        free = [value for value in values[channel] if value not in later]
        if not free or not 0 < free[0] < 65536:
            raise InputError(
                f"data.regions: {name} {tuple(values[channel])} has no value from 1 to "
                "65535 that a later region doesn't have; order them from outer to inner"
            )
        painted[label[..., channel] > 0] = free[0]
    return painted


def write(
    path: Path,
    voxels: np.ndarray,
    where: Grid,
    header: nibabel.Nifti1Header | None = None,
) -> None:
    """Writes [A, B, C] or [A, B, C, K] of that grid as NIfTI; of three axes if K is 1.

    What a source's header says of the place is kept: any program puts both in one place.
    """
    if voxels.shape[:3] != tuple(where.shape):
        raise ValueError(f"{voxels.shape} is not on the grid of {where.shape}")
    voxels = voxels[..., 0] if voxels.shape[3:] == (1,) else voxels
    if header is None:
        image = nibabel.Nifti1Image(voxels, where.affine)
        image.set_sform(where.affine, code="scanner")
        # A quaternion can't express a shear: viewers then use the sform.
        image.set_qform(where.affine, code="scanner", strip_shears=True)
        image.header.set_xyzt_units("mm")
    else:
        image = nibabel.Nifti1Image(voxels, None)
        for name in PLACED:
            image.header[name] = header[name]
    with whole(path) as partial:
        nibabel.save(image, partial)

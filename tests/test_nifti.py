"""Volumes are written by nibabel; where their voxels lie is asked of SimpleITK."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medjax.data import nifti
from medjax.errors import InputError

MS = Path(__file__).parents[2] / "shared/data/ms-lesion-sample/patient19"
RNG = np.random.default_rng(0)
VOXELS = RNG.integers(0, 1000, (5, 7, 4)).astype(np.int16)
TURNS = {  # Columns: where i, j and k grow to, in RAS.
    "RAS": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "LPS": [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
    "sagittal PSR": [[0, 0, 1], [-1, 0, 0], [0, 1, 0]],
    "coronal LIA": [[-1, 0, 0], [0, 0, 1], [0, -1, 0]],
}


def affine_of(turn, spacing=(0.7, 1.1, 3.0), tilt=0.0):
    c, s = np.cos(tilt), np.sin(tilt)
    tilted = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = tilted @ np.array(turn, float) * spacing
    affine[:3, 3] = (-20.0, 11.0, 5.5)
    return affine


def save(path, voxels=VOXELS, affine=None, kind=nibabel.Nifti1Image, **header):
    image = kind(voxels, affine_of(TURNS["RAS"]) if affine is None else affine)
    for field, value in header.items():
        image.header[field] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("tilt", [0.0, 0.3])
@pytest.mark.parametrize("name", TURNS)
def test_the_axes_are_those_of_simpleitk_turned_to_lps(tmp_path, name, tilt):
    path = save(tmp_path / "a.nii.gz", affine=affine_of(TURNS[name], tilt=tilt))
    volume = nifti.read(path)
    assert volume.voxels.dtype == np.float32 and volume.voxels.flags.c_contiguous
    other = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(other))
    np.testing.assert_allclose(volume.spacing, other.GetSpacing()[::-1], rtol=1e-6)
    x, y, z = other.TransformIndexToPhysicalPoint((1, 2, 3))  # (W, H, D), in LPS.
    np.testing.assert_allclose(volume.affine @ (3, 2, 1, 1), (-x, -y, z, 1), rtol=1e-5)


@pytest.mark.parametrize("name", TURNS)
def test_every_voxel_stays_where_nibabel_has_it(tmp_path, name):
    path = save(tmp_path / "a.nii", affine=affine_of(TURNS[name], tilt=0.2))
    image, volume = nibabel.load(path), nifti.read(path)
    for index in RNG.integers(0, VOXELS.shape, (20, 3)):
        world = image.affine @ (*index, 1)
        here = np.linalg.solve(volume.affine, world)[:3]
        assert np.abs(here - np.rint(here)).max() < 1e-4
        at = tuple(np.rint(here).astype(int))
        assert volume.voxels[at] == image.dataobj[tuple(index)]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_scaled_integers_are_in_the_files_units(tmp_path, kind, dtype):
    image = kind(VOXELS.astype(dtype)[..., None], np.eye(4))  # One volume, of 4 axes.
    image.header.set_slope_inter(2.0, -7.0)
    nibabel.save(image, tmp_path / "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").get_fdata()[..., 0]
    back = np.transpose(nifti.read(tmp_path / "a.nii").voxels, (2, 1, 0))
    np.testing.assert_array_equal(back[::-1, ::-1], expected.astype(np.float32))


def test_a_unit_other_than_the_millimetre_is_obeyed(tmp_path):
    image = nibabel.Nifti1Image(VOXELS, np.diag([700.0, 700, 3000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(nifti.read(tmp_path / "a.nii").spacing, (3, 0.7, 0.7))


@pytest.mark.parametrize(
    ("size", "unit", "odd"),
    [(1000, "mm", True), (0.001, "mm", True), (1, "micron", True), (1, "mm", False)],
)
def test_voxels_of_an_unlikely_size_are_asked_about(tmp_path, caplog, size, unit, odd):
    """As where micrometres or metres are written as millimetres."""
    image = nibabel.Nifti1Image(VOXELS, np.diag([size, size, size, 1.0]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    nifti.read(tmp_path / "a.nii")
    assert ("is its unit (xyzt_units) right?" in caplog.text) == odd


def test_the_stored_grid_is_the_one_in_the_file(tmp_path):
    affine = affine_of(TURNS["coronal LIA"], tilt=0.3)
    stored = nifti.read(save(tmp_path / "a.nii", affine=affine)).stored
    assert stored.shape == VOXELS.shape
    np.testing.assert_allclose(stored.affine, affine, rtol=1e-6)


@pytest.mark.parametrize("name", TURNS)
def test_a_stack_is_its_volumes_each_turned_alike(tmp_path, name):
    affine, stack = affine_of(TURNS[name]), RNG.integers(0, 99, (5, 7, 4, 3))
    path = save(tmp_path / "a.nii.gz", stack.astype(np.int16), affine)
    volume = nifti.read(path, stack=True)
    assert volume.voxels.flags.c_contiguous and volume.voxels.shape[-1] == 3
    assert volume.stored.shape == (5, 7, 4)
    for channel in range(3):
        part = stack[..., channel].astype(np.int16)
        alone = nifti.read(save(tmp_path / "b.nii", part, affine))
        np.testing.assert_array_equal(volume.voxels[..., channel], alone.voxels)
        np.testing.assert_array_equal(volume.affine, alone.affine)
    one = nifti.read(tmp_path / "b.nii", stack=True)
    np.testing.assert_array_equal(one.voxels[..., 0], alone.voxels)
    five = save(tmp_path / "c.nii", np.zeros((5, 7, 4, 3, 2), np.int16), affine)
    with pytest.raises(InputError, match="shape \\(5, 7, 4, 3, 2\\)"):
        nifti.read(five, stack=True)


def nan_voxels(path):
    voxels = VOXELS.astype(np.float32)
    voxels[0, 0, :2] = np.nan, np.inf
    save(path, voxels)


def large(path):
    voxels = VOXELS.astype(np.float64)
    voxels[0, 0, 0] = -2e39
    save(path, voxels)


def singular(path):
    affine = affine_of(TURNS["RAS"])
    affine[:3, 1] = affine[:3, 0]
    save(path, affine=affine)


def spaced(path, *, spacing):
    """Writes the spacing into the bytes: nibabel refuses to."""
    save(path)
    data = bytearray(path.read_bytes())
    data[80:92] = np.array(spacing, "<f4").tobytes()
    path.write_bytes(data)


def unit(path):
    save(path)
    data = bytearray(path.read_bytes())
    data[123] = 7
    path.write_bytes(data)


def cut(path):
    save(path)
    path.write_bytes(path.read_bytes()[:-50])


def longer(path):
    """A file of four slices whose header says two."""
    save(path)
    data = bytearray(path.read_bytes())
    data[46] = 2
    path.write_bytes(data)


def offset(path):
    """nibabel would read the header's bytes as voxels."""
    save(path)
    data = bytearray(path.read_bytes())
    data[108:112] = np.float32(0).tobytes()
    path.write_bytes(data)


def header_alone(path):
    image = nibabel.Nifti1Pair(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    nibabel.save(image, path.with_suffix(".img"))
    path.with_suffix(".hdr").rename(path)


SPOILT = {
    "holds 140 bytes after the 5 x 7 x 2 voxels of its header": longer,
    "begins its voxels at byte 0, in its header": offset,
    "is a header without its voxels": header_alone,
    "is zipped, and its name": lambda path: path.write_bytes(gzip.compress(b"no")),
    "can't be inverted": singular,
    "2 voxels are no numbers": nan_voxels,
    "holds 2e+39, beyond float32's 3.4e+38": large,
    "shape (5, 7, 4, 2)": lambda path: save(path, np.stack([VOXELS] * 2, -1)),
    "shape (5, 7)": lambda path: save(path, VOXELS[..., 0]),
    "spacing of [0. ": lambda path: spaced(path, spacing=(0, 1, 1)),
    "spacing of [ 1. -2.": lambda path: spaced(path, spacing=(1, -2, 1)),
    "spacing of [nan": lambda path: spaced(path, spacing=(np.nan, 1, 1)),
    "unknown unit (code 7)": unit,
    "complex64": lambda path: save(path, VOXELS.astype(np.complex64)),
    "can't be read": cut,
    "can't be read (Empty file": lambda path: path.write_bytes(b""),
    "is no NIfTI file (it begins with b'<!DOCTYP')": lambda path: path.write_bytes(
        b"<!DOCTYPE html>" * 99
    ),
    "give an existing file": lambda path: None,
}


@pytest.mark.parametrize("why", SPOILT)
def test_a_file_that_is_no_sound_volume_is_refused_in_one_line(tmp_path, why):
    path = tmp_path / "a.nii"
    SPOILT[why](path)
    with pytest.raises(InputError) as caught:
        nifti.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and why in text
    assert "\n" not in text and "; " in text


def test_a_cut_off_gzip_file_is_refused(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:60]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="can't be read"):
            nifti.read(path)
    for data, message in (
        (gzip.decompress(whole), "is not zipped, and its name"),
        (gzip.compress(whole), "is zipped, and no NIfTI file"),
        (b"version https://git-lfs.github.com/spec/v1", "is no NIfTI file"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            nifti.read(path)


def test_gzips_checksum_is_read(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # Of the checksum, which stands behind the last voxel.
    path.write_bytes(data)
    with pytest.raises(InputError, match="CRC"):
        nifti.read(path)


def shifted(sform, qform, codes=(1, 1)):
    """A header of two affines."""
    image = nibabel.Nifti1Image(VOXELS, None)
    image.set_qform(qform, code=codes[1])
    image.set_sform(sform, code=codes[0])
    return image


PLACE = affine_of(TURNS["LPS"])
MOVED = PLACE + np.pad(np.array([[12.0], [-8], [6]]), ((0, 1), (3, 0)))
TWO = {
    "agree": (shifted(PLACE, PLACE), ""),
    "qform alone": (shifted(PLACE, PLACE, (0, 1)), ""),
    "sform alone": (shifted(PLACE, PLACE, (4, 0)), ""),
    "template": (shifted(PLACE, PLACE, (4, 1)), ""),
    "moved": (shifted(MOVED, PLACE, (2, 1)), "sform and qform lie up to 15.6 apart"),
    "no code": (shifted(PLACE, PLACE, (0, 0)), "codes are 0"),
}


@pytest.mark.parametrize("name", TWO)
def test_a_mask_lies_on_its_image_whatever_transform_a_program_takes(
    tmp_path, name, caplog
):
    image, doubt = TWO[name]
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = nifti.read(tmp_path / "a.nii.gz")
    assert doubt in caplog.text and bool(doubt) == bool(caplog.text)
    mask = np.zeros((*VOXELS.shape, 2), np.float32)
    nifti.write(tmp_path / "b.nii.gz", mask, volume.stored, volume.header)
    written = nibabel.load(tmp_path / "b.nii.gz")
    assert written.header.get_zooms()[:3] == image.header.get_zooms()[:3]
    for get in ("get_sform", "get_qform"):
        theirs, code = getattr(image.header, get)(coded=True)
        ours, same = getattr(written.header, get)(coded=True)
        assert code == same
        np.testing.assert_array_equal(ours, theirs)
    nifti.write(tmp_path / "c.nii.gz", mask[..., :1], volume.stored, volume.header)
    one, other = (sitk.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in "ac")
    for index in ((0, 0, 0), (4, 6, 3)):
        at = (each.TransformIndexToPhysicalPoint(index) for each in (one, other))
        np.testing.assert_array_equal(*at)


def test_a_pixdim_that_contradicts_the_affine_is_warned_of(tmp_path, caplog):
    image = nibabel.Nifti1Image(VOXELS, PLACE)
    image.header["pixdim"][1:4] = 1, 1, 1
    nibabel.save(image, tmp_path / "a.nii")
    nifti.read(tmp_path / "a.nii")
    assert "pixdim says voxels of 1 x 1 x 1, its affine 0.7 x 1.1 x 3" in caplog.text


def test_a_qform_of_the_sign_0_is_one_of_the_sign_1(tmp_path, caplog):
    """pixdim[0] = 0, as old programs write; the standard says so."""
    path = save(tmp_path / "a.nii")
    image = nibabel.load(path)
    image.set_qform(image.affine, 1)
    nibabel.save(image, path)
    expected = nifti.read(path)
    data = bytearray(path.read_bytes())
    data[76:80] = np.float32(0).tobytes()
    path.write_bytes(data)
    np.testing.assert_array_equal(nifti.read(path).affine, expected.affine)
    assert not caplog.records


@pytest.mark.parametrize("slope", [0.0, np.nan, 1.0])
def test_an_intercept_that_does_not_count_is_warned_of(tmp_path, caplog, slope):
    path = save(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([slope, -1024], "<f4").tobytes()
    path.write_bytes(data)
    added = -1024 if slope == 1 else 0
    np.testing.assert_array_equal(
        np.sort(nifti.read(path).voxels, None), np.sort(VOXELS, None) + added
    )
    told = f"scl_slope is {slope:g}, so its scl_inter -1024 isn't added"
    assert (told in caplog.text) == (slope != 1)


def test_another_format_is_refused_by_its_name(tmp_path):
    image = nibabel.MGHImage(VOXELS.astype(np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "a.mgz")
    with pytest.raises(InputError, match="is MGHImage, no NIfTI"):
        nifti.read(tmp_path / "a.mgz")


def test_a_damaged_header_is_read_or_refused(tmp_path, capfd):
    path = save(tmp_path / "a.nii")
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        data = bytearray(whole)
        data[RNG.integers(0, 352)] = RNG.integers(0, 256)
        path.write_bytes(data)
        try:
            volume = nifti.read(path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert np.isfinite(volume.voxels).all() and (volume.spacing > 0).all()
    assert refused > 10
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not MS.exists(), reason="needs shared/data/ms-lesion-sample")
def test_a_real_volume_lies_as_simpleitk_says():
    volume = nifti.read(MS / "lesion.nii.gz")
    other = sitk.DICOMOrient(sitk.ReadImage(str(MS / "lesion.nii.gz")), "LPS")
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(other))
    assert volume.voxels.sum() > 0

"""DICOM series are written by pydicom; where their voxels lie is asked of SimpleITK."""

import warnings

import cv2
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scans import affine_of, ball, brain, save

from medjax.data import scan, series, sources
from medjax.data.nifti import SequenceFile
from medjax.data.sources import scan_files
from medjax.errors import InputError
from medjax.geometry import grid

RNG = np.random.default_rng(0)
VOXELS = RNG.integers(0, 4000, (5, 7, 6)).astype(np.uint16)  # Slices, rows, columns.
UID = generate_uid()
AXIAL, SAGITTAL, CORONAL = (
    ((1, 0, 0), (0, 1, 0)),
    ((0, 1, 0), (0, 0, -1)),
    ((1, 0, 0), (0, 0, -1)),
)


def tilted(plane, angle=0.3):
    """Turns the two directions of an image plane about x, then z."""
    c, s = np.cos(angle), np.sin(angle)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return tuple(about_z @ about_x @ direction for direction in np.array(plane))


def write(folder, voxels=VOXELS, plane=AXIAL, gap=3.0, order=None, **fields):
    """Writes slices along their normal; the names and numbers are in `order`."""
    folder.mkdir(parents=True, exist_ok=True)
    across, down = np.array(plane, float)
    names = np.arange(len(voxels)) if order is None else order
    for k, pixels in enumerate(voxels):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{names[k]:03d}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID = MRImageStorage
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.Modality = UID, "MR"
        data.InstanceNumber = int(names[k]) + 1
        data.ImageOrientationPatient = [f"{x:.9f}" for x in (*across, *down)]
        place = np.array([-30.0, 20, 7]) + k * gap * np.cross(across, down)
        data.ImagePositionPatient = [f"{x:.9f}" for x in place]
        data.PixelSpacing = [1.2, 0.8]  # Between rows, then between columns.
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.PixelData = pixels.tobytes()
        for name, value in fields.items():
            setattr(data, name, value)
        data.save_as(path)
    return folder


def change(path, **fields):
    data = pydicom.dcmread(path)
    for name, value in fields.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path)


PLANES = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "oblique": tilted(AXIAL),
    "oblique sagittal": tilted(SAGITTAL),
}


@pytest.mark.parametrize("name", PLANES)
def test_a_series_lies_as_simpleitk_says(tmp_path, name):
    order = RNG.permutation(len(VOXELS))
    folder = write(tmp_path / "T1", plane=PLANES[name], order=order)
    volume = series.read(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    stored = reader.Execute()
    other = sitk.DICOMOrient(stored, "LPS")
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(other))
    np.testing.assert_allclose(volume.spacing, other.GetSpacing()[::-1], rtol=1e-6)
    assert volume.voxels.dtype == np.float32 and volume.voxels.flags.c_contiguous
    for index in ((0, 0, 0), (1, 2, 3), (4, 1, 2)):
        x, y, z = other.TransformIndexToPhysicalPoint(index[::-1])
        here = grid.apply(volume.affine, np.array(index))
        np.testing.assert_allclose(here, (-x, -y, z), atol=1e-5)
    assert volume.stored.shape == stored.GetSize()
    x, y, z = stored.TransformIndexToPhysicalPoint((1, 2, 3))
    here = grid.apply(volume.stored.affine, np.array((1, 2, 3)))
    np.testing.assert_allclose(here, (-x, -y, z), atol=1e-5)


def test_rescaling_is_obeyed_slice_by_slice(tmp_path):
    folder = write(tmp_path, RescaleSlope=2.0, RescaleIntercept=-100.0)
    change(folder / "002.dcm", RescaleSlope=0.5)
    values = series.read(folder).voxels
    plain = write(tmp_path / "plain")
    expected = 2 * series.read(plain).voxels - 100
    expected[2] = 0.5 * series.read(plain).voxels[2] - 100
    np.testing.assert_array_equal(values, expected)


def test_signed_values_are_signed(tmp_path):
    signed = (VOXELS.astype(int) - 2000).astype(np.int16)
    folder = write(tmp_path, signed, PixelRepresentation=1)
    np.testing.assert_array_equal(series.read(folder).voxels, signed)


def test_a_slope_of_1_is_none_at_all(tmp_path):
    expected = series.read(write(tmp_path)).voxels
    change(tmp_path / "003.dcm", RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(series.read(tmp_path).voxels, expected)


def test_functional_groups_say_what_a_plain_slice_says(tmp_path):
    """An enhanced file keeps place, spacing and rescaling of its frame in them."""
    plain = write(tmp_path / "plain", RescaleSlope=2, RescaleIntercept=-1024)
    shared = {
        "PixelMeasuresSequence": ("PixelSpacing",),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
        "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    }
    frame = {"PlanePositionSequence": ("ImagePositionPatient",)}
    enhanced = tmp_path / "enhanced"
    enhanced.mkdir()
    for path in plain.glob("*.dcm"):
        header = pydicom.dcmread(path)
        for groups, parts in (("Shared", shared), ("PerFrame", frame)):
            group = pydicom.Dataset()
            for name, elements in parts.items():
                part = pydicom.Dataset()
                part.update({header[n].tag: header.pop(n) for n in elements})
                setattr(group, name, [part])
            setattr(header, f"{groups}FunctionalGroupsSequence", [group])
        header.NumberOfFrames = 1
        header.save_as(enhanced / path.name)
    volume, expected = series.read(enhanced), series.read(plain)
    np.testing.assert_array_equal(volume.voxels, expected.voxels)
    np.testing.assert_array_equal(volume.affine, expected.affine)


def test_what_is_no_slice_is_passed_over(tmp_path):
    folder = write(tmp_path)
    expected = series.read(folder).voxels
    (folder / "DICOMDIR").write_bytes((folder / "000.dcm").read_bytes())
    (folder / "._000.dcm").write_bytes((folder / "000.dcm").read_bytes())
    (folder / "readme.txt").write_text("T1")
    (folder / "deeper").mkdir()
    np.testing.assert_array_equal(series.read(folder).voxels, expected)


def test_slices_without_a_preamble_belong_to_the_series(tmp_path):
    folder = write(tmp_path)
    expected = series.read(folder).voxels
    for name in ("003.dcm", "004.dcm"):
        (folder / name).write_bytes((folder / name).read_bytes()[132:])
    np.testing.assert_array_equal(series.read(folder).voxels, expected)


def test_other_files_are_named(tmp_path, caplog):
    folder = write(tmp_path)
    (folder / "readme.txt").write_text("T1")
    write(folder / "more/slices", VOXELS[:1])
    series.read(folder)
    assert "left out: readme.txt, more/slices" in caplog.text


def missing(folder):
    (folder / "002.dcm").unlink()


def twice(folder):
    (folder / "copy.dcm").write_bytes((folder / "001.dcm").read_bytes())


def alone(folder):
    for n in range(4):
        (folder / f"00{n}.dcm").unlink()


def cut(folder):
    path = folder / "003.dcm"
    path.write_bytes(path.read_bytes()[:-20])


def several(folder):
    path = folder / "003.dcm"
    change(path, NumberOfFrames=2)


def foreign(folder):
    (folder / "005.dcm").write_bytes(b"\0" * 200)


def deeper(folder):
    (folder / "S1").mkdir()
    for path in folder.glob("*.dcm"):
        path.rename(folder / "S1" / path.name)


def unzipped(folder):
    for path in folder.glob("*.dcm"):
        path.unlink()
    (folder / "t1.nii.gz").touch()


def small(folder):
    pixels = VOXELS[3, :3, :3].tobytes()
    change(folder / "003.dcm", Rows=3, Columns=3, PixelData=pixels)


def other_units(folder):
    change(folder / "000.dcm", RescaleSlope=1, RescaleIntercept=0)
    change(folder / "002.dcm", RescaleSlope=2, RescaleIntercept=-1024)


def shifted(folder):
    """The upper slices lie 5 mm beside the lower ones: no affine says so."""
    for n in (3, 4):
        change(folder / f"{n:03d}.dcm", ImagePositionPatient=[-25, 20, 7 + 3 * n])


def two_people(folder):
    for n in range(5):
        change(folder / f"{n:03d}.dcm", PatientID=f"P{n // 3}")


SPOILT = {
    "002.dcm lies 2.5 mm beside the line of the other slices": shifted,
    "002.dcm: has the PatientID P0, and 004.dcm has P1": two_people,
    "has the RescaleType HU, and 004.dcm has US": lambda folder: [
        change(folder / f"00{n}.dcm", RescaleType=kind)
        for n, kind in ((3, "HU"), (4, "US"))
    ],
    "Interpretation MONOCHROME2, and 002.dcm has MONOCHROME1": lambda folder: change(
        folder / "002.dcm", PhotometricInterpretation="MONOCHROME1"
    ),
    "has the Modality MR, and 003.dcm has CT": lambda folder: change(
        folder / "003.dcm", Modality="CT"
    ),
    "002.dcm: has a RescaleSlope of 0": lambda folder: change(
        folder / "002.dcm", RescaleSlope=0, RescaleIntercept=5
    ),
    "001.dcm: has no rescaling, and others have": other_units,
    "001.dcm and 003.dcm are 6 mm apart, others 3 mm": missing,
    "001.dcm and copy.dcm lie in one place": twice,
    "holds 1 DICOM slices": alone,
    "003.dcm: can't be read": cut,
    "003.dcm: holds 2 frames": several,
    "005.dcm: is no DICOM": foreign,
    "holds 0 DICOM slices, but S1 in it: correct data.files": deeper,
    "holds 0 DICOM slices, but t1.nii.gz in it: correct data.files": unzipped,
    "003.dcm: has the Rows 3, and 000.dcm has 7": small,
    "001.dcm: has the SeriesInstanceUID 1.2.3": lambda folder: change(
        folder / "001.dcm", SeriesInstanceUID="1.2.3"
    ),
    "002.dcm: has the PixelSpacing": lambda folder: change(
        folder / "002.dcm", PixelSpacing=[1.2, 0.9]
    ),
    "002.dcm: has the ImageOrientationPatient": lambda folder: change(
        folder / "002.dcm", ImageOrientationPatient=[0, 1, 0, 0, 0, -1]
    ),
    "004.dcm: has no ImagePositionPatient": lambda folder: change(
        folder / "004.dcm", ImagePositionPatient=None
    ),
    "003.dcm: has a PixelSpacing that isn't positive": lambda folder: change(
        folder / "003.dcm", PixelSpacing=[1.2, 0.0]
    ),
    "003.dcm: has an ImageOrientationPatient of no right": lambda folder: change(
        folder / "003.dcm", ImageOrientationPatient=[1, 0, 0, 1, 0, 0]
    ),
    "000.dcm: is RGB, not a grey film": lambda folder: change(
        folder / "000.dcm", SamplesPerPixel=3, PhotometricInterpretation="RGB"
    ),
    "000.dcm: is PALETTE COLOR, not a grey film": lambda folder: change(
        folder / "000.dcm", PhotometricInterpretation="PALETTE COLOR"
    ),
    "000.dcm: stores 12 of 16 bits up to bit 15": lambda folder: change(
        folder / "000.dcm", BitsStored=12
    ),
}


@pytest.mark.parametrize("why", SPOILT)
def test_a_series_that_is_no_sound_volume_is_refused_in_one_line(tmp_path, why):
    folder = write(tmp_path / "T1")
    SPOILT[why](folder)
    with pytest.raises(InputError) as caught:
        series.read(folder)
    text = str(caught.value)
    assert text.startswith(str(folder)) and why in text
    assert "\n" not in text and "; " in text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("EchoTime", (10.5, 80.5)),
        ("ImageType", ("M", "P")),
        ("PatientName", ("A^B", "C^D")),
        ("DiffusionBValue", (0.0, 1000.0)),
        ("FrameOfReferenceUID", "12"),
    ],
)
def test_slices_that_may_be_of_two_series_are_warned_of(tmp_path, caplog, name, values):
    write(tmp_path, **{name: values[0]})
    series.read(tmp_path)
    assert caplog.text == ""
    change(tmp_path / "003.dcm", **{name: values[1]})
    series.read(tmp_path)
    text = f"has the {name} {values[0]}, and 003.dcm has {values[1]}: are they of one"
    assert text in caplog.text


def test_an_empty_and_an_absent_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds 0 DICOM slices"):
        series.read(tmp_path)
    with pytest.raises(InputError, match="can't be read"):
        series.read(tmp_path / "absent")


def test_damaged_bytes_are_read_or_refused(tmp_path):
    folder = write(tmp_path, VOXELS[:3])
    path = folder / "001.dcm"
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        data = bytearray(whole)
        data[RNG.integers(132, len(data))] = RNG.integers(0, 256)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom's, of strange values.
                volume = series.read(folder)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert np.isfinite(volume.voxels).all() and (volume.spacing > 0).all()
    assert refused > 10


@pytest.mark.parametrize("name", ["ImagesInAcquisition", "NumberOfSlices"])
def test_a_series_that_lacks_its_last_slices_is_warned_of(tmp_path, caplog, name):
    write(tmp_path, **{name: len(VOXELS)})
    series.read(tmp_path)
    assert caplog.text == ""
    (tmp_path / f"{len(VOXELS) - 1:03d}.dcm").unlink()
    series.read(tmp_path)
    text = f"{len(VOXELS) - 1} slices, and their {name} is {len(VOXELS)}: is it whole?"
    assert f"{tmp_path}: holds {text}" in caplog.text


@pytest.mark.parametrize("name", ["sub-0{}/ses-{}", "BraTS-GLI-0000{}-00{}"])
def test_two_patients_of_one_subject_are_named(tmp_path, caplog, name):
    scans = [name.format(who, visit) for who, visit in ("11", "12", "21", "31")]
    files = [scan_files.ScanFiles(scan, {}) for scan in scans]
    scan_files.warn_of_headers(files, ["A", "A", "B", "C"])
    scan_files.warn_of_headers(files[1:], ["A", "B", "C"])
    assert not caplog.records
    scan_files.warn_of_headers(files, scans)
    assert "1 subjects in names are of several patients, such as " in caplog.text
    assert scans[0] in caplog.text and scans[1] in caplog.text
    caplog.clear()
    rows = [f"{scan.replace('/', '_')}.png,{n},1" for n, scan in enumerate(scans)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,patient,mass", *rows]))
    for row in rows:
        cv2.imwrite(str(tmp_path / row.split(",")[0]), np.eye(8, dtype=np.uint8))
    list(sources.IMAGES["table"](folder=tmp_path, labels=("mass",), side=8).items())
    assert "1 subjects in names are of several patients, such as " in caplog.text


def test_two_patients_of_one_patient_id_are_named(tmp_path, caplog):
    for n, id in enumerate(["7", "8", "7 ", ""]):
        write(tmp_path / f"P{n}/T1", PatientID=id)
    files = scan_files.in_folders(tmp_path, sequences=("T1",), files={"T1": "T1"})
    scan_files.warn_of_headers(files, ["P0", "P1", "P0", "P3"])
    scan_files.warn_of_headers(files[::2], ["P0", "P2"])  # Anonymous: all have one.
    assert not caplog.records
    scan_files.warn_of_headers(files, ["P0", "P1", "P2", "P3"])
    assert (
        "1 PatientIDs of DICOM files are of several patients, such as '7' of 'P0', 'P2'"
        in caplog.text
    )
    caplog.clear()
    scan_files.warn_of_headers(files, ["P0", "P0", "P0", "P3"])
    assert (
        "1 patients have several PatientIDs of DICOM files, such as 'P0' of '7', '8'"
        in caplog.text
    )


def test_a_patient_may_have_a_series_beside_a_nifti_file(tmp_path):
    shape = (12, 16, 14)
    tissue = np.rint(brain(shape))
    spacing, origin = (0.8, 1.2, 3.0), (30, -20, 7)  # As `write` has it, in RAS.
    write(tmp_path / "P1/T1", tissue.T.astype(np.uint16))
    affine = affine_of("LPS", spacing, origin=origin)
    save(tmp_path / "P1/T2.nii.gz", tissue, affine)
    files = {"T1": "T1", "T2": "T2.nii.gz"}
    (found,) = scan_files.in_folders(tmp_path, sequences=("T1", "T2"), files=files)
    case = scan.read_scan(found.sequences, regions={})
    np.testing.assert_allclose(case.image[..., 0], case.image[..., 1], atol=1e-5)
    assert case.original.shape == shape
    np.testing.assert_allclose(case.original.affine, affine, atol=1e-6)


TRACER = {
    "RadiopharmaceuticalStartTime": "101500",
    "RadionuclideTotalDose": "370000000",
    "RadionuclideHalfLife": "6588",
}
PET = {
    "Modality": "PT",
    "Units": "BQML",
    "DecayCorrection": "START",
    "CorrectedImage": ["DECY", "ATTN", "DECAY"],
    "PatientWeight": "74",
    "SeriesDate": "20240314",
    "SeriesTime": "111500",
    "AcquisitionDate": "20240314",
    "AcquisitionTime": "111500",
}


def pet(folder, tracer=(), **fields):
    """A series of PET, whose header is the given one but for these elements."""
    item = pydicom.Dataset()
    for name, value in (TRACER | dict(tracer)).items():
        if value is not None:
            setattr(item, name, value)
    fields = PET | {"RadiopharmaceuticalInformationSequence": [item]} | fields
    fields = {name: value for name, value in fields.items() if value is not None}
    return write(folder, **fields)


def suv(folder):
    options = {"units": "suv", "foreground": "none", "margin": 1000.0}
    return scan.read_scan({"PET": SequenceFile(folder)}, regions={}, **options).image


# An hour after 370 MBq of fluorine-18 (half-life 109.8 min), 253.36 MBq are left: of 74 kg
# 1 Bq/ml is 74,000 g / 253.36 MBq.
LATER = 74_000 / (370e6 * 0.5 ** (3600 / 6588))


@pytest.mark.parametrize(
    ("tracer", "fields", "expected"),
    [
        ({}, {}, LATER),
        ({}, {"DecayCorrection": "ADMIN"}, 74_000 / 370e6),
        ({}, {"DecayCorrection": "ADMIN", "PatientWeight": "37"}, 37_000 / 370e6),
        # A series that was made later begins at its first acquisition.
        ({}, {"SeriesTime": "170000"}, LATER),
        # The second bed's acquisition is corrected to the scan's begin, too.
        ({}, {"AcquisitionTime": "111800"}, LATER),
        # Injected before midnight.
        (
            {"RadiopharmaceuticalStartTime": "233000"},
            {"SeriesTime": "003000", "AcquisitionTime": "003000.00"},
            LATER,
        ),
        # Zirconium-89, a day before the scan.
        (
            {
                "RadiopharmaceuticalStartDateTime": "20240313111500.0+0100",
                "RadionuclideHalfLife": "282276",
            },
            {},
            74_000 / (370e6 * 0.5 ** (86400 / 282276)),
        ),
        ({}, {"Units": "GML", "PatientWeight": None}, 1),
    ],
)
def test_pet_becomes_suv_by_dose_decay_and_weight(tmp_path, tracer, fields, expected):
    folder = pet(tmp_path / "pet", tracer, RescaleSlope="0.5", **fields)
    stored = scan.read_scan(
        {"PET": SequenceFile(folder)}, regions={}, units="own", foreground="none"
    ).image
    assert stored.max() == VOXELS.max() / 2
    if fields.get("Units") == "GML":
        with pytest.raises(InputError, match="isn't SUV"):  # Values of 1,000 g/ml.
            suv(folder)
    else:
        np.testing.assert_allclose(suv(folder), stored * expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("tracer", "fields", "words"),
    [
        *(({name: None}, {}, f"has no {name}") for name in TRACER),
        *(
            ({}, {name: None}, f"has no {name}")
            for name in (*PET, "RadiopharmaceuticalInformationSequence")
            if name != "Modality"
        ),
        ({}, {"Units": "CNTS"}, "its Units are CNTS, not BQML"),
        (
            {},
            {"Units": "GML", "SUVType": "LBM"},
            "its Units are GML of the SUVType LBM",
        ),
        ({}, {"CorrectedImage": ["ATTN"]}, "its CorrectedImage has no DECAY"),
        ({}, {"DecayCorrection": "NONE"}, "its DecayCorrection is NONE"),
        ({}, {"PatientWeight": "0"}, "its PatientWeight is 0"),
        ({"RadionuclideHalfLife": "282276"}, {}, "has no Radioph.*StartDateTime"),
        (
            {"RadiopharmaceuticalStartDateTime": "20190314101500"},
            {},
            "was injected at 2019-03-14 10:15:00, and its scan began at 2024-03-14",
        ),
        ({}, {"SeriesTime": "soon"}, "can't be read"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_pet_that_cannot_be_suv_is_refused_by_its_element(
    tmp_path, tracer, fields, words
):
    folder = pet(tmp_path / "pet", tracer, **fields)
    with pytest.raises(InputError, match=f"^{folder}: {words}.*data.units='z_scores'"):
        suv(folder)


def test_slices_of_two_doses_are_refused(tmp_path):
    folder = pet(tmp_path / "pet")
    change(folder / "002.dcm", PatientWeight="75")
    with pytest.raises(InputError, match="its slices differ in their PatientWeight"):
        suv(folder)


def test_uptake_on_a_coarser_grid_is_a_mean_and_no_sum(tmp_path):
    """Of a ball inside: total uptake, SUV times volume, stays what it is."""
    hot = np.full((24, 26, 28), 1.0) + 9 * ball((24, 26, 28), 0.2)
    path = save(tmp_path / "pet.nii.gz", hot, affine_of(spacing=(1, 1, 1)))
    options = {"regions": {}, "units": "suv", "foreground": "none", "margin": 1000.0}
    file = {"PET": SequenceFile(path)}
    fine = scan.read_scan(file, **options).image
    coarse = scan.read_scan(file, spacing=(2.0, 2.0, 2.0), **options).image
    assert coarse.shape == (14, 13, 12, 1)
    inside = (slice(2, -2),) * 3
    assert coarse.max() <= 10 and coarse[inside].min() == pytest.approx(1, abs=1e-3)
    assert 8 * (coarse - 1).sum() == pytest.approx((fine - 1).sum(), rel=0.02)


def test_a_table_of_series_or_films_is_compared_with_their_patient_ids(
    tmp_path, caplog
):
    """Four rows: two of one PatientID have two patients, two of one patient two ids."""
    rows = zip(["7", "7", "8", "9"], ["P0", "P1", "P2", "P2"], strict=True)
    lines = ["image,patient,mass"]
    for n, (id, patient) in enumerate(rows):
        write(tmp_path / f"{n}", np.pad(VOXELS, 6), PatientID=id)
        lines.append(f"{n},{patient},{n % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    films = [f"{line[0]}/006.dcm{line[1:]}" for line in lines[1:]]
    (tmp_path / "films.csv").write_text("\n".join([lines[0], *films]))
    how = {"folder": tmp_path, "labels": ("mass",)}
    of_volumes = {"sequences": ("T1",), "files": {}, "units": (), "windows": ()}
    of_volumes |= {"shape": (17, 19, 18), "foreground": "none", "mask": ""}
    of_volumes |= {"regions": (), "values": {}, "background": (0,)}
    for source in (
        sources.IMAGES["table"](**how, table="films.csv", side=8),
        sources.IMAGES["volumes"](**how, **of_volumes),
    ):
        caplog.clear()
        assert [item.reason for item in source.items()] == [""] * 4
        shared, several = caplog.messages
        assert "of several patients, such as '7' of 'P0', 'P1'" in shared
        assert "several PatientIDs of DICOM files, such as 'P2' of '8', '9'" in several

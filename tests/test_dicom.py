"""Every DICOM is written here by pydicom and expected by the standard's formulas."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from medjax.data import dicom, image_files
from medjax.data.dicom import Film
from medjax.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(37) * 3, np.arange(53) * 2).astype(np.uint8)
STORED = RNG.integers(0, 4096, (11, 14), dtype=np.uint16)
STORED[0, :2] = 0, 4095


def read(data: bytes) -> Film:
    return dicom.decode(io.BytesIO(data))


def refusal(data: bytes) -> str:
    """Returns the error's text after checking that it is one line with a remedy."""
    with pytest.raises(InputError) as caught:
        read(data)
    text = str(caught.value)
    assert "\n" not in text and "; " in text
    return text


def write(stored: np.ndarray, *, syntax="1.2.840.10008.1.2.1", data=None, **elements):
    """Returns the bytes of a DICOM with these stored values and elements."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
        "1.2.840.10008.5.1.4.1.1.1.1"
    )
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    bits = 8 * stored.itemsize
    values = {
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        **elements,
    }
    values.setdefault("HighBit", values["BitsStored"] - 1)
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes() if data is None else data
    dataset["PixelData"].VR = "OB" if bits == 8 or data is not None else "OW"
    if data is not None:
        dataset["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The odd files are odd on purpose.
        dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def lut(descriptor, table) -> list[pydicom.Dataset]:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if descriptor[1] < 0 else "US", descriptor)
    item.add_new("LUTData", "OW", np.asarray(table, "<u2").tobytes())
    return [item]


def jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG")
    return out.getvalue()


JPEG = jpeg(SMOOTH)
FILES = {
    "window": write(STORED, BitsStored=12, WindowCenter=2000, WindowWidth=500),
    "odd": write(GREY),
    "implicit": write(STORED, syntax="1.2.840.10008.1.2"),
    "deflated": write(STORED, syntax="1.2.840.10008.1.2.1.99"),
    "jpeg": write(SMOOTH, syntax="1.2.840.10008.1.2.4.50", data=encapsulate([JPEG])),
}


def check_cut(kind, size):
    """Says if the first bytes of a file are still read, and as the whole file is."""
    with warnings.catch_warnings():
        # pydicom only warns of some truncations: as errors they'd hide a bad read.
        warnings.simplefilter("ignore")
        try:
            pixels = read(FILES[kind][:size]).pixels
        except InputError as error:
            assert "\n" not in str(error)
            return False
    np.testing.assert_array_equal(pixels, read(FILES[kind]).pixels)
    return True


@pytest.mark.parametrize("kind", FILES)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_cut_file_is_an_error_or_the_same_picture(kind, data):
    check_cut(kind, data.draw(st.integers(0, len(FILES[kind]) - 1)))


@pytest.mark.parametrize("kind", FILES)
def test_a_cut_near_the_end_is_an_error_or_the_same_picture(kind):
    same = [check_cut(kind, len(FILES[kind]) - n) for n in range(1, 40)]
    assert sum(same) <= 8  # A delimiter or a padding byte at most.


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_dicom_without_a_window_spans_the_bits_stored(bits):
    stored = (STORED >> 4) & (2**bits - 1)
    film = read(write(stored, BitsStored=bits))
    assert film.pixels.dtype == np.float32
    np.testing.assert_allclose(film.pixels, stored / (2**bits - 1), atol=1e-7)


def test_monochrome1_is_the_negative():
    window = {"BitsStored": 12, "WindowCenter": 1500, "WindowWidth": 900}
    positive = read(write(STORED, **window)).pixels
    negative = read(
        write(STORED, PhotometricInterpretation="MONOCHROME1", **window),
    ).pixels
    assert positive.std() > 0.1
    np.testing.assert_allclose(negative, 1 - positive, atol=1e-7)


def test_signed_values_start_below_zero():
    stored = STORED.astype(np.int16) - 2048
    film = read(write(stored, BitsStored=12))
    np.testing.assert_allclose(film.pixels, STORED / 4095, atol=1e-7)
    film = read(write(stored, BitsStored=12, WindowCenter=0, WindowWidth=101))
    expected = np.clip((stored + 0.5) / 100 + 0.5, 0, 1)
    np.testing.assert_allclose(film.pixels, expected, atol=1e-7)


def test_bits_above_those_stored_are_ignored():
    dirty = STORED | 0xA000
    film = read(write(dirty, BitsStored=12))
    np.testing.assert_allclose(film.pixels, STORED / 4095, atol=1e-7)
    signed = (STORED | 0x7000).view(np.int16)
    film = read(write(signed, BitsStored=12))
    expected = (np.where(STORED < 2048, STORED, STORED - 4096.0) + 2048) / 4095
    np.testing.assert_allclose(film.pixels, expected, atol=1e-7)


def by_the_standard(x, center, width, function):
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 with y from 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (x - center) / width))
    if function == "LINEAR":
        below = x <= center - 0.5 - (width - 1) / 2
        above = x > center - 0.5 + (width - 1) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            between = (x - (center - 0.5)) / (width - 1) + 0.5
    else:
        below = x <= center - width / 2
        above = x > center + width / 2
        between = (x - center) / width + 0.5
    return np.where(below, 0.0, np.where(above, 1.0, between))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("center, width", [(1500, 900), (1024.5, 1), (70, 4000.25)])
@pytest.mark.parametrize("slope, intercept", [(1, 0), (0.5, -1024), (-2, 4095)])
def test_the_window_follows_the_standard(function, center, width, slope, intercept):
    data = write(
        STORED,
        BitsStored=12,
        VOILUTFunction=function,
        WindowCenter=[center, 7],
        WindowWidth=[width, 7],
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    x = STORED * float(slope) + intercept
    pixels = read(data).pixels
    with np.errstate(over="ignore"):
        expected = by_the_standard(x, center, width, function or "LINEAR")
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    if slope > 0:  # pydicom turns its own output range round where it is not.
        dataset = pydicom.dcmread(io.BytesIO(data))
        with np.errstate(over="ignore"):
            theirs = apply_windowing(apply_modality_lut(STORED, dataset), dataset)
        low, high = intercept, 4095 * slope + intercept
        np.testing.assert_allclose(pixels, (theirs - low) / (high - low), atol=1e-6)


def test_without_a_window_a_falling_rescale_turns_the_film():
    data = write(STORED, BitsStored=12, RescaleSlope=-1, RescaleIntercept=4095)
    expected = 1 - STORED / 4095
    np.testing.assert_allclose(read(data).pixels, expected, atol=1e-7)
    rising = write(STORED, BitsStored=12, RescaleSlope=0.25, RescaleIntercept=-1000)
    np.testing.assert_allclose(read(rising).pixels, STORED / 4095, atol=1e-7)


def test_lookup_tables_are_followed():
    table = np.round(1023 * (np.arange(3000) / 2999) ** 2)
    expected = table[np.clip(STORED.astype(int) - 500, 0, 2999)] / 1023
    for sequence in ("VOILUTSequence", "ModalityLUTSequence"):
        data = write(STORED, BitsStored=12, **{sequence: lut([3000, 500, 10], table)})
        np.testing.assert_allclose(read(data).pixels, expected, atol=1e-7)
    negative = write(
        STORED.astype(np.int16) - 2048,
        BitsStored=12,
        VOILUTSequence=lut([3000, -1548, 10], table),
    )
    np.testing.assert_allclose(read(negative).pixels, expected, atol=1e-7)
    short = write(STORED, BitsStored=12, VOILUTSequence=lut([3000, 0, 10], table[:9]))
    assert "LUT" in refusal(short)


BIG = "1.2.840.10008.1.2.2"


def test_big_endian_words_are_read_as_such():
    window = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 3000}
    table = np.arange(4096)[::-1]
    for elements in (window, {"VOILUTSequence": lut([4096, 0, 12], table)}):
        little = read(write(STORED, **elements)).pixels
        if "VOILUTSequence" in elements:
            swapped = table.astype(">u2").tobytes()
            elements["VOILUTSequence"][0]["LUTData"].value = swapped
        big = write(STORED.astype(">u2"), syntax=BIG, **elements)
        np.testing.assert_array_equal(read(big).pixels, little)


def test_values_that_need_more_bits_than_the_header_says_dont_wrap():
    deep = STORED * np.uint16(4)  # 14 bits.
    out = io.BytesIO()
    Image.fromarray(deep).save(out, "JPEG2000", irreversible=False, no_jp2=True)
    about = {"syntax": "1.2.840.10008.1.2.4.90", "data": encapsulate([out.getvalue()])}
    film = read(write(deep, BitsStored=12, **about))
    np.testing.assert_allclose(film.pixels, deep / (2**14 - 1), atol=1e-7)
    window = {"WindowCenter": 9000, "WindowWidth": 6000}
    film = read(write(deep, BitsStored=12, **window, **about))
    expected = by_the_standard(deep.astype(float), 9000, 6000, "LINEAR")
    np.testing.assert_allclose(film.pixels, expected, atol=1e-6)


@pytest.mark.parametrize("said", [8, 10, 12, 16])
def test_a_lut_has_the_bits_that_its_entries_use(said):
    table = np.round(4095 * (np.arange(4096) / 4095) ** 1.2)
    for sequence in ("VOILUTSequence", "ModalityLUTSequence"):
        data = write(STORED, BitsStored=12, **{sequence: lut([4096, 0, said], table)})
        np.testing.assert_allclose(read(data).pixels, table[STORED] / 4095, atol=1e-7)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", BIG])
def test_a_word_may_hold_two_entries_of_8_bits(syntax):
    table = RNG.integers(0, 256, 4095, dtype=np.uint8)
    words = np.append(table, np.uint8(0)).view("<u2")
    kind = ">u2" if syntax == BIG else "<u2"
    for sequence in ("VOILUTSequence", "ModalityLUTSequence"):
        packed = lut([4095, 0, 8], [])
        packed[0]["LUTData"].value = words.astype(kind).tobytes()
        stored = STORED.astype(kind)
        elements = {"syntax": syntax, sequence: packed}
        film = read(write(stored, BitsStored=12, **elements))
        expected = table[np.minimum(STORED, 4094)] / 255
        np.testing.assert_allclose(film.pixels, expected, atol=1e-7)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black(kind):
    about = {"BitsStored": 12, "PhotometricInterpretation": kind}
    plain = read(write(STORED, **about)).pixels
    for ends in ((4000, None), (0, None), (3900, 4095), (500, 100), (5000, 3900)):
        limits = {"PixelPaddingValue": ends[0], "PixelPaddingRangeLimit": ends[1]}
        low, high = sorted((ends[0], ends[0] if ends[1] is None else ends[1]))
        inside = (STORED >= low) & (STORED <= high)
        pixels = read(write(STORED, **limits, **about)).pixels
        np.testing.assert_array_equal(pixels, np.where(inside, 0, plain))


def test_negative_numbers_may_be_held_as_unsigned_ones():
    """-1024 as 64512: the type depends on what the pixels are, and writers differ."""
    table = np.round(4095 * (np.arange(4096) / 4095) ** 1.5)
    elements = {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}
    pixels = read(
        write(STORED, VOILUTSequence=lut([4096, 64512, 12], table), **elements)
    ).pixels
    np.testing.assert_allclose(pixels, table[STORED] / 4095, atol=1e-6)
    signed = STORED.astype(np.int16) - 2000
    window = {"WindowCenter": 0, "WindowWidth": 4001}
    dataset = pydicom.dcmread(io.BytesIO(write(signed, **window)))
    dataset.add_new("PixelPaddingValue", "US", 63536)
    out = io.BytesIO()
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(out)
    expected = np.where(
        signed == -2000, 0, 1 - np.clip((signed + 0.5) / 4e3 + 0.5, 0, 1)
    )
    np.testing.assert_allclose(read(out.getvalue()).pixels, expected, atol=1e-6)


def test_pydicoms_own_files_are_shown_as_pydicom_shows_them():
    folder = Path(pydicom.__file__).parent / "data/test_files"
    compared, refused = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pixels = image_files.read(path).pixels
            except InputError as error:
                refused.append(f"{path.name}: {error}")
                if "has no Rows" in refused[-1]:
                    assert "Rows" not in pydicom.dcmread(path, force=True), path.name
                continue
            file = pydicom.dcmread(path, force=True)
            theirs = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file)
        low = -(1 << file.BitsStored - 1) if file.PixelRepresentation else 0
        ends = np.array([low, low + (1 << file.BitsStored) - 1], float)
        low, high = ends * file.get("RescaleSlope", 1) + file.get("RescaleIntercept", 0)
        expected = np.clip((theirs - low) / (high - low), 0, 1)
        if file.PhotometricInterpretation == "MONOCHROME1":
            expected = 1 - expected
        if "PixelPaddingValue" in file:
            expected[file.pixel_array == file.PixelPaddingValue] = 0
        np.testing.assert_allclose(pixels, expected, atol=1e-6, err_msg=path.name)
        compared.append(path.name)
    assert len(compared) >= 12, refused
    reasons = (
        "frames|not a grey|PixelData|install|not a PNG|bits|decoded|holds no|no Rows"
    )
    assert not [line for line in refused if not re.search(reasons, line)]


def test_a_film_without_preamble_or_meta_information_is_read(tmp_path):
    for name in ("window", "implicit"):
        whole = FILES[name]
        expected = read(whole).pixels
        meta = 132 + 12 + int.from_bytes(whole[140:144], "little")
        for start in (132, meta):
            (tmp_path / "film").write_bytes(whole[start:])
            film = image_files.read(tmp_path / "film")
            np.testing.assert_array_equal(film.pixels, expected)


def test_a_decoder_that_cant_do_a_file_is_no_damage():
    folder = Path(pydicom.__file__).parent / "data/test_files"
    text = refusal((folder / "JPEG-lossy.dcm").read_bytes())
    assert "12-bit" in text and "pip install" in text and "again" not in text


def test_spacing_is_x_then_y():
    film = read(write(STORED, ImagerPixelSpacing=[0.2, 0.1]))
    assert film.spacing == (0.1, 0.2)
    both = write(STORED, ImagerPixelSpacing=[0.2, 0.1], PixelSpacing=[0.15, 0.14])
    assert read(both).spacing == (0.14, 0.15)
    for value in (None, [0, 0], [-1, 1]):
        film = read(write(STORED, PixelSpacing=value))
        assert np.isnan(film.spacing).all()


def test_compressed_dicom_is_read():
    film = read(FILES["jpeg"])
    with Image.open(io.BytesIO(JPEG)) as image:
        np.testing.assert_allclose(film.pixels, np.asarray(image) / 255, atol=1e-7)
    dataset = pydicom.dcmread(io.BytesIO(write(STORED, BitsStored=12)))
    dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    out = io.BytesIO()
    dataset.save_as(out)
    film = read(out.getvalue())
    np.testing.assert_allclose(film.pixels, STORED / 4095, atol=1e-7)


def test_a_missing_decoder_is_named(monkeypatch):
    lossless = "1.2.840.10008.1.2.4.70"
    decoder = pydicom.pixels.get_decoder(lossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",)})
    text = refusal(write(GREY, syntax=lossless, data=encapsulate([b"ab"])))
    assert "JPEG Lossless" in text
    assert "gdcm>=3.0.10" in text and "pip install" in text


@pytest.mark.parametrize(
    "elements, what",
    [
        ({"NumberOfFrames": 2}, "holds 2 frames"),
        ({"Rows": 0}, "14 x 0 pixels"),
        ({"Columns": 65535, "Rows": 65535}, "200 megapixels"),
        ({"Rows": 12}, "less than expected"),
        (
            {"Rows": None},
            "has no Rows, so it is no image (Digital X-Ray Image",
        ),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"BitsStored": 17}, "17 of 16 bits"),
        ({"HighBit": None}, "has no HighBit; fetch or export"),
        ({"PixelRepresentation": None}, "has no PixelRepresentation"),
        ({"BitsStored": 12, "HighBit": 15}, "up to bit 15"),
        ({"WindowCenter": 10, "WindowWidth": 0.5}, "WindowWidth of 0.5"),
        ({"WindowCenter": 10, "WindowWidth": 0}, "WindowWidth of 0"),
        ({"WindowCenter": 10, "WindowWidth": -5}, "WindowWidth of -5"),
        ({"WindowCenter": "NaN", "WindowWidth": 5}, "WindowCenter of"),
        ({"WindowCenter": 10, "WindowWidth": "inf"}, "WindowWidth of"),
        (
            {"WindowCenter": 1, "WindowWidth": 5, "VOILUTFunction": "CUBIC"},
            "'CUBIC'",
        ),
        (
            {"WindowCenter": 1, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
            "WindowWidth of 0",
        ),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "RescaleSlope of 0"),
        ({"RescaleSlope": "1e307", "RescaleIntercept": 0}, "overflow"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_odd_dicom_is_refused_with_its_reason(elements, what):
    assert what in refusal(write(STORED, **elements))


def test_a_dicom_without_pixels_is_refused():
    dataset = pydicom.dcmread(io.BytesIO(write(STORED)))
    del dataset.PixelData
    out = io.BytesIO()
    dataset.save_as(out)
    assert "PixelData" in refusal(out.getvalue())

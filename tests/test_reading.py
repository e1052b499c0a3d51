"""Every picture is written here by another library and expected by its formula."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing

from medjax.data import reading
from medjax.errors import InputError

NIH = Path(__file__).parents[2] / "shared/data/nih-sample/images"
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(37) * 3, np.arange(53) * 2).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
LUMINANCE = np.array([0.299, 0.587, 0.114])

quick = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def encode(image, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(out, kind, **options)
    return out.getvalue()


def read_bytes(folder, data: bytes, name="film") -> reading.Film:
    path = folder / name
    path.write_bytes(data)
    return reading.read(path)


def refusal(folder, data: bytes) -> str:
    """Returns the error's text after checking that it is one line with the name."""
    with pytest.raises(InputError) as caught:
        read_bytes(folder, data)
    text = str(caught.value)
    assert text.startswith(f"{folder / 'film'}: ")
    assert "\n" not in text
    assert "; " in text  # The remedy.
    return text


def png(width, height, depth, kind, rows: bytes, interlace=0) -> bytes:
    """Writes a PNG of any depth and kind, which neither PIL nor cv2 does."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body))
            + name
            + body
            + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def rows_of(array: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in array)


def dicom(stored: np.ndarray, *, syntax="1.2.840.10008.1.2.1", data=None, **elements):
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


STORED = RNG.integers(0, 4096, (11, 14), dtype=np.uint16)
STORED[0, :2] = 0, 4095


# PNG and JPEG


def test_grey_png_is_scaled_by_its_depth_and_not_by_its_maximum(tmp_path):
    dark = GREY // 4
    film = read_bytes(tmp_path, encode(dark))
    assert film.pixels.dtype == np.float32
    np.testing.assert_array_equal(film.pixels, (dark / 255).astype(np.float32))
    assert np.isnan(film.spacing).all()
    deep = RNG.integers(0, 4096, (37, 53), dtype=np.uint16)
    film = read_bytes(tmp_path, encode(deep))
    np.testing.assert_array_equal(film.pixels, (deep / 65535).astype(np.float32))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_png_of_few_bits_spans_black_to_white(tmp_path, depth):
    values = RNG.integers(0, 2**depth, (7, 9))
    shifts = np.arange(depth - 1, -1, -1)
    bits = ((values[..., None] >> shifts) & 1).astype(np.uint8).reshape(7, -1)
    data = png(9, 7, depth, 0, rows_of(np.packbits(bits, axis=1)))
    expected = values / (2**depth - 1)
    np.testing.assert_allclose(
        read_bytes(tmp_path, data).pixels, expected, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_every_kind_of_png_becomes_luminance_without_its_alpha(tmp_path, mode):
    image = Image.fromarray(COLOUR)
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(GREY))
    seen = np.asarray(image.convert("RGB")).astype(np.float64)
    film = read_bytes(tmp_path, encode(image))
    np.testing.assert_allclose(film.pixels, seen @ LUMINANCE / 255, atol=2e-7)


@pytest.mark.parametrize("kind, channels", [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_of_colour_are_kept(tmp_path, kind, channels):
    deep = RNG.integers(0, 65536, (7, 9, channels), dtype=np.uint16)
    seen = deep[..., :3] @ LUMINANCE if channels > 2 else deep[..., 0]
    film = read_bytes(tmp_path, png(9, 7, 16, kind, rows_of(deep.astype(">u2"))))
    np.testing.assert_allclose(film.pixels, seen / 65535, atol=2e-7)


def test_white_in_colour_is_exactly_white_or_below(tmp_path):
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    pixels = read_bytes(tmp_path, encode(grey)).pixels
    assert pixels.max() <= 1
    np.testing.assert_allclose(pixels[0], np.arange(256) / 255, atol=2e-7)


def test_an_interlaced_png_is_read(tmp_path):
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
    passes += [(0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(rows_of(GREY[y::dy, x::dx]) for y, x, dy, dx in passes)
    film = read_bytes(tmp_path, png(53, 37, 8, 0, rows, interlace=1))
    np.testing.assert_array_equal(film.pixels, (GREY / 255).astype(np.float32))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100}])
def test_jpeg_agrees_with_pillow(tmp_path, options):
    grey = encode(SMOOTH, "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(grey))) / 255
    np.testing.assert_allclose(
        read_bytes(tmp_path, grey).pixels, expected, atol=1.1 / 255
    )
    colour = encode(np.stack([SMOOTH, SMOOTH // 2, 255 - SMOOTH], 2), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(colour))) @ LUMINANCE / 255
    np.testing.assert_allclose(
        read_bytes(tmp_path, colour).pixels, expected, atol=2.1 / 255
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(SMOOTH, "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels = read_bytes(tmp_path, data).pixels
    np.testing.assert_allclose(pixels, np.asarray(upright) / 255, atol=1.1 / 255)


def test_the_first_bytes_say_the_format_and_not_the_name(tmp_path):
    expected = read_bytes(tmp_path, encode(GREY), "film.png").pixels
    np.testing.assert_array_equal(
        read_bytes(tmp_path, encode(GREY), "film.dcm").pixels, expected
    )
    film = read_bytes(tmp_path, dicom(GREY), "film.jpg")
    np.testing.assert_array_equal(film.pixels, expected)


FILES = {
    "png": encode(GREY),
    "png16": encode(SMOOTH.astype(np.uint16) * 257),
    "jpeg": encode(SMOOTH, "JPEG"),
    "progressive": encode(SMOOTH, "JPEG", progressive=True),
    "dicom": dicom(STORED, BitsStored=12, WindowCenter=2000, WindowWidth=500),
    "dicom-odd": dicom(GREY),
    "dicom-implicit": dicom(STORED, syntax="1.2.840.10008.1.2"),
    "dicom-deflated": dicom(STORED, syntax="1.2.840.10008.1.2.1.99"),
    "dicom-jpeg": dicom(
        SMOOTH,
        syntax="1.2.840.10008.1.2.4.50",
        data=encapsulate([encode(SMOOTH, "JPEG")]),
    ),
}


def check_damaged(folder, kind, data):
    with warnings.catch_warnings():
        # pydicom only warns of some truncations: as errors they'd hide a bad read.
        warnings.simplefilter("ignore")
        whole = read_bytes(folder, FILES[kind])
        try:
            film = read_bytes(folder, data)
        except InputError as error:
            assert str(error).startswith(f"{folder / 'film'}: ")
            assert "\n" not in str(error)
            return False
    np.testing.assert_array_equal(film.pixels, whole.pixels)
    return True


@pytest.mark.parametrize("kind", FILES)
@quick
@given(st.data())
def test_a_cut_file_is_an_error_or_the_same_picture(tmp_path, kind, data):
    cut = data.draw(st.integers(0, len(FILES[kind]) - 1))
    check_damaged(tmp_path, kind, FILES[kind][:cut])


@pytest.mark.parametrize("kind", FILES)
def test_a_cut_near_the_end_is_an_error_or_the_same_picture(tmp_path, kind):
    size = len(FILES[kind])
    same = [check_damaged(tmp_path, kind, FILES[kind][:-n]) for n in range(1, 40)]
    assert sum(same) <= 8, size  # A delimiter or a padding byte at most.


@quick
@given(st.integers(0, len(FILES["png"]) - 1), st.integers(1, 255))
@example(len(FILES["png"]) // 2, 1)
def test_a_changed_byte_of_a_png_is_an_error(tmp_path, at, flip):
    data = bytearray(FILES["png"])
    data[at] ^= flip
    refusal(tmp_path, bytes(data))


@pytest.mark.parametrize("kind", ["jpeg", "progressive"])
def test_a_jpeg_padded_with_zeros_after_a_cut_is_an_error(tmp_path, kind):
    data = FILES[kind]
    for cut in range(len(data) // 3, len(data) - 2, 7):
        text = refusal(tmp_path, data[:cut] + bytes(len(data) - cut))
        assert "truncated" in text


def test_bytes_after_the_end_change_nothing(tmp_path):
    for kind in ("png", "jpeg", "progressive"):
        assert check_damaged(tmp_path, kind, FILES[kind] + b"trailer" * 9)


def test_a_png_with_too_little_data_and_right_checksums_is_an_error(tmp_path):
    data = png(53, 37, 8, 0, rows_of(GREY)[:-60])
    assert "damaged" in refusal(tmp_path, data)


@pytest.mark.parametrize(
    "data, what",
    [
        (b"", "empty"),
        (b"Image Index,Finding Labels\n" * 20, "not a PNG, JPEG or DICOM"),
        (encode(GREY, "GIF"), "not a PNG, JPEG or DICOM"),
        (encode(GREY, "TIFF"), "not a PNG, JPEG or DICOM"),
        (encode(GREY, "BMP"), "not a PNG, JPEG or DICOM"),
        (dicom(GREY)[128:], "not a PNG, JPEG or DICOM"),
        (encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), "4 channels"),
        (png(0, 7, 8, 0, b""), "0 x 7 pixels"),
        (png(7, 0, 8, 0, b""), "7 x 0 pixels"),
        (png(20_001, 10_000, 8, 0, b""), "200 megapixels"),
        (png(2**31 - 1, 2**31 - 1, 8, 0, b""), "200 megapixels"),
        (FILES["png"][:20], "truncated"),
    ],
)
def test_what_is_no_film_is_refused(tmp_path, data, what):
    assert what in refusal(tmp_path, data)


def test_a_jpeg_is_measured_before_it_is_decoded(tmp_path, monkeypatch):
    data = bytearray(FILES["jpeg"])
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    monkeypatch.setattr(reading.cv2, "imdecode", None)
    assert "200 megapixels" in refusal(tmp_path, bytes(data))
    data[at : at + 4] = struct.pack(">HH", 20_000, 0)
    assert "0 x 20000 pixels" in refusal(tmp_path, bytes(data))


def test_a_film_between_pillows_limit_and_ours_is_read_without_a_warning(tmp_path):
    width, height = 10_000, 9_500
    pixels = read_bytes(
        tmp_path, png(width, height, 1, 0, bytes(height * (1 + width // 8)))
    ).pixels
    assert pixels.shape == (height, width)


def test_a_path_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(InputError, match=f"^{path}: can't be read"):
            reading.read(path)

    def deny(path, mode):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(reading, "open", deny, raising=False)
    with pytest.raises(InputError, match="Permission denied"):
        reading.read(tmp_path / "locked.png")


def test_threads_read_what_one_thread_reads(tmp_path):
    paths = []
    for kind, data in FILES.items():
        paths.append(tmp_path / kind)
        paths[-1].write_bytes(data)
    alone = [reading.read(path).pixels for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: reading.read(p).pixels, paths * 8))
    for i, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[i % len(paths)])


@pytest.mark.skipif(not NIH.exists(), reason="the NIH sample is not here")
def test_real_films_agree_with_pillow():
    for path in reading.film_paths(NIH)[:20]:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("L")) / 255
        np.testing.assert_allclose(reading.read(path).pixels, expected, atol=1e-7)


# DICOM


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_dicom_without_a_window_spans_the_bits_stored(tmp_path, bits):
    stored = (STORED >> 4) & (2**bits - 1)
    film = read_bytes(tmp_path, dicom(stored, BitsStored=bits))
    assert film.pixels.dtype == np.float32
    np.testing.assert_allclose(film.pixels, stored / (2**bits - 1), atol=1e-7)


def test_monochrome1_is_the_negative(tmp_path):
    window = {"BitsStored": 12, "WindowCenter": 1500, "WindowWidth": 900}
    positive = read_bytes(tmp_path, dicom(STORED, **window)).pixels
    negative = read_bytes(
        tmp_path,
        dicom(STORED, PhotometricInterpretation="MONOCHROME1", **window),
    ).pixels
    assert positive.std() > 0.1
    np.testing.assert_allclose(negative, 1 - positive, atol=1e-7)


def test_signed_values_start_below_zero(tmp_path):
    stored = STORED.astype(np.int16) - 2048
    film = read_bytes(tmp_path, dicom(stored, BitsStored=12))
    np.testing.assert_allclose(film.pixels, STORED / 4095, atol=1e-7)
    film = read_bytes(
        tmp_path, dicom(stored, BitsStored=12, WindowCenter=0, WindowWidth=101)
    )
    expected = np.clip((stored + 0.5) / 100 + 0.5, 0, 1)
    np.testing.assert_allclose(film.pixels, expected, atol=1e-7)


def test_bits_above_those_stored_are_ignored(tmp_path):
    dirty = STORED | 0xA000
    film = read_bytes(tmp_path, dicom(dirty, BitsStored=12))
    np.testing.assert_allclose(film.pixels, STORED / 4095, atol=1e-7)
    signed = (STORED | 0x7000).view(np.int16)
    film = read_bytes(tmp_path, dicom(signed, BitsStored=12))
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
def test_the_window_follows_the_standard(
    tmp_path, function, center, width, slope, intercept
):
    data = dicom(
        STORED,
        BitsStored=12,
        VOILUTFunction=function,
        WindowCenter=[center, 7],
        WindowWidth=[width, 7],
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    x = STORED * float(slope) + intercept
    pixels = read_bytes(tmp_path, data).pixels
    with np.errstate(over="ignore"):
        expected = by_the_standard(x, center, width, function or "LINEAR")
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    if slope > 0:  # pydicom turns its own output range round where it is not.
        dataset = pydicom.dcmread(io.BytesIO(data))
        with np.errstate(over="ignore"):
            theirs = apply_windowing(apply_modality_lut(STORED, dataset), dataset)
        low, high = intercept, 4095 * slope + intercept
        np.testing.assert_allclose(pixels, (theirs - low) / (high - low), atol=1e-6)


def test_without_a_window_a_falling_rescale_turns_the_film(tmp_path):
    data = dicom(STORED, BitsStored=12, RescaleSlope=-1, RescaleIntercept=4095)
    expected = 1 - STORED / 4095
    np.testing.assert_allclose(read_bytes(tmp_path, data).pixels, expected, atol=1e-7)
    rising = dicom(STORED, BitsStored=12, RescaleSlope=0.25, RescaleIntercept=-1000)
    np.testing.assert_allclose(
        read_bytes(tmp_path, rising).pixels, STORED / 4095, atol=1e-7
    )


def test_lookup_tables_are_followed(tmp_path):
    table = np.round(1023 * (np.arange(3000) / 2999) ** 2)
    expected = table[np.clip(STORED.astype(int) - 500, 0, 2999)] / 1023
    for sequence in ("VOILUTSequence", "ModalityLUTSequence"):
        data = dicom(STORED, BitsStored=12, **{sequence: lut([3000, 500, 10], table)})
        np.testing.assert_allclose(
            read_bytes(tmp_path, data).pixels, expected, atol=1e-7
        )
    negative = dicom(
        STORED.astype(np.int16) - 2048,
        BitsStored=12,
        VOILUTSequence=lut([3000, -1548, 10], table),
    )
    np.testing.assert_allclose(
        read_bytes(tmp_path, negative).pixels, expected, atol=1e-7
    )
    short = dicom(STORED, BitsStored=12, VOILUTSequence=lut([3000, 0, 10], table[:9]))
    assert "LUT" in refusal(tmp_path, short)


def test_spacing_is_x_then_y(tmp_path):
    film = read_bytes(tmp_path, dicom(STORED, ImagerPixelSpacing=[0.2, 0.1]))
    assert film.spacing == (0.1, 0.2)
    both = dicom(STORED, ImagerPixelSpacing=[0.2, 0.1], PixelSpacing=[0.15, 0.14])
    assert read_bytes(tmp_path, both).spacing == (0.14, 0.15)
    for value in (None, [0, 0], [-1, 1]):
        film = read_bytes(tmp_path, dicom(STORED, PixelSpacing=value))
        assert np.isnan(film.spacing).all()


def test_compressed_dicom_is_read(tmp_path):
    film = read_bytes(tmp_path, FILES["dicom-jpeg"])
    with Image.open(io.BytesIO(encode(SMOOTH, "JPEG"))) as image:
        np.testing.assert_allclose(film.pixels, np.asarray(image) / 255, atol=1e-7)
    dataset = pydicom.dcmread(io.BytesIO(dicom(STORED, BitsStored=12)))
    dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    out = io.BytesIO()
    dataset.save_as(out)
    film = read_bytes(tmp_path, out.getvalue())
    np.testing.assert_allclose(film.pixels, STORED / 4095, atol=1e-7)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    lossless = "1.2.840.10008.1.2.4.70"
    decoder = pydicom.pixels.get_decoder(lossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",)})
    text = refusal(tmp_path, dicom(GREY, syntax=lossless, data=encapsulate([b"ab"])))
    assert "JPEG Lossless" in text
    assert "gdcm>=3.0.10" in text and "pip install" in text


@pytest.mark.parametrize(
    "elements, what",
    [
        ({"NumberOfFrames": 2}, "holds 2 frames"),
        ({"Rows": 0}, "14 x 0 pixels"),
        ({"Columns": 65535, "Rows": 65535}, "200 megapixels"),
        ({"Rows": 12}, "less than expected"),
        ({"Rows": None}, "Rows"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"BitsStored": 17}, "17 of 16 bits"),
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
def test_an_odd_dicom_is_refused_with_its_reason(tmp_path, elements, what):
    assert what in refusal(tmp_path, dicom(STORED, **elements))


def test_a_dicom_without_pixels_is_refused(tmp_path):
    dataset = pydicom.dcmread(io.BytesIO(dicom(STORED)))
    del dataset.PixelData
    out = io.BytesIO()
    dataset.save_as(out)
    assert "PixelData" in refusal(tmp_path, out.getvalue())


# Sizes and folders


def area_weights(size: int, side: int) -> np.ndarray:
    """Returns [side, size]: the share of each input pixel in each output pixel."""
    edges = np.arange(side + 1) * size / side
    low = np.maximum(edges[:-1, None], np.arange(size))
    high = np.minimum(edges[1:, None], np.arange(size) + 1)
    return np.maximum(high - low, 0) * side / size


def linear_weights(size: int, side: int) -> np.ndarray:
    at = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))


@pytest.mark.parametrize(
    "height, width, side", [(96, 96, 32), (37, 53, 16), (7, 53, 16), (7, 9, 20)]
)
def test_resize_averages_what_shrinks_and_interpolates_what_grows(height, width, side):
    pixels = RNG.random((height, width), np.float32)
    rows, columns = (
        (area_weights if size > side else linear_weights)(size, side)
        for size in (height, width)
    )
    expected = 255 * (rows @ pixels.astype(np.float64) @ columns.T)
    square = reading.resize(pixels, side)
    assert square.dtype == np.uint8
    assert np.abs(square - expected).max() < 0.501


def test_resize_does_not_alias_and_keeps_what_needs_no_resizing():
    stripes = np.tile(np.array([0, 1], np.float32), (64, 32))
    assert np.unique(reading.resize(stripes, 16)).tolist() == [128]
    assert np.unique(reading.resize(stripes[:4], 16)).tolist() == [128]
    square = GREY[:37, :37]
    np.testing.assert_array_equal(
        reading.resize((square / 255).astype(np.float32), 37), square
    )


def test_film_paths_finds_every_film_and_nothing_else(tmp_path):
    below = tmp_path / "b" / "series"
    below.mkdir(parents=True)
    films = ["a.png", "c.JPG", "b/x.jpeg", "b/series/1.2.840.7", "b/series/IM1"]
    films += ["b/y.dcm", "z.DICOM"]
    others = ["table.csv", "README", "1.2.3", "._a.png", "DICOMDIR", "scan.tiff"]
    for name in films:
        (tmp_path / name).write_bytes(FILES["dicom"])
    for name in others[:3] + others[5:]:
        (tmp_path / name).write_bytes(b"not a film")
    for name in others[3:5]:
        (tmp_path / name).write_bytes(FILES["dicom"])
    os.mkfifo(tmp_path / "pipe")
    (below / "up").symlink_to(tmp_path)
    assert reading.film_paths(tmp_path) == sorted(tmp_path / name for name in films)
    assert reading.film_paths(str(tmp_path / "table.csv")) == [tmp_path / "table.csv"]


def test_film_paths_follows_a_linked_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").write_bytes(FILES["png"])
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "images").symlink_to(tmp_path / "disk")
    found = reading.film_paths(tmp_path / "study")
    assert found == [tmp_path / "study" / "images" / "a.png"]


def test_film_paths_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="none: does not exist; "):
        reading.film_paths(tmp_path / "none")
    (tmp_path / "table.csv").touch()
    with pytest.raises(InputError, match=f"^{tmp_path}: holds no film; "):
        reading.film_paths(tmp_path)

"""Every picture is written here by another library and expected by its formula."""

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file

from medjax.data import dicom, image_files
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


def read_bytes(folder, data: bytes, name="film") -> image_files.Film:
    path = folder / name
    path.write_bytes(data)
    return image_files.read(path, 1)


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


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1"])
def test_three_channels_keep_colour_and_repeat_grey(tmp_path, mode):
    image = Image.fromarray(COLOUR)
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    seen = np.asarray(image.convert("RGB"))
    (tmp_path / "film").write_bytes(encode(image))
    pixels = image_files.read(tmp_path / "film", 3).pixels
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, (seen / 255).astype(np.float32))


def test_a_jpeg_in_colour_and_a_grey_dicom_have_three_channels_if_asked(tmp_path):
    smooth = np.stack([SMOOTH, SMOOTH // 2, 255 - SMOOTH], 2)
    data = encode(smooth, "JPEG", quality=95)
    (tmp_path / "film").write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data))) / 255
    pixels = image_files.read(tmp_path / "film", 3).pixels
    np.testing.assert_allclose(pixels, expected, atol=2.1 / 255)
    grey = read_bytes(tmp_path, DICOM).pixels
    film = image_files.read(tmp_path / "film", 3)
    np.testing.assert_array_equal(film.pixels, np.stack([grey] * 3, axis=2))
    assert film.spacing == (0.661468, 0.661468)


def test_an_animated_png_is_refused_and_one_of_one_frame_read(tmp_path):
    frames = [Image.fromarray(RNG.integers(0, 256, (9, 7), dtype=np.uint8))] * 2
    frames[1] = frames[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    path = tmp_path / "a.png"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="a.png: is animated; export each frame"):
        image_files.read(path)
    frames[0].save(path, save_all=True)
    read = image_files.read(path).pixels * 255
    np.testing.assert_allclose(read, np.asarray(frames[0]), atol=1e-4)


@pytest.mark.parametrize("side, refused", [((53, 37), True), ((26, 18), False)])
def test_a_jpeg_of_two_pictures_is_refused_and_one_with_a_preview_read(
    tmp_path, side, refused
):
    first = Image.fromarray(np.ascontiguousarray(SMOOTH[:37, :53]))
    path = tmp_path / "phone.jpg"
    first.save(path, "MPO", save_all=True, append_images=[first.resize(side)])
    if refused:
        with pytest.raises(InputError, match="phone.jpg: holds 2 pictures; "):
            image_files.read(path)
        return
    with Image.open(path) as image:
        expected = np.asarray(image.convert("L")) / 255
    np.testing.assert_allclose(image_files.read(path).pixels, expected, atol=2.1 / 255)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_picture_glued_to_another_is_refused_and_other_bytes_read(tmp_path, form):
    first = encode(SMOOTH, form)
    for padding in (b"", b"\0" * 5, b"\n"):
        with pytest.raises(InputError, match="holds .* pictures; export each"):
            read_bytes(tmp_path, first + padding + first)
    expected = read_bytes(tmp_path, first).pixels
    preview = encode(SMOOTH[::2, ::2], "JPEG")  # As some cameras leave one.
    for more in (b"\0" * 600, b"\0\0\0\x18ftypmp42", preview):
        np.testing.assert_array_equal(
            read_bytes(tmp_path, first + more).pixels, expected
        )


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
    film = read_bytes(tmp_path, DICOM, "film.jpg")
    expected = dicom.decode(io.BytesIO(DICOM))
    np.testing.assert_array_equal(film.pixels, expected.pixels)
    assert film.spacing == expected.spacing == (0.661468, 0.661468)
    assert "PixelData" in refusal(tmp_path, DICOM[:5000])


FILES = {
    "png": encode(GREY),
    "png16": encode(SMOOTH.astype(np.uint16) * 257),
    "jpeg": encode(SMOOTH, "JPEG"),
    "progressive": encode(SMOOTH, "JPEG", progressive=True),
}
DICOM = Path(get_testdata_file("CT_small.dcm")).read_bytes()


def check_damaged(folder, kind, data):
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
        (DICOM[128:], "not a PNG, JPEG or DICOM"),
        (encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), "4 channels"),
        (
            FILES["jpeg"].replace(b"\xff\xc0", b"\xff\xc3", 1),
            "lossless or hierarchical",
        ),
        (FILES["jpeg"].replace(b"\xff\xc0", b"\xff\xf7", 1), "is a JPEG-LS JPEG"),
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
    monkeypatch.setattr(image_files.cv2, "imdecode", None)
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
            image_files.read(path)

    def deny(path, mode):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(image_files, "open", deny, raising=False)
    with pytest.raises(InputError, match="Permission denied"):
        image_files.read(tmp_path / "locked.png")


def test_threads_read_what_one_thread_reads(tmp_path):
    paths = []
    for kind, data in {**FILES, "dicom": DICOM}.items():
        paths.append(tmp_path / kind)
        paths[-1].write_bytes(data)
    alone = [image_files.read(path, 1).pixels for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: image_files.read(p, 1).pixels, paths * 8))
    for i, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[i % len(paths)])


@pytest.mark.skipif(not NIH.exists(), reason="the NIH sample is not here")
def test_real_films_agree_with_pillow():
    for path in image_files.image_paths(NIH)[0][:20]:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("L")) / 255
        np.testing.assert_allclose(
            image_files.read(path, 1).pixels, expected, atol=1e-7
        )


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
    square = image_files.resize(pixels, side)
    assert square.dtype == np.uint8
    assert np.abs(square - expected).max() < 0.501


@pytest.mark.parametrize("side", [16, 45, 80])
def test_resize_takes_each_colour_by_itself(side):
    pixels = (COLOUR / 255).astype(np.float32)
    found = image_files.resize(pixels, side)
    apart = [
        image_files.resize(np.ascontiguousarray(pixels[..., c]), side)
        for c in (0, 1, 2)
    ]
    np.testing.assert_array_equal(found, np.stack(apart, axis=2))


def test_resize_does_not_alias_and_keeps_what_needs_no_resizing():
    stripes = np.tile(np.array([0, 1], np.float32), (64, 32))
    assert np.unique(image_files.resize(stripes, 16)).tolist() == [128]
    assert np.unique(image_files.resize(stripes[:4], 16)).tolist() == [128]
    square = GREY[:37, :37]
    np.testing.assert_array_equal(
        image_files.resize((square / 255).astype(np.float32), 37), square
    )


def test_film_paths_finds_every_film_and_nothing_else(tmp_path):
    below = tmp_path / "b" / "series"
    below.mkdir(parents=True)
    films = ["a.png", "c.JPG", "b/x.jpeg", "b/series/1.2.840.7", "b/series/IM1"]
    films += ["b/y.dcm", "z.DICOM", "CXR_2023.05.01_frontal", "slice.ima"]
    others = ["1.2.3", "README", "table.csv"]
    hidden = ["._a.png", "DICOMDIR", ".trash/a.png"]
    (tmp_path / ".trash").mkdir()
    for name in films + hidden:
        (tmp_path / name).write_bytes(DICOM)
    for name in others:
        (tmp_path / name).write_bytes(b"not a film")
    for kind in (
        "TIFF",
        "BMP",
        "WEBP",
        "GIF",
        "JPEG2000",
    ):  # Refused when they are read.
        films.append(f"b/{kind}.x")
        (tmp_path / films[-1]).write_bytes(encode(GREY, kind))
    os.mkfifo(tmp_path / "pipe")
    (below / "up").symlink_to(tmp_path)
    paths, left_out = image_files.image_paths(tmp_path)
    assert paths == sorted(tmp_path / name for name in films)
    assert left_out == [tmp_path / name for name in others]
    table = tmp_path / "table.csv"
    assert image_files.image_paths(str(table)) == ([table], [])


def test_film_paths_follows_a_linked_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").write_bytes(FILES["png"])
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "images").symlink_to(tmp_path / "disk")
    paths, _ = image_files.image_paths(tmp_path / "study")
    assert paths == [tmp_path / "study" / "images" / "a.png"]


def test_a_link_to_nowhere_is_one_of_the_other_files(tmp_path):
    (tmp_path / "a.png").write_bytes(FILES["png"])
    (tmp_path / "b.png").symlink_to(tmp_path / "not fetched.png")
    others = [tmp_path / "b.png"]
    assert image_files.image_paths(tmp_path) == ([tmp_path / "a.png"], others)


def test_film_paths_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="none: does not exist; "):
        image_files.image_paths(tmp_path / "none")
    (tmp_path / "table.csv").touch()
    with pytest.raises(InputError, match=f"^{tmp_path}: holds no image; "):
        image_files.image_paths(tmp_path)

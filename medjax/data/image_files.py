"""PNG, JPEG and DICOM files -> an image in [0, 1], or one clear error.

`prepare` and `predict` alike `read` a file and `fit` it to what the model sees.

The decoders tolerate damage: they return a picture that was cut off half-way as grey
below the cut, and a model would read the grey. So this module checks the size and what
they tolerate (a PNG's checksums and end, a JPEG's end, a DICOM's lengths) before a byte
is decoded. Damage between a JPEG's header and its end can't be detected: those bytes
have no checksum. Every function is safe to call from many threads.
"""

import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageSequence

from medjax.data import dicom
from medjax.data.dicom import Film, check_size, damaged
from medjax.errors import InputError, reading

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
# How pictures begin, also of formats that are refused: a folder's are never passed over.
PICTURE = re.compile(
    rb"\x89PNG|\xff\xd8\xff|II[*+]\0|MM\0[*+]|BM....\0\0\0\0|GIF8|RIFF....WEBP|8BPS"
    rb"|\0\0\0\x0cjP  |\xffO\xffQ|....ftyp(avif|heic|mif1)",
    re.DOTALL,
)
# Markers of a JPEG's frames, the last one of JPEG-LS, and those that are read.
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
DECODED = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
PADDING = b"\0\xff\r\n "  # That may follow a picture, before another one.
GLUED = re.compile(rb"\xff\xd9[%b]*?\xff\xd8\xff" % PADDING)  # Of two JPEGs.


def read(path: str | os.PathLike, channels: int | None = None) -> Film:
    """Reads a file; its first bytes, not its name, say which format it is.

    See `decode`, `dicom.decode` and, for the channels, `with_channels`. The resolution
    in a PNG or JPEG is a printer's, so its spacing stays NaN. Few levels of grey are no
    error: prepare, explore and predict count such images, see appearance.is_dim.

    Raises:
      InputError: the file is missing, unreadable, empty, truncated, damaged, no
        image of these formats, zero-sized, of more than 200 megapixels, or a
        DICOM of several frames, in colour, or that no installed decoder reads.
    """
    remedy = "give an existing file that you may read"
    with reading(path, remedy, OSError), open(path, "rb") as file:
        head = file.read(132)
        if dicom.begins(head):
            film = dicom.decode(file)
        else:
            film = Film(decode(head + file.read()), (math.nan, math.nan))
        return film._replace(pixels=with_channels(film.pixels, channels))


def fit(pixels: np.ndarray, shape: tuple[int, ...], bits: int = 8) -> np.ndarray:
    """The image [S, S, C], C = 1 or 3: `with_channels`, then `resize`."""
    return resize(with_channels(pixels, shape[-1]), shape[0], bits).reshape(shape)


def resize(pixels: np.ndarray, side: int, bits: int = 8) -> np.ndarray:
    """Squeezes [H, W] or [H, W, 3] in [0, 1] into a square of S x S uint8 or uint16.

    As CheXNet does, it doesn't keep the aspect ratio. An axis that shrinks is averaged
    over area, so fine patterns don't alias; one that grows is interpolated linearly.
    """
    height, width = pixels.shape[:2]
    # cv2 averages only where both axes shrink, hence one call for each direction.
    small = (min(width, side), min(height, side))
    square = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    square = cv2.resize(square, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.rint(np.clip(square, 0, 1) * (2**bits - 1)).astype(f"uint{bits}")


def eight_bits(image: np.ndarray) -> np.ndarray:
    """The pixels of a record as uint8, to be drawn, described and compared."""
    return image if image.dtype == np.uint8 else np.rint(image / 257).astype(np.uint8)


def image_paths(path: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """Lists the images to read, and the other files and broken links beside them, sorted.

    The images are the file itself, or in a folder and below it all files that are named
    (IMAGE_SUFFIXES, in any case) or begin like an image; `read` refuses those of other
    formats. See `walk`.
    """
    path = Path(path)
    try:
        if path.is_file():
            return [path], []
        if not path.is_dir():
            raise InputError(f"{path}: does not exist; give a file or a folder")
        files = [file for _, inside in walk(path) for file in inside]
        paths = sorted(file for file in files if file.exists() and _is_image(file))
    except OSError as error:
        why = f"{error.filename}: can't be read ({error.strerror})"
        raise InputError(f"{why}; correct its permissions") from error
    if not paths:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"{path}: holds no image; give a folder with files in {kinds}")
    return paths, sorted({*files} - {*paths})


def walk(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yields each folder from this one down, with its visible files and broken links.

    Hidden files and folders and DICOMDIR are skipped; links are followed.
    """
    seen = set()
    for folder, below, names in os.walk(path, onerror=_throw, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if (real := os.path.realpath(folder)) in seen:
            below.clear()  # A link back up would never end.
            continue
        seen.add(real)
        shown = [Path(folder, name) for name in sorted(names) if name[0] != "."]
        yield (
            Path(folder),
            [p for p in shown if dicom.is_visible(p) or not p.exists()],
        )


def _throw(error: OSError):
    raise error


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    with path.open("rb") as file:
        head = file.read(132)
    return dicom.begins(head) or PICTURE.match(head) is not None


def decode(data: bytes) -> np.ndarray:
    """Decodes a PNG (1 to 16 bits) or a JPEG (8 bits): [H, W] or [H, W, 3] in [0, 1].

    The values are divided by the largest of the bit depth, not of the image. Alpha is
    ignored; an EXIF orientation is applied, as every viewer does.
    """
    if not data:
        raise damaged("is empty (0 bytes)")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        size = _check_png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        size = _check_jpeg(data)
    else:
        raise InputError(
            f"is not a PNG, JPEG or DICOM file (it begins with {data[:8]!r}); "
            "convert it to one of them"
        )
    # AnyColor drops alpha and obeys the orientation, AnyDepth keeps 16 bits.
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None or sorted(pixels.shape[:2]) != sorted(size):
        raise damaged("can't be decoded: it is damaged")
    white = np.iinfo(pixels.dtype).max
    pixels = pixels.astype(np.float32)
    pixels /= white
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels


def with_channels(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """Converts [H, W] or [H, W, 3] RGB in [0, 1] to 1 or 3 channels; None keeps both.

    Colour becomes luminance (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B), and grey is
    repeated.
    """
    if channels == 1 and pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        return np.minimum(pixels, 1)  # Where float32 weights add up to more.
    if channels == 3 and pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    return pixels


def _check_png(data: bytes) -> tuple[int, int]:
    """(height, width) of a PNG whose chunks are all there and undamaged."""
    if data[8:16] != b"\x00\x00\x00\x0dIHDR" or len(data) < 33:
        raise damaged("is truncated or damaged: no PNG header")
    width, height = struct.unpack_from(">II", data, 16)
    check_size(height, width)
    start, kind, view = 8, b"", memoryview(data)
    while kind != b"IEND":
        if start + 12 > len(data):
            raise damaged("is truncated: its end is missing")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if end + 4 > len(data):
            raise damaged(f"is truncated at byte {len(data)}")
        if zlib.crc32(view[start + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise damaged(
                f"is damaged between bytes {start} and {end + 4}: the checksum is wrong"
            )
        if kind == b"acTL" and length == 8 and view[start + 8 : end - 4] != b"\0\0\0\1":
            raise InputError("is animated; export each frame as a file of its own")
        start = end + 4
    if data[start:].lstrip(PADDING).startswith(data[:8]):
        raise InputError("holds several pictures; export each as a file of its own")
    return height, width


def _check_jpeg(data: bytes) -> tuple[int, int]:
    """(height, width) of a JPEG that has a header, a scan and its end, and decodes."""
    if not (frame := _jpeg_frame(data)):
        raise damaged("is truncated or damaged: no JPEG frame")
    marker, _, bits, height, width, channels = frame
    if marker not in DECODED:
        kind = "JPEG-LS" if marker == 0xF7 else "lossless or hierarchical"
        raise InputError(f"is a {kind} JPEG; convert it to PNG")
    check_size(height, width)
    if bits != 8 or channels not in (1, 3):
        raise InputError(
            f"is a JPEG of {bits} bits and {channels} channels; convert it to 8 bits, "
            "grey or RGB"
        )
    # Inside a scan FF is always escaped, so FF D9 after the last scan's start is the
    # end, and a file cut in its scan, or padded with zeros after the cut, has none.
    if data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda"):
        raise damaged("is truncated: its end is missing")
    if height * width <= Image.MAX_IMAGE_PIXELS:  # cv2 fills in what it can't decode.
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                sizes = [frame.size[::-1] for frame in ImageSequence.Iterator(image)]
        except (OSError, SyntaxError, ValueError) as error:
            raise damaged(f"is damaged ({error})") from None
    else:
        sizes = [(height, width)]
    if len(sizes) == 1:  # None is listed, as in an MPO; one may be glued to its end.
        glued = (_jpeg_frame(data[m.end() - 3 :]) for m in GLUED.finditer(data))
        sizes += [frame[3:5] for frame in filter(None, glued)]
    if any(np.prod(size) >= height * width for size in sizes[1:]):
        raise InputError(  # Smaller ones are previews or gain maps.
            f"holds {len(sizes)} pictures; export each as a file of its own"
        )
    return height, width


def _jpeg_frame(data: bytes) -> tuple[int, ...] | None:
    """Marker, length, bits, height, width and channels of a JPEG's first frame, if any."""
    at = data.find(b"\xff", 2)
    while 0 <= at < len(data) - 9:
        marker = data[at + 1]
        if marker in FRAMES:
            return struct.unpack_from(">BHBHHB", data, at + 1)
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            step = 1 if marker == 0xFF else 2  # These have no length.
        else:
            step = 2 + struct.unpack_from(">H", data, at + 2)[0]
        at = data.find(b"\xff", at + step)
    return None

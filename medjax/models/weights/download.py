"""Fetches published weights by name, once, into a folder that runs share."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from medjax.errors import InputError

# torchvision writes the first 8 hex digits of a file's SHA-256 into its name. They
# find damage and a mix-up; against a forger, HTTPS has to do.
HOST = "https://download.pytorch.org/models"
FILES = {  # By the names of architectures.
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
CHUNK = 1 << 16
TIMEOUT = 30  # Seconds without a byte.


def fetch(name: str) -> Path:
    """The weights of a name in FILES as a file, downloaded unless it is there.

    It lies in $MEDJAX_CACHE/weights, by default ~/.cache/medjax/weights. What a
    broken-off download leaves in a `.part` file is where the next one goes on. Of
    several processes that want a file one downloads it, and the others wait.

    Raises:
      InputError: an unknown name, no network, or a file of another hash.
    """
    if name not in FILES:
        raise InputError(f"no weights {name!r}; there are {', '.join(sorted(FILES))}")
    url = FILES[name]
    cache = Path(os.environ.get("MEDJAX_CACHE") or "~/.cache/medjax")
    path = cache.expanduser() / "weights" / url.rpartition("/")[2]
    if path.exists():
        if not _is_right(path, path.name):
            raise InputError(f"{path}: its SHA-256 is another; remove it, run again")
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part):
            if path.exists():  # The process that had `part` before was faster.
                part.unlink()
                return path
            _download(url, part)
            if _is_right(part, path.name):
                return part.replace(path)
            part.unlink()
    except requests.RequestException as error:  # An OSError too, so it comes first.
        raise InputError(
            f"no download of {name} ({_reason(error)}): put {path.name} (sha256 starts "
            f"{_prefix(path.name)}) into {path.parent}, from {url}"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path.parent}: {error.strerror}; set MEDJAX_CACHE to another folder"
        ) from error
    raise InputError(
        f"{url}: its SHA-256 does not start with {_prefix(path.name)}, so it was "
        f"removed; run again, or put the right file into {path.parent}"
    )


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Makes `part` if it isn't there, and keeps other processes off it meanwhile."""
    while True:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had it before has perhaps renamed or removed what we opened.
            if part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat()):
                yield
                return


def _prefix(file_name: str) -> str:
    return file_name.rpartition("-")[2].partition(".")[0]


def _is_right(path: Path, file_name: str) -> bool:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest.startswith(_prefix(file_name))


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"HTTP status {error.response.status_code}"
    return type(error).__name__


def _download(url: str, part: Path) -> None:
    """Adds what is missing to `part`; goes on by itself as long as bytes come."""
    for attempt in range(1, TRIES + 1):
        before = _size(part)
        try:
            return _download_rest(url, part)
        except requests.RequestException:
            if attempt == TRIES or _size(part) <= before:
                raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download_rest(url: str, part: Path) -> None:
    have = _size(part)
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    columns = ("{task.description}", BarColumn(), DownloadColumn())
    with (
        requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response,
        Progress(*columns, TransferSpeedColumn()) as progress,
    ):
        if response.status_code == 416:  # Nothing is left to send: the hash decides.
            return
        response.raise_for_status()
        # A server that does not know ranges sends the whole with status 200.
        have = have if response.status_code == 206 else 0
        rest = response.headers.get("Content-Length")
        total = None if rest is None else have + int(rest)
        task = progress.add_task(url.rpartition("/")[2], total=total, completed=have)
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))

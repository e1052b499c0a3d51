"""A run's folder in a bucket, gs://... or s3://...: a local copy, kept in step with it.

Orbax writes to no s3://, TensorBoard appends, and locks need a disk. So a run works in a
local copy, which is fetched when a command begins and stored after each checkpoint and
at the end. What the bucket holds is what its list LISTED names: a file that was stored
when a machine was lost half-way isn't in it yet.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from medjax.errors import InputError
from medjax.files import held

# In the bucket {name: size and time of change} of the run's files; in the copy also the
# address, as of the last time that both were equal.
LISTED, COPIED = "files.json", ".bucket.json"
AT_ONCE = 16  # Files on their way.
SCHEMES = ("gs", "s3", "az", "hf")  # That etils.epath knows.


def is_address(path: str | os.PathLike) -> bool:
    """Whether it is an address, such as gs://bucket/run; pathlib would make a folder
    `gs:` of it."""
    return bool(re.match(r"\w[\w+.-]*://", os.fspath(path)))


def on_disk(name: str, path: str | os.PathLike) -> Path:
    """The path that a flag or a field of that name gives.

    Raises:
      InputError: it is the address of a bucket.
    """
    if is_address(path):
        raise InputError(
            f"{name}={path}: is no folder or file on a disk: mount the bucket, and give "
            "the path below its mount"
        )
    return Path(path)


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the folder to work in; that of an address is stored when this ends.

    Raises:
      InputError: the bucket can't be reached, another process has the same copy, or
        several train one run: each would have a copy of its own.
    """
    if not is_address(path):
        yield Path(path)
        return
    if jax.distributed.is_initialized():
        raise InputError(
            f"{path}: several processes need a folder that all see: mount it"
        )
    copy = _copy(path)
    with held(copy.parent):
        fetch(path)
        with _named(path):  # Now, and not after the first checkpoint.
            listed = _reached(path) / LISTED
            listed.write_text(json.dumps(_listed(_reached(path))))
        try:
            yield copy
        finally:
            store(copy)
            if _files(copy):
                print(f"stored: {path}")
            else:
                listed.unlink(missing_ok=True)


def fetch(address: str) -> Path:
    """The local copy of an address, a folder or a file, as it is in the bucket now."""
    copy = _copy(address)
    with _named(address):
        remote = _reached(address)
        if remote.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(remote.read_bytes())
            return copy
        listed = _listed(remote)
    old = _read(copy / COPIED).get("files", {})
    if any(copy.glob("*")) and not old:
        shutil.rmtree(copy)  # Of a run that was never stored.
    here = _files(copy)
    for name in here.keys() - listed.keys():
        (copy / name).unlink()

    def get(name: str) -> None:
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((remote / name).read_bytes())
        os.utime(path, ns=(listed[name][1],) * 2)

    with _named(address):
        _each(get, [name for name in listed if here.get(name) != listed[name]])
    _write(copy, address, listed)
    return copy


def store(folder: Path) -> None:
    """Brings the bucket up to date with a folder that `opened` yielded; else nothing."""
    state = _read(folder / COPIED)
    if not state:
        return
    address, old, now = state["address"], state["files"], _files(folder)
    gone = old.keys() - now.keys()
    changed = [name for name in now if now[name] != old.get(name)]
    if not gone and not changed:
        return
    with _named(address):
        remote = _reached(address)
        # Another machine may have stored a report meanwhile.
        listed = {k: v for k, v in _listed(remote).items() if k not in gone}
        _each(lambda n: (remote / n).write_bytes((folder / n).read_bytes()), changed)
        listed |= {name: now[name] for name in changed}
        (remote / LISTED).write_text(json.dumps(listed))
        _each(lambda name: (remote / name).unlink(missing_ok=True), [*gone])
    _write(folder, address, now)


def _copy(address: str) -> Path:
    """Where the local copy of an address lies."""
    address = address.rstrip("/")
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("MEDJAX_CACHE") or "~/.cache/medjax").expanduser()
    return cache / "buckets" / digest / address.rpartition("/")[2]


def _reached(address: str) -> Any:
    """The epath of an address."""
    from etils import epath  # Late: few need it.

    if address.partition("://")[0] not in SCHEMES:
        raise InputError(f"{address}: use one of {'://, '.join(SCHEMES)}://")
    return epath.Path(address)


@contextlib.contextmanager
def _named(address: str) -> Iterator[None]:
    """Turns what a library says of a bucket into one line."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"{address}: {error}: pip install -e '.[cloud]'") from None
    except InputError:
        raise
    except Exception as error:  # Every library has its own.
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{address}: can't be read or written ({why}): see that the bucket is there, "
            "and that its credentials are set"
        ) from error


def _listed(remote: Any) -> dict[str, list[int]]:
    """What the bucket's list names; without one all that is there."""
    try:
        listed = json.loads((remote / LISTED).read_text())
    except FileNotFoundError:
        listed = dict(_walk(remote, "")) if remote.exists() else {}
    for name in listed:  # It may be from anybody.
        if ".." in name.split("/") or os.path.isabs(name):
            raise ValueError(f"names a file outside of it, {name}")
    return listed


def _walk(folder: Any, above: str) -> Iterator[tuple[str, list[int]]]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path, f"{above}{path.name}/")
        else:
            yield above + path.name, [path.stat().length, 0]


def _files(folder: Path) -> dict[str, list[int]]:
    """{name: size in bytes, time of change in ns} of all files, but for ours."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != COPIED:
            stat = path.stat()
            files[str(path.relative_to(folder))] = [stat.st_size, stat.st_mtime_ns]
    return files


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _write(copy: Path, address: str, files: dict[str, list[int]]) -> None:
    copy.mkdir(parents=True, exist_ok=True)
    (copy / COPIED).write_text(json.dumps({"address": address, "files": files}))


def _each(function: Callable[[str], None], names: list[str]) -> None:
    """Calls it with every name, several at once; raises what the first raised."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(function, names))

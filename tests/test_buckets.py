"""A run in a bucket is the run on a disk: it is stored, and goes on on another machine."""

import json
import shutil
from pathlib import Path

import pytest
from launching import SMALL, run_here

from medjax import buckets
from medjax.errors import InputError
from medjax.tasks import start
from medjax.training import journal, loop


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The address of an empty bucket of a real server, on loopback."""
    server_of = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = server_of.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            patch.setenv(f"AWS_{name}", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("MEDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        boto3.client("s3").create_bucket(Bucket="runs")
        yield "s3://runs"
    server.stop()


def on_another_machine():
    """Forgets all local copies."""
    shutil.rmtree(buckets._copy("s3://runs/a").parents[1])
    start.place.cache_clear()


def names(address):
    return json.loads((buckets._reached(address) / buckets.LISTED).read_text())


def test_a_folder_is_stored_and_comes_back(bucket):
    address = f"{bucket}/study/plain/"
    with buckets.opened(address) as folder:
        (folder / "below").mkdir(parents=True)
        (folder / "below/a b.bin").write_bytes(bytes(range(256)))
        (folder / "old.txt").write_text("1")
        buckets.store(folder)
        (folder / "old.txt").unlink()
        (folder / "new.txt").write_text("2")
    assert {*names(address)} == {"below/a b.bin", "new.txt"}
    on_another_machine()
    with buckets.opened(address) as folder:
        assert (folder / "below/a b.bin").read_bytes() == bytes(range(256))
        assert (folder / "new.txt").read_text() == "2"
        assert not (folder / "old.txt").exists()


def test_files_that_were_not_listed_are_not_there(bucket, monkeypatch):
    address = f"{bucket}/half"
    with buckets.opened(address) as folder:
        folder.mkdir(exist_ok=True)
        (folder / "whole.txt").write_text("1")

    def lost(function, names):
        for name in names:
            function(name)
        raise ConnectionError("the machine was lost")

    with (
        pytest.raises(InputError, match="half: can't be read or written .*was lost"),
        monkeypatch.context() as patch,
        buckets.opened(address) as folder,
    ):
        (folder / "more.txt").write_text("2")
        patch.setattr(buckets, "_each", lost)
    on_another_machine()
    assert not (buckets.fetch(address) / "more.txt").exists()
    assert (buckets.fetch(address) / "whole.txt").exists()


def test_what_others_put_there_is_read_but_no_path_out_of_it(bucket):
    remote = buckets._reached(f"{bucket}/theirs")
    (remote / "a/b.txt").write_text("hello")
    assert (buckets.fetch(f"{bucket}/theirs") / "a/b.txt").read_text() == "hello"
    assert buckets.fetch(f"{bucket}/theirs/a/b.txt").read_text() == "hello"
    (remote / buckets.LISTED).write_text(json.dumps({"../../up.txt": [1, 0]}))
    with pytest.raises(InputError, match="names a file outside of it"):
        buckets.fetch(f"{bucket}/theirs")


@pytest.mark.parametrize(
    "address, why",
    [
        ("s3://nowhere/run", "s3://nowhere/run: can't be read or written"),
        ("ftp://host/run", "ftp://host/run: use one of gs://, s3://, az://, hf://"),
    ],
)
def test_a_place_that_can_t_be_written_is_refused_before_training(
    bucket, tmp_path, address, why
):
    records = f"--config.data.records={tmp_path}"
    _, errors = run_here("train", *SMALL, records, f"--workdir={address}", code=2)
    assert why in errors and errors.count("\n") == 1
    assert not any(tmp_path.iterdir())
    assert not Path(address.split("/")[0]).exists()


@pytest.mark.slow
def test_a_run_goes_on_from_a_bucket_to_the_same_numbers(bucket, tmp_path, monkeypatch):
    flags = (*SMALL, f"--config.data.records={tmp_path / 'records'}")
    run_here("train", *flags, f"--workdir={tmp_path / 'run'}")
    address, judge = f"{bucket}/run", loop.judge

    def lost(number, *rest):
        if number > 5:
            patch.setattr(buckets, "store", lambda folder: None)
            raise ConnectionError("the machine was lost")
        judge(number, *rest)

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(loop, "judge", lost)
        run_here("train", *flags, f"--workdir={address}")
    assert any(name.startswith("events/") for name in names(address))
    on_another_machine()
    out, _ = run_here("train", *flags, f"--workdir={address}")
    assert "step 10/12" in out and "step 5/12" not in out
    assert f"stored: {address}" in out
    on_another_machine()
    copy = buckets.fetch(address)
    for name in ("report.csv", "predictions/test.csv", "thresholds.json"):
        assert (copy / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    losses = [
        [(line["step"], line["loss"]) for line in journal.read(path) if "loss" in line]
        for path in (copy / "metrics.jsonl", tmp_path / "run/metrics.jsonl")
    ]
    assert losses[0] == losses[1]
    more = (f"--config.transfer.init={address}", "--config.transfer.overlap=allow")
    run_here("train", *flags, *more, f"--workdir={tmp_path / 'next'}")

"""Prepared data are of the files that are there."""

import os

import pytest

from medjax.data import prepared
from medjax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "raw/series").mkdir(parents=True)
    for name in ("labels.csv", "film.png", "series/1.dcm"):
        (tmp_path / "raw" / name).write_text(name)
    (tmp_path / "prepared").mkdir()
    return tmp_path


def test_a_table_is_known_by_what_it_says(folder):
    table = folder / "raw/labels.csv"
    prepared.check_source(folder / "prepared", prepared.digest_tables(folder / "raw"))
    os.utime(table, (0, 0))  # Copied again: its contents are the same.
    (folder / "raw/film.png").unlink()
    prepared.check_source(folder / "prepared", prepared.digest_tables(folder / "raw"))
    table.write_text("label5.csv")
    with pytest.raises(InputError, match="labels.csv has changed.*data.records"):
        prepared.check_source(
            folder / "prepared", prepared.digest_tables(folder / "raw")
        )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda raw: (raw / "series/2.dcm").write_text("x"), "series/2.dcm is new"),
        (lambda raw: (raw / "film.png").write_text("film.PNG"), "film.png has changed"),
        (lambda raw: (raw / "film.png").unlink(), "film.png is gone"),
    ],
)
def test_a_file_is_known_by_what_it_holds(folder, change, error):
    raw = folder / "raw"

    def now():
        paths = [p for p in (raw / "film.png", raw / "series") if p.exists()]
        return prepared.digest_files(raw, paths, folder / "prepared/seen.json")

    prepared.check_source(folder / "prepared", now())
    prepared.check_source(folder / "prepared", now())
    prepared.check_source(folder / "prepared", {})  # The files are elsewhere.
    os.utime(raw / "film.png", (0, 0))  # Copied again.
    prepared.check_source(folder / "prepared", now())
    change(raw)
    with pytest.raises(InputError, match=error):
        prepared.check_source(folder / "prepared", now())


def test_a_file_is_read_again_only_where_its_size_or_time_changed(folder, monkeypatch):
    film, seen, read = folder / "raw/film.png", folder / "seen.json", []
    digest = prepared.digest
    monkeypatch.setattr(
        prepared, "digest", lambda path: read.append(path) or digest(path)
    )
    first, again = (prepared.digest_files(film.parent, [film], seen) for _ in range(2))
    assert first == again and read == [film]
    film.write_text("film.PNG")  # As long.
    os.utime(film, (0, 0))
    assert prepared.digest_files(film.parent, [film], seen) != first and len(read) == 2

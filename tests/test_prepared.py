"""Records: what goes in comes out, in order; what can't go in is written down."""

import csv
import json
import math
import os
import threading
import time
import weakref

import numpy as np
import pandas as pd
import pytest

from medjax.cohort import duplicates
from medjax.data import prepared, records
from medjax.data.prepared import Item
from medjax.data.records import Source
from medjax.errors import InputError

TASKS = ("a", "b", "c")
FLAT = (4, 4, 1)  # The shape of the items of conftest.py.


@pytest.fixture
def write(tmp_path):
    """Prepares a source below tmp_path and returns the folder of its records."""

    def write(source, *, allowed=0.0, name="x", **options):
        return records.prepare(
            source,
            records=tmp_path,
            name=name,
            max_quarantined=allowed,
            **options,
        )

    return write


def stored(path):
    """The pixels of the records as NumPy alone reads them."""
    return np.load(path / "pixels.npy")


def rows(path):
    """A CSV file as the csv module alone reads it: a list of dicts of text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def bad(name, reason="torn"):
    return Item({"image": name}, None, reason=reason)


def leftovers(folder):
    """Every file below the folder, but for a kept list of quarantined files."""
    return [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".csv"]


def test_the_pixels_are_those_of_the_items_in_their_order(
    write, make_items, make_source
):
    items = make_items(13)
    path = write(make_source(items))
    found = stored(path)
    assert len(found) == 13
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [item.content for item in items])


def test_the_table_says_of_each_film_what_its_item_says(write, make_items, make_source):
    items = make_items(13)
    path = write(make_source(items))
    table = prepared.read_table(path)
    assert tuple(table.columns) == (*prepared.COLUMNS, "a", "b", "c")
    for n, (row, item) in enumerate(zip(rows(path / "table.csv"), items, strict=True)):
        assert row.pop("id") == str(n)
        for name, text in row.items():
            value = item.row[name]
            if isinstance(value, float):
                read = np.float32(text or math.nan)
                np.testing.assert_equal(read, np.float32(value))
                np.testing.assert_equal(np.float32(table[name][n]), read)
            else:
                assert text == str(value)
                assert table[name][n] == value


@pytest.mark.parametrize("damage", ["a row less", "a record cut", "no record"])
def test_records_that_are_not_the_tables_are_refused(
    write, make_items, make_source, damage
):
    path = write(make_source(make_items(5)))
    arrays = path / "pixels.npy"
    if damage == "a row less":
        lines = (path / "table.csv").read_text().splitlines()
        (path / "table.csv").write_text("\n".join(lines[:-1]))
    elif damage == "a record cut":
        os.truncate(arrays, arrays.stat().st_size // 2)
    else:
        arrays.unlink()
    with pytest.raises(InputError, match="is damaged or gone: remove its folder"):
        records.pixels_of(path)


@pytest.mark.parametrize("content", [None, b"", b'image,reason\n"a.png,torn'])
def test_a_list_beside_the_records_that_is_cut_or_gone_is_refused(
    write, make_items, make_source, content
):
    path = write(make_source(make_items(5)))
    assert prepared.left_out(path) == 0
    (path / "quarantine.csv").unlink()
    if content is not None:
        (path / "quarantine.csv").write_bytes(content)
    with pytest.raises(InputError, match="quarantine.csv: is damaged or gone"):
        prepared.left_out(path)


@pytest.mark.parametrize("shape", [(4, 4, 3), (5, 4, 3, 2), (1, 7, 1)])
def test_images_of_any_shape_come_back_and_so_do_their_hashes(
    write, make_items, make_source, shape
):
    items = make_items(5, shape=shape)
    items.insert(1, bad("torn.png"))
    path = write(make_source(items), allowed=1.0)
    items.pop(1)
    expected = [item.content for item in items]
    np.testing.assert_array_equal(records.pixels_of(path), expected)
    hashes = [duplicates.hashes(pixels) for pixels in expected]
    np.testing.assert_array_equal(records.read_hashes(path), hashes)


def test_an_item_of_another_shape_is_no_mistake_of_the_users(write, make_items):
    with pytest.raises(Exception, match=r"\(4, 4, 1\)") as caught:
        write(Source(TASKS, (4, 4, 3), 2, lambda: make_items(2)))
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("a", "view", "c"), "'view', which is blank or a name of ours"),
        (("a", " ", "c"), "' ', which is blank"),
        (("a", "Mean", "c"), "'Mean', which is blank or a name of ours"),
        (("a", "b", "a"), "'a', twice"),
        (("a", "b", "A"), "findings or classes: 'a' and 'A' differ in case"),
    ],
)
def test_a_finding_that_the_table_cant_hold_is_refused(write, tasks, message):
    with pytest.raises(InputError, match=message):
        write(Source(tasks, FLAT, 1, list))


def test_a_name_that_pandas_takes_for_nothing_stays_a_name(
    write, make_items, make_source
):
    items = make_items(2)
    items[0].row["image"] = "NA"
    items[1].row["image"] = "null"
    path = write(make_source(items))
    assert list(prepared.read_table(path)["image"]) == ["NA", "null"]


def test_boxes_stand_under_the_id_of_their_film(write, make_items, make_source):
    items = make_items(9)
    items.insert(1, bad("torn.png"))
    path = write(make_source(items), allowed=1.0)
    expected = [
        [n, "a", n, n + 0.25, n + 1, n + 2] for n in range(9) for _ in range(n % 3)
    ]
    found = pd.read_csv(path / "boxes.csv")
    assert list(found.columns) == ["id", "task", "x0", "y0", "x1", "y1"]
    assert found.to_numpy().tolist() == expected


def test_quarantine_names_exactly_the_bad_files_and_the_ids_have_no_gap(
    write, make_items, make_source
):
    items = make_items(6)
    items[4:4] = [bad("one.png", "is, torn"), bad("two.png", 'no "end"')]
    items.append(bad("three.png", "empty"))
    path = write(make_source(items), allowed=0.5)
    assert rows(path / "quarantine.csv") == [
        {"file": "one.png", "reason": "is, torn"},
        {"file": "two.png", "reason": 'no "end"'},
        {"file": "three.png", "reason": "empty"},
    ]
    assert len(stored(path)) == 6
    assert list(prepared.read_table(path)["id"]) == list(range(6))
    good = [item.row["image"] for item in items if item.content is not None]
    assert list(prepared.read_table(path)["image"]) == good


def test_one_bad_file_more_than_allowed_stops_and_keeps_only_the_list(
    write, make_items, make_source, tmp_path
):
    items = make_items(98)
    items[30:30] = [bad("one.png"), bad("two.png")]
    with pytest.raises(InputError) as caught:
        write(make_source(items), allowed=0.01)
    text = str(caught.value)
    assert "2 of 100 files" in text
    assert "2.0%" in text
    assert "\n" not in text
    assert not prepared.is_prepared(records.folder(tmp_path, "x"))
    assert not leftovers(tmp_path)
    (kept,) = tmp_path.rglob("*.csv")
    assert str(kept) in text
    assert [row["file"] for row in rows(kept)] == ["one.png", "two.png"]
    # As many as allowed are no reason to stop, and the name is still free.
    path = write(make_source(items), allowed=0.02)
    assert prepared.is_prepared(path)
    assert len(stored(path)) == 98


def test_nothing_but_bad_files_stops_whatever_is_allowed(write, make_source, tmp_path):
    with pytest.raises(InputError, match="2 of 2 files"):
        write(make_source([bad("one.png"), bad("two.png")]), allowed=1.0)
    assert not prepared.is_prepared(records.folder(tmp_path, "x"))


def test_a_source_without_films_is_a_mistake_of_the_users(write):
    with pytest.raises(InputError, match="no image"):
        write(Source(("a",), FLAT, 0, list))


def test_an_interrupted_preparation_leaves_nothing_and_can_be_repeated(
    write, make_items, make_source, tmp_path
):
    items = make_items(8)

    def broken():
        yield from items[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(Source(TASKS, FLAT, 8, broken))
    assert not prepared.is_prepared(records.folder(tmp_path, "x"))
    assert not leftovers(tmp_path)
    assert len(stored(write(make_source(items)))) == 8


def test_progress_is_called_once_a_file_and_may_print(
    write, make_items, make_source, capsys
):
    items = [*make_items(3), bad("torn.png")]
    write(make_source(items), allowed=1.0, progress=lambda: print("*", end=""))
    assert capsys.readouterr().out == "****"


def test_the_number_of_images_in_memory_does_not_grow(write, make_items, monkeypatch):
    (item,) = make_items(1)
    alive, most = weakref.WeakSet(), 0

    class Pixels(np.ndarray):
        """An array that a WeakSet takes: hashed by what it is."""

        __hash__ = object.__hash__

        def __eq__(self, other):
            return self is other

    def items():
        nonlocal most
        for _ in range(200):
            pixels = item.content.copy().view(Pixels)
            alive.add(pixels)
            yield item._replace(content=pixels)
            del pixels
            most = max(most, len(alive))

    allow(monkeypatch, 2)
    write(Source(TASKS, FLAT, 200, items))
    assert 0 < most <= 16  # Eight wait for their hashes.


def test_is_prepared_only_where_records_are(write, make_items, make_source, tmp_path):
    assert not prepared.is_prepared(records.folder(tmp_path, "x"))
    path = write(make_source(make_items(1)))
    assert path == records.folder(tmp_path, "x")
    assert prepared.is_prepared(path)
    assert not prepared.is_prepared(records.folder(tmp_path, "y"))


def allow(monkeypatch, cores):
    """As taskset does, and SLURM."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)


def test_in_parallel_keeps_the_order_whichever_is_done_first(monkeypatch):
    delays = np.random.default_rng(0).random(40) / 200

    def slow(n):
        time.sleep(delays[n])
        return n

    for cores in (1, 3, 8):
        allow(monkeypatch, cores)
        assert list(prepared.in_parallel(slow, range(40))) == [*range(40)]


def test_in_parallel_runs_as_many_at_once_as_there_are_cores(monkeypatch):
    allow(monkeypatch, 3)
    meeting = threading.Barrier(3, timeout=10)  # Nobody passes it alone.
    met = prepared.in_parallel(lambda n: meeting.wait() >= 0, range(9))
    assert list(met) == [True] * 9


def test_in_parallel_reads_only_a_little_ahead(monkeypatch):
    allow(monkeypatch, 2)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = prepared.in_parallel(lambda n: n, endless())
    for n in range(1, 50):
        assert next(results) == n
        assert taken <= n + 8
    results.close()


def test_in_parallel_hands_on_the_error_of_a_worker():
    def fail(n):
        return 1 / (n - 2)

    results = prepared.in_parallel(fail, range(5))
    assert next(results) == -0.5
    with pytest.raises(ZeroDivisionError):
        list(results)


# The files that the data were made from.


@pytest.fixture
def raw_files(tmp_path):
    (tmp_path / "raw/series").mkdir(parents=True)
    for name in ("labels.csv", "film.png", "series/1.dcm"):
        (tmp_path / "raw" / name).write_text(name)
    (tmp_path / "prepared").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda raw: (raw / "series/2.dcm").write_text("x"), "series/2.dcm is new"),
        (lambda raw: (raw / "film.png").write_text("film.PNG"), "film.png has changed"),
        (lambda raw: (raw / "film.png").unlink(), "film.png is gone"),
        (lambda raw: (raw / "labels.csv").write_text("x"), "labels.csv has changed"),
    ],
)
def test_a_file_is_known_by_what_it_holds(raw_files, change, error):
    raw = raw_files / "raw"

    files = {name: raw / name for name in ("film.png", "series", "labels.csv")}
    kept = raw_files / "prepared"
    made_of = prepared.digests(files, kept / "seen.json")
    (kept / "source.json").write_text(json.dumps(made_of))

    def check():
        prepared.check_source(kept, files)

    check()
    prepared.check_source(kept, {})  # The files are on another machine,
    prepared.check_source(kept, {"labels.csv": files["labels.csv"]})  # the films are.
    os.utime(raw / "film.png", (0, 0))  # Copied again.
    check()
    change(raw)
    with pytest.raises(InputError, match=error):
        check()


def test_a_file_is_read_again_only_where_its_size_or_time_changed(
    raw_files, monkeypatch
):
    film, read, digest = raw_files / "raw/film.png", [], prepared.digest
    monkeypatch.setattr(
        prepared, "digest", lambda path: read.append(path) or digest(path)
    )
    cache, before = raw_files / "seen.json", film.stat()
    old = [prepared.digests({"film.png": film}, cache) for _ in range(2)]
    assert read == [film] and old[0] == old[1]
    film.write_text("film.PNG")  # As long, and by its time as old.
    os.utime(film, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert prepared.digests({"film.png": film}, cache) != old[0]
    assert len(read) == 2

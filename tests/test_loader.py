"""The stream: complete, the same however it is read, and resumed to the row."""

import itertools
import json
import os
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.data import loader, records

N = 11
TASKS = ("a", "b", "c")


@pytest.fixture(scope="module")
def items(make_items):
    return make_items(N)


@pytest.fixture(scope="module")
def path(items, make_source, tmp_path_factory):
    """Records of the items."""
    return records.prepare(
        make_source(items),
        records=tmp_path_factory.mktemp("records"),
        name="x",
        max_quarantined=0.0,
    )


@pytest.fixture
def stream(path):
    """Opens train_batches of some ids; closes them all in the end."""
    opened = []

    def open_stream(ids=range(N), seed=0, batch=2, devices=1, **options):
        films = loader.Images(path, ids, label_of(ids))
        batches = loader.train_batches(
            films, seed=seed, batch=batch, devices=devices, **options
        )
        opened.append(batches)
        return batches

    yield open_stream
    for batches in opened:
        batches.close()


def label_of(ids, columns=(0, 1, 2)):
    """[N, T] of these images, with some unknown."""
    label = np.random.default_rng(0).integers(0, 2, (N, len(TASKS))).astype(float)
    label[::3, 1] = np.nan
    return label[np.ix_(ids, columns)]


def eventually(holds):
    """Waits until the threads have done it."""
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def take(batches, n):
    """The next n batches as numpy."""
    return [jax.device_get(batch) for batch in itertools.islice(batches, n)]


def rows(batches, name="id"):
    """One field of batches [D, B, ...] as [rows, ...]."""
    parts = [batch[name].reshape(-1, *batch[name].shape[2:]) for batch in batches]
    return np.concatenate(parts)


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == b[name].dtype


class Counted:
    """Stands in for Films: tells who reads at the same time, and how much."""

    def __init__(self, size=20, delay=0.0):
        self.size, self.delay = size, delay
        self.read, self.now, self.most = 0, 0, 0
        self._lock = threading.Lock()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        with self._lock:
            self.read += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.delay)
        with self._lock:
            self.now -= 1
        return {"id": np.int32(index)}


def test_a_batch_has_the_contracts_fields(stream, items):
    (batch,) = take(stream(batch=3, devices=2), 1)
    shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert shapes == {
        "image": ((2, 3, 4, 4, 1), np.uint8),
        "label": ((2, 3, 3), np.float32),
        "weight": ((2, 3, 3), np.float32),
        "id": ((2, 3), np.int32),
        "patient": ((2, 3), np.int32),
        "epoch": ((2, 3), np.int32),
        "occurrence": ((2, 3), np.int32),
    }


def test_every_row_holds_its_own_film(stream, items):
    batches = take(stream(batch=3), 9)
    for n, image, label, weight, patient in zip(
        *(rows(batches, k) for k in ("id", "image", "label", "weight", "patient")),
        strict=True,
    ):
        item = items[n]
        np.testing.assert_array_equal(image, item.content)
        assert patient == item.row["patient"] - 100  # The rank among all.
        wanted = label_of([n])[0]
        np.testing.assert_array_equal(weight, ~np.isnan(wanted))
        np.testing.assert_array_equal(label, np.nan_to_num(wanted))
    assert (rows(batches, "weight") == 0).any()  # Or the labels test nothing.


@pytest.mark.parametrize(("batch", "devices"), [(1, 1), (2, 1), (3, 2), (7, 1)])
def test_an_epoch_holds_every_film_once_and_no_two_are_alike(stream, batch, devices):
    epochs = 6
    enough = -(-epochs * N // (batch * devices))
    batches = take(stream(batch=batch, devices=devices), enough)
    ids, epoch = rows(batches)[: epochs * N], rows(batches, "epoch")[: epochs * N]
    np.testing.assert_array_equal(epoch, np.repeat(np.arange(epochs), N))
    orders = ids.reshape(epochs, N)
    for order in orders:
        assert sorted(order) == list(range(N))
    assert len({tuple(order) for order in orders}) == epochs
    assert list(range(N)) not in orders.tolist()


def test_the_order_is_the_seeds(stream):
    one, two, other = (rows(take(stream(seed=seed), 22)).tolist() for seed in (5, 5, 6))
    assert one == two != other


def test_the_order_does_not_depend_on_the_batch_size(stream):
    small = rows(take(stream(batch=2), 12))
    large = rows(take(stream(batch=6, devices=2), 2))
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("threads", [0, 2, 4])
def test_the_stream_does_not_depend_on_the_threads(stream, threads):
    same(take(stream(threads=1), 20), take(stream(threads=threads), 20))


@pytest.mark.parametrize("done", [0, 1, 5, 6, 13])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_saved_position_goes_on_with_the_very_next_batch(stream, done, threads):
    interrupted = stream(threads=threads)
    take(interrupted, done)
    saved = json.dumps(interrupted.get_state())
    expected = take(interrupted, 8)
    fresh = stream(threads=5 - threads)
    fresh.set_state(json.loads(saved))
    assert fresh.get_state() == json.loads(saved)
    same(take(fresh, 8), expected)
    interrupted.set_state(json.loads(saved))  # Batches are waiting in there.
    same(take(interrupted, 8), expected)
    same(take(stream(threads=threads), done + 8)[done:], expected)


def test_a_position_does_not_change_after_it_was_taken(stream):
    batches = stream()
    take(batches, 2)
    position = batches.get_state()
    before = json.dumps(position)
    take(batches, 3)
    assert json.dumps(position) == before
    assert batches.get_state() != position


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_share_the_one_order(stream, monkeypatch, hosts):
    whole, each = take(stream(batch=1, on_host=True), 4 * N), 4 * N // hosts
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    for host in range(hosts):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        mine = take(stream(batch=1, on_host=True), each)
        same(mine, whole[host::hosts][:each])


def test_copies_of_a_film_are_told_apart(stream):
    ids = [3, 3, 5, 3, 0]
    batches = take(stream(ids, batch=5), 4)
    for batch in batches:
        pairs = zip(batch["id"].ravel(), batch["occurrence"].ravel(), strict=True)
        assert sorted(pairs) == [(0, 0), (3, 0), (3, 1), (3, 2), (5, 0)]
    assert rows(batches, "epoch").tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


@given(st.lists(st.integers(0, 5), max_size=30))
@settings(deadline=None, max_examples=50)
def test_occurrences_count_what_came_before(ids):
    found = loader.occurrences(np.array(ids, np.int32))
    assert found.tolist() == [ids[:n].count(id) for n, id in enumerate(ids)]
    assert found.dtype == np.int32


@pytest.mark.parametrize("columns", [[0, 1, 2], [2, 0], [1]])
def test_labels_are_the_wanted_columns_in_their_order(path, columns):
    films = loader.Images(path, range(N), label_of(range(N), columns))
    for n in range(N):
        wanted = label_of([n], columns)[0]
        known = ~np.isnan(wanted)
        np.testing.assert_array_equal(films[n]["weight"], known)
        np.testing.assert_array_equal(films[n]["label"][known], wanted[known])
        np.testing.assert_array_equal(films[n]["label"][~known], 0)


def test_films_are_read_by_several_threads_ahead_of_the_step():
    films = Counted(delay=0.005)
    batches = loader.train_batches(films, seed=0, batch=4, devices=1, threads=3)
    next(batches)
    eventually(lambda: films.read >= 3 * 4)  # That batch, and two on the device.
    assert 2 <= films.most <= 3
    batches.close()


def test_only_cores_that_the_process_may_use_read(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    films = Counted(delay=0.005)
    batches = loader.train_batches(films, seed=0, batch=4, devices=1)
    next(batches)
    batches.close()
    assert films.most == 1
    films = Counted(delay=0.005)  # Grain's thread may read on for a while.
    list(loader.evaluation_batches(films, batch=4, devices=1))
    assert films.most == 1


def test_batches_lie_on_the_device_before_they_are_asked_for(monkeypatch):
    sent = []
    to_device = loader.to_device
    monkeypatch.setattr(loader, "to_device", lambda b: sent.append(1) or to_device(b))
    batches = loader.train_batches(Counted(), seed=0, batch=4, devices=1)
    for n in range(5):
        assert isinstance(next(batches)["id"], jax.Array)
        eventually(lambda n=n: len(sent) == n + 3)
        assert len(sent) == n + 3
    batches.close()


def test_closing_ends_the_reading_threads():
    def reading():
        return {t for t in threading.enumerate() if "grain" in t.name}

    before = reading()
    batches = loader.train_batches(Counted(), seed=0, batch=4, devices=1, threads=2)
    next(batches)
    mine = reading() - before
    assert mine
    batches.close()
    for thread in mine:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_each_device_gets_its_own_rows():
    batch = {"id": np.arange(6).reshape(2, 3), "image": np.ones((2, 3, 4, 4, 1))}
    sent = loader.to_device(batch)
    for name, array in sent.items():
        assert array.shape == batch[name].shape
        assert len(array.addressable_shards) == 2
        for shard in array.addressable_shards:
            row = jax.local_devices().index(shard.device)
            np.testing.assert_array_equal(shard.data[0], batch[name][row])
    same = jax.pmap(lambda b: b["id"] * 2)(sent)
    np.testing.assert_array_equal(same, batch["id"] * 2)


@pytest.mark.parametrize(("batch", "devices"), [(1, 1), (4, 1), (2, 3), (20, 2)])
@pytest.mark.parametrize("films", [1, 4, 5, 11])
def test_evaluation_sees_every_film_once_and_pads_with_nothing(
    path, items, films, batch, devices
):
    ids = list(range(N))[::-1][:films]
    found = list(
        loader.evaluation_batches(
            loader.Images(path, ids, label_of(ids)), batch=batch, devices=devices
        )
    )
    assert len(found) == -(-films // (batch * devices))
    for one in found:
        assert set(one) == {"image", "label", "weight", "id", "patient"}
        assert all(array.shape[:2] == (devices, batch) for array in one.values())
        kinds = [one[k].dtype for k in ("image", "label", "weight", "id", "patient")]
        assert kinds == [np.uint8, np.float32, np.float32, np.int32, np.int32]
    assert rows(found)[:films].tolist() == ids
    assert (rows(found)[films:] == -1).all()
    for name in ("image", "label", "weight", "patient"):
        assert (rows(found, name)[films:] == 0).all()
    for n, image, patient in zip(
        ids, rows(found, "image"), rows(found, "patient"), strict=False
    ):
        np.testing.assert_array_equal(image, items[n].content)
        assert patient == items[n].row["patient"] - 100
    known = ~np.isnan(label_of(ids))
    np.testing.assert_array_equal(rows(found, "weight")[:films], known)


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 4, 5, 2)])
def test_images_of_any_shape_are_batched(make_items, make_source, tmp_path, shape):
    items = make_items(5, shape=shape)
    path = records.prepare(
        make_source(items), records=tmp_path, name="x", max_quarantined=0.0
    )
    ids = [2, 0, 2, 4]  # With a copy, as over-sampling makes it.
    films = loader.Images(path, ids, label_of(ids))
    train = loader.train_batches(films, seed=0, batch=2, devices=2)
    (shown,) = take(train, 1)
    train.close()
    assert shown["image"].shape == (2, 2, *shape)
    (evaluated,) = loader.evaluation_batches(films, batch=3, devices=2)
    assert evaluated["image"].shape == (2, 3, *shape)
    for batch in (shown, evaluated):
        found = rows([batch])
        assert sorted(found[:4]) == sorted(ids)
        for n, image in zip(found[:4], rows([batch], "image"), strict=False):
            np.testing.assert_array_equal(image, items[n].content)
    pairs = zip(rows([shown]), rows([shown], "occurrence"), strict=True)
    assert sorted(pairs) == [(0, 0), (2, 0), (2, 1), (4, 0)]
    assert not rows([evaluated], "image")[4:].any()


def test_no_films_make_no_evaluation_batch(path):
    films = loader.Images(path, [], label_of([]))
    assert not list(loader.evaluation_batches(films, batch=2, devices=1))

from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest

from configs import base
from medjax.data import image_files
from medjax.evaluation import inference
from medjax.tasks import new_images, scans


def test_every_real_row_comes_out_once_in_order_without_the_padding():
    ids = np.array([4, 2, 7, 5, 9, -1, -1, -1]).reshape(2, 2, 2)
    batches = [
        {
            "id": part,
            "patient": part * 10,
            "image": part[..., None, None, None].astype(np.float32),
            "label": np.stack([part, part + 1], -1).astype(np.float32),
            "weight": np.ones((*part.shape, 2), np.float32),
        }
        for part in ids
    ]
    found = inference.predict(
        batches, lambda x: np.stack([x, x / 2], -1)[:, :, 0, 0, 0]
    )
    real = [4, 2, 7, 5, 9]
    np.testing.assert_array_equal(found.id, real)
    np.testing.assert_array_equal(found.patient, np.multiply(real, 10))
    odds = np.outer(real, [1, 0.5])
    np.testing.assert_array_equal(found.ranking, odds)
    np.testing.assert_allclose(found.probability, 1 / (1 + np.exp(-odds)), atol=1e-6)
    np.testing.assert_array_equal(found.label[:, 1], np.add(real, 1))


def test_embeddings_come_out_once_in_order_without_the_padding():
    ids = np.array([4, 2, 7, 5, 9, -1, -1, -1]).reshape(2, 2, 2)
    batches = [{"id": part, "image": part[..., None].astype(float)} for part in ids]
    found = inference.embed(batches, lambda x: np.concatenate([x, -x, x**2], -1))
    real = np.array([4, 2, 7, 5, 9])
    np.testing.assert_array_equal(found, np.stack([real, -real, real**2], 1))


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(("devices", "channels"), [(1, 1), (2, 1), (2, 3)])
def test_files_keep_their_order_and_bad_ones_their_reason(
    tmp_path, batch, devices, channels
):
    shape = (8, 8, channels)
    rng = np.random.default_rng(0)
    paths = []
    for i in range(7):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (20, 30, 3), np.uint8))
        paths.append(path)
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    calls = []

    def brightness(image):
        assert image.shape == (devices, batch, *shape)
        calls.append(image)
        return image.mean(axis=(2, 3))

    def load(path):
        return image_files.fit(image_files.read(path).pixels, shape), path.name

    options = {"load": load, "batch": batch, "devices": devices}
    found = list(inference.predict_files(paths, brightness, **options))
    assert [path for path, _, _ in found] == paths
    for path, read, value in found:
        if path == paths[3]:
            assert value is None and "3.png" in read
        else:
            assert read[1] == path.name
            pixels = image_files.read(path, channels=channels).pixels
            expected = image_files.resize(pixels, 8).reshape(64, channels).mean(axis=0)
            np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert len(calls) <= -(-7 // (batch * devices))


def test_what_is_given_twice_is_predicted_once(tmp_path, caplog):
    scan, film = tmp_path / "scan/T1.nii", tmp_path / "films/a.png"
    for path in (scan, film, film.with_name("b.png"), film.with_name("c.png")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (film.parent / "link.png").symlink_to(film)
    (tmp_path / "link").symlink_to(film.parent)
    run = SimpleNamespace(
        config=base.classification("table"), output=SimpleNamespace(masks=())
    )
    given = [film.with_name("b.png"), film.parent, film, tmp_path / "link"]
    paths, _ = new_images._find(run, [*map(str, given)])
    assert [path.name for path in paths] == ["b.png", "a.png", "c.png"]
    names = "b.png, a.png, a.png and 4 more"
    assert f"given more than once, and read once: {names}" in caplog.messages
    config = base.segmentation("folders")
    config.data.update(folder=str(tmp_path), sequences=("T1",), units=("z_scores",))
    config.data.update(files={"T1": "T1.nii"}, mask="")
    found = scans.to_predict(config, [str(scan.parent), str(tmp_path)])
    assert [patient.name for patient in found] == ["scan"]


class Begun:
    """What a device computes: it notes when it is begun and when it is fetched."""

    def __init__(self, image, notes):
        self.number, self.values = int(image.flat[0]), image[..., :1]
        self.notes = notes
        notes.append(("begun", self.number))

    def __array__(self, *_, **__):
        self.notes.append(("fetched", self.number))
        return self.values


def test_the_next_files_are_begun_before_the_last_are_fetched(monkeypatch):
    monkeypatch.setattr(jax, "device_get", np.asarray)
    notes, paths = [], [Path(str(number)) for number in range(5)]
    answers = inference.predict_files(
        paths,
        lambda image: Begun(image, notes),
        load=lambda path: (np.array([int(path.name)], np.float32),),
        batch=1,
        devices=2,
    )
    assert [row.tolist() for *_, row in answers] == [[0], [1], [2], [3], [4]]
    begun, fetched = ([(what, n) for n in (0, 2, 4)] for what in ("begun", "fetched"))
    order = [begun[0], begun[1], fetched[0], begun[2], fetched[1], fetched[2]]
    assert notes == order


def test_no_file_gives_no_row():
    options = {"load": None, "batch": 2, "devices": 1}
    assert list(inference.predict_files([], None, **options)) == []

"""Pictures of films under heatmaps: where colours and frames lie, and whose they are."""

import base64
import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from medjax.evaluation.inference import Predictions
from medjax.reports import pictures
from medjax.tasks import explain, films


def decoded(uri):
    head, code = uri.split(",")
    assert head == "data:image/webp;base64"
    pixels = np.frombuffer(base64.b64decode(code), np.uint8)
    return cv2.imdecode(pixels, cv2.IMREAD_COLOR)[..., ::-1].astype(int)


@pytest.mark.parametrize("shape", [(64, 32, 1), (44, 88, 3)])
def test_the_right_half_alone_is_coloured_where_the_heatmap_is(shape):
    image = np.full(shape, 120, np.uint8)
    heatmap = np.zeros((2,) * (len(shape) - 1))
    heatmap[..., 1, 0] = 3.0  # Below, on the left.
    uri, size = pictures.picture(image, heatmap)
    found = decoded(uri)
    assert size == found.shape[1::-1]
    height, width = found.shape[0], (found.shape[1] - pictures.PICTURE_GAP) // 2
    assert height / width == pytest.approx(shape[-3] / shape[-2], rel=0.02)
    assert max(height, width) == pictures.SIDE and len(uri) < 8000
    assert np.ptp(found[:, :width], axis=-1).max() < 12  # Grey.
    right = np.ptp(found[:, -width:], axis=-1)
    parts = right.reshape(-1)[: 2 * (height // 2) * width].reshape(2, -1, width)
    low_left = parts[1][:, : width // 2].mean()
    assert low_left > 2 * parts[0][:, : width // 2].mean() > 0
    assert low_left > 2 * parts[1][:, width // 2 :].mean()


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path, film = tmp_path / "a.png", np.zeros((8, 8, 1))
    how = {"task": "mass", "probability": 0.9, "threshold": 0.4}
    pictures.overlay(path, film, film[..., 0], **how)
    before = path.read_bytes()

    def full(image, where):
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.Image.Image, "save", full)
    with pytest.raises(OSError, match="No space") as error:
        pictures.overlay(path, film, film[..., 0], **how)
    assert error.value.filename == str(path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_a_frame_lies_where_the_box_does_on_both_halves():
    image = np.zeros((100, 50, 1), np.uint8)
    uri, _ = pictures.picture(image, np.zeros((2, 2)), [[(20, 10), (60, 30)]])
    found = decoded(uri)
    scale = pictures.SIDE / 100
    for half in (found[:, :88], found[:, -88:]):
        y, x = np.nonzero(half[..., 0] - half[..., 2] > 60)
        for found_at, edge in ((y, (20, 60)), (x, (10, 30))):
            ends = found_at.min() / scale, found_at.max() / scale
            assert ends == pytest.approx(edge, abs=1.5)


def test_each_picture_is_of_the_film_that_it_names(tmp_path, monkeypatch):
    config = importlib.import_module("configs.quickstart").get_config()
    config.data.update(patients=8, side=32, records=str(tmp_path))
    config.data.prevalence = (0.5,) * 6
    config.evaluation.batch = 5
    data = films.data(config)
    ids = data.table["id"].to_numpy()[::-1]
    label, tasks = data.label(ids), data.output.names
    score = np.random.default_rng(0).random(label.shape).astype(np.float32)
    found = Predictions(ids, ids // 2, score, label, np.ones_like(label))
    points = np.array([math.nan, *[0.5] * 5])
    run = SimpleNamespace(config=config, output=data.output, thresholds=points)
    drawn = []

    def picture(image, heatmap, boxes, *, side):
        drawn.append((image, heatmap, boxes))
        return "data:", (2, 1)

    def explainer(
        image,
    ):  # [D, B, H, W, 1] -> [D, B, T, H, W], the task's number added.
        tasks = np.arange(6)[:, None, None]
        return image[..., 0][:, :, None].astype(np.float32) + tasks

    monkeypatch.setattr(pictures, "picture", picture)
    monkeypatch.setattr(explain, "explainer", lambda run: explainer)
    shown = explain.gallery(run, data, found, each=1)
    assert list(shown) == list(tasks[1:])
    boxes = explain.read_boxes(data, ids)
    names = dict(zip(data.table["image"].astype(str), data.table["id"], strict=True))
    every = [
        (task, kind, film)
        for task, kinds in shown.items()
        for kind, of_kind in kinds.items()
        for film in of_kind
    ]
    chosen = explain.choose(found, points, each=1)
    assert len(drawn) == len(every) == len(chosen) > 10
    assert all(list(kinds) == list(explain.OUTCOMES) for kinds in shown.values())
    for (task, kind, film), (image, heatmap, marks) in zip(every, drawn, strict=True):
        t, id = tasks.index(task), names[film["image"]]
        at = np.flatnonzero(ids == id)[0]
        assert film["probability"] == pytest.approx(score[at, t])
        assert (score[at, t] >= 0.5) == kind.endswith("positive")
        ill = kind in ("true_positive", "false_negative")
        assert label[at, t] == ill and film["boxes"] == ill == bool(len(marks))
        np.testing.assert_array_equal(image, data.films([id])[0]["image"])
        np.testing.assert_allclose(heatmap, image[..., 0].astype(float) + t)
        own = boxes[(boxes["id"] == id) & (boxes["task"] == t)]
        assert len(own) == len(marks)


def test_without_a_threshold_there_is_nothing_to_show():
    output = SimpleNamespace(names=("a",))
    run = SimpleNamespace(output=output, thresholds=np.array([math.nan]))
    one = np.ones((2, 1), np.float32)
    found = Predictions(np.arange(2), np.arange(2), one, one, one)
    assert explain.gallery(run, None, found, each=2) == {}

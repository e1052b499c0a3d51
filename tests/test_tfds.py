"""Data sets that TFDS prepares here, read back without their code."""

import io
import json
import logging
import math
import shutil

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image
from tensorflow_datasets import features as kinds

from medjax.data import image_files, prepared, records, sources
from medjax.errors import InputError

SIDE = 6
RNG = np.random.default_rng(0)
SIZES = {"train": 5, "validation": 2, "extra": 3}


class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    """Any features and examples: {split: [example]}."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def __init__(self, features, examples, **options):
        self.features, self.examples = features, examples
        super().__init__(file_format="array_record", **options)

    def _info(self):
        features = kinds.FeaturesDict(self.features)
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.examples}

    def _generate_examples(self, split):
        yield from enumerate(self.examples[split])


def write(folder, features, examples, **options):
    builder = Tiny(features, examples, data_dir=folder, **options)
    builder.download_and_prepare(file_format="array_record")


def encode(pixels, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    out.seek(0)
    return out


SEEN = {  # Number of an example -> its picture.
    n: RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for n in range(10)
}


def example(n):
    """Every value tells n."""
    return {
        "image": encode(SEEN[n]),
        "grey": encode(SEEN[n][..., 0]),
        "deep": encode(SEEN[n][..., 0].astype(np.uint16) * 257),
        "plain": SEEN[n],
        "number": n,
        "kind": n % 3 - (n == 4) * (n % 3 + 1),  # Unknown for the fourth.
        "several": [[], [0], [1, 2]][n % 3],
        "vector": [n % 2, 0.5, math.nan],
        "open": [n % 2, 1],
        "edema": n % 2 == 0,
        "mass": n / 10,
        "who": f"p{n // 2}",
        "sex": n % 2,
        "flag": -1 if n == 2 else n % 2,
        "age": math.nan if n == 3 else 20.0 + n,
        "place": ["PA", "AP", "somewhere"][n % 3],
    }


FEATURES = {
    "image": kinds.Image(shape=(None, None, 3)),
    "grey": kinds.Image(shape=(None, None, 1)),
    "deep": kinds.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
    "plain": kinds.Tensor(shape=(SIDE, SIDE, 3), dtype=np.uint8),
    "number": np.int64,
    "kind": kinds.ClassLabel(names=["ant", "bee", "cat"]),
    "several": kinds.Sequence(kinds.ClassLabel(names=["x", "y", "z"])),
    "vector": kinds.Tensor(shape=(3,), dtype=np.float32),
    "open": kinds.Sequence(np.int64),
    "edema": np.bool_,
    "mass": np.float32,
    "who": kinds.Text(),
    "sex": kinds.ClassLabel(names=["F", "M"]),
    "flag": kinds.ClassLabel(names=["no", "yes"]),
    "age": np.float32,
    "place": kinds.Text(),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data set `tiny` of ten examples in three splits."""
    folder = tmp_path_factory.mktemp("tfds")
    numbers = iter(range(10))
    examples = {
        split: [example(next(numbers)) for _ in range(size)]
        for split, size in SIZES.items()
    }
    write(folder, FEATURES, examples)
    return folder


def read(data_dir, **settings):
    settings = {"label": "number", "labels": ("edema", "mass"), **settings}
    settings = {"name": "tiny", "side": SIDE, "data_dir": data_dir, **settings}
    return sources.IMAGES["tfds"](**settings)


def items(source):
    return list(source.items())


def by_number(source):
    """The items in the order in which the examples were written: by their mass."""
    return sorted(items(source), key=lambda item: item.row["mass"])


def test_a_data_set_becomes_records_equal_to_what_was_written(data_dir, tmp_path):
    settings = {"patient": "who", "sex": "sex", "age": "age", "view": "place"}
    source = read(data_dir, follow_up="number", channels=3, **settings)
    assert source.tasks == ("edema", "mass")
    path = records.prepare(source, records=tmp_path, name="x", max_quarantined=0.0)
    stored = records.pixels_of(path)
    assert stored.shape[1:] == (SIDE, SIDE, 3) and stored.dtype == np.uint8
    found = prepared.read_table(path).sort_values("follow_up")
    for n, id in enumerate(found["id"]):
        np.testing.assert_array_equal(stored[id], SEEN[n])
    assert found["image"].is_unique
    np.testing.assert_array_equal(found["follow_up"], np.arange(10))
    assert found["patient"].tolist() == [f"p{n // 2}" for n in range(10)]
    assert list(found["sex"]) == ["F", "M"] * 5
    assert list(found["view"]) == [["PA", "AP", ""][n % 3] for n in range(10)]
    expected = [math.nan if n == 3 else 20 + n for n in range(10)]
    np.testing.assert_array_equal(found["age"], expected)
    official = ["train"] * 5 + ["validation"] * 2 + [""] * 3
    assert list(found["official"]) == official
    np.testing.assert_array_equal(found["edema"], [1, 0] * 5)
    np.testing.assert_allclose(found["mass"], np.arange(10) / 10)
    assert (found["width"] == SIDE).all()


@pytest.mark.parametrize("image", ["image", "plain"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_becomes_luminance_where_one_channel_is_asked(data_dir, image, channels):
    for n, item in enumerate(by_number(read(data_dir, image=image, channels=channels))):
        grey = SEEN[n] @ np.array([0.299, 0.587, 0.114])
        expected = SEEN[n] if channels == 3 else grey[..., None]
        assert np.abs(item.content - expected).max() <= 0.51


@pytest.mark.parametrize("image", ["grey", "deep"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_stays_or_is_repeated(data_dir, image, channels):
    for n, item in enumerate(by_number(read(data_dir, image=image, channels=channels))):
        expected = np.repeat(SEEN[n][..., :1], channels, axis=2)
        np.testing.assert_array_equal(item.content, expected)


def test_images_are_resized(data_dir):
    source = read(data_dir, side=4, channels=3)
    for n, item in enumerate(by_number(source)):
        expected = image_files.resize((SEEN[n] / 255).astype(np.float32), 4)
        np.testing.assert_array_equal(item.content, expected)
        assert (item.row["width"], item.row["height"]) == (SIDE, SIDE)


NAN = math.nan
UNKNOWN = [NAN] * 3


@pytest.mark.parametrize(
    ("settings", "tasks", "expected"),
    [
        (
            {"label": "kind"},
            ("ant", "bee", "cat"),
            lambda n: UNKNOWN if n == 4 else np.eye(3)[n % 3],
        ),
        (
            {"label": "several"},
            ("x", "y", "z"),
            lambda n: [[0, 0, 0], [1, 0, 0], [0, 1, 1]][n % 3],
        ),
        ({"label": "vector"}, ("0", "1", "2"), lambda n: [n % 2, 0.5, NAN]),
        (
            {"label": "vector", "names": ("a", "b", "c")},
            ("a", "b", "c"),
            lambda n: [n % 2, 0.5, NAN],
        ),
        ({"label": "open", "names": ("a", "b")}, ("a", "b"), lambda n: [n % 2, 1]),
        ({"label": "mass"}, ("mass",), lambda n: [np.float32(n / 10)]),
        (
            {"labels": ("edema", "flag")},
            ("edema", "flag"),
            lambda n: [n % 2 == 0, NAN if n == 2 else n % 2],
        ),
    ],
)
def test_every_kind_of_label_is_read(data_dir, settings, tasks, expected):
    source = read(data_dir, **{"labels": (), "age": "number", **settings})
    assert source.tasks == tasks
    for item in items(source):
        label = [item.row[task] for task in tasks]
        np.testing.assert_array_equal(label, expected(int(item.row["age"])))


def test_without_patients_each_image_is_one_and_a_warning_says_so(data_dir, caplog):
    with caplog.at_level(logging.WARNING, "medjax"):
        found = items(read(data_dir))
    assert sorted(item.row["patient"] for item in found) == list(range(10))
    assert "'sex' isn't read: with data.sex='sex'" in caplog.text
    assert caplog.text.count("data.patient=''") == 1
    caplog.clear()
    read(data_dir, patient="number")
    assert "data.patient" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "huge"}, "data.name='huge': no prepared TFDS data set in .*/huge"),
        ({"channels": 4}, "data.channels=4"),
        ({"image": "picture"}, "no feature 'picture', only age, deep, "),
        ({"labels": ("edema", "oedema")}, "no feature 'oedema'"),
        ({"patient": "name"}, "no feature 'name'"),
        ({"image": "number"}, "the feature 'number' is .*: an Image of 8 or 16"),
        ({"image": "vector"}, "the feature 'vector' is .*: an Image of 8 or 16"),
        ({"labels": (), "label": "who"}, "the feature 'who' is .*, no label"),
        ({"labels": (), "label": "plain"}, "the feature 'plain' is .*, no label"),
        ({"labels": ("edema", "vector")}, "the feature 'vector' is .*, no label"),
        ({"labels": (), "label": "number"}, r"number of .* is \d, not from 0"),
        ({"labels": (), "label": "vector", "names": ("a",)}, "has 1 names: .* has 3"),
        ({"labels": (), "label": "open"}, "has 0 names: .* None findings"),
        ({"labels": (), "label": "open", "names": tuple("abc")}, "has 2 numbers"),
        ({"names": ("a", "b")}, "data.names names .* 'edema' of .* leave it out"),
        ({"labels": (), "label": "kind", "names": tuple("abc")}, "leave it out"),
        ({"labels": (), "label": "several", "names": tuple("abc")}, "leave it out"),
        ({"patient": "vector"}, "the feature 'vector' is .*: text, a number"),
        ({"patient": "who", "age": "who"}, r"the age of .* is 'p\d', no number"),
    ],
)
def test_a_mistake_is_named_in_one_line(data_dir, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        read(data_dir, **settings)
    assert "\n" not in str(caught.value)


LABELLED = {"image": kinds.Image(shape=(None, None, 1)), "ill": np.int64}


def labelled(n):
    return {"image": encode(SEEN[n][..., 0]), "ill": n % 2}


def test_one_of_several_prepared_data_sets_must_be_named(tmp_path):
    for config in ("small", "large"):
        chosen = tensorflow_datasets.core.BuilderConfig(name=config)
        n = len(config)
        write(tmp_path, LABELLED, {"train": [labelled(n)]}, config=chosen)
    common = {"side": SIDE, "label": "ill"}
    with pytest.raises(InputError, match="tiny/large/1.0.0, tiny/small/1.0.0: name"):
        sources.IMAGES["tfds"](name="tiny", data_dir=tmp_path, **common)
    for name, data_dir in (
        ("tiny/small", tmp_path),
        ("tiny/small/1.0.0", tmp_path),
        (str(tmp_path / "tiny/small"), "/nowhere"),
    ):
        (item,) = items(sources.IMAGES["tfds"](name=name, data_dir=data_dir, **common))
        np.testing.assert_array_equal(item.content, SEEN[5][..., :1])


def test_a_truncated_picture_is_quarantined(tmp_path):
    torn = io.BytesIO(encode(SEEN[0][..., 0]).read()[:-20])
    examples = {"train": [{"image": torn, "ill": 1}, labelled(0)]}
    write(tmp_path, LABELLED, examples)
    found = items(
        sources.IMAGES["tfds"](name="tiny", side=4, data_dir=tmp_path, label="ill")
    )
    (bad,) = [item for item in found if item.content is None]
    assert bad.row["ill"] == 1
    assert "truncated" in bad.reason


def test_files_that_cannot_be_read_at_random_are_refused(tmp_path):
    write(tmp_path, LABELLED, {"train": [labelled(0)]})
    folder = tmp_path / "tiny/1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    common = {"name": "tiny", "side": SIDE, "label": "ill", "data_dir": tmp_path}
    whole = (folder / "dataset_info.json").read_text()
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="its files are tfrecord, .*'array_record'"):
        sources.IMAGES["tfds"](**common)
    (folder / "dataset_info.json").write_text(whole[:-20])
    with pytest.raises(InputError, match="can't be read") as caught:
        sources.IMAGES["tfds"](**common)
    assert "\n" not in str(caught.value)
    (folder / "dataset_info.json").write_text(whole)
    (file,) = folder.glob("*array_record*")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="can't be read"):
        sources.IMAGES["tfds"](**common)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no prepared TFDS data set"):
        sources.IMAGES["tfds"](**common)


def test_a_data_set_without_examples_is_refused(tmp_path):
    write(tmp_path, LABELLED, {"train": [labelled(0)]})
    folder = tmp_path / "tiny/1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    del info["splits"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="holds no example"):
        sources.IMAGES["tfds"](name="tiny", side=SIDE, label="ill", data_dir=tmp_path)

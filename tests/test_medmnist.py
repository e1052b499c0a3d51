"""MedMNIST files written here, against the arrays that were written."""

import io
import os
import zipfile

import numpy as np
import pytest
from scipy import ndimage

from configs import medmnist
from medjax.data import image_files, prepared, records, sources
from medjax.errors import InputError
from medjax.tasks import films

RNG = np.random.default_rng(0)
SIZES = {"train": 7, "val": 3, "test": 2}
OFFICIAL = ["train"] * 7 + ["validation"] * 3 + ["test"] * 2


def arrays(sample=(6, 6), labels=1, classes=4):
    """The six arrays of a file; every class is there."""
    found = {}
    for name, n in SIZES.items():
        found[f"{name}_images"] = RNG.integers(0, 256, (n, *sample), dtype=np.uint8)
        label = np.arange(n * labels).reshape(n, labels) % classes
        found[f"{name}_labels"] = label.astype(np.uint8)
    return found


def images_of(found):
    return [image for name in SIZES for image in found[f"{name}_images"]]


@pytest.fixture
def save(tmp_path):
    def save(found):
        np.savez_compressed(tmp_path / "x.npz", **found)
        return tmp_path / "x.npz"

    return save


def items(source):
    return list(source.items())


def label_of(source):
    return [[item.row[task] for task in source.tasks] for item in items(source)]


@pytest.mark.parametrize(
    ("sample", "shape"),
    [((6, 6), (6, 6, 1)), ((6, 6, 3), (6, 6, 3)), ((6, 6, 6), (6, 6, 6, 1))],
)
def test_every_kind_of_image_comes_back_through_the_records(
    save, tmp_path, sample, shape
):
    found = arrays(sample)
    source = sources.IMAGES["medmnist"](file=save(found), side=6)
    assert source.total == 12
    path = records.prepare(
        source, records=tmp_path / "records", name="x", max_quarantined=0.0
    )
    stored = records.pixels_of(path)
    assert stored.shape[1:] == shape and stored.dtype == np.uint8
    for pixels, image in zip(stored, images_of(found), strict=True):
        np.testing.assert_array_equal(pixels, image.reshape(shape))
    table = prepared.read_table(path)
    assert list(table["official"]) == OFFICIAL
    assert table["patient"].is_unique
    assert table["image"].is_unique
    assert (table["width"] == 6).all()
    assert (table["height"] == 6).all()
    label = np.concatenate([found[f"{name}_labels"] for name in SIZES])[:, 0]
    np.testing.assert_array_equal(table[["0", "1", "2", "3"]], np.eye(4)[label])


@pytest.mark.parametrize("sample", [(9, 6), (9, 6, 3)])
def test_pictures_of_another_size_are_resized(save, sample):
    found = arrays(sample)
    source = sources.IMAGES["medmnist"](file=save(found), side=4)
    for item, image in zip(items(source), images_of(found), strict=True):
        expected = image_files.resize((image / 255).astype(np.float32), 4)
        np.testing.assert_array_equal(item.content, expected.reshape(source.shape))
        assert (item.row["width"], item.row["height"]) == (6, 9)


def test_names_are_those_given(save):
    path = save(arrays())
    names = ("a", "b", "c", "d")
    assert sources.IMAGES["medmnist"](file=path, side=6, names=names).tasks == names
    assert (
        sources.IMAGES["medmnist"](file=path, side=6, names=(*names, "e")).tasks[4]
        == "e"
    )


def test_a_binary_file_is_one_finding_or_two_classes(save):
    path = save(arrays(classes=2))
    expected = [0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1]
    one = sources.IMAGES["medmnist"](
        file=path, side=6, task="multilabel", names=("pneumonia",)
    )
    assert one.tasks == ("pneumonia",)
    np.testing.assert_array_equal(label_of(one), np.array(expected)[:, None])
    two = sources.IMAGES["medmnist"](file=path, side=6)
    np.testing.assert_array_equal(label_of(two), np.eye(2)[expected])


def test_several_findings_stay_as_they_are(save):
    found = arrays(labels=3, classes=2)
    source = sources.IMAGES["medmnist"](file=save(found), side=6, task="multilabel")
    assert source.tasks == ("0", "1", "2")
    expected = np.concatenate([found[f"{name}_labels"] for name in SIZES])
    np.testing.assert_array_equal(label_of(source), expected)


def test_a_split_may_be_empty(save, tmp_path):
    found = arrays()
    found["val_images"], found["val_labels"] = (
        found["val_images"][:0],
        found["val_labels"][:0],
    )
    source = sources.IMAGES["medmnist"](file=save(found), side=6)
    path = records.prepare(
        source, records=tmp_path / "records", name="x", max_quarantined=0.0
    )
    official = list(prepared.read_table(path)["official"])
    assert official == [name for name in OFFICIAL if name != "validation"]


def without(name):
    return lambda a: a.pop(name)


def put(name, change):
    return lambda a: a.update({name: change(a[name])})


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (without("val_images"), {}, "has no array 'val_images'"),
        (without("test_labels"), {}, "has no array 'test_labels'"),
        (put("train_images", lambda a: a / 255), {}, r"train_images is float64 \(7, 6"),
        (put("val_images", lambda a: a[0]), {}, r"val_images is uint8 \(6, 6\)"),
        (put("val_images", lambda a: a[:, :5]), {}, r"\(5, 6\) and .* \(6, 6\)"),
        (put("val_images", lambda a: a[:, :0]), {}, r"val_images is uint8 \(3, 0, 6"),
        (put("val_images", lambda a: a[1:]), {}, "2 val_images and 3 val_labels"),
        (put("val_labels", lambda a: a[:, 0]), {}, r"val_labels is uint8 \(3,\)"),
        (put("val_labels", lambda a: a / 2), {}, "val_labels is float64"),
        (put("val_labels", lambda a: a.repeat(2, 1)), {}, "different numbers"),
        (put("val_labels", lambda a: a.astype(int) - 1), {}, "classes from -1 to 3"),
        (put("test_labels", lambda a: a + 4), {"names": tuple("abcd")}, "0 to 5"),
        (lambda a: None, {"task": "multilabel"}, "is 2, not from 0"),
        (lambda a: None, {"task": "multilabel", "names": ("a", "b")}, "has 2 names"),
        (
            lambda a: a.update({k: v[:0] for k, v in a.items()}),
            {},
            "holds no image",
        ),
        (
            lambda a: a.update({k: v * 0 for k, v in a.items()}),
            {},
            "1 class",
        ),
    ],
)
def test_a_mistake_is_named_in_one_line(save, change, settings, message):
    found = arrays()
    change(found)
    path = save(found)
    with pytest.raises(InputError, match=message) as caught:
        sources.IMAGES["medmnist"](file=path, side=6, **settings)
    assert "\n" not in str(caught.value)


def test_several_findings_are_no_class(save):
    path = save(arrays(labels=3))
    with pytest.raises(InputError, match="set task='multilabel'"):
        sources.IMAGES["medmnist"](file=path, side=6)


@pytest.mark.parametrize("sample", [(6, 6, 6), (6, 5, 6)])
def test_a_volume_of_another_side_is_refused(save, sample):
    path = save(arrays(sample))
    sides = " x ".join(map(str, sample))
    with pytest.raises(InputError, match=f"volumes are {sides} and data.side=8"):
        sources.IMAGES["medmnist"](file=path, side=8)


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (os.fspath(self.folder),)


@pytest.mark.parametrize("name", ["train_images", "val_labels"])
def test_a_pickle_in_the_file_is_not_run(save, tmp_path, name):
    trapped = arrays()
    trapped[name] = np.array([Trap(tmp_path / "sprung")] * len(trapped[name]))
    path = save(trapped)
    with pytest.raises(InputError, match="train_images is object|Object arrays"):
        sources.IMAGES["medmnist"](file=path, side=6)
    assert not (tmp_path / "sprung").exists()
    np.load(path, allow_pickle=True)[name]
    assert (tmp_path / "sprung").exists()  # Or the trap tests nothing.


def test_what_is_no_whole_npz_is_refused(save, tmp_path):
    path = save(arrays())
    whole = path.read_bytes()
    for spoilt in (b"", b"PK", whole[: len(whole) // 2], b"\x93NUMPY" + whole):
        path.write_bytes(spoilt[:-9])
        with pytest.raises(InputError, match="x.npz: can't be read") as caught:
            sources.IMAGES["medmnist"](file=path, side=6)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="none.npz: can't be read"):
        sources.IMAGES["medmnist"](file=tmp_path / "none.npz", side=6)


def rewrite(path, name, data):
    """Puts other bytes in the place of an array, with the right checksum."""
    with zipfile.ZipFile(path) as archive:
        parts = {key: archive.read(key) for key in archive.namelist()}
    parts[name] = data
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in parts.items():
            archive.writestr(key, value)


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("train_images", b"no array"),
        ("train_labels", b""),
        ("train_images", npy(np.asfortranarray(arrays()["train_images"]))),
        ("train_labels", npy(arrays()["train_labels"])[:-3]),
        ("train_labels", npy(np.zeros(1)).replace(b"(1,), ", b"(%d,)," % 10**18)),
    ],
)
def test_an_array_that_lies_about_itself_is_refused(save, name, data):
    path = save(arrays())
    rewrite(path, f"{name}.npy", data)
    with pytest.raises(InputError, match="can't be read"):
        sources.IMAGES["medmnist"](file=path, side=6)


@pytest.mark.parametrize("whole", [True, False])
def test_images_that_end_too_early_stop_the_preparation(save, whole):
    found = arrays()
    path = save(found)
    data = npy(found["val_images"])
    rewrite(path, "val_images.npy", data if whole else data[:-5])
    source = sources.IMAGES["medmnist"](file=path, side=6)
    if whole:
        assert len(items(source)) == 12
        return
    with pytest.raises(InputError, match="can't be read .*; fetch"):
        items(source)


def test_a_flipped_bit_in_the_images_stops_the_preparation(save):
    found = arrays()
    path = save(found)
    rewrite(path, "val_images.npy", npy(found["val_images"]))
    raw = bytearray(path.read_bytes())
    raw[raw.index(found["val_images"].tobytes()) + 9] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="CRC"):
        items(sources.IMAGES["medmnist"](file=path, side=6))


def test_copies_of_volumes_are_looked_for_turned_and_in_one_grey_level(save, tmp_path):
    found = arrays((24, 24, 24))
    noise = RNG.normal(0, 1, (len(OFFICIAL), 24, 24, 24))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 2))
    grey = np.clip(128 + 600 * smooth, 0, 255).astype(np.uint8)
    found["train_images"], found["val_images"], found["test_images"] = (
        grey[:7].copy(),
        grey[7:10].copy(),
        grey[10:].copy(),
    )
    found["train_images"][1] = shape = 255 * (smooth[1] > 0.05).astype(np.uint8)
    found["val_images"][2] = np.rot90(grey[0], 1, (0, 2))
    found["test_images"][1] = shape[:, :, ::-1]
    c = medmnist.get_config()
    c.data.update(file=str(save(found)), side=24, records=str(tmp_path / "records"))
    data = films.data(c)
    assert data.pairs()[["id", "other"]].values.tolist() == [[0, 9], [1, 11]]
    ids = np.arange(len(OFFICIAL))
    pairs = data.copies(ids[:9], data, ids[9:])
    assert pairs[["id", "other"]].values.tolist() == [[0, 9], [1, 11]]

"""What a run was made of is held to: other data or another split stop it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from medjax.cohort import manifests
from medjax.data import volumes
from medjax.data.scan import make_scan
from medjax.errors import InputError
from medjax.training import workdir


@pytest.fixture
def records(tmp_path):
    """Prepared data of six images of three patients, as far as is looked at."""
    folder = tmp_path / "records"
    folder.mkdir()
    table = {"id": range(6), "image": list("abcdef"), "patient": [0, 0, 1, 1, 2, 2]}
    pd.DataFrame(table).to_csv(folder / "table.csv", index=False)
    (folder / "pixels.npy").write_bytes(bytes(100))
    (folder / "hashes.npy").write_bytes(bytes(range(6)))
    return folder


def manifest(sides=("train", "validation", "test")):
    """Of those images, each patient on one side."""
    return pd.DataFrame(
        {
            "id": np.arange(6),
            "image": list("abcdef"),
            "patient": np.arange(6) // 2,
            "split": np.repeat(sides, 2),
        }
    )


@pytest.fixture
def run(tmp_path, records):
    folder = tmp_path / "run"
    folder.mkdir()
    workdir.hold(folder, records, manifest())
    manifests.write(manifest(), folder / "splits.csv")
    return folder


def test_the_same_data_and_split_go_on(run, records):
    first = (run / "provenance.json").read_text()
    (records / "duplicates-1.csv").write_text("id,other\n")  # Found later: no change.
    workdir.hold(run, records, manifest()[::-1])
    assert (run / "provenance.json").read_text() == first
    found = json.loads(first)
    assert found["data"].pop("sha256") and found["split"].pop("sha256")
    assert found["data"] == {"images": 6, "patients": 3, "bytes": 106}
    assert found["split"] == {"train": 2, "validation": 2, "test": 2}


def test_moved_records_are_the_same_data(run, records):
    written = (run / "provenance.json").read_text()
    moved = records.rename(records.with_name("elsewhere"))
    workdir.hold(run, moved, manifest())
    assert (run / "provenance.json").read_text() == written


def change_a_label(folder):
    path = folder / "table.csv"
    path.write_text(path.read_text().replace("5,f,2", "5,f,1"))


def add_an_image(folder):
    with (folder / "table.csv").open("a") as file:
        file.write("6,g,3\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_a_label, r"sha256: \w+ then, \w+ now"),
        (add_an_image, "images: 6 then, 7 now, patients: 3 then, 4 now"),
        (
            lambda f: (f / "pixels.npy").write_bytes(b"1"),
            "bytes: 106 then, 7 now",
        ),
        (lambda f: (f / "hashes.npy").write_bytes(bytes(6)), "sha256"),
        (lambda f: (f / "digests.json").write_text("{}"), "sha256"),
    ],
)
def test_other_data_are_refused_by_what_differs(run, records, change, said):
    change(records)
    with pytest.raises(InputError, match=said) as error:
        workdir.hold(run, records, manifest())
    assert "\n" not in str(error.value) and "--workdir" in str(error.value)


def test_another_split_is_refused_by_who_moved(run, records):
    other = manifest(("train", "test", "validation"))
    with pytest.raises(InputError, match="4 images.*c: validation then, test now"):
        workdir.hold(run, records, other)
    with pytest.raises(InputError, match="such as f: test then, absent now"):
        workdir.hold(run, records, manifest()[:-1])


def edit(path):
    """As a user would, who wants one patient more to train on."""
    path.write_text(path.read_text().replace("validation", "train"))


def test_a_split_that_was_edited_by_hand_is_neither_used_nor_overwritten(run, records):
    pd.testing.assert_frame_equal(workdir.sides(run), manifest())
    edit(run / "splits.csv")
    edited = (run / "splits.csv").read_text()
    for look in (
        lambda: workdir.sides(run),
        lambda: workdir.hold(run, records, manifest()),
    ):
        with pytest.raises(InputError, match="splits.csv: was changed after the run"):
            look()
    assert (run / "splits.csv").read_text() == edited
    (run / "splits.csv").unlink()  # As the error says.
    workdir.hold(run, records, manifest())
    with pytest.raises(InputError, match="the split changed .*splits.csv is gone"):
        workdir.hold(run, records, manifest(("train", "test", "validation")))


def test_the_data_that_a_run_is_adapted_to_are_held_to_as_well(tmp_path, records):
    folder, other = tmp_path / "adapted", tmp_path / "other"
    folder.mkdir()
    shutil.copytree(records, other)
    target = {"target": (other, manifest())}
    workdir.hold(folder, records, manifest(), **target)
    for name in ("splits.csv", "target.csv"):
        manifests.write(manifest(), folder / name)
    workdir.hold(folder, records, manifest(), **target)
    edit(folder / "target.csv")
    workdir.sides(folder)
    with pytest.raises(InputError, match="target.csv: was changed"):
        workdir.sides(folder, "target.csv")
    manifests.write(manifest(), folder / "target.csv")
    change_a_label(other)
    with pytest.raises(InputError, match=f"the data under {other} changed"):
        workdir.hold(folder, records, manifest(), **target)


def test_the_weights_that_a_run_starts_from_are_held_to(tmp_path, records):
    folder = tmp_path / "begun"
    folder.mkdir()
    weights = {
        "stem": {"kernel": np.ones((2, 3), np.float32)},
        "bias": np.zeros(3, np.int32),
    }
    workdir.hold(folder, records, manifest(), weights=weights)
    same = jax.tree.map(jnp.array, weights)
    workdir.hold(folder, records, manifest(), weights=same)
    weights["stem"]["kernel"][1, 2] = 1.0001
    with pytest.raises(InputError, match=r"weights of transfer.init changed"):
        workdir.hold(folder, records, manifest(), weights=weights)


def test_other_voxels_of_the_same_size_are_other_data(tmp_path):
    """The digests are taken when the volumes are written."""

    def prepared(name, seed):
        def read():
            image = 1 + np.random.default_rng(seed).random((4, 5, 6, 1), np.float32)
            return make_scan(image, None, np.eye(4))

        return volumes.prepare(
            [volumes.UnreadScan("one", 0, read)],
            tmp_path / name,
            sequences=("T1",),
            regions={"a": (1,)},
            options={},
        ).folder

    one, same, other = (
        workdir.of_data(prepared(name, x)) for name, x in zip("abc", (0, 0, 1))
    )
    assert one == same
    assert one["sha256"] != other["sha256"] and one["bytes"] == other["bytes"]

"""What a run was made of is held to: other data or another split stop it."""

import json

import numpy as np
import pandas as pd
import pytest

from medjax.cohort import splits
from medjax.errors import InputError
from medjax.training import provenance


@pytest.fixture
def records(tmp_path):
    """Prepared data of six images of three patients, as far as is looked at."""
    folder = tmp_path / "records"
    folder.mkdir()
    table = {"id": range(6), "image": list("abcdef"), "patient": [0, 0, 1, 1, 2, 2]}
    pd.DataFrame(table).to_csv(folder / "table.csv", index=False)
    (folder / "films.array_record-00000-of-00001").write_bytes(bytes(100))
    (folder / "hashes.bin").write_bytes(bytes(range(6)))
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
    provenance.hold(folder, records, manifest())
    splits.write(manifest(), folder / "splits.csv")
    return folder


def test_the_same_data_and_split_go_on(run, records):
    first = (run / "provenance.json").read_text()
    (records / "duplicates.csv").write_text("id,other\n")  # Found later: no change.
    provenance.hold(run, records, manifest()[::-1])
    assert (run / "provenance.json").read_text() == first
    found = json.loads(first)
    assert found["data"].pop("sha256") and found["split"].pop("sha256")
    assert found["data"] == {"images": 6, "patients": 3, "bytes": 100}
    assert found["split"] == {"train": 2, "validation": 2, "test": 2}


def test_moved_records_are_the_same_data(run, records):
    written = (run / "provenance.json").read_text()
    moved = records.rename(records.with_name("elsewhere"))
    provenance.hold(run, moved, manifest())
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
            lambda f: (f / "films.array_record-00000-of-00001").write_bytes(b"1"),
            "bytes: 100 then, 1 now",
        ),
        (lambda f: (f / "hashes.bin").write_bytes(bytes(6)), "sha256"),
    ],
)
def test_other_data_are_refused_by_what_differs(run, records, change, said):
    change(records)
    with pytest.raises(InputError, match=said) as error:
        provenance.hold(run, records, manifest())
    assert "\n" not in str(error.value) and "--workdir" in str(error.value)


def test_another_split_is_refused_by_who_moved(run, records):
    other = manifest(("train", "test", "validation"))
    with pytest.raises(InputError, match="4 images.*c: validation then, test now"):
        provenance.hold(run, records, other)
    with pytest.raises(InputError, match="such as f: test then, absent now"):
        provenance.hold(run, records, manifest()[:-1])

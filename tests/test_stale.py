"""Prepared data are refused once any file that they were made of has changed."""

import json
import os
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from configs import base, quickstart, quickstart_mri
from medjax.cohort import duplicates
from medjax.data import prepared, records, sources, volumes
from medjax.errors import InputError
from medjax.tasks import data_fields, films, scans


def export(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((8, 8), grey, np.uint8))


@pytest.fixture
def config(tmp_path):
    """Four pictures, one of them torn and one not there, and a table elsewhere."""
    for n in range(3):
        export(tmp_path / f"raw/{n}.png", 50 * n)
    os.truncate(tmp_path / "raw/2.png", 20)
    rows = pd.DataFrame({"image": [f"{n}.png" for n in range(4)], "patient": range(4)})
    (tmp_path / "meta").mkdir()
    rows.assign(mass=[0, 1, 0, 1]).to_csv(tmp_path / "meta/L.CSV", index=False)
    c = base.classification("table")
    c.data.update(folder=str(tmp_path / "raw"), table=str(tmp_path / "meta/L.CSV"))
    c.data.update(labels=("mass",), side=8, max_quarantined=0.5)
    c.data.records = str(tmp_path / "records")
    return c


def relabel(home):
    path = home / "meta/L.CSV"
    path.write_text(path.read_text().replace("1.png,1,1", "1.png,1,0"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (relabel, "L.CSV has changed"),
        (lambda home: export(home / "raw/1.png", 99), "1.png has changed"),
        (lambda home: export(home / "raw/2.png", 99), "2.png has changed"),
        (lambda home: export(home / "raw/3.png", 99), "3.png is new"),
        (lambda home: (home / "raw/0.png").unlink(), "0.png is gone"),
    ],
)
def test_a_change_of_the_table_or_of_a_picture_is_seen(config, tmp_path, change, error):
    assert films.data(config).table["mass"].tolist() == [0, 1]
    for path in (tmp_path / "raw").iterdir():
        os.utime(path, (0, 0))  # Copied again.
    films.data(config)
    change(tmp_path)
    with pytest.raises(InputError, match=f"{error} since.*data.records"):
        films.data(config)


def test_the_table_is_checked_where_the_pictures_are_elsewhere(config, tmp_path):
    films.data(config)
    shutil.rmtree(tmp_path / "raw")
    films.data(config)
    relabel(tmp_path)
    with pytest.raises(InputError, match="L.CSV has changed"):
        films.data(config)
    (tmp_path / "meta/L.CSV").unlink()
    films.data(config)


def test_what_was_left_out_of_kept_films_is_counted_again(config):
    assert len(films.data(config).table) == 2
    config.data.max_quarantined = 0.4  # Two of four were left out.
    with pytest.raises(InputError, match=r"50.0% of the files were left out.*40.0%"):
        films.data(config)


@pytest.mark.parametrize(("of", "room"), [(records, films), (volumes, scans)])
def test_a_newer_reader_prepares_again(monkeypatch, of, room):
    folders = []

    class Found(Exception):
        """The folder is known, and nothing needs to be prepared."""

    def ready(config, folder, *_):
        folders.append(folder)
        raise Found

    monkeypatch.setattr(data_fields, "ready", ready)
    c = (quickstart if room is films else quickstart_mri).get_config()
    for version in (of.READER, of.READER, of.READER + 1):
        monkeypatch.setattr(of, "READER", version)
        with pytest.raises(Found):
            room.data(c)
    assert folders[0] == folders[1] != folders[2]


def test_a_newer_search_looks_for_copies_again(config, monkeypatch):
    data = films.data(config)
    assert data.pairs().empty
    found = pd.DataFrame({"id": [0], "other": [1]})
    monkeypatch.setattr(films, "_pairs", lambda *_: found)
    assert data.pairs().empty  # Kept.
    monkeypatch.setattr(duplicates, "SEARCH", duplicates.SEARCH + 1)
    assert data.pairs().equals(found)


def test_other_labels_in_a_file_of_arrays_are_seen(tmp_path):
    c = base.classification("medmnist")
    c.task = "multiclass"
    c.data.update(file=str(tmp_path / "a.npz"), side=4, records=str(tmp_path / "r"))
    for turned in (0, 1):
        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = np.zeros((4, 4, 4), np.uint8)
            arrays[f"{split}_labels"] = (np.arange(4)[:, None] + turned) % 2
        np.savez(tmp_path / "a.npz", **arrays)
        if not turned:
            films.data(c)
    with pytest.raises(InputError, match="a.npz has changed"):
        films.data(c)


NIH = ("Data_Entry_2017.csv", "test_list.txt", "BBox_List_2017.csv.gz")
CHEXPERT = "Path\nCheXpert-v1.0-small/train/patient1/study1/a.jpg\n"


def nih(home):
    for name in (*NIH, "images_001/a.png", "images_002/images/b.png"):
        export(home / "raw/x.png", 0)
        (home / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "raw/x.png").rename(home / "raw" / name)
    for name in ("notes.csv", "images_001.tar.gz", "images_001/.DS_Store"):
        (home / "raw" / name).write_text("none of theirs")
    return {"folder": str(home / "raw"), "side": 8}


def chexpert(home):
    film = home / "raw/train/patient1/study1/a.jpg"
    export(film, 0)
    (home / "raw/train.csv").write_text(CHEXPERT)
    return {"folder": str(home / "raw"), "side": 8, "blank": "zeros"}


def tfds(home):
    (home / "sets/x/1.0.0").mkdir(parents=True)
    for name in ("dataset_info.json", "x-train.array_record-00000-of-00001"):
        (home / "sets/x/1.0.0" / name).write_text(name)
    return {"name": "x", "data_dir": str(home / "sets"), "side": 8}


@pytest.mark.parametrize(("make", "count"), [(nih, 5), (chexpert, 2), (tfds, 2)])
def test_every_file_that_a_layout_reads_counts(tmp_path, make, count):
    options = make(tmp_path)

    def digests():
        files = sources.FILES_OF[make.__name__](**options)
        return prepared.digests(files, tmp_path / "seen.json")

    before = digests()
    assert len(before) == count
    for path in [*tmp_path.rglob("*")]:
        if path.suffix in (".png", ".jpg") or ".array_record" in path.name:
            path.write_bytes(path.read_bytes() + b"x")
            assert digests() != before
            before = digests()
    shutil.rmtree(options.get("folder", options.get("data_dir")))
    assert not digests()


@pytest.mark.parametrize("absolute", [False, True])
def test_a_list_of_sequences_counts(tmp_path, monkeypatch, absolute):
    """Its files have the same names where it gives whole paths."""
    monkeypatch.chdir(tmp_path.parent)
    c = base.segmentation("decathlon")
    c.data.update(folder=tmp_path.name, sequences=("FLAIR",))
    (tmp_path / "imagesTr").mkdir()
    above = f"{tmp_path}/" if absolute else ""
    names = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    listed = [{kind: above + name for kind, name in names.items()}]
    text = json.dumps({"modality": {"0": "FLAIR"}, "training": listed})
    (tmp_path / "dataset.json").write_text(text)
    assert set(scans._files(c)) == {"dataset.json", *names.values()}


def test_a_backup_of_a_table_is_no_file_of_the_data(tmp_path):
    for name in ("train.csv", "train.csv.bak", "valid.csv.gz.old"):
        (tmp_path / name).write_text("Path\nCheXpert-small/train/a.jpg\n")
    export(tmp_path / "train/a.jpg", 0)
    (tmp_path / "train.zip").write_text("The same, packed.")
    files = sources.FILES_OF["chexpert"](folder=tmp_path)
    assert {*files} == {"train.csv", "train/a.jpg"}

"""Files are there whole or not at all, whatever their names hold."""

import os

import numpy as np
import pandas as pd
import pytest

from medjax import files


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "old")
    with pytest.raises(TypeError):
        files.write_text(path, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


def test_a_name_that_is_not_utf_8_is_escaped_and_no_row_is_lost(tmp_path):
    names = ["a.png", os.fsdecode(b"R\xf6ntgen.png"), "caf\u00e9,\n.png"]
    table = pd.DataFrame(
        {"image": names, "mass": np.float32([0.1, np.nan, 1])}, dtype=object
    )
    files.write_table(tmp_path / "a.csv", table)
    read = pd.read_csv(tmp_path / "a.csv")
    assert read["image"].tolist() == ["a.png", r"R\udcf6ntgen.png", "caf\u00e9,\n.png"]
    assert read["mass"].isna().tolist() == [False, True, False]

"""A short campaign; tests/README.md has the figures of a long one."""

import io

import campaign
import numpy as np
import pytest
from damaged import mutated, picture, same
from PIL import Image

from medjax.data import image_files
from medjax.errors import InputError


@pytest.mark.slow
@pytest.mark.parametrize("part", ["files", "leaks", "two,disk,kills"])
def test_a_short_campaign_finds_no_fault(tmp_path, part):
    """Those of commands share a study, whose stages take most of their time."""
    flags = ["--minutes=1", "--planted=4", f"--parts={part}", f"--keep={tmp_path}"]
    rows = campaign.campaign(campaign.parse(flags))
    assert {row.what: row.outcome for row in rows if row.faults} == {}


def test_mutations_replay():
    data = bytes(range(256)) * 8
    for seed in range(50):
        first, again = (mutated(data, np.random.default_rng(seed)) for _ in range(2))
        assert first == again and len(first) <= len(data) + len(data) // 8


def test_what_is_read_twice_is_compared():
    values = np.array([0.0, 1.0, float("nan")])
    assert same((values, 2.0), [values.copy(), 2.0], 0.0)
    assert not same(values, values[:2], 1.0)
    assert not same(values, values + 0.1, 0.01)
    assert same([b"a", "b"], [b"a", "b"], 0.0)
    assert not same([["1"]], [["2"]], 0.0)


def test_a_jpeg_is_refused_where_pillow_refuses_it():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        data = mutated(picture(rng, "JPEG"), rng)
        try:
            Image.open(io.BytesIO(data)).load()
        except Exception:  # noqa: BLE001
            with pytest.raises(InputError):
                image_files.decode(data)

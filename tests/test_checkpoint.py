import logging
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import InputError
from medjax.training.checkpoint import Checkpoints

HERE = {"next_index": 3}


class Pair(NamedTuple):
    step: jax.Array
    weights: dict


def pair(value, shape=(3, 2), dtype=jnp.float32):
    w = jax.random.normal(jax.random.key(value), shape).astype(dtype)
    return Pair(jnp.asarray(value, jnp.int32), {"w": w, "empty": {}})


def files_of(folder, step):
    return [p for p in (folder / str(step) / "state").rglob("*") if p.is_file()]


def test_state_and_position_come_back_to_the_bit_and_as_their_types(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, pair(7), {"next_index": 21, "of": [1, {"a": 2}]}, score=0.8)
    with Checkpoints(tmp_path) as checkpoints:
        step, state, data = checkpoints.restore(pair(0))
    assert (step, data) == (7, {"next_index": 21, "of": [1, {"a": 2}]})
    assert type(state) is Pair
    jax.tree.map(np.testing.assert_array_equal, state, pair(7))
    assert jax.tree.structure(state) == jax.tree.structure(pair(7))


def test_the_best_and_the_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, auroc in enumerate([0.5, 0.9, 0.8, None, float("nan"), 0.1], 1):
            checkpoints.save(step, pair(step), HERE, score=auroc)
        assert checkpoints.steps == [2, 3, 6]
        assert checkpoints.best == 2


def test_of_equal_scores_the_first_is_the_best(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, pair(step), HERE, score=0.7)
        assert checkpoints.best == 1


def test_a_step_may_be_saved_again(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, pair(1), HERE)
        checkpoints.save(1, pair(2), HERE, score=0.6)
        assert checkpoints.best == 1
        jax.tree.map(
            np.testing.assert_array_equal, checkpoints.restore(pair(0)).state, pair(2)
        )


def test_a_half_written_step_is_ignored_and_cleared_away(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, pair(1), {"next_index": 1})
        checkpoints.save(2, pair(2), {"next_index": 2})
    # What a kill -9 in mid-save leaves behind: Orbax's temporary folder.
    half = tmp_path / "2.orbax-checkpoint-tmp"
    (tmp_path / "2").rename(half)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps == [1]
        assert checkpoints.restore(pair(0)).data == {"next_index": 1}
        checkpoints.save(2, pair(2), {"next_index": 2})
        assert checkpoints.restore(pair(0)).step == 2


def test_a_deletion_that_is_killed_leaves_no_step_in_part(tmp_path, monkeypatch):
    def killed(folder):
        next(path for path in folder.rglob("*") if path.is_file()).unlink()
        raise KeyboardInterrupt

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, pair(1), HERE, score=0.5)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(2, pair(2), HERE, score=0.6)
    assert len([*tmp_path.iterdir()]) == 2  # One of them in part.
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [2] and checkpoints.best == 2
        assert checkpoints.restore(pair(0)).step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


# Orbax doesn't close its event loop where a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_step_is_named_and_the_one_before_it_taken(tmp_path, caplog):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, pair(1), HERE, score=0.9)
        checkpoints.save(2, pair(2), HERE, score=0.8)
    for path in files_of(tmp_path, 2):
        if "metadata" not in path.name.lower():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING):
        step, state, _ = checkpoints.restore(pair(0))
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, state, pair(1))
    assert "checkpoint 2 can't be read" in caplog.text


def test_a_damaged_score_is_named_or_lowest(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, pair(7), HERE, score=0.5)
    file = tmp_path / "7/metrics/metrics"
    for damaged in (b'{"score": ', b"\xff"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="the score of a checkpoint"):
            Checkpoints(tmp_path)
    file.write_text('{"scope": 0.5}')
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(8, pair(8), HERE, score=-2.0)
        assert checkpoints.best == 8


def test_nothing_readable_is_one_clear_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(InputError, match="there is none"):
            checkpoints.restore(pair(0))
        checkpoints.save(1, pair(1), HERE)
    shutil.rmtree(tmp_path / "1" / "state")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match="step 1"),
    ):
        checkpoints.restore(pair(0))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (pair(0, shape=(3, 5)), r"weights/w is float32\[3, 2\].*float32\[3, 5\]"),
        (pair(0, dtype=jnp.bfloat16), r"weights/w is float32.*bfloat16"),
        (
            pair(0)._replace(weights={"v": jnp.ones(3)}),
            "weights/v is only in the model",
        ),
    ],
)
def test_another_model_is_refused_by_the_name_of_the_leaf(tmp_path, template, said):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, pair(1), HERE)
        with pytest.raises(InputError, match=said):
            checkpoints.restore(template)

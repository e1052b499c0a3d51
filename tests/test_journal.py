import json
import re
from pathlib import Path

import pytest

from medjax.training import journal

STATUS = Path("/proc/self/status")


def test_lines_come_back_and_a_nan_is_null(tmp_path):
    with journal.Journal(tmp_path, steps=3) as written:
        written.write(1, {"loss": 0.5})
        written.write(2, {"loss": float("nan")})
    lines = journal.read(tmp_path / "metrics.jsonl")
    told = [{k: line[k] for k in ("step", "loss")} for line in lines]
    assert told == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    assert list((tmp_path / "events").iterdir())


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert journal.read(path) == [{"step": 1}]
    assert journal.read(tmp_path / "nothing.jsonl") == []


def test_what_comes_after_the_start_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in (1, 2, 3)))
    with journal.Journal(tmp_path, steps=9, start=2):
        pass
    assert [line["step"] for line in journal.read(path)] == [1, 2]


def test_every_line_says_what_the_run_cost_so_far(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])
    with journal.Journal(tmp_path, steps=9) as written:
        for step, at in ((1, 102.5), (2, 107.0)):
            now[0] = at
            written.write(step, {"loss": 1.0})
    now[0] = 5000.0  # Interrupted, and begun again much later, from step 1.
    with journal.Journal(tmp_path, steps=9, start=1) as written:
        now[0] = 5003.0
        written.write(2, {"loss": 1.0})
    with journal.Journal(tmp_path, steps=9, start=2, sharing=4) as written:
        now[0] = 5005.0  # Two seconds of four runs.
        written.write(3, {"loss": 1.0})
    with journal.Journal(tmp_path, steps=9, start=3, sharing=4, before=1.5) as written:
        now[0] = 5006.0  # It cost something before this, too.
        written.write(4, {"loss": 1.0})
    lines = journal.read(tmp_path / "metrics.jsonl")
    told = [(line["step"], line["seconds"]) for line in lines]
    assert told == [(1, 2.5), (2, 5.5), (3, 6.0), (4, 7.75)]
    assert all(line["memory"] > 1e6 for line in lines)


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells it twice")
def test_the_peak_of_the_memory_is_the_kernels():
    found = journal.peak_memory()
    told = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found == pytest.approx(int(told[1]) * 1024, rel=0.05)


def test_a_log_file_gets_lines_and_no_bar(tmp_path, capsys):
    with journal.Journal(tmp_path, steps=9) as written:
        written.show(4, "fast")
        written.say(5, "validation auroc 0.9")
    assert capsys.readouterr().out == "step 5/9  validation auroc 0.9\n"

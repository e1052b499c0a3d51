import json

from medjax.training import journal


def test_lines_come_back_and_a_nan_is_null(tmp_path):
    with journal.Journal(tmp_path, steps=3) as written:
        written.write(1, {"loss": 0.5})
        written.write(2, {"loss": float("nan")})
    lines = journal.read(tmp_path / "metrics.jsonl")
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
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


def test_a_log_file_gets_lines_and_no_bar(tmp_path, capsys):
    with journal.Journal(tmp_path, steps=9) as written:
        written.show(4, "fast")
        written.say(5, "validation auroc 0.9")
    assert capsys.readouterr().out == "step 5/9  validation auroc 0.9\n"

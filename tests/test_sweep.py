"""Sweeps: their plan, their runs as a user starts them, and their page."""

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time

import cut_tail
import numpy as np
import pandas as pd
import pytest
from conftest import Page
from launching import ROOT, restored, run, run_here

import medjax
from configs import long_tail, loss_weighting, quickstart
from medjax.commands import arms, executors, sweep
from medjax.config import config_as_json, get_config
from medjax.errors import InputError
from medjax.tasks import classification, imbalance
from medjax.training.population import Outcome


@pytest.fixture(autouse=True, scope="module")
def as_it_was():
    """A sweep says for its process where compiled programs are kept."""
    with restored():
        yield


CONFIG = """
from configs import quickstart

def get_config():
    c = quickstart.get_config()
    c.explore = False
    c.data.patients, c.data.side = 60, 32
    c.data.prevalence = (0.3,) * 6
    c.split.test, c.split.seed = 0.4, 0
    c.model = {"name": "densenet_small", "blocks": (1,), "growth": 4}
    c.train.steps, c.train.batch = 6, 8
    c.train.evaluate_every, c.train.log_every = 3, 3
    c.evaluation.replicates, c.evaluation.gallery = 20, 0
    return c

def sweep():
    yield {"optim.learning_rate": 1e-3, "seed": 0}
    yield {"optim.learning_rate": 1e38, "seed": 0}
    yield {"optim.learning_rate": 1e-2, "seed": 0}
"""


def planned(*overrides, config=None):
    return arms.runs(config or quickstart.get_config(), overrides)


# ------------------------------------------------------------------ the plan


def test_runs_are_called_by_their_overrides_and_arms_by_all_but_the_seed():
    focal = {"loss": {"name": "focal", "gamma": 2.0}, "seed": 3}
    one, two, three = planned({"imbalance": "none", "seed": 1}, focal, {})
    assert one[:3] == ("imbalance=none,seed=1", "imbalance=none", "seed=1")
    assert two[:3] == (
        "loss.name=focal,loss.gamma=2.0,seed=3",
        "loss.name=focal,loss.gamma=2.0",
        "seed=3",
    )
    assert three[:3] == ("default", arms.BASELINE, "")
    config = arms.configured(quickstart.get_config(), two.overrides)
    assert config.loss.to_dict() == {"name": "focal", "gamma": 2.0}
    assert config.seed == 3


def test_names_that_say_too_little_are_told_apart_by_a_digest():
    many, slash, colon = planned(
        {"evaluation.prevalence": tuple(0.01 * np.arange(60))},
        {"transfer.init": "a/b"},
        {"transfer.init": "a:b"},
    )
    assert len(many.name) <= arms.MAX_NAME + 7
    assert slash.name != colon.name
    for name in (many.name, slash.name, colon.name):
        assert "/" not in name and ":" not in name
    (alone,) = planned({"transfer.init": "a:b"})
    assert alone.name == colon.name  # Whatever other runs there are.


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"optim.learning_rat": 1}, "'optim.learning_rat'. Did you mean 'optim.learni"),
        ({"los.name": "focal"}, "no field 'los.name'. Did you mean 'loss.name'"),
        ({"seed.x": 1}, "no field 'seed.x'"),
        ({"train.steps": "many"}, "train.steps='many'"),
        (["seed"], "a dict of overrides"),
    ],
)
def test_a_wrong_override_is_one_line_before_anything_runs(arm, said):
    with pytest.raises(InputError, match=r"sweep\(\)") as error:
        planned({"seed": 1}, arm)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_runs_between_which_the_data_changed_are_not_compared(tmp_path):
    """Other sides are other records; the same records must hold the same."""

    def folder(name, digest, side=64):
        config = quickstart.get_config()
        config.data.side, config.seed = side, len(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config.to_json())
        provenance = json.dumps({"data": {"sha256": digest}})
        (tmp_path / name / "provenance.json").write_text(provenance)
        return tmp_path / name

    runs = [folder("a", "old"), folder("ab", "old"), folder("c", "other", side=32)]
    sweep.check_data(runs)
    with pytest.raises(InputError, match="a and .*/abcd: the data changed between"):
        sweep.check_data([*runs, folder("abcd", "new")])


def test_a_sweep_has_runs_and_no_run_twice():
    with pytest.raises(InputError, match="seed=1 is there twice"):
        planned({"seed": 1}, {"seed": 1})
    with pytest.raises(InputError, match="no run"):
        planned()


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"split.test": 0.5}, "split.test=0.5, seed=0 0.2"),
        ({"data.tasks": ("mass",)}, r'data.tasks=\["mass"\], seed=0 \[\]'),
        ({"data.patients": 30}, "data.patients=30, seed=0 4000"),
    ],
)
def test_arms_that_would_be_judged_on_other_images_are_refused(arm, said):
    with pytest.raises(InputError, match=said):
        planned({"seed": 0}, {"seed": 1}, {"seed": 0, **arm})
    planned({"seed": 0, **arm}, {"seed": 1, **arm}, {"seed": 1, **arm, "data.side": 32})
    planned({"seed": 0}, {"split.patients": 50, "seed": 0})  # Who trains is free.


def test_a_sweeps_plan_comes_back_and_another_config_is_refused(tmp_path):
    config = quickstart.get_config()
    found = planned({"augment.ops": ("contrast",), "seed": 2}, {"seed": 1})
    arms.claim(tmp_path, config, found)
    again, runs = arms.read(tmp_path)
    assert runs == found and config_as_json(again) == config_as_json(config)
    arms.claim(tmp_path, config, planned({"seed": 5}))  # Others may come.
    config.train.steps = 3
    with pytest.raises(InputError, match=r"config\.train\.steps is 1000, not 3"):
        arms.claim(tmp_path, config, found)
    with pytest.raises(InputError, match="arms.json"):
        arms.read(tmp_path / "elsewhere")


@pytest.mark.parametrize("data", ["phantom", "nih_sample"])
def test_the_loss_weighting_has_seven_arms_of_five_seeds(data):
    config = loss_weighting.get_config(data)
    runs = arms.runs(config, loss_weighting.sweep(data))
    names = {each.arm for each in runs}
    assert len(runs) == 35 and len(names) == 7
    for arm in names:
        assert len({each.repeat for each in runs if each.arm == arm}) == 5
    for one in runs:
        imbalance.treats(arms.configured(config, one.overrides), ())


@pytest.mark.parametrize(
    ("data", "count"), [("phantom", 10), ("nih", 10), ("pneumonia", 7)]
)
def test_the_treatments_of_a_long_tail_are_all_allowed(data, count):
    config = long_tail.get_config(data)
    runs = arms.runs(config, long_tail.sweep(data))
    assert (
        len(runs) == long_tail.SEEDS * count
        and len({each.arm for each in runs}) == count
    )
    for each in runs[:count]:
        classification.check(arms.configured(config, each.overrides), 1)


@pytest.mark.parametrize("ratio", [10, 50])
def test_a_tail_is_cut_from_training_alone_by_whole_patients(ratio):
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(3000), rng.integers(1, 4, 3000))
    films = pd.DataFrame({"image": np.arange(len(patient)), "patient": patient})
    films["cause"] = rng.choice(cut_tail.TAIL, 3000)[patient]
    got = cut_tail.cut(films, ratio)
    assert (got.groupby("patient")["split"].nunique() == 1).all()
    sizes = films.groupby("patient").size()
    assert (got.groupby("patient").size() == sizes[got["patient"].unique()]).all()
    assert (got["split"] == "test").sum() == pytest.approx(0.35 * len(films), rel=0.05)
    for side, share in (("train", 0.5), ("validation", 0.15)):
        number = got[got["split"] == side]["cause"].value_counts()
        head, *others = (number[cause] for cause in cut_tail.TAIL)
        assert head == pytest.approx(share * len(films) / 3, rel=0.1)
        for k, films_of in enumerate(others, start=1):
            most = head * ratio ** (-k / 2)
            assert most - 3 < films_of <= most  # Patients have 1 to 3 films.


def test_the_saved_config_of_a_run_is_a_config(tmp_path):
    config = quickstart.get_config()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_as_json(config)))
    found = get_config(str(path))
    assert found.to_dict() == config.to_dict()  # Tuples are tuples again.
    path.write_text("{")
    with pytest.raises(OSError, match="not JSON"):
        get_config(str(path))
    path.write_text("[1]")
    with pytest.raises(OSError, match="not the config"):
        get_config(str(path))


def test_the_package_is_imported_without_jax():
    code = "import sys, medjax; medjax.launch; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_what_is_asked_for_wrongly_is_said(tmp_path, monkeypatch):
    config, overrides = quickstart.get_config(), [{"seed": 0}]
    with pytest.raises(InputError, match="--executor='cloud' is unknown: use 'local'"):
        medjax.sweep(config, overrides, tmp_path, executor="cloud")
    with pytest.raises(
        InputError, match="--baseline='x' is unknown: use 'as configured"
    ):
        medjax.sweep(config, overrides, tmp_path, baseline="x")
    for name in ("nodes", "tasks_per_node", "slurm_ntasks_per_node"):
        with pytest.raises(InputError, match=f"--slurm={name}=2: .* is one process"):
            executors.slurm(tmp_path, [], print, cluster="local", **{name: 2})
    with pytest.raises(
        InputError, match="--slurm=cluster='x' is unknown: use 'slurm', 'local'"
    ):
        executors.slurm(tmp_path, [], print, cluster="x")
    monkeypatch.setattr(executors.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="no sbatch here"):
        executors.slurm(tmp_path, [], print)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match="needs submitit: pip install"):
        executors.slurm(tmp_path, [], print)
    assert not any(tmp_path.iterdir())


def test_what_becomes_of_a_population_is_told_run_by_run(tmp_path, monkeypatch):
    runs = planned({"seed": 0}, {"seed": 1}, {"seed": 2})
    arms.claim(tmp_path, quickstart.get_config(), runs)
    arms.write_error(runs[0].folder(tmp_path), "of an earlier attempt")
    outcomes = [Outcome(True), Outcome(False, "diverged", "there"), Outcome(False)]
    asked = []

    def train(configs, folders):
        asked.extend(config.seed for config in configs)
        return outcomes[: len(folders)]

    monkeypatch.setattr(executors.train_population, "train_arms", train)
    told = []
    assert not executors.population(tmp_path, runs, told.append)
    assert told == runs[:2] and asked == [0, 1, 2]
    errors = [arms.error(each, tmp_path) for each in runs]
    assert errors == [None, "diverged", None]
    assert (runs[1].folder(tmp_path) / "error.txt").read_text().endswith("there")
    assert executors.population(tmp_path, runs[:2], told.append)


@pytest.mark.parametrize(
    ("code", "said"),
    [(-9, "out of memory"), (-11, "crashed: SIGSEGV"), (1, "exit code 1: see log.txt")],
)
def test_a_process_that_ends_without_a_word_has_an_error(
    tmp_path, monkeypatch, code, said
):
    runs = planned({"seed": 0}, {"seed": 1})
    arms.claim(tmp_path, quickstart.get_config(), runs)
    ends = f"signal.raise_signal({-code})" if code < 0 else f"sys.exit({code})"
    script = f"import signal, sys; print('last words', flush=True); {ends}"
    popen = subprocess.Popen

    def fake(_, **options):
        return popen([sys.executable, "-c", script], **options)

    monkeypatch.setattr(subprocess, "Popen", fake)
    told = []
    assert executors.local(tmp_path, runs, told.append)
    assert told == runs  # One crash doesn't stop the next.
    for each in runs:
        assert said in arms.error(each, tmp_path)
        details = (each.folder(tmp_path) / "error.txt").read_text()
        assert "last words" in details


def test_a_run_that_is_finished_is_so_however_its_process_ends(tmp_path, monkeypatch):
    (one,) = planned({"seed": 0})
    arms.claim(tmp_path, quickstart.get_config(), [one])
    script = (
        "import pathlib, sys; "
        f"pathlib.Path({str(one.folder(tmp_path))!r}, 'report.json').write_text(''); "
        "sys.exit(1)"
    )
    popen = subprocess.Popen

    def fake(_, **options):
        return popen([sys.executable, "-c", script], **options)

    monkeypatch.setattr(subprocess, "Popen", fake)
    assert executors.local(tmp_path, [one], lambda run: None)
    assert arms.error(one, tmp_path) is None


def test_raw_files_that_are_not_there_stop_a_sweep_before_anything_runs(
    tmp_path, monkeypatch
):
    """A process of its own says so: here no accelerator is taken from the runs."""
    here = []
    monkeypatch.setattr(sweep.tasks.Task, "prepare", lambda *task: here.append(task))
    config = loss_weighting.get_config("nih_sample")
    config.data.folder = str(tmp_path / "nowhere")
    config.data.records = str(tmp_path / "records")
    with pytest.raises(InputError, match="nowhere"):
        medjax.sweep(config, [{"seed": 0}], tmp_path / "sweep")
    assert not (tmp_path / "sweep/arms").exists() and not here


@pytest.mark.parametrize("executor", ["local", "population"])
def test_failed_runs_are_tried_again_even_if_they_have_a_report(
    tmp_path, monkeypatch, capsys, executor
):
    runs = planned({"seed": 0}, {"seed": 1})
    for each in runs:
        each.folder(tmp_path).mkdir(parents=True)
        report = {"mean": {"auroc": {"estimate": None}}}
        (each.folder(tmp_path) / "report.json").write_text(json.dumps(report))
    arms.write_error(runs[1].folder(tmp_path), "killed")
    asked, cores, prepared = [], [], []

    def execute(folder, left, say):
        for each in left:
            asked.append(each.name)
            (each.folder(folder) / "error.txt").unlink()
            say(each)
        return True

    monkeypatch.setattr(executors, executor, execute)
    monkeypatch.setattr(sweep.train_population, "use_cores", cores.append)
    monkeypatch.setattr(
        executors, "prepare", lambda folder, names, here: prepared.append(here)
    )
    monkeypatch.setattr(sweep, "gather", lambda folder, baseline: {})
    monkeypatch.setattr(
        sweep.comparison_page, "write_sweep", lambda found, folder: folder
    )
    monkeypatch.setattr(sweep.comparison_page, "show_sweep", lambda found: None)
    overrides = [each.overrides for each in runs]
    for _ in range(2):  # Then nothing is left: no executor and no device is asked for.
        medjax.sweep(quickstart.get_config(), overrides, tmp_path, executor=executor)
    assert asked == ["seed=1"]
    assert len(cores) == (executor == "population")
    assert prepared == [executor == "population"]
    assert "2/2 seed=1: mean AUROC undefined" in capsys.readouterr().out


# ------------------------------------------------------------------ the runs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("sweeps")
    (home / "tiny.py").write_text(CONFIG)
    return home


GOOD, BAD, LAST = (
    f"optim.learning_rate={x},seed=0" for x in ("0.001", "1e+38", "0.01")
)


def interrupt(log):
    """Sends this process SIGTERM, as a user would, once a run has begun."""

    def wait():
        while not (log.exists() and log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def swept(home):
    """A sweep that is interrupted in its first run, and goes on; one arm fails."""
    module = runpy.run_path(home / "tiny.py")
    config, folder = module["get_config"](), home / "sweep"
    config.data.records = str(home / "records")
    thread = interrupt(folder / "arms" / GOOD / "metrics.jsonl")
    first = medjax.sweep(config, module["sweep"](), folder)
    thread.join()
    return folder, first, medjax.sweep(config, module["sweep"](), folder)


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_a_failed_arm_stops_no_other(swept):
    folder, first, _ = swept
    assert {each["state"] for each in first["runs"]} == {"unfinished"}
    assert "stopped: saved" in (folder / "arms" / GOOD / "log.txt").read_text()
    page = Page((folder / "sweep.html").read_text())
    assert "1 failed" in page.text and "training diverged" in page.text
    assert "Traceback" not in page.text
    found = json.loads((folder / "sweep.json").read_text())
    assert found == json.loads(json.dumps(swept[2]))
    states = {each["name"]: each["state"] for each in found["runs"]}
    assert states == {GOOD: "finished", BAD: "failed", LAST: "finished"}
    assert found["compared"]["arms"]["optim.learning_rate=1e+38"]["seeds"] == 0
    good = next(each for each in found["runs"] if each["name"] == GOOD)
    assert good["seconds"] > 0 and good["memory"] > 1e8
    rows = pd.read_csv(folder / "sweep.csv")
    assert len(rows) == 3 * 7 * 4  # Arms, findings and their mean, metrics.


@pytest.mark.slow
def test_the_page_says_what_the_runs_reports_say(swept):
    folder, *_ = swept
    found = json.loads((folder / "sweep.json").read_text())
    for name, arm in ((GOOD, "0.001"), (LAST, "0.01")):
        report = json.loads((folder / "arms" / name / "report.json").read_text())
        row = found["compared"]["arms"][f"optim.learning_rate={arm}"]
        for task, own in report["tasks"].items():
            expected = own["metrics"]["auroc"]["estimate"]
            told = row["tasks"][task]["auroc"]["estimate"]
            assert told == pytest.approx(expected, abs=1e-5)
    assert found["compared"]["best"]["arm"] is None


@pytest.mark.slow
def test_finished_runs_are_not_trained_again(swept, monkeypatch):
    folder, *_ = swept
    config, runs = arms.read(folder)
    monkeypatch.setattr(subprocess, "Popen", None)  # No run can start.
    keep = [each.overrides for each in runs if each.name != BAD]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("arms/*/report*")}
    found = medjax.sweep(config, keep, folder)
    assert [each["state"] for each in found["runs"]] == ["finished"] * 2
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


def same_predictions(one, other):
    first, second = ((f / "predictions/test.csv").read_text() for f in (one, other))
    assert first == second


@pytest.mark.slow
def test_a_run_trained_again_from_the_config_it_wrote_down_is_the_same(swept, tmp_path):
    """In a process of its own, which has as many devices as the arm's had."""
    arm = swept[0] / "arms" / GOOD
    code = (
        "import sys, medjax; from medjax import config as plain\n"
        "print(medjax.launch(plain.get_config(sys.argv[1]), sys.argv[2])['films'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, arm / "config.json", tmp_path / "again"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    predictions = pd.read_csv(arm / "predictions/test.csv")
    assert int(done.stdout.split()[-1]) == len(predictions)
    for name in ("config.json", "predictions/test.csv", "splits.csv", "report.csv"):
        assert (arm / name).read_text() == (tmp_path / "again" / name).read_text()
    provenance = [
        json.loads((f / "provenance.json").read_text())
        for f in (arm, tmp_path / "again")
    ]
    assert provenance[0] == provenance[1]


@pytest.mark.slow
def test_the_commands_read_a_sweep_and_a_saved_config(home, swept):
    folder = swept[0]
    steps = "--config.train.steps=7"
    records = f"--config.data.records={home / 'records'}"
    command = ["sweep", f"--config={home / 'tiny.py'}", f"--workdir={folder}", records]
    _, err = run(*command, steps, code=2)
    assert "config.train.steps is 6, not 7" in err and err.count("\n") == 1
    arm = folder / "arms" / GOOD
    again = ["train", f"--config={arm / 'config.json'}", f"--workdir={arm}"]
    _, err = run(*again, steps, code=2)
    assert "config.train.steps is 6, not 7" in err
    _, err = run("sweep", *again[1:], code=2)
    assert "has no sweep()" in err


def test_the_config_itself_says_what_it_does_not_take():
    wrong = "--config=configs/loss_weighting.py:x"
    _, err = run_here("sweep", wrong, "--workdir=x", code=2)
    assert "'x': give phantom or nih_sample" in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_population_is_swept_once_and_each_arm_can_be_trained_alone(home):
    (home / "good.py").write_text(CONFIG.replace("1e38", "3e-3"))
    folder, records = home / "population", f"--config.data.records={home / 'records'}"
    command = ["sweep", f"--config={home / 'good.py'}", f"--workdir={folder}", records]
    out, _ = run(*command, "--executor=population")
    assert "3 runs of 3 arms, 0 of them finished" in out and "population: 3 " in out
    page, reports = (folder / "sweep.json").read_text(), folder.glob("arms/*/report*")
    written = {path: path.stat().st_mtime_ns for path in reports}
    out, _ = run(*command, "--executor=population")
    assert "3 of them finished" in out and "population" not in out.split("sweep: ")[1]
    assert (folder / "sweep.json").read_text() == page
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())
    arm, alone = folder / "arms" / LAST, home / "alone"
    run("train", f"--config={arm / 'config.json'}", f"--workdir={alone}")
    one, other = (pd.read_csv(f / "predictions/test.csv") for f in (arm, alone))
    assert len(one) > 20
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_job_that_is_pre_empted_saves_and_is_queued_again(swept, tmp_path):
    config, _ = arms.read(swept[0])
    config.train.steps, config.train.evaluate_every = 600, 600
    log = tmp_path / "arms/seed=7/metrics.jsonl"

    def preempt():
        while not (log.exists() and log.read_text()):
            time.sleep(0.05)
        (job,) = json.loads((tmp_path / "slurm/jobs.json").read_text()).values()
        os.kill(int(job), signal.SIGTERM)  # The controller hands it on to the job.

    thread = threading.Thread(target=preempt)
    thread.start()
    found = medjax.sweep(
        config, [{"seed": 7}], tmp_path, executor="slurm", slurm={"cluster": "local"}
    )
    thread.join()
    (one,) = found["runs"]
    assert (one["state"], one["error"]) == ("finished", None)
    said = "".join(path.read_text() for path in (tmp_path / "slurm").glob("*_log.*"))
    assert "stopped: saved" in said and "Requeued" in said
    numbers = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert numbers == sorted(numbers) and numbers[-1] == 600


def test_what_the_slurm_executor_takes_when_it_is_made_reaches_it(
    tmp_path, monkeypatch
):
    """Up to the queue, where a job would be sent."""
    import submitit

    runs = planned({"seed": 0})
    arms.claim(tmp_path, quickstart.get_config(), runs)
    made = []

    def send(self, *_):
        made.append(self._executor)
        raise NameError("no queue")

    monkeypatch.setattr(executors.shutil, "which", lambda name: name)
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda *_: 1)
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", send)
    options = {"slurm_max_num_timeout": 7, "slurm_partition": "gpu", "nodes": 1}
    with pytest.raises(NameError, match="no queue"):
        executors.slurm(tmp_path, runs, print, **options)
    assert made[0].max_num_timeout == 7
    assert made[0].parameters["partition"] == "gpu"


@pytest.mark.slow
def test_an_option_that_submitit_does_not_know_is_one_line(swept, tmp_path):
    config, _ = arms.read(swept[0])
    options = {"cluster": "local", "patience": 3}
    with pytest.raises(InputError, match="--slurm: .*patience"):
        medjax.sweep(config, [{"seed": 7}], tmp_path, executor="slurm", slurm=options)

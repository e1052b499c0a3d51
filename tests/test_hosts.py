"""Several real processes train one run, over loopback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import SMALL as SMALLEST
from launching import run_here
from orbax.checkpoint import v1 as ocp

from configs import quickstart
from medjax.errors import InputError
from medjax.evaluation.inference import Predictions
from medjax.tasks import classification
from medjax.training import devices

ROOT = Path(__file__).parents[1]
DEVICES = 4
# Of a parameter: a thousandth of one update. Zero it can't be: another number of
# processes adds up gradients in another order, Adam divides them by their own size, and
# a parameter near zero is the small difference of such updates (2.8e-7 measured).
ATOL = 1e-6
SMALL = {
    "explore": False,
    "data.patients": 60,
    "data.side": 32,
    "split.minority": 0.0,
    "train.batch": 16,
    "train.steps": 4,
    "train.evaluate_every": 2,
    "train.log_every": 2,
    "train.keep": 2,
    "evaluation.replicates": 20,
    "evaluation.gallery": 0,
    "evaluation.flip": False,
    "optim.learning_rate": 1e-3,
}

MASKS = {
    "data.patients": 8,
    "data.shape": (18, 22, 18),
    "data.spacing": (9.0, 9.0, 9.0),
    "patch.size": (8, 8, 8),
    "patch.each": 1,
    "model.widths": (4, 4),
    "model.strides": (1, 2),
    "train.batch": 4,
    "train.steps": 4,
    "train.evaluate_every": 2,
    "train.log_every": 2,
    "evaluation.replicates": 20,
    "evaluation.flips": (),
    "optim.learning_rate": 1e-3,
}


def start(folder, processes, records, *, config="quickstart", **fields):
    """The processes of a run, each with its share of DEVICES devices."""
    smallest = MASKS if config == "quickstart_mri" else SMALL
    fields = smallest | {"data.records": records} | fields
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    port = free_port()
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(DEVICES // processes),
        "XLA_FLAGS": "",  # Two programs are compared, to a rounding.
        "PYTHONPATH": str(ROOT),
    }
    started = []
    for number in range(processes):
        meet = [f"--coordinator=localhost:{port}", f"--processes={processes}"]
        meet += [f"--process={number}"]
        command = [sys.executable, "launch.py", "train", f"--workdir={folder}"]
        command += [f"--config=configs/{config}.py", *flags]
        command += meet if processes > 1 else []
        with folder.with_suffix(f".{number}.log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        started.append(process)
    return started


def log(folder, number):
    return folder.with_suffix(f".{number}.log").read_text()


def train(folder, processes, records, **fields):
    started = start(folder, processes, records, **fields)
    codes = [process.wait(timeout=300) for process in started]
    assert not any(codes), "\n".join(log(folder, n)[-2000:] for n in range(processes))


def last_state(folder):
    directory = folder / "checkpoints"
    with ocp.training.Checkpointer(directory) as checkpoints:
        found = checkpoints.load_checkpointables(4)
    return found["state"], found["data"]


def begun(folder, source):
    """A copy of a run as it was after step 2."""
    shutil.copytree(source, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    for made in ("report.json", "thresholds.json", "calibration.json"):
        (folder / made).unlink()
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def one(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("hosts") / "one"
    train(folder, 1, records)
    return folder


@pytest.fixture(scope="module")
def two(one, records):
    folder = one.with_name("two")
    train(folder, 2, records)
    return folder


def assert_same_run(folder, other):
    """The same parameters, and the same place in the data."""
    (state, place), (expected, at) = last_state(folder), last_state(other)
    assert place == at
    for part in ("params", "batch_stats", "averaged"):
        assert jax.tree.structure(state[part]) == jax.tree.structure(expected[part])
        for a, b in zip(*map(jax.tree.leaves, (state[part], expected[part]))):
            np.testing.assert_allclose(
                a, b, rtol=1e-5, atol=min(ATOL, 1e-5 * np.abs(b).max())
            )


@pytest.mark.slow
def test_two_processes_learn_what_one_does(one, two):
    assert_same_run(two, one)


@pytest.mark.slow
def test_two_processes_predict_every_film_once_and_in_order(one, two):
    for split in ("validation", "test"):
        path = Path("predictions") / f"{split}.csv"
        a, b = (pd.read_csv(run / path) for run in (one, two))
        assert a["image"].is_unique and len(a) > 3
        # A calibration on twelve images makes rounding forty times as large.
        tasks = [name.removesuffix("_raw") for name in a if name.endswith("_raw")]
        tasks += [f"{name}_log_odds" for name in tasks]
        for columns, limit in ((tasks, 1e-4), (a.columns.difference(tasks), 1e-5)):
            pd.testing.assert_frame_equal(
                a[columns], b[columns], rtol=limit, atol=limit
            )


@pytest.mark.slow
def test_two_processes_learn_masks_as_one_does(tmp_path, records):
    folders = [tmp_path / f"masks{processes}" for processes in (1, 2)]
    for processes, folder in enumerate(folders, start=1):
        train(folder, processes, records, config="quickstart_mri")
    assert_same_run(*folders)
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    rows = [[row["dice"] for row in report["rows"]] for report in reports]
    assert len(rows[0]) >= 3
    np.testing.assert_allclose(*rows, atol=0.02)


@pytest.mark.slow
def test_arrays_cost_the_hosts_less_than_by_pmap():
    command = [sys.executable, ROOT / "tests/bench_hosts.py", "--arrays=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["arrays"] == 4 * 40 + 10
    assert found["ms"] < found["pmap ms"] / 2


@pytest.mark.slow
def test_only_the_first_process_speaks(two):
    assert "report:" in log(two, 0)
    assert "report:" not in log(two, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "resumed"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(
    one, two, records, saved, resumed
):
    source = {1: one, 2: two}[saved]
    folder = begun(one.with_name(f"from{saved}to{resumed}"), source)
    train(folder, resumed, records)
    assert_same_run(folder, source)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_if_one_process_dies_the_other_ends_with_an_error(one, records, dead):
    folder = one.with_name(f"dies{dead}")
    both = start(
        folder, 2, records, **{"train.steps": 10**6, "train.evaluate_every": 10**6}
    )
    journal = folder / "metrics.jsonl"
    while not (journal.exists() and journal.read_text()):
        assert both[0].poll() is None and both[1].poll() is None, log(folder, 0)
        time.sleep(0.2)
    both[dead].kill()
    both[dead].wait()
    assert both[1 - dead].wait(timeout=60) != 0
    said = log(folder, 1 - dead)
    assert "another task died" in said or "another one ended" in said


# A run of one of two processes, until a signal stops it. It counts its steps, of which
# none is logged, and is signalled in the third of them, or not at all.
STOPPED = """
import os, sys, time
from pathlib import Path
import jax
from medjax.training import devices, loop
from medjax.training.checkpoint import Checkpoints
from test_loop import Counter

port, me, by, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
jax.config.update("jax_num_cpu_devices", 1)
devices.join(f"localhost:{port}", 2, me)
add = jax.jit(lambda state: state + 1)

def step(state, batch, key):
    if batch["id"][0, 0] == 3 and by:
        os.kill(os.getpid(), by)
    time.sleep(0.01 * (1 + me))  # One is ahead of the other.
    return add(state), {"loss": jax.numpy.ones(())}

with Checkpoints(Path(folder, "checkpoints"), keep=1) as checkpoints:
    complete = loop.fit(
        jax.numpy.int32(0), workdir=Path(folder), steps=3000, step=step,
        batches=Counter(), evaluate=lambda state: {}, checkpoints=checkpoints,
        key=jax.random.key(0), log_every=10**6, evaluate_every=10**6, save_minutes=0.0,
    )
    step, state, data = checkpoints.restore(jax.numpy.int32(0))
print(complete, step, int(state), data["position"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "by",
    [(0, signal.SIGUSR2), (signal.SIGTERM, 0), (signal.SIGINT, signal.SIGINT)],
    ids=["of the second", "of the first", "of both"],
)
def test_a_signal_of_any_process_stops_all_at_one_step(tmp_path, by):
    """Which isn't logged, and at which the checkpoint is that of all processes."""
    port, path = str(free_port()), os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    command = [sys.executable, "-c", STOPPED, port]
    both = [
        subprocess.Popen(
            [*command, str(number), str(int(signal)), tmp_path],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, signal in enumerate(by)
    ]
    try:
        said = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    ends = [out.splitlines()[-1].split() for out, _ in said]
    assert ends[0] == ends[1], said
    complete, *places = ends[0]
    assert complete == "False" and len({*places}) == 1, said
    assert 3 <= int(places[0]) < 3000


def joined(code, **environment):
    """A process that calls devices.join as the code says; waits for its end."""
    return subprocess.run(
        [sys.executable, "-c", f"from medjax.training import devices\n{code}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("process", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_if_one_process_never_comes_the_other_ends_with_one_line(process):
    done = joined(
        f"devices.MEET = 2; devices.join('localhost:{free_port()}', 2, {process})"
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "not all came within 2 seconds" in lines[0]
    assert "Check failure" not in done.stderr


@pytest.mark.parametrize(
    ("nodes", "cards"), [(1, "all"), pytest.param(2, "0", marks=pytest.mark.slow)]
)
def test_a_process_that_slurm_starts_alone_on_its_node_has_all_cards(nodes, cards):
    """JAX alone would give it the first card; of several processes each has its own."""
    done = joined(
        "import jax\n"
        "devices.join(None, None, None)\n"
        "print(jax.config.values['jax_cuda_visible_devices'])",
        SLURM_JOB_ID=str(os.getpid()),
        SLURM_STEP_NODELIST="localhost",
        SLURM_NTASKS="1",
        SLURM_PROCID="0",
        SLURM_LOCALID="0",
        SLURM_STEP_NUM_NODES=str(nodes),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [cards]


@pytest.mark.parametrize("flag", ["--processes=2", "--process=0"])
def test_processes_that_have_nowhere_to_meet_are_refused(tmp_path, flag):
    folder = tmp_path / "run"
    _, err = run_here("train", *SMALLEST, f"--workdir={folder}", flag, code=2)
    assert "only goes with --coordinator" in err and err.count("\n") == 1
    assert not folder.exists()


def test_several_processes_refuse_what_one_alone_can_do(monkeypatch):
    config = quickstart.get_config()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    classification.check(config, 4)
    config.imbalance = "smote"
    with pytest.raises(InputError, match="imbalance='smote'.*start one"):
        classification.check(config, 4)
    config.imbalance, config.transfer.mode = "none", "features"
    with pytest.raises(InputError, match="transfer.mode='features'.*start one"):
        classification.check(config, 4)


class Fleet:
    """Processes whose parts are all at hand, so that no other is needed."""

    def __init__(self, parts):
        self.parts = parts

    def process_count(self):
        return len(self.parts)

    def process_allgather(self, mine):
        most = len(mine[0])
        fill = lambda x: np.concatenate(
            [x, np.full((most - len(x), *x.shape[1:]), 7, x.dtype)]
        )
        return jax.tree.map(lambda *x: np.stack([*map(fill, x)]), *self.parts)


@given(st.integers(1, 5), st.integers(1, 40))
def test_parts_come_together_in_their_order(processes, total):
    rng = np.random.default_rng(total)
    whole = Predictions(
        np.arange(total), rng.integers(0, 9, total), *rng.random((4, total, 2))
    )
    parts = [Predictions(*(x[p::processes] for x in whole)) for p in range(processes)]
    fleet = Fleet(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_count", fleet.process_count)
        patch.setattr(devices, "multihost_utils", fleet)
        found = devices.gather(parts[0], total)
    for name, x in whole._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), x)


def test_one_process_has_nobody_to_wait_for():
    assert devices.first() and devices.alone()
    devices.wait("here")
    assert devices.any_of_us(True) and not devices.any_of_us(False)
    with devices.in_turn():
        pass

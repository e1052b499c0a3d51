"""Arms trained together leave what runs of their own leave."""

import json
import os
import sys
import types
from pathlib import Path

import chex
import jax
import pytest

from medjax import tasks
from medjax.commands import train, train_population
from medjax.config import read_config
from medjax.tasks.task import Run
from medjax.training import journal, loop

sys.path.insert(0, str(Path(__file__).parents[1] / "configs"))
import quickstart


def config_of(records, **changes):
    """The quickstart in small; changes of 'section__field'."""
    config = quickstart.get_config()
    config.explore = False
    config.data.update(records=str(records), patients=60, side=32)
    config.data.prevalence = (0.3,) * 6
    config.split.minority = 0.0
    config.model.update(blocks=(1,), growth=4, features=4, pool="mean")
    config.optim.update(learning_rate=1e-3, warmup=5)
    config.train.update(steps=50, batch=8, evaluate_every=25, threads=1)
    config.evaluation.update(replicates=20, flip=False, batch=64)
    for name, value in changes.items():
        *sections, field = name.split("__")
        part = config
        for section in sections:
            part = part[section]
        part[field] = value
    return config


ARMS = [
    {},
    {
        "seed": 1,
        "imbalance": "over_sample",
        "optim__weight_decay": 0.1,
        "augment__random_affine__flip": 0.0,
        "augment__random_affine__zoom": 0.3,
    },
    {"optim__learning_rate": 1e38},  # Diverges.
    {"split__patients": 1000},  # So many aren't there.
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("populating")


@pytest.fixture(scope="module")
def together(folder):
    """What became of ARMS; arm N is in the folder N."""
    configs = [config_of(folder / "records", **arm) for arm in ARMS]
    folders = [folder / str(number) for number in range(len(ARMS))]
    return train_population.train_arms(configs, folders)


@pytest.fixture(scope="module", params=[1, 0])
def arm(request, folder, together):
    """A good arm's folder, and that of the same config as a run of its own."""
    alone = folder / f"alone{request.param}"
    train.train(config_of(folder / "records", **ARMS[request.param]), alone)
    return folder / str(request.param), alone


def state_of(folder):
    run = tasks.of(read_config(folder)).read(folder)
    return run.number, run.state


@pytest.mark.slow
def test_an_arm_ends_where_its_run_would(arm):
    (number, state), (own_number, own) = map(state_of, arm)
    assert number == own_number
    # AdamW moves a weight whose gradient is a rounding as far as any other.
    chex.assert_trees_all_close(state, own, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_an_arm_leaves_the_same_files_and_the_same_report(arm):
    files = [
        {str(path.relative_to(each)) for path in each.rglob("*") if path.is_file()}
        for each in arm
    ]
    parts = ("events", "checkpoints")  # Their names hold times and hosts.
    own, alone = ({f for f in each if not f.startswith(parts)} for each in files)
    assert own == alone >= {"report.html", "report.json", "predictions/test.csv"}
    for name in ("config.json", "splits.csv", "task.json", "provenance.json"):
        assert (arm[0] / name).read_text() == (arm[1] / name).read_text()
    reports = [json.loads((each / "report.json").read_text()) for each in arm]
    means = [report["mean"]["auroc"]["estimate"] for report in reports]
    assert abs(means[0] - means[1]) <= 0.005


@pytest.mark.slow
def test_an_arm_s_seconds_hold_its_share_of_the_compilation(folder, monkeypatch):
    """The clock stands still, but for the compiler, who takes a minute."""
    now = [0.0]
    compiled = train_population.population.compiled

    def slow(*arguments, **options):
        now[0] += 60
        return compiled(*arguments, **options)

    for module in (train_population, journal, loop):
        clock = dict.fromkeys(("perf_counter", "monotonic"), lambda: now[0])
        monkeypatch.setattr(module, "time", types.SimpleNamespace(**clock))
    monkeypatch.setattr(train_population.population, "compiled", slow)
    monkeypatch.setattr(loop.Meter, "flush", lambda self: None)  # It divides by time.
    short = {"train__steps": 1, "train__evaluate_every": 1}
    arms = [config_of(folder / "records", seed=seed, **short) for seed in range(2)]
    folders = [folder / f"timed{seed}" for seed in range(2)]
    assert all(
        outcome.finished for outcome in train_population.train_arms(arms, folders)
    )
    for each in folders:
        assert journal.read(each / "metrics.jsonl")[-1]["seconds"] == 30


@pytest.mark.slow  # Trains two arms; a bug in one is what the last test here has.
def test_an_arm_s_own_mistake_ends_it_alone(folder, together):
    assert [outcome.finished for outcome in together] == [True, True, False, False]
    assert [outcome.error for outcome in together[:2]] == [None, None]
    assert "training diverged" in together[2].error
    assert "split.patients=1000" in together[3].error
    assert not (folder / "2/report.json").exists()


@pytest.mark.slow
def test_a_finished_population_is_only_reported_again(folder, together, monkeypatch):
    monkeypatch.setattr(train_population.population, "compiled", None)  # Would raise.
    configs = [config_of(folder / "records", **arm) for arm in ARMS[:2]]
    before = (folder / "0/metrics.jsonl").read_text()
    (folder / "0/report.json").unlink()
    found = train_population.train_arms(configs, [folder / "0", folder / "1"])
    assert found == [train_population.Outcome(finished=True)] * 2
    assert (folder / "0/report.json").exists()
    assert (folder / "0/metrics.jsonl").read_text() == before


def test_arms_that_are_not_equally_far_are_trained_apart(tmp_path, monkeypatch):
    """And after a signal all those that are left have been stopped."""
    begun = []

    def begin(config, folder, stack):
        fit = Run(config, folder, *[None] * 10)
        return train_population.Arm(fit, None, None, config.seed % 2, None)

    def fit(arms):
        begun.append([arm.run.config.seed for arm in arms])
        even = arms[0].start == 0
        return [
            train_population.Outcome(finished=True)
            if even
            else train_population.STOPPED_EARLY
        ] * 2

    monkeypatch.setattr(train_population, "_begin", begin)
    monkeypatch.setattr(train_population, "_fit", fit)
    monkeypatch.setattr(train, "finish", lambda fit: begun.append(fit.folder.name))
    configs = [config_of(tmp_path, seed=seed) for seed in range(4)]
    configs.append(config_of(tmp_path, loss__name="focal", loss__gamma=1.0))
    found = train_population.train_arms(configs, [tmp_path / str(n) for n in range(5)])
    assert begun == [[0, 2], [1, 3], "0", "2"]
    assert [outcome.finished for outcome in found] == [True, False, True, False, False]
    assert not any(outcome.error for outcome in found)


@pytest.mark.parametrize(
    ("where", "lost"), [("_begin", [1]), ("_fit", [0, 1]), ("_finish", [1])]
)
def test_a_bug_ends_its_arms_alone_with_a_traceback(tmp_path, monkeypatch, where, lost):
    """Arms 0 and 1 are one program, 2 and 3 are others' and stand alone."""
    good = train_population.Outcome(finished=True)

    def begin(config, folder, stack):
        if where == "_begin" and config.seed == 1:
            raise RuntimeError("out of\nmemory")
        fit = Run(config, folder, *[None] * 10)
        return train_population.Arm(fit, None, None, 0, None)

    def fit(arms):
        if where == "_fit":
            raise RuntimeError("out of\nmemory")
        return [good] * len(arms)

    def finish(fit):
        if where == "_finish" and fit.config.seed == 1:
            raise RuntimeError("out of\nmemory")

    def run_alone(config, folder):
        if config.seed == 3:
            raise KeyError("field")
        return True

    monkeypatch.setattr(train_population, "_begin", begin)
    monkeypatch.setattr(train_population, "_fit", fit)
    monkeypatch.setattr(train, "finish", finish)
    monkeypatch.setattr(train, "train", run_alone)
    configs = [config_of(tmp_path, seed=seed) for seed in range(4)]
    configs[2].train.batch, configs[3].train.batch = 16, 4
    found = train_population.train_arms(configs, [tmp_path / str(n) for n in range(4)])
    for number in lost:
        assert found[number].error == "RuntimeError: out of\nmemory"
        assert "Traceback" in found[number].details
    assert found[3].error == "KeyError: 'field'" and "run_alone" in found[3].details
    assert all(found[n] == good for n in range(3) if n not in lost)


def groups(*changes):
    return train_population.groups(
        [config_of("records", **change) for change in changes]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 3},
        {"imbalance": "smote"},
        {"imbalance": "repeat_factor"},
        {"resampling__target": 0.4},
        {"imbalance": "effective", "resampling__defer": 2},
        {"split__test": 0.4},
        {"optim__learning_rate": 1.0},
        {"optim__weight_decay": 0.0},
        {"optim__ema": 0.5},
        {"augment__random_affine__rotation": 20.0},
        {"evaluation__replicates": 3},
    ],
)
def test_arms_that_differ_in_numbers_or_in_the_order_of_images_are_one_group(change):
    assert groups({}, change) == [[0, 1]]


@pytest.mark.parametrize(
    "change",
    [
        {"model__growth": 8},
        {"loss": {"name": "focal", "gamma": 2.0}},
        {"train__batch": 16},
        {"train__steps": 60},
        {"optim__clip": 2.0},
        {"augment__ops": ("brightness",)},
        {"transfer__mode": "layerwise"},
        {"data__contrast": 2.0},
        {"transfer__mode": "features"},
        {"task": "segmentation"},
    ],
)
def test_arms_that_differ_in_code_are_in_groups_of_their_own(change):
    assert groups({}, change, {"seed": 1}, change) in (
        [[0, 2], [1, 3]],
        [[0, 2], [1], [3]],
    )


def test_the_numbers_of_a_loss_are_free_and_its_shapes_are_not():
    def loss(gamma):
        return {"loss": {"name": "focal", "gamma": gamma}}

    assert groups(loss(1.0), loss(2.0), loss((1.0, 2.0)), loss((0.0, 3.0))) == [
        [0, 1],
        [2, 3],
    ]


def test_strengths_are_free_but_those_that_set_a_shape():
    def blur(wide, std):
        return {
            "augment__ops": ("blur", "noise"),
            "augment__blur": {"max_sigma": wide},
            "augment__noise": {"std": std},
        }

    assert groups(blur(1.0, 0.1), blur(2.0, 0.1), blur(2.0, 0.2)) == [[0], [1, 2]]


def test_runs_without_steps_stand_alone():
    kind = {"transfer__mode": "features"}
    assert groups(kind, {}, kind, {}) == [[0], [1, 3], [2]]


@pytest.mark.parametrize(
    ("cores", "arms", "batch", "expected"),
    [(2, 8, 64, 2), (8, 3, 64, 2), (8, 3, 12, 3), (1, 8, 64, 1), (6, 9, 64, 4)],
)
def test_a_cpu_has_a_device_a_core_where_arms_and_batch_allow_it(
    monkeypatch, cores, arms, batch, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    asked = []
    options = types.SimpleNamespace(
        jax_num_cpu_devices=-1, update=lambda *pair: asked.append(pair)
    )
    monkeypatch.setattr(jax, "config", options)
    train_population.use_cores([config_of("records", train__batch=batch)] * arms)
    assert asked == [("jax_num_cpu_devices", expected)]
    options.jax_num_cpu_devices = 3  # Somebody has chosen.
    train_population.use_cores([config_of("records", train__batch=batch)] * arms)
    assert len(asked) == 1

import functools
import importlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression

from configs import base
from medjax import losses
from medjax.augment import pixel_ops
from medjax.config import config_as_json, effects, read_config
from medjax.errors import InputError
from medjax.geometry import warp
from medjax.tasks import (
    check,
    classification,
    films,
    fixed,
    imbalance,
    parts,
    refit,
    splitting,
    start,
)
from medjax.training import step

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
    if path.stem != "base" and "base.segmentation(" not in path.read_text()
]
EXCLUSIVE = films.FindingsOutput(("a", "b", "c"), True, (32, 32, 1))
FINDINGS = EXCLUSIVE._replace(exclusive=False)
LABEL = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.fixture
def config():
    return config_of("quickstart")


@pytest.fixture(autouse=True)
def no_duplicates(monkeypatch):
    """The tables here have no records whose pictures could be compared."""
    monkeypatch.setattr(films.FilmData, "pairs", lambda data: None)


def table(films=60, official=()):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(films),
            "image": [f"{i}.png" for i in range(films)],
            "patient": np.arange(films) // 2,
            "official": [*official, *[""] * (films - len(official))],
            "follow_up": np.arange(films) % 2.0,
            "mass": (rng.random(films) < 0.3).astype(float),
        }
    )


def data(**options):
    task = films.FindingsOutput(("mass",), False, (64, 64, 1))
    return films.FilmData(Path("nowhere"), table(**options), task)


def audited(config, data):
    manifest = splitting.split(config, data)
    splitting.audit(config, data, manifest)
    return manifest


def on(manifest, split):
    return manifest["id"][manifest["split"] == split].tolist()


def shapes(config, network, task):
    """Of the initial state, without computing it."""
    variables = jax.eval_shape(network.init, jax.random.key(0))
    make = functools.partial(parts.initial_state, config, network, task, LABEL)
    return jax.eval_shape(lambda variables: make(variables=variables), variables)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_parts_that_exist_and_fit(path):
    config = config_of(path.stem)
    task = films.expected(config)._replace(names=("a", "b", "c"))
    if config.intensity.name == "as_pretrained":
        config, weights = start.settle_weights(config, task, parts.classifier)
        assert weights is not None and config.intensity.name == "standardise"
    network = parts.classifier(config, task)
    state = shapes(config, network, task)
    assert state.params["classifier"]["kernel"].shape[1] == 3
    step.compile_step(**parts.step_parts(config, network))
    names = {"key", "steps", "log_every", "evaluate_every", "save_minutes"}
    assert set(parts.schedule(config)) == names
    assert config.train.steps % config.train.evaluate_every == 0
    assert str(path.relative_to(path.parents[1])) in path.read_text()  # Its command.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.name", "densnet"),
        ("model.name", "_hidden"),
        ("loss.name", "weighted_bse"),
        ("intensity.name", "standardize"),
        ("optim.name", "adam"),
    ],
)
def test_an_unknown_name_is_refused_by_its_field(config, field, value):
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(InputError, match=f"{field}='{value}'"):
        step.compile_step(
            **parts.step_parts(config, parts.classifier(config, FINDINGS))
        )


def test_an_unknown_op_and_an_unknown_source_are_refused(config):
    network = parts.classifier(config, FINDINGS)
    config.augment.ops = ("random_affin",)
    with pytest.raises(InputError, match="augment.ops='random_affin'"):
        step.compile_step(**parts.step_parts(config, network))
    config.data.source = "x_ray"
    with pytest.raises(InputError, match="data.source='x_ray'"):
        films.data(config)


def test_an_op_that_can_change_the_label_is_refused_with_its_reason(config):
    config.augment.ops = ("flip", "contrast")
    with config.unlocked():
        config.augment.flip = {"axis": 0}
    with pytest.raises(InputError, match=r"augment\.flip.*chest_xray.*allow_unsafe"):
        parts.caveats(config)
    config.augment.allow_unsafe = True
    assert "chest_xray" in parts.caveats(config)[0]
    config.modality = ""
    assert parts.caveats(config) == ()


def test_a_mirror_is_refused_where_the_side_is_the_finding(config):
    assert "mirror" in parts.caveats(config)[0]
    config.augment.sided = True
    with pytest.raises(InputError, match="side"):
        parts.caveats(config)


def test_a_strength_multiplies_the_ops_numbers(config):
    numbers = parts.ops(config, strength=2.0)["random_affine"].keywords
    assert not numbers.pop("in_plane")  # No number: it stays.
    assert numbers == {"flip": 1.0, "rotation": 10.0, "zoom": 0.1, "translation": 0.1}


@pytest.mark.parametrize("section", ["model", "intensity", "optim"])
def test_a_misspelt_key_raises(config, section):
    with config.unlocked():
        config[section]["colour"] = 3
    with pytest.raises(InputError, match=f"^{section}.name=.*colour"):
        parts.step_parts(config, parts.classifier(config, FINDINGS))


@pytest.mark.parametrize(
    ("network", "option"),
    [
        ("densenet_small", {"dropout": 1.0}),
        ("densenet_small", {"pool": "max"}),
        ("densenet_small", {"stochastic_depth": 0.1}),
        ("convnext_tiny", {"stochastic_depth": -0.1}),
    ],
)
def test_an_option_that_a_network_can_t_have_is_refused(config, network, option):
    config.model = {"name": network, **option}
    with pytest.raises(InputError, match=f"^model.name.*{next(iter(option))}"):
        parts.classifier(config, FINDINGS)


def test_a_network_that_drops_values_gets_keys(config):
    config.model = {"name": "densenet_small", "dropout": 0.5}
    network = parts.classifier(config, FINDINGS)
    assert parts.step_parts(config, network)["random"]
    config.model = {"name": "densenet_small"}
    assert not parts.step_parts(config, parts.classifier(config, FINDINGS))["random"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("optim.name", name) for name in ("Hyper", "warmup_cosine", "jax")),
        *(("intensity.name", name) for name in ("views", "Array")),
        *(("augment.ops", (name,)) for name in ("poisson", "InputError")),
        *(("loss.name", name) for name in ("deep", "InputError", "coral")),
        *(("model.name", name) for name in ("jax", "nothing")),
        *(("train.dtype", kind) for kind in ("float16", "float64", "strange")),
        *((f"train.{name}", 0) for name in ("steps", "log_every", "keep")),
        *((f"evaluation.{name}", 0) for name in ("batch", "replicates")),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_by_its_field(config, field, value):
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(InputError, match=field):
        check.check_ranges(config)
        check.check_parts(config, parts.classifier(config, FINDINGS), FINDINGS, batch=1)


def test_the_official_lists_win_over_sampling(config):
    official = ["test"] * 10 + ["train"] * 50
    assert on(audited(config, data(official=official)), "test") == [*range(10)]
    config.split.folds = 3  # Cross-validation is asked for by name.
    assert on(audited(config, data(official=official)), "test") != [*range(10)]


def test_an_official_split_without_a_test_is_refused(config):
    official = data(official=["validation"] * 10 + ["train"] * 50)
    with pytest.raises(InputError, match=r"no test images.*split\.folds"):
        splitting.split(config, official)
    config.split.folds = 3
    assert len(splitting.split(config, official)) == 60
    config.split.folds = 0
    config.data = base.data("table")
    config.data.official = "part"
    with pytest.raises(
        InputError, match=r"data\.official='part': no image says 'test'"
    ):
        splitting.split(config, official)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split.folds": 3, "split.cut": 1}, "split.folds=3 and split.cut=1"),
        ({"split.by": "image", "split.folds": 3}, "split.folds=3 and split.by='image'"),
        ({"split.fold": 1}, "split.fold=1: is of no use without split.folds"),
    ],
)
def test_settings_of_a_split_that_exclude_each_other(config, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        check.check_split(config)


def test_an_official_validation_list_is_used_as_it_is(config):
    official = ["test"] * 10 + ["validation"] * 6 + ["train"] * 44
    manifest = audited(config, data(official=official))
    assert on(manifest, "validation") == [*range(10, 16)]
    assert on(manifest, "train") == [*range(16, 60)]


def test_a_cut_tests_the_future(config):
    config.split.cut = 1
    manifest = audited(config, data())
    assert {id % 2 for id in on(manifest, "test")} == {1}
    assert {id % 2 for id in on(manifest, "train")} == {0}


def test_a_warm_up_longer_than_the_training_is_warned_of(config):
    config.train.steps, config.optim.warmup = 30, 29
    assert check.warmup(config) == ""
    config.optim.warmup = 30
    assert "ends at step 30, before" in check.warmup(config)


def test_fewer_patients_train_and_nobody_changes_sides(config):
    whole = audited(config, data())
    trained = {}
    for patients in (7, 9):
        config.split.patients = patients
        manifest = audited(config, data())
        for split in ("validation", "test"):
            assert on(manifest, split) == on(whole, split)
        ids = on(manifest, "train")
        trained[patients] = {id // 2 for id in ids}
        assert len(trained[patients]) == patients and len(ids) == 2 * patients
        assert set(ids) | set(on(manifest, "unused")) == set(on(whole, "train"))
    assert trained[7] < trained[9]


def test_runs_of_other_seeds_share_a_split_that_has_its_own(config):
    first = audited(config, data())
    config.seed = 1
    other = audited(config, data())
    assert on(other, "test") != on(first, "test")
    with config.unlocked():
        config.split.seed = 0
    config.split.patients = 9
    shared = audited(config, data())
    assert on(shared, "test") == on(first, "test")
    config.seed = 2
    again = audited(config, data())
    pd.testing.assert_frame_equal(again, shared)


@pytest.mark.parametrize("patients", [-1, 31])
def test_more_patients_than_there_are_cannot_train(config, patients):
    config.split.patients = patients
    with pytest.raises(InputError, match=r"split\.patients.*give 1 to \d+, or 0"):
        audited(config, data())


def test_a_split_by_image_says_that_it_leaks(config, caplog):
    config.split.by = "image"
    with caplog.at_level("WARNING", logger="medjax"):
        manifest = audited(config, data())
    assert "by='image'" in caplog.text
    sides = manifest.groupby("patient")["split"].nunique()
    assert (sides > 1).any()
    config.split.by = "patient"
    with pytest.raises(InputError, match="patient"):
        splitting.audit(config, data(), manifest)


def test_one_picture_on_two_sides_is_refused_but_where_leaking_is_the_point(
    config, monkeypatch, caplog
):
    manifest = splitting.split(config, data())
    pair = {"id": [on(manifest, "train")[0]], "other": [on(manifest, "test")[0]]}
    pair |= {"flipped": [""], "distance": [0], "correlation": [1.0]}
    monkeypatch.setattr(films.FilmData, "pairs", lambda data: pd.DataFrame(pair))
    with pytest.raises(InputError, match=r"split\.duplicates"):
        splitting.audit(config, data(), manifest)
    config.split.by = "image"
    with caplog.at_level("WARNING", logger="medjax"):
        splitting.audit(config, data(), manifest)
    assert caplog.text


def test_an_image_has_one_class(config):
    classes = pd.DataFrame(LABEL, columns=["a", "b", "c"])
    classes["image"] = [*"wxyz"]
    classes.loc[1, ["a", "b", "c"]] = np.nan  # Unknown altogether.
    films.check_classes(classes, ("a", "b", "c"))
    with pytest.raises(InputError, match=r"multiclass.* z has not.*a, b"):
        films.check_classes(classes, ("a", "b"))
    classes.loc[2, "a"] = 1.0
    with pytest.raises(InputError, match="y has not"):
        films.check_classes(classes, ("a", "b", "c"))
    classes.loc[2, "a"] = np.nan
    with pytest.raises(InputError, match="y has not"):
        films.check_classes(classes, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("treatment", "w_pos", "w_neg"),
    [
        ("none", 1, 1),
        ("over_sample", 1, 1),
        ("smote", 1, 1),
        ("decoupled", 1, 1),
        ("ratio", 0.75, 0.25),
        ("balanced", 2, 4 / 6),
    ],
)
def test_one_word_weighs_the_classes(config, treatment, w_pos, w_neg):
    config.imbalance = treatment
    found = imbalance.loss_arguments(config, FINDINGS, LABEL)
    np.testing.assert_allclose(found["w_pos"][1], w_pos, rtol=1e-6)
    np.testing.assert_allclose(found["w_neg"][1], w_neg, rtol=1e-6)


def test_one_word_plans_what_the_loader_shows(config):
    config.resampling.target = 0.5
    label = np.repeat(LABEL, 10, axis=0)[:, 1:]
    for treatment in ("none", "ratio", "smote"):
        config.imbalance = treatment
        assert imbalance.resampled(config, label) is None
    shown = {}
    for treatment in imbalance.PLANS:
        config.imbalance = treatment
        shown[treatment] = len(imbalance.resampled(config, label).index)
    assert shown["under_sample"] < shown["both"] <= shown["over_sample"]
    assert shown["over_sample"] > len(label) < shown["repeat_factor"]
    config.imbalance = "oversample"
    with pytest.raises(InputError, match="imbalance='oversample'.*over_sample"):
        imbalance.resampled(config, label)


def test_classes_are_weighed_by_how_many_they_are(config):
    config.loss = {"name": "softmax_cross_entropy", "smoothing": 0.1}
    config.imbalance = "balanced"
    found = imbalance.loss_arguments(config, EXCLUSIVE, LABEL)
    np.testing.assert_allclose(found["w"], [4 / 6, 4 / 3, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(found["smoothing"], 0.1, rtol=1e-6)


def test_a_loss_gets_its_numbers_as_arrays_and_a_compound_those_of_its_parts(config):
    config.loss = {
        "name": "compound",
        "parts": {"weighted_bce": {"share": 0.5}, "focal": {"gamma": 2.0}},
    }
    config.imbalance = "ratio"
    found = imbalance.loss_arguments(config, FINDINGS, LABEL)
    logits, weight = np.zeros_like(LABEL), np.ones_like(LABEL)
    total, _ = losses.compound(logits, LABEL, weight, **found)
    w = {k: found["parts"]["focal"][k] for k in ("w_pos", "w_neg")}
    expected = 0.5 * losses.weighted_bce(logits, LABEL, weight, **w)[0]
    expected += losses.focal(logits, LABEL, weight, **w, gamma=2.0)[0]
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_what_a_loss_learns_starts_with_the_state(config):
    config.loss = {"name": "auc_margin", "margin": 1.0, "rate": 0.1}
    config.imbalance = "none"
    network = parts.classifier(config, FINDINGS)
    state = shapes(config, network, FINDINGS)
    assert {name: x.shape for name, x in state.dual.items()} == {
        name: (3,) for name in ("a", "b", "alpha")
    }
    assert "rate" not in state.hyper.loss
    prevalence = imbalance.loss_arguments(config, FINDINGS, LABEL)["prevalence"]
    np.testing.assert_allclose(prevalence, [0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("loss", "scheme", "task", "said"),
    [
        ({"name": "weighted_bce"}, "none", EXCLUSIVE, "use 'softmax_cross_entropy'"),
        (
            {"name": "softmax_cross_entropy", "smoothing": 0.0},
            "none",
            FINDINGS,
            "use 'weighted_bce'",
        ),
        ({"name": "weighted_bce", "gamma": 2.0}, "none", FINDINGS, "loss.gamma"),
        ({"name": "weighted_bce", "rate": 0.1}, "none", FINDINGS, "loss.rate"),
        ({"name": "auc_margin", "margin": 1.0}, "ratio", FINDINGS, "takes no weights"),
        ({"name": "balanced_softmax", "tau": 1.0}, "none", FINDINGS, "'weighted_bce'"),
        ({"name": "ldam", "margin": 1.0}, "none", EXCLUSIVE, "'softmax_cross_entropy'"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(config, loss, scheme, task, said):
    config.loss, config.imbalance = loss, scheme
    with pytest.raises(InputError, match=said):
        imbalance.loss_arguments(config, task, LABEL)


def test_deferred_weights_are_an_array_of_the_state_and_need_weights(config):
    config.resampling.defer, config.loss = 600, {"name": "ldam", "margin": 2.0}
    for scheme, steps in (("none", 1000), ("smote", 1000), ("effective", 600)):
        config.imbalance, config.train.steps = scheme, steps
        with pytest.raises(InputError, match=r"resampling\.defer=600"):
            imbalance.loss_arguments(config, FINDINGS, LABEL)
    config.train.steps = 1000
    state = shapes(config, parts.classifier(config, FINDINGS), FINDINGS)
    assert state.hyper.defer.shape == () and state.hyper.defer.dtype == "float32"
    assert state.hyper.loss["prevalence"].shape == (3,)
    assert "program" not in effects("resampling.defer")  # Arms may differ in it.


def test_a_loss_that_learns_is_refused_without_a_rate(config):
    config.loss, config.imbalance = {"name": "auc_margin", "margin": 1.0}, "none"
    network = parts.classifier(config, FINDINGS)
    with pytest.raises(InputError, match=r"loss\.rate"):
        parts.initial_state(config, network, FINDINGS, LABEL)


def test_a_fitted_head_sees_as_many_of_either_class(config):
    rng = np.random.default_rng(0)
    label = (rng.random((200, 3)) < [0.1, 0.8, 0.4]).astype(float)
    label[rng.random(label.shape) < 0.1] = np.nan
    feature = rng.normal(size=(200, 5)).astype(np.float32)
    config.imbalance = "smote"
    layer, points = refit.fitted(config, FINDINGS, feature, label)
    known = ~np.isnan(label)
    positives = np.nansum(label, axis=0)
    assert points == np.abs(known.sum(0) - 2 * positives).sum()
    assert layer["kernel"].shape == (5, 3)
    # Without a signal, balanced classes are predicted at even odds.
    odds = 1 / (1 + np.exp(-(feature @ layer["kernel"] + layer["bias"])))
    np.testing.assert_allclose(odds.mean(0), 0.5, atol=0.05)


def test_a_refitted_checkpoint_is_written_once_unless_it_is_damaged(config, tmp_path):
    """Written again, it would first be deleted: a kill then leaves none."""
    config.imbalance, config.resampling.tau = "decoupled", 1.0
    network = parts.classifier(config, FINDINGS)
    state = parts.initial_state(config, network, FINDINGS, LABEL)
    run = SimpleNamespace(config=config, data=None, ids=range(5), folder=tmp_path)
    refit.refit_classifier(run, state, 7)
    (written,) = tmp_path.rglob("_CHECKPOINT_METADATA")
    before = written.stat().st_ino
    refit.refit_classifier(run, state, 7)
    assert written.stat().st_ino == before
    (written.parent / "state/_METADATA").write_bytes(b"damaged")
    refit.refit_classifier(run, state, 7)
    _, again = parts.restore(config, tmp_path / start.REFITTED, network, FINDINGS)
    kernel = state.averaged["params"]["classifier"]["kernel"]
    norms = np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(
        again.averaged["params"]["classifier"]["kernel"], kernel / norms, rtol=1e-5
    )


def by_scikit_learn(x, label, weight, decay=1e-3):
    """Log-odds [N, T] at the minimum of the weighted mean and the decayed squares."""
    odds = []
    for y, w in zip(label.T, weight.T, strict=True):
        strength = 1 / (2 * decay * w.sum())
        fit = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
        odds.append(fit.fit(x, y, sample_weight=w).decision_function(x))
    return np.stack(odds, axis=1)


def embedded():
    """Embeddings [N, F] and labels [N, T] that depend on them."""
    rng = np.random.default_rng(0)
    feature = rng.normal(3, [1, 5, 0.2, 1], (300, 4)).astype(np.float32)
    score = feature[:, :3] + rng.normal(0, 3, (300, 3))
    cut = map(np.quantile, score.T, (0.9, 0.7, 0.2))
    return feature, (score > np.array([*cut])).astype(float)


@pytest.mark.parametrize(
    ("scheme", "penalty"), [("balanced", 1e-3), ("balanced", 0.3), ("decoupled", 1e-3)]
)
def test_a_fitted_head_weighs_the_classes_as_asked(config, scheme, penalty):
    feature, label = embedded()
    config.imbalance, config.transfer.penalty = scheme, penalty
    layer, points = refit.fitted(config, FINDINGS, feature, label)
    w_pos, w_neg = (len(label) / (2 * n) for n in (label.sum(0), (1 - label).sum(0)))
    weight = np.where(label == 1, w_pos, w_neg)
    # The embeddings are standardised as they are, whatever the labels weigh.
    scaled = (feature - feature.mean(0)) / feature.std(0)
    expected = by_scikit_learn(scaled, label, weight, penalty)
    got = feature @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(got, expected, atol=3e-3)
    assert points == 0


@pytest.mark.parametrize(
    ("scheme", "output", "mode"),
    [
        ("decoupled", FINDINGS, "all"),
        ("balanced", EXCLUSIVE, "all"),
        ("decoupled", EXCLUSIVE, "features"),
    ],
)
def test_norms_are_of_a_trained_classifier_of_classes(config, scheme, output, mode):
    if output.exclusive:
        config.loss = {"name": "softmax_cross_entropy"}
    config.imbalance, config.resampling.tau = scheme, 1.0
    config.transfer.mode = mode
    with pytest.raises(InputError, match=r"resampling\.tau=1"):
        check.check_parts(config, parts.classifier(config, output), output, batch=1)
    config.update_from_flattened_dict(
        {
            "imbalance": "decoupled",
            "transfer.mode": "all",
            "loss.name": "softmax_cross_entropy",
        }
    )
    check.check_parts(config, parts.classifier(config, EXCLUSIVE), EXCLUSIVE, batch=1)


def test_repeated_images_count_so_often_in_a_fitted_head(config):
    feature, label = embedded()
    config.imbalance = "over_sample"
    rows = imbalance.resampled(config, label).index
    times = np.bincount(rows, minlength=len(label)).astype(float)
    assert times.max() > 1
    layer, _ = refit.fitted(config, FINDINGS, feature[rows], label[rows])
    mean, std = feature[rows].mean(0), feature[rows].std(0)
    weight = np.repeat(times[:, None], 3, axis=1)
    expected = by_scikit_learn((feature - mean) / std, label, weight)
    got = feature @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(got, expected, atol=3e-3)


def test_a_batch_that_devices_cannot_share_is_refused(config):
    config.train.batch = 6
    with pytest.raises(InputError, match=r"train\.batch=6.*4 devices"):
        check.check_parts(config, parts.classifier(config, FINDINGS), FINDINGS, batch=4)


def test_a_config_survives_its_json(config):
    again = ConfigDict(json.loads(json.dumps(config_as_json(config))))
    assert config_as_json(again) == config_as_json(config)


# ------------------------------------------------------------------ what a mode moves

STAGES = ("stem", "stage1", "stage2", "stage3")


@pytest.mark.parametrize(
    ("mode", "number"),
    [("all", 0), ("layerwise", 0), ("gradual", 0), ("stem", 1), ("stage2", 3)]
    + [("stage3", 4), ("head", 4), ("features", 4)],
)
def test_a_mode_freezes_stages_from_the_image_on(config, mode, number):
    config.transfer.mode = mode
    network = parts.classifier(config, FINDINGS)
    assert network.stages == STAGES
    assert network.frozen == STAGES[:number]
    hyper = shapes(config, network, FINDINGS).hyper
    assert (hyper.share is None) == (mode != "layerwise")
    assert (hyper.start is None) == (mode != "gradual")


def test_an_unknown_mode_is_refused_with_those_that_there_are(config):
    for mode in ("stage4", "classifier", "none"):
        config.transfer.mode = mode
        with pytest.raises(InputError, match=f"transfer.mode='{mode}'.*stem, stage1"):
            parts.classifier(config, FINDINGS)


def hyper_of(config):
    small = {"params": {"classifier": {"kernel": np.zeros(3)}}}
    network = parts.classifier(config, FINDINGS)._replace(init=lambda key: small)
    state = parts.initial_state(config, network, FINDINGS, LABEL)
    return jax.device_get(state.hyper)


def test_the_deeper_a_stage_the_less_of_the_rate_it_has(config):
    config.transfer.update(mode="layerwise", decay=0.5)
    share = {"stage3": 0.5, "stage2": 0.25, "stage1": 0.125, "stem": 0.0625}
    assert hyper_of(config).share == share


@pytest.mark.parametrize(
    ("mode", "name", "value"),
    [("layerwise", "decay", 0.0), ("layerwise", "decay", 1.5), ("gradual", "every", 0)],
)
def test_a_pace_that_makes_no_sense_is_refused(config, mode, name, value):
    config.transfer.update({"mode": mode, name: value})
    with pytest.raises(InputError, match=rf"transfer\.{name}={value}: give"):
        check.check_ranges(config)


def test_the_deeper_a_stage_the_later_it_starts(config):
    config.transfer.update(mode="gradual", every=30)
    start = {"stage3": 30, "stage2": 60, "stage1": 90, "stem": 120}
    assert hyper_of(config).start == start
    config.train.steps = 120
    with pytest.raises(InputError, match=r"transfer\.every=30.*step 120 of 120"):
        hyper_of(config)


def test_a_run_of_an_older_medjax_is_named(config, tmp_path):
    found = config_as_json(config)
    (tmp_path / "config.json").write_text(json.dumps(found))
    assert read_config(tmp_path).transfer.mode == "all"
    del found["resampling"]["defer"]
    for name in ("resampling.defer", "transfer"):
        found.pop(name, None)
        (tmp_path / "config.json").write_text(json.dumps(found))
        message = f"config.json: has no '{name}': a run of an older"
        with pytest.raises(InputError, match=message):
            read_config(tmp_path)


def test_predictive_values_are_wanted_at_one_prevalence_or_at_one_a_task(config):
    assert fixed.prevalence(config, 3) is None
    config.evaluation.prevalence = (0.1,)
    np.testing.assert_array_equal(fixed.prevalence(config, 3), [0.1, 0.1, 0.1])
    config.evaluation.prevalence = (0.1, 0.2, 0.3)
    np.testing.assert_array_equal(fixed.prevalence(config, 3), [0.1, 0.2, 0.3])
    for wrong in ((0.1, 0.2), (1.0,), (0.0,)):
        config.evaluation.prevalence = wrong
        with pytest.raises(InputError, match="one number between 0 and 1"):
            fixed.prevalence(config, 3)


def test_a_rule_of_the_thresholds_has_its_value(config):
    assert fixed.operating(config) == {"rule": "youden", "value": None}
    config.evaluation.rule = "sensitivity"
    assert fixed.operating(config) == {"rule": "sensitivity", "value": 0.9}


# ------------------------------------------------------------------ augmentation

KEY = jax.random.key(4)
FIXED = {
    "in_plane": False,
    "by_channel": False,
    "axis": -1,
    "tiles": 2,
    "fill": 0.5,
    "distance": 16.0,
}
FULL = {"rotation": 5.0, "probability": 1.0}
NAMES = sorted([*warp.MOVES, *pixel_ops.OPS])


def op_config(name, share=1.0):
    """That op alone, its strengths at this share of what a test can see."""
    op = warp.MOVES.get(name) or getattr(pixel_ops, name)
    numbers = [p for p in inspect.signature(op).parameters if p not in ("key", "image")]
    options = {
        n: FIXED.get(n, FULL.get(n, 0.4) * share) for n in numbers if n != "motion"
    }
    augment = {"ops": (name,), name: options}
    return ConfigDict({"augment": augment, "intensity": {"name": "unit_range"}})


def batch():
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 18, 3), dtype=np.uint8)
    numbers = {n: jnp.arange(3, dtype=jnp.int32) for n in ("id", "epoch", "occurrence")}
    return {"image": image, **numbers}


QUICK = ("blur", "brightness", "elastic", "random_affine")  # Of each way to be written.


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
def test_arrays_do_what_the_config_s_numbers_do(name):
    config = op_config(name)
    traced = jax.jit(parts.augmentation(config))
    strengths = parts.strengths(config)
    found = traced(KEY, batch(), jax.tree.map(jnp.asarray, strengths))["image"]
    # The same ops, whose numbers are Python's own while they are traced.
    plain = jax.jit(lambda batch: parts.augmentation(config)(KEY, batch, {name: {}}))(
        batch()
    )["image"]
    np.testing.assert_allclose(found, plain, atol=2e-6)
    unchanged = batch()["image"] / np.float32(255)
    assert np.abs(found - unchanged).max() > 0.01
    if strengths[name]:  # What the arrays say counts, not what the config said.
        weaker = parts.strengths(op_config(name, 0.5))
        other = traced(KEY, batch(), jax.tree.map(jnp.asarray, weaker))["image"]
        assert np.abs(found - other).max() > 1e-3


def test_a_number_that_sets_a_shape_is_no_array():
    static = {name for name, options in parts.STATIC.items() if options}
    for name in NAMES:
        given = parts.strengths(op_config(name))[name]
        numbers = op_config(name).augment[name]
        left = {n for n, v in numbers.items() if isinstance(v, float)} - set(given)
        assert bool(left) == (name in static)


def test_copies_of_an_image_are_augmented_alike_in_every_batch():
    c = op_config("brightness")
    c.evaluation = ConfigDict({"flip": True, "copies": 3})
    views = jax.jit(parts.views(c))
    image = batch()["image"]
    got, reversed = views(image), views(image[::-1])
    np.testing.assert_allclose(got[0], image / np.float32(255), atol=1e-6)
    np.testing.assert_allclose(got[1], got[0][:, :, ::-1])
    np.testing.assert_allclose(reversed[:, ::-1], got, atol=1e-6)
    # Brightness adds one number: the same to every image, another in each copy.
    inside = (image > 110) & (image < 150)
    added = [(copy - got[0])[inside] for copy in got[2:]]
    assert all(np.ptp(values) < 1e-5 for values in added)
    assert len({round(float(values[0]), 3) for values in added}) == 3
    c.augment.ops = ()
    with pytest.raises(InputError, match="evaluation.copies=3.*augment.ops"):
        parts.views(c)


@pytest.mark.parametrize(
    ("name", "changes", "rows"),
    [
        ("quickstart", {}, 64),
        ("quickstart", {"accumulate": 4}, 16),  # Each device has as many parts.
        ("nih_densenet121", {}, 0),
        ("lesion_shape", {}, 0),
    ],
)
def test_cores_are_devices_where_images_are_small(name, changes, rows):
    config = config_of(name)
    config.train.update(changes)
    assert classification.TASK.share(config) == rows

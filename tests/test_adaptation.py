"""Unsupervised domain adaptation: the formulas, the step, and who may be looked at."""

import functools
import importlib
import itertools
import json
import math
from types import SimpleNamespace

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from jax.sharding import Mesh, PartitionSpec

from configs import base
from medjax import losses
from medjax.commands import train
from medjax.data import loader
from medjax.errors import InputError
from medjax.models import layers
from medjax.tasks import adapt, answers, films, parts, refit, splitting, start
from medjax.training import optim, step

ROWS, FEATURES = 16, 5
DOMAIN = np.tile([0, 0, 1, 1, 1, 0, 1, 1], 2).astype(np.int32)
RNG = np.random.default_rng(0)
FEATURE = (RNG.normal(3, 1, (ROWS, FEATURES)) * [1, 2, 3, 1, 1]).astype(np.float32)


def coral64(feature, domain):
    source, target = (np.cov(feature[domain == d].T.astype(np.float64)) for d in (0, 1))
    return np.sum((source - target) ** 2) / (4 * feature.shape[1] ** 2)


def domain64(params, feature, domain):
    """The domain classifier's cross-entropy, summed over rows, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden = np.maximum(feature @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    z = (hidden @ p["logit"]["kernel"] + p["logit"]["bias"])[:, 0]
    right = 1 / (1 + np.exp(np.where(domain == 1, -z, z)))
    return -np.log(right).sum()


def test_coral_is_the_distance_of_the_unbiased_covariances():
    found = adapt.coral_distance(FEATURE, DOMAIN)
    np.testing.assert_allclose(found, coral64(FEATURE, DOMAIN), rtol=1e-5)
    moved = FEATURE + 1000 * DOMAIN[:, None]  # A shift alone costs nothing.
    np.testing.assert_allclose(adapt.coral_distance(moved, DOMAIN), found, rtol=1e-3)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_coral_is_of_all_shards_together(shards):
    split = [x.reshape(shards, -1, *x.shape[1:]) for x in (FEATURE, DOMAIN)]
    total = functools.partial(jax.lax.psum, axis_name="x")
    found = jax.vmap(
        functools.partial(adapt.coral_distance, total=total), axis_name="x"
    )(*split)
    np.testing.assert_allclose(found, coral64(FEATURE, DOMAIN), rtol=1e-5)


def test_the_domain_loss_is_the_cross_entropy_of_the_domain():
    params = adapt.domain_classifier(jax.random.key(0), FEATURES)
    total, count = adapt.domain_cross_entropy(params, FEATURE, DOMAIN)
    assert count == ROWS
    np.testing.assert_allclose(total, domain64(params, FEATURE, DOMAIN), rtol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.3, 2.0])
def test_a_reversal_is_the_identity_whose_gradient_points_back(strength):
    params = adapt.domain_classifier(jax.random.key(0), FEATURES)
    assert (adapt.reverse(FEATURE, strength) == FEATURE).all()

    def behind(feature):
        feature = adapt.reverse(feature, strength)
        return adapt.domain_cross_entropy(params, feature, DOMAIN)[0]

    found = jax.jit(jax.grad(behind))(FEATURE)
    for row, column in ((0, 0), (3, 2), (9, 4)):
        at = np.zeros(FEATURE.shape)
        at[row, column] = 1e-5
        up, down = (domain64(params, FEATURE + s * at, DOMAIN) for s in (1, -1))
        slope = (up - down) / 2e-5
        np.testing.assert_allclose(
            found[row, column], -strength * slope, rtol=1e-3, atol=1e-6
        )


def test_the_ramp_is_the_papers():
    p = np.linspace(0, 1, 11)
    expected = 2 / (1 + np.exp(-10 * p)) - 1
    np.testing.assert_allclose(adapt.ramp(p), expected, atol=1e-6)


# A network of one linear layer, so that the step compiles in no time.
TASKS, SIDE = 3, 4


def apply(variables, image, *, train, mutable):
    params = variables["params"]
    embedding = image.reshape(len(image), -1) @ params["stem"]["kernel"]
    logits = embedding @ params["classifier"]["kernel"]
    sown = {"embedding": (embedding,)} if "intermediates" in mutable else {}
    return logits, {"batch_stats": {}, "intermediates": sown}


OPTIMIZER = optax.with_extra_args_support(optax.sgd(0.1))


def config_of(file, name, **more):
    config = importlib.import_module(f"configs.{file}").get_config()
    with config.unlocked():
        config.adapt = {"name": name, **more}
    return config


def begin(name, weight=1.0, done=300):
    """The state after so many updates of the quickstart's 1000."""
    keys = jax.random.split(jax.random.key(0))
    stem = 0.3 * jax.random.normal(keys[0], (SIDE**2, FEATURES))
    head = jax.random.normal(keys[1], (FEATURES, TASKS))
    variables = {"params": {"stem": {"kernel": stem}, "classifier": {"kernel": head}}}
    w = jnp.ones(TASKS)
    state = step.init_state(
        adapt.variables(config_of("quickstart", name), variables),
        optimizer=OPTIMIZER,
        dual={},
        hyper=optim.Hyper(0.1, 0, 0.9, 0, {"w_pos": w, "w_neg": w}, adapt=weight),
    )
    return state._replace(step=jnp.int32(done))


def batch(seed=0):
    """ROWS rows, [B, ...], in which the target's labels have weight 0."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(ROWS, SIDE, SIDE, 1)).astype(np.float32),
        "label": rng.integers(0, 2, (ROWS, TASKS)).astype(np.float32),
        "weight": np.repeat(1 - DOMAIN[:, None], TASKS, 1).astype(np.float32),
        "domain": DOMAIN,
    }


def step_parts(name):
    return {
        "apply": apply,
        "augment": lambda key, batch: batch,
        "loss": losses.weighted_bce,
        "optimizer": OPTIMIZER,
        "adapt": adapt.loss(config_of("quickstart", name)),
    }


@functools.cache
def vmapped(name):
    one = functools.partial(step.train_step, **step_parts(name))
    return jax.jit(jax.vmap(one, in_axes=(None, 0, None), axis_name=step.AXIS))


def by_vmap(name, state, whole, shards):
    found = vmapped(name)(state, sharded(whole, shards), jax.random.key(0))
    return jax.tree.map(lambda x: x[0], found)


def by_pmap(name, state, whole, shards):
    assert shards == jax.local_device_count()  # conftest.py forces four.
    compiled = step.compile_step(**step_parts(name))
    state = jax.device_get(state)  # It is donated, and one buffer stands there twice.
    return compiled(state, sharded(whole, shards), jax.random.key(0))


def by_shard_map(name, state, whole, shards):
    mesh = Mesh(jax.local_devices()[:shards], (step.AXIS,))
    every, part = PartitionSpec(), PartitionSpec(step.AXIS)
    mapped = jax.shard_map(
        lambda *args: step.train_step(*args, jax.random.key(0), **step_parts(name)),
        mesh=mesh,
        in_specs=(every, part),
        out_specs=every,
        check_vma=False,
    )
    return jax.jit(mapped)(state, whole)


def sharded(whole, shards):
    return {k: v.reshape(shards, -1, *v.shape[1:]) for k, v in whole.items()}


@pytest.mark.parametrize("name", adapt.BY_LOSS)
@pytest.mark.parametrize(
    ("way", "shards"),
    [
        (by_vmap, 8),
        pytest.param(by_pmap, 4, marks=pytest.mark.slow),
        pytest.param(by_shard_map, 4, marks=pytest.mark.slow),
    ],
)
def test_an_update_does_not_depend_on_the_number_of_shards(name, way, shards):
    whole = by_vmap(name, begin(name), batch(), 1)
    found = way(name, begin(name), batch(), shards)
    assert whole[1]["gap"] > 0.01
    chex.assert_trees_all_close(found[1], whole[1], rtol=1e-5)
    chex.assert_trees_all_close(found[0], whole[0], rtol=1e-5, atol=1e-6)


def embedding_of(params, whole):
    image = whole["image"].reshape(ROWS, -1).astype(np.float64)
    return image @ np.asarray(params["stem"]["kernel"], np.float64)


def test_coral_brings_the_covariances_together_in_proportion_to_its_weight():
    apart = []
    for weight in (0.0, 1.0, 3.0):
        state = begin("coral", weight)
        before = coral64(embedding_of(state.params, batch()), DOMAIN)
        after, scalars = by_vmap("coral", state, batch(), 1)
        np.testing.assert_allclose(scalars["gap"], weight * before, rtol=1e-5)
        apart.append(coral64(embedding_of(after.params, batch()), DOMAIN))
    assert apart[0] > apart[1] > apart[2]


def test_the_classifier_learns_the_domain_and_the_embedding_hides_it():
    """One step without labels: each of the two moves the one loss its own way."""
    whole = batch()
    whole["weight"][:] = 0
    whole["image"][DOMAIN == 1] += 0.3

    def cross_entropy(stem, domain):
        return domain64(domain["domain"], embedding_of(stem, whole), DOMAIN)

    before = begin("dann").params
    first, late = (
        by_vmap("dann", begin("dann", done=n), whole, 1)[0].params for n in (0, 500)
    )
    now = cross_entropy(before, before)
    assert cross_entropy(before, late) < now
    assert cross_entropy(late, before) > now
    chex.assert_trees_all_equal(first["stem"], before["stem"])  # It only learns yet.
    assert cross_entropy(before, first) < now


# Two small data sets on disk, read as any other.
def write_images(folder, *, images=24, tasks=("a", "b"), shift=0, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir()
    names = [f"{seed}-{n}.png" for n in range(images)]
    for name in names:
        pixels = np.clip(rng.normal(100 + shift, 40, (16, 16)), 0, 255)
        cv2.imwrite(str(folder / name), pixels.astype(np.uint8))
    rows = {"image": names, "patient": np.arange(images) // 2}
    rows |= {task: rng.permutation(images) % 2 for task in tasks}
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)


def table_config(home, name):
    c = config_of("table", name)
    c.explore = False
    c.data.update(
        records=str(home / "records"), folder=str(home / "source"), labels=("a", "b")
    )
    c.data.side = 16
    c.split.update(test=0.3, validation=0.2)
    c.model.update(stem="half", pool="mean")
    with c.unlocked():
        c.model.update(blocks=(1, 1), growth=4, features=4)
    c.train.update(steps=2, batch=8, log_every=1, evaluate_every=2)
    c.evaluation.update(batch=4, replicates=20)
    c.intensity = {"name": "standardise", "mean": 0.5, "std": 0.25}
    with c.unlocked():
        c.adapt.data = c.data.to_dict() | {"folder": str(home / "target")}
    return c


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_images(home / "source")
    write_images(home / "target", shift=80, seed=1, images=26)
    return home


@pytest.fixture
def read(monkeypatch):
    """The (folder, id) of every record that is read."""
    seen = []
    get, begin = loader.Images.__getitem__, loader.Images.__init__

    def remember(self, records, *args):
        self.folder = records
        begin(self, records, *args)

    def record(self, index):
        seen.append((self.folder, int(self.ids[index])))
        return get(self, index)

    monkeypatch.setattr(loader.Images, "__init__", remember)
    monkeypatch.setattr(loader.Images, "__getitem__", record)
    return seen


def opened(config):
    """The source, the target, and the batches of both."""
    source = films.data(config)
    target = adapt.target(config, source)
    manifest = splitting.split(config, source)
    ids = manifest["id"][manifest["split"] == "train"].to_numpy()
    unlabelled = target.images()
    batches = splitting.train_batches(config, source.films(ids), unlabelled)
    return source, target, batches


def take(batches, n):
    found = [jax.device_get(batch) for batch in itertools.islice(batches, n)]
    return [
        {k: v.reshape(-1, *v.shape[2:]) for k, v in sharded.items()}
        for sharded in found
    ]


def test_a_batch_has_as_many_target_rows_that_know_nothing(home):
    config = table_config(home, "coral")
    _, target, batches = opened(config)
    found = take(batches, 6)
    batches.close()
    for one in found:
        assert one["id"].shape == (2 * config.train.batch,)
        theirs = one["domain"] == 1
        assert theirs.sum() == config.train.batch
        assert (one["id"][theirs] < -1).all() and (one["id"][~theirs] >= 0).all()
        assert not one["label"][theirs].any() and not one["weight"][theirs].any()
        assert (one["weight"][~theirs] == 1).all()
        films = target.data.films(target.data.table["id"].to_numpy())
        for id, image in zip(one["id"][theirs], one["image"][theirs], strict=True):
            np.testing.assert_array_equal(image, films[-2 - id]["image"])
    ids = np.concatenate([one["id"][one["domain"] == 1] for one in found])
    assert set(-2 - ids) == set(target.ids)  # All of them, and nobody else.


@pytest.mark.parametrize("done", [1, 7])
def test_a_saved_position_goes_on_with_the_next_rows_of_both(home, done):
    config = table_config(home, "dann")
    *_, batches = opened(config)
    take(batches, done)
    saved = json.dumps(batches.get_state())
    expected = take(batches, 4)
    batches.close()
    config.train.threads = 1
    *_, fresh = opened(config)
    fresh.set_state(json.loads(saved))
    chex.assert_trees_all_equal(take(fresh, 4), expected)
    fresh.close()


class Changed:
    """Films whose labels are others'."""

    def __init__(self, films):
        self._films = films

    def __len__(self):
        return len(self._films)

    def __getitem__(self, index):
        sample = self._films[index]
        return {**sample, "label": 1 - sample["label"]}


def test_the_targets_labels_have_no_part_in_an_update(home):
    config = table_config(home, "coral")
    source, target, batches = opened(config)
    batches.close()
    seen = target.data.films(target.ids)
    assert (Changed(seen)[0]["label"] != seen[0]["label"]).all()
    states = []
    for labelled in (seen, Changed(seen)):
        batches = splitting.train_batches(config, source.films(np.arange(12)), labelled)
        (one,) = take(batches, 1)
        batches.close()
        one["image"] = one["image"][:, ::4, ::4] / np.float32(255)
        for name in ("label", "weight"):  # A third finding, for the step above.
            one[name] = np.pad(one[name], ((0, 0), (0, 1)))
        one = {name: one[name] for name in batch()}
        states.append(by_vmap("coral", begin("coral"), one, 1)[0])
    chex.assert_trees_all_equal(*states)


@pytest.fixture(scope="module")
def looked_at(home):
    """The network that can be looked into, and a state before the first update."""
    config = table_config(home, "adabn")
    task = films.data(config).output
    network = parts.classifier(adapt.unfrozen(config), task)
    return network, parts.initial_state(config, network, task, np.eye(2))


def restate(config, looked_at, target):
    network, state = looked_at
    prepare = parts.preparation(config)
    return refit.restated(config, state, target, apply=network.apply, prepare=prepare)


@pytest.mark.parametrize("name", ["coral", "adabn"])
def test_only_the_targets_training_images_are_ever_read(home, read, looked_at, name):
    config = table_config(home, name)
    _, target, batches = opened(config)
    read.clear()  # Duplicates between the sides are looked for among all.
    if name == "coral":
        take(batches, 8)
    else:
        restate(config, looked_at, target)
    batches.close()
    theirs = {id for folder, id in read if folder == target.data.path}
    assert theirs == set(target.ids)
    sides = target.manifest.set_index("id")["split"]
    assert {"test", "validation"} <= set(sides)
    assert set(sides[list(theirs)]) == {"train"}


def images(target):
    """[N, H, W, C] of the target's training images, as the model takes them."""
    films = target.data.films(target.ids)
    pixels = np.stack([films[i]["image"] for i in range(len(films))])
    return (pixels / 255 - 0.5) / 0.25


@pytest.mark.parametrize("size", [5, 100])
def test_the_first_layers_statistics_are_those_of_all_target_images(
    home, looked_at, size
):
    config = table_config(home, "adabn")
    config.evaluation.batch = size
    target = adapt.target(config, films.data(config))
    assert len(target.ids) % size
    before, after = looked_at[1], restate(config, looked_at, target)
    kernel = np.asarray(before.params["stem"]["conv"]["kernel"], np.float64)
    padded = np.pad(images(target), ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    y = np.einsum("nxycij,ijcf->nxyf", windows[:, ::2, ::2], kernel)
    stats = after.averaged["batch_stats"]["stem"]["norm"]
    np.testing.assert_allclose(stats["mean"], y.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(stats["var"], y.var((0, 1, 2)), rtol=1e-4)
    chex.assert_trees_all_equal(before.params, after.params)
    chex.assert_trees_all_equal(before.averaged["params"], after.averaged["params"])
    chex.assert_trees_all_equal(before.batch_stats, after.batch_stats)


def test_one_batch_gives_every_layer_the_statistics_that_it_normalises_by(
    home, looked_at
):
    """Linen moves a running statistic by a tenth of the way to the batch's."""
    config = table_config(home, "adabn")
    config.evaluation.batch = 100
    target = adapt.target(config, films.data(config))
    after = restate(config, looked_at, target)
    network, state = looked_at
    update = functools.partial(network.apply, train=True, mutable=["batch_stats"])
    update = jax.jit(jax.vmap(update, (None, 0), axis_name=step.AXIS))
    _, moved = update(state.averaged, images(target)[None].astype(np.float32))
    expected = jax.tree.map(
        lambda old, new: (new[0] - 0.9 * old) / 0.1,
        state.averaged["batch_stats"],
        moved["batch_stats"],
    )
    chex.assert_trees_all_close(
        after.averaged["batch_stats"], expected, rtol=1e-4, atol=1e-5
    )


def test_statistics_of_unequal_batches_are_those_of_all_rows():
    x = np.random.default_rng(0).normal(1000, 1, (11, 6)).astype(np.float32)
    shards = [
        (len(rows), {"deep": {"norm": {"mean": rows.mean(0), "var": rows.var(0)}}})
        for rows in (x[:2], x[2:5], x[5:])
    ]
    found = layers.pool_statistics(shards)["deep"]["norm"]
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found["mean"], exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["var"], exact.var(0), rtol=1e-3)


def test_a_finding_is_found_in_any_case_and_called_as_asked(home):
    config = table_config(home, "none")
    plain = films.data(config)
    config.data.tasks = ("B", "a")
    data = films.data(config)
    assert data.output.names == ("B", "a")
    ids = np.arange(24)
    np.testing.assert_array_equal(data.label(ids), plain.label(ids)[:, ::-1])
    for id in ids:
        np.testing.assert_array_equal(data.films(ids)[id]["label"], data.label(ids)[id])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("addabn", {}, r"adapt\.name='addabn' is unknown: use 'none'"),
        ("coral", {"transfer.mode": "head"}, r"adapt\.name='coral' moves.*'head'"),
        ("dann", {"adapt.weight": 0.0}, r"adapt\.weight=0\.0"),
        ("adabn", {"adapt.data": {}}, r"adapt\.data: missing"),
        ("dann", {"adapt.data.labels": ("a",)}, r"adapt\.data: data\.tasks: 'b'"),
        (
            "dann",
            {"adapt.data.side": 8},
            r"adapt\.data: .*\(8, 8, 1\).*adapt.data.side",
        ),
        ("dann", {"adapt.data.channels": 3}, r"adapt\.data: .*\(16, 16, 3\)"),
        ("coral", {"adapt.data.folder": "source"}, r"adapt\.data: the same images"),
    ],
)
def test_what_cannot_adapt_is_refused_by_its_field(home, name, change, said):
    config = table_config(home, name)
    with config.unlocked():
        for field, value in change.items():
            value = str(home / value) if field == "adapt.data.folder" else value
            *section, last = field.split(".")
            functools.reduce(getattr, section, config)[last] = value
    with pytest.raises(InputError, match=said) as error:
        adapt.target(config, films.data(table_config(home, "none")))
    assert "\n" not in str(error.value)


def test_other_volumes_to_adapt_to_are_read_as_the_run_s_own():
    config = base.classification("volumes")
    other = config.data.to_dict() | {"spacing": (9.0, 2.0, 2.0)}
    config.adapt = {"name": "coral", "weight": 1.0, "data": other}
    source = SimpleNamespace(output=SimpleNamespace(names=("lesion",)))
    with pytest.raises(InputError, match=r"adapt\.data: data\.spacing is \(9\.0"):
        adapt.target(config, source)


def test_statistics_can_only_be_given_to_a_network_that_has_some(home):
    with pytest.raises(InputError, match=r"adapt\.name='adabn'.*densenet_small"):
        adapt.variables(table_config(home, "adabn"), {"params": {}})


def test_a_network_adapts_and_predicts_with_what_it_learnt(home):
    """One update of a real network, of the batches that training takes."""
    config = table_config(home, "dann")
    source, _, batches = opened(config)
    network = parts.classifier(config, source.output)
    state = parts.initial_state(config, network, source.output, np.eye(2))
    shape = state.params["domain"]["hidden"]["kernel"].shape
    assert shape == (state.params["classifier"]["kernel"].shape[0], adapt.HIDDEN_UNITS)
    before = jax.device_get(state)
    compiled = step.compile_step(**parts.step_parts(config, network))
    state, scalars = compiled(before, next(batches), jax.random.key(0))
    batches.close()
    np.testing.assert_allclose(scalars["gap"], math.log(2), atol=0.5)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state)
    assert moved.params["domain"]["logit"]["kernel"]
    assert moved.averaged["params"]["domain"]["logit"]["kernel"]
    image = np.zeros((4, 1, *source.output.shape), np.uint8)
    assert np.isfinite(network.predict(state, image)).all()
    given = start.Start(state.averaged, source.output.names, {}, {})
    without = jax.eval_shape(network.init, jax.random.key(0))
    found = start.variables(without, given, source.output)  # Another run may begin so.
    assert "domain" not in found["params"]


@pytest.mark.slow
def test_a_run_reports_the_targets_test_images_with_the_adapted_model(home):
    config, workdir = table_config(home, "adabn"), home / "run"
    config.transfer.mode = "features"  # Only the classifier is fitted: quicker.
    train.train(config, workdir)
    report = json.loads((workdir / "report-target.json").read_text())
    made_of = json.loads((workdir / "provenance.json").read_text())
    assert made_of["target"]["data"]["images"] == 26
    assert made_of["target"]["split"]["test"] == report["films"]
    sides = pd.read_csv(workdir / "target.csv")
    held_out = sides[sides["split"] == "test"]
    predicted = pd.read_csv(workdir / "predictions/target.csv")
    assert sorted(predicted["image"]) == sorted(held_out["image"])
    assert report["films"] == len(held_out) and report["external"]
    page = (workdir / "report-target.html").read_text()
    assert "adapted to unlabelled images of the same data" in page
    assert "Other hospitals, scanners" not in page
    assert not json.loads((workdir / "report.json").read_text())["external"]
    source = films.data(config)
    network = parts.classifier(config, source.output)
    tested = sides["id"][sides["split"] == "test"].to_numpy()
    images = adapt.target(config, source).data.films(tested)
    told = predicted.set_index("image").loc[held_out["image"], "a"]
    for folder, same in (("checkpoints", False), (start.ADAPTED, True)):
        _, state = parts.restore(config, workdir / folder, network, source.output)
        found = answers.predictions(config, network, state, images).probability
        assert np.allclose(found[:, 0], told, atol=1e-5) == same

"""One network that answers for a volume and draws masks beside, from files to files."""

import functools
import json

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pandas as pd
import pytest
import small_volumes
from launching import run_here
from scans import affine_of, brain, save
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from test_classified_volumes import SHAPE, batch_of, centred, rows, source
from test_export import run_alone

from medjax import losses
from medjax.augment import patches
from medjax.data import liver_phantom
from medjax.data.normalisation import z_scores
from medjax.data.sources.volumes import INSIDE, OUTSIDE
from medjax.errors import InputError
from medjax.evaluation import mask_metrics
from medjax.geometry import warp
from medjax.models import architectures
from medjax.tasks import classification, films

RNG = np.random.default_rng(0)
MASKS = {
    "mask": "drawn",
    "regions": ("whole", "core"),
    "values": {"whole": (1, 2), "core": (2,)},
    "background": (0, 9),
}


def test_the_loss_is_that_of_the_labels_and_the_masks_that_are_known():
    z, label = RNG.normal(size=(3, 2)), RNG.integers(0, 2, (3, 2)).astype(float)
    voxels, mask = RNG.normal(size=(3, 4, 5, 6, 2)), RNG.random((3, 4, 5, 6, 2)) < 0.3
    weight, known = np.ones((3, 2)), np.ones(mask.shape)
    weight[0], known[1], known[2, :2] = 0, 0, 0  # The first has a mask alone, ...
    mask = np.where(known > 0, mask, np.nan)

    def total(voxels, share=0.5):
        pairs = (z, voxels), (label, mask), (weight, known)
        one = jnp.ones(2)
        return losses.beside(losses.weighted_bce)(
            *jax.tree.map(jnp.asarray, pairs), masks=share, w_pos=one, w_neg=one
        )

    p = 1 / (1 + np.exp(-z))
    expected = -np.log(np.where(label > 0, p, 1 - p))[1:].sum()
    for n, k in ((0, 0), (0, 1), (2, 0), (2, 1)):
        at = known[n, ..., k] > 0
        q, g = 1 / (1 + np.exp(-voxels[n, ..., k][at])), mask[n, ..., k][at]
        entropy = -np.log(np.where(g > 0, q, 1 - q)).mean()
        dice = 1 - (2 * (q * g).sum() + 1) / ((q**2).sum() + (g**2).sum() + 1)
        expected += 0.5 * (entropy + dice)
    value, count = total(jnp.asarray(voxels))
    assert (float(value), float(count)) == (pytest.approx(expected, rel=1e-5), 3)
    slope = jax.grad(lambda v: total(v)[0])(jnp.asarray(voxels))
    np.testing.assert_array_equal(np.asarray(slope) != 0, known > 0)


def test_masks_move_with_their_volume_and_what_comes_in_is_unknown():
    stored = RNG.integers(1, 2**16, (2, 8, 10, 12, 1), dtype=np.uint16)
    mask = np.where(stored > 2**15, INSIDE, OUTSIDE).astype(np.uint16)
    mask[1] = 0  # Nobody drew it.

    def shift(key, motion):
        matrix = warp.affine_matrix(
            flip=False,
            rotation=jnp.zeros(3),
            zoom=1.0,
            translation=jnp.array([0, 0, 3]),
        )
        return warp._then(motion, matrix)

    shift.func = warp.random_affine
    how = {"ops": [shift], "prepare": z_scores, "spacing": (1.0, 1.0, 1.0)}
    batch = batch_of(stored) | {"mask": jnp.asarray(mask)}
    moved = jax.jit(functools.partial(patches.prepare_whole, **how))(
        jax.random.key(0), batch
    )
    (findings, label), (known, weight) = moved["label"], moved["weight"]
    assert findings.shape == known.shape == (2, 2) and not weight[1].any()
    image = np.asarray(moved["image"])
    inside = np.asarray(weight[0, ..., 0]) > 0
    assert 8 * 10 * 8 < inside.sum() < 8 * 10 * 11
    np.testing.assert_array_equal(image[0, ..., 0][~inside], 0)
    middle = np.zeros_like(inside)
    middle[2:-2, 2:-2, 4:-4] = True
    bright = image[0, ..., 0] > z_scores(jnp.full((1, 1, 1, 1, 1), 0.5)).item()
    np.testing.assert_array_equal(label[0, ..., 0][middle] > 0, bright[middle])


def test_records_hold_the_masks_of_a_column_however_they_are_turned(tmp_path):
    shape = (14, 12, 11)
    image = brain(shape)
    mask = np.where(image > 100, 1, 0) + (image > 110)
    mask[0, 0, 0] = 9
    turned = affine_of("LPS", (1.0, 1.0, 1.0))
    for folder in ("a", "b"):
        save(tmp_path / folder / "T1.nii.gz", image, turned)
    save(tmp_path / "a" / "seg.nii.gz", mask.astype(np.uint8), turned)
    options = {"files": {"T1": "T1.nii.gz"}, "foreground": "none", "margin": 1000.0}
    listed = rows("a", "b", drawn=["a/seg.nii.gz", ""])
    made = source(tmp_path, listed, **MASKS, **options)
    assert made.shape == (*SHAPE, 3)
    a, b = (item.content for item in made.items())
    assert not b[..., 1:].any()  # Nobody drew it.
    np.testing.assert_array_equal(a[..., 0], b[..., 0])
    # L, P and S in the file are S, P, L here: only the order differs.
    lying = np.stack([mask.T % 9 > 0, mask.T == 2], axis=-1)
    expected = centred(np.where(lying, INSIDE, OUTSIDE), SHAPE)
    np.testing.assert_array_equal(a[..., 1:], expected)


def test_one_mask_of_two_volumes_is_refused(tmp_path):
    for name in ("a", "b", "seg"):
        save(tmp_path / f"{name}.nii.gz", brain((14, 12, 11)))
    listed = rows("a.nii.gz", "b.nii.gz", drawn=["seg.nii.gz"] * 2)
    with pytest.raises(InputError, match="drawn names seg.nii.gz twice"):
        source(tmp_path, listed, **MASKS)


@pytest.mark.parametrize(
    ("column", "mask", "words"),
    [
        ("drawn", np.full((14, 12, 11), 3), "holds the value 3, which is in no region"),
        ("drawn", np.ones((14, 12, 10)), "lies on another grid"),
        ("other", np.ones((14, 12, 11)), "has no column 'other'"),
    ],
)
def test_a_mask_that_is_none_of_its_volume_is_refused(tmp_path, column, mask, words):
    save(tmp_path / "a.nii.gz", brain((14, 12, 11)))
    save(tmp_path / "seg.nii.gz", mask.astype(np.uint8))
    listed = rows("a.nii.gz", drawn=["seg.nii.gz"])
    listed |= {name: listed[name][:1] for name in ("tumour", "bleed")}
    options = MASKS | {"mask": column, "foreground": "none"}
    if column == "other":
        with pytest.raises(InputError, match=words):
            source(tmp_path, listed, **options)
    else:
        (item,) = source(tmp_path, listed, **options).items()
        assert words in item.reason


def test_the_answer_is_the_encoder_s_and_masks_have_the_image_s_size():
    options = {"widths": (4, 8), "strides": (1, (1, 2, 2)), "pool": "mean_max"}
    image = jnp.asarray(RNG.normal(size=(2, 6, 8, 12, 1)), jnp.float32)
    plain = architectures.unet_encoder(3, **options)
    both = architectures.unet_encoder(3, masks=2, **options)
    init = functools.partial(both.init, jax.random.key(0), train=False)
    variables = jax.jit(init)(image)
    answer, masks = jax.jit(functools.partial(both.apply, train=True))(variables, image)
    assert masks.shape == (2, 6, 8, 12, 2) and masks.dtype == jnp.float32
    params = {k: v for k, v in variables["params"].items() if k != "decoder"}
    alone, without = (
        jax.jit(functools.partial(network.apply, train=False))(weights, image)
        for network, weights in ((plain, {"params": params}), (both, variables))
    )
    np.testing.assert_allclose(answer, alone, rtol=1e-5)
    np.testing.assert_allclose(without, alone, rtol=1e-6)
    with pytest.raises(
        InputError, match="6 x 7 x 12 can't be divided by the network's"
    ):
        both.init(jax.random.key(0), image[:, :, :7], train=False)


def config_of(**changes):
    config = small_volumes.get_config()
    config.data.update(mask="mask", spacing=(4.0, 4.0, 4.0), shape=(16, 16, 12))
    config.model = {"name": "unet_encoder", "widths": (4, 8), "strides": (1, 2)}
    config.unlock().update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"name": "densenet_small"}}, "draws no masks beside its answer"),
        ({"transfer.mode": "features"}, "data.mask: masks are drawn by training"),
        ({"adapt.name": "coral"}, "data.mask: masks are drawn by training"),
        ({"data.regions": ()}, r"data.regions=\(\): name one or more"),
        ({"data.regions": ("core",)}, "data.values: has none for the region 'core'"),
        ({"data.mask": "", "loss.masks": 2.0}, "loss.masks: .* has no such number"),
        ({"data.shape": (16, 15, 12)}, "16 x 15 x 12 can't be divided"),
    ],
)
def test_mistakes_are_refused_before_a_file_is_read(changes, words):
    with pytest.raises(InputError, match=words):
        classification.check(config_of(**changes), 1)


def test_without_a_mistake_nothing_is_refused():
    classification.check(config_of(), 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Livers, of which two thirds have a mask, and a run of them."""
    home, listed = tmp_path_factory.mktemp("beside"), []
    for n in range(36):
        drawn = liver_phantom.patient(n, seed=1, shape=(14, 17, 12), spacing=(4.0,) * 3)
        affine = drawn.affine[:, [2, 1, 0, 3]]  # Axes L, P, S in the files.
        save(home / f"in/{n}.nii.gz", drawn.image[..., 0].T, affine)
        mask = drawn.mask[..., 0].T.astype(np.uint8)
        save(home / f"in/masks/{n}.nii.gz", mask, affine)
        mask = f"masks/{n}.nii.gz" if n % 3 else ""
        listed.append((f"{n}.nii.gz", f"p{n}", int(drawn.lesion), mask))
    table = pd.DataFrame(listed, columns=["image", "patient", "lesion", "mask"])
    table.to_csv(home / "in/labels.csv", index=False)
    (home / "masks.py").write_text(
        "import test_masks_beside as t\nget_config = t.config_of\n"
    )
    flags = [
        f"--config={home / 'masks.py'}",
        f"--config.data.folder={home / 'in'}",
        f"--config.data.records={home / 'records'}",
    ]
    more = ["--config.train.steps=40", "--config.ensemble=2"]
    out, _ = run_here("train", *flags, *more, f"--workdir={home / 'run'}")
    return home, out


@pytest.mark.slow  # So many programs are compiled.
def test_masks_are_measured_beside_the_answer(finished):
    home, out = finished
    results = json.loads((home / "run/report.json").read_text())
    tested = pd.read_csv(home / "run/predictions/test.csv")
    rows = pd.read_csv(home / "run/predictions/test_masks.csv")
    number = rows["name"].str.removesuffix(".nii.gz").astype(int)
    drawn = tested["image"].str.removesuffix(".nii.gz").astype(int) % 3 > 0
    assert 0 < len(rows) == drawn.sum() < len(tested) and (number % 3 > 0).all()
    mean = results["masks"]["regions"]["lesion"]["dice"]["estimate"]
    assert mean == pytest.approx(rows["dice"].mean())
    area = roc_auc_score(rows["true_ml"] > 0, rows["predicted_ml"])
    assert results["masks"]["auroc"]["lesion"]["estimate"] == pytest.approx(area)
    page = (home / "run/report.html").read_text()
    assert 'id="masks"' in page and "HD95" in out
    rule = json.loads((home / "run/postprocessing.json").read_text())
    assert results["masks"]["posts"] == rule["regions"]
    assert f"its probability is {rule['regions']['lesion']['threshold']:g} or" in page
    assert json.loads((home / "run/task.json").read_text())["masks"] == ["lesion"]


@pytest.mark.slow  # So many programs are compiled.
def test_the_rule_of_masks_is_the_best_one_on_validation(finished):
    """By a count of voxels and components that knows nothing of the choice."""
    home, _ = finished
    run = classification.TASK.finished(home / "run")
    data = films.data(run.config)
    sides = pd.read_csv(home / "run/splits.csv")
    ids = sides["id"][sides["split"] == "validation"].to_numpy()
    dices: dict = {post: [] for post in mask_metrics.CANDIDATES}
    for item in map(data.films(ids).__getitem__, range(len(ids))):
        if not item["mask"].any():
            continue
        z = run.network.masks(run.state, item["image"][None, None])[0, 0, ..., 0]
        known, true = item["mask"][..., 0] > 0, item["mask"][..., 0] == INSIDE
        probability = 1 / (1 + np.exp(-np.asarray(z, float)))
        for post, each in dices.items():
            part, count = ndimage.label(
                known & (probability >= post.threshold), np.ones((3, 3, 3))
            )
            sizes = ndimage.sum(part > 0, part, range(1, count + 1)) * 64
            keep = [
                n + 1
                for n, size in enumerate(sizes)
                if size >= post.smallest and (not post.largest or n == sizes.argmax())
            ]
            drawn = np.isin(part, keep)
            whole = drawn.sum() + true.sum()
            each.append(2 * (drawn & true).sum() / whole if whole else 1.0)
    assert len(dices[mask_metrics.Post()]) >= 3
    rule = json.loads((home / "run/postprocessing.json").read_text())
    chosen = dices[mask_metrics.Post(**rule["regions"]["lesion"])]
    means = [np.mean(each) for each in dices.values()]
    assert np.mean(chosen) == pytest.approx(max(means), abs=1e-6)
    assert max(means) > min(means)


@pytest.mark.slow  # So many programs are compiled.
def test_predict_writes_the_masks_that_evaluate_measured(finished):
    home, _ = finished
    rows = pd.read_csv(home / "run/predictions/test_masks.csv").set_index("name")
    chosen = home / "chosen"
    chosen.mkdir()
    for name in rows.index[:4]:
        (chosen / name).write_bytes((home / "in" / name).read_bytes())
    run, out = f"--workdir={home / 'run'}", f"--out={home / 'new.csv'}"
    run_here("predict", run, f"--images={chosen}", out)
    for name in rows.index[:4]:
        file = name.replace(".nii.gz", "_label.nii.gz")
        label = nibabel.load(home / "new_masks" / file)
        truth = nibabel.load(home / "in/masks" / name)
        np.testing.assert_allclose(label.affine, truth.affine)
        a, b = np.asarray(label.dataobj) > 0, np.asarray(truth.dataobj) > 0
        assert a.shape == b.shape
        whole = a.sum() + b.sum()
        dice = 2 * (a & b).sum() / whole if whole else 1.0
        assert dice == pytest.approx(rows.loc[name, "dice"], abs=1e-6)
        assert rows.loc[name, "predicted_ml"] == pytest.approx(a.sum() * 0.064)
    (chosen / "again").mkdir()
    (chosen / "again" / name).write_bytes((home / "in" / name).read_bytes())
    _, errors = run_here("predict", run, f"--images={chosen}", out, code=2)
    assert "two volumes would have the masks" in errors


@pytest.mark.slow
def test_an_exported_run_draws_the_same_masks(finished, tmp_path):
    home, _ = finished
    run_here("export", f"--workdir={home / 'run'}", f"--out={home / 'out'}")
    run = classification.TASK.finished(home / "run")
    image = RNG.integers(0, 2**16, (3, 16, 16, 12, 1), dtype=np.uint16)
    np.save(tmp_path / "images.npy", image)
    run_alone(home / "out/predict.py", "images.npy", "out.csv", cwd=tmp_path)
    masks = np.load(tmp_path / "out_masks.npy")
    z = np.asarray(run.network.masks(run.state, image[None]))[0]
    assert masks.shape == z.shape == (3, 16, 16, 12, 1)
    np.testing.assert_allclose(masks, 1 / (1 + np.exp(-z)), atol=1e-6)

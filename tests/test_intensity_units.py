"""CT and PET keep their units: fixed numbers, windows, and what padding changes."""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from scans import affine_of, save

from configs import base
from medjax.data import intensity_units, scan, volumes
from medjax.data.sources.scan_files import SequenceFile
from medjax.errors import InputError
from medjax.tasks import data_fields, scans, segmentation
from medjax.training import step, workdir

SHAPE = (48, 40, 12)
AFFINE = affine_of(spacing=(6.0, 6.0, 6.0))


def ct(seed, padding=None):
    """A body with lungs and a lesion, HU, as a file holds it; and the lesion's mask."""
    rng = np.random.default_rng(seed)
    index = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2
    x, y, z = np.moveaxis(index, -1, 0)
    image = np.full(SHAPE, -1000.0)
    image[np.hypot(x / 1.3, y) < 14] = 50
    for side in (-9, 9):
        image[np.hypot(x - side, y) < 4] = -850
    at = rng.uniform(-3, 3, 2)
    mask = np.linalg.norm([x - at[0], y - at[1], z], axis=0) < 3
    image[mask] = 100 + 10 * seed
    image = np.rint(image + rng.normal(0, 8, SHAPE))
    if padding is not None:
        image[np.hypot(x, y) > 20] = padding
    return image.astype(np.int16), mask.astype(np.uint8)


@pytest.fixture
def config(tmp_path):
    for number in range(4):
        for name, voxels in zip(("CT", "seg"), ct(number), strict=True):
            save(tmp_path / f"raw/P{number}/{name}.nii.gz", voxels, AFFINE)
    c = importlib.import_module("configs.ms_lesions_unet3d").get_config()
    c.modality, c.augment.ops = "ct", ()
    c.data.records, c.data.folder = str(tmp_path / "records"), str(tmp_path / "raw")
    c.data.sequences, c.data.files = ("CT",), {"CT": "CT.nii.gz"}
    c.data.mask = "seg.nii.gz"
    c.patch.size, c.model.strides = (8, 16, 16), (2, 2)
    c.model.widths, c.model.blocks = (2, 2), (0, 0)
    c.optim.update(warmup=1)
    c.train.update(steps=2, batch=4, evaluate_every=2)
    c.evaluation.flips = ()
    return c


def test_ct_is_clipped_and_scaled_by_the_regions_of_the_training_patients(config):
    data = scans.data(config)
    found = scans.scaled(config, data, np.array([0, 1, 3]))
    values = [image[mask > 0] for image, mask in map(ct, (0, 1, 3))]
    values = np.concatenate(values).astype(float)
    low, high = np.percentile(values, (0.5, 99.5))
    expected = 0, low, high, values.mean(), values.std()
    np.testing.assert_allclose(found.output.channels, [expected], rtol=1e-6)
    part = volumes.Part(2)  # Of another patient.
    image, label = volumes.read(data.path, part)
    seen = found.images((8, 8, 8), np.array([2]))[0]["image"].astype(float)
    own = ct(2)[0][ct(2)[1] > 0].astype(float)
    own = (np.clip(own, low, high) - values.mean()) / values.std()
    size = tuple(map(slice, image.shape[:3]))
    got = seen[size][label[..., 0] > 0]
    np.testing.assert_allclose(np.sort(got.ravel()), np.sort(own), atol=5e-3)
    np.testing.assert_array_equal(seen[size] == 0, image == 0)


def test_without_labels_or_spread_the_whole_foreground_sets_the_scale(config):
    data = scans.data(config)
    for part in data.parts(np.arange(4)).values():
        (data.path / f"{part.id}.label.npy").unlink()
    found = scans.scaled(config, data, np.arange(4)).output.channels[0]
    images = (volumes.read(data.path, volumes.Part(n))[0] for n in range(4))
    values = np.concatenate([image[image != 0] for image in images]).astype(float)
    np.testing.assert_allclose(found[3:], (values.mean(), values.std()), rtol=1e-4)


def test_the_scale_is_fixed_with_the_run_and_used_on_other_data(config, tmp_path):
    task, folder = segmentation.TASK, tmp_path / "run"
    config.data.split = "leave_one_out"
    run = task.begin(config, folder)
    output = scans.MasksOutput(**workdir.read_task(folder))
    np.testing.assert_allclose(output.channels, run.data.output.channels)
    assert run.data.output.channels[0].high < 200

    # A network that gives back what it sees.
    network = SimpleNamespace(predict=lambda variables, image: image)
    state = step.State(*[None] * len(step.State._fields))._replace(averaged={})
    other = scans.data(config)
    finished = SimpleNamespace(config=config, output=output)
    data_fields.check_alike(config, config, "--config")
    same = segmentation.other(finished, other)._replace(output=output)
    ids = np.array([0])
    answer = next(segmentation.answers(config, network, state, same, ids))
    image, _ = volumes.read(other.path, volumes.Part(0))
    expected = intensity_units.normalise(np.asarray(image, np.float32), output.channels)
    np.testing.assert_allclose(answer.probability, expected, atol=2e-3)  # float16.
    patient = scans.to_predict(config, [str(tmp_path / "raw/P0")])[0].read()
    predicted, *_ = segmentation.probability(
        config, network, state, patient.image, output.channels
    )
    inside = tuple(map(slice, expected.shape[:3]))
    np.testing.assert_allclose(predicted[inside], expected, atol=0.01)


CT = {"units": ("hounsfield",), "windows": ((0, 100),)}


@pytest.mark.parametrize("source", ["folders", "volumes"])
@pytest.mark.parametrize(
    ("both", "field", "value", "why"),
    [
        ({}, "foreground", "none", "foreground is 'none', the run's 'body'"),
        ({}, "spacing", (1.0, 2.0, 2.0), r"spacing is \(1.0, 2.0, 2.0\), the run's"),
        ({}, "clip", (0.0, 100.0), r"clip is \(0.0, 100.0\), the run's \(0.1, 99.9"),
        (CT, "windows", ((40, 400),), r"windows is \(\(40, 400.*run's \(\(0, 100\),\)"),
        ({}, "units", ("suv",), r"units is \('suv'.*\), the run's \(\)"),
    ],
)
def test_other_data_are_read_as_the_run_s_own(source, both, field, value, why):
    """Else the network is judged on what it was never made for."""
    make = base.segmentation if source == "folders" else base.classification
    ours, theirs = make(source), make(source)
    ours.data.update(both)
    theirs.data.update(both)
    data_fields.check_alike(ours, theirs, "--config")
    theirs.data[field] = value
    with pytest.raises(InputError, match=f"--config: data.*{why}"):
        data_fields.check_alike(ours, theirs, "--config")


def test_data_of_another_kind_of_task_are_called_so():
    films, masks = base.classification("volumes"), base.segmentation("folders")
    with pytest.raises(InputError, match="its task is 'segmentation', the run's 'mult"):
        data_fields.check_alike(films, masks, "--config")
    with pytest.raises(InputError, match="its task is 'multilabel', the run's 'segm"):
        data_fields.check_alike(masks, films, "--config")


@pytest.mark.parametrize("padding", [-3024, -2000, -1024])
def test_padding_changes_nothing_that_the_network_sees(tmp_path, padding):
    cases = []
    for name, value in (("plain", None), ("padded", padding)):
        path = save(tmp_path / f"{name}.nii.gz", ct(0, value)[0], AFFINE)
        for kind in ("body", "none"):
            file = {"CT": SequenceFile(path)}
            options = {"units": "hounsfield", "foreground": kind}
            cases.append(scan.read_scan(file, regions={}, **options))
    body, whole, padded, padded_whole = (case.image for case in cases)
    np.testing.assert_allclose(padded, body, atol=0.01)
    assert whole.shape[:3] == SHAPE[::-1] and padded_whole.min() >= intensity_units.AIR
    channel = intensity_units.Channel(0, -900.0, 200.0, 50.0, 40.0)
    seen = [
        intensity_units.normalise(image, [channel]) for image in (whole, padded_whole)
    ]
    np.testing.assert_allclose(*seen, atol=0.01)


def test_water_is_no_background_and_windows_are_channels(tmp_path):
    image = ct(0)[0]
    image[24, 14] = 0  # Beside the lesion.
    file = {"CT": SequenceFile(save(tmp_path / "CT.nii.gz", image, AFFINE))}
    case = scan.read_scan(file, regions={}, units="hounsfield", margin=1000.0)
    stored = np.moveaxis(image, (2, 1, 0), (0, 1, 2))  # Axes S, P, L.
    shown = case.image[..., 0] != 0
    flipped = stored[:, ::-1, ::-1]
    np.testing.assert_allclose(case.image[shown, 0], flipped[shown], atol=0.01)
    assert shown[(flipped == 0)].all()
    windows = ((0, 400), (-600, 1500))
    channels = intensity_units.channels(("hounsfield", "suv", "z_scores"), windows)
    assert [channel.sequence for channel in channels] == [0, 0, 1, 2]
    uptake, score = np.full(shown.shape, 50.0), np.where(shown, -1.5, 0)
    both = np.stack([case.image[..., 0], uptake, score], axis=-1)
    seen = intensity_units.normalise(both.astype(np.float32), channels)
    for n, (centre, width) in enumerate(windows):
        expected = np.clip((flipped - centre) / (width / 2), -1, 1)
        np.testing.assert_allclose(seen[shown, n], expected[shown], atol=1e-3)
    assert (seen[shown] != 0).all() and not seen[~shown, :2].any()
    assert (seen[..., 2] == intensity_units.HOTTEST / intensity_units.STEP).all()
    np.testing.assert_array_equal(seen[..., 3], score)


def test_uptake_is_not_hidden_by_a_scan_s_own_scale(tmp_path):
    rng = np.random.default_rng(0)
    uptake = rng.gamma(2.0, 0.5, SHAPE)
    uptake[20:24, 20:24, 5:7] = 12.5
    cases = []
    for factor in (1.0, 2.0):
        path = save(tmp_path / f"{factor}.nii.gz", (uptake * factor), AFFINE)
        file = {"PET": SequenceFile(path)}
        options = {"units": "suv", "foreground": "none"}
        cases.append(scan.read_scan(file, regions={}, **options).image)
    np.testing.assert_allclose(cases[1], 2 * cases[0], rtol=1e-5)
    channels = intensity_units.channels(("suv",), ())
    assert intensity_units.normalise(cases[0], channels).max() == pytest.approx(
        12.5 / intensity_units.STEP
    )
    path = save(tmp_path / "bq.nii.gz", uptake * 5000, AFFINE)
    with pytest.raises(InputError, match=r"bq.nii.gz: PET has a mean of .*isn't SUV"):
        scan.read_scan({"PET": SequenceFile(path)}, regions={}, units="suv")
    with pytest.raises(InputError, match=r"has a mean of -.*isn't SUV"):  # z-scores
        intensity_units.checked(uptake - uptake.mean() - 0.1, "suv")


def test_values_that_are_no_hounsfield_units_are_refused(tmp_path):
    raw = np.maximum(ct(0)[0] + 1024, 0)
    padded = np.where(np.indices(SHAPE)[0] < 2, -2000, raw)
    for number, voxels in enumerate((raw, padded)):
        path = save(tmp_path / f"{number}.nii.gz", voxels, AFFINE)
        with pytest.raises(
            InputError, match=r"nii.gz: CT has no value from -1024 to 0"
        ):
            scan.read_scan({"CT": SequenceFile(path)}, regions={}, units="hounsfield")
    grey = np.clip((ct(0)[0] + 100.0) / 200, 0, 1)  # The window of 0 and 200.
    for windowed in (np.rint(255 * grey), grey, 2 * grey - 1):
        with pytest.raises(InputError, match="isn't in Hounsfield units, but windowed"):
            intensity_units.checked(windowed.astype(np.float32), "hounsfield")
    brain = np.where(grey > 0, 80 * grey, 0)  # Stripped, without negative values.
    np.testing.assert_array_equal(intensity_units.checked(brain, "hounsfield"), brain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.units": ("HU",)}, "data.units='HU' is unknown: use 'z_scores'"),
        ({"data.units": ("suv", "suv")}, "one for all of data.sequences, or 1"),
        (
            {"data.windows": ((40, 400),), "data.units": ("suv",)},
            "data.windows=.*are of CT",
        ),
        ({"data.windows": (40, 400)}, "data.windows: 40 is no window"),
        ({"data.windows": ((40, 0),)}, r"data.windows: \(40, 0\) is no window"),
        ({"data.clip": (1, 99)}, r"data.clip=\(1, 99\): is of z-scores"),
    ],
)
def test_units_that_can_t_be_used_are_refused_at_once(config, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        segmentation.check(config, 1)


def test_units_follow_the_modality_and_windows_prepare_nothing_anew(config):
    data = scans.data(config)
    assert data.output.units == ("hounsfield",) and data.output.inputs == 1
    assert json.loads((data.path / "data.json").read_text())["options"]["units"]
    config.data.windows = ((40, 400), (-600, 1500), (300, 1500))
    assert scans.data(config).path == data.path
    assert scans.data(config).output.inputs == 3
    segmentation.check(config, 1)
    for modality, expected in (("brain_mri", ()), ("nuclear", ("suv",))):
        config.modality, config.data.windows = modality, ()
        assert data_fields.units_of(config) == expected

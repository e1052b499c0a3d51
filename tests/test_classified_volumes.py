"""Volumes that are classified: from files to records, to the network and to the page."""

import json

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pandas as pd
import pytest
from launching import run_here
from nibabel import orientations
from scans import affine_of, brain, save
from sklearn.metrics import roc_auc_score

from medjax.augment import patches, pixel_ops
from medjax.data import liver_phantom, prepared, scan, sources
from medjax.data.normalisation import unit_range, z_scores
from medjax.data.records import prepare
from medjax.data.sources import scan_files, scan_layouts, volumes
from medjax.errors import InputError
from medjax.geometry import warp
from medjax.reports import pictures
from medjax.tasks import films
from medjax.tasks.films import FindingsOutput

SHAPE = (12, 14, 10)
OPTIONS = {
    **dict.fromkeys(("view", "sex", "age", "follow_up", "official"), ""),
    "table": "labels.csv",
    "image": "image",
    "patient": "patient",
    "labels": ("tumour", "bleed"),
    "classes": "",
    "files": {},
    "sequences": ("T1",),
    "mask": "",
    "regions": ("lesion",),
    "values": {"lesion": (1,)},
    "background": (0,),
    "shape": SHAPE,
    "spacing": (1.0, 1.0, 1.0),
    "grids": "refuse",
    "foreground": "body",
    "units": (),
    "windows": (),
    "missing": "refuse",
    "margin": 5.0,
    "clip": (0.1, 99.9),
}


def source(folder, rows, **options):
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return sources.IMAGES["volumes"](**{**OPTIONS, "folder": folder, **options})


def rows(*images, **columns):
    n = len(images)
    labels = {"tumour": [1, 0, ""][:n] + [0] * (n - 3), "bleed": [0.5] * n}
    return {"image": images, "patient": [f"p{i}" for i in range(n)], **labels} | columns


def scores(record):
    return np.asarray(z_scores(unit_range(jnp.asarray(record))))


def centred(image, shape):
    """An oracle: cut or zero-padded by index arithmetic alone."""
    out = np.zeros((*shape, image.shape[-1]), image.dtype)
    inner, outer = [], []
    for have, want in zip(image.shape, shape, strict=False):
        cut, pad = max(have - want, 0) // 2, max(want - have, 0) // 2
        inner.append(slice(cut, cut + min(have, want)))
        outer.append(slice(pad, pad + min(have, want)))
    out[tuple(outer)] = image[tuple(inner)]
    return out


@pytest.mark.parametrize("shape", [(8, 20, 13), (15, 9, 16)])
def test_a_record_holds_z_scores_about_the_middle(shape):
    image = np.random.default_rng(0).normal(0, 1.5, (11, 14, 12, 2)).astype(np.float32)
    image[:3] = 0
    image[4, 4, 4] = 30, -30
    case = scan.Scan(image, None, np.ones(2), np.eye(4), None)
    record = volumes.record(case, shape)
    assert record.dtype == np.uint16 and record.shape == (*shape, 2)
    expected = np.clip(centred(image, shape), -4, 8)
    np.testing.assert_allclose(scores(record), expected, atol=12 / 65535)
    np.testing.assert_array_equal(scores(record) == 0, centred(image, shape) == 0)


def test_files_become_what_segmentation_sees_however_they_are_turned(tmp_path):
    """The same voxels, stored along other axes and as a stack, are one record."""
    head = brain((18, 20, 16))
    save(tmp_path / "a.nii.gz", head)
    turn = orientations.axcodes2ornt("LPS"), orientations.axcodes2ornt("RAS")
    turned = nibabel.Nifti1Image(head, affine_of()).as_reoriented(
        orientations.ornt_transform(turn[1], turn[0])
    )
    nibabel.save(turned, tmp_path / "b.nii")
    (tmp_path / "c.nii").write_bytes(b"no volume")
    made = source(tmp_path, rows("a.nii.gz", "b.nii", "c.nii"))
    a, b, c = made.items()
    assert made.tasks == ("tumour", "bleed") and made.shape == (*SHAPE, 1)
    assert a.row["tumour"] == 1 and b.row["tumour"] == 0 and a.row["bleed"] == 0.5
    assert c.content is None and "c.nii" in c.reason
    np.testing.assert_array_equal(a.content, b.content)
    (patient,) = scan_layouts.in_decathlon(tmp_path / "a.nii.gz", sequences=("T1",))
    case = scan.read_scan(patient.sequences, regions={}, spacing=(1, 1, 1))
    expected = np.clip(centred(case.image, SHAPE), -4, 8)
    np.testing.assert_allclose(scores(a.content), expected, atol=12 / 65535)


def test_what_is_no_volume_in_a_folder_is_named_and_links_are_followed(tmp_path):
    elsewhere, home, how = tmp_path / "far", tmp_path / "home", {"files": {}}
    how |= {"sequences": ("T1",)}
    save(elsewhere / "b.nii", brain((8, 8, 8)))
    save(home / "a.nii.gz", brain((8, 8, 8)))
    (home / "linked").symlink_to(elsewhere)
    (home / "again").symlink_to(home)  # In a circle.
    (home / "gone.nii.gz").symlink_to("nowhere")
    names = {"c.mha", "d.nrrd", "e.img", "f.txt"}
    for name in (*names, ".hidden", "series/1.dcm", "series/deeper/x.mha"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(bytes(128) + b"DICM" * name.endswith("dcm"))
    found, others = scan_files.volumes_in(home, **how)
    below = {str(path.relative_to(home)) for path in found}
    assert below == {"a.nii.gz", "linked/b.nii", "gone.nii.gz", "series"}
    assert {path.name for path in others} == names
    (elsewhere / "b.nii").rename(elsewhere / "b.mha")
    with pytest.raises(InputError, match="far: holds no volume; give one with NIfTI"):
        scan_files.volumes_in(elsewhere, **how)


def test_several_sequences_are_patterns_below_the_row_s_folder(tmp_path, caplog):
    for n in range(2):
        save(tmp_path / f"s{n}/x_t1.nii.gz", brain((18, 20, 16), n))
    save(tmp_path / "s0/x_flair.nii.gz", brain((18, 20, 16), 7))
    files = {"FLAIR": "*_flair.nii.gz", "T1": "*_t1.nii.gz"}
    options = {"sequences": ("FLAIR", "T1"), "files": files}
    both, alone = source(tmp_path, rows("s0", "s1"), **options).items()
    assert both.content.shape == (*SHAPE, 2) and "FLAIR" in alone.reason
    assert "larger than data.shape, s0 for one" in caplog.text
    _, filled = source(tmp_path, rows("s0", "s1"), **options, missing="fill").items()
    assert not filled.content[..., 0].any() and filled.content[..., 1].any()
    found = scan_files.volumes_in(tmp_path, sequences=("FLAIR", "T1"), files=files)
    assert found == ([tmp_path / "s0", tmp_path / "s1"], [])
    with pytest.raises(InputError, match="no pattern for the sequence 'T2'"):
        scan_files.of_row(tmp_path, sequences=("T2",), files=files)
    with pytest.raises(InputError, match="give each a pattern in data.files"):
        scan_files.of_row(tmp_path / "s0", sequences=("FLAIR", "T1"), files={})
    made = source(tmp_path, rows("s0"), **options)
    assert f"no row of 1 images of the folder, {tmp_path / 's1'} for" in caplog.text
    path = prepare(made, records=tmp_path / "r", name="x", max_quarantined=0.0)
    kept = pd.read_csv(path / "alignments.csv")
    assert kept[["image", "sequence"]].values.tolist() == [["s0", "T1"]]
    assert kept["after"].item() == pytest.approx(both.alignments[0].after, abs=1e-4)


def test_classes_are_exclusive(tmp_path):
    save(tmp_path / "a.nii", brain((18, 20, 16)))
    options = {"labels": (), "classes": "side"}
    table = rows("a.nii", "b.nii", side=["left", "right"])
    made = source(tmp_path, table, **options)
    first, _ = made.items()
    assert made.tasks == ("left", "right")
    assert (first.row["left"], first.row["right"]) == (1, 0)


def batch_of(records):
    n = len(records)
    numbers = dict.fromkeys(("epoch", "occurrence"), jnp.zeros(n, jnp.int32))
    batch = {"image": jnp.asarray(records), "id": jnp.arange(n), **numbers}
    return batch | {"label": jnp.ones((n, 2)), "weight": jnp.ones((n, 2))}


def augmented(records, *ops, spacing=(1.0, 1.0, 1.0)):
    function = jax.jit(
        lambda batch: patches.prepare_whole(
            jax.random.key(0), batch, ops=ops, prepare=z_scores, spacing=spacing
        )
    )
    return function(batch_of(records))


@pytest.fixture(scope="module")
def records():
    image = np.stack([brain((12, 14, 10), n) for n in range(2)], axis=-1)
    case = scan.make_scan(image, None, np.eye(4))
    other = case._replace(image=case.image * (1, 0))
    return np.stack([volumes.record(each, SHAPE) for each in (case, other)])


def test_without_ops_a_volume_is_as_it_is_predicted(records):
    batch = augmented(records)
    np.testing.assert_allclose(batch["image"], scores(records), atol=1e-5)
    assert batch["label"].shape == batch["weight"].shape == (2, 2)


def test_ops_leave_the_outside_and_a_missing_sequence_at_0(records):
    brighter = lambda key, image: pixel_ops.gamma(key, image, max_log_gamma=0.5)
    image = augmented(records, brighter)["image"]
    np.testing.assert_array_equal(image == 0, records == 0)
    assert np.abs(image - scores(records)).max() > 0.1


def test_a_move_is_in_millimetres_and_brings_in_nothing(records):
    """A turn by 90 degrees of voxels that are twice as high as wide isn't one of them."""

    def turn(key, motion):
        matrix = warp.affine_matrix(
            flip=False,
            rotation=jnp.array([jnp.pi / 2, 0, 0]),
            zoom=1.0,
            translation=jnp.zeros(3),
        )
        return warp._then(motion, matrix)

    turn.func = warp.random_affine
    square = records[..., 2:12, :, :]
    moved = augmented(square, turn)["image"]
    expected = np.rot90(scores(square), 1, (2, 3))
    alike = [
        np.allclose(moved, np.rot90(expected, k, (2, 3)), atol=1e-2) for k in (0, 2)
    ]
    assert any(alike)
    tall = augmented(square, turn, spacing=(1.0, 2.0, 1.0))["image"]
    # 10 rows of 2 mm lie on 10 columns of 1 mm: half of them.
    inside = np.asarray(tall[0].any(axis=(0, 2, 3)))
    assert inside.sum() <= 6


def test_neither_a_slice_nor_the_volume_of_a_phantom_s_discs_says_anything():
    """How bright they are doesn't tell if there is a lesion; only its shape would."""
    size = {"shape": (24, 24, 24), "spacing": (2.5, 2.5, 2.5)}
    drawn = [liver_phantom.patient(n, seed=0, **size) for n in range(160)]
    lesion = np.array([each.lesion for each in drawn])
    assert 60 < lesion.sum() < 100
    bright = np.stack([each.image[..., 0] > 135 for each in drawn]).mean(axis=(2, 3))
    for share in (*bright[:, [8, 12, 16]].T, bright.mean(axis=1)):
        assert 0.38 < roc_auc_score(lesion, share) < 0.62
    again = liver_phantom.patient(3, seed=0, **size)
    np.testing.assert_array_equal(again.image, drawn[3].image)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with 40 livers and their table."""
    folder = tmp_path_factory.mktemp("volumes")
    listed = []
    for n in range(40):
        drawn = liver_phantom.patient(
            n, seed=1, shape=(14, 16, 12), spacing=(4.0, 4.0, 4.0)
        )
        name = f"in/liver{n:02d}.nii.gz"
        # Axes L, P, S in the file.
        voxels, affine = drawn.image[..., 0].T, drawn.affine[:, [2, 1, 0, 3]]
        save(folder / name, voxels, affine)
        listed.append((name.split("/")[1], f"p{n}", int(drawn.lesion)))
    table = pd.DataFrame(listed, columns=["image", "patient", "lesion"])
    table.to_csv(folder / "in/labels.csv", index=False)
    return folder


def flags(home, workdir, *more):
    values = {
        "data": f"{home / 'records'}",
    }
    return [
        f"--workdir={workdir}",
        "--config=tests/small_volumes.py",
        f"--config.data.records={values['data']}",
        f"--config.data.folder={home / 'in'}",
        *more,
    ]


@pytest.fixture(scope="module")
def finished(home):
    workdir = home / "run"
    out, _ = run_here("train", *flags(home, workdir))
    return workdir, out


def test_a_run_is_trained_evaluated_and_reported(finished):
    workdir, out = finished
    assert "40 images, 0 quarantined" in out and (workdir / "report.html").exists()
    task = json.loads((workdir / "task.json").read_text())
    assert task["shape"] == [16, 16, 12, 1] and task["spacing"] == [4, 4, 4]
    results = json.loads((workdir / "report.json").read_text())
    assert "lesion" in results["tasks"]


def test_predict_says_of_a_file_what_evaluate_says_of_its_record(home, finished):
    workdir, _ = finished
    tested = pd.read_csv(workdir / "predictions/test.csv").set_index("image")
    chosen = home / "chosen"
    chosen.mkdir()
    for name in tested.index[:3]:
        (chosen / name).write_bytes((home / "in" / name).read_bytes())
    (chosen / "broken.nii.gz").write_bytes(b"no")
    out = home / "new.csv"
    run_here(
        "predict",
        *(f"--workdir={workdir}", f"--images={chosen}", f"--out={out}"),
        f"--explain={home / 'heat'}",
        code=3,
    )
    new = pd.read_csv(out)
    assert len(new) == 3
    for image, value in zip(new["image"], new["lesion"], strict=True):
        expected = tested.loc[image.rsplit("/", 1)[1], "lesion"]
        assert value == pytest.approx(expected, abs=2e-6)
    drawn = pd.read_csv(home / "heat/index.csv")
    assert len(drawn) == 3
    assert all((home / "heat" / name).exists() for name in drawn["heatmap"])


def test_other_data_need_the_run_s_voxels(home, finished):
    workdir, _ = finished
    other = [flag for flag in flags(home, workdir) if "workdir" not in flag]
    more = "--config.data.spacing=(4.0,4.0,5.0)"
    _, err = run_here(
        "evaluate", f"--workdir={workdir}", "--split=others", *other, more, code=2
    )
    assert "data.spacing is (4.0, 4.0, 5.0), the run's (4.0, 4.0, 4.0): set it" in err


def test_a_copy_is_found_though_it_is_resampled_and_mirrored(tmp_path):
    """The leakage audit of films: here by thumbnails of the whole volume."""
    images = [brain((26, 28, 24), n) for n in range(5)]
    names = [f"{n}.nii.gz" for n in range(6)]
    for name, image in zip(names, images, strict=False):
        save(tmp_path / name, image)
    # Number 2 once more, mirrored, under another name and patient.
    save(tmp_path / names[5], images[2][::-1])
    options = {"shape": (28, 30, 26), "files": {}}
    made = source(tmp_path, rows(*names), **options)
    path = prepare(made, records=tmp_path, name="x", max_quarantined=0)
    output = FindingsOutput(made.tasks, False, made.shape, 16, (1.0, 1.0, 1.0), ("T1",))
    data = films.FilmData(path, prepared.read_table(path), output)
    pairs = data.pairs()
    assert pairs[["id", "other"]].values.tolist() == [[2, 5]]
    ids = np.arange(3), np.arange(3, 6)
    across = data.copies(ids[0], data, ids[1])
    assert across[["id", "other"]].values.tolist() == [[2, 5]]


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("shape", (16, 16), "data.shape=.*three positive"),
        ("spacing", (1.0, 0.0, 1.0), "data.spacing=.*three positive"),
        ("shape", (4, 4, 1), r"images of \(4, 4, 1\) are too small for this network"),
    ],
)
def test_mistakes_are_refused_before_a_file_is_read(field, value, words):
    import small_volumes

    from medjax.tasks import classification

    config = small_volumes.get_config()
    config.data[field] = value
    with pytest.raises(InputError, match=words):
        classification.check(config, 1)


def test_planes_go_through_the_heatmap_s_maximum_in_the_body():
    rng = np.random.default_rng(0)
    volume = rng.integers(1, 255, (6, 8, 10, 2), np.uint8)
    volume[:, 0] = 0
    heatmap = np.zeros((6, 8, 10))
    heatmap[2, 5, 7], heatmap[2, 0, 3] = 1, 9  # The larger one is outside.
    picture, heat = pictures.through(volume, heatmap, (2.0, 1.0, 1.0))
    grey = volume[..., 0].astype(float)
    low, high = np.percentile(grey[grey > 0], (1, 99.5))
    grey = np.clip((grey - low) / (high - low), 0, 1)
    # Axial 8 x 10, coronal 6 x 10 and sagittal 6 x 8 voxels, the head up, a row between.
    assert picture.shape == (8 + 1 + 12 + 1 + 12, 10, 1) and heat.shape == (34, 10)
    np.testing.assert_allclose(picture[:8, :, 0], np.rint(grey[2] * 255), atol=1)
    assert heat[:8].max() == 9 and heat[5, 7] == 1
    coronal = grey[::-1, 5]
    np.testing.assert_allclose(picture[9, :, 0], np.rint(coronal[0] * 255), atol=1)
    sagittal = grey[::-1, :, 7]
    np.testing.assert_allclose(picture[22, 1:9, 0], np.rint(sagittal[0] * 255), atol=1)
    assert not picture[22:, 0].any() and not picture[[8, 21]].any()


def test_ct_is_seen_through_windows_and_pet_as_suv(tmp_path):
    """The channels of the records against the formula in float64."""
    rng = np.random.default_rng(0)
    ct = rng.uniform(-900, 900, SHAPE).astype(np.float32)
    save(tmp_path / "a/ct.nii.gz", ct.T)
    pet = rng.uniform(0.1, 12, SHAPE).astype(np.float32)
    save(tmp_path / "a/pet.nii.gz", pet.T)
    options = {
        "sequences": ("CT", "PET"),
        "foreground": "none",
        "margin": 0.0,
        "files": {"CT": "ct*", "PET": "pet*"},
        "units": ("hounsfield", "suv"),
        "windows": ((40.0, 400.0), (-600.0, 1500.0)),
    }
    (item,) = source(tmp_path, rows("a"), **options).items()
    assert item.content.shape == (*SHAPE, 3)
    seen = scores(item.content)
    # The files' axes are R, A, S, a volume's S, P, L.
    turned = [each[:, ::-1, ::-1].astype(float) for each in (ct, pet)]
    expected = [
        (np.clip(turned[0], -160, 240) - 40) / 200,
        (np.clip(turned[0], -1350, 150) + 600) / 750,
        turned[1] / 5,
    ]
    np.testing.assert_allclose(seen, np.stack(expected, axis=-1), atol=4e-4)


def test_ct_without_windows_is_refused(tmp_path):
    import small_volumes

    config = small_volumes.get_config()
    config.modality = "ct"
    for early in (films.expected, films.data):  # Nothing is prepared before.
        with pytest.raises(InputError, match="data.windows=.*name windows"):
            early(config)
    config.data.windows = ((40, 400), (-600, 1500))
    assert films.expected(config).shape == (16, 16, 12, 2)
    # Other windows are other records.
    ct = np.random.default_rng(0).uniform(-900, 900, (12, 16, 16)).astype(np.float32)
    save(tmp_path / "a.nii.gz", ct)
    table = {"image": ["a.nii.gz"], "patient": ["p"], "lesion": [1]}
    pd.DataFrame(table).to_csv(tmp_path / "labels.csv", index=False)
    config.data.update(folder=str(tmp_path), records=str(tmp_path / "records"))
    two = films.data(config)
    config.data.windows = ((40, 400),)
    one = films.data(config)
    assert two.path != one.path
    assert (two.output.shape[-1], one.output.shape[-1]) == (2, 1)

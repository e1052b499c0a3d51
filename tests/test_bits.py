"""12-bit films in 16-bit records: their levels reach the network, in training and after."""

import jax
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset

from medjax.augment import policy
from medjax.cohort import appearance
from medjax.data import image_files, loader, normalisation, records, sources
from medjax.errors import InputError
from medjax.evaluation import inference

SIDE = 64
# Each of 12 bits' values once.
STORED = np.random.default_rng(0).permutation(4096).reshape(SIDE, SIDE)


def write(path, bits_stored):
    """A DICOM of STORED whose header says how many bits these have."""
    film = pydicom.Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    film.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID = "1.2.3"
    film.Rows, film.Columns, film.SamplesPerPixel = SIDE, SIDE, 1
    film.PhotometricInterpretation, film.PixelRepresentation = "MONOCHROME2", 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, bits_stored, bits_stored - 1
    film.PixelData = STORED.astype("<u2").tobytes()
    film.save_as(path, enforce_file_format=True)


def source(folder, **options):
    pd.DataFrame(
        {"image": ["a.dcm", "b.dcm"], "patient": [1, 2], "mass": [0, 1]}
    ).to_csv(folder / "labels.csv", index=False)
    write(folder / "a.dcm", 12)
    write(folder / "b.dcm", 16)
    return sources.IMAGES["table"](
        folder=folder, side=SIDE, labels=("mass",), **options
    )


def prepare(folder, **options):
    """The images of the prepared records, and where these lie."""
    path = records.prepare(
        source(folder, **options), records=folder, name="x", max_quarantined=0
    )
    return loader.Images(path, [0, 1], np.array([[0.0], [1.0]])), path


def test_12_bits_keep_their_levels_from_the_file_to_the_network(tmp_path, caplog):
    films, path = prepare(tmp_path, bits=16)
    assert records.pixels_of(path).shape == (2, SIDE, SIDE, 1)
    # 12 bits are stretched over 16; 12 bits in 16 stay as dark as their header says.
    expected = np.stack([np.rint(STORED / 4095 * 65535), STORED]).astype(int)[..., None]
    for n in (0, 1):
        assert films[n]["image"].dtype == np.uint16
        # float32 may round a half of a level to the other side.
        image = films[n]["image"].astype(int)
        np.testing.assert_allclose(image, expected[n], rtol=0, atol=1 - n)
    assert "1 images keep fewer than 8192 levels of grey in 16 bits" in caplog.text

    seen = []
    options = {"batch": 2, "devices": 1}
    options["load"] = lambda path: (
        image_files.fit(image_files.read(path).pixels, (SIDE, SIDE, 1), 16),
    )
    files = [tmp_path / "a.dcm", tmp_path / "b.dcm"]

    def step(image):
        seen.append(image)
        return np.zeros((1, 2, 1))

    list(inference.predict_files(files, step, **options))
    (evaluated,) = loader.evaluation_batches(films, batch=2, devices=1)
    training = next(loader.train_batches(films, seed=0, batch=2, devices=1))
    training = jax.tree.map(lambda x: np.asarray(x)[0], training)
    augmented = policy.augment_batch(
        jax.random.key(0), training, ops=(), prepare=lambda image: image
    )
    assert sorted(training["id"].tolist()) == [0, 1]
    for unit in (
        normalisation.unit_range(seen[0][0]),
        normalisation.unit_range(evaluated["image"][0]),
        np.asarray(augmented["image"])[np.argsort(training["id"])],
    ):
        assert unit.dtype == np.float32
        np.testing.assert_allclose(unit, expected / 65535, rtol=0, atol=1.6e-5)
        assert [len(np.unique(image)) for image in unit] == [4096, 4096]


def test_8_bits_keep_few_of_12_in_16_and_say_so(tmp_path, caplog):
    films, path = prepare(tmp_path)
    assert records.pixels_of(path).dtype == np.uint8
    np.testing.assert_array_equal(np.unique(films[1]["image"]), range(17))
    assert "1 images keep fewer than 32 levels of grey in 8 bits: set" in caplog.text
    assert "data.bits=16" in caplog.text and "(b.dcm for one)" in caplog.text


def test_what_draws_and_compares_sees_the_same_of_both(tmp_path):
    """Hashes, pictures and the histogram of grey levels are those of 8 bits."""
    (tmp_path / "deep").mkdir()
    plain, path = prepare(tmp_path)
    deep, deep_path = prepare(tmp_path / "deep", bits=16)
    hashes = [records.read_hashes(p) for p in (path, deep_path)]
    np.testing.assert_array_equal(*hashes)
    facts = []
    for films in (plain, deep):
        batches = [(np.arange(2), np.stack([films[n]["image"] for n in (0, 1)]))]
        facts.append(appearance.statistics(batches, lambda image: image))
    counts = [f["before"][0]["histogram"] for f in facts]
    np.testing.assert_array_equal(*counts)
    for n in (0, 1):
        np.testing.assert_array_equal(deep.picture(n), plain.picture(n))
    # The film of 12 bits in 16 spans a sixteenth of them; 8 keep 17 levels of it.
    assert ["1 images keep fewer" in f["dim"] for f in facts] == [True, True]


def test_other_numbers_of_bits_are_refused(tmp_path):
    with pytest.raises(InputError, match="data.bits=12 is unknown: use 8, 16"):
        source(tmp_path, bits=12)
    assert image_files.eight_bits(
        np.array([0, 128, 129, 65535], np.uint16)
    ).tolist() == [*(0, 0, 1, 255)]

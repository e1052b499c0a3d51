"""Any image data set that TFDS has prepared, read without TensorFlow."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow_datasets
from tensorflow_datasets import features as kinds

from medjax.data import image_files
from medjax.data.dicom import Film
from medjax.data.records import Source
from medjax.data.sources import cells, tables
from medjax.errors import InputError, check_choice, reading

AGAIN = "prepare it by TFDS again"
log = logging.getLogger("medjax")


def tfds(
    *,
    name: str,
    side: int,
    data_dir: str = "~/tensorflow_datasets",
    image: str = "image",
    label: str = "label",
    labels: Sequence[str] = (),
    names: Sequence[str] = (),
    patient: str = "",
    view: str = "",
    sex: str = "",
    age: str = "",
    follow_up: str = "",
    channels: int = 1,
    bits: int = 8,
) -> Source:
    """A prepared TFDS data set whose examples hold an image and labels.

    Neither TensorFlow nor the code that prepared the data set is needed, but its files
    must be array_record: TFRecord files can't be read at random. The splits 'train',
    'validation' and 'test' are the official ones; others are not official.

    Args:
      name: the data set's folder below data_dir: 'NAME' or 'NAME/CONFIG', with
        '/VERSION' where there are several; or any folder.
      image: an Image feature of 8 or 16 bits, or a Tensor [H, W, 1 or 3] of uint8.
      label: a ClassLabel (an image has exactly one class), a Sequence of ClassLabel
        (it has several), numbers from 0 to 1 in a vector or alone; -1 in a
        ClassLabel is unknown.
    """
    check_choice("data.channels", channels, tables.CHANNELS)
    folder = _folder(name, Path(data_dir).expanduser())
    with reading(folder, AGAIN):
        builder = tensorflow_datasets.builder_from_directory(folder)
        features = builder.info.features
    columns = {"patient": patient, "view": view, "sex": sex, "age": age}
    columns = {k: v for k, v in {**columns, "follow_up": follow_up}.items() if v}
    label_features = list(labels) or [label]
    _check(features, image, label_features, [*columns.values()], folder)
    cells.warn_of_unread({*features} - {*label_features}, columns, folder)
    splits = _splits(builder, image, folder)
    tasks, read = _labels(features, label_features, bool(labels), tuple(names), folder)
    if not patient:
        log.warning(
            "%s: data.patient='', so each image counts as another patient, and a "
            "patient in two splits can't be detected",
            folder,
        )
    # Two passes: first labels and metadata, later the images, one by one.
    text, values = [], []
    for split, number in ((s, n) for s in splits for n in range(len(splits[s]))):
        with reading(folder, AGAIN):
            example = splits[split][number]
        row = {
            "image": f"{split}_{number:06d}",
            "patient": str(len(text)),
            "official": split if split in cells.OFFICIAL else "",
        }
        about = {key: _text(features[f], example[f]) for key, f in columns.items()}
        text.append(row | about)
        values.append(read(example))
    if not text:
        raise InputError(f"{folder}: the data set holds no example")
    table = cells.metadata(pd.DataFrame(text), folder)
    targets = cells.findings(np.stack(values), tasks, table["image"], folder)

    def film(name: str) -> Film:
        split, _, number = name.rpartition("_")
        return _film(name, splits[split][int(number)][image])

    return tables.source(
        pd.concat([table, targets], axis=1),
        film,
        tasks=tasks,
        shape=(side, side, channels),
        where=folder,
        bits=bits,
    )


def _film(name: str, value: bytes | np.ndarray) -> Film:
    """The image of a file's bytes, or of pixels [H, W, 1 or 3] uint8."""
    if isinstance(value, bytes):
        with reading(name, AGAIN):
            pixels = image_files.decode(value)
    else:
        pixels = value.astype(np.float32) / 255
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return Film(pixels, (math.nan, math.nan))


def files(*, name: str, data_dir: str, **_) -> dict[str, Path]:
    """The folder of the data set, see `sources.FILES_OF`."""
    try:
        return {name: _folder(name, Path(data_dir).expanduser())}
    except InputError:
        return {}


def _folder(name: str, data_dir: Path) -> Path:
    """The one prepared data set below data_dir / name."""
    folder = data_dir / Path(name).expanduser()
    folders = sorted(path.parent for path in folder.rglob("dataset_info.json"))
    if not folders:
        raise InputError(
            f"data.name={name!r}: no prepared TFDS data set in {folder}: correct it or "
            "data.data_dir, or prepare it with file_format='array_record'"
        )
    if len(folders) > 1:
        names = ", ".join(str(path.relative_to(data_dir)) for path in folders)
        raise InputError(f"data.name={name!r} may be any of {names}: name one of them")
    return folders[0]


def _splits(builder: Any, image: str, folder: Path) -> dict[str, Sequence[dict]]:
    """Split -> its examples, with random access; an Image stays undecoded."""
    kind = builder.info.file_format.value
    if kind != "array_record":
        raise InputError(
            f"{folder}: its files are {kind}, and only array_record is read at random: "
            "prepare it again with download_and_prepare(file_format='array_record')"
        )
    whole = {image: tensorflow_datasets.decode.SkipDecoding()}
    decoders = whole if isinstance(builder.info.features[image], kinds.Image) else None
    with reading(folder, AGAIN):
        return {
            split: builder.as_data_source(split, decoders=decoders)
            for split in builder.info.splits
        }


def _check(
    features: Any, image: str, labels: list[str], columns: list[str], where: Path
) -> None:
    """Refuses features that aren't there, hold no image, or no scalar metadata."""
    for name in (image, *labels, *columns):
        if name not in features:
            raise InputError(
                f"{where}: the data set has no feature {name!r}, only "
                f"{', '.join(sorted(features))}: correct its name in data"
            )
    for name in columns:
        if features[name].shape != ():
            raise InputError(
                f"{where}: the feature {name!r} is {features[name]}: text, a number "
                "or a ClassLabel is read"
            )
    feature = features[image]
    if isinstance(feature, kinds.Image):
        good = feature.np_dtype in (np.uint8, np.uint16)
    else:
        shape = feature.shape if isinstance(feature, kinds.Tensor) else ()
        good = len(shape) == 3 and shape[-1] in (1, 3) and feature.np_dtype == np.uint8
    if not good:
        raise InputError(
            f"{where}: the feature {image!r} is {feature}: an Image of 8 or 16 bits or "
            "a Tensor [H, W, 1 or 3] of uint8 is read"
        )


def _labels(
    features: Any, label_features: list[str], scalars: bool, names: tuple, where: Path
) -> tuple[tuple[str, ...], Callable[[dict], np.ndarray]]:
    """The T tasks, and a function: example -> [T] float, NaN where unknown."""
    name = label_features[0]
    feature = features[name]
    element = getattr(feature, "feature", feature)  # Of a Sequence.
    classes = not scalars and isinstance(element, kinds.ClassLabel)
    vector = not scalars and not classes and len(feature.shape) == 1
    if names and not vector:
        raise InputError(
            f"data.names names the findings of a vector, and {name!r} of {where} is "
            f"{feature}: leave it out"
        )
    if classes:
        return tuple(element.names), lambda e: _one_hot(e[name], element.num_classes)
    if vector:
        length = feature.shape[0] or len(names)
        names = names or tuple(map(str, range(length)))
        if not length or len(names) != length:
            raise InputError(
                f"data.names has {len(names)} names: {where} has {feature.shape[0]} "
                f"findings in {name!r} (None: as many as you name)"
            )
        return names, lambda e: _vector(e[name], length, name, where)
    for name in label_features:
        feature = features[name]
        if feature.shape != () or np.dtype(feature.np_dtype).kind not in "biuf":
            raise InputError(
                f"{where}: the feature {name!r} is {feature}, no label: see data.label "
                "and data.labels"
            )
    return tuple(label_features), lambda e: np.array(
        [_number(features[name], e[name]) for name in label_features]
    )


def _one_hot(classes: int | Iterable[int], count: int) -> np.ndarray:
    """[T] with 1 for each class of an image; NaN if one of them is unknown (-1)."""
    classes = np.atleast_1d(np.asarray(classes, int))
    if (classes < 0).any():
        return np.full(count, math.nan)
    return np.bincount(classes, minlength=count).clip(max=1).astype(float)


def _vector(value: Iterable, length: int, name: str, where: Path) -> np.ndarray:
    """[T] numbers, the findings of one example."""
    row = np.array(value, float)
    if row.shape != (length,):
        raise InputError(
            f"{where}: an example has {len(row)} numbers in {name!r}, not {length}: "
            "correct data.names"
        )
    return row


def _number(feature: Any, value: Any) -> float:
    """A scalar label; -1 in a ClassLabel is unknown."""
    unknown = isinstance(feature, kinds.ClassLabel) and value < 0
    return math.nan if unknown else float(value)


def _text(feature: Any, value: Any) -> str:
    """A value as a table's text; unknown is ''."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(feature, kinds.ClassLabel):
        return feature.int2str(int(value)) if value >= 0 else ""
    text = str(value)
    return "" if text == "nan" else text

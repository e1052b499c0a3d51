"""Images of any source -> ArrayRecord files that TFDS and Grain read at random.

Beside the records stand table.csv (one row an image, see schema.py), hashes.bin (what
finds near-duplicates), boxes.csv (known places of findings) and quarantine.csv (files
left out, and why).
"""

import collections
import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from medjax.cohort import duplicates
from medjax.data import schema
from medjax.errors import InputError

FILMS_A_SHARD = 4096  # Records a file.


class Item(NamedTuple):
    """One image on its way into the records, or the reason why it is left out.

    row: the table's columns but the id; NaN labels are unknown.
    pixels: uint8 of the source's shape, or None if quarantined.
    boxes: (finding, x0, y0, x1, y1), in pixels of `pixels`.
    reason: why it is quarantined; '' if it isn't.
    """

    row: dict[str, Any]
    pixels: np.ndarray | None
    boxes: Sequence[tuple] = ()
    reason: str = ""


class Source(NamedTuple):
    """Where images come from.

    tasks: names of the findings or classes.
    shape: of every image, (H, W, C) or (D, H, W, C).
    films: how many images, quarantined ones included.
    shards: one function a file of records; its items are made as they are asked
      for, so memory doesn't grow with their number.
    """

    tasks: tuple[str, ...]
    shape: tuple[int, ...]
    films: int
    shards: Sequence[Callable[[], Iterable[Item]]]


class Images(tfds.core.ShardBasedBuilder):
    """The TFDS builder of every source; one TFDS split, 'films'."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        name: str,
        source: Source,
        max_quarantined: float,
        progress: Callable[[], None],
        **kwargs,
    ):
        self._source = source
        self._max_quarantined, self._progress = max_quarantined, progress
        config = tfds.core.BuilderConfig(name=name)
        super().__init__(config=config, file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images, resized once.",
            features=tfds.features.FeaturesDict(
                {
                    "id": np.int32,
                    "image": tfds.features.Text(),
                    "pixels": tfds.features.Tensor(
                        shape=self._source.shape,
                        dtype=np.uint8,
                        # The default widens every pixel to 64 bits on the way:
                        # 100 times slower to write, 10 times to read.
                        encoding="bytes",
                    ),
                    "label": tfds.features.Tensor(
                        shape=(len(self._source.tasks),), dtype=np.float32
                    ),
                    "patient": np.int64,
                    "view": tfds.features.Text(),
                    "sex": tfds.features.Text(),
                    "age": np.float32,
                    "width": np.int32,
                    "height": np.int32,
                    "spacing_x": np.float32,
                    "spacing_y": np.float32,
                    "official": tfds.features.Text(),
                    "follow_up": np.float32,
                }
            ),
        )

    def _shard_iterators_per_split(self, dl_manager):
        folder = Path(self.data_dir)
        counter: collections.Counter = collections.Counter()
        with open(folder / "table.csv", "w", newline="") as file:
            csv.writer(file).writerow(schema.COLUMNS + self._source.tasks)
        with open(folder / "boxes.csv", "w", newline="") as file:
            csv.writer(file).writerow(["id", "task", "x0", "y0", "x1", "y1"])
        with open(folder / "quarantine.csv", "w", newline="") as file:
            csv.writer(file).writerow(["file", "reason"])
        (folder / "hashes.bin").touch()

        def examples(shard: Callable[[], Iterable[Item]]) -> Iterator[tuple]:
            with (
                open(folder / "table.csv", "a", newline="") as table_file,
                open(folder / "boxes.csv", "a", newline="") as boxes_file,
                open(folder / "quarantine.csv", "a", newline="") as quarantine_file,
                open(folder / "hashes.bin", "ab") as hashes_file,
            ):
                table, boxes = csv.writer(table_file), csv.writer(boxes_file)
                quarantine = csv.writer(quarantine_file)
                for item, hashes in in_parallel(_with_hashes, shard()):
                    self._progress()
                    if item.pixels is None:
                        counter["quarantined"] += 1
                        quarantine.writerow([item.row["image"], item.reason])
                        continue
                    id = counter["films"]
                    counter["films"] += 1
                    row = {"id": id, **item.row}
                    table.writerow(
                        [
                            _cell(row[name])
                            for name in schema.COLUMNS + self._source.tasks
                        ]
                    )
                    boxes.writerows((id, *box) for box in item.boxes)
                    hashes_file.write(hashes.tobytes())
                    label = [row.pop(task) for task in self._source.tasks]
                    row["label"] = np.asarray(label, np.float32)
                    row["pixels"] = item.pixels
                    yield id, row
                    row.clear()  # TFDS keeps a shard's examples, to count them.
            if counter.total() == self._source.films:
                self._check(folder, counter)

        return {"films": [lambda s=s: examples(s) for s in self._source.shards]}

    def _log_download_bytes(self) -> None:
        """TFDS would announce a download; there is none."""

    def _log_download_done(self) -> None:
        """As above."""

    def _check(self, folder: Path, counter: collections.Counter) -> None:
        """Stops before the records count as prepared if too much is quarantined."""
        quarantined, films = counter["quarantined"], counter["films"]
        share = quarantined / self._source.films
        if films and share <= self._max_quarantined:
            return
        kept = Path(self.data_dir_root) / f"{self.builder_config.name}-quarantine.csv"
        kept.write_bytes((folder / "quarantine.csv").read_bytes())
        raise InputError(
            f"{quarantined} of {self._source.films} files can't be used ({share:.1%}, "
            f"data.max_quarantined allows {self._max_quarantined:.1%}): see {kept}, "
            "then mend the files or raise data.max_quarantined"
        )


def _with_hashes(item: Item) -> tuple[Item, np.ndarray | None]:
    """An image and its hashes, [4, 32] uint8."""
    return item, None if item.pixels is None else duplicates.hashes(item.pixels)


def _cell(value: Any) -> Any:
    """A CSV cell: NaN is empty, a whole float has no '.0'."""
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return ""
        return f"{value:.9g}"  # What float32, the records' type, can tell apart.
    return value


def folder(records: Path, name: str) -> Path:
    """Where the records of that name lie, prepared or not."""
    return Path(records) / "images" / name / str(Images.VERSION)


def is_prepared(path: Path) -> bool:
    """TFDS writes its info last, so a broken preparation doesn't count."""
    return (path / "dataset_info.json").exists()


def prepare(
    source: Source,
    *,
    records: Path,
    name: str,
    max_quarantined: float,
    progress: Callable[[], None] = lambda: None,
) -> Path:
    """Writes a source's images as records.

    Args:
      source: what to write.
      records: folder of all prepared data.
      name: of this data set, unique to its source and settings.
      max_quarantined: share of the files that may be left out, in [0, 1].
      progress: called once an image.

    Returns:
      The folder of the records, of the tables and of hashes.bin.

    Raises:
      InputError: too many files are quarantined, none is left, or a finding has a
        name that the table can't hold.
    """
    if source.films < 1:
        raise InputError(
            "the data has no film: check data.folder, data.views and data.patients"
        )
    check_names(source.tasks)
    records = Path(records).absolute()
    records.mkdir(parents=True, exist_ok=True)
    builder = Images(
        name=name,
        source=source,
        max_quarantined=max_quarantined,
        progress=progress,
        data_dir=os.fspath(records),
    )
    builder.download_and_prepare(file_format="array_record")
    return folder(records, name)


def check_names(tasks: Sequence[str]) -> None:
    """Refuses findings that the table couldn't tell from each other or its own."""
    for task, count in collections.Counter(tasks).items():
        if not task or count > 1 or task in schema.COLUMNS:
            why = "twice" if count > 1 else "which is a name of the table's own"
            raise InputError(
                f"the data has a finding or class {task!r}, {why}: rename it"
            )


def shape_of(path: Path) -> tuple[int, ...]:
    """The shape of the images of prepared records, (H, W, C) or (D, H, W, C)."""
    return tfds.builder_from_directory(path).info.features["pixels"].shape


def read_hashes(path: Path) -> np.ndarray:
    """The hashes of prepared records, [N, 4, 32] uint8, in the table's order."""
    return np.fromfile(path / "hashes.bin", np.uint8).reshape(-1, 4, 32)


def read_table(path: Path) -> pd.DataFrame:
    """Reads table.csv of prepared records; empty text is '', an empty number NaN."""
    text = ["image", "view", "sex", "official"]
    table = pd.read_csv(
        path / "table.csv",
        dtype=dict.fromkeys(text, str),
        keep_default_na=False,  # An image may be called 'NA'.
        na_values=[""],
    )
    table[text] = table[text].fillna("")
    return table


def in_parallel(
    function: Callable[[Any], Any], items: Iterable[Any], *, workers: int = 0
) -> Iterator[Any]:
    """Maps over threads, in order, with a bounded number of results waiting.

    Decoding and resizing release the interpreter's lock, so threads use all cores.
    """
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

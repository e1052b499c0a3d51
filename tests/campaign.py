"""A campaign of damaged files, planted leaks, kills and full disks against medjax.

    python tests/campaign.py --minutes=60 --seed=0 [--parts=files,leaks] [--forms=PNG]

files   mutated files of each form, up to 1,000: read as an independent reader reads
        them, or refused by one line that names the file; no other error, no crash, no
        10 s, no 2 GB, nothing executed, nothing written outside of their folder
leaks   100 people or pictures on two sides, planted among 2,070 pairs of clean images
two     two commands at once in one folder: one waits or is refused, with the same bits
disk    a full or read-only disk: one line, no traceback; with room again the same bits
kills   SIGTERM or SIGKILL at up to 20 random moments of each command, and the same
        command again: the same bits as of a command that wasn't killed

`files`, `disk` and `kills` share the minutes; the others take what they need. --keep
gets the first file of each kind of fault.
"""

import argparse
import functools
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
import pandas as pd
from orbax.checkpoint import v1 as ocp
from scipy import ndimage

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from damaged import FORMS, Reader, grey, write
from scans import brain, save

from configs import base
from medjax.data import brain_phantom, sources
from medjax.errors import InputError
from medjax.tasks import classification, segmentation, splitting
from medjax.tasks.task import Task

SHARES = {"files": 0.5, "leaks": 0, "two": 0, "disk": 0.1, "kills": 0.4}  # Of minutes.
MOST = 1000  # Files of each form.
NO_FAULTS = ("right", "refused", "alone")  # Verdicts.
Options = argparse.Namespace


class Row(NamedTuple):
    """A line of the table: what was tried how often, the faults, and what came out."""

    what: str
    tried: int
    faults: int
    outcome: str

    def __str__(self) -> str:
        return f"{self.what:26}{self.tried:6}{self.faults:4} faults  {self.outcome}"


def try_files(seconds: float, options: Options, folder: Path) -> Iterator[Row]:
    forms = options.forms.split(",") if options.forms else [*FORMS]
    for form in forms:
        yield try_form(form, seconds / len(forms), options, folder)


def try_form(form: str, seconds: float, options: Options, folder: Path) -> Row:
    rng = np.random.default_rng([options.seed, list(FORMS).index(form)])
    reader, counts, reasons = Reader(form), Counter(), set()
    end = time.monotonic() + seconds
    while counts.total() < MOST and (time.monotonic() < end or not counts):
        data = FORMS[form].make(rng)
        for _ in range(10):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                path = write(form, Path(place), data, rng)
                verdict, why = reader.read(path)
                counts[verdict] += 1
                if verdict not in NO_FAULTS and (verdict, why) not in reasons:
                    reasons.add((verdict, why))
                    kept = options.keep / f"{form}-{len(reasons)}-{verdict}"
                    shutil.copytree(place, kept, dirs_exist_ok=True)
    reader.close()
    outcome = ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
    outcome = "; ".join(
        [outcome, *sorted((why or what)[:200] for what, why in reasons)]
    )
    faults = counts.total() - sum(counts[verdict] for verdict in NO_FAULTS)
    return Row(f"files: {form}", counts.total(), faults, outcome)


# --------------------------------------------------------------------------- leaks

CLEAN = ["train"] * 23 + ["validation"] * 10 + ["test"] * 13  # 46 images: 1,035 pairs.
TEN = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2


class Unit(NamedTuple):
    """Films or scans.

    draw: seed -> images of 46 people. tiny: rng -> an image quickly.
    save: (folder, images by name, patients, sides) -> the config that reads them.
    people: kind of leak -> the names of one person in two images; {} is a number.
    copies: kind of leak -> a copy of an image.
    """

    task: Task
    suffix: str
    draw: Callable[[int], list[np.ndarray]]
    tiny: Callable[[np.random.Generator], np.ndarray]
    save: Callable[..., Any]
    people: dict[str, tuple[str, str]]
    copies: dict[str, Callable[[np.ndarray], np.ndarray]]


def draw_films(seed):
    fields = base.data("phantom").to_dict() | {"patients": len(CLEAN), "films": 1}
    for name in ("source", "records", "max_quarantined", "tasks"):
        del fields[name]
    source = sources.IMAGES["phantom"](**fields | {"side": 128, "seed": seed})
    return [item.content[..., 0] for item in source.items()]


def save_films(folder, named, patients, sides):
    for name, image in named.items():
        cv2.imwrite(str(folder / name), image)
    table = pd.DataFrame({"image": [*named], "patient": patients, "part": sides})
    table.assign(mass=table.index % 2).to_csv(folder / "labels.csv", index=False)
    c = base.classification("table")
    c.data.update(folder=str(folder), records=str(folder / "records"))
    c.data.update(labels=("mass",), official="part" if sides else "")
    return c


def recompressed(image):
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


def draw_scans(seed):
    options = {"seed": seed, "shape": (64, 80, 64), "spacing": (2.5, 2.5, 2.5)}
    drawn = (brain_phantom.patient(n, **options) for n in range(len(CLEAN)))
    return [patient.image[..., 0] for patient in drawn]


def save_scans(folder, named, patients, sides):
    for name, image in named.items():
        affine = np.diag([*(160 / np.array(image.shape)), 1])
        save(folder / name / "T1.nii", image, affine)
        save(folder / name / "mask.nii", np.zeros(image.shape, np.uint8), affine)
    c = base.segmentation("folders")
    c.data.update(folder=str(folder), records=str(folder / "records"), mask="mask.nii")
    c.data.update(sequences=("T1",), files={"T1": "T1.nii"})
    return c


UNITS = {
    "films": Unit(
        classification.TASK,
        ".png",
        draw_films,
        grey,
        save_films,
        people={
            "patient": ("P{:02d}", "P{:02d}"),
            "spelling": ("P{:02d}", "p{}"),
            "session": ("sub-{:02d}_ses-1", "sub-{:02d}_ses-2"),
            "official list": ("P{:02d}", "P{:02d}"),
            "decimals": ("{}", "{}.0"),
        },
        copies={
            "copy": np.copy,
            "mirrored": lambda image: image[:, ::-1].copy(),
            "re-encoded": recompressed,
            "resized": lambda image: cv2.resize(image, (77, 77), interpolation=3),
            "turned": lambda image: np.rot90(image).copy(),
            "inverted": lambda image: 255 - image,
        },
    ),
    "scans": Unit(
        segmentation.TASK,
        "",
        draw_scans,
        lambda rng: brain((12, 12, 12), rng.integers(1 << 30)),
        save_scans,
        people={
            "session": ("sub-{:02d}/ses-1/anat", "sub-{:02d}/ses-2/anat"),
            "BraTS": ("BraTS-GLI-{:05d}-000", "BraTS-GLI-{:05d}-001"),
            "visit": ("P{:02d}_1", "P{:02d}_2"),
            "side": ("P{:02d}_left", "P{:02d}_right"),
            "spelling": ("P{:02d}", "p{}"),
        },
        copies={
            "copy": np.copy,
            "mirrored": lambda image: image[::-1].copy(),
            "re-saved": lambda image: image / np.float32(3.7),
            "resampled": lambda image: ndimage.zoom(image, 0.8, order=1),
            "turned": lambda image: np.rot90(image, axes=(0, 2)).copy(),
            "inverted": lambda image: image.max() - image,
        },
    ),
}


def refusal(unit: Unit, config: Any, sides: dict[str, str]) -> str:
    """What medjax says against images, by name, on these sides; '' if nothing."""
    try:
        data = unit.task.data(config)
        if config.data.get("official", ""):
            manifest = splitting.split(config, data)
        else:
            manifest = data.table.assign(split=data.table["image"].map(sides))
        unit.task.audit(config, data, manifest)
    except InputError as error:
        return str(error)
    return ""


def try_leaks(seconds: float, options: Options, folder: Path) -> Iterator[Row]:
    rng = np.random.default_rng([options.seed, 100])
    for name, unit in UNITS.items():
        for what in (people, copies):
            wrong = what(unit, rng, options, folder)
            outcome = "; ".join(wrong) or "all found, no false alarm"
            label = f"leaks: {what.__name__}, {name}"
            yield Row(label, options.planted, len(wrong), outcome)


def people(unit: Unit, rng, options: Options, folder: Path) -> list[str]:
    """Plants the sixth of ten people in the test split: what is missed."""
    wrong = []
    for kind in itertools.islice(itertools.cycle(unit.people), options.planted):
        first, second = unit.people[kind]
        ids = [first.format(n) for n in range(1, 11)]
        for planted in (False, True):  # The same people alone, and with one twice.
            ids += [second.format(6)] * planted
            sides = TEN + ["test"] * planted
            names = [f"{n}.png" for n in range(len(ids))] if unit.suffix else ids
            named = {name: unit.tiny(rng) for name in names}
            with tempfile.TemporaryDirectory(dir=folder) as place:
                official = sides if kind == "official list" else ""
                c = unit.save(Path(place), named, ids, official)
                answer = refusal(unit, c, dict(zip(names, sides)))
            if bool(answer) != planted:
                wrong.append(f"{kind}: {answer or 'missed'}")
    return wrong


def copies(unit: Unit, rng, options: Options, folder: Path) -> list[str]:
    """Copies of clean images, one after the other on another side than its source."""
    drawn, number = unit.draw(options.seed), len(CLEAN)
    kinds = [*itertools.islice(itertools.cycle(unit.copies), options.planted)]
    origin = [*range(number), *rng.integers(number, size=len(kinds)).tolist()]
    pictures = [unit.copies[kind](drawn[n]) for kind, n in zip(kinds, origin[number:])]
    names = [f"{n:03d}{unit.suffix}" for n in range(len(origin))]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        named = dict(zip(names, drawn + pictures))
        c = unit.save(Path(place), named, range(len(names)), "")
        sides = dict.fromkeys(names, "unused") | dict(zip(names, CLEAN))
        wrong = [alarm] if (alarm := refusal(unit, c, sides)) else []
        for kind, copy, n in zip(kinds, names[number:], origin[number:]):
            planted = sides | {names[n]: "train", copy: "test"}
            if "same picture" not in refusal(unit, c, planted):
                wrong.append(f"{kind}: missed")
        pairs = unit.task.data(c).pairs()[["id", "other"]].to_numpy()
    return wrong + [f"alarm: {a} = {b}" for a, b in pairs if origin[a] != origin[b]]


# ---------------------------- commands that are killed, have no disk, or run twice

STAGES = ("prepare", "train", "predict", "evaluate", "sweep")
CONFIG = """
import runpy

def get_config():
    c = runpy.run_path("tests/small.py")["get_config"]()
    c.data.update(patients=40, records={records!r})
    c.train.update(steps=8, evaluate_every=4)
    return c

def sweep():
    yield {{"seed": 0}}
    yield {{"seed": 1}}
"""
# What holds times or tells of the stop: sweep.json sums up its arms' reports.
LOOSE = ("checkpoints", "events", "metrics.jsonl", "environment.json")
LOOSE += ("sweep.html", "sweep.json", "log.txt")


@functools.cache
class Study:
    """A tiny study; `digests` and `seconds` are of every stage, undisturbed."""

    def __init__(self, folder: Path):
        self.folder, self.digests, self.seconds = folder, {}, {}
        (folder / "images").mkdir(parents=True)
        for n in range(4):
            pixels = grey(np.random.default_rng(n))
            cv2.imwrite(str(folder / f"images/{n}.png"), pixels)
        for stage in STAGES:
            began = time.monotonic()
            self.ready(stage, folder / stage)
            if why := self.again(stage, folder / stage):
                raise SystemExit(f"undisturbed: {why}")
            self.seconds[stage] = time.monotonic() - began

    def start(self, stage: str, place: Path) -> subprocess.Popen:
        """Starts the command of a stage, whose results go to `place`."""
        records = place if stage == "prepare" else self.folder / "prepare"
        file = self.folder / f"{records.parent.name}.py"
        file.write_text(CONFIG.format(records=str(records)))
        run = self.folder / "train" if stage == "predict" else place
        given = {
            "evaluate": [f"--workdir={run}", "--split=validation"],
            "predict": [
                *(f"--workdir={run}", f"--images={self.folder}/images"),
                f"--out={place}/a.csv",
            ],
        }.get(stage, [f"--config={file}", f"--workdir={run}"])
        line = [sys.executable, "launch.py", stage, *given]
        return subprocess.Popen(line, cwd=ROOT, stdout=-1, stderr=-1, text=True)

    def ready(self, stage: str, place: Path) -> None:
        """Makes what a stage needs in the folder of its results."""
        if stage == "evaluate":
            shutil.copytree(self.folder / "train", place)
        elif stage == "predict":
            place.mkdir(parents=True)

    def again(self, stage: str, place: Path) -> str:
        """Gives a command; '' if it ends well, with the bits that it always has."""
        process = self.start(stage, place)
        errors = process.communicate(timeout=1800)[1]
        if process.returncode:
            return f"{stage}: exit {process.returncode}: {errors.strip()[-300:]}"
        digests = digests_of(place)
        right = self.digests.setdefault(stage, digests)
        apart = [n for n in right | digests if right.get(n) != digests.get(n)]
        return f"{stage}: {', '.join(apart)} differ" if apart else ""


def digests_of(place: Path) -> dict[str, str]:
    """Digests of a folder's files by their names, and of arrays in checkpoints."""
    digests = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place)
        if path.is_file() and not {*LOOSE} & {*name.parts}:
            content = path.read_bytes().replace(os.fsencode(place), b"PLACE")
            digests[str(name)] = hashlib.sha256(content).hexdigest()
        elif path.name == "checkpoints":
            with ocp.training.Checkpointer(path.absolute()) as checkpoints:
                for step in (saved.step for saved in checkpoints.checkpoints):
                    state = checkpoints.load_checkpointables(step)["state"]
                    digest = hashlib.sha256()
                    for leaf in jax.tree.leaves(state):
                        digest.update(np.asarray(leaf).tobytes())
                    digests[f"{name}/{step}"] = digest.hexdigest()
    return digests


def try_kills(seconds: float, options: Options, folder: Path) -> Iterator[Row]:
    study, rng = Study(folder / "study"), random.Random(options.seed)
    tried, faults = Counter(), {stage: [] for stage in STAGES}
    end = time.monotonic() + seconds
    for stage in STAGES * 20:
        if time.monotonic() > end:
            break
        place = Path(tempfile.mkdtemp(dir=folder), "place")
        study.ready(stage, place)
        process = study.start(stage, place)
        time.sleep(rng.uniform(0.2, 1.0) * study.seconds[stage])
        process.send_signal(rng.choice([signal.SIGTERM, signal.SIGKILL]))
        errors = process.communicate()[1]
        tried[stage] += 1
        why = errors[-300:] if "Traceback" in errors else study.again(stage, place)
        faults[stage] += [why] if why else []
        print(f"{stage}: {why or 'the same bits'}", file=sys.stderr, flush=True)
        shutil.rmtree(place.parent)
    for stage in STAGES:
        outcome = "; ".join(faults[stage]) or "the same bits"
        yield Row(f"kills: {stage}", tried[stage], len(faults[stage]), outcome)


def try_disk(seconds: float, options: Options, folder: Path) -> Iterator[Row]:
    study, end = Study(folder / "study"), time.monotonic() + seconds
    mount = Path(tempfile.mkdtemp(dir=folder))
    make = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", mount]
    if subprocess.run(make, check=False, stderr=subprocess.DEVNULL).returncode:
        yield Row("disk", 0, 0, "not measured: no tmpfs can be mounted here")
        return
    try:
        for stage, kind in itertools.product(STAGES, ("full", "read-only")):
            if time.monotonic() < end:
                why = disk_fault(study, stage, kind, mount)
                outcome = why or "one line, then the same bits"
                yield Row(f"disk: {kind}, {stage}", 1, bool(why), outcome)
    finally:
        subprocess.run(["umount", mount], check=True)


def disk_fault(study: Study, stage: str, kind: str, mount: Path) -> str:
    place, filler = mount / "place", mount / "filler"
    study.ready(stage, place)
    if kind == "full":
        filler.write_bytes(bytes(shutil.disk_usage(mount).free))
    else:
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    process = study.start(stage, place)
    errors = process.communicate(timeout=1800)[1]
    subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
    filler.unlink(missing_ok=True)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    clear = process.returncode and len(lines) == 1 and str(mount) in lines[0]
    why = "" if clear and "Traceback" not in errors else f"unclear: {errors[-300:]}"
    why = why or study.again(stage, place)
    shutil.rmtree(place, ignore_errors=True)
    return why


def try_two(seconds: float, options: Options, folder: Path) -> Iterator[Row]:
    study = Study(folder / "study")
    for stage in STAGES:
        place = folder / f"two-{stage}" / "place"
        study.ready(stage, place)
        processes = [study.start(stage, place) for _ in range(2)]
        errors = [process.communicate(timeout=1800)[1] for process in processes]
        codes = sorted(process.returncode for process in processes)
        wrong = codes not in ([0, 0], [0, 2]) or "Traceback" in "".join(errors)
        why = " ".join(errors)[-600:] if wrong else ""
        why = why or "other bits" * (digests_of(place) != study.digests[stage])
        yield Row(f"two: {stage}", 2, bool(why), f"exits {codes} {why}")


def campaign(options: Options) -> list[Row]:
    """Prints each row when it is there, and returns all."""
    parts, rows = options.parts.split(","), []
    whole = sum(SHARES[part] for part in parts) or 1
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            seconds = 60 * options.minutes * SHARES[part] / whole
            for row in globals()[f"try_{part}"](seconds, options, Path(folder)):
                print(row, flush=True)
                rows.append(row)
    return rows


def parse(arguments: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", default=",".join(SHARES))
    parser.add_argument("--forms", default="", help="of files; without it all of them")
    parser.add_argument("--planted", type=int, default=25, help="leaks of four tables")
    parser.add_argument("--keep", type=Path, default=Path("campaign-faults"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    faults = sum(row.faults for row in campaign(parse()))
    print(f"{faults} faults")
    sys.exit(int(faults > 0))

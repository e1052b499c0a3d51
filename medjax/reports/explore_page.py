"""The pages of `explore`: the data, and what augmentation does to predictions."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.evaluation.bootstrap import as_json
from medjax.files import write_json
from medjax.reports import charts, page
from medjax.reports.pictures import as_bytes, fit, middle, png

MAX_ROWS = {"pairs": 12, "kinds": 10, "duplicates": 12, "quarantine": 20}  # Rows shown.
FEW_PATIENTS = 10  # Patients with or without a finding, below which intervals mislead.
SERIES = ("s0", "s1", "s2", "s3", "s4")  # Colours of channels.
MAX_COUNTED = 20  # Images of a patient from which on they are counted together.
STRIP = 160  # Pixels of a picture in a strip.
BOXES = ("#ffb000", "#35d0ba", "#ff6b6b", "#7aa6ff", "#d48cff", "#9be15d")
DETAIL_SIDE = 512  # Pixels, the longer side of the one image in detail.


def write(
    facts: dict[str, Any],
    images: dict[int, np.ndarray],
    folder: Path,
    name: str = "explore",
) -> Path:
    """Writes NAME.html and NAME.json to the folder, and returns the page's path.

    Args:
      facts: `cohort.describe.describe`'s, and what tasks/survey.py adds.
      images: {id: [H, W, C] or [D, H, W, C] uint8} of the ids that are `wanted`; one
        that is missing is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The page shows what is written; JSON has no infinity either.
    facts = json.loads(json.dumps(as_json(facts)), parse_constant=lambda _: None)
    write_json(folder / f"{name}.json", facts)
    slices = {id: middle(image) for id, image in images.items()}
    side = 144 if len(slices) <= 60 else 88  # Keeps the page below 3 MB.
    labels = facts["labels"]
    shares = {task: row["prevalence"]["estimate"] for task, row in labels.items()}
    return page.write(
        folder / f"{name}.html",
        "explore.html",
        facts=facts,
        many=MAX_ROWS,
        few=FEW_PATIENTS,
        name=name,
        thumbnails={id: png(fit(image, side)) for id, image in slices.items()},
        detail=_detail(facts["sample"], slices),
        rarest=min(shares, key=lambda t: math.inf if shares[t] is None else shares[t]),
        charts=_charts(facts),
        links=_links(facts["confounders"], labels),
        duplicates=sorted(facts["duplicates"], key=_harmless),
    )


def write_audit(audit: dict, strips: dict[str, list[np.ndarray]], folder: Path) -> Path:
    """Writes augment.html and augment.json: does an augmentation keep the label?

    The audit is tasks.perturb's. `strips` are pictures of each op, the image as it is
    and at each strength, float [.., C] in [0, 1].
    """
    write_json(folder / "augment.json", audit)
    pictures = {
        op: [png(as_bytes(fit(middle(i), STRIP, enlarge=True))) for i in images]
        for op, images in strips.items()
    }
    path = folder / "augment.html"
    return page.write(path, "augment.html", audit=audit, strips=pictures)


def wanted(facts: dict[str, Any]) -> list[int]:
    """The ids of the images that `write` shows if it is given them."""
    ids = [image["id"] for image in facts["sample"]]
    for name in ("darkest", "brightest", "flattest"):
        ids += [row[0] for row in facts["pixels"].get(name, [])]
    pairs = sorted(facts["duplicates"], key=_harmless)[: MAX_ROWS["duplicates"]]
    ids += [pair[end] for pair in pairs for end in ("id", "other")]
    return list(dict.fromkeys(ids))


def direction(covariate: str, value: dict) -> str:
    """Says what an AUROC away from 0.5 means; '' where 0.5 is in its interval."""
    if value["low"] is None or value["low"] <= 0.5 <= value["high"]:
        return ""
    above = value["estimate"] > 0.5
    if covariate == "age":
        return "older" if above else "younger"
    if covariate == "image size":
        return "larger images" if above else "smaller images"
    return f"{'more' if above else 'less'} in {covariate}"


def _links(confounders: dict, labels: dict) -> dict[str, dict]:
    """Adds to every AUROC its direction, and whether there are too `few` patients."""
    few = {
        task: min(label["patients"], label["patients_without"]) < FEW_PATIENTS
        for task, label in labels.items()
    }
    return {
        name: {
            task: area
            | {
                "few": few[task],
                "direction": "" if few[task] else direction(name, area),
            }
            for task, area in areas.items()
        }
        for name, areas in confounders.items()
    }


def _harmless(pair: dict) -> tuple:
    """Sorts pairs on two sides to the front, then those of two patients."""
    return pair["split"] == pair["other_split"], pair["same_patient"], pair["distance"]


def _detail(sample: list[dict], slices: dict) -> dict[str, Any] | None:
    """The image that is shown large: one with boxes, else with findings."""
    sample = [row for row in sample if row["id"] in slices]
    if not sample:
        return None
    row = max(sample, key=lambda row: (len(row["boxes"]) > 0, len(row["positive"])))
    image = slices[row["id"]]
    counts = [np.bincount(c.ravel(), minlength=256) for c in np.moveaxis(image, -1, 0)]
    return {
        "image": row,
        "height": image.shape[0],
        "width": image.shape[1],
        "colours": BOXES,
        "picture": png(fit(image, DETAIL_SIDE, enlarge=True)),
        "histogram": _histogram(counts, np.arange(256), "grey level"),
    }


def _charts(facts: dict) -> dict[str, dict]:
    """Every chart that the facts allow, by name."""
    prevalences = [
        charts.Row(
            page.label(task), {k: 100 * v for k, v in label["prevalence"].items()}
        )
        for task, label in facts["labels"].items()
        if label["prevalence"]["low"] is not None
    ]
    images, findings = facts["images_a_patient"], facts["findings_an_image"]
    drawn = {
        "prevalence": charts.forest(
            prevalences, title="Prevalences", name="prevalence, %"
        ),
        "images_a_patient": _tally(images, "images of a patient", "patients"),
        "findings_an_image": _tally(findings, "findings in an image", "images"),
    }
    age = facts["age"]
    decades = np.flatnonzero(np.sum([*age["images"].values()], axis=0))
    if len(decades) > 1:
        inside = slice(decades[0], decades[-1] + 1)
        start, last = age["start"][inside], age["start"][-1]
        ticks = [(last + 5, f"{last}+") if at == last else at for at in start]
        series = {k: n[inside] for k, n in sorted(age["images"].items())}
        drawn["age"] = _bars(start, 10, series, ("age, years", "images"), ticks)
    for name in ("view", "sex"):
        counts = facts[name]
        if len(counts) > 1:
            ticks = [(n, f"{k}: {v:,}") for n, (k, v) in enumerate(counts.items())]
            start, series = np.arange(len(counts)) - 0.3, {"": [*counts.values()]}
            drawn[name] = _bars(start, 0.6, series, (name, "images"), ticks)
    pixels = facts["pixels"]
    if pixels["images"]:
        before, after = (
            [channel["histogram"] for channel in pixels[side]]
            for side in ("before", "after")
        )
        bins = pixels["bins"]
        levels = bins["start"] + np.arange(len(after[0])) * bins["width"]
        full = np.flatnonzero(np.sum(after, axis=0))
        inside = slice(max(full[0] - 1, 0), full[-1] + 2)
        drawn["before"] = _histogram(before, np.arange(256), "grey level")
        drawn["after"] = _histogram(
            [channel[inside] for channel in after], levels[inside], "prepared intensity"
        )
        for name, x in (("mean", "mean grey level"), ("std", "standard deviation")):
            each = pixels["each"][name]
            bars = (each["start"], each["width"])
            drawn[name] = _bars(*bars, {"": each["images"]}, (x, "images"))
    return drawn


def _tally(tally: dict, x: str, y: str) -> dict | None:
    """How many there are of each number; a long tail is one last bar. None of one bar."""
    values, counts = list(tally["value"]), list(tally["count"])
    if len(values) < 2:
        return None
    ticks = None
    if values and values[-1] > MAX_COUNTED:
        rest = sum(n for v, n in zip(values, counts, strict=True) if v >= MAX_COUNTED)
        short = sum(v < MAX_COUNTED for v in values)
        values, counts = [*values[:short], MAX_COUNTED], [*counts[:short], rest]
        ticks = [1, *range(5, MAX_COUNTED, 5), (MAX_COUNTED, f"{MAX_COUNTED}+")]
    start = np.subtract(values, 0.4)
    return _bars(start, 0.8, {"": counts}, (x, y), ticks)


def _bars(
    start: Sequence,
    width: float,
    series: dict[str, Sequence],
    labels: tuple[str, str],
    ticks: Sequence | None = None,
) -> dict:
    """Bars of width `width` from `start` on, the series on top of each other."""
    top = max([*np.sum(list(series.values()), axis=0), 1])
    ends = min(start, default=0), max(start, default=0) + width
    room = 0.03 * (ends[1] - ends[0])
    frame = charts.Frame(
        charts.WIDE, x=(ends[0] - room, ends[1] + room), y=(0, 1.05 * top), left=46
    )
    lines, below = [], np.zeros(len(start))
    for number, counts in enumerate(series.values()):
        path = charts.bars(frame, start, counts, width, below)
        lines.append((f"bar s{number}", path))
        below = below + counts
    ticks = charts.rounded(*frame.x) if ticks is None else ticks
    whole = [tick for tick in charts.rounded(0, top) if tick == int(tick)]
    return charts.chart(
        frame,
        title=f"Number of {labels[1]} by {labels[0]}",
        labels=labels,
        ticks=([t for t in ticks if isinstance(t, tuple) or t == int(t)], whole),
        lines=lines,
        legend=[(kind, name) for (kind, _), name in zip(lines, series) if name],
    )


def _histogram(channels: list, at: np.ndarray, x: str) -> dict:
    """The pixels' shares, one line a channel; 0 and 255 may be cut off.

    Black background would otherwise dwarf everything else.
    """
    shares = [100 * np.asarray(c) / max(np.sum(c), 1) for c in channels]
    inner = max((share[1:-1].max() for share in shares), default=0)
    top = 1.15 * inner or 1
    frame = charts.Frame(charts.WIDE, x=(at[0], at[-1]), y=(0, top), left=46)
    colours = ("red", "green", "blue") if len(channels) == 3 else SERIES
    lines, legend = [], []
    for number, share in enumerate(shares):
        colour, share = colours[number % len(colours)], np.minimum(share, top)
        if len(channels) == 1:
            lines.append(("band", charts.area(frame, at, np.zeros(len(at)), share)))
        else:
            legend.append((f"curve {colour}", f"channel {number + 1}"))
        lines.append((f"curve thin {colour}", charts.line(frame, at, share)))
    return charts.chart(
        frame,
        title=f"Histogram of the {x}",
        labels=(x, "% of the pixels"),
        lines=lines,
        legend=legend,
    )

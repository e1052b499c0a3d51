"""What the data look like -> one self-contained HTML page, and JSON."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medjax.reports.page import ACCENT, SOFT, fit, middle, png, render, svg

MANY = {"pairs": 12, "kinds": 10, "duplicates": 12, "quarantine": 20}  # Rows shown.
FEW = 10  # Patients with or without a finding, below which intervals mislead.
SHADES = (ACCENT, "#d98e04", "#7a4fa3", "#4f8f3a", SOFT)  # Of sexes and channels.
BOXES = ("#ffb000", "#35d0ba", "#ff6b6b", "#7aa6ff", "#d48cff", "#9be15d")
DETAIL = 512  # Pixels, the longer side of the one image in detail.
SECTIONS = ("weights", "quarantine", "split", "pixels", "confounders", "duplicates")


def write(
    facts: dict[str, Any],
    images: dict[int, np.ndarray],
    folder: Path,
    name: str = "explore",
) -> Path:
    """Writes NAME.html and NAME.json.

    Args:
      facts: `cohort.explore.describe`'s, and `source`, the data set's name. Each of
        the others may be missing, and then its section is:
        sample: `cohort.pixels.sample`'s.
        confounders: {name: {task: {estimate, low, high}}}, the AUROC of each score of
          `cohort.explore.confounders`, None where undefined.
        weights: {scheme: {'positive' and so on: {task: weight}}, or a text: why it
          can't be}.
        split: {reached: `cohort.splits.reached` as dicts, verdict: text, sound: bool}.
        pixels: `cohort.pixels.statistics`'.
        duplicates: [{id, other, image, other_image, same_patient, split, other_split,
          flipped, distance, correlation}].
        quarantine: [{file, reason}].
      images: {id: [H, W, C] or [D, H, W, C] uint8} of the ids that are `wanted`; one
        that is missing is left out. A volume shows its middle slice; of other than
        three channels the first is shown.
      folder: where to; made if it isn't there.
      name: of the files.

    Returns:
      The page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = _plain(facts)
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1, allow_nan=False))
    facts = dict.fromkeys(SECTIONS) | {"sample": [], "source": ""} | facts
    slices = {id: middle(image) for id, image in images.items()}
    side = 144 if len(slices) <= 60 else 88  # Keeps the page below 3 MB.
    thumbnails = {id: png(fit(image, side)) for id, image in slices.items()}
    detail = _detail(facts["sample"], slices)
    html = render(
        "explore.html",
        facts=facts,
        many=MANY,
        few=FEW,
        odd=_not_one_class(facts),
        name=name,
        thumbnails=thumbnails,
        detail=detail,
        rarest=min(
            facts["labels"], key=lambda task: _commonness(facts["labels"][task])
        ),
        scale=max([one["prevalence"]["high"] or 0 for one in facts["labels"].values()]),
        figures=_figures(facts),
        links=_links(facts["confounders"] or {}, facts["labels"]),
        sides=_sides(facts),
        duplicates=sorted(facts["duplicates"] or [], key=_harmless),
    )
    path = folder / f"{name}.html"
    path.write_text(html)
    return path


def wanted(facts: dict[str, Any]) -> list[int]:
    """The ids of the images that `write` shows if it is given them."""
    ids = [one["id"] for one in facts.get("sample", [])]
    for name in ("darkest", "brightest", "flattest"):
        ids += [row[0] for row in (facts.get("pixels") or {}).get(name, [])]
    pairs = sorted(facts.get("duplicates") or [], key=_harmless)[: MANY["duplicates"]]
    ids += [pair[end] for pair in pairs for end in ("id", "other")]
    return list(dict.fromkeys(ids))


def direction(covariate: str, value: dict) -> str:
    """What an AUROC away from 0.5 means in words; '' where 0.5 is in its interval."""
    if value["low"] is None or value["low"] <= 0.5 <= value["high"]:
        return ""
    above = value["estimate"] > 0.5
    if covariate == "age":
        return "older" if above else "younger"
    if covariate == "image size":
        return "larger images" if above else "smaller images"
    return f"{'more' if above else 'less'} in {covariate}"


def _links(confounders: dict, labels: dict) -> dict[str, dict]:
    """Adds to every AUROC its direction and how strongly its cell is coloured.

    A bootstrap over a handful of patients draws the same ones again and again, and
    its interval is far too narrow: `few` marks these, and nothing is read from them.
    """
    out: dict[str, dict] = {}
    for name, found in confounders.items():
        out[name] = {}
        for task, value in found.items():
            fewest = min(labels[task]["patients"], labels[task]["patients_without"])
            words = direction(name, value) if fewest >= FEW else ""
            out[name][task] = {
                **value,
                "few": fewest < FEW,
                "direction": words,
                "strength": min(1.0, 2 * abs(value["estimate"] - 0.5)) if words else 0,
            }
    return out


def _commonness(one: dict) -> float:
    """A finding's prevalence, to compare by; last where nothing is known of it."""
    share = one["prevalence"]["estimate"]
    return math.inf if share is None else share


def _not_one_class(facts: dict) -> int:
    """How many labelled images are of no class, or of several."""
    tally = facts["findings_an_image"]
    pairs = zip(tally["value"], tally["count"], strict=True)
    return sum(count for value, count in pairs if value != 1)


def _sides(facts: dict) -> dict[str, dict]:
    """The rows of `reached` by side, then by task."""
    out: dict[str, dict] = {}
    for row in (facts["split"] or {"reached": []})["reached"]:
        out.setdefault(row["split"], {})[row["task"]] = row
    return out


def _harmless(pair: dict) -> tuple:
    """Sorts the pairs that matter to the front: on two sides, then of two patients."""
    return pair["split"] == pair["other_split"], pair["same_patient"], pair["distance"]


# --------------------------------------------------------------------- figures


def _detail(sample: list[dict], slices: dict) -> dict[str, Any] | None:
    """The one image shown large: one with boxes if there is any, else with findings."""
    shown = [one for one in sample if one["id"] in slices]
    if not shown:
        return None
    one = max(shown, key=lambda one: (len(one["boxes"]) > 0, len(one["positive"])))
    image = slices[one["id"]]
    height, width = image.shape[:2]
    boxes = [
        {
            "task": task,
            "colour": BOXES[number % len(BOXES)],
            "left": 100 * x0 / width,
            "top": 100 * y0 / height,
            "width": 100 * (x1 - x0) / width,
            "height": 100 * (y1 - y0) / height,
        }
        for number, (task, x0, y0, x1, y1) in enumerate(one["boxes"])
    ]
    counts = [np.bincount(c.ravel(), minlength=256) for c in np.moveaxis(image, -1, 0)]
    metadata = {
        key: value
        for key, value in one.items()
        if key not in ("shows", "positive", "unknown", "boxes")
    }
    return {
        "image": one,
        "metadata": metadata,
        "boxes": boxes,
        "size": f"{width} x {height}",
        "picture": png(fit(image, DETAIL, enlarge=True)),
        "histogram": _histograms([c.tolist() for c in counts], range(256)),
    }


def _figures(facts: dict) -> dict[str, str]:
    """Every figure by name; '' for what the facts don't allow."""
    out = dict.fromkeys(("age", "view", "sex"), "") | {
        "images_a_patient": _bars(
            facts["images_a_patient"], "images of a patient", "patients"
        ),
        "findings_an_image": _bars(
            facts["findings_an_image"], "findings in an image", "images"
        ),
    }
    if facts["age"]["images"]:
        out["age"] = _ages(facts["age"])
    for name in ("view", "sex"):
        if set(facts[name]) != {"unknown"}:
            out[name] = _categories(facts[name], name)
    pixels = facts["pixels"]
    if pixels and pixels["images"]:
        counts = [channel["histogram"] for channel in pixels["before"]]
        out["before"] = _histograms(counts, range(256))
        counts = [channel["histogram"] for channel in pixels["after"]]
        steps = np.arange(len(counts[0])) * pixels["bins"]["width"]
        out["after"] = _histograms(
            counts, pixels["bins"]["start"] + steps, "prepared intensity"
        )
        out["each"] = _each(pixels["each"])
    return out


def _bars(tally: dict, x: str, y: str) -> str:
    """How many there are of each number; a long tail is one last bar."""
    values, counts = tally["value"], tally["count"]
    last = 20
    if values and values[-1] > last:
        tail = sum(n for v, n in zip(values, counts, strict=True) if v >= last)
        kept = [(v, n) for v, n in zip(values, counts, strict=True) if v < last]
        values, counts = zip(*kept, (last, tail), strict=True)
    axes, figure = _axes(3.6, 2.3)
    axes.bar(values, counts, color=ACCENT, width=0.8)
    if tally["value"] and tally["value"][-1] > last:
        axes.set_xticks([1, 5, 10, 15, 20], ["1", "5", "10", "15", "20+"])
    else:
        axes.set_xlim(min(values, default=0) - 0.9, max(values, default=0) + 0.9)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    return svg(figure)


def _ages(age: dict) -> str:
    axes, figure = _axes(4.4, 2.3)
    below = np.zeros(len(age["start"]))
    for (sex, counts), colour in zip(sorted(age["images"].items()), SHADES):
        axes.bar(range(len(below)), counts, bottom=below, color=colour, label=sex)
        below += counts
    names = [f"{a}–{a + 9}" for a in age["start"][:-1]] + [f"{age['start'][-1]}+"]
    axes.set_xticks(range(len(below)), names, rotation=45, ha="right")
    axes.set_xlabel("age, years", fontsize=8)
    axes.set_ylabel("images", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    return svg(figure)


def _categories(counts: dict, name: str) -> str:
    axes, figure = _axes(3.0, 2.3)
    bars = axes.bar(list(counts), list(counts.values()), color=ACCENT, width=0.6)
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=7)
    axes.set_xlabel(name, fontsize=8)
    axes.set_ylabel("images", fontsize=8)
    return svg(figure)


def _histograms(channels: list, at, x: str = "grey level") -> str:
    """Shares of the pixels, one line a channel; 0 and 255 can dwarf the rest."""
    axes, figure = _axes(4.4, 2.3)
    colours = ("#c0392b", "#3c8d40", "#2a62b8") if len(channels) == 3 else SHADES
    shares = [100 * np.asarray(c) / max(sum(c), 1) for c in channels]
    for number, share in enumerate(shares):
        colour = colours[number % len(colours)]
        if len(channels) == 1:
            axes.fill_between(at, share, step="mid", color=colour, alpha=0.25, lw=0)
        axes.step(at, share, where="mid", color=colour, lw=1, label=f"{number + 1}")
    inner = max((share[1:-1].max() for share in shares), default=0)
    axes.set_ylim(0, 1.15 * inner or 1)  # A bar of black background may be cut off.
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel("% of the pixels", fontsize=8)
    if len(channels) > 1:
        axes.legend(title="channel", title_fontsize=7, fontsize=7, frameon=False)
    return svg(figure)


def _each(each: dict) -> str:
    """Histograms of the images' own mean and deviation."""
    figure = Figure(figsize=(6.4, 2.3), layout="constrained")
    for axes, (name, x) in zip(
        figure.subplots(1, 2),
        (("mean", "brightness: an image's mean"), ("std", "contrast: its deviation")),
        strict=True,
    ):
        one = each[name]
        width = one["width"]
        axes.bar(one["start"], one["images"], width, align="edge", color=ACCENT)
        axes.set_xlabel(f"{x}, grey levels", fontsize=8)
        axes.set_ylabel("images", fontsize=8)
    return svg(figure)


def _axes(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure.subplots(), figure


def _plain(value: Any) -> Any:
    """The same as JSON's own types; NaN and infinities are None."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

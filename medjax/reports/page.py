"""The frame of every page, and the one way in which numbers are printed."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table

from medjax.config import flatten
from medjax.evaluation import mask_metrics, metrics
from medjax.files import write_text

DASH = "–"  # Of what is undefined.
PROPER = ("Brier", "Cohen's", "Dice")  # Names of people: capital in a sentence, too.
TABLES = metrics.METRICS, mask_metrics.MASK_METRICS
METRIC_LABELS = {name: row.label for table in TABLES for name, row in table.items()} | {
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "volume_bias": "Predicted minus true, ml",
    "jpeg": "JPEG",
    "chest_xray": "Chest X-ray",
    "ct": "CT",
    "brain_mri": "Brain MRI",
    "nuclear": "PET and SPECT",
}


def write(path: Path, template: str, **values) -> Path:
    """Writes a page, whose folder is made if it is absent; see `render`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(template, **values))
    return path


def render(template: str, **values) -> str:
    """Fills a template of this folder as one HTML file that needs no other.

    base.html has the frame: title, contents, and `settings`, {heading: {name: text}},
    at the end. Values are escaped, so that a name can't inject markup.
    """
    environment = _environment()
    for name in ("contents", "notes"):  # Each page begins without the last one's.
        environment.globals[name].clear()
    return environment.get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    """The templates, which a process compiles once: that takes seconds."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medjax.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    printed = (
        count,
        decimals,
        duration,
        ends,
        gib,
        interval,
        label,
        number,
        p_value,
        percent,
    )
    printed += (span, within)
    environment.filters |= {function.__name__: function for function in printed}
    environment.globals["contents"] = []  # Each section adds itself as it renders.
    environment.globals["notes"] = []  # Of the table that is being rendered.
    return environment


def show_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    summary: bool = False,
    caption: str = "",
) -> None:
    """Prints a table of texts; with `summary` a line is above the last row."""
    table = Table(title=title, caption=caption or None)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for place, row in enumerate(rows, 2):
        table.add_row(*row, end_section=summary and place == len(rows))
    Console(soft_wrap=True).print(table)


def number(value: float | None, digits: int | None = None, sign: bool = False) -> str:
    """Prints a number, or a dash where it is undefined.

    `digits` are after the point; None prints four significant digits, or a whole
    number. With `sign` a plus is printed.
    """
    if value is None:
        return DASH
    plus = "+" if sign else ""
    if digits is None:
        whole = value == int(value) or abs(value) >= 1000
        return f"{value:{plus},.0f}" if whole else f"{value:{plus}.4g}"
    return f"{value:{plus},.{digits}f}"


def decimals(name: str) -> int:
    """How many a value has: two in mm, ml and counts of lesions, three in shares."""
    of_masks = mask_metrics.MASK_METRICS.get(name)
    coarse = of_masks and of_masks.kind != "share" or name == "volume_bias"
    return 2 if coarse else 3


def count(value: float) -> str:
    """Prints a count; soft labels make it fractional."""
    return number(value, 0 if value == int(value) else 1)


def interval(value: dict, digits: int = 3, sign: bool = False) -> str:
    """Prints '0.912 (0.894–0.931)'; the estimate alone where it has no interval."""
    text = number(value["estimate"], digits, sign)
    if value["estimate"] is None or value["low"] is None:
        return text
    return f"{text} ({ends(value, digits, sign)})"


def ends(value: dict, digits: int = 3, sign: bool = False) -> str:
    """Prints '0.894–0.931', '0.981–>0.999', or '-0.020 to 0.010': a dash would look like
    a minus."""
    to = " to " if sign or value["low"] < 0 else DASH
    return to.join(_end(value[end], digits, sign) for end in ("low", "high"))


def _end(value: float, digits: int, sign: bool) -> str:
    """An end of an interval: rounding never makes it 0 or 1, the ends of a share."""
    text = number(value, digits, sign)
    if abs(value) in (0, 1):
        return f"{value:g}"
    least, whole = f"{10**-digits:.{digits}f}", f"{1:.{digits}f}"
    if not sign and text == whole and value < 1:
        return f">{1 - 10**-digits:.{digits}f}"
    if not sign and value > 0 and text == f"{0:.{digits}f}":
        return f"<{least}"
    return text


def p_value(p: float | None, named: bool = False) -> str:
    """Prints '0.002' or '<0.001'; with its name 'p = 0.002' or 'p < 0.001'."""
    if p is None:
        return DASH
    sign, text = ("<", "0.001") if p < 0.001 else ("=", f"{p:.3f}")
    if named:
        return f"p {sign} {text}"
    return f"<{text}" if sign == "<" else text


def percent(share: float | None) -> str:
    """Prints '12.3 %', with one more digit below 1 %."""
    if share is None:
        return DASH
    if 0 < share < 5e-5:
        return "<0.01 %"
    return f"{100 * share:.{2 if 0 < share < 0.00995 else 1}f} %"


def span(value: dict) -> str:
    """Prints '9.1–14.9 %', the interval of a share."""
    if value["low"] is None:
        return DASH
    return f"{percent(value['low'])[:-2]}{DASH}{percent(value['high'])}"


def duration(seconds: float | None) -> str:
    """Prints '48 s', '12 min 5 s' or '3 h 20 min'."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def gib(size: float | None) -> str:
    """Prints bytes as '1.5 GiB'."""
    return DASH if size is None else f"{size / 2**30:.1f} GiB"


def label(name: str) -> str:
    """The printed name of a metric or a finding."""
    if name in METRIC_LABELS:
        return METRIC_LABELS[name]
    name = name.replace("_", " ")
    return name[:1].upper() + name[1:]


def within(name: str) -> str:
    """A name as it is printed inside a sentence: 'average precision', 'Dice', 'AUROC'."""
    text = label(name)
    first = text.split()[0]
    proper = first in PROPER or not first[1:].islower()
    return text if proper else text[0].lower() + text[1:]


def flat(values: dict, prefix: str = "") -> dict[str, str]:
    """Flattens nested dicts to {dotted name: text}."""
    return {
        name: value if isinstance(value, str) and value else json.dumps(value)
        for name, value in flatten(values, prefix).items()
    }

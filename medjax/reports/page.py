"""What every page shares: colours, figures, numbers as they are read, the template."""

import base64
import io

import cv2
import jinja2
import numpy as np
from matplotlib.figure import Figure

INK, ACCENT, SOFT = "#1c2733", "#0b6e8f", "#9db4c0"
NAMES = {
    "auroc": "AUROC",
    "partial_auroc": "Partial AUROC",
    "average_precision": "Average precision",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "lr_positive": "LR+",
    "lr_negative": "LR−",
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    "kappa": "Cohen's kappa",
    "jpeg": "JPEG",
    "chest_xray": "Chest X-ray",
    "ct": "CT",
    "brain_mri": "Brain MRI",
    "nuclear": "PET and SPECT",
}


def render(template: str, **values) -> str:
    """Fills a template of this folder; what it prints can't inject markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medjax.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "interval": interval,
        "ends": ends,
        "label": label,
        "count": count,
        "number": number,
        "percent": percent,
        "span": span,
    }
    return environment.get_template(template).render(**values)


def interval(value: dict, digits: int = 3) -> str:
    """'0.912 (0.894-0.931)', '... (-0.02 to 0.01)', or a dash where undefined."""
    if value["estimate"] is None:
        return "–"
    text = f"{value['estimate']:.{digits}f}"
    if value["low"] is None:
        return text
    return f"{text} ({ends(value, digits)})"


def ends(value: dict, digits: int = 3) -> str:
    """'0.894–0.931', or '-0.020 to 0.010': a minus isn't a dash."""
    to = " to " if value["low"] < 0 else "–"
    return f"{value['low']:.{digits}f}{to}{value['high']:.{digits}f}"


def probability(p: float | None) -> str:
    """A p value as it is printed."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float | None) -> str:
    """'12.3 %', with a digit more below 1 %; a dash where undefined."""
    if share is None:
        return "–"
    if 0 < share < 5e-5:
        return "<0.01 %"
    return f"{100 * share:.{2 if 0 < share < 0.00995 else 1}f} %"


def span(value: dict) -> str:
    """'9.1–14.9 %', the interval of a share; a dash where undefined."""
    if value["low"] is None:
        return "–"
    return f"{percent(value['low'])[:-2]}–{percent(value['high'])}"


def label(name: str) -> str:
    """A metric's or a finding's name as it is read."""
    if name in NAMES:
        return NAMES[name]
    name = name.replace("_", " ")
    return name[:1].upper() + name[1:]


def count(value: float) -> str:
    """A count; soft labels make it fractional."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def number(value: float | None) -> str:
    """Four digits, or all before the point; a dash where undefined."""
    if value is None:
        return "–"
    return count(value) if value == int(value) or value >= 1000 else f"{value:.4g}"


def svg(figure: Figure) -> str:
    """The figure as a data URI, so that the page needs no other file."""
    for axes in figure.axes:
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def middle(image: np.ndarray) -> np.ndarray:
    """What is shown of [H, W, C] or [D, H, W, C]: [H, W, 1 or 3], the middle slice.

    Of other than three channels it is the first: an MRI's sequences are no colours.
    """
    if image.ndim == 4:
        image = image[len(image) // 2]
    return image if image.shape[-1] in (1, 3) else image[..., :1]


def fit(image: np.ndarray, side: int, *, enlarge: bool = False) -> np.ndarray:
    """Scales [H, W, C] so that its longer side has `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1 and not enlarge:
        return image
    size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=method).reshape(*size[::-1], -1)


def png(image: np.ndarray) -> str:
    """[H, W, 1 or 3] uint8, red first, as a data URI."""
    _, code = cv2.imencode(".png", image[..., ::-1])
    return "data:image/png;base64," + base64.b64encode(code.tobytes()).decode()

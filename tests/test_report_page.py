"""report.html in a browser: its explorer's arithmetic, its frugality, its access."""

import base64
import json
import re
import shutil
import unicodedata
import zlib

import jax
import numpy as np
import pytest
from small import RUN

from medjax.evaluation import (
    bootstrap,
    conformal,
    decisions,
    reliability,
    results,
    thresholds,
)
from medjax.evaluation.inference import Predictions
from medjax.reports import classification, pictures, report

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium, its driver"),
]
TASKS = ("mass", "Pleural_<i>Thickening", "never_seen")
POINTS = np.array([0.55, 0.4, np.nan], np.float32)
RATES = ("sensitivity", "specificity", "ppv", "npv", "accuracy")
# WCAG 2.2, 1.4.3: every text against the ground behind it, by the browser's own style.
CONTRAST = """
const luminance = c => c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 :
  ((v + .055) / 1.055) ** 2.4).reduce((s, v, n) => s + v * [.2126, .7152, .0722][n], 0);
const parse = c => c.match(/[\\d.]+/g).map(Number);
function ground(e) {
  for (; e; e = e.parentElement) {
    const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
    if (a > 0) return [r, g, b].map(v => v * a + 255 * (1 - a));
  }
  return [255, 255, 255];
}
document.querySelectorAll("details").forEach(d => d.open = true);
const found = [];
for (const e of document.body.querySelectorAll("*")) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !e.getClientRects().length || e.closest("script, style")) continue;
  const style = getComputedStyle(e), svg = e.namespaceURI.endsWith("svg");
  const [a, b] = [luminance(parse(svg ? style.fill : style.color).slice(0, 3)),
    luminance(ground(e))].sort((x, y) => y - x);
  const large = parseFloat(style.fontSize) >= 24;
  if ((a + .05) / (b + .05) < (large ? 3 : 4.5)) found.push(e.outerHTML.slice(0, 120));
}
return found;"""


def predictions():
    rng = np.random.default_rng(0)
    label = (rng.random((300, 3)) < (0.2, 0.05, 0)).astype(np.float32)
    score = (0.6 * rng.random((300, 3)) + 0.3 * label).astype(np.float32)
    weight = (rng.random((300, 3)) < 0.95).astype(np.float32)
    return Predictions(np.arange(300), np.arange(300) // 2, score, label, weight)


def side(shift):
    """One side of a calibration, as evaluation/results.py writes it."""
    value = {"estimate": 0.1 + shift, "low": 0.05, "high": 0.2, "why": ""}
    diagram = {"predicted": [0.1, 0.3], "observed": [0.2, 0.3 + shift]}
    diagram |= {"low": [0.1, 0.2], "high": [0.3, None], "count": [50, 50]}
    names = reliability.MEASURES
    return {**dict.fromkeys(names, value), "reliability": diagram}


def where(pairs, patients):
    """Where the heatmaps of so many marked films lie."""
    one = {"estimate": 0.4, "low": 0.3, "high": 0.5, "undefined": 0, "why": ""}
    one |= {"chance": 0.08, "others": 0.25, "gain": dict(one)}
    return {"pairs": pairs, "patients": patients, "pointing": one, "iou": dict(one)}


def whole_summary():
    """A report with every section, of invented numbers where none are needed."""
    found = predictions()
    common = {"tasks": TASKS, "threshold": POINTS}
    draws = {"key": jax.random.key(0), "replicates": 40}
    points = {thresholds.name("sensitivity", 0.9): POINTS / 2}
    points |= {thresholds.name("specificity", 0.9): POINTS}
    summary = results.summarise(
        found, exclusive=False, operating=points, **common, **draws
    )
    value = {"estimate": 0.8, "low": 0.7, "high": 0.9, "undefined": 0, "why": ""}
    empty = dict.fromkeys(("estimate", "low", "high"), None) | {"why": "too few"}
    gap = value | {"between": ["F", "M"], "p": 0.001}
    no_gap = empty | {"between": None, "p": None}
    metrics = dict.fromkeys(("auroc", *RATES[:4]), value)
    tasks = {
        task: {"positives": 3.0, "negatives": 7.0, "metrics": metrics} for task in TASKS
    }
    group = {"films": 10, "patients": 9, "tasks": tasks, "mean": {"auroc": value}}
    cells = {**dict.fromkeys(("auroc", "sensitivity", "specificity", "ppv"), gap)}
    groups = {
        "groups": {"F": group, "M": group, "unknown": group},
        "gaps": dict.fromkeys(TASKS, cells | {"npv": no_gap}),
        "averaged": TASKS[:2],
        "mean": {"auroc": gap},
        "clearest": gap,
        "p_holm": 0.01,
        "tests": 2,
        "explored": 30,
        "apart": [{"task": TASKS[1], "metric": "auroc", **gap}],
    }
    rows = [
        {"severity": n, "value": 10.0 * n, "auroc": value, "drop": value}
        | {"agreement": value, "tasks": dict.fromkeys(TASKS, 0.7)}
        for n in range(1, 6)
    ]
    names = ("blur", "electronic_noise", "occlusion")
    corruption = {"parameter": "pixels", "severities": rows}
    robustness = {"films": 300, "patients": 150, "clean": {"auroc": value}}
    robustness |= {"mean": rows, "corruptions": dict.fromkeys(names, corruption)}
    alike = {"classifier": 0.91, "stage2": None, "stem": 0.62}
    none = where(3, 1)
    for measure in ("pointing", "iou"):
        none[measure] |= {"low": None, "high": None, "others": None}
        none[measure] |= {"why": bootstrap.NO_INTERVAL}
    for task, shift in zip(TASKS, (0.05, 0.0, 0.02), strict=True):
        summary["tasks"][task]["calibration"] = {
            "prevalence": value | {"low": 0.0},
            "before": side(shift),
            "after": side(0.01),
            "why": "",
        }
        summary["tasks"][task]["validation_positives"] = 8.0
    errors = {"brier": value, "calibration_error": value}
    known = {t: {"positives": 5, "negatives": 9, "unknown": 0} for t in TASKS}
    known = {"films": 14, "patients": 9, "tasks": known}
    return summary | {
        "split": "test",
        "source": "table",
        "model": "densenet121",
        "split_by": "patient",
        "checkpoint": 20,
        "steps": 20,
        "bands": thresholds.bands(found, tasks=TASKS, **draws),
        "decisions": decisions.curves(found, tasks=TASKS, **draws),
        "conformal": answers(found),
        "explorer": thresholds.explorer(found, **common),
        "subgroups": {"sex": groups, "age": groups | {"p_holm": 0.2}},
        "robustness": robustness,
        "calibration": {"method": "platt", "fitted_on": "validation", "films": 50}
        | {"why": {}, "mean": {"before": errors, "after": errors}},
        "localisation": {
            "method": "grad_cam",
            "stage": "stage2",
            "all": where(40, 19),
            "tasks": {TASKS[0]: where(37, 18), TASKS[1]: none},
            "randomisation": {"correlation": alike, "depends": False},
        },
        "cohort": {"sides": dict.fromkeys(("train", "validation", "test"), known)}
        | {"shared": 0, "pairs": 2, "leaks": 0},
    }


def answers(found):
    options = {"tasks": TASKS, "exclusive": False}
    limits = conformal.fit(found, exclusive=False, error=0.1)
    return conformal.summarise(found, limits, **options)


def gallery():
    rng = np.random.default_rng(0)
    image, heat = rng.integers(0, 256, (40, 30, 1), np.uint8), rng.random((4, 3))
    picture, (width, height) = pictures.picture(image, heat, [[(5, 5), (20, 25)]])
    film = {"image": f"{'long' * 20}.png", "probability": 0.5, "certain": "most"}
    film |= {
        "boxes": True,
        "planes": False,
        "empty": False,
        "picture": picture,
        "width": width,
        "height": height,
    }
    return {task: {"true_positive": [film] * 2, "false_negative": []} for task in TASKS}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    curve = [{"step": n, "loss": 1 / n} for n in range(1, 20)]
    curve += [{"step": n, "validation_auroc": 0.5 + n / 50} for n in (5, 10)]
    config = RUN["config"] | {"ops": ["a", "b"], "x": ""}
    recipe = RUN["recipe"] | {"init": f"/{'a_very_long_path' * 5}"}
    environment = RUN["environment"] | {"revision": "0f" * 20}
    path = report.write(
        *(whole_summary(), curve, folder, "report"),
        recipe=recipe,
        config=config,
        environment=environment,
        pictures=gallery(),
    )
    return path, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser that reaches no network, and notes what it would ask for."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-sync"),
        *("--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"),
        f"--user-data-dir={tmp_path_factory.mktemp('chrome')}",
    ):
        options.add_argument(flag)
    asked = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", asked)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, written):
    browser.get(written[0].as_uri())
    yield browser
    assert browser.get_log("browser") == []  # No error, no warning.
    log = [json.loads(one["message"])["message"] for one in asked_for(browser)]
    asked = [one["params"] for one in log if "request" in one["params"]]
    here = written[0].as_uri()  # The browser's own first page asks for its parts too.
    asked = [one["request"]["url"] for one in asked if one["documentURL"] == here]
    assert {url for url in asked if not url.startswith("data:")} == {here}


def asked_for(browser):
    return [
        one
        for one in browser.get_log("performance")
        if "Network.requestWillBeSent" in one["message"]
    ]


def at(browser, name):
    return browser.find_element("id", f"explorer-{name}")


def shown(browser, name):
    text = at(browser, name).text
    return np.nan if text == "–" else float(text)


def expected(cells, prevalence):
    """The rates of one row of the explorer's table, by their definitions."""
    tp, fp, fn, tn = (cells[name] for name in ("tp", "fp", "fn", "tn"))
    se, sp, pi = tp / (tp + fn), tn / (tn + fp), prevalence
    hit, alarm = se * pi, (1 - sp) * (1 - pi)
    miss, clear = (1 - se) * pi, sp * (1 - pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "sensitivity": se,
            "specificity": sp,
            "accuracy": hit + clear,
            "ppv": np.divide(hit, hit + alarm),
            "npv": np.divide(clear, clear + miss),
            "tp": 1e3 * hit,
            "fp": 1e3 * alarm,
            "fn": 1e3 * miss,
            "tn": 1e3 * clear,
            "lr_positive": np.divide(se, 1 - sp),
            "lr_negative": np.divide(1 - se, sp),
        }


def check(browser, cells, prevalence):
    for name, value in expected(cells, prevalence).items():
        digits = 3 if name in RATES else 2 if name.startswith("lr") else 1
        value = np.nan if np.isinf(value) else value
        one = shown(browser, name)
        assert one == pytest.approx(value, abs=0.51 * 10**-digits, nan_ok=True), name


def choose(browser, task):
    options = at(browser, "task").find_elements("tag name", "option")
    next(o for o in options if o.get_attribute("value") == task).click()


def row(found, task, n):
    return {name: column[n] for name, column in found["explorer"][task].items()}


def test_the_explorer_starts_where_the_report_stands(opened, written):
    found = written[1]
    for task in TASKS[:2]:
        choose(opened, task)
        one = found["tasks"][task]
        assert at(opened, "at").text == f"{one['threshold']:.4f}, fixed"
        for name in (*RATES, "lr_positive", "lr_negative"):
            digits = 0.0051 if name.startswith("lr") else 0.00051
            value = one["metrics"][name]["estimate"]
            assert shown(opened, name) == pytest.approx(value, abs=digits)
        percent = float(at(opened, "percent").get_attribute("value"))
        prevalence = one["metrics"]["prevalence"]["estimate"]
        assert percent == pytest.approx(100 * prevalence, rel=0.01)


def test_arrow_keys_move_the_threshold_and_every_number_with_it(opened, written):
    from selenium.webdriver.common.keys import Keys

    found, task = written[1], TASKS[0]
    choose(opened, task)
    last = len(found["explorer"][task]["threshold"]) - 1
    slider, marker = at(opened, "threshold"), "#explorer-roc .point"
    marker = opened.find_element("css selector", marker)
    frozen = found["explorer"][task]["threshold"].index(
        found["tasks"][task]["threshold"]
    )
    prevalence = found["tasks"][task]["metrics"]["prevalence"]["estimate"]
    place = marker.get_attribute("cx"), marker.get_attribute("cy")
    moves = ((Keys.ARROW_LEFT * 7, frozen + 7), (Keys.HOME, last), (Keys.END, 0))
    for keys, n in moves:
        slider.send_keys(keys)
        cells = row(found, task, n)
        assert at(opened, "at").text == f"{cells['threshold']:.4f}"
        assert slider.get_attribute("aria-valuetext") == at(opened, "at").text
        check(opened, cells, prevalence)
        now = marker.get_attribute("cx"), marker.get_attribute("cy")
        assert now != place
        place = now
    at(opened, "reset").send_keys(Keys.ENTER)
    assert at(opened, "at").text.endswith(", fixed")
    check(opened, row(found, task, frozen), prevalence)


def test_predictive_values_follow_the_prevalence_by_bayes(opened, written):
    from selenium.webdriver.common.keys import Keys

    found, task = written[1], TASKS[1]
    choose(opened, task)
    frozen = found["explorer"][task]["threshold"].index(
        found["tasks"][task]["threshold"]
    )
    cells, percent = row(found, task, frozen), at(opened, "percent")
    for value in ("1", "37.5", "99"):
        percent.clear()
        percent.send_keys(value)
        check(opened, cells, float(value) / 100)
    at(opened, "prevalence").send_keys(Keys.HOME)
    assert float(percent.get_attribute("value")) == pytest.approx(0.01)
    check(opened, cells, 1e-4)


def test_a_finding_without_a_positive_image_leaves_its_numbers_empty(opened):
    choose(opened, TASKS[2])
    assert np.isnan(shown(opened, "sensitivity")) and np.isnan(shown(opened, "ppv"))
    assert "fixed" not in at(opened, "at").text


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_its_window_and_every_picture_is_drawn(opened, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    seen = opened.execute_script(
        """document.querySelectorAll("details").forEach(d => d.open = true);
        return Promise.all([...document.images].map(i => (i.loading = "eager",
          i.decode().then(() => 1, () => 0)))).then(drawn => ({drawn,
          scroll: document.documentElement.scrollWidth, inner: innerWidth,
          outside: [...document.querySelectorAll("main *")].filter(e =>
            !e.closest(".wide, svg, .skip") && e.getBoundingClientRect().right > innerWidth)
            .map(e => e.outerHTML.slice(0, 120)),
          charts: [...document.querySelectorAll("svg")].map(s =>
            s.getBoundingClientRect().width)}))"""
    )
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert seen["outside"] == []
    assert seen["inner"] == width and seen["scroll"] <= width
    assert len(seen["drawn"]) == 7 and all(seen["drawn"])
    # ROC, PR, answers, decisions, explorer; reliability; robustness and mean; training.
    assert len(seen["charts"]) == 2 + 2 + 3 + 1 + 1 + 3 + 4 + 2
    assert all(0 < chart <= width for chart in seen["charts"])


def test_where_a_model_is_better_is_said_without_the_gaps():
    found = classification._ranges([0.1, 0.2, 0.3, 0.4], [True, True, False, True])
    assert found == "10.0 % to 20.0 %, 40.0 %"
    assert classification._ranges([0.1, 0.2], [False, False]) == ""


def test_everyone_can_read_it(opened):
    assert opened.execute_script(CONTRAST) == []
    lacking = opened.execute_script(
        """const all = s => [...document.querySelectorAll(s)];
        return [
          ...all("img").filter(i => !i.alt),
          ...all("svg").filter(s => !s.getAttribute("aria-label")),
          ...all("input, select").filter(i => !i.labels.length && !i.ariaLabel),
          ...all("th").filter(h => !h.scope),
          ...all("[aria-labelledby]").filter(s =>
            !document.getElementById(s.getAttribute("aria-labelledby"))),
          ...all("nav a").filter(a => !document.querySelector(a.getAttribute("href"))),
          ...all(".wide").filter(w => w.tabIndex !== 0 || !w.ariaLabel),
        ].map(e => e.outerHTML.slice(0, 120))"""
    )
    assert lacking == []
    page = opened.find_element("tag name", "html")
    assert page.get_attribute("lang") == "en"
    assert len(opened.find_elements("tag name", "main")) == 1
    assert len(opened.find_elements("tag name", "h1")) == 1
    from selenium.webdriver.common.keys import Keys

    opened.find_element("tag name", "body").send_keys(Keys.TAB)
    assert opened.switch_to.active_element.text == "Skip to the content"


def text_of(pdf):
    """What a PDF of Chromium's shows, without spaces: each font maps glyphs to text."""
    parts = re.findall(rb"(?:^|\n)(\d+) 0 obj\n(.*?)\nendobj", pdf, re.DOTALL)
    parts = {int(number): part for number, part in parts}

    def stream(part):
        head, _, body = part.partition(b"stream\n")
        return zlib.decompress(body) if b"/FlateDecode" in head else b""

    fonts = {}
    for number, part in parts.items():
        if found := re.search(rb"/ToUnicode (\d+)", part):
            glyphs = fonts[number] = {}
            table = stream(parts[int(found.group(1))]).decode()
            rows = re.findall(r"^<(\w+)> (?:<(\w+)> )?<(\w+)>$", table, re.MULTILINE)
            for first, last, text in rows[1:]:  # The first is the code space.
                low, high = int(first, 16), int(last or first, 16)
                for glyph in range(low, high + 1):
                    glyphs[glyph] = chr(int(text[:4], 16) + glyph - low)
    shown = ""
    for part in parts.values():
        content = stream(part) if b"/FlateDecode" in part[:80] else b""
        if b" Tf" not in content:
            continue
        for font, text in re.findall(rb"/F(\d+) [\d.]+ Tf|<([0-9A-F]+)>", content):
            if font:
                glyphs = fonts.get(int(font), {})
                continue
            codes = re.findall("....", text.decode())
            shown += "".join(glyphs.get(int(code, 16), "") for code in codes)
    shown = unicodedata.normalize("NFKC", shown)  # Ligatures are letters again.
    return re.sub(r"\s", "", shown)


def test_it_prints_with_everything_open(opened):
    assert opened.find_elements("css selector", "details:not([open])")
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    pdf = base64.b64decode(printed["data"])
    assert len(re.findall(rb"/Type /Page\b", pdf)) >= 4
    text = text_of(pdf)
    assert "Localisationbyheatmaps" in text
    # Of details that are closed on the screen: the config, and a group's rates.
    for closed in ("config.optim.name", "versions.jax", "Largestdifference"):
        assert closed in text


def test_a_name_cannot_inject_markup(written):
    assert "<i>Thick" not in written[0].read_text()

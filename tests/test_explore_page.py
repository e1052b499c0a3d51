"""The explore page: what it says, and how a browser shows it."""

import http.server
import json
import re
import shutil
import subprocess
import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import Page

from medjax.cohort import appearance, describe, manifests
from medjax.evaluation.bootstrap import as_json
from medjax.reports import explore_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FINDINGS = [f"Finding_{n}" for n in range(40)]
FINDINGS[0] = "<b>mass</b>"
# Written into the page's copy: what a person would see of it.
PROBE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  dispatchEvent(new Event("resize"));
  document.body.dataset.probe = JSON.stringify({
    hints: [...document.querySelectorAll(".wide")].map(
      w => [w.scrollWidth > w.clientWidth, !w.previousElementSibling.hidden]),
    images: [...document.images].map(i => [i.naturalWidth, i.clientWidth]),
    scroll: document.documentElement.scrollWidth, inner: innerWidth})})</script>"""


def make(tasks=6, task="multilabel", shape=(24, 20, 1), known=True, images=120):
    """Facts and images of a data set, as the command gathers them."""
    rng = np.random.default_rng(0)
    names = FINDINGS[:tasks]
    chance = rng.uniform(0.05, 0.4, tasks)
    label = (rng.random((images, tasks)) < chance).astype(float)
    if task == "multiclass":
        label = np.eye(tasks)[np.arange(images) % tasks]
    else:
        label[rng.random(label.shape) < 0.1] = np.nan
    blank = [""] * images
    table = pd.DataFrame(
        {
            "id": np.arange(images),
            "image": [f"{n:08d}_a_name_that_is_long.png" for n in range(images)],
            "patient": np.arange(images) // 3,
            "view": rng.choice(["PA", "AP"], images) if known else blank,
            "sex": rng.choice(["F", "M"], images) if known else blank,
            "age": rng.uniform(20, 90, images).round() if known else np.nan,
            "width": rng.choice(np.arange(1000, 1020), images) if known else 24,
            "height": 24,
            "spacing_x": 0.1 if known else np.nan,
            "spacing_y": 0.1 if known else np.nan,
            "official": "",
            **dict(zip(names, label.T, strict=True)),
        }
    )
    image = rng.integers(0, 256, (images, *shape), dtype=np.uint8)
    split = np.array(manifests.SPLITS)[np.arange(images) // 3 % 3]
    manifest = table[["id", "image", "patient"]].assign(split=split)
    boxes = {"id": [7, 7], "task": names[0], "x0": [2, 9], "y0": [3, 8]}
    boxes = pd.DataFrame({**boxes, "x1": [9, 19], "y1": [12, 20]})
    pair = {"image": "a.png", "other_image": "b.png", "split": "train"}
    pair |= {"flipped": True, "distance": 3, "correlation": 0.99}
    facts = {
        **describe.describe(table, names, manifest, task=task),
        "source": "phantom",
        "sample": describe.pick(table, names, boxes=boxes),
        "floor": {
            name: {"estimate": 0.7, "low": 0.65, "high": 0.76}
            for name in (*names, "mean")
        },
        "confounders": {
            name: {
                t: {"estimate": 0.625, "low": 0.55 - 0.1 * (n % 2), "high": 0.7}
                for n, t in enumerate(names)
            }
            for name in describe.confounders(table)
        },
        "weights": {
            "ratio": {
                "positive": dict.fromkeys(names, np.float32(0.875)),
                "negative": dict.fromkeys(names, np.float32(0.125)),
            },
            "balanced": "no positive training image of one finding",
        },
        "split": {
            "reached": manifests.reached(table, manifest, names).to_dict("records"),
            "verdict": "No patient is on two sides.",
            "sound": True,
        },
        "pixels": appearance.statistics(
            [(np.arange(images), image)], lambda x: 4 * x - 2
        ),
        "duplicates": [
            {**pair, "id": n, "other": n + 1, "same_patient": n % 2 == 0}
            | {"other_split": "test" if n == 9 else "train"}
            for n in range(15)
        ],
        "quarantine": [{"file": f"{n}.png", "reason": "ends early"} for n in range(23)],
    }
    return facts, dict(enumerate(image))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    facts, images = make()
    path = explore_page.write(facts, images, tmp_path_factory.mktemp("page") / "new")
    return facts, path, path.read_text()


def test_the_page_is_well_formed_and_asks_for_no_other_file(written):
    page = Page(written[2])
    assert page.stack == []
    assert len(page.sources) > 20
    assert all(s.startswith(("data:image/", "#")) for s in page.sources)
    assert not re.search(r"https?://|@import|url\(|<script [a-z]", written[2])


def test_the_page_says_what_the_facts_say(written):
    facts, _, text = written
    page = Page(text).text
    labels = facts["labels"]["Finding_1"]
    share = labels["prevalence"]
    for number in (
        f"Finding 1 {100 * share['estimate']:.1f} % {100 * share['low']:.1f}–",
        f"{labels['positives']} {labels['patients']} {labels['negatives']}",
        "No patient is on two sides.",
        "0.62 (0.55–0.70) more in view",
        "no positive training image of one finding",
        "0.875",
        "and 3 more in explore.json",
        f"{facts['pixels']['before'][0]['mean']:.2f}",
        "patients 40",
    ):
        assert number in page, number


def test_a_finding_cannot_inject_markup(written):
    assert "<b>mass</b>" not in written[2]
    assert "&lt;b&gt;mass&lt;/b&gt;" in written[2]


def test_the_json_holds_all_the_facts(written):
    facts, path, _ = written
    read = json.loads(path.with_suffix(".json").read_text())
    assert read["labels"] == facts["labels"]
    assert len(read["quarantine"]) == 23
    assert read["weights"]["ratio"]["positive"]["Finding_1"] == 0.875
    assert read.keys() == facts.keys()


def test_an_infinite_number_is_null_in_the_json(tmp_path):
    facts, _ = make()
    facts["pixels"]["before"][0]["deviation_of_nothing"] = np.inf
    text = explore_page.write(facts, {}, tmp_path).with_suffix(".json").read_text()
    read = json.loads(text, parse_constant=pytest.fail)
    assert read["pixels"]["before"][0]["deviation_of_nothing"] is None


def test_pairs_that_leak_come_first(written):
    text = written[2][written[2].index('<section id="duplicates"') :]
    assert text.index("train and test") < text.index("both train")


def test_only_the_wanted_images_are_shown(written, tmp_path):
    facts, images = make()
    ids = explore_page.wanted(facts)
    assert len(set(ids)) == len(ids) < len(images)
    asked = explore_page.write(
        facts, {id: images[id] for id in ids}, tmp_path
    ).read_text()
    assert asked.count("data:image/png") == written[2].count("data:image/png")
    fewer = {id: images[id] for id in ids[1:]}
    fewer = explore_page.write(facts, fewer, tmp_path).read_text()
    assert fewer.count("data:image/png") < asked.count("data:image/png")


def test_directions_are_words():
    sure, unsure = ({"estimate": 0.4, "low": 0.3, "high": h} for h in (0.45, 0.55))
    assert explore_page.direction("age", sure) == "younger"
    assert explore_page.direction("image size", sure) == "smaller images"
    assert explore_page.direction("view AP", sure) == "less in view AP"
    assert explore_page.direction(
        "age", {**sure, "estimate": 0.6, "low": 0.51, "high": 0.7}
    )
    assert explore_page.direction("age", unsure) == ""
    assert (
        explore_page.direction("age", {"estimate": None, "low": None, "high": None})
        == ""
    )


def test_too_few_patients_are_not_read_as_a_link(tmp_path):
    facts, _ = make(tasks=2)
    facts["labels"]["Finding_1"]["patients"] = 9
    for found in facts["confounders"].values():
        found["Finding_1"] = found[FINDINGS[0]]
    text = explore_page.write(facts, {}, tmp_path).read_text()
    rows = [r for r in text.split("<tr>") if "0.62 (0.55" in r]
    assert ["more in" in row for row in rows] == [True, False]


def test_there_is_no_chart_of_one_bar_and_no_empty_bin(tmp_path):
    facts, _ = make()
    facts["sex"] = {"F": 120}
    facts["age"]["images"] = {"F": np.array([0, 0, 0, 0, 7, 9, 0, 0, 0, 0, 0])}
    drawn = explore_page._charts(as_json(facts))
    assert drawn["images_a_patient"] is None and "sex" not in drawn
    assert [text for _, text in drawn["age"]["x"]] == ["40", "50"]
    page = Page(explore_page.write(facts, {}, tmp_path).read_text()).text
    for words in ("Images per patient: 3, of all", "Sex of all images: F."):
        assert words in page
    facts["age"]["images"] = {"F": np.array([0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0])}
    assert "age" not in explore_page._charts(as_json(facts))
    few, many = (
        appearance._spread(np.random.default_rng(0).random(n)) for n in (9, 9999)
    )
    assert (len(few["images"]), len(many["images"])) == (
        3,
        appearance.MAX_HISTOGRAM_BINS,
    )


def test_what_no_table_names_has_no_section(tmp_path):
    words = ("Age, view, sex", "Pixel spacing", "older patient", "one view or sex")
    for known in (True, False):
        path = explore_page.write(*make(known=known), tmp_path, str(known))
        page = Page(path.read_text()).text
        for text in words:
            assert (text in page) == known, text


def test_a_class_is_called_one(tmp_path):
    facts, images = make(task="multiclass")
    page = Page(explore_page.write(facts, images, tmp_path).read_text()).text
    assert "Every labelled image is of exactly one class." in page
    assert "occur together" not in page
    facts["findings_an_image"] = {"value": [0, 1, 2], "count": [4, 110, 6]}
    page = Page(explore_page.write(facts, images, tmp_path).read_text()).text
    assert "10 images are of no class or of several" in page


# -------------------------------------------------------------------- a browser


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A server of a folder: pages in frames, because windows have a least width."""
    folder = tmp_path_factory.mktemp("served")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, server.server_address[1]
        server.shutdown()


CASES = {
    "usual": {},
    "many": {"tasks": 40},
    "one": {"tasks": 1, "shape": (20, 24, 3)},
    "bare": {"task": "multiclass", "known": False},
    "volumes": {"shape": (5, 20, 24, 4)},
}


@pytest.mark.skipif(CHROMIUM is None, reason="needs the chromium browser")
def test_a_browser_shows_every_figure_at_any_width(frames, tmp_path):
    folder, port = frames
    for name, options in CASES.items():
        path = explore_page.write(*make(**options), folder, name)
        assert path.stat().st_size < 3e6
        path.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
    found = browse(folder, port, tmp_path)
    assert len(found) == 2 * len(CASES)
    for (name, width), seen in found.items():
        assert seen["inner"] == width
        assert seen["scroll"] <= width, f"{name} scrolls sideways at {width} pixels"
        assert len(seen["images"]) > 5
        assert all(wider == said for wider, said in seen["hints"]), name
        for natural, shown in seen["images"]:
            assert natural > 0 and 0 < shown <= width, name


def browse(folder, port, tmp_path):
    """Opens every page at 390 and at 1400 pixels; {(name, width): what was seen}.

    Fails where the browser reports an error or asks for anything but the pages.
    """
    frames = [(name, width) for name in CASES for width in (390, 1400)]
    tags = [
        f'<iframe src="{name}.html" style="border: 0; width: {width}px"></iframe>'
        for name, width in frames
    ]
    gather = """<script>addEventListener("load", () => document.body.append(
        "SEEN" + JSON.stringify([...document.querySelectorAll("iframe")].map(
        f => JSON.parse(f.contentDocument.body.dataset.probe))) + "END"))</script>"""
    icon = '<link rel="icon" href="data:,">'
    (folder / "index.html").write_text(
        f"<!doctype html><head>{icon}</head><body>{''.join(tags)}{gather}</body>"
    )
    log = tmp_path / "net.json"
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-sync"),
        *("--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"),
        *(f"--log-net-log={log}", "--enable-logging=stderr", "--dump-dom"),
        *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",),
        f"http://127.0.0.1:{port}/index.html",
    ]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120
    )
    assert not re.findall(r".*:CONSOLE.*", done.stderr), done.stderr
    here = f"http://127.0.0.1:{port}"
    events = [one.get("params", {}) for one in json.loads(log.read_text())["events"]]
    # What the browser asks for on its own account, its updates say, has no initiator.
    asked = {e["url"] for e in events if e.get("initiator") == here and "url" in e}
    pages = {f"{here}/{name}.html" for name in CASES}
    assert {url for url in asked if not url.startswith("data:")} == pages
    seen = json.loads(re.search(r"SEEN(\[.*\])END<", done.stdout)[1])
    return dict(zip(frames, seen, strict=True))

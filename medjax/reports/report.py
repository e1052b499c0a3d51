"""Writes the report of a run: one HTML page, JSON and CSV, for every kind of task."""

from pathlib import Path

from medjax.files import write_json
from medjax.reports import charts, classification, page, segmentation

WIDE_INTERVAL = 0.1  # Width of an interval from which on it is called wide.


def write(
    results: dict,
    curve: list[dict],
    folder: Path,
    name: str,
    *,
    recipe: dict,
    config: dict,
    environment: dict,
    pictures=None,
) -> Path:
    """Writes NAME.html, NAME.json and NAME.csv, and returns the page's path.

    Args:
      results: of `evaluation.results.summarise` or `evaluation.mask_metrics.summarise`,
        with what commands.evaluate and Task.measure add. The page has a section for
        each part of them that is there.
      curve: the lines of metrics.jsonl.
      recipe: how the run was trained, for the card.
      config: of the run, as JSON; environment: its environment.json.
      pictures: the films of classification.sections or the cases of
        segmentation.sections.
    """
    kind = _kind(results)
    kind.write_csv(results, folder / f"{name}.csv")
    path = page.write(
        folder / f"{name}.html",
        kind.TEMPLATE,
        results=results,
        **kind.sections(results, pictures),
        **card(results),
        training=charts.training(curve, results["checkpoint"]),
        recipe=recipe,
        environment=environment,
        settings={
            "Config": page.flat(config, "config."),
            "Environment": page.flat(environment),
        },
    )
    # The JSON is last: where it is, a run counts as finished.
    write_json(folder / f"{name}.json", results)
    return path


def exported(
    results: dict | None, facts: dict, *, recipe: dict, environment: dict
) -> str:
    """The README.md of an exported run, with its model card; see `write`.

    results: None for a run that hasn't been tested.
    facts: of task.json.
    """
    recipe = recipe | {"init": Path(recipe["init"]).name}  # No path of a machine.
    item = "class" if facts["exclusive"] else "finding"
    return page.render(
        "exported.md",
        results=results,
        facts=facts,
        recipe=recipe,
        environment=environment,
        item="region" if facts["kind"] == "segmentation" else item,
        **(card(results) if results else {}),
    )


def show(results: dict) -> None:
    """Prints the main numbers of a report."""
    _kind(results).show(results)


def _kind(results: dict):
    """The module with what is special in reports of this kind of task."""
    return segmentation if "regions" in results else classification


def card(results: dict) -> dict:
    """What card.html needs beside the results.

    main: the metric that matters most; ranked: [(task or region, its value)] from the
    lowest; weak: {start of a sentence: [names]} about numbers that say little; worst:
    the corruption with the largest drop of the AUROC and that drop, or None.
    """
    main = "dice" if "regions" in results else "auroc"
    metrics = results.get("regions") or {
        name: task["metrics"] for name, task in results["tasks"].items()
    }
    values = {name: row[main] for name, row in metrics.items()}
    ranked = [pair for pair in values.items() if pair[1]["estimate"] is not None]
    corruptions = (results.get("robustness") or {}).get("corruptions", {})
    drops = [
        (name, row["drop"])
        for name, corruption in corruptions.items()
        for row in corruption["severities"]
        if row["severity"] == 5 and (row["drop"]["low"] or 0) > 0
    ]
    return {
        "main": main,
        "ranked": sorted(ranked, key=lambda pair: pair[1]["estimate"]),
        "weak": _weak(values, page.label(main), results.get("tasks", {})),
        "worst": max(drops, key=lambda pair: pair[1]["estimate"], default=None),
    }


def _weak(values: dict, main: str, tasks: dict) -> dict[str, list[str]]:
    """Names the findings or regions that are rare, or whose numbers say little."""
    weak: dict[str, dict[str, list[str]]] = {}

    def add(why: str, name: str, note: str = "") -> None:
        notes = weak.setdefault(f"{why} for", {})
        notes.setdefault(f" ({note})" if note else "", []).append(page.label(name))

    for name, value in values.items():
        if value["estimate"] is None:
            add(f"{main} is undefined", name, value.get("why", ""))
        elif value["low"] is None:
            add(f"{main} has no interval", name, value.get("why", ""))
        elif value["high"] - value["low"] > WIDE_INTERVAL:
            add(f"The interval of {main} is wider than {WIDE_INTERVAL}", name)
        if main == "AUROC" and value["low"] is not None and value["low"] <= 0.5:
            add("AUROC may be no better than chance", name)
    for name, task in tasks.items():
        if 0 < task["positives"] < classification.FEW_IMAGES:
            few = page.count(task["positives"])
            add(
                f"Fewer than {classification.FEW_IMAGES} images are positive", name, few
            )
        calibration = task["calibration"]
        mean = (calibration["after"] or calibration["before"])["predicted"]
        prevalence = calibration["prevalence"]
        if None in (mean["estimate"], prevalence["low"]):
            continue
        if not prevalence["low"] <= mean["estimate"] <= prevalence["high"]:
            add("The mean probability is outside the prevalence's interval", name)
    return {
        why: [", ".join(names) + note for note, names in notes.items()]
        for why, notes in weak.items()
    }

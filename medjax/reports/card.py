"""The model card: what can be said of a run from its own results, and no more.

Source: the headings are those of Mitchell et al., Model Cards for Model Reporting
(FAT* 2019), figure 1.
"""

from medjax.reports.page import NAMES, count, interval, label

FEW = 30  # Positive images, below which a finding's numbers are said to be weak.
WIDE = 0.1  # Width of an AUROC's interval, from which on it is said to be wide.
SHOWN = 0.05  # p after Holm, below which a difference is shown.
SYNTHETIC = "phantom"
SEEN = {
    "train": (
        "The model was fitted to these images: the results are too good, and say nothing "
        "of others."
    ),
    "validation": (
        "The checkpoint, the thresholds and any calibration were chosen on these images: "
        "the results are too good."
    ),
}


def card(results: dict, config: dict | None, environment: dict | None) -> dict:
    """{heading: [sentence]}; what the run doesn't know is said to be unknown.

    Args:
      results: what `page.write` writes.
      config: of the run, as JSON; None where unknown.
      environment: its environment.json; None where unknown.
    """
    return {
        "Model details": _details(results, config or {}, environment or {}),
        "Intended use": [
            (
                f"Research on {_what(results, config)}. No clinical use has been tested "
                "here, and none is claimed: its output is no diagnosis."
            )
        ],
        "Factors": _factors(results),
        "Metrics": [
            (
                "AUROC and average precision by ranking; sensitivity, specificity, PPV, "
                "NPV, accuracy, F1 and likelihood ratios at one threshold a "
                f"{_one(results)}, chosen on validation ({results['chosen']}) and frozen."
            ),
            (
                f"Intervals are 95 %, of {count(results['replicates'])} bootstrap "
                "replicates over patients."
            ),
        ],
        "Evaluation data": [_evaluated(results)],
        "Training data": _trained(results, config or {}),
        "Quantitative analyses": _numbers(results),
        "Ethical considerations": _ethics(results),
        "Caveats and recommendations": caveats(results),
    }


def seen(split: str) -> str:
    """What of a run was chosen on a split, so that it flatters it; '' if nothing."""
    return SEEN.get(split, "")


def caveats(results: dict) -> list[str]:
    """What limits the numbers of this report, as far as they show it themselves."""
    found = [warning] if (warning := seen(results["split"])) else []
    if results["split_by"] == "image":
        found.append(
            "The split puts images of one patient on both sides: the results are too "
            "good."
        )
    leaks = results.get("cohort", {}).get("leaks", 0)
    if leaks:
        found.append(f"{count(leaks)} pairs of one picture are on two sides.")
    if results["source"] == SYNTHETIC:
        found.append("The films are synthetic: nothing follows for real patients.")
    if not results.get("external", False):
        found.append(
            "The images judged are of the data that the model was trained on: other "
            "hospitals, scanners and populations are not tested here."
        )
    if results["split"] == "target":
        found.append("The model was adapted to other images of these data, unlabelled.")
    found += _weak(results) + _miscalibrated(results) + _uneven(results)
    found.append(
        "One training run: the intervals say what other patients would do, not what "
        "another seed would."
    )
    return found


def _details(results: dict, config: dict, environment: dict) -> list[str]:
    found = [
        (
            f"{results['model']}, trained for {count(results['steps'])} steps; the "
            f"checkpoint of step {count(results['checkpoint'])} is judged."
        )
    ]
    if "transfer" in config:
        init = config["transfer"].get("init")
        found.append(f"Initial weights: {init or 'random'}.")
    if "loss" in config and "optim" in config:
        found.append(
            f"Loss: {config['loss'].get('name')}; optimiser: "
            f"{config['optim'].get('name')}; imbalance: {config.get('imbalance')}; "
            f"seed {config.get('seed')}."
        )
    if environment:
        versions = environment.get("versions", {})
        found.append(
            f"medjax at revision {_revision(environment)}, Python "
            f"{environment.get('python')}, jax {versions.get('jax')}."
        )
    return found


def _revision(environment: dict) -> str:
    found = (environment.get("revision") or "unknown")[:12]
    return found + (" with uncommitted changes" if environment.get("dirty") else "")


def _factors(results: dict) -> list[str]:
    found = []
    groups = results.get("subgroups") or {}
    if groups:
        found.append(f"Subgroups judged apart: {', '.join(groups)}.")
    else:
        found.append("No subgroup is judged apart.")
    whole = results.get("robustness")
    if whole:
        names = ", ".join(map(_within, whole["corruptions"]))
        found.append(f"Corruptions of the image: {names}.")
    else:
        found.append("No corruption of the image is tried.")
    return found


def _evaluated(results: dict) -> str:
    by = results["split_by"]
    of = "all images of other data" if by == "other" else f"split by {by}"
    return (
        f"{results['source']}, {results['split']}: {count(results['films'])} images of "
        f"{count(results['patients'])} patients, {of}."
    )


def _trained(results: dict, config: dict) -> list[str]:
    sides = results.get("cohort", {}).get("sides", {})
    source = config.get("data", {}).get("source", "unknown")
    if "train" not in sides:
        return [f"Source: {source}."]
    side = sides["train"]
    rare = {t: n["positives"] for t, n in side["tasks"].items()}
    fewest = min(rare, key=rare.get)
    return [
        (
            f"{source}: {count(side['films'])} images of {count(side['patients'])} "
            f"patients; fewest positives: {label(fewest)}, {count(rare[fewest])}."
        )
    ]


def _numbers(results: dict) -> list[str]:
    mean = results["mean"]
    found = [
        (
            f"Mean AUROC {interval(mean['auroc'])}, mean average precision "
            f"{interval(mean['average_precision'])}."
        )
    ]
    areas = {t: one["metrics"]["auroc"] for t, one in results["tasks"].items()}
    areas = {t: one for t, one in areas.items() if one["estimate"] is not None}
    if len(areas) > 1:
        order = sorted(areas, key=lambda task: areas[task]["estimate"])
        ends = (
            f"{what} {label(t)}, {interval(areas[t])}"
            for what, t in (("lowest", order[0]), ("highest", order[-1]))
        )
        found.append(f"AUROC: {'; '.join(ends)}.")
    if "localisation" in results:
        found.append(_heatmaps(results["localisation"]))
    return found


def _heatmaps(found: dict) -> str:
    """Where the heatmaps lie, beside what needs no model."""
    pointing, of = found["all"]["pointing"], found["stage"]
    return (
        f"Heatmaps ({label(found['method'])}{f' of {of}' if of else ''}): the maximum "
        f"lies in a box of the finding in {interval(pointing)} of "
        f"{count(found['all']['pairs'])}, by chance in {pointing['chance']:.3f}."
    )


def _ethics(results: dict) -> list[str]:
    if results["source"] == SYNTHETIC:
        return ["The films are synthetic and show no person."]
    return [
        (
            f"The run holds no record of consent, de-identification or licence of "
            f"{results['source']}: its own terms apply."
        ),
        "Whether the labels are right is not examined here.",
    ]


def _weak(results: dict) -> list[str]:
    """Findings of which there are too few, or whose numbers say little."""
    few, wide, chance, empty, unsure = [], [], [], [], []
    for task, one in results["tasks"].items():
        area, name = one["metrics"]["auroc"], label(task)
        if area["estimate"] is None:
            empty.append(f"{name} ({area['why']})")
            continue
        if one["positives"] < FEW:
            few.append(f"{name} ({count(one['positives'])})")
        if area["low"] is None:
            unsure.append(f"{name} ({area['why']})")
        if area["low"] is not None and area["high"] - area["low"] > WIDE:
            wide.append(name)
        if area["low"] is not None and area["low"] <= 0.5:
            chance.append(name)
    said = (
        (empty, "Without an AUROC: {}."),
        (unsure, "Without an interval of the AUROC: {}."),
        (few, f"Fewer than {FEW} positive images: {{}}."),
        (wide, f"AUROC intervals wider than {WIDE}: {{}}."),
        (chance, "AUROC not shown to be above chance: {}."),
    )
    return [text.format(", ".join(names)) for names, text in said if names]


def _miscalibrated(results: dict) -> list[str]:
    """Findings whose probabilities don't mean what they say."""
    whole = results.get("calibration")
    if not whole:
        return ["Calibration is not measured: read no probability as a risk."]
    off = []
    for task, one in results["tasks"].items():
        sides = one.get("calibration") or {}
        said = (sides.get("after") or sides.get("before") or {}).get("predicted")
        there = sides.get("prevalence")
        if not said or None in (said["estimate"], there["low"]):
            continue
        if not there["low"] <= said["estimate"] <= there["high"]:
            off.append(label(task))
    found = []
    if whole.get("method") == "none":
        found.append("The probabilities are the model's own, not calibrated.")
    if off:
        found.append(
            "The mean probability is outside the prevalence's interval: "
            f"{', '.join(off)}."
        )
    return found


def _uneven(results: dict) -> list[str]:
    """Groups that fare differently, and corruptions that hurt most."""
    found = []
    groups = results.get("subgroups")
    if groups is None:
        found.append("Differences between groups of patients are not measured.")
    for name, one in (groups or {}).items():
        tasks = sorted({gap["task"] for gap in one.get("shown", [])}, key=label)
        if tasks:
            names = ", ".join(label(task) for task in tasks)
            found.append(f"A metric differs between groups of {name}: {names}.")
    heatmaps = results.get("localisation")
    if heatmaps and not heatmaps["randomisation"]["depends"]:
        found.append("The heatmaps hardly depend on what the model has learnt.")
    whole = results.get("robustness")
    if not whole:
        found.append("Robustness to corrupted images is not measured.")
        return found
    drops = {
        name: row["drop"]
        for name, one in whole["corruptions"].items()
        for row in one["severities"]
        if row["severity"] == 5 and row["drop"]["estimate"] is not None
    }
    drops = {name: d for name, d in drops.items() if (d["low"] or 0) > 0}
    if drops:
        worst = max(drops, key=lambda name: drops[name]["estimate"])
        found.append(
            f"The mean AUROC falls most under {_within(worst)}: by "
            f"{interval(drops[worst])} at severity 5."
        )
    return found


def _within(name: str) -> str:
    """A name within a sentence."""
    return NAMES.get(name, label(name).lower())


def _what(results: dict, config: dict | None) -> str:
    names = [label(task) for task in results["tasks"]]
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" * (len(names) > 6))
    modality = (config or {}).get("modality")
    return listed + (
        f" in images of the modality {label(modality)}" if modality else ""
    )


def _one(results: dict) -> str:
    return "class" if "classes" in results else "finding"

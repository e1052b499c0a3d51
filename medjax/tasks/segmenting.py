"""The commands where the task is segmentation: train, evaluate, predict."""

import json
from pathlib import Path

import numpy as np
from rich.progress import Progress

from medjax import config as plain
from medjax.cohort import split as splits
from medjax.config import Config
from medjax.data import fingerprint, propose
from medjax.data import prepared as store
from medjax.data.volumes import Prepared
from medjax.errors import InputError
from medjax.evaluation import segmentation as measures
from medjax.reports import segmentation as reports_segmentation
from medjax.tasks import augmentation, fitting, masks, scans, segmenter, start
from medjax.tasks import parts as model
from medjax.training import folder as provenance
from medjax.training import folder as workdir
from medjax.training import journal, loop, step

SPACING = ("spacing_d", "spacing_h", "spacing_w")  # Columns of a table of volumes.
TASK = "segmentation"  # Of the configs whose commands these are.
PICTURED = 12  # Volumes with pictures on the page, the worst.


def prepare(config: Config) -> Prepared:
    """Makes the volumes of `config.data`, and says what became of the files."""
    prepared = scans.data(config)
    left_out = store.left_out(prepared.folder)
    count = f"{len(prepared.table)} volumes, {left_out} quarantined"
    print(f"prepared: {prepared.folder} ({count})")
    return prepared


def explore(config: Config, folder: Path) -> Path:
    """Writes fingerprint.json of `config.data`, prints it and what it proposes.

    It is of the scans as their files have them, but for their background: what
    `data.spacing` says can't speak for itself.
    """
    prepared = prepare(config)
    with Progress() as progress:
        found = fingerprint.measure(
            progress.track(
                scans.as_stored(config, prepared),
                total=len(prepared.table),
                description="look at the scans",
            ),
            sequences=prepared.sequences,
            regions=list(prepared.regions),
        )
    proposal = propose.propose(found)
    print("\n".join([*fingerprint.describe(found), *propose.describe(proposal)]))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fingerprint.json"
    both = {"data": found, "proposal": proposal}
    both = {name: fingerprint.as_json(part) for name, part in both.items()}
    path.write_text(json.dumps(both, indent=1))
    print(f"explored: {path}")
    return path


def train(config: Config, folder: Path) -> bool:
    """Trains, or goes on training, and reports the test side if there is one.

    Args:
      config: of the run.
      folder: the run's; holds everything that comes out.

    Returns:
      Whether the run is complete: not after SIGTERM, say, with everything saved.

    Raises:
      InputError: a mistake in the config or the data, or a diverged training.
    """
    prepared = prepare(config)
    workdir.claim(folder, plain.as_json(config))
    for caveat in augmentation.caveats(config):
        print(f"note: {caveat}")
    manifest = scans.manifest(config, prepared)
    provenance.hold(folder, prepared.folder, manifest)
    splits.write(manifest, folder / "splits.csv")
    meaning = {
        "sequences": prepared.sequences,
        "regions": prepared.regions,
        "spacing": prepared.table[list(SPACING)].median().tolist(),
    }
    (folder / "task.json").write_text(json.dumps(meaning, indent=2))
    sides = {
        side: scans.parts(prepared, manifest, side)
        for side in ("train", "validation", "test")
    }
    if config.evaluation.checkpoint == "best" and not sides["validation"]:
        raise InputError(
            f"evaluation.checkpoint='best': data.split={config.data.split!r} leaves "
            "nobody to validate: take 'last'"
        )
    print("volumes: " + ", ".join(f"{len(v)} {k}" for k, v in sides.items() if v))
    network = masks.network_of(config, prepared)
    fresh = model.fresh(config, network)
    begin = start.variables_start_segmentation(config, fresh, prepared)
    state = masks.initial_state(config, begin, len(prepared.regions))
    print(f"model: {fitting.counts(state.params, ())}")
    batches = scans.train_batches(config, prepared, list(sides["train"].values()))

    def validate(state: step.State) -> dict[str, float]:
        state = step.on_one_device(state)
        now = segmenter.Run(
            config, prepared.sequences, prepared.regions, network, 0, state
        )
        dice = [
            measures.dice(probability[..., k] >= 0.5, label[..., k] > 0)
            for _, probability, label, _ in segmenter.answers(
                now, prepared, sides["validation"]
            )
            for k in range(label.shape[-1])
        ]
        return {"dice": float(np.mean(dice))} if dice else {}

    with model.checkpoints(config, folder / "checkpoints") as checkpoints:
        complete = loop.fit(
            state,
            workdir=folder,
            step=masks.train_step(config, network),
            batches=batches,
            evaluate=validate,
            checkpoints=checkpoints,
            **plain.schedule(config),
        )
    batches.close()
    if not complete:
        return False
    run = segmenter.read(folder)
    segmenter.chosen(run, folder, prepared, sides["validation"])
    if sides["test"]:
        evaluate(folder)
    else:
        print("trained: nobody was left to test on; predict reads other patients")
    return True


def evaluate(folder: Path, *, split: str = "test", other: Config | None = None) -> dict:
    """Reports a run on one of its sides.

    Args:
      folder: of the run.
      split: 'test', 'validation' or 'train'; with other data, the report's name.
      other: a config whose volumes are judged as a whole instead.

    Returns:
      The results, see evaluation/segmentation.py; also written as `report.*` (for
      another side than test `report-<split>.*`).

    Raises:
      InputError: no run there, no such side, or nobody on it.
    """
    run = segmenter.read(folder)
    config, prepared = run.config, scans.data(run.config)
    if other is None and split not in splits.SPLITS:
        raise InputError(f"--split={split}: use one of {', '.join(splits.SPLITS)}")
    if other is not None and (split in splits.SPLITS or not split.isidentifier()):
        raise InputError(f"--split={split}: give the report on other data its own name")
    manifest = scans.check(config, prepared, folder)
    validation = scans.parts(prepared, manifest, "validation")
    posts = segmenter.chosen(run, folder, prepared, validation)
    if other is not None:
        prepared = _same_meaning(other, scans.data(other), run)
        manifest = prepared.table.assign(split=split)
    parts = scans.parts(prepared, manifest, split)
    if not parts:
        raise InputError(f"--split={split}: nobody is on that side of the run")
    rows, cases = [], []
    judged = segmenter.judged(run, prepared, parts, posts)
    with Progress() as progress:
        judged = progress.track(judged, len(parts), description="evaluate")
        for number, (case, found) in enumerate(judged):
            rows += found
            dice = np.mean([row["dice"] for row in found])
            cases.append((dice, number, case))
            cases = sorted(cases)[:PICTURED]  # No more than these stay in memory.
    summary = measures.summarise(rows, **plain.bootstrap(config))
    summary |= {
        "split": split,
        "checkpoint": run.step,
        "source": (other or config).data.source,
        "model": config.model.name,
        "steps": config.train.steps,
        "tolerance": config.evaluation.tolerance,
        "posts": dict(zip(run.regions, [p._asdict() for p in posts], strict=True)),
        "shown": run.sequences[0],
        "facts": _facts(config),
        "caveat": _caveat(config, split),
    }
    name = "report" if split == "test" else f"report-{split}"
    written = reports_segmentation.write(
        summary,
        [case for *_, case in cases],
        journal.read(folder / "metrics.jsonl"),
        folder,
        name,
    )
    reports_segmentation.show(summary)
    print(f"report: {written}")
    return summary


CAVEATS = {
    "halves": "Both hemispheres are of the same patients, so these numbers flatter.",
    "leave_one_out": "One patient was left out: the other folds belong to this result.",
}


RESAMPLED = (
    "Measured at voxels of {} mm, to which the radiologists' masks were resampled too: "
    "what they lost by it, small regions first, isn't counted."
)
SEEN = "The network was trained, or its masks' thresholds chosen, on these volumes."


def _caveat(config: Config, split: str) -> str:
    """Why the numbers flatter; '' for nothing known."""
    told = []
    if split == "test":
        told.append(CAVEATS.get(config.data.split, ""))
    elif split in splits.SPLITS:
        told.append(SEEN)
    spacing = tuple(config.data.get("spacing", ()))
    if spacing and config.data.source != scans.PHANTOM:  # It is drawn at its spacing.
        told.append(RESAMPLED.format(" x ".join(f"{mm:g}" for mm in spacing)))
    return " ".join(filter(None, told))


def _same_meaning(other: Config, prepared: Prepared, run: segmenter.Run) -> Prepared:
    """Other volumes, of which the run's network can make sense.

    Raises:
      InputError: other sequences or regions, or another spacing.
    """
    asked, own = (tuple(config.data.spacing) for config in (other, run.config))
    if asked != own:
        raise InputError(f"--config: data.spacing is {asked}, the run's {own}: set it")
    for what, theirs, own in (
        ("sequences", prepared.sequences, run.sequences),
        ("regions", tuple(prepared.regions), tuple(run.regions)),
    ):
        if theirs != own:
            raise InputError(
                f"--config: its {what} are {', '.join(theirs)}, the run's "
                f"{', '.join(own)}: name the same in data.{what}"
            )
    return prepared


def _facts(config: Config) -> dict[str, str]:
    """What the page says of the run."""
    size = " x ".join(map(str, config.patch.size))
    return {
        "split": config.data.split,
        "patch": size + (", slices as channels" if config.patch.slices else " voxels"),
        "loss": config.loss.name,
        "seed": str(config.seed),
    }


def predict(folder: Path, *, images: list[str], out: Path) -> list[str]:
    """Writes a run's masks and probabilities for patients' files.

    Args:
      folder: of a run.
      images: folders: a patient's, or of patients.
      out: folder that gets `<patient>_label.nii.gz` and `<patient>_prob.nii.gz`, on
        the grid of the patient's first sequence.

    Returns:
      One line for each patient who could not be read; they have no files.

    Raises:
      InputError: no run there, or no patient.
    """
    run = segmenter.read(folder)
    posts = segmenter.read_posts(folder, run.regions)
    people = scans.to_predict(run.config, images)
    stems = [segmenter.stem(one.name) for one in people]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise InputError(
            f"--images: two patients would be written as {twice[0]}_label.nii.gz: "
            "predict them into two folders"
        )
    out.mkdir(parents=True, exist_ok=True)
    unread = []
    with Progress() as progress:
        for one in progress.track(people, description="predict"):
            try:
                case = one.read()
            except InputError as error:
                unread.append(str(error))
                continue
            if strange := segmenter.strange(run, case):
                print(f"warning: {one.name}: {strange}")
            probability = masks.probability(
                run.config, run.network, run.state, case.image
            )
            segmenter.write(run, posts, one.name, case, probability, out)
    done = len(people) - len(unread)
    print(f"predictions: {out} ({done} patients, {len(unread)} unreadable)")
    return unread

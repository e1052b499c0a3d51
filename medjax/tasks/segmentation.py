"""Masks of scans: the functions behind the commands, see task.Task."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from rich.progress import track

from medjax.config import Config, flatten
from medjax.data import fingerprint, nifti, scan, volumes
from medjax.data.intensity_units import normalise
from medjax.data.scan import Scan
from medjax.errors import InputError
from medjax.evaluation import (
    bootstrap,
    ensemble,
    mask_metrics,
    means,
    sliding,
    subgroups,
)
from medjax.files import write_json, write_table
from medjax.reports.segmentation import PicturedVolume
from medjax.tasks import (
    comparison,
    exported,
    fixed,
    imbalance,
    parts,
    scans,
    splitting,
    voxel_floor,
)
from medjax.tasks.check import check_parts, check_ranges
from medjax.tasks.task import Finished, Task
from medjax.training import devices, step

PICTURED = 12  # Volumes with pictures on the page, the worst.
COARSER = 1.5  # Ratio of voxel sizes up to which new scans aren't warned of.
CAVEATS = {
    "halves": "Both hemispheres are of the same patients, so these numbers flatter.",
    "leave_one_out": "One patient was left out: the other folds belong to this result.",
}
RESAMPLED = (
    "Measured at voxels of {} mm, to which the radiologists' masks were resampled too: "
    "what they lost by it, small regions first, isn't counted."
)
NO_EMBEDDING = "masks have no embedding of the whole image to {}"
NOT_FOR_MASKS = {
    **dict.fromkeys(
        imbalance.REFITS, NO_EMBEDDING.format("refit a classifier: over-sample")
    ),
    "features": NO_EMBEDDING.format("fit a classifier to: use transfer.mode='head'"),
    "coral": NO_EMBEDDING.format("compare"),
    "dann": NO_EMBEDDING.format("compare"),
    "adabn": "a U-Net normalises each image by itself, without batch statistics",
}


class Answer(NamedTuple):
    """A volume and its prediction: all [D, H, W, ...], and the spacing [3] in mm.

    Of regions that exclude each other, probabilities are 1 for the likeliest, else 0.
    """

    image: np.ndarray
    probability: np.ndarray
    label: np.ndarray
    spacing: np.ndarray
    members: Sequence[np.ndarray] = ()  # Of an ensemble, each one's probability.


def check(config: Config, shards: int) -> None:
    """Refuses mistakes that can be seen before the scans are read."""
    check_ranges(config)
    scans.check_data(config)
    for field, value in (
        ("transfer.mode", config.transfer.mode),
        ("imbalance", config.imbalance),
        ("adapt.name", config.adapt.name),
    ):
        if value in NOT_FOR_MASKS:
            raise InputError(f"{field}={value!r}: {NOT_FOR_MASKS[value]}")
    if len(size := config.patch.size) != 3:
        raise InputError(f"patch.size={size}: give three sizes, along D, H and W")
    output = scans.expected(config)
    if config.patch.lesions and (config.patch.slices or len(output.names) > 1):
        raise InputError(
            f"patch.lesions={config.patch.lesions}: synthetic lesions are of one region, "
            "in volumes: set it to 0, or name one region and set patch.slices=False"
        )
    if output.exclusive and config.evaluation.threshold != 0.5:
        raise InputError(
            f"evaluation.threshold={config.evaluation.threshold}: with data.exclusive a "
            "voxel is of the likeliest region, whatever the threshold: leave it at 0.5"
        )
    network = parts.segmenter(config, output)
    sliding.check_windows(**_windows(config))
    jax.eval_shape(network.init, jax.random.key(0))  # Does the patch fit the network?
    check_parts(config, network, output, batch=shards * config.patch.each)


def explore(config: Config, data: scans.ScanData, folder: Path) -> Path:
    """Writes fingerprint.json of `config.data`, and prints it.

    It has what the scans look like, a proposal for them, copies, and the floor.

    It describes the scans as they are stored, but for their background: at the spacing
    of `data.spacing` they would only confirm it.
    """
    stored, total = scans.as_stored(config, data.prepared), len(data.prepared.table)
    measured = fingerprint.measure(
        track(stored, "look at the scans", total=total),
        sequences=data.output.sequences,
        regions=list(data.output.regions),
    )
    proposal = fingerprint.propose(measured)
    together = config.patch.each * jax.device_count() * config.train.accumulate
    batch = max(proposal.batch // together, 1) * together
    proposal = proposal._replace(batch=batch)
    print(*fingerprint.describe(measured), sep="\n")
    settings = flatten(config.to_dict())
    print(*fingerprint.describe_proposal(proposal, settings), sep="\n")
    names, pairs = data.table["image"], data.pairs()[["id", "other"]].to_numpy()
    copies = [[names[id] for id in pair] for pair in pairs]
    for first, second in copies:
        print(f"copies: {first} and {second} show the same image")
    try:
        floor = voxel_floor.floor(config, data, scans.split(config, data))
        print(voxel_floor.describe(floor))
    except InputError as error:  # Scans that can't be split can be looked at.
        floor = {}
        print(f"floor: none: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fingerprint.json"
    values = {"data": measured, "proposal": proposal, "copies": copies, "floor": floor}
    values = bootstrap.as_json(values)
    write_json(path, values)
    return path


def batches(
    config: Config, data: scans.ScanData, ids, target, *, on_host: bool = False
):
    """Whole volumes; the device draws their patches."""
    images = data.images(config.patch.size, ids)
    options = {"each": config.patch.each, "on_host": on_host}
    return splitting.train_batches(config, images, **options)


def probability(
    config: Config, network, state: step.Trained, image, channels=()
) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """The probability of a volume, as it was prepared: [D, H, W, C] -> [D, H, W, K].

    Of an ensemble it is the mean, and each member's comes beside it.
    """
    windows, image = _windows(config), normalise(image, channels)
    each = [
        sliding.volume_probability(network.predict, m.averaged, image, **windows)
        for m in step.members(state)
    ]
    return (sum(each) / len(each), each) if len(each) > 1 else (each[0], ())


def _windows(config: Config) -> dict[str, Any]:
    """The windows of a volume: how they lie, and how they are predicted."""
    size, slices = tuple(config.patch.size), config.patch.slices
    return {
        "patch": size[1:] if slices else size,
        "slices": size[0] if slices else 1,
        "overlap": config.evaluation.overlap,
        "flips": tuple(config.evaluation.flips),
        "batch": config.evaluation.batch,
    }


def answers(
    config: Config, network, state, data: scans.ScanData, ids
) -> Iterator[Answer]:
    """The predictions of these volumes, one after the other."""
    spacings = data.prepared.table.set_index("id")[[*volumes.SPACING_COLUMNS]]
    for part in data.parts(ids).values():
        image, label = volumes.read(data.path, part)
        spacing = spacings.loc[part.id].to_numpy(float)
        predicted, members = probability(
            config, network, state, image, data.output.channels
        )
        if data.output.exclusive:
            predicted, *members = map(mask_metrics.likeliest, (predicted, *members))
        yield Answer(image, predicted, np.asarray(label), spacing, members)


def validate(config, network, data: scans.ScanData, ids, state) -> dict[str, float]:
    """Mean Dice over volumes and regions; every host predicts a part of the volumes."""
    if not len(ids):
        return {}
    mine = ids[jax.process_index() :: jax.process_count()]
    dice = np.zeros((len(mine), len(data.output.names)), np.float32)
    for n, answer in enumerate(answers(config, network, state, data, mine)):
        mask, truth = answer.probability >= 0.5, answer.label > 0
        for k in range(dice.shape[1]):
            dice[n, k] = mask_metrics.dice(mask[..., k], truth[..., k])
    return {"dice": float(np.mean(devices.gather(dice, len(ids))))}


def fix(run: Finished, data: scans.ScanData, manifest: pd.DataFrame) -> Finished:
    """The run with its post-processing, chosen on validation where it is missing."""
    data = data._replace(output=run.output)
    held_out = run.held_out(manifest) if run.config.evaluation.choose else []

    def cases():
        for networks, ids in held_out:
            for answer in answers(run.config, run.network, networks, data, ids):
                yield answer.probability, answer.label, answer.spacing

    with devices.in_turn():  # The first process chooses, the others read it.
        which = run.folder, run.number, run.output.names
        threshold = run.config.evaluation.threshold
        posts = fixed.settle_posts(*which, cases, threshold)
    return run._replace(fixed=posts)


def read_fixed(run: Finished) -> Finished:
    """The run with its post-processing as it was chosen."""
    return run._replace(fixed=fixed.read_posts(run.folder, run.output.names))


def other(run: Finished, data: scans.ScanData) -> scans.ScanData:
    """Other data; refuses those of other sequences or regions."""
    for what in ("sequences", "regions"):
        theirs, ours = (tuple(getattr(o, what)) for o in (data.output, run.output))
        if theirs != ours:
            raise InputError(
                f"--config: its {what} are {', '.join(theirs)}, the run's "
                f"{', '.join(ours)}: name the same in data.{what}"
            )
    return data


def measure(
    run: Finished, data: scans.ScanData, manifest: pd.DataFrame, split: str
) -> tuple[dict, list[PicturedVolume]]:
    """Predicts a split and measures its masks; the worst volumes get pictures."""
    if not devices.first():
        return {}, []
    config, output = run.config, run.output
    data, ids = data._replace(output=output), splitting.ids_in(manifest, split)
    predicted = answers(config, run.network, run.state, data, ids)
    patients = dict(zip(data.table["image"], data.table["patient"].tolist()))
    rows, worst = [], []
    each = zip(data.parts(ids), predicted, _without_copies(run, data, ids))
    each = track(each, "evaluate", total=len(ids))
    for number, (name, answer, single) in enumerate(each):
        about = {"name": name, "patient": patients[name]}
        mask, measured = _measured(run, answer, single)
        rows += [about | row for row in measured]
        image = np.asarray(answer.image[..., 0], np.float32)
        case = PicturedVolume(name, image, answer.label, mask, answer.spacing)
        worst.append((np.mean([row["dice"] for row in measured]), number, case))
        worst = sorted(worst)[:PICTURED]  # No more than these stay in memory.
    options = parts.bootstrap(config)
    summary = mask_metrics.summarise(rows, **options)
    summary["groups"] = means.by_group(rows, groups(data.table, rows))
    if len(step.members(run.state)) > 1:
        gain = ensemble.gain_of_masks(rows, **options)
        summary["ensemble"] = {"members": len(step.members(run.state)), **gain}
    if config.evaluation.copies:
        summary["copies"] = ensemble.gain_of_masks(rows, "single_dice", **options)
    posts = [post._asdict() for post in run.fixed]
    summary |= {
        "tolerance": config.evaluation.tolerance,
        "posts": dict(zip(output.names, posts, strict=True)),
        "rules_chosen": fixed.posts_chosen(run.folder),
        "exclusive": output.exclusive,
        "shown": output.sequences[0],
        "facts": _facts(config, output),
        "caveat": caveat(config, split),
    }
    return summary, [case for *_, case in worst]


def _without_copies(
    run: Finished, data: scans.ScanData, ids
) -> Iterator[Answer | None]:
    """The answers without evaluation.copies, or None for each where there are none."""
    if not run.config.evaluation.copies:
        return itertools.repeat(None)
    config = run.config.copy_and_resolve_references()
    config.evaluation.copies = 0
    network = parts.segmenter(config, run.output)
    return answers(run.config, network, run.state, data, ids)


def _measured(
    run: Finished, answer: Answer, single: Answer | None
) -> tuple[np.ndarray, list[dict]]:
    """A volume's mask, and a row a region; `single`: without evaluation.copies."""
    alone = () if single is None else (single.probability,)
    mask, *members = (
        mask_metrics.masks(p, answer.spacing, run.fixed, run.output.apart)
        for p in (answer.probability, *answer.members, *alone)
    )
    plain = members.pop() if single is not None else None
    rows = []
    for k, region in enumerate(run.output.regions):
        ours, true = mask[..., k], answer.label[..., k]
        row = {"region": region} | mask_metrics.measure(
            ours, true, answer.spacing, tolerance=run.config.evaluation.tolerance
        )
        row |= ensemble.members_overlap(ours, true, [m[..., k] for m in members])
        if plain is not None:
            row["single_dice"] = mask_metrics.dice(plain[..., k], true > 0)
        rows.append(row)
    return mask, rows


def _facts(config: Config, output: scans.MasksOutput) -> dict[str, str]:
    """What the page says of how the run was trained."""
    size = " x ".join(map(str, config.patch.size))
    facts = {
        "split": config.data.split,
        "patch": size + (", slices as channels" if config.patch.slices else " voxels"),
        "loss": config.loss.name,
        "seed": str(config.seed),
    }
    if config.patch.lesions:
        share = 100 * config.patch.lesions
        facts["synthetic lesions"] = f"in {share:g} % of the patches"
    if "hounsfield" in output.units and not config.data.windows:
        each = zip(output.sequences, output.units, output.channels, strict=True)
        for name, unit, (_, low, high, *_) in each:
            facts[name] = f"{low:.4g} to {high:.4g}" if unit == "hounsfield" else unit
    return facts


def groups(table: pd.DataFrame, rows: list[dict]) -> pd.DataFrame:
    """{attribute: category} of each volume, by its name, where volumes differ in it."""
    table = table.set_index("image").loc[list(dict.fromkeys(r["name"] for r in rows))]
    columns = subgroups.by_metadata(table.assign(view="")).drop(columns="view")
    columns["size"] = means.by_size(rows)
    has = [name for name in table if name.startswith("has_")]
    complete = table[has].all(axis=1)
    columns["sequences"] = np.where(complete, "complete", "some missing")
    columns = columns.mask(columns.astype(object) == "")
    return columns.loc[:, columns.nunique() > 1]


def caveat(config: Config, split: str) -> str:
    """Says why the numbers are optimistic; '' if nothing is known to make them so."""
    reasons = []
    if split == "test":
        reasons.append(CAVEATS.get(config.data.split, ""))
    spacing = tuple(config.data.spacing)
    if spacing and config.data.source != scans.PHANTOM:  # It is drawn at its spacing.
        reasons.append(RESAMPLED.format(" x ".join(f"{mm:g}" for mm in spacing)))
    return " ".join(filter(None, reasons))


def predict(run: Finished, *, images: list[str], out: Path, **_: Any) -> list[str]:
    """Writes masks and probabilities of the patients in some folders.

    `out` gets `<patient>_label.nii.gz` and `<patient>_prob.nii.gz`, on the grid of the
    patient's first sequence; of an ensemble, disagreement.csv too.

    Raises:
      InputError: there is no patient, or two would have the same files.
    """
    if out.suffix == ".csv":
        raise InputError(f"{run.folder}: the run makes masks: give --out=DIR, a folder")
    patients = scans.to_predict(run.config, images)
    # A name may be a path below the folder.
    stems = [patient.name.replace("/", "_") for patient in patients]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise InputError(
            f"--images: two patients would be written as {twice[0]}_label.nii.gz: "
            "predict them into two folders"
        )
    out.mkdir(parents=True, exist_ok=True)
    unread, apart = [], []
    both = zip(patients, stems, strict=True)
    for patient, stem in track(both, "predict", total=len(patients)):
        try:
            case = patient.read()
        except InputError as error:
            unread.append(str(error))
            continue
        if warning := strange(run, case):
            print(f"warning: {patient.name}: {warning}")
        each = write_masks(run, case, out / stem)
        apart += [(patient.name, *row) for row in each.items()]
    if apart:
        columns = ["name", "region", "disagreement"]
        write_table(out / "disagreement.csv", pd.DataFrame(apart, columns=columns))
    done = len(patients) - len(unread)
    print(f"predictions: {out} ({done} patients, {len(unread)} unreadable)")
    return unread


def strange(run: Finished, case: Scan) -> str:
    """Says how a patient's voxels differ from the training volumes'; '' if not."""
    ratio = np.divide(case.spacing, run.output.spacing)
    if np.max(np.maximum(ratio, 1 / ratio)) <= COARSER:
        return ""
    theirs, ours = (
        " x ".join(f"{mm:.3g}" for mm in spacing)
        for spacing in (case.spacing, run.output.spacing)
    )
    return (
        f"voxels of {theirs} mm, and the run learnt from {ours}: its masks may be "
        "wrong; train with data.spacing set"
    )


def write_masks(run: Finished, case: Scan, path: Path) -> dict[str, float]:
    """Writes PATH_label.nii.gz and PATH_prob.nii.gz on the grid of the patient's file.

    The mask is made on the grid that the model saw: components are counted there.
    Returns {region: how far the members of an ensemble are apart}.
    """
    channels = run.output.channels
    predicted, members = probability(
        run.config, run.network, run.state, case.image, channels
    )
    mask, *others = (
        mask_metrics.masks(
            mask_metrics.likeliest(p) if run.output.exclusive else p,
            *(case.spacing, run.fixed, run.output.apart),
        )
        for p in (predicted, *members)
    )
    label = nifti.paint(scan.to_original(mask, case, order=0), run.output.regions)
    nifti.write(Path(f"{path}_label.nii.gz"), label, case.original, case.header)
    predicted = scan.to_original(predicted, case)
    nifti.write(Path(f"{path}_prob.nii.gz"), predicted, case.original, case.header)
    return {
        region: ensemble.disagreement(mask[..., k], [m[..., k] for m in others])
        for k, region in enumerate(run.output.regions)
        if others
    }


TASK = Task(
    unit="volumes",
    output=scans.MasksOutput,
    check=check,
    share=lambda config: config.train.batch // config.patch.each,
    data=scans.data,
    explore=explore,
    scaled=scans.scaled,
    split=scans.split,
    untested=scans.untested,
    audit=scans.audit,
    network=parts.segmenter,
    batches=batches,
    validate=validate,
    fix=fix,
    fixed=read_fixed,
    other=other,
    measure=measure,
    predict=predict,
    program=lambda run: exported.of_volumes(run, **_windows(run.config)),
    comparison=comparison.MASKS,
    refused={
        "--explain": "a mask shows itself where the finding is",
        "--localise": "measures heatmaps; the report measures the masks themselves",
        "--corrupt": "corrupts 2-D images of 8 bits, and scans have other artefacts",
        "--audit-augment": "compares AUROC, which masks have none of",
    },
)

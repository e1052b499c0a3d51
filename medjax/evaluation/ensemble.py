"""What an ensemble gains over its members, and how far these are apart."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medjax.evaluation import areas, bootstrap, discrimination, means, outlines
from medjax.evaluation.inference import Predictions


def gain(mean: Predictions, members: Sequence[Predictions], **draws) -> dict:
    """An ensemble against a single member on average, paired by image.

    The findings of all members are compared as if they were those of one model, so
    that the mean over them is the mean over members too, with its interval.

    Returns:
      members, their number; {one, other, difference: an Interval} of the mean AUROC and
      the mean average precision, as JSON. There is no interval if every finding has
      fewer than bootstrap.MIN_PATIENTS patients of either class.
    """
    number = len(members)
    both, label, weight = (
        np.tile(x, number) for x in (mean.ranking, mean.label, mean.weight)
    )
    alone = np.concatenate([member.ranking for member in members], axis=1)
    known = label, weight, mean.patient
    differences = discrimination.difference(both, alone, *known, **draws)
    hidden = {}
    if (discrimination.rarer_patients(*known) < bootstrap.MIN_PATIENTS).all():
        hidden = {"low": np.nan, "high": np.nan}
    pairs: dict = {"members": number}
    sides = (areas.of_images(score, label, weight) for score in (both, alone))
    for name, *each in zip(areas.AREAS, *sides, strict=True):
        one, other = (bootstrap.mean_of_defined(x, axis=0) for x in each)
        gap = differences[f"mean_{name}"]._replace(**hidden)
        pairs[name] = {"one": one, "other": other, "difference": gap}
    return bootstrap.as_json(pairs)


def members_overlap(
    mask: np.ndarray, label: np.ndarray, members: Sequence[np.ndarray]
) -> dict[str, float]:
    """One region of an ensemble's volume: its members' mean Dice, and `disagreement`;
    {} without members."""
    if not members:
        return {}
    truth = 1 - disagreement(label, members)
    return {"member_dice": truth, "disagreement": disagreement(mask, members)}


def disagreement(mask: np.ndarray, members: Sequence[np.ndarray]) -> float:
    """Measures disagreement: 1 minus the members' mean Dice with the ensemble's mask."""
    return 1 - float(np.mean([outlines.dice(m != 0, mask != 0) for m in members]))


def gain_of_masks(rows: Sequence[Mapping], other="member_dice", **draws) -> dict:
    """Compares the mean Dice with another one of the same volumes.

    rows: by volume and region: name, patient, dice, and `other`, by default an
      ensemble's member_dice, see `members_overlap`.
    """
    table = pd.DataFrame(list(rows)).assign(gain=lambda t: t["dice"] - t[other])
    volumes = table.groupby("name", sort=False)
    mean = volumes[["dice", other, "gain"]].mean()
    linear = means.over_rows(
        mean["gain"].to_numpy(), volumes["patient"].first().to_numpy()
    )
    difference = means.studentised(linear, **draws)
    difference = bootstrap.interval(
        difference, "", patients=int(linear.patients), replicates=draws["replicates"]
    )
    one, other = (float(mean[name].mean()) for name in ("dice", other))
    pair = {"one": one, "other": other, "difference": difference}
    return bootstrap.as_json({"dice": pair})

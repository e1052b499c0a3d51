"""Where a segmentation run's weights start, `config.transfer.init`."""

from pathlib import Path

import jax
import jax.numpy as jnp
from chex import ArrayTree

from medjax.build import plain, segmentation, start
from medjax.build.plain import Config
from medjax.data.volumes import Prepared
from medjax.errors import InputError
from medjax.training import workdir

HEADS_ALONE = "deep"  # The option of a U-Net that its other weights know nothing of.


def variables(config: Config, fresh: ArrayTree, prepared: Prepared) -> ArrayTree:
    """A U-Net's variables: the averaged ones of another run, if one is named.

    Its heads come along where it had the same regions.

    Args:
      config: of the run; an older one has no `transfer`.
      fresh: the variables to begin with where nothing is given.
      prepared: the volumes that the run is for.

    Raises:
      InputError: no run of segmentation is there, or one of another network.
    """
    transfer = config.get("transfer", {})
    if transfer.get("mode", "all") != "all":
        raise InputError(
            f"transfer.mode={transfer['mode']!r}: segmentation moves the whole network: "
            "use 'all'"
        )
    if not transfer.get("init", ""):
        return fresh
    folder = Path(transfer["init"]).expanduser()
    if not (folder / "config.json").exists():
        raise InputError(
            f"transfer.init={transfer['init']!r}: give the folder of a run of "
            "segmentation; other files hold classifiers"
        )
    old = plain.read_config(folder)
    if old.task != "segmentation":
        raise InputError(
            f"transfer.init={folder}: a classifier's run (task={old.task!r}): give one "
            "of segmentation"
        )
    _check_options(config, old, folder)
    meaning = workdir.read_task(folder)
    sequences, regions = tuple(meaning["sequences"]), tuple(meaning["regions"])
    network = segmentation.network(old, len(sequences), len(regions))
    place = folder / "checkpoints"
    _, state = segmentation.restore(old, place, network, len(regions))
    given = dict(state.averaged["params"])
    if sequences != tuple(prepared.sequences):
        now = ", ".join(prepared.sequences)
        print(f"note: {folder} was trained on {', '.join(sequences)}, not on {now}")
    same = regions == tuple(prepared.regions)
    for name in [name for name in given if name.startswith("head")]:
        if not same or name not in fresh["params"]:
            del given[name]
    if not same:
        print("head: starts anew, for its regions are other than the weights'")
    merged = {**fresh, "params": fresh["params"] | given}
    start.check(merged, fresh)
    return jax.tree.map(jnp.asarray, merged)


def _check_options(config: Config, old: Config, folder: Path) -> None:
    """Refuses another network, also where all shapes are the same: of `groups`, say."""
    asked = plain.as_json(config)["model"]
    for name, value in plain.as_json(old)["model"].items():
        if name != HEADS_ALONE and asked.get(name) != value:
            raise InputError(
                f"model.{name}={asked.get(name)!r}: the weights of {folder} go with "
                f"{value!r}: take that, or other weights"
            )

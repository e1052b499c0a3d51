"""The command `sweep`: runs what isn't finished, and writes the page of all."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medjax.commands import executors, plan, results
from medjax.commands.plan import Run
from medjax.commands.prepare import prepare
from medjax.config import Config
from medjax.errors import InputError
from medjax.reports import sweep as report
from medjax.tasks import population

EXECUTORS = ("local", "population", "slurm")


def sweep(
    config: Config,
    arms: Iterable[Mapping[str, Any]],
    folder: Path,
    *,
    executor: str = "local",
    baseline: str = "",
    slurm: Mapping[str, Any] | None = None,
) -> dict:
    """Trains every run that isn't finished, and compares them all.

    Args:
      config: what all runs have in common.
      arms: the overrides of each run, see `plan.runs`.
      folder: of the sweep; arms/<name>/ are ordinary runs, and beside them come
        sweep.html, sweep.json and sweep.csv. The same call goes on where it was:
        finished runs stay, stopped ones go on, failed ones are tried again.
      executor: 'local', 'population' or 'slurm', see executors.py.
      baseline: the arm that the others are compared with; '': the first.
      slurm: options of submitit's executor.

    Returns:
      What the page says, see `results.gather`.

    Raises:
      InputError: a mistake in the overrides or the data, before anything runs.
    """
    if config.task == "segmentation":
        raise InputError("task='segmentation': a sweep compares classifiers' AUROC")
    if executor not in EXECUTORS:
        raise InputError(f"--executor={executor}: use one of {', '.join(EXECUTORS)}")
    runs = plan.runs(config, arms)
    names = list(dict.fromkeys(run.arm for run in runs))
    if baseline and baseline not in names:
        raise InputError(f"--baseline={baseline}: use one of {', '.join(names)}")
    plan.claim(folder, config, runs)
    configs = {run.name: plan.configured(config, run.overrides) for run in runs}
    left = [
        run
        for run in runs
        if plan.error(run, folder) is not None
        or not plan.is_finished(run, folder, configs[run.name])
    ]
    done = len(runs) - len(left)
    print(f"sweep: {len(runs)} runs of {len(names)} arms, {done} of them finished")
    if executor == "population" and left:
        population.use_cores([configs[run.name] for run in left])
    _prepare([configs[run.name] for run in left], executor)
    number = done

    def say(run: Run) -> None:
        nonlocal number
        number += 1
        what = f"failed: {plan.error(run, folder)}"
        if plan.error(run, folder) is None:
            finished = plan.is_finished(run, folder, configs[run.name])
            auroc = results.mean_auroc(run, folder) if finished else None
            known = "undefined" if auroc is None else f"{auroc:.3f}"
            what = f"mean AUROC {known}" if finished else "stopped"
        print(f"{number}/{len(runs)} {run.name}: {what}", flush=True)

    if left:
        options = slurm or {} if executor == "slurm" else {}
        complete = getattr(executors, executor)(folder, left, say, **options)
        if not complete:
            print("stopped: the same command goes on from here")
    found = results.gather(folder, baseline=baseline)
    page = report.write(found, folder)
    report.show(found)
    print(f"sweep: {page}")
    return found


def _prepare(configs: list[Config], executor: str) -> None:
    """Makes each run's records before there are many who would, all at once.

    Runs one after the other, in processes of their own, draw their phantoms themselves:
    here that would take the accelerator, and hold it while they need it.
    """
    seen = []
    for config in configs:
        asked = config.data.to_dict(), config.task
        drawn = executor == "local" and config.data.source == "phantom"
        if asked not in seen and not drawn:
            seen.append(asked)
            prepare(config)

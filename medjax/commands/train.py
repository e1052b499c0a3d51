"""The command `train`: begin, fit, fix, evaluate."""

import contextlib
from pathlib import Path

from medjax import tasks
from medjax.commands.evaluate import EvaluatedImages, evaluate, fix
from medjax.config import Config
from medjax.errors import InputError
from medjax.files import held
from medjax.tasks import adapt, parts
from medjax.tasks.task import Run
from medjax.training import devices, loop, step


def train(config: Config, folder: Path, *, profile: str | None = None) -> bool:
    """Trains, or resumes training, and reports the test split if there is one.

    `profile` is a folder for a trace of ten steps. Returns whether the run is complete:
    not after SIGTERM, say, with everything saved.

    Raises:
      InputError: a mistake in the config or the data, or a diverged training.
    """
    task = tasks.of(config)
    if profile:
        steps = parts.schedule(config)["steps"] if parts.has_steps(config) else 0
        if steps < (last := step.PROFILED[-1]):
            raise InputError(f"--profile: needs {last} steps, and there are {steps}")
    if rows := task.share(config):
        devices.use_cores(rows)
    with held(folder) if devices.first() else contextlib.nullcontext():
        run = task.begin(config, folder)
        if run.has_steps and not fit(run, profile):
            return False
        finish(run)
        return True


def fit(run: Run, profile: str | None = None) -> bool:
    """Trains step by step; whether the last step is done."""
    update = step.update_members(step.compile_step(**run.step_parts))
    tracing = (
        step.profiled(update, profile) if profile else contextlib.nullcontext(update)
    )
    with (
        run.checkpoints as checkpoints,
        contextlib.closing(run.batches()) as batches,
        tracing as update,
    ):
        return loop.fit(
            run.state,
            workdir=run.folder,
            step=update,
            batches=batches,
            evaluate=run.validate,
            checkpoints=checkpoints,
            **parts.schedule(run.config),
        )


def finish(run: Run) -> None:
    """Refits, chooses on validation, and reports: what follows the last step."""
    tasks.of(run.config).refit(run)
    if (run.manifest["split"] == "test").any():
        evaluate(run.folder)
    else:
        fix(run.folder)
        print("trained: nobody was left to test on; predict reads other patients")
    if run.target is not None:
        evaluate(run.folder, EvaluatedImages(adapt.SPLIT))
    devices.wait("for the report")

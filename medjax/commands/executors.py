"""How the runs of a sweep are executed: one after the other, as one program, by SLURM.

Each executor takes the sweep's folder and the runs that aren't finished, and returns
whether it came to its end: False after SIGTERM or Ctrl-C. What a run came to is in its
folder.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medjax.commands import plan, running
from medjax.commands.plan import Run
from medjax.errors import InputError
from medjax.tasks import population as populating
from medjax.training.loop import stop_signal

CODE = Path(__file__).parents[2]  # Where `import medjax` finds it.
POLL = 0.2  # Seconds between two looks at a process.
# Options of submitit: those that start a job several times, and those of its executor.
SEVERAL = (
    *("nodes", "tasks_per_node"),
    *("slurm_nodes", "slurm_tasks_per_node", "slurm_ntasks_per_node"),
)
FIRST = ("slurm_max_num_timeout",)
HOURS = 12  # Of a SLURM job, where nothing else is asked for.


def local(sweep: Path, runs: list[Run], say: Callable[[Run], None]) -> bool:
    """One after the other, each in a process of its own.

    A process more costs its imports, some seconds. In return a crash ends one run, its
    memory goes back to the machine, and its peak is its own; what was compiled for one
    run the next takes from the compilation cache.

    Args:
      say: called with every run that came to an end.
    """
    environment = os.environ | {"PYTHONPATH": _path()}
    with stop_signal() as stop:
        for run in runs:
            folder = run.folder(sweep)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.txt").open("a") as log:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "medjax.commands.running",
                        sweep,
                        run.name,
                    ],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us: we tell it once.
                )
                while process.poll() is None and not stop():
                    time.sleep(POLL)
                process.stdin.close()  # The signal for its end, if it still runs.
                code = process.wait()
            if stop():
                return False
            if code and not _has_ended(run, sweep):
                said = (folder / "log.txt").read_text()
                plan.write_error(folder, _crash(code), said[-4000:])
            say(run)
    return True


def population(sweep: Path, runs: list[Run], say: Callable[[Run], None]) -> bool:
    """Runs that differ in numbers alone train in one compiled program, here."""
    config, _ = plan.read(sweep)
    configs = [plan.configured(config, run.overrides) for run in runs]
    folders = [run.folder(sweep) for run in runs]
    outcomes = populating.train(configs, folders)
    for run, outcome in zip(runs, outcomes, strict=True):
        (run.folder(sweep) / "error.txt").unlink(missing_ok=True)
        if outcome.error is not None:
            plan.write_error(run.folder(sweep), outcome.error, outcome.details)
        if outcome.finished or outcome.error is not None:
            say(run)
    return all(outcome.finished or outcome.error is not None for outcome in outcomes)


def slurm(
    sweep: Path, runs: list[Run], say: Callable[[Run], None], **options: Any
) -> bool:
    """An array of jobs; waits for them.

    A job that is pre-empted, or runs into its time limit, saves and is queued again.
    When this process ends the jobs go on: the same command finds them again.

    Args:
      options: of submitit's executor: slurm_partition, timeout_min, gpus_per_node,
        mem_gb, slurm_array_parallelism, ...; cluster='local' runs the jobs here.

    Raises:
      InputError: no submitit, no SLURM, or an option that submitit doesn't know, or
        that asks for several processes a run.
    """
    submitit = _submitit()
    cluster = options.pop("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise InputError(f"--slurm=cluster={cluster}: use slurm or local")
    for name in SEVERAL:
        if options.get(name, 1) != 1:
            raise InputError(
                f"--slurm={name}={options[name]}: a run of a sweep is one process: leave "
                "it out, and ask for several cards by gpus_per_node"
            )
    if cluster == "slurm" and not shutil.which("sbatch"):
        raise InputError(
            "--executor=slurm: no sbatch here: run this on a SLURM cluster's login node, "
            "or take --executor=local"
        )
    folder = sweep / "slurm"
    kind = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[cluster]
    jobs = {}
    for name, number in _jobs(folder).items():
        job = kind(folder=folder, job_id=number)
        if not job.done():
            jobs[name] = job
    waiting = [run for run in runs if run.name not in jobs]
    if waiting:
        defaults = {"name": "medjax", "timeout_min": 60 * HOURS}
        # These it takes when it is made, all others later.
        first = {name: options.pop(name) for name in FIRST if name in options}
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **first)
            executor.update_parameters(**defaults | options)
        except (NameError, TypeError, ValueError) as error:
            raise InputError(f"--slurm: {' '.join(str(error).split())}") from None
        with submitit.helpers.environment_variables(PYTHONPATH=_path()):
            names = [run.name for run in waiting]
            sent = executor.map_array(
                Job(), [str(sweep.absolute())] * len(names), names
            )
        jobs |= dict(zip(names, sent, strict=True))
    (folder / "jobs.json").write_text(
        json.dumps({k: j.job_id for k, j in jobs.items()})
    )
    print(f"slurm: {len(waiting)} jobs sent, {len(runs) - len(waiting)} on their way")
    left = {run.name: run for run in runs}
    with stop_signal() as stop:
        while left and not stop():
            for name in [name for name in left if jobs[name].done()]:
                run, job = left.pop(name), jobs[name]
                _check(run, sweep, job)
                say(run)
            time.sleep(1.0)
    if left:
        print(f"stopped: {len(left)} jobs go on; the same command waits for them")
    return not left


class Job:
    """A run as submitit calls it; queued again where it was stopped."""

    def __call__(self, sweep: str, name: str) -> None:
        outcome = running.run(Path(sweep), name)
        if not outcome.finished and outcome.error is None:
            # Training took the signal, to save first: now it is submitit's turn.
            signal.raise_signal(signal.SIGUSR2)

    def checkpoint(self, *arguments: str) -> Any:
        """What submitit puts into the queue: the same again, which goes on."""
        return _submitit().helpers.DelayedSubmission(self, *arguments)


def _check(run: Run, sweep: Path, job: Any) -> None:
    """Writes error.txt for a job that ended without a word."""
    if _has_ended(run, sweep):
        return
    line = f"job {job.job_id} ended without a report ({job.state})"
    plan.write_error(run.folder(sweep), line, f"See {job.paths.stderr}")


def _has_ended(run: Run, sweep: Path) -> bool:
    """Whether the run is finished or says what is wrong, however its process ended."""
    config, _ = plan.read(sweep)
    config = plan.configured(config, run.overrides)
    return plan.is_finished(run, sweep, config) or plan.error(run, sweep) is not None


def _jobs(folder: Path) -> dict[str, str]:
    path = folder / "jobs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise InputError(
            "--executor=slurm needs submitit: pip install -e '.[slurm]'"
        ) from None
    return submitit


def _path() -> str:
    """PYTHONPATH for a process that imports this medjax."""
    return os.pathsep.join([str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])])


def _crash(code: int) -> str:
    """What an exit code of a process without a word means."""
    if code == -signal.SIGKILL:
        return "killed: the machine may have run out of memory"
    if code < 0:
        return f"crashed: {signal.Signals(-code).name}"
    return f"ended with exit code {code}: see log.txt"

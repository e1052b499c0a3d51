"""How the runs of a sweep are executed: one after the other, as one program, by SLURM.

Each executor takes the sweep's folder, the runs that aren't finished, and a function
that is called with each run that ended. It returns whether it came to its end: False
after SIGTERM or Ctrl-C. The results of a run are in its folder.
`python -m medjax.commands.executors train SWEEP NAME` is one run in a process of its own,
and `prepare SWEEP NAME...` makes the records of runs.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medjax import tasks
from medjax.commands import arms, train, train_population
from medjax.commands.arms import SweepRun
from medjax.errors import InputError, check_choice
from medjax.files import write_text
from medjax.training import devices
from medjax.training.loop import stop_signal
from medjax.training.population import Outcome, failed

POLL = 0.2  # Seconds between two looks at a process.
# Options of submitit that start a job several times.
SEVERAL = (
    *("nodes", "tasks_per_node"),
    *("slurm_nodes", "slurm_tasks_per_node", "slurm_ntasks_per_node"),
)
FIRST = ("slurm_max_num_timeout",)  # Options that submitit's executor is made with.
HOURS = 12  # The time limit of a SLURM job without timeout_min.


def prepare(sweep: Path, names: list[str], *, here: bool) -> None:
    """Makes the records of these runs before several runs would make them at once.

    Unless `here`, it is done by a process of its own: it may compute on an accelerator,
    which a process holds to its end, and the runs need.

    Raises:
      InputError: a mistake in their data.
    """
    if here or not names:
        return _prepare(sweep, names)
    with _process("prepare", sweep, *names, stdout=subprocess.PIPE) as process:
        error = process.stdout.read().decode()
    if process.returncode:
        raise InputError(error or f"the preparation {_crash(process.returncode)}")


def _prepare(sweep: Path, names: list[str]) -> None:
    config, runs = arms.read(sweep)
    for run in runs:
        if run.name in names:
            configured = arms.configured(config, run.overrides)
            tasks.of(configured).prepare(configured)


def local(
    sweep: Path, runs: list[SweepRun], report: Callable[[SweepRun], None]
) -> bool:
    """Runs one after the other, each in a process of its own.

    A process costs the seconds of its imports. In return a crash ends one run, its
    memory goes back to the machine, and its peak is measured alone. Compiled programs
    are shared through the compilation cache.
    """
    with stop_signal() as stop:
        for run in runs:
            folder = run.folder(sweep)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.txt").open("a") as log:
                process = _process(
                    *("train", sweep, run.name),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us: we pass it on once.
                )
                while process.poll() is None and not stop():
                    time.sleep(POLL)
                process.stdin.close()  # The signal for its end, if it still runs.
                code = process.wait()
            if stop():
                return False
            if code and not _has_ended(run, sweep):
                output = (folder / "log.txt").read_text()
                arms.write_error(folder, f"{_crash(code)}: see log.txt", output[-4000:])
            report(run)
    return True


def population(
    sweep: Path, runs: list[SweepRun], report: Callable[[SweepRun], None]
) -> bool:
    """Runs that differ in numbers alone train as one compiled program, here."""
    config, _ = arms.read(sweep)
    configs = [arms.configured(config, run.overrides) for run in runs]
    outcomes = train_population.train_arms(configs, [run.folder(sweep) for run in runs])
    complete = True
    for run, outcome in zip(runs, outcomes, strict=True):
        (run.folder(sweep) / "error.txt").unlink(missing_ok=True)
        if outcome.error is not None:
            arms.write_error(run.folder(sweep), outcome.error, outcome.details)
        elif not outcome.finished:
            complete = False
            continue
        report(run)
    return complete


def slurm(
    sweep: Path,
    runs: list[SweepRun],
    report: Callable[[SweepRun], None],
    **options: Any,
) -> bool:
    """An array of SLURM jobs; waits for them.

    A job that is pre-empted or reaches its time limit saves and is queued again. When
    this process ends, the jobs go on: the same command finds them again.

    `options` are submitit's: slurm_partition, timeout_min, gpus_per_node, mem_gb,
    slurm_array_parallelism, ...; cluster='local' runs the jobs here.
    """
    submitit = _submitit()
    cluster = options.pop("cluster", "slurm")
    check_choice("--slurm=cluster", cluster, ("slurm", "local"))
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
    path = folder / "jobs.json"
    sent = json.loads(path.read_text()) if path.exists() else {}
    jobs = {name: kind(folder=folder, job_id=number) for name, number in sent.items()}
    jobs = {name: job for name, job in jobs.items() if not job.done()}
    waiting = [run.name for run in runs if run.name not in jobs]
    if waiting:
        defaults = {"name": "medjax", "timeout_min": 60 * HOURS}
        first = {name: options.pop(name) for name in FIRST if name in options}
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **first)
            executor.update_parameters(**defaults | options)
        except (NameError, TypeError, ValueError) as error:
            raise InputError(f"--slurm: {' '.join(str(error).split())}") from None
        with submitit.helpers.environment_variables(PYTHONPATH=_path()):
            folders = [str(sweep.absolute())] * len(waiting)
            new = executor.map_array(Job(), folders, waiting)
        jobs |= dict(zip(waiting, new, strict=True))
    write_text(path, json.dumps({name: job.job_id for name, job in jobs.items()}))
    print(f"slurm: {len(waiting)} jobs sent, {len(runs) - len(waiting)} on their way")
    left = list(runs)
    with stop_signal() as stop:
        while left and not stop():
            for run in [run for run in left if jobs[run.name].done()]:
                left.remove(run)
                if not _has_ended(run, sweep):
                    job = jobs[run.name]
                    line = f"job {job.job_id} ended without a report ({job.state})"
                    details = f"See {job.paths.stderr}"
                    arms.write_error(run.folder(sweep), line, details)
                report(run)
            time.sleep(1.0)
    if left:
        print(f"stopped: {len(left)} jobs go on; the same command waits for them")
    return not left


class Job:
    """A run as submitit calls it; queued again if it is stopped."""

    def __call__(self, sweep: str, name: str) -> None:
        outcome = train_run(Path(sweep), name)
        if not outcome.finished and outcome.error is None:
            # Training took the signal, to save first: now submitit gets it.
            signal.raise_signal(signal.SIGUSR2)

    def checkpoint(self, *arguments: str) -> Any:
        """What submitit puts into the queue: the same call, which resumes the run."""
        return _submitit().helpers.DelayedSubmission(self, *arguments)


def train_run(sweep: Path, name: str) -> Outcome:
    """Trains or resumes one run in this process; an error also goes to error.txt."""
    devices.keep()
    config, runs = arms.read(sweep)
    (run,) = (run for run in runs if run.name == name)
    config, folder = arms.configured(config, run.overrides), run.folder(sweep)
    (folder / "error.txt").unlink(missing_ok=True)  # Of an earlier attempt.
    try:
        train.train(config, folder)
    except Exception as error:  # noqa: BLE001 A bug of one arm must not stop the rest.
        outcome = failed(error)
        arms.write_error(folder, outcome.error, outcome.details)
    return Outcome(arms.is_finished(run, sweep), arms.error(run, sweep))


def _has_ended(run: SweepRun, sweep: Path) -> bool:
    """Whether the run is finished or has an error, however its process ended."""
    return arms.is_finished(run, sweep) or arms.error(run, sweep) is not None


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
    code = str(Path(__file__).parents[2])
    return os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])


def _process(*arguments: Any, **streams: Any) -> subprocess.Popen:
    """This module as a process of its own, which ends with this one at the latest."""
    return subprocess.Popen(
        [sys.executable, "-m", "medjax.commands.executors", *arguments],
        env=os.environ | {"PYTHONPATH": _path()},
        stdin=subprocess.PIPE,
        **streams,
    )


def _crash(code: int) -> str:
    """Explains the exit code of a process that left no message."""
    if code == -signal.SIGKILL:
        return "killed: the machine may have run out of memory"
    if code < 0:
        return f"crashed: {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _end_with_parent() -> None:
    """Stops this process, as SIGTERM does, when its standard input is closed.

    The sweep holds the other end, so no run outlives the sweep or its crash.
    """

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _main(command: str, sweep: str, *names: str) -> None:
    _end_with_parent()
    if command == "train":
        train_run(Path(sweep), *names)
        return
    devices.keep()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _prepare(Path(sweep), [*names])
    except InputError as error:
        sys.stdout.write(str(error))
        sys.exit(2)


if __name__ == "__main__":
    _main(*sys.argv[1:])

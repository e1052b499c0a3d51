"""One run of a sweep, in a process of its own: `python -m medjax.sweeping.running`."""

import os
import signal
import sys
import threading
from pathlib import Path

from medjax.commands import plan, train
from medjax.training import devices
from medjax.training.population import Outcome, failed


def run(sweep: Path, name: str) -> Outcome:
    """Trains a run, or goes on with it; what is wrong is in error.txt as well.

    Args:
      sweep: the folder that `plan.claim` wrote.
      name: of the run.
    """
    config, found = plan.read(sweep)
    one = next(each for each in found if each.name == name)
    config, folder = plan.configured(config, one.overrides), one.folder(sweep)
    (folder / "error.txt").unlink(missing_ok=True)  # Of an earlier attempt.
    try:
        train.train(config, folder)
    except Exception as error:  # noqa: BLE001 A bug of one arm must not stop the rest.
        outcome = failed(error)
        plan.write_error(folder, outcome.error, outcome.details)
    return Outcome(plan.is_finished(one, sweep, config), plan.error(one, sweep))


def end_with_parent() -> None:
    """Stops this process, as SIGTERM does, when its standard input is closed.

    The sweep holds the other end: a run outlives neither its end nor its crash.
    """

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    devices.keep()
    run(Path(sys.argv[1]), sys.argv[2])

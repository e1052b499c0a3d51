"""The command `evaluate --against`: two runs on the same test patients, paired."""

from pathlib import Path

from medjax import tasks
from medjax.config import read_config
from medjax.reports import compare as report
from medjax.tasks import compare as comparison
from medjax.tasks import parts


def compare(folder: Path, other: Path, *, split: str = "test") -> Path:
    """Writes against.html and against.json of a run, and returns the page.

    Args:
      folder: of the run in question; the page is written there.
      other: of the run that it is compared with.
      split: that both were evaluated on.

    Raises:
      InputError: a run wasn't evaluated on it, or the two differ in their findings,
        images, patients or truth: then the difference is not the models' alone.
    """
    runs = (folder, other)
    configs = [read_config(run) for run in runs]
    kinds = [tasks.of(config).comparison for config in configs]
    names, tables = comparison.read(runs, kinds, split)
    how, abouts = kinds[0], [parts.about(config) for config in configs]
    comparison.check(*tables, names, runs, how)
    summary = {
        "split": split,
        "source": abouts[0]["source"],
        "runs": [
            {
                "folder": str(run),
                **{name: about[name] for name in ("model", "imbalance")},
            }
            for run, about in zip(runs, abouts, strict=True)
        ],
        "primary": how.primary,
        **how.pair(*tables, names, **parts.bootstrap(configs[0])),
    }
    page = report.write_pair(summary, folder)
    report.show_pair(summary)
    print(f"against: {page}")
    return page

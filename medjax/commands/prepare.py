"""The command `prepare`: raw files -> records."""

from typing import Any

from medjax import tasks
from medjax.config import Config


def prepare(config: Config) -> Any:
    """Makes the records of `config.data`, and says what became of the files.

    Raises:
      InputError: the raw files aren't there, or too many can't be read.
    """
    return tasks.of(config).prepare(config)

"""A run's config.json as a config file: `--config=RUN/config.json` comes here.

ml_collections loads Python files only, and gives what follows a colon to get_config:
`--config=medjax/tasks/saved.py:RUN/config.json`, as launch.py writes it.
"""

import json
from pathlib import Path

from medjax import config


def get_config(path: str) -> config.Config:
    """The config that a run wrote down.

    Raises:
      OSError: the file isn't there, or is no config; launch.py says it in one line.
    """
    try:
        found = json.loads(Path(path).read_text())
    except ValueError as error:
        raise OSError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict) or "data" not in found:
        raise OSError(f"{path}: not the config.json of a run")
    return config.of_json(found)

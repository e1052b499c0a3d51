"""The command `convert`: weights of torchvision, timm or Keras -> a checkpoint"""

from pathlib import Path

import numpy as np

from medjax.errors import some
from medjax.models import weights
from medjax.models.weights.conversion import closest_table, family_of
from medjax.tasks import start


def convert(source: Path, name: str, out: Path, *, channels: int) -> None:
    """Writes a file of weights as a checkpoint that transfer.init can name.

    Args:
      source: .safetensors, .h5, .keras, .pth or .pt; 'imagenet': the weights that
        transfer.init=imagenet takes.
      name: of the architecture, as in model.name.
      out: a new folder.
      channels: of the images that the model is for.

    Raises:
      InputError: the file is damaged, hostile or of another network.
    """
    if source == Path("imagenet"):
        source = weights.fetch(name)
    card = start.write_converted(source, name, out, channels=channels)
    arrays = f"{sum(card['rules'].values())} arrays"
    left = f", {len(card['dropped'])} left out" if card["dropped"] else ""
    print(f"converted: {out} ({arrays}{left}; see card.json)")
    if card["findings"]:
        print(f"its outputs are torchxrayvision's: {', '.join(card['findings'])}")


def describe(source: Path) -> None:
    """Prints what a file of weights holds, and which networks it fits.

    Raises:
      InputError: the file is damaged or hostile.
    """
    arrays = weights.read(source)
    table = closest_table(arrays, source)
    names = {name: _printable(name) for name in arrays}
    width = max(map(len, names.values()))
    for name, array in arrays.items():
        shape = " x ".join(map(str, array.shape)) or "number"
        print(f"{names[name]:{width}}  {shape:20}  {array.dtype}")
    framework = "keras" if all("/" in name for name in arrays) else "torch"
    kind = f"a {table.family} of {table.framework}" if table else framework
    numbers = sum(np.size(array) for array in arrays.values())
    print(f"{source}: {kind}, {len(arrays)} arrays of {numbers:,} numbers")
    if table is None:
        kind = family_of(arrays)
        why = f"it is {kind}" if kind else "its names are others"
        print(f"fits no network of medjax: {why}")
        return
    misfits = start.fits(arrays, table)
    models = [model for model, misfit in misfits.items() if not any(misfit)]
    for model in models:
        command = f"convert --source={source} --model={model} --out=DIR"
        print(f"fits {model}: python launch.py {command}")
    if not models:
        model, (missing, surplus) = next(iter(misfits.items()))
        texts = {"it lacks": missing, "has no place for": surplus}
        texts = [
            f"{text} {some([*map(_printable, part)])}"
            for text, part in texts.items()
            if part
        ]
        print(f"nearest to {model}: {', and '.join(texts)}")


def _printable(name: str) -> str:
    """Escapes control characters in a name of an untrusted file."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name)[:200]

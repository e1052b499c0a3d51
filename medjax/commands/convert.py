"""The command `convert`: weights of torchvision, timm or Keras -> a checkpoint."""

from pathlib import Path

from medjax.models import weights
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

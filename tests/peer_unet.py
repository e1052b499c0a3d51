"""The peer of bench_masks.py: what an afternoon with MONAI gives, in some eighty lines.

    python tests/peer_unet.py --file=FOLD.npz [--steps=1200] [--seed=0]

Trains MONAI's U-Net (widths 16 to 128, two residual units, instance normalisation) by
softmax with Dice and cross-entropy. FOLD.npz has `image_<split>_<n>` [D, H, W, C]
float32, standardised, and `label_train_<n>` [D, H, W], 0 for the background; into
FOLD.npz.masks.npz go `mask_<n>` [D, H, W] of the test volumes, and the `seconds` of the
training. Needs torch, MONAI and NumPy alone, in an environment of its own.
"""

import argparse
import itertools
import time

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

WIDTHS, RATE, DECAY, BATCH = (16, 32, 64, 128), 2e-3, 1e-2, 4
DIVISOR = 2 ** (len(WIDTHS) - 1)  # Of the sides that the network takes.


def padded(x: np.ndarray, side: tuple[int, ...]) -> np.ndarray:
    """[D, H, W, ...], at least this large, filled with 0."""
    more = [(0, max(s - n, 0)) for s, n in zip(side, x.shape, strict=False)]
    return np.pad(x, more + [(0, 0)] * (x.ndim - 3))


def drawn(
    cases: list[tuple], patch: tuple[int, ...], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of patches [B, C, D, H, W], of other contrast and brightness, and labels."""
    images, labels = [], []
    for number in rng.integers(len(cases), size=BATCH):
        image, label = (padded(x, patch) for x in cases[number])
        corner = [
            rng.integers(n - s + 1) for n, s in zip(label.shape, patch, strict=True)
        ]
        place = tuple(slice(c, c + s) for c, s in zip(corner, patch, strict=True))
        gain, offset = rng.uniform((0.8, -0.2), (1.2, 0.2))
        images.append(np.moveaxis(image[place] * gain + offset, -1, 0))
        labels.append(label[place][None].astype(np.int64))
    return torch.tensor(np.stack(images)).float(), torch.tensor(np.stack(labels))


def trained(
    cases: list[tuple], patch: tuple[int, ...], *, steps: int, seed: int
) -> torch.nn.Module:
    """The network after so many steps, with one cycle of the learning rate."""
    classes = 1 + max(int(label.max()) for _, label in cases)
    channels = cases[0][0].shape[-1]
    strides = (2,) * (len(WIDTHS) - 1)
    net = UNet(3, channels, classes, WIDTHS, strides, num_res_units=2, norm="instance")
    loss = DiceCELoss(softmax=True, to_onehot_y=True, squared_pred=True)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        image, label = drawn(cases, patch, rng)
        optimizer.zero_grad()
        loss(net(image), label).backward()
        optimizer.step()
        rate.step()
    return net.eval()


def predicted(net: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """[D, H, W]: the likeliest class of each voxel of a whole volume [D, H, W, C]."""
    space = image.shape[:3]
    whole = padded(image, tuple(-(-n // DIVISOR) * DIVISOR for n in space))
    with torch.no_grad():
        logits = net(torch.tensor(np.moveaxis(whole, -1, 0))[None])
    return logits.argmax(1)[0].numpy()[tuple(map(slice, space))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--patch", type=int, nargs=3, default=(40, 56, 40))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    with np.load(args.file) as file:
        arrays = {name: file[name] for name in file.files}

    def volumes(kind: str) -> list[np.ndarray]:
        names = (f"{kind}_{n}" for n in itertools.count())
        return [arrays[n] for n in itertools.takewhile(arrays.__contains__, names)]

    cases = [*zip(volumes("image_train"), volumes("label_train"), strict=True)]
    start = time.perf_counter()
    net = trained(cases, tuple(args.patch), steps=args.steps, seed=args.seed)
    seconds = time.perf_counter() - start
    masks = [predicted(net, image) for image in volumes("image_test")]
    named = {f"mask_{n}": mask for n, mask in enumerate(masks)}
    np.savez(f"{args.file}.masks.npz", seconds=seconds, **named)


if __name__ == "__main__":
    main()

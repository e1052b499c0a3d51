"""The peer of bench_films.py: what an afternoon with PyTorch gives, in some sixty lines.

    python tests/peer_cnn.py --file=FOLD.npz [--epochs=60] [--seed=0]

Trains a residual network of 0.7 million weights and, beside it, logistic regression on
32 x 32 pixels. FOLD.npz has `train` [N, H, W] uint8, `label` [N, T] with NaN where
unknown, and `test` [M, H, W]; into FOLD.npz.scores.npz go the logits `cnn` and `linear`
[M, T] and the `seconds` of the network. Needs torch and scikit-learn alone, in an
environment of its own.
"""

import argparse
import itertools
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

WIDTH, BATCH, RATE, DECAY = 24, 32, 2e-3, 5e-2


class Residual(nn.Module):
    """Two convolutions, added to what came in."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.skip = nn.Identity()
        if stride > 1:
            skip = nn.Conv2d(before, after, 1, stride, bias=False)
            self.skip = nn.Sequential(skip, nn.BatchNorm2d(after))

    def forward(self, x):
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.skip(x))


def network(findings: int) -> nn.Module:
    stem = nn.Conv2d(1, WIDTH, 5, 2, padding=2, bias=False)
    widths = [WIDTH, WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH]
    blocks = [Residual(a, b, 1 + (a < b)) for a, b in itertools.pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3)]
    norm = [nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(stem, *norm, *blocks, *head, nn.Linear(widths[-1], findings))


def augmented(x: torch.Tensor) -> torch.Tensor:
    """Turned by up to 10 degrees, zoomed and moved by 10 and 5 %, other contrast."""
    angle, zoom, right, down, gain, offset = (torch.rand(6, len(x)) * 2 - 1) * (
        torch.tensor([0.17, 0.1, 0.05, 0.05, 0.2, 0.2])[:, None]
    )
    cosine, sine = (1 + zoom) * torch.cos(angle), (1 + zoom) * torch.sin(angle)
    rows = [
        torch.stack([cosine, -sine, right], 1),
        torch.stack([sine, cosine, down], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), x.shape, align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return x * (1 + gain)[:, None, None, None] + offset[:, None, None, None]


def cnn(train, label, test, *, epochs: int) -> np.ndarray:
    """Logits [M, T] of a network that was trained with weighted cross-entropy."""
    model, known = network(label.shape[1]), ~torch.isnan(label)
    mean, std = train.mean(), train.std()
    train, test, label = (train - mean) / std, (test - mean) / std, label.nan_to_num()
    positive = (label * known).sum(0)
    weight = ((known.sum(0) - positive) / positive.clamp(min=1)).clamp(max=10)
    steps = len(train) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=epochs * steps
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(train))[: steps * BATCH].split(BATCH):
            loss = functional.binary_cross_entropy_with_logits(
                model(augmented(train[rows])),
                label[rows],
                weight=known[rows].float(),
                pos_weight=weight,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in test.split(100)]).numpy()


def linear(train, label, test) -> np.ndarray:
    """Logits [M, T] of one logistic regression for each finding."""
    pixels = [
        functional.interpolate(x, (32, 32), mode="area").flatten(1).numpy()
        for x in (train, test)
    ]
    logits = []
    for y in label.numpy().T:
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=1e-3, max_iter=2000)
        )
        model.fit(pixels[0][~np.isnan(y)], y[~np.isnan(y)])
        logits.append(model.decision_function(pixels[1]))
    return np.stack(logits, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    with np.load(args.file) as file:
        train, test = (
            torch.tensor(file[name])[:, None].float() / 255
            for name in ("train", "test")
        )
        label = torch.tensor(file["label"]).float()
    start = time.perf_counter()
    scores = {"cnn": cnn(train, label, test, epochs=args.epochs)}
    scores["seconds"] = time.perf_counter() - start
    np.savez(f"{args.file}.scores.npz", linear=linear(train, label, test), **scores)


if __name__ == "__main__":
    main()

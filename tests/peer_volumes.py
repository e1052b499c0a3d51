"""MONAI's DenseNet-121 on volumes: the peer of `bench_step.py --volumes`, for its torch.

    python peer_volumes.py [--batch=2] [--side=64] [--device=cpu]

4 x 64 x 64 x 64 -> 14 logits, binary cross-entropy, Adam; on cuda bfloat16 and
torch.compile. Prints one JSON line: samples a second, medians of 5 calls after 2, and
seconds of the processors in a step.
"""

import argparse
import json
import time

import numpy as np
import torch
from monai.networks.nets import DenseNet121

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--side", type=int, default=64)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()
torch.manual_seed(0)
cuda = args.device == "cuda"
model = DenseNet121(spatial_dims=3, in_channels=4, out_channels=14).to(args.device)
forward = torch.compile(model) if cuda else model
volume = torch.rand(args.batch, 4, *(args.side,) * 3, device=args.device)
label = (torch.rand(args.batch, 14, device=args.device) > 0.9).float()
optimizer = torch.optim.Adam(model.parameters(), 1e-4)


def train():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(args.device, torch.bfloat16, enabled=cuda):
        logits = forward(volume)
    torch.nn.functional.binary_cross_entropy_with_logits(
        logits.float(), label
    ).backward()
    optimizer.step()


def infer():
    half = torch.autocast(args.device, torch.bfloat16, enabled=cuda)
    with torch.inference_mode(), half:
        forward(volume)


def timed(work):
    """Median seconds, and mean seconds of the processors, of a call."""
    seconds = []
    for number in range(7):
        if number == 2:
            worked = time.process_time()
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[2:])), (time.process_time() - worked) / 5


took, worked = timed(train)
model.eval()
inferred, _ = timed(infer)
rates = {"train_samples_per_s": args.batch / took, "cpu_s": worked}
print(json.dumps(rates | {"infer_samples_per_s": args.batch / inferred}))

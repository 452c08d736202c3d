"""Whether training with Winograd's convolutions is the training that it would be with direct ones.

    python benchmarks/scripts/conv_equivalence.py --iterations 300 --dim 8 --side 64 --batch 4

A small MUNIT is trained in float32 from the same weights, images and noise in several ways, each in a process of its
own, on one thread. Ways of direct convolution differ in the order of their sums alone (oneDNN for AVX-512, AVX2 and
SSE4.1, where the machine has them): what they differ by is what float32 leaves open, since a training magnifies every
difference, and the yardstick for the others. The table has, for each loss, its mean at the end and the largest relative
difference of its moving average from that of the first way, from the first whole window on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import torch
from torch import Tensor

from munit_fast import MUNIT_Trainer, make_config

WAYS = {
    "direct": {"MUNIT_FAST_CONV": "direct"},
    "direct, AVX2": {"MUNIT_FAST_CONV": "direct", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "direct, SSE4.1": {"MUNIT_FAST_CONV": "direct", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "F(4×4)": {"MUNIT_FAST_CONV": "winograd"},
    "F(2×2)": {"MUNIT_FAST_CONV": "winograd2"},
}
Curves = dict[str, list[float]]  # of each loss, by iteration


def image(domain: int, side: int, generator: torch.Generator) -> Tensor:
    """Discs of one colour on white, or stripes of another on black."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    values = torch.rand(6, generator=generator)
    if domain == 0:
        inside = (x - values[0] + 0.5) ** 2 + (y - values[1] + 0.5) ** 2 < 0.1 + 0.3 * values[2]
        colour, ground = 2 * values[3:] - 1, 1.0
    else:
        inside = torch.sin(8 * (x * values[0] + y * values[1]) + 6 * values[2]) > 0
        colour, ground = 1 - values[3:] / 2, -1.0
    return torch.where(inside, colour[:, None, None], ground)[None]


def train(iterations: int, dim: int, side: int, batch: int) -> Curves:
    """The losses of a training, with the convolutions that the environment asks for."""
    torch.set_num_threads(1)
    sizes = {"crop_image_height": side, "crop_image_width": side, "display_size": 1, "ema_half_life": 0}
    hp = make_config(
        sizes | {"gen": {"dim": dim, "n_res": 2}, "dis": {"dim": dim, "n_layer": 3, "num_scales": 2}}
    ).hyperparameters()
    torch.manual_seed(0)
    trainer, generator = MUNIT_Trainer(hp), torch.Generator().manual_seed(1)
    curves: Curves = {}
    for _ in range(iterations):
        x_a, x_b = (torch.cat([image(i, side, generator) for _ in range(batch)]) for i in (0, 1))
        for name, value in trainer.update(x_a, x_b, hp).items():
            curves.setdefault(name, []).append(float(value))
    return {name: values for name, values in curves.items() if any(values)}


def in_process(way: dict[str, str], *arguments: int) -> Curves:
    names = ("--iterations", "--dim", "--side", "--batch")
    options = [part for name, value in zip(names, arguments) for part in (name, str(value))]
    command = [sys.executable, __file__, "--one", *options]
    done = subprocess.run(command, env=os.environ | way, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def difference(curve: list[float], other: list[float], window: int) -> float:
    """The largest relative difference of two curves' moving averages."""
    both = torch.tensor([curve, other], dtype=torch.float64).unfold(1, min(window, len(curve)), 1).mean(2)
    return float(((both[1] - both[0]).abs() / both[0].abs()).max())


def compare(
    iterations: int, dim: int, side: int, batch: int, window: int, ways: dict[str, dict[str, str]]
) -> dict[str, list[float]]:
    """For each loss, its mean in the last window of the first way, and the difference of each other way."""
    curves = [in_process(way, iterations, dim, side, batch) for way in ways.values()]
    first, *others = curves
    return {
        name: [sum(curve[-window:]) / len(curve[-window:]), *(difference(curve, c[name], window) for c in others)]
        for name, curve in first.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--dim", type=int, default=8, help="channels of the first layers")
    parser.add_argument("--side", type=int, default=64, help="of the images")
    parser.add_argument("--batch", type=int, default=4, help="images of each domain")
    parser.add_argument("--window", type=int, default=100, help="iterations of the moving average")
    parser.add_argument("--one", action="store_true", help="only train, as the environment says, and print the losses")
    a = parser.parse_args()
    if a.one:
        print(json.dumps(train(a.iterations, a.dim, a.side, a.batch)))
        return
    rows = compare(a.iterations, a.dim, a.side, a.batch, a.window, WAYS)
    print(
        f"{a.iterations} iterations, {a.side}², dim {a.dim}, batch {a.batch}, float32, moving average of {a.window}\n"
    )
    print(f"| loss | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    for name, (mean, *differences) in rows.items():
        print(f"| {name.removeprefix('loss_')} | {mean:.4g} | {' | '.join(f'{100 * d:.2f} %' for d in differences)} |")
    largest = [max(row[i] for row in rows.values()) for i in range(1, len(WAYS))]
    print(f"| largest | | {' | '.join(f'{100 * d:.2f} %' for d in largest)} |")


if __name__ == "__main__":
    main()

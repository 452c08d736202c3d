"""Fuse the norms and convolutions of a network that knows nothing of munit-fast: a CycleGAN generator.

python examples/fuse_cyclegan.py [--size 128] [--channels 32] [--blocks 6]

Outputs agree up to rounding; the printed times are those of this machine.
"""

import argparse
import time

import torch
from torch import nn

import munit_fast as mf


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv(channels, channels, 3), nn.ReLU(), *conv(channels, channels, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    pad = nn.ReflectionPad2d(kernel // 2)
    return [pad, nn.Conv2d(inputs, outputs, kernel, stride), nn.InstanceNorm2d(outputs)]


def up(inputs: int) -> list[nn.Module]:
    transposed = nn.ConvTranspose2d(inputs, inputs // 2, 3, 2, padding=1, output_padding=1)
    return [transposed, nn.InstanceNorm2d(inputs // 2), nn.ReLU()]


def generator(c: int, blocks: int) -> nn.Sequential:
    """The ResNet generator of Zhu et al., ICCV 2017: [N, 3, H, W] to [N, 3, H, W]."""
    down = [*conv(3, c, 7), nn.ReLU(), *conv(c, 2 * c, 3, 2), nn.ReLU(), *conv(2 * c, 4 * c, 3, 2), nn.ReLU()]
    middle = [Residual(4 * c) for _ in range(blocks)]
    return nn.Sequential(*down, *middle, *up(4 * c), *up(2 * c), nn.ReflectionPad2d(3), nn.Conv2d(c, 3, 7), nn.Tanh())


def seconds(network: nn.Module, x: torch.Tensor, rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        network(x)
        times.append(time.perf_counter() - begin)
    return min(times)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--size", type=int, default=128)
parser.add_argument("--channels", type=int, default=32)
parser.add_argument("--blocks", type=int, default=6)
args = parser.parse_args()

torch.manual_seed(0)
network = generator(args.channels, args.blocks).eval().to(memory_format=torch.channels_last)
x = torch.randn(1, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
with torch.no_grad():
    expected, before = network(x), seconds(network, x)
    print(mf.accelerate(network))
    result, after = network(x), seconds(network, x)
torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
print(f"equal outputs; {1e3 * before:.1f} ms before, {1e3 * after:.1f} ms after: {before / after:.2f} times as fast")

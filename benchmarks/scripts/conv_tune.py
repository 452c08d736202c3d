"""Measure direct convolutions against Winograd's plans on this CPU, and print the rows of conv_plans.TABLE that follow.

    MUNIT_FAST_CPU_ISA=avx2 python benchmarks/scripts/conv_tune.py [--dtype fp32 …] [--kernel 3 …] [--rounds 7]
    python benchmarks/scripts/conv_tune.py --errors     # instead: errors against float64

Every line is one convolution of as many channels in as out, and says how many times as fast as direct each direction
is: the forward, the gradients of the input and of the weight, all with the weight transformed in the call, and the
forward with it transformed before. The last two are what the networks run, instance norm, relu and reflection before
the convolution and the statistics of its result included: forward and backward, and the forward with a kept weight.
They decide, and the gradient of the weight alone, for which both ways of "joined" take the plan in float32: a row's
least numbers of tiles are those from which on every larger convolution that was measured gains.
oneDNN is limited to the instruction set in use, so that a set that is not this machine's best meets its own rival.
Times are the process's own CPU time, all threads together, and the lower quartile of rounds in turns, so that a busy
machine does not decide.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from itertools import product
from statistics import median, quantiles
from time import process_time
from typing import NamedTuple

# Read when torch is imported. "avx512_bf16" is left to take matrix instructions where there are any.
ONEDNN = {"avx2": "AVX2", "avx512": "AVX512_CORE"}
if (limit := ONEDNN.get(os.environ.get("MUNIT_FAST_CPU_ISA", ""))) is not None:
    os.environ["ONEDNN_MAX_CPU_ISA"] = limit
os.environ["MUNIT_FAST_CONV"] = "auto"
os.environ["OMP_WAIT_POLICY"] = "passive"  # a thread that spins would count

import torch
from torch import Tensor

from munit_fast.benchmarks.cases import DTYPES
from munit_fast.ops import native, winograd
from munit_fast.ops.conv_plans import ConvShape, serving_plan
from munit_fast.ops.fused_conv import Conv, ConvOutput, EpilogueArgs, convolution, epilogue_conv
from munit_fast.ops.spec import EpilogueSpec

CHANNELS = (8, 16, 32, 64, 128, 256, 512)
SIDES = (4, 8, 16, 32, 64, 128, 256)  # of the result
BATCHES = (1, 4)
MOST = 256 * 256 * 64 * 64 * 2  # C·K·H·W·N: what gains at this size gains beyond it
COLUMNS = ("forward", "input gradient", "weight gradient", "forward, kept", "joined", "joined, kept")
DECIDE = {
    "joined": "training",
    "joined, kept": "kept",
    "weight gradient": "weight",
}  # a row's numbers of tiles, in order
GAIN = 1.03  # the least ratio that counts as one
_NORM = EpilogueSpec("instance", 1e-5, "relu", 0.0, 1, 1, "reflect")


class Point(NamedTuple):
    """One convolution that was measured: how many times as fast as direct it is, by COLUMNS."""

    channels: int
    tiles: int
    ratios: dict[str, float]


def steps(shape: ConvShape, plan: str) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """(direct, by the plan) for each of COLUMNS."""
    side, stride, n, c, k = shape.kernel, shape.stride, shape.samples, shape.channels, shape.out_channels
    random, last = torch.Generator().manual_seed(0), torch.channels_last

    def draw(*size: int, dtype: torch.dtype = shape.dtype) -> Tensor:
        return torch.randn(size, generator=random).to(dtype=dtype, memory_format=last)

    height, width = stride * shape.height, stride * shape.width
    x, grad = draw(n, c, height, width), draw(n, k, shape.height, shape.width)
    padded = torch.nn.functional.pad(x, (1,) * 4, mode="reflect").contiguous(memory_format=last)
    wide = draw(k, c, side, side, dtype=torch.float32)
    narrow, kept = wide.to(shape.dtype), winograd.transform_weight(wide, plan)
    stats = winograd.statistics(x, "instance")  # made by the convolution before if that has a plan
    bare = winograd.Source(x, None, None, None, None, winograd.NO_EPILOGUE._replace(pad=1, pad_mode="reflect"))

    def direct_gradient(of_input: bool) -> object:
        sizes = ((stride,) * 2, (0, 0), (1, 1), False, (0, 0), 1)
        mask = (of_input, not of_input, False)
        return torch.ops.aten.convolution_backward(grad, padded, narrow, None, *sizes, mask)

    def joined(weight: Tensor, by_plan: bool, train: bool) -> object:
        z = x.detach().requires_grad_(train)
        weight = weight.detach().requires_grad_(train)
        apart = plan if shape.dtype == torch.float32 else None
        conv = Conv(weight.to(shape.dtype), None, stride, weight_plan=apart)
        if by_plan:
            conv = Conv(weight, None, stride, None, None, plan, 1, "reflect", None if train else kept, plan)
        epilogue = EpilogueArgs(None, None, None, _NORM._replace(pad=0, pad_mode="zero") if by_plan else _NORM)
        with torch.set_grad_enabled(train):
            y = epilogue_conv(ConvOutput(z, stats if by_plan else None), epilogue, conv, "instance").z
        return torch.autograd.grad(y, (z, weight), grad) if train else y

    def forward(transformed: Tensor | None) -> object:
        return winograd.conv(bare, wide, transformed, None, plan, "none")[0]

    return {
        "forward": (lambda: torch.conv2d(padded, narrow, None, stride), lambda: forward(None)),
        "input gradient": (
            lambda: direct_gradient(True),
            lambda: winograd.input_gradient(grad, wide, bare, plan),
        ),
        "weight gradient": (lambda: direct_gradient(False), lambda: winograd.weight_gradient(grad, bare, wide, plan)),
        "forward, kept": (lambda: torch.conv2d(padded, narrow, None, stride), lambda: forward(kept)),
        "joined": (lambda: joined(wide, False, True), lambda: joined(wide, True, True)),
        "joined, kept": (lambda: joined(narrow, False, False), lambda: joined(wide, True, False)),
    }


def seconds(step: Callable[[], object], repeats: int) -> float:
    """CPU seconds a call."""
    begin = process_time()
    for _ in range(repeats):
        step()
    return (process_time() - begin) / repeats


def measure(shape: ConvShape, plan: str, rounds: int) -> Point:
    """Time a convolution in every direction."""
    ratios = {}
    for name, pair in steps(shape, plan).items():
        repeats = [max(1, int(0.002 / max(min(seconds(step, 1) for _ in range(3)), 1e-6))) for step in pair]
        taken = [[seconds(step, n) for step, n in zip(pair, repeats)] for _ in range(rounds)]
        direct, by_plan = (quantiles(of_way)[0] for of_way in zip(*taken))
        ratios[name] = direct / by_plan
    return Point(shape.channels, shape.tiles, ratios)


def shapes(kernel: int, dtype: torch.dtype) -> Iterator[ConvShape]:
    """The grid: one convolution for each number of channels and of tiles."""
    stride = 2 if kernel == 4 else 1
    for channels, batch, side in product(CHANNELS, BATCHES, SIDES):
        if channels**2 * side**2 * batch <= MOST and (batch == 1 or side <= 64):
            yield ConvShape(kernel, stride, channels, channels, batch, side, side, dtype, False)


def least_tiles(points: list[Point], channels: int, column: str) -> int | None:
    """From how many tiles on every point of at least so many channels gains; None: not even the largest does."""
    served = [point for point in points if point.channels >= channels]
    lost = max((point.tiles for point in served if point.ratios[column] < GAIN), default=0)
    return min((point.tiles for point in served if point.tiles > lost), default=None)


def rows(points: list[Point], isa: str, shape: ConvShape, plan: str) -> Iterator[str]:
    """The table's rows: more channels get one of their own where they need other numbers of tiles."""
    before: list[int | None] = [None] * len(DECIDE)
    for channels in sorted({point.channels for point in points}):
        least = [least_tiles(points, channels, column) for column in DECIDE]
        if least == before:
            continue
        before, because = least, []
        for tiles, (column, what) in zip(least, DECIDE.items()):
            served = [p for p in points if tiles and p.channels >= channels and p.tiles >= tiles]
            if gains := [p.ratios[column] for p in served]:
                because.append(f"{what} {min(gains):.1f}×, median {median(gains):.1f}×")
        fields = ((isa,), (shape.dtype,), shape.kernel, shape.stride, channels, *least, plan, "; ".join(because))
        yield f"    ConvRule({', '.join(map(repr, fields))}),"


def errors(channels: int, plan: str) -> str:
    """‖got - expected‖ / ‖expected‖ of the forward and the gradients of input and weight: direct, and by the plan."""
    of_plan, random, last = winograd.PLANS[plan], torch.Generator().manual_seed(0), torch.channels_last
    x = torch.randn(1, channels, 32, 32, generator=random).to(memory_format=last)
    weight = torch.randn(channels, channels, of_plan.side, of_plan.side, generator=random)

    def run(dtype: torch.dtype, conv: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        inputs = [t.to(dtype, copy=True).requires_grad_() for t in (x, weight)]
        y = conv(*inputs)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        return [y.detach(), *torch.autograd.grad(y, inputs, grad)]

    def direct(x: Tensor, weight: Tensor) -> Tensor:
        return torch.conv2d(x, weight, None, of_plan.stride, 1)

    def by_plan(x: Tensor, weight: Tensor) -> Tensor:
        return convolution(x, Conv(weight, None, of_plan.stride, plan=plan, pad=1, weight_plan=plan)).z

    expected, parts = run(torch.float64, direct), []
    for name, conv in (("direct", direct), (plan, by_plan)):
        off = [float((a.double() - b).norm() / b.norm()) for a, b in zip(run(torch.float32, conv), expected)]
        parts.append(f"{name} " + " / ".join(f"{error:.1e}" for error in off))
    return f"{of_plan.side}×{of_plan.side}, {channels} channels: {'; '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["fp32"])
    parser.add_argument("--kernel", type=int, choices=(3, 4), nargs="+", default=[3, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--errors", action="store_true")
    parser.add_argument("--channels", type=int, nargs="+", default=CHANNELS)
    args = parser.parse_args()
    if not winograd.available():
        sys.exit("the instruction set in use has no such convolutions; `munit-fast doctor` shows it")
    if args.errors:
        for plan, channels in product(winograd.PLANS, (64, 256, 512)):
            print(errors(channels, plan), flush=True)
        return
    isa = native.module.isa()  # type: ignore[union-attr]
    print(f"{isa}, oneDNN up to {limit or 'the best'}, {torch.get_num_threads()} threads; times as fast as direct")
    for dtype, kernel in product(args.dtype, args.kernel):
        points, tried = [], [s for s in shapes(kernel, DTYPES[dtype]) if s.channels in args.channels]
        for shape in tried:
            plan = serving_plan(shape)
            assert plan is not None
            points.append(point := measure(shape, plan, args.rounds))
            text = "  ".join(f"{name} {ratio:.2f}" for name, ratio in point.ratios.items())
            size = f"{shape.samples}×{shape.channels}×{shape.height}²"
            print(f"{plan} {dtype} {size}, {shape.tiles} tiles: {text}", flush=True)
        print(*rows(points, isa, shape, plan), sep="\n", flush=True)


if __name__ == "__main__":
    main()

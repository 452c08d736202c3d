"""The comparison of Winograd's convolutions with PyTorch's in float64: results, statistics and gradients.

A case is a convolution of what an epilogue makes of x, as `munit_fast.ops.winograd.Source` describes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from helpers.tolerances import tolerance, winograd_tolerance
from munit_fast.ops import winograd
from munit_fast.ops.cases import groups_of
from munit_fast.ops.spec import ACTIVATIONS, EpilogueSpec
from munit_fast.ops.winograd import PLANS, Source
from munit_fast.reference import epilogue as formulas

T = TypeVar("T")

EPS = {"none": 0.0, "instance": 1e-5, "layer": 1e-5, "group": 1e-5}
# Of the input and the result, [N, C, H, W] and K: a single pixel, planes smaller than a tile, partial tiles on either
# axis, channels that fill no vector and those that fill many, no sample, several units in a row of tiles (with 300
# channels), several blocks of tiles (64 in a convolution, 128 in a weight gradient) and images that share one.
SHAPES = (
    ((1, 1, 1, 1), 1),
    ((1, 2, 2, 3), 3),
    ((2, 3, 7, 9), 5),
    ((0, 4, 6, 6), 6),
    ((3, 8, 4, 4), 16),
    ((1, 16, 8, 8), 32),
    ((1, 33, 13, 6), 48),
    ((3, 17, 5, 22), 70),
    ((2, 64, 30, 34), 32),
    ((1, 300, 10, 74), 20),
    ((1, 20, 6, 5), 300),
    ((2, 24, 16, 16), 24),
    ((1, 130, 17, 19), 7),
    ((1, 40, 3, 131), 16),
    ((3, 12, 67, 14), 9),
    ((1, 100, 16, 24), 100),
    ((1, 18, 7, 141), 300),
)
PADS = ((1, "reflect"), (0, "zero"), (1, "replicate"), (2, "reflect"), (1, "zero"), (2, "zero"), (2, "replicate"))
# Norm, parameters and side of the blocks of depth-to-space of what stands before the convolution. Parameters: for each
# channel, for each plane as in AdaIN, for each channel of the result of depth-to-space, or none.
SOURCES = (
    ("none", "none", 1),
    ("instance", "none", 1),
    ("instance", "plane", 1),
    ("layer", "channel", 2),
    ("none", "channel", 1),
    ("layer", "shared", 2),
    ("instance", "channel", 1),
    ("layer", "channel", 1),
    ("group", "channel", 1),
    ("none", "none", 2),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("channels_last", "nchw", "window")


@dataclass(frozen=True)
class WinogradCase:
    """A convolution; `shape` is that of its input without padding."""

    plan: str
    shape: tuple[int, int, int, int]
    k: int
    pad: int = 1
    pad_mode: str = "reflect"
    norm: str = "none"
    parameters: str = "none"
    act: str = "none"
    block: int = 1
    dtype: torch.dtype = torch.float32
    layout: str = "channels_last"
    weight_layout: str = "nchw"
    bias: bool = True
    y_norm: str = "none"
    mean: float = 0.5
    std: float = 1.5
    seed: int = 0

    @property
    def spec(self) -> EpilogueSpec:
        return EpilogueSpec(self.norm, EPS[self.norm], self.act, 0.3, self.block, self.pad, self.pad_mode, self.groups)

    @property
    def groups(self) -> int:
        """Of channels, of the norm "group"; else 1."""
        return groups_of(self.shape[1]) if self.norm == "group" else 1


def in_turn(values: tuple[T, ...], random: Random) -> Iterator[T]:
    """Each of the values equally often, in a random order."""
    while True:
        yield from random.sample(values, len(values))


def fits(case: WinogradCase) -> bool:
    _, _, h, w = case.shape
    if h % case.block or w % case.block:
        return False
    if case.norm != "none" and h * w <= case.block**2:  # a variance of one value
        return False
    if case.pad_mode == "reflect" and case.pad >= min(h, w):
        return False
    if min(h, w) + 2 * case.pad < PLANS[case.plan].side:
        return False
    _, k, *of_y = winograd.output_size((1, 1, h + 2 * case.pad, w + 2 * case.pad), case.k, case.plan)
    return case.y_norm != "layer" or math.prod(of_y) * k > 1


def grid(plan: str, rounds: int = 3) -> list[WinogradCase]:
    """Each shape `rounds` times, with every value of all else in turn."""
    random = Random(plan)
    turns: dict[str, Iterator[Any]] = {
        "pads": in_turn(PADS, random),
        "sources": in_turn(SOURCES, random),
        "act": in_turn(ACTIVATIONS, random),
        "dtype": in_turn((torch.float32, *DTYPES), random),
        "layout": in_turn(LAYOUTS, random),
        "weight_layout": in_turn(("nchw", "channels_last"), random),
        "bias": in_turn((True, False), random),
        "y_norm": in_turn(("instance", "layer", "none"), random),
    }
    found = []
    for shape, k in SHAPES * rounds:
        for _ in range(100):
            values = {name: next(turn) for name, turn in turns.items()}
            (pad, mode), (norm, parameters, block) = values.pop("pads"), values.pop("sources")
            case = WinogradCase(plan, shape, k, pad, mode, norm, parameters, block=block, seed=len(found), **values)
            if fits(case):
                found.append(case)
                break
    return found


class Tensors(NamedTuple):
    """What a case is computed from: x and the parameters of its epilogue, the convolution's, and upstream gradients."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    slopes: Tensor | None
    conv_weight: Tensor
    conv_bias: Tensor | None
    grad: Tensor
    add: Tensor


def lay_out(x: Tensor, layout: str) -> Tensor:
    """A copy in a memory layout; "window": inside a larger tensor full of NaN."""
    if layout == "window":
        n, c, h, w = x.shape
        room = x.new_full((n, c, h + 2, w + 3), math.nan).contiguous(memory_format=torch.channels_last)
        return room[:, :, 1:-1, 2:-1].copy_(x)
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return x.clone(memory_format=torch.contiguous_format).contiguous(memory_format=order)


@lru_cache(maxsize=8)
def make_tensors(case: WinogradCase) -> Tensors:
    """The tensors of a case, rounded to its dtypes."""
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * std + mean

    (n, c, h, w), block, side = case.shape, case.block, PLANS[case.plan].side
    of_x = (n, c * block**2, h // block, w // block)
    entries = {"none": None, "channel": (of_x[1],), "plane": (n, of_x[1]), "shared": (c,)}[case.parameters]
    weight = bias = slopes = None
    if entries is not None:
        weight, bias = draw(*entries, mean=1.0, std=0.5).float(), draw(*entries, std=0.5).float()
    if case.act == "prelu":
        slopes = draw(1 if case.seed % 2 else of_x[1], mean=0.25, std=0.1).float()
    x = lay_out(draw(*of_x, mean=case.mean, std=case.std).to(case.dtype), case.layout)
    conv_weight = lay_out(draw(case.k, c, side, side).float(), case.weight_layout)
    conv_bias = draw(case.k).float() if case.bias else None
    padded = (n, c, h + 2 * case.pad, w + 2 * case.pad)
    grad = lay_out(draw(*winograd.output_size(padded, case.k, case.plan)).to(case.dtype), case.layout)
    return Tensors(x, weight, bias, slopes, conv_weight, conv_bias, grad, draw(*case.shape).to(case.dtype))


class Results(NamedTuple):
    """Of a case; the gradient of the input is that of the epilogue's result without padding, plus `add`."""

    y: Tensor
    y_stats: Tensor | None
    grad_input: Tensor
    grad_weight: Tensor
    source_stats: Tensor | None


class Expected(NamedTuple):
    """In float64, with the sizes of sums of as many terms that do not cancel, for each of the three."""

    results: Results
    of_y: float
    of_grad_input: float
    of_grad_weight: float
    condition: float  # of the norm before the convolution


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


@lru_cache(maxsize=1024)
def expected(case: WinogradCase) -> Expected:
    t = Tensors(*(v if v is None else v.detach().double().contiguous() for v in make_tensors(case)))
    spec, plan = case.spec, PLANS[case.plan]
    epilogue: dict[str, Any] = {
        "norm": spec.norm,
        "eps": spec.eps,
        "act": spec.act,
        "block": spec.block,
        "groups": spec.groups,
    }
    slope = spec.slope if t.slopes is None else t.slopes
    inner = formulas.epilogue(t.x, t.weight, t.bias, slope=slope, **epilogue).requires_grad_()
    padded, conv_weight = formulas.pad2d(inner, spec.pad, spec.pad_mode), t.conv_weight.requires_grad_()
    y = torch.nn.functional.conv2d(padded, conv_weight, t.conv_bias, plan.stride)
    grad_input, grad_weight = torch.autograd.grad(y, (inner, conv_weight), t.grad)
    y, y_stats = y.detach(), None if case.y_norm == "none" else formulas.statistics(y.detach(), case.y_norm)
    source_stats = formulas.statistics(t.x, spec.norm, spec.groups) if spec.norm != "none" else None
    condition = 0.0
    if source_stats is not None and t.x.numel():
        mean, spread = source_stats
        below = spread + spec.eps if spec.norm == "layer" else (spread + spec.eps).sqrt()
        condition = float((mean.abs() / below).max())
    norm = float(conv_weight.detach().norm())
    return Expected(
        Results(y, y_stats, grad_input + t.add, grad_weight, source_stats),
        rms(padded.detach()) * norm * math.sqrt(y.numel() / max(1, case.k)),
        rms(t.grad) * norm * math.sqrt(inner.numel() / inner.shape[1]) / plan.stride,
        rms(padded.detach()) * float(t.grad.norm()) * math.sqrt(conv_weight[0].numel()),
        condition,
    )


def source_of(case: WinogradCase, t: Tensors) -> Source:
    stats = winograd.statistics(t.x, case.norm, case.groups) if case.norm != "none" else None
    return Source(t.x, stats, t.weight, t.bias, t.slopes, case.spec)


def run(case: WinogradCase, t: Tensors, transformed: Tensor | None = None) -> Results:
    """The case through the functions of `munit_fast.ops.winograd`."""
    source = source_of(case, t)
    y, y_stats = winograd.conv(source, t.conv_weight, transformed, t.conv_bias, case.plan, case.y_norm)
    grad_input = winograd.input_gradient(t.grad, t.conv_weight, source, case.plan, t.add)
    grad_weight = winograd.weight_gradient(t.grad, source, t.conv_weight, case.plan)
    return Results(y, y_stats, grad_input, grad_weight, source.stats)


def errors(case: WinogradCase, found: Results) -> dict[str, tuple[float, float]]:
    """For each tensor, its error and its tolerance."""
    e, (n, c, h, w) = expected(case), case.shape
    want, plan = e.results, PLANS[case.plan]
    of_source = 0.0
    if (case.norm, case.act, case.parameters) != ("none", "none", "none"):
        planes = {"none": 1, "instance": 1, "group": c // case.groups, "layer": c}[case.norm]
        length = 1 if case.norm == "none" else planes * h * w
        of_source = tolerance(torch.float32, "result", 1, length, e.condition)
    tiles = n * math.ceil(want.y.shape[2] / plan.results) * math.ceil(want.y.shape[3] / plan.results)
    of_y = of_source + winograd_tolerance(case.plan, c * plan.stride**2)

    def distance(got: Tensor | None, exact: Tensor, scale: float) -> float:
        assert got is not None and got.shape == exact.shape
        return float((got.double() - exact).norm()) / (max(float(exact.norm()), scale) or 1.0)

    assert found.y.dtype == found.grad_input.dtype == case.dtype
    assert found.grad_weight.dtype == torch.float32
    errors = {
        "y": (
            distance(found.y, want.y, e.of_y),
            of_source + winograd_tolerance(case.plan, c * plan.stride**2, case.dtype),
        ),
        # Stored with its padding, without it, and with what is added to it.
        "grad_input": (
            distance(found.grad_input, want.grad_input, e.of_grad_input),
            winograd_tolerance(case.plan, case.k, case.dtype, 3 if case.pad else 1),
        ),
        "grad_weight": (
            distance(found.grad_weight, want.grad_weight, e.of_grad_weight),
            of_source + winograd_tolerance(case.plan, tiles),
        ),
    }
    if want.source_stats is not None:
        assert found.source_stats is not None
        for got, exact in zip(found.source_stats, want.source_stats):
            errors["source_stats"] = (
                distance(got, exact, rms(make_tensors(case).x.double()) * math.sqrt(exact.numel())),
                tolerance(torch.float32, "grad_parameter", 1, c * h * w),
            )
    if want.y_stats is not None:
        assert found.y_stats is not None
        mean, spread = want.y_stats
        # A plane's mean is off by no more than its pixels are; its variance by that times its standard deviation.
        size = max(float(want.y.norm()), e.of_y) * math.sqrt(mean.numel() / max(1, want.y.numel()))
        errors["mean"] = distance(found.y_stats[0], mean, size), of_y
        if case.y_norm == "instance" and spread.numel():
            size *= max(float(spread.max().sqrt()), 1e-3 * size / math.sqrt(mean.numel()))
        errors["spread"] = distance(found.y_stats[1], spread, size), 2 * of_y
    return errors


def check(case: WinogradCase, found: Results) -> None:
    for name, (error, bound) in errors(case, found).items():
        assert error <= bound, f"{name}: relative error {error:.3g}, allowed {bound:.3g}, in {case}"

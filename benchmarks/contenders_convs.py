"""Contenders at the level of operators: one convolution, by itself or joined to the epilogue that stands before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from munit_fast.benchmarks.cases import CONVOLUTIONS, DTYPES, Case
from munit_fast.benchmarks.contenders import (
    BATCH_NORM,
    COMPILED,
    LAYOUTS,
    OURS,
    PUBLISHED,
    Contender,
    Work,
    compiled,
    differentiable,
)
from munit_fast.benchmarks.contenders_ops import NORMS, Spec, eager
from munit_fast.ops import winograd
from munit_fast.ops.conv_plans import DIRECT, ConvShape, Plans, choose
from munit_fast.ops.fused_conv import Conv, ConvOutput, EpilogueArgs, convolution, epilogue_conv
from munit_fast.ops.spec import EpilogueSpec

Function = Callable[[Tensor, Tensor], Tensor]


class ConvSpec(NamedTuple):
    """A convolution with one pixel of padding.

    Attributes:
        kernel: Rows and columns.
        stride: Of both axes.
        factor: Channels of the result over those of the input.
        joined: Whether instance norm, relu and reflection padding stand before it; else it pads with zeros.
    """

    kernel: int
    stride: int
    factor: int
    joined: bool


SPECS = dict(
    zip(
        CONVOLUTIONS,
        (
            ConvSpec(3, 1, 1, False),
            ConvSpec(3, 1, 2, False),
            ConvSpec(4, 2, 1, False),
            ConvSpec(4, 2, 2, False),
            ConvSpec(3, 1, 1, True),
            ConvSpec(4, 2, 2, True),
        ),
    )
)
_EPILOGUE = EpilogueSpec("instance", 1e-5, "relu", 0.0, 1, 1, "reflect")


def tensors(case: Case, layout: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The input, and the weight in float32 as a parameter is: the same numbers for every layout."""
    spec, random = SPECS[case.name], torch.Generator().manual_seed(0)
    x = torch.randn(case.batch, case.channels, case.side, case.side, generator=random) + 0.5
    weight = torch.randn(spec.factor * case.channels, case.channels, spec.kernel, spec.kernel, generator=random)
    weight /= (case.channels * spec.kernel**2) ** 0.5
    x, weight = (t.contiguous(memory_format=LAYOUTS[layout]).to(device) for t in (x, weight))
    return x.to(DTYPES[case.dtype]).requires_grad_(), weight.requires_grad_()


def plain(spec: ConvSpec, norm: Callable[..., Tensor] = NORMS["instance"][PUBLISHED]) -> Function:
    """The convolution operation by operation, by torch: directly, on CPUs by oneDNN."""
    before = eager(Spec("instance", "relu", 1), norm) if spec.joined else None

    def run(x: Tensor, weight: Tensor) -> Tensor:
        weight = weight.to(x.dtype)
        if before is None:
            return F.conv2d(x, weight, None, spec.stride, 1)
        return F.conv2d(before(x, weight, weight, None), weight, None, spec.stride)

    return run


def plans_of(case: Case, device: torch.device) -> Plans:
    """What `munit_fast.ops.conv_plans` chooses for a case."""
    spec = SPECS[case.name]
    if device.type != "cpu":
        return DIRECT
    size = ((case.side + 2 - spec.kernel) // spec.stride + 1,) * 2
    channels = case.channels, spec.factor * case.channels
    kept = case.mode == "forward"
    return choose(ConvShape(spec.kernel, spec.stride, *channels, case.batch, *size, DTYPES[case.dtype], kept))


def _ours(case: Case, device: torch.device, plans: Plans) -> Work:
    """As the networks call it: one pass for statistics a convolution, with a plan those of the result.

    Without a graph the transformed weight is kept, as in inference; the statistics of the input were made by the
    convolution before. A direct convolution by itself is PyTorch's.
    """
    plan = plans.result
    spec, (x, weight) = SPECS[case.name], tensors(case, "channels_last", device)
    kept = winograd.transform_weight(weight.detach(), plan) if plan and case.mode == "forward" else None
    stats = winograd.statistics(x.detach(), "instance") if plan and spec.joined else None
    y_norm, pad_mode = ("instance", "reflect") if spec.joined else ("none", "zero")
    epilogue = EpilogueArgs(None, None, None, _EPILOGUE._replace(pad=0, pad_mode="zero") if plan else _EPILOGUE)

    def run() -> Tensor:
        conv = Conv(weight.to(x.dtype), None, spec.stride, weight_plan=plans.weight)
        if plan is not None:
            conv = Conv(weight, None, spec.stride, None, None, plan, 1, pad_mode, kept, plans.weight)
        if spec.joined:
            return epilogue_conv(ConvOutput(x, stats), epilogue, conv, y_norm).z
        if plans == DIRECT or (plan is None and case.mode == "forward"):
            return plain(spec)(x, weight)
        return convolution(x if plan else F.pad(x, (1,) * 4), conv, y_norm).z

    return differentiable(run, (x, weight), case.mode)


def conv_contenders(case: Case, device: torch.device) -> list[Contender]:
    """Every way to compute the convolution of a case; compiled only where there is something to fuse."""
    spec, plans = SPECS[case.name], plans_of(case, device)
    found = [Contender(OURS, "channels_last", lambda: _ours(case, device, plans))]
    if plans != DIRECT:
        found.append(Contender(f"{OURS} direct", "channels_last", lambda: _ours(case, device, DIRECT)))
    ways: dict[str, Callable[[], Function]] = {PUBLISHED: lambda: plain(spec)}
    if spec.joined:
        for name, norm in NORMS["instance"].items():
            if name != BATCH_NORM or case.batch == 1:
                ways[name] = lambda norm=norm: plain(spec, norm)  # type: ignore[misc]
        for name in COMPILED:
            ways[name] = lambda name=name: compiled(plain(spec), name)  # type: ignore[misc]

    def make(way: Callable[[], Function], layout: str) -> Work:
        function, arguments = way(), tensors(case, layout, device)
        return differentiable(lambda: function(*arguments), arguments, case.mode)

    for layout, (name, way) in product(LAYOUTS, ways.items()):
        found.append(Contender(name, layout, lambda way=way, layout=layout: make(way, layout)))  # type: ignore[misc]
    return found


def expected(case: Case) -> Sequence[Tensor]:
    """A convolution's numbers in float64, as the published formula gives them, on the CPU."""
    arguments = [t.detach().double().requires_grad_() for t in tensors(case, "NCHW", torch.device("cpu"))]
    function = plain(SPECS[case.name])
    return differentiable(lambda: function(*arguments), arguments, case.mode).step()

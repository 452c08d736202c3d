"""Convolutions joined to what stands before them: values and all gradients against plain PyTorch in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.convolutions import LAYOUTS, lay_out
from munit_fast.ops import winograd
from munit_fast.ops.fused_conv import Conv, ConvOutput, EpilogueArgs, convolution, epilogue_conv, residual_block
from munit_fast.ops.spec import EpilogueSpec
from munit_fast.ops.upsample_conv import phase_weight
from munit_fast.reference import epilogue as formulas

pytestmark = pytest.mark.usefixtures("winograd_isa")

Leaves = dict[str, Tensor]
# A convolution has at most 2e-6 of relative error (tests/helpers/tolerances.py), the norm's gradient multiplies it by a
# few; seen: 3e-6.
LIMIT = 1e-5


@dataclass(frozen=True)
class Case:
    """norm → act → depth-to-space → pad → convolution of z; `plan` None: direct."""

    plan: str | None
    size: tuple[int, int] = (14, 17)
    norm: str = "instance"
    parameters: str = "channel"
    act: str = "tanh"
    block: int = 1
    pad: int = 1
    pad_mode: str = "reflect"
    bias: bool = True
    samples: int = 2
    channels: int = 20
    out_channels: int = 19
    stride: int = 1
    phases: bool = False
    weight_plan: str | None = None

    @property
    def spec(self) -> EpilogueSpec:
        pad, mode = self._padding
        pad, mode = (0, "zero") if self.plan is not None else (pad, mode)
        return EpilogueSpec(self.norm, 1e-5 if self.norm != "none" else 0.0, self.act, 0.2, self.block, pad, mode)

    @property
    def _padding(self) -> tuple[int, str]:
        """What the convolution reads: for phases, the small image's padding."""
        return (1, "zero" if self.pad_mode == "zero" else "replicate") if self.phases else (self.pad, self.pad_mode)

    @property
    def side(self) -> int:
        return 5 if self.phases else 4 if self.stride == 2 else 3

    def leaves(self) -> Leaves:
        n, c, (h, w) = self.samples, self.channels, self.size
        of_z = c * self.block**2
        found = {
            "z": lay_out(torch.randn(n, of_z, h // self.block, w // self.block) * 1.5 + 0.5, "channels_last"),
            "conv_weight": torch.randn(self.out_channels, c, self.side, self.side) / c**0.5,
        }
        entries = {"none": None, "channel": (of_z,), "plane": (n, of_z), "shared": (c,)}[self.parameters]
        if entries is not None:
            found |= {"weight": torch.rand(entries) + 0.5, "bias": torch.randn(entries) * 0.5}
        if self.act == "prelu":
            found["slopes"] = torch.rand(of_z) * 0.5
        if self.bias:
            found["conv_bias"] = torch.randn(self.out_channels)
        return found

    def conv(self, leaves: Leaves) -> Conv:
        weight, bias = leaves["conv_weight"], leaves.get("conv_bias")
        border = None
        if self.phases:
            border = weight if self.pad_mode == "reflect" else None
            weight, bias = phase_weight(weight), None if bias is None else bias.repeat(4)
        pad, mode = self._padding if self.plan is not None else (0, "zero")
        return Conv(weight, bias, self.stride, border, None, self.plan, pad, mode, None, self.weight_plan)

    def epilogue(self, leaves: Leaves) -> EpilogueArgs:
        return EpilogueArgs(leaves.get("weight"), leaves.get("bias"), leaves.get("slopes"), self.spec)

    def run(self, leaves: Leaves) -> Tensor:
        output = epilogue_conv(ConvOutput(leaves["z"]), self.epilogue(leaves), self.conv(leaves), "instance")
        if output.stats is not None:
            stats = formulas.statistics(output.z.detach().double(), "instance")
            # They are those of the results before these are rounded to half precision.
            off = 1e-5 if output.z.dtype == torch.float32 else torch.finfo(output.z.dtype).eps
            torch.testing.assert_close(output.stats.double(), stats, rtol=off, atol=off)
            assert not output.stats.requires_grad
        return output.z

    def expected(self, leaves: Leaves) -> Tensor:
        a = formulas.epilogue(
            leaves["z"], leaves.get("weight"), leaves.get("bias"), norm=self.norm, act=self.act, block=self.block,
            slope=leaves.get("slopes", 0.2),
        )  # fmt: skip
        return self.expected_of_input(a, leaves)

    def expected_of_input(self, a: Tensor, leaves: Leaves) -> Tensor:
        if self.phases:
            large = formulas.pad2d(F.interpolate(a, scale_factor=2, mode="nearest"), 2, self.pad_mode)
            return formulas.space_to_depth(F.conv2d(large, leaves["conv_weight"], leaves.get("conv_bias")), 2)
        padded = formulas.pad2d(a, self.pad, self.pad_mode)
        return F.conv2d(padded, leaves["conv_weight"], leaves.get("conv_bias"), self.stride)


def gradients(function: Callable[[Leaves], Tensor], leaves: Leaves, needed: Any) -> tuple[Tensor, Leaves]:
    """The value, and the gradients of the leaves that are needed."""
    leaves = {name: t.detach().clone().requires_grad_(name in needed) for name, t in leaves.items()}
    y = function(leaves)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y.dtype)
    if not y.requires_grad:
        return y, {}
    y.backward(upstream)
    assert all((t.grad is not None) == (name in needed) for name, t in leaves.items())
    return y.detach(), {name: leaves[name].grad for name in needed}


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))


def compare(case: Any, run: Callable[[Leaves], Tensor], expected: Callable[[Leaves], Tensor], leaves: Leaves) -> None:
    """All gradients against float64; then each alone, and all but one, to the bit of those."""
    direct = None in (case if isinstance(case, tuple) else (case.plan,))
    y, found = gradients(run, leaves, set(leaves))
    want_y, want = gradients(expected, {name: t.double() for name, t in leaves.items()}, set(leaves))
    assert relative(y, want_y) < LIMIT, case
    for name in leaves:
        assert found[name].dtype == torch.float32
        assert relative(found[name], want[name]) < LIMIT, (case, name)
    for needed in (*({name} for name in leaves), *(set(leaves) - {name} for name in leaves), set()):
        again_y, again = gradients(run, leaves, needed)
        assert torch.equal(again_y, y), needed
        for name in needed:
            # PyTorch may sum in another order where the weight needs no gradient.
            same = (
                relative(again[name], found[name].double()) < 1e-6 if direct else torch.equal(again[name], found[name])
            )
            assert same, (case, needed, name)


THREE = Case("f43")
CASES = [
    THREE,
    replace(THREE, plan=None),
    replace(THREE, plan=None, weight_plan="f43", parameters="plane"),
    replace(THREE, plan=None, weight_plan="f42", stride=2, norm="none", parameters="none", act="silu"),
    replace(THREE, weight_plan="f23"),
    replace(THREE, plan="f23", parameters="plane", act="silu", pad_mode="replicate"),
    replace(THREE, norm="layer", pad_mode="zero", bias=False),
    replace(THREE, act="gelu"),
    replace(THREE, plan="f42", stride=2, size=(14, 17), parameters="plane", act="gelu_tanh", pad_mode="zero"),
    replace(THREE, norm="layer", parameters="shared", block=2, act="selu", size=(14, 18), pad=2),
    replace(THREE, norm="none", parameters="none", act="prelu", pad_mode="replicate", channels=33),
    replace(THREE, norm="none", parameters="none", act="none", pad=0, size=(5, 6)),
    replace(THREE, parameters="none", act="none", size=(3, 3), channels=70, samples=3),
    replace(THREE, plan="f42", stride=2, size=(16, 22), norm="none", parameters="none", act="silu"),
    replace(THREE, plan="f42", stride=2, size=(13, 15), parameters="plane", pad_mode="zero", out_channels=40),
    replace(THREE, plan="f42", stride=2, size=(12, 7), norm="layer", pad_mode="replicate", act="prelu", channels=9),
    replace(THREE, plan="f42", stride=2, size=(5, 4), norm="layer", pad=2, bias=False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_epilogue_and_convolution(case: Case) -> None:
    compare(case, case.run, case.expected, case.leaves())


@pytest.mark.parametrize("case", [case for case in CASES if case.plan is not None], ids=str)
def test_convolution_alone(case: Case) -> None:
    case = replace(case, norm="none", parameters="none", act="none", block=1)

    def run(leaves: Leaves) -> Tensor:
        return convolution(leaves["z"], case.conv(leaves)).z

    compare(case, run, case.expected, case.leaves())


@pytest.mark.parametrize("plan", ["f43", "f23"])
@pytest.mark.parametrize("pad_mode", ["reflect", "replicate", "zero"])
def test_phase_convolution(plan: str, pad_mode: str) -> None:
    """Upsampling and a 5×5 convolution, whose border reflection padding changes; from 2×2 pixels on."""
    case = Case(None, (7, 6), "layer", pad=2, pad_mode=pad_mode, phases=True, out_channels=8, weight_plan=plan)
    compare(case, case.run, case.expected, case.leaves())
    for size, block in (((2, 2), 1), ((2, 9), 1), ((3, 3), 1), ((7, 6), 1), ((16, 15), 1), ((4, 10), 2)):
        norm, act = ("layer", "tanh") if block == 1 else ("layer", "silu")
        case = Case(plan, size, norm, act=act, block=block, pad=2, pad_mode=pad_mode, phases=True, out_channels=8)
        compare(case, case.run, case.expected, case.leaves())


def test_phase_convolution_of_an_image(winograd_isa: str) -> None:
    for size in ((2, 3), (9, 12)):
        case = Case("f43", size, "none", "none", "none", pad=2, phases=True, out_channels=8)

        def run(leaves: Leaves, case: Case = case) -> Tensor:
            return convolution(leaves["z"], case.conv(leaves)).z

        compare(case, run, case.expected, case.leaves())


@pytest.mark.parametrize("plans", [("f43", "f43"), ("f23", "f23"), ("f43", None), (None, "f43")], ids=str)
@pytest.mark.parametrize("styled", [False, True])
def test_residual_block(plans: tuple[str | None, str | None], styled: bool) -> None:
    n, c = 2, 20
    for (h, w), mode, out in (((13, 14), "reflect", 0), ((6, 9), "replicate", 1), ((16, 16), "zero", 2)):
        leaves: Leaves = {"h": lay_out(torch.randn(n, c, h, w), "channels_last")}
        for i in (1, 2):
            leaves[f"conv_weight_{i}"] = torch.randn(c, c, 3, 3) / c**0.5
            if styled:
                leaves |= {f"weight_{i}": torch.rand(n, c) + 0.5, f"bias_{i}": torch.randn(n, c) * 0.5}
        pads = [(1, mode) if plan is None else (0, "zero") for plan in plans]

        def of_conv(leaves: Leaves, i: int, mode: str = mode) -> Conv:
            pad = (0, "zero") if plans[i - 1] is None else (1, mode)
            return Conv(leaves[f"conv_weight_{i}"], None, 1, None, None, plans[i - 1], *pad)

        def args(leaves: Leaves, i: int, act: str, pad: tuple[int, str]) -> EpilogueArgs:
            spec = EpilogueSpec("instance", 1e-5, act, 0.2, 1, *pad)
            return EpilogueArgs(leaves.get(f"weight_{i}"), leaves.get(f"bias_{i}"), None, spec)

        def run(leaves: Leaves, mode: str = mode, out: int = out, pads: Any = pads) -> Tensor:
            h = formulas.pad2d(leaves["h"], *pads[0]).contiguous(memory_format=torch.channels_last)
            first = args(leaves, 1, "tanh", pads[1])
            second = args(leaves, 2, "none", (out, mode))
            return residual_block(h, of_conv(leaves, 1), first, of_conv(leaves, 2), second, pads[0][0])

        def expected(leaves: Leaves, mode: str = mode, out: int = out) -> Tensor:
            x = leaves["h"]
            for i, act in ((1, "tanh"), (2, "none")):
                x = F.conv2d(formulas.pad2d(x, 1, mode), leaves[f"conv_weight_{i}"])
                x = formulas.epilogue(x, leaves.get(f"weight_{i}"), leaves.get(f"bias_{i}"), norm="instance", act=act)
            return formulas.pad2d(x + leaves["h"], out, mode)

        compare((*plans, h, w, mode), run, expected, leaves)


def test_a_bias_without_influence_has_a_gradient_of_zero() -> None:
    unused = torch.randn(20, requires_grad=True)
    z, weight = torch.randn(1, 20, 8, 8), torch.randn(20, 20, 3, 3, requires_grad=True)
    conv = Conv(weight, None, 1, None, unused, "f43", 1, "reflect")
    y = convolution(lay_out(z, "channels_last"), conv, "instance").z
    torch.autograd.grad(y.square().sum(), weight, retain_graph=True)
    (gradient,) = torch.autograd.grad(y.square().sum(), unused)
    assert gradient.shape == unused.shape and not gradient.any()


def test_layouts_and_windows_give_the_same_bits() -> None:
    case = Case("f43")
    leaves = case.leaves()
    y, expected = gradients(case.run, leaves, set(leaves))
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).float()
    for of_grad, of_weight in itertools.product(LAYOUTS, LAYOUTS):
        other = leaves | {"conv_weight": lay_out(leaves["conv_weight"], of_weight)}
        other = {name: t.detach().requires_grad_() for name, t in other.items()}
        again = case.run(other)
        assert torch.equal(again, y)
        again.backward(lay_out(upstream, of_grad))
        for name, t in other.items():
            assert t.grad is not None and torch.equal(t.grad, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Z in half precision, weights and their gradients in float32."""
    case = Case("f43", parameters="channel")
    leaves = case.leaves()
    leaves["z"] = leaves["z"].to(dtype)
    y, found = gradients(case.run, leaves, set(leaves))
    want_y, want = gradients(case.expected, {name: t.double() for name, t in leaves.items()}, set(leaves))
    assert y.dtype == found["z"].dtype == dtype and found["conv_weight"].dtype == torch.float32
    limit = 2 * torch.finfo(dtype).eps
    assert relative(y, want_y) < limit
    for name in leaves:
        # The upstream gradient is rounded too.
        assert relative(found[name], want[name]) < 2 * limit, name


def test_sizes_that_do_not_fit() -> None:
    x, weight = torch.randn(1, 4, 2, 2), torch.randn(4, 4, 3, 3)
    source = winograd.Source(x, None, None, None, None, winograd.NO_EPILOGUE)
    with pytest.raises(RuntimeError):
        winograd.conv(source, weight, None, None, "f43", "none")
    source = source._replace(x=torch.randn(1, 4, 8, 8))
    for bad in (torch.randn(4, 5, 3, 3), torch.randn(4, 4, 4, 4), weight.double(), weight[0]):
        with pytest.raises((RuntimeError, ValueError)):
            winograd.conv(source, bad, None, None, "f43", "none")
    with pytest.raises(RuntimeError):
        winograd.conv(source, weight, torch.empty(7), None, "f43", "none")
    with pytest.raises(RuntimeError):
        winograd.conv(source, weight, None, torch.randn(5), "f43", "none")
    with pytest.raises(RuntimeError):
        winograd.conv(source._replace(x=torch.randn(1, 4, 8, 8).double()), weight, None, None, "f43", "none")

"""Winograd's convolutions against PyTorch's in float64: results, statistics and gradients, by instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers.convolutions import (
    DTYPES,
    LAYOUTS,
    PADS,
    SHAPES,
    SOURCES,
    Tensors,
    WinogradCase,
    check,
    grid,
    lay_out,
    make_tensors,
    rms,
    run,
)
from helpers.tolerances import unit_roundoff, winograd_tolerance
from munit_fast.ops import winograd
from munit_fast.ops.spec import ACTIVATIONS, NORMS, PAD_MODES
from munit_fast.ops.winograd import NO_EPILOGUE, PLANS, Source
from munit_fast.reference import epilogue as formulas

pytestmark = pytest.mark.usefixtures("winograd_isa")


def plain(x: Tensor, pad: int = 1, pad_mode: str = "reflect") -> Source:
    return Source(x, None, None, None, None, NO_EPILOGUE._replace(pad=pad, pad_mode=pad_mode))


def soil_kept_memory(case: WinogradCase, t: Tensors) -> None:
    """Leave NaN wherever the case's calls write into memory that is kept from call to call."""
    nan = Tensors(*(v if v is None else torch.full_like(v, torch.nan) for v in t))
    run(replace(case, norm="none", parameters="none", y_norm="instance"), nan._replace(weight=None, bias=None))


@pytest.mark.parametrize("plan", PLANS)
def test_the_grid_has_every_value_with_every_plan(plan: str) -> None:
    cases = grid(plan)
    assert {(case.shape, case.k) for case in cases} == set(SHAPES)
    assert {(case.pad, case.pad_mode) for case in cases} == set(PADS)
    assert {(case.norm, case.parameters, case.block) for case in cases} == set(SOURCES)
    assert {case.act for case in cases} == set(ACTIVATIONS)
    assert {(case.dtype, case.layout) for case in cases} == {(d, layout) for d in DTYPES for layout in LAYOUTS}
    assert {(case.bias, case.y_norm) for case in cases} == {
        (b, norm) for b in (True, False) for norm in NORMS if norm != "group"
    }
    assert {case.weight_layout for case in cases} == {"nchw", "channels_last"}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("plan", PLANS)
def test_against_float64(plan: str) -> None:
    for case in grid(plan):
        t = make_tensors(case)
        soil_kept_memory(case, t)
        check(case, run(case, t))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("plan", PLANS)
def test_a_weight_transformed_before_gives_the_same_bits(plan: str) -> None:
    for case in grid(plan, rounds=1):
        t = make_tensors(case)
        expected = run(case, t)
        for layout in LAYOUTS:
            transformed = winograd.transform_weight(lay_out(t.conv_weight, layout), plan)
            assert torch.equal(run(case, t, transformed).y, expected.y)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_statistics_of_planes_far_from_zero(plan: str, norm: str) -> None:
    """The error grows like |mean| / std, that of a mean in float32; with Σ y² - (Σ y)² / n it would like its square."""
    side = PLANS[plan].side
    x = lay_out(torch.randn(2, 24, 22, 27) * 0.1 + torch.arange(1.0, 25.0).view(-1, 1, 1), "channels_last")
    weight = torch.rand(20, 24, side, side)
    y, stats = winograd.conv(plain(x), weight, None, None, plan, norm)
    assert stats is not None
    for found in (stats.double(), winograd.statistics(y, norm).double()):
        mean, spread = formulas.statistics(y.double(), norm)
        std = spread.sqrt() if norm == "instance" else spread
        ratio = float((mean / std).min())
        assert ratio > (1000 if norm == "instance" else 5)
        torch.testing.assert_close(found[0], mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(found[1], spread, rtol=16 * ratio * unit_roundoff(torch.float32), atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_statistics(norm: str, layout: str) -> None:
    for dtype in DTYPES:
        for shape in ((1, 1, 1, 2), (2, 3, 7, 9), (3, 70, 5, 4), (0, 4, 3, 3), (1, 33, 150, 41)):
            x = lay_out((torch.randn(shape) * 2 + 3).to(dtype), layout)
            found, expected = winograd.statistics(x, norm), formulas.statistics(x.double(), norm)
            torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS)
def test_what_is_added_to_the_gradient_of_the_input(plan: str) -> None:
    """Where the padding is folded by the convolution itself, and where it is folded afterwards."""
    side, stride = PLANS[plan].side, PLANS[plan].stride
    for size in ((16, 19), (5, 6), (12, 40), (13, 13), (6, 12), (11, 16)):
        for pad, mode in ((0, "zero"), *((1, mode) for mode in PAD_MODES)):
            h, w = size
            rows, columns = ((s + 2 * pad - side) // stride + 1 for s in size)
            grad, add = torch.randn(2, 18, rows, columns), torch.randn(2, 21, h, w)
            weight = torch.randn(18, 21, side, side)
            exact = torch.nn.grad.conv2d_input(
                (2, 21, h + 2 * pad, w + 2 * pad), weight.double(), grad.double(), stride
            )
            exact = formulas.pad2d_backward(exact, pad, mode)
            source = plain(torch.empty(2, 21, h, w), pad, mode)
            for more in (None, add, lay_out(add, "channels_last"), lay_out(add, "window")):
                found = winograd.input_gradient(grad, weight, source, plan, more)
                want = exact if more is None else exact + add.double()
                assert float((found - want).norm() / want.norm()) < winograd_tolerance(plan, 18), (size, pad, mode)
            assert torch.equal(add, lay_out(add, "nchw"))


@pytest.mark.parametrize("plan", PLANS)
def test_the_result_for_one_pixel_has_no_more_error_than_its_tile(plan: str) -> None:
    """No value is off by more than a share of the values that it is computed from, wherever it lies in a tile."""
    side, stride = PLANS[plan].side, PLANS[plan].stride
    x, weight = torch.randn(1, 64, 29, 31), torch.randn(40, 64, side, side)
    y, _ = winograd.conv(plain(lay_out(x, "channels_last"), 0, "zero"), weight, None, None, plan, "none")
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), stride=stride)
    # 8 times a root mean square over 20 thousand values that are about normal.
    worst = float((y - exact).abs().max()) / rms(exact)
    assert worst < 8 * winograd_tolerance(plan, 64 * stride**2)


def test_a_case_of_its_own_can_fail() -> None:
    """The oracle itself: a result that is off in one pixel by 1 % is refused."""
    case = grid("f43")[5]
    found = run(case, make_tensors(case))
    check(case, found)
    found.y[0, 0, 0, 0] += 0.01 * float(found.y.float().norm())
    with pytest.raises(AssertionError, match="relative error"):
        check(case, found)

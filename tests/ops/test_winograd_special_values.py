"""Constant planes, NaN and infinity in Winograd's convolutions.

A tile of results is computed from all its inputs, so a NaN or an infinity spreads further than in direct convolution:
to every result of the tiles that read the pixel (its 3×3 neighbourhood becomes at most four tiles of 4×4), and, where
direct convolution gives an infinity, it becomes NaN (∞ - ∞ inside the transforms). Everything else stays as it was, but
for rounding: where the reference value of a plane, a median of 16 pixels, is not finite, it is zero.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers.convolutions import DTYPES, lay_out, rms
from helpers.tolerances import unit_roundoff, winograd_tolerance
from munit_fast.ops import winograd
from munit_fast.ops.fused_conv import Conv, ConvOutput, EpilogueArgs, convolution, epilogue_conv
from munit_fast.ops.spec import EpilogueSpec
from munit_fast.ops.winograd import NO_EPILOGUE, PLANS, Source
from munit_fast.reference import epilogue as formulas

pytestmark = pytest.mark.usefixtures("winograd_isa")
BORDERS = ((0, "zero"), (1, "reflect"), (1, "replicate"), (2, "reflect"), (2, "replicate"))


def plain(x: Tensor, pad: int = 1, pad_mode: str = "reflect") -> Source:
    return Source(lay_out(x, "channels_last"), None, None, None, None, NO_EPILOGUE._replace(pad=pad, pad_mode=pad_mode))


def direct(x: Tensor, weight: Tensor, plan: str, pad: int, pad_mode: str) -> Tensor:
    return torch.conv2d(formulas.pad2d(x, pad, pad_mode), weight, stride=PLANS[plan].stride)


@pytest.mark.parametrize("plan", PLANS)
def test_a_constant_plane_stays_exactly_constant(plan: str) -> None:
    side = PLANS[plan].side
    for channels, out_channels, h, w in ((3, 16, 17, 23), (40, 33, 9, 66), (64, 64, 32, 32)):
        weight, bias = torch.randn(out_channels, channels, side, side), torch.randn(out_channels)
        planes = torch.randn(2, channels, 1, 1) * torch.tensor([1.0, 100.0]).view(2, 1, 1, 1)
        for dtype, (pad, mode) in zip((*DTYPES, *DTYPES), BORDERS):
            source = plain(planes.expand(-1, -1, h, w).to(dtype), pad, mode)
            y, stats = winograd.conv(source, weight, None, bias, plan, "instance")
            assert torch.equal(y, y[:, :, :1, :1].expand_as(y)), (dtype, mode)
            assert stats is not None and not stats[1].any()
            assert torch.equal(stats[0].view(2, -1).to(dtype), y[:, :, 0, 0])
            exact = planes.to(dtype).double().flatten(1) @ weight.double().sum((2, 3)).T + bias
            assert float((y[:, :, 0, 0] - exact).norm() / exact.norm()) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_what_a_norm_makes_of_constant_planes_stays_constant(norm: str) -> None:
    """Through norm, activation and the next convolution: β, or its activation, in every pixel."""
    x = torch.randn(2, 32, 1, 1).expand(-1, -1, 19, 21)
    weight = torch.randn(32, 32, 3, 3)
    z = convolution(lay_out(x, "channels_last"), Conv(weight, plan="f43", pad=1, pad_mode="reflect"), norm)
    for act in ("relu", "lrelu", "tanh", "selu"):
        epilogue = EpilogueArgs(torch.rand(32), torch.randn(32), None, EpilogueSpec(norm, 1e-5, act, 0.2, 1, 0, "zero"))
        y, stats = epilogue_conv(z, epilogue, Conv(weight, plan="f43", pad=1, pad_mode="replicate"), "instance")
        assert torch.equal(y, y[:, :, :1, :1].expand_as(y))
        assert stats is not None and not stats[1].any()


@pytest.mark.parametrize("plan", PLANS)
def test_a_large_mean_costs_no_digits(plan: str) -> None:
    """Of planes of 100 ± 0.01: what varies is as exact as in planes about zero, up to the rounding of the result."""
    side = PLANS[plan].side
    ripple = (torch.randn(1, 48, 26, 30) * 0.01).double()
    x = (ripple + 100).float()
    ripple = x.double() - 100
    weight = torch.randn(32, 48, side, side)
    y, stats = winograd.conv(plain(x), weight, None, None, plan, "instance")
    assert stats is not None
    exact, constant = (direct(v, weight.double(), plan, 1, "reflect") for v in (ripple, torch.full_like(ripple, 100)))
    # What is off by the same in all pixels is an error of the mean alone.
    error = y.double() - constant - exact
    error -= error.mean((2, 3), keepdim=True)
    rounding = float(y.abs().max()) * unit_roundoff(torch.float32)
    assert float(error.abs().max()) < rounding + 8 * winograd_tolerance(plan, 48 * PLANS[plan].stride ** 2) * rms(exact)
    variance = exact.var((2, 3), correction=0)
    # |mean| / std is up to 15000 here: what rounding a pixel to float32 costs.
    assert float((stats[1].view_as(variance) - variance).abs().max()) < 1e-3 * float(variance.max())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("plan", PLANS)
def test_one_pixel_that_is_not_finite(plan: str, value: float) -> None:
    results, side = PLANS[plan].results, PLANS[plan].side
    weight = torch.randn(20, 12, side, side)
    # Inside, on the border that a padding mirrors, and where a reference value is taken from.
    for row, column in ((11, 9), (0, 1), (2, 25), (23, 27), (3, 3)):
        x = torch.randn(2, 12, 24, 28)
        clean, clean_stats = winograd.conv(plain(x), weight, None, None, plan, "instance")
        x[1, 5, row, column] = value
        y, stats = winograd.conv(plain(x), weight, None, None, plan, "instance")
        wanted = direct(x, weight, plan, 1, "reflect")
        broken = ~wanted.isfinite()
        assert broken.any() and not y[broken].isfinite().any()
        assert y[wanted.isnan()].isnan().all()
        # Outside the tiles that read the pixel all is finite, and right.
        tiles = broken.any(1, keepdim=True)
        tiles = torch.nn.functional.max_pool2d(tiles.float(), results, results, ceil_mode=True)
        reached = tiles.repeat_interleave(results, 2).repeat_interleave(results, 3)[..., : y.shape[2], : y.shape[3]] > 0
        reached = reached.expand_as(y)
        assert y[~reached].isfinite().all()
        torch.testing.assert_close(y[~reached], wanted[~reached], rtol=1e-4, atol=1e-4)
        assert torch.equal(y[0], clean[0])
        assert stats is not None and clean_stats is not None
        assert torch.equal(stats.view(2, 2, -1)[:, 0], clean_stats.view(2, 2, -1)[:, 0])
        assert not stats.view(2, 2, -1)[1, 1].isfinite().any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("plan", PLANS)
def test_gradients_that_are_not_finite(plan: str, value: float) -> None:
    side, stride = PLANS[plan].side, PLANS[plan].stride
    x, weight = torch.randn(2, 12, 24, 28), torch.randn(20, 12, side, side)
    source = plain(x)
    y, _ = winograd.conv(source, weight, None, None, plan, "none")
    grad = torch.randn_like(y)
    grad[1, 7, 3, 5] = value
    exact = torch.nn.grad.conv2d_input((2, 12, 26, 30), weight, grad, stride)
    exact = formulas.pad2d_backward(exact, 1, "reflect")
    found = winograd.input_gradient(grad, weight, source, plan)
    assert not found[~exact.isfinite()].isfinite().any()
    assert found[0].isfinite().all()
    assert int((~found.isfinite()).any(1).sum()) <= 4 * 16 * stride**2
    found = winograd.weight_gradient(grad, source, weight, plan)
    # One output channel has no finite gradient, the others their own.
    assert not found[7].isfinite().any()
    others = torch.arange(20) != 7
    exact = torch.nn.grad.conv2d_weight(formulas.pad2d(x, 1, "reflect"), weight.shape, grad, stride)
    torch.testing.assert_close(found[others], exact[others], rtol=1e-3, atol=1e-3)
    x[0, 3, 10, 10] = value
    grad = torch.randn_like(y)
    found = winograd.weight_gradient(grad, plain(x), weight, plan)
    exact = torch.nn.grad.conv2d_weight(formulas.pad2d(x, 1, "reflect"), weight.shape, grad, stride)
    assert not found[~exact.isfinite()].isfinite().any()
    assert found[:, torch.arange(12) != 3].isfinite().all()


def test_nan_in_a_plane_that_a_norm_reads_reaches_all_results_of_its_image() -> None:
    z = torch.randn(2, 16, 16, 16)
    z[1, 4, 3, 3] = math.nan
    epilogue = EpilogueArgs(None, None, None, EpilogueSpec("instance", 1e-5, "lrelu", 0.2, 1, 0, "zero"))
    conv = Conv(torch.randn(16, 16, 3, 3), plan="f43", pad=1, pad_mode="reflect")
    y, _ = epilogue_conv(ConvOutput(lay_out(z, "channels_last")), epilogue, conv)
    assert y[1].isnan().all() and y[0].isfinite().all()


def test_extremes_do_not_overflow_in_the_reference_value() -> None:
    """The sum of sixteen pixels is infinite; the convolution of the plane is not."""
    x = torch.full((1, 16, 16, 16), 3e38)
    weight = torch.zeros(16, 16, 3, 3)
    weight[:, :, 1, 1] = 1e-3
    y, _ = winograd.conv(plain(x), weight, None, None, "f23", "none")
    assert y.shape == (1, 16, 16, 16) and not torch.equal(y, torch.zeros_like(y))


@pytest.mark.parametrize("value", [1e3, 1e10])
@pytest.mark.parametrize("plan", PLANS)
def test_an_extreme_pixel_spoils_no_other_tile(plan: str, value: float) -> None:
    """Not even one that the reference value is taken from."""
    side = PLANS[plan].side
    x, weight = torch.randn(1, 16, 64, 64), torch.randn(16, 16, side, side)
    x[..., 8, 8] = value  # one of the 16
    found, _ = winograd.conv(plain(x), weight, None, None, plan, "none")
    far = found.shape[2] // 2
    expected = direct(x.double(), weight.double(), plan, 1, "reflect")[..., far:, far:]
    error = (found[..., far:, far:].double() - expected).norm() / expected.norm()
    assert error < winograd_tolerance(plan, 16 * PLANS[plan].stride ** 2)

"""NaN, infinity, constant planes, denormals, and every value of the two half precisions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers.oracle import DTYPES, exact_activation, run
from munit_fast import functional as mf
from munit_fast.ops import native
from munit_fast.ops.cases import OPS, CaseTensors, EpilogueCase, make_tensors
from munit_fast.ops.spec import ACTIVATIONS
from munit_fast.reference import epilogue as formulas

HALVES = (torch.bfloat16, torch.float16)


def slope_of(act: str) -> float | Tensor:
    return torch.tensor([0.3]) if act == "prelu" else 0.3


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nan_reaches_the_result(backend: str, act: str, layout: str) -> None:
    """In every position of a vector and its tail; elsewhere nothing changes."""
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    for dtype in DTYPES:
        x = torch.randn(1, 5, 4, 9).to(dtype).contiguous(memory_format=order)
        clean = mf.bias_act(x, act=act, slope=slope_of(act), impl=backend)
        broken = x.clone()
        broken[0, 1::2, ::3, ::2] = math.nan
        y = mf.bias_act(broken, act=act, slope=slope_of(act), impl=backend)
        assert torch.equal(y.isnan(), broken.isnan())
        assert torch.equal(y[~y.isnan()], clean[~y.isnan()])


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nan_in_one_plane_stays_in_its_plane_or_sample(backend: str, act: str) -> None:
    x = torch.randn(2, 4, 5, 5)
    x[0, 2, 4, 4] = math.nan
    y = mf.instance_norm(x, act=act, slope=slope_of(act), pad=1, impl=backend)
    assert y[0, 2].isnan().all()
    assert y.isnan().sum() == y[0, 2].numel()
    y = mf.layer_norm2d(x, act=act, slope=slope_of(act), pad=1, impl=backend)
    assert y[0].isnan().all() and not y[1].isnan().any()


@pytest.mark.parametrize("norm", [mf.instance_norm, mf.layer_norm2d])
def test_nan_reaches_the_gradient(backend: str, norm: object) -> None:
    x = torch.randn(1, 2, 5, 5)
    x[0, 1, 0, 3] = math.nan
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(norm(x, act="lrelu", impl=backend), x, torch.randn(x.shape))
    assert gradient[0, 1].isnan().all()
    clean = torch.randn(1, 2, 5, 5, requires_grad=True)
    upstream = torch.randn(clean.shape)
    upstream[0, 1, 2, 2] = math.nan
    (gradient,) = torch.autograd.grad(norm(clean, act="lrelu", impl=backend), clean, upstream)
    assert gradient[0, 1].isnan().all()


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_gradient_at_nan_is_the_specifications(backend: str, act: str) -> None:
    x = torch.randn(1, 3, 4, 5)
    x[0, :, 1::2, ::2] = math.nan
    upstream = torch.randn(1, 3, 4, 5)
    slope = slope_of(act)
    expected, _, _ = formulas.epilogue_backward(upstream, x, torch.empty(2, 0), act=act, slope=slope)
    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(mf.bias_act(leaf, act=act, slope=slope, impl=backend), leaf, upstream)
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_infinity_and_extremes(backend: str, act: str) -> None:
    for dtype in DTYPES:
        large = torch.finfo(dtype).max
        values = [math.inf, -math.inf, large, -large, 100.0, -100.0, 88.5, -88.5, 20.0, -20.0, 0.0, -0.0]
        x = torch.tensor(values).to(dtype).repeat(3).view(1, 1, 3, 12).requires_grad_()
        y = mf.bias_act(x, act=act, slope=slope_of(act), impl=backend)
        expected = exact_activation(x.detach().double(), act, slope_of(act)).to(dtype)
        if backend == "reference":  # PyTorch's own
            expected = formulas.epilogue(x.detach(), act=act, slope=slope_of(act))
        torch.testing.assert_close(y.detach(), expected, equal_nan=True)
        (got,) = torch.autograd.grad(y, x, torch.ones_like(y))
        gradient, _, _ = formulas.epilogue_backward(
            torch.ones_like(y), x.detach(), torch.empty(2, 0), act=act, slope=slope_of(act)
        )
        torch.testing.assert_close(got, gradient, equal_nan=True)
        assert got[x.isfinite()].isfinite().all()


@pytest.mark.parametrize("act", ["selu", "tanh", "silu", "gelu", "gelu_tanh"])
def test_smooth_activations_are_accurate_everywhere(backend: str, act: str) -> None:
    """Relative to each value, small ones included: exp(z) - 1 and tanh(z) lose no digits near zero."""
    gelu = act.startswith("gelu")
    if gelu and backend == "reference":
        pytest.skip("PyTorch's gelu adds 1 to erf or tanh, which leaves no digits far below zero")
    sizes = torch.logspace(-30, 2, 20011, dtype=torch.float64).float()
    x = torch.cat([sizes, -sizes]).view(1, 1, 2, -1).requires_grad_()
    double = x.detach().double().requires_grad_()
    y, expected = mf.bias_act(x, act=act, impl=backend), exact_activation(double, act)
    normal = expected.abs() > 1e-34  # silu(-100) is no normal float32, and exp may stop a little earlier
    upstream = torch.randn(x.shape)
    (got,) = torch.autograd.grad(y, x, upstream)
    (want,) = torch.autograd.grad(expected, double, upstream.double())
    # gelu has a polynomial of ten terms more. Far below zero its value is exp(-z²/2), so a rounding of
    # z²/2, relative to 1, becomes one of the value.
    condition = 1 + (double * want / upstream / expected).abs() if gelu else torch.ones(())
    assert ((y - expected) / expected / condition)[normal].abs().max() < (12 if gelu else 8) * 2**-24
    # 1 - tanh² is a difference: its error is that of the 1.
    assert ((got - want) / upstream).abs().max() < 8 * 2**-24


@pytest.mark.parametrize("op", [op for op in OPS if op != "bias_act"])
@pytest.mark.parametrize("value", [0.0, 0.3, -1000.0])
def test_constant_planes_are_finite(backend: str, op: str, value: float) -> None:
    """An all-white crop. Its normalised value is 0 up to the rounding of the mean, which eps multiplies."""
    for dtype in DTYPES:
        # Layer norm multiplies a gradient by 1 / eps = 10⁵, which float16 does not have.
        if dtype == torch.float16 and op.startswith("layer"):
            continue
        for shape, layout in (((2, 4, 5, 7), "nchw"), ((1, 8, 33, 31), "channels_last")):
            case = EpilogueCase(op, shape, dtype, layout, "relu", 1, mean=value, std=0.0)
            inputs = make_tensors(case)
            y = run(case, inputs, backend)
            given = [t for t in inputs if t is not None]
            for t in (y, *torch.autograd.grad(y, given, torch.randn_like(y))):
                assert t.isfinite().all()


@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_a_constant_plane_has_the_gradient_of_the_specification(backend: str, norm: str) -> None:
    """0.5 and its sums are exact, so the spread is 0 and layer norm's second term must be left out, not 0/0."""
    x = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    upstream = torch.randn(2, 3, 4, 4)
    function = mf.instance_norm if norm == "instance" else mf.layer_norm2d
    y = function(x, impl=backend)
    assert y.eq(0).all()
    (got,) = torch.autograd.grad(y, x, upstream)
    stats = formulas.statistics(x.detach(), norm)
    expected, _, _ = formulas.epilogue_backward(upstream, x.detach(), stats, norm=norm)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_denormals_are_kept(backend: str) -> None:
    for dtype in DTYPES:
        if dtype == torch.bfloat16 and backend == "cpu" and native.module.isa() == "avx512_bf16":
            continue  # the processor's own conversion to bfloat16 flushes them to zero, by definition
        tiny = torch.finfo(dtype).smallest_normal
        x = torch.tensor([tiny / 2, -tiny / 2, tiny / 4, tiny], dtype=dtype).repeat(8).view(1, 1, 4, 8)
        assert x.ne(0).all()
        assert torch.equal(mf.bias_act(x, impl=backend), x)
        padded = mf.bias_act(x, act="relu", pad=1, pad_mode="replicate", impl=backend)
        assert torch.equal(padded[..., 1:-1, 1:-1], x.relu())
        for norm in (mf.instance_norm, mf.layer_norm2d):
            y = norm(x.requires_grad_(), impl=backend)
            assert y.isfinite().all()
            assert torch.autograd.grad(y, x, torch.randn_like(y))[0].isfinite().all()


def every_value(dtype: torch.dtype) -> Tensor:
    """All 65536 bit patterns."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    return bits.view(dtype).view(1, 1, 2**8, 2**8)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_precision_value_is_read_and_rounded_right(backend: str, dtype: torch.dtype, layout: str) -> None:
    """One rounding, to the nearest, ties to even, overflow included; denormals have their own test."""
    x = every_value(dtype)
    if layout == "channels_last":
        # A number of channels that leaves a tail.
        x = x.view(1, 256, 1, 256)[:, :253].contiguous(memory_format=torch.channels_last)
    assert_same(mf.bias_act(x, impl=backend), x)
    for shift in (1e-8, 3e-8, 0.3, -0.7, 1.0, 100.3, 1e5):
        bias = torch.full((x.shape[1],), shift)
        assert_same(mf.bias_act(x, bias, impl=backend), (x.float() + bias.view(-1, 1, 1)).to(dtype))


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert torch.equal(got.isnan(), expected.isnan())
    ordinary = expected.abs() >= torch.finfo(expected.dtype).smallest_normal
    assert torch.equal(got[ordinary], expected[ordinary])
    small = ~ordinary & ~expected.isnan()
    assert (got[small] - expected[small]).abs().le(torch.finfo(expected.dtype).smallest_normal).all()


def test_float16_rounds_into_its_denormals(backend: str) -> None:
    """They are of use: the smallest normal number is 6·10⁻⁵."""
    x = torch.zeros(1, 1, 100, 1000, dtype=torch.float16)
    x[0, 0] = torch.linspace(0, 6e-5, 100_000).view(100, 1000)
    for shift in (0.0, 1e-8, 2.98e-8, 3e-8, -1.7e-6):
        y = mf.bias_act(x, torch.tensor([shift]), impl=backend)
        assert torch.equal(y, (x.float() + shift).half())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("op", OPS)
def test_half_precision_is_float32_rounded_once(backend: str, op: str, dtype: torch.dtype) -> None:
    """Result and gradients; one in a hundred values may sit so close to a tie that the order of a sum decides."""
    case = EpilogueCase(op, (2, 8, 17, 19), dtype, "channels_last", "tanh", 1, residual=True)
    inputs = make_tensors(case)
    wide = CaseTensors(*(t if t is None else t.detach().float().requires_grad_() for t in inputs))
    y, expected = run(case, inputs, backend), run(case, wide, backend)
    upstream = torch.randn_like(y)
    got = torch.autograd.grad(y, (inputs.x, inputs.residual), upstream)
    want = torch.autograd.grad(expected, (wide.x, wide.residual), upstream.float())
    for half, exact in zip((y, *got), (expected, *want)):
        assert half.dtype == dtype
        assert (half != exact.to(dtype)).float().mean() < 0.01

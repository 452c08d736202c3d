"""The L1 and LSGAN losses of every backend against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.oracle import DTYPES
from helpers.tolerances import tolerance
from munit_fast import functional as mf
from munit_fast.ops.cases import lay_out

pytestmark = pytest.mark.usefixtures("poisoned")

# One value, the borders of a vector, a piece and a chunk of the kernels, and odd sizes.
SIZES = (1, 2, 3, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1000, 16383, 16384, 16385, 50_001)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.detach().double() - expected).norm() / expected.norm().clamp_min(1e-300))


def leaf(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).detach().requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
def test_l1_of_every_size(backend: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        a, b = leaf(torch.randn(size) + 3, dtype), leaf(torch.randn(size) + 3, dtype)
        value = mf.l1_loss(a, b, impl=backend)
        expected = F.l1_loss(a.detach().double(), b.detach().double())
        assert value.dtype == torch.promote_types(dtype, torch.float32) and value.shape == ()
        assert relative(value, expected) < tolerance(dtype, "loss", 1, size, stored=value.dtype)
        upstream = torch.tensor(-1.37 * size, dtype=value.dtype)  # so that no float16 gradient is denormal
        got_a, got_b = torch.autograd.grad(value, (a, b), upstream)
        sign = torch.sign(a.detach().double() - b.detach().double())
        for got, want in ((got_a, sign * float(upstream) / size), (got_b, -sign * float(upstream) / size)):
            assert got.dtype == dtype
            assert relative(got, want) <= tolerance(dtype, "loss", 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lsgan_of_every_size(backend: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        output = leaf(torch.randn(size) + 0.4, dtype)
        value = mf.lsgan_loss(output, 0.9, impl=backend)
        double = output.detach().double().requires_grad_()
        expected = (double - 0.9).square().mean()
        assert value.dtype == torch.promote_types(dtype, torch.float32) and value.shape == ()
        assert relative(value, expected.detach()) < tolerance(dtype, "loss", 1, size, stored=value.dtype)
        upstream = torch.tensor(2.13 * size, dtype=value.dtype)
        (got,) = torch.autograd.grad(value, output, upstream)
        (want,) = torch.autograd.grad(expected, double, upstream.double())
        assert got.dtype == dtype
        assert relative(got, want) <= tolerance(dtype, "loss", 1)


def test_the_gradient_at_equality_is_zero(backend: str) -> None:
    for dtype in DTYPES:
        a = torch.randn(2, 3, 7, 9).to(dtype)
        b = a.clone()
        b[:, :, ::2] += 1
        a.requires_grad_(), b.requires_grad_()
        got_a, got_b = torch.autograd.grad(mf.l1_loss(a, b, impl=backend), (a, b))
        assert got_a[:, :, 1::2].eq(0).all() and got_b[:, :, 1::2].eq(0).all()
        assert got_a[:, :, ::2].lt(0).all() and got_b[:, :, ::2].gt(0).all()


def test_many_pairs_of_different_sizes(backend: str) -> None:
    shapes = [(2, 3, 8, 8), (1,), (5, 7), (2, 16, 4, 4), (1, 3, 33, 31), (2, 8, 1, 1), ()]
    pairs = [(leaf(torch.randn(s), torch.float32), leaf(torch.randn(s), torch.float32)) for s in shapes]
    values = mf.l1_losses(iter(pairs), impl=backend)
    assert values.shape == (len(pairs),)
    upstream = torch.randn(len(pairs))
    flat = [t for pair in pairs for t in pair]
    got = torch.autograd.grad(values, flat, upstream)
    for i, (a, b) in enumerate(pairs):
        torch.testing.assert_close(values[i], F.l1_loss(a, b), rtol=1e-6, atol=0)
        want = torch.autograd.grad(F.l1_loss(a, b), (a, b), upstream[i])
        for gradient, expected in zip(got[2 * i : 2 * i + 2], want):
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


def test_one_tensor_in_many_pairs(backend: str) -> None:
    a, b, c = (leaf(torch.randn(4, 5), torch.float32) for _ in range(3))
    got = torch.autograd.grad(mf.l1_losses([(a, b), (c, a), (a, a)], impl=backend), (a, b, c), torch.ones(3))
    want = torch.autograd.grad(F.l1_loss(a, b) + F.l1_loss(c, a) + F.l1_loss(a, a), (a, b, c))
    for gradient, expected in zip(got, want):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("side", [0, 1])
def test_only_one_side_may_need_a_gradient(backend: str, side: int) -> None:
    pairs = [[torch.randn(3, 4), torch.randn(3, 4)] for _ in range(2)]
    pairs[0][side].requires_grad_()
    mf.l1_losses(pairs, impl=backend).sum().backward()
    sign = torch.sign(pairs[0][0] - pairs[0][1]).detach() * (1 if side == 0 else -1)
    torch.testing.assert_close(pairs[0][side].grad, sign / 12)
    assert pairs[0][1 - side].grad is None and pairs[1][side].grad is None


def test_layouts_that_differ(backend: str) -> None:
    values_a, values_b = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6)
    expected = F.l1_loss(values_a.double(), values_b.double())
    sign = torch.sign(values_a - values_b) / values_a.numel()
    for first in ("nchw", "channels_last", "sliced"):
        for second in ("nchw", "channels_last", "sliced"):
            a, b = lay_out(values_a, first).requires_grad_(), lay_out(values_b, second).requires_grad_()
            value = mf.l1_loss(a, b, impl=backend)
            torch.testing.assert_close(value.detach(), expected.float())
            value.backward()
            torch.testing.assert_close(a.grad, sign)
            torch.testing.assert_close(b.grad, -sign)
    transposed = values_a.permute(3, 1, 0, 2)
    value = mf.l1_loss(transposed, values_b.permute(3, 1, 0, 2).contiguous(), impl=backend)
    torch.testing.assert_close(value, expected.float())
    expanded = torch.randn(3, 1)
    value = mf.l1_loss(expanded.expand(3, 4), torch.zeros(3, 4), impl=backend)
    torch.testing.assert_close(value, expanded.abs().mean())


def test_layouts_of_lsgan(backend: str) -> None:
    values = torch.randn(2, 3, 5, 6)
    for layout in ("nchw", "channels_last", "sliced"):
        x = lay_out(values, layout).requires_grad_()
        value = mf.lsgan_loss(x, 1.0, impl=backend)
        value.backward()
        torch.testing.assert_close(value.detach(), (values - 1).square().mean())
        torch.testing.assert_close(x.grad, 2 * (values - 1) / values.numel())


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.float32),
    ],
)
def test_mixed_dtypes_are_promoted(backend: str, first: torch.dtype, second: torch.dtype, result: torch.dtype) -> None:
    a, b = leaf(torch.randn(50), first), leaf(torch.randn(50), second)
    value = mf.l1_loss(a, b, impl=backend)
    assert value.dtype == result
    expected = (a.detach().double() - b.detach().double()).abs().mean()
    assert relative(value.detach(), expected) < 1e-6
    value.backward()
    assert a.grad.dtype == first and b.grad.dtype == second
    assert torch.equal(a.grad.sign(), torch.sign(a.detach().double() - b.detach().double()).to(first))
    both = mf.lsgan_loss([a, b], 1.0, impl=backend)
    assert both.dtype == result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_million_values(backend: str, dtype: torch.dtype) -> None:
    """All terms have one sign: a single running sum would be off by parts in ten thousand."""
    a, b = (torch.rand(1_000_003) + 1).to(dtype), torch.zeros(1_000_003, dtype=dtype)
    expected = a.double().mean()
    assert relative(mf.l1_loss(a, b, impl=backend), expected) < 1e-6
    expected = (a.double() - 0.1).square().mean()
    assert relative(mf.lsgan_loss(a, 0.1, impl=backend), expected) < 1e-6


def test_lsgan_sums_over_scales_and_takes_the_mean_within_one(backend: str) -> None:
    outputs = [torch.full((2, 1, 8, 8), 3.0), torch.full((2, 1, 4, 4), 2.0), torch.full((2, 1, 2, 2), 1.5)]
    assert mf.lsgan_loss(outputs, 1.0, impl=backend).item() == 4 + 1 + 0.25
    assert mf.lsgan_loss(tuple(outputs[:1]), 0, impl=backend).item() == 9


def test_lsgan_of_bfloat16_outputs_near_the_target(backend: str) -> None:
    """In bfloat16, 1 + 1/128 - 1 squared and averaged is one of a few numbers; here it is exact to float32."""
    output = (1 + torch.randn(4000) / 50).bfloat16().requires_grad_()
    value = mf.lsgan_loss(output, 1.0, impl=backend)
    expected = (output.detach().double() - 1).square().mean()
    assert relative(value.detach(), expected) < 1e-6
    collapsed = (output.detach() - 1).square().mean()
    assert relative(collapsed, expected) > 1e-4
    # Three scales of a discriminator whose outputs are near 0 where 1 is wanted: not exactly 3.
    outputs = [(torch.randn(1, 1, s, s) / 1000).bfloat16() for s in (32, 16, 8)]
    value = mf.lsgan_loss(outputs, 1.0, impl=backend)
    expected = sum((o.double() - 1).square().mean() for o in outputs)
    assert relative(value, expected) < 1e-6
    assert value.item() != 3.0


@pytest.mark.parametrize("count", [1, 4])
def test_nan_reaches_the_losses(backend: str, count: int) -> None:
    a = torch.randn(1000)
    a[::997] = float("nan")
    pairs = [(torch.randn(5), torch.randn(5)) for _ in range(count - 1)]
    values = mf.l1_losses([*pairs, (a, torch.zeros(1000))], impl=backend)
    assert values[-1].isnan() and not values[:-1].isnan().any()
    assert mf.lsgan_loss([torch.randn(5), a], 1.0, impl=backend).isnan()
    assert mf.l1_loss(a.nan_to_num() * float("inf") + 1, torch.zeros(1000), impl=backend).isnan()  # 0 · inf
    assert mf.l1_loss(torch.full((9,), float("inf")), torch.zeros(9), impl=backend).isinf()

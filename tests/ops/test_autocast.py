"""Autocast: an epilogue takes the dtype of its convolution, parameters stay float32, losses are float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast import functional as mf
from munit_fast import nn as mnn

HALVES = (torch.bfloat16, torch.float16)


class Network(nn.Module):
    def __init__(self, impl: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(8, 4, 3)
        self.norm = mnn.InstanceNorm2d(8, affine=True, act="prelu", pad=1, impl=impl)
        self.layer = mnn.LayerNorm2d(8, act="relu", pad=1, impl=impl)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        h = self.norm(x)
        y = self.layer(self.second(h), residual=x)
        self.seen = [x.dtype, h.dtype, y.dtype]
        return self.last(y)


@pytest.mark.parametrize("dtype", HALVES)
def test_convolution_epilogue_convolution(impl: str, dtype: torch.dtype) -> None:
    net = Network(impl)
    x = torch.randn(2, 3, 12, 14, requires_grad=True)
    exact = net(x)
    upstream = torch.randn_like(exact)
    parameters = [x, *net.parameters()]
    expected = torch.autograd.grad(exact, parameters, upstream)
    with torch.autocast("cpu", dtype=dtype):
        y = net(x)
    assert net.seen == [dtype] * 3 and y.dtype == dtype
    # A few roundings to eight (eleven) bits in a row.
    limit = 16 * torch.finfo(dtype).eps
    assert (y.float() - exact).norm() < limit * exact.norm()
    for parameter, got, want in zip(parameters, torch.autograd.grad(y, parameters, upstream.to(dtype)), expected):
        assert got.dtype == parameter.dtype == torch.float32
        # The bias before an instance norm has a gradient of zero, and so rounding errors alone.
        if want.norm() > 1e-3 * upstream.norm():
            assert (got - want).norm() < 2 * limit * want.norm()


@pytest.mark.parametrize("dtype", HALVES)
def test_an_epilogue_is_not_cast(impl: str, dtype: torch.dtype) -> None:
    """Autocast neither narrows a float32 input nor widens a half-precision one."""
    weight = torch.rand(3)
    for given in (torch.float32, dtype):
        x = torch.randn(2, 3, 5, 6).to(given)
        expected = mf.instance_norm(x, weight, act="relu", pad=1, impl=impl)
        with torch.autocast("cpu", dtype=dtype):
            y = mf.instance_norm(x, weight, act="relu", pad=1, impl=impl)
        assert y.dtype == given
        assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_losses_are_float32(impl: str, dtype: torch.dtype) -> None:
    convolution = nn.Conv2d(3, 4, 3)
    x, target = torch.randn(1, 3, 9, 9), torch.randn(1, 4, 7, 7)
    with torch.autocast("cpu", dtype=dtype):
        output = convolution(x)
        assert output.dtype == dtype
        l1, lsgan = mf.l1_loss(output, target, impl=impl), mf.lsgan_loss([output], 1.0, impl=impl)
        total = l1 + lsgan
    assert l1.dtype == lsgan.dtype == total.dtype == torch.float32
    torch.testing.assert_close(l1, F.l1_loss(output.float(), target), rtol=1e-6, atol=0)
    torch.testing.assert_close(lsgan, (output.float() - 1).square().mean(), rtol=1e-6, atol=0)
    total.backward()
    assert convolution.weight.grad.dtype == torch.float32
    assert convolution.weight.grad.norm() > 0


@pytest.mark.parametrize("dtype", HALVES)
def test_compiled_under_autocast(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Conv2d(3, 8, 3), mnn.InstanceNorm2d(8, affine=True, act="relu", pad=1), nn.Conv2d(8, 4, 3))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 8, 9)
    with torch.autocast("cpu", dtype=dtype):
        y, expected = compiled(x), net(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    parameters = list(net.parameters())
    for got, want in zip(
        torch.autograd.grad(y, parameters, upstream), torch.autograd.grad(expected, parameters, upstream)
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=2e-2, atol=1e-2)

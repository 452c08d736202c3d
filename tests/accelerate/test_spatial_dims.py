"""`munit_fast.accelerate` on networks of lines and volumes, as segmentation networks build them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import munit_fast as mf
from munit_fast.accelerate import norms

CONVS = {1: nn.Conv1d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.InstanceNorm1d, 3: nn.InstanceNorm3d}
SHAPES = {1: (2, 3, 32), 3: (2, 3, 8, 12, 8)}
SPATIAL = pytest.mark.parametrize("spatial", SHAPES)


class Unet(nn.Module):
    """Two levels of convolution, instance norm and leaky ReLU, with a skip."""

    def __init__(self, spatial: int) -> None:
        super().__init__()

        def unit(channels: int, out: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                CONVS[spatial](channels, out, 3, stride, 1),
                NORMS[spatial](out, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            )

        self.first, self.second = unit(3, 6), unit(6, 8, 2)
        self.up = TRANSPOSED[spatial](8, 6, 2, 2)
        self.last = unit(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        return self.last(torch.cat([fine, self.up(self.second(fine))], 1))


def results(net: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = net(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, *net.parameters()], upstream)]


@SPATIAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_the_same_before_and_after(
    monkeypatch: pytest.MonkeyPatch, spatial: int, dtype: torch.dtype, training: bool
) -> None:
    torch.manual_seed(0)
    net, x = Unet(spatial).to(dtype).train(training), torch.randn(SHAPES[spatial], dtype=dtype)
    expected = results(net, x)
    plain = copy.deepcopy(net)
    report = mf.accelerate(net)
    assert [f.what for f in report.replaced] == [f"InstanceNorm{spatial}d + LeakyReLU"] * 3
    calls, original = [], norms.ops.epilogue

    def counted(*arguments: object) -> Tensor:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(norms.ops, "epilogue", counted)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    # The gradient of a bias before a norm is zero, but for the rounding of sums as large as the other gradients.
    largest = max(float(want.detach().abs().max()) for want in expected)
    for found, want in zip(results(net, x), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance * max(1.0, largest))
    assert len(calls) == 3
    report.restore()
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]


@SPATIAL
def test_one_sample_and_second_derivatives(spatial: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(NORMS[spatial](3), nn.Tanh()).double()
    x = torch.randn(SHAPES[spatial][1:], dtype=torch.float64)
    expected = net(x)
    mf.accelerate(net)
    assert torch.equal(net(x), expected)
    assert torch.autograd.gradgradcheck(
        net, (torch.randn(2, 3, *(3,) * spatial, dtype=torch.float64).requires_grad_(),)
    )


def test_a_padding_of_images_does_not_follow_a_norm_of_lines() -> None:
    """To ReflectionPad2d three dimensions are an image without a batch."""
    net, x = nn.Sequential(nn.InstanceNorm1d(3), nn.ReLU(), nn.ReflectionPad2d(1)), torch.randn(2, 3, 8)
    expected = net(x)
    assert [f.what for f in mf.accelerate(net).replaced] == ["InstanceNorm1d + ReLU"]
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.to(memory_format=torch.channels_last_3d)])
def test_volumes_keep_their_layout(make: Callable[[Tensor], Tensor]) -> None:
    net, x = nn.Sequential(nn.InstanceNorm3d(3), nn.ReLU()), make(torch.randn(2, 3, 4, 6, 5))
    expected = net(x.contiguous())
    mf.accelerate(net)
    assert net(x).stride() == x.stride()
    torch.testing.assert_close(net(x), expected, check_stride=False)


def test_a_subclass_is_tried_out() -> None:
    class Same(nn.InstanceNorm3d):
        pass

    class Other(nn.InstanceNorm3d):
        def _apply_instance_norm(self, input: Tensor) -> Tensor:
            return 2 * super()._apply_instance_norm(input)

    assert len(mf.accelerate(nn.Sequential(Same(4))).replaced) == 1
    assert mf.accelerate(nn.Sequential(Other(4))).replaced == []

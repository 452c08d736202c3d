"""`munit_fast.accelerate` on networks with group norms, as diffusion models and their autoencoders have them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import munit_fast as mf
from munit_fast.accelerate import norms
from munit_fast.ops import winograd


class ResidualUnit(nn.Module):
    """Group norm, SiLU and convolution, twice, and a skip."""

    def __init__(self, channels: int, groups: int, conv: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), conv(channels, channels, 3, 1, 1),
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Dropout(0.0), conv(channels, channels, 3, 1, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SHAPES = {1: (2, 32, 40), 2: (2, 32, 24, 20), 3: (1, 32, 6, 8, 7)}


def randomised(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.GroupNorm)):
            norm.weight.uniform_(0.5, 1.5), norm.bias.normal_()
    return net


def results(net: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = net(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, *net.parameters()], upstream)]


@pytest.mark.parametrize("spatial", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_same_before_and_after(spatial: int, dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(0)
    net = randomised(nn.Sequential(ResidualUnit(32, 8, CONVS[spatial]), ResidualUnit(32, 32, CONVS[spatial]))).to(dtype)
    x = torch.randn(SHAPES[spatial], dtype=dtype) * 2 + 1
    if layout == "channels_last" and spatial > 1:
        order = torch.channels_last if spatial == 2 else torch.channels_last_3d
        net, x = net.to(memory_format=order), x.contiguous(memory_format=order)
    expected = results(net, x)
    plain = copy.deepcopy(net)
    report = mf.accelerate(net)
    assert sum(f.what.startswith("GroupNorm + SiLU") for f in report.replaced) >= 4
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for found, want in zip(results(net, x), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance, check_stride=False)
    report.restore()
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.skipif(not winograd.available(), reason="no Winograd convolutions on this processor")
def test_a_norm_before_a_planned_convolution_is_one_call_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = randomised(nn.Sequential(nn.GroupNorm(4, 64), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1)))
    x = torch.randn(1, 64, 96, 96)
    expected = net(x)
    into = [f.into for f in mf.accelerate(net).replaced]
    assert into == ["group_norm(act=silu)", "norm_act_conv2d(padding=1, padding_mode=zeros, norm=group, act=silu)"]
    monkeypatch.setattr(norms.ops, "epilogue", None)
    torch.testing.assert_close(net(x), expected, rtol=1e-3, atol=1e-3)


def test_any_number_of_dimensions_and_of_channels() -> None:
    norm = nn.GroupNorm(2, 4, affine=False)
    inputs = [torch.randn(3, 4), torch.randn(2, 4, 5, 2, 3, 2), torch.randn(2, 8, 5, 6), torch.randn(0, 4, 5)]
    expected = [norm(x) for x in inputs]
    mf.accelerate(norm)
    for x, want in zip(inputs, expected, strict=True):
        torch.testing.assert_close(norm(x), want)
    with pytest.raises(RuntimeError, match="divisible by num_groups"):  # PyTorch's own
        norm(torch.randn(2, 5, 4))
    net = nn.Sequential(norm, nn.ReLU())
    mf.accelerate(net)
    with pytest.raises(RuntimeError, match="at least 2 dimensions"):
        net(torch.randn(4))
    norm.num_groups = 2.0
    with pytest.raises(TypeError):
        norm(inputs[0])


def test_a_padding_of_images_does_not_follow_a_norm_of_lines() -> None:
    """To ReflectionPad2d three dimensions are an image without a batch."""
    net = nn.Sequential(nn.GroupNorm(1, 4), nn.ReLU(), nn.ReflectionPad2d(1))
    lines, images = torch.randn(2, 4, 8), torch.randn(2, 4, 8, 8)
    expected = net(lines), net(images)
    assert [f.what for f in mf.accelerate(net).replaced] == ["GroupNorm + ReLU + ReflectionPad2d"]
    torch.testing.assert_close((net(lines), net(images)), expected)


def test_a_subclass_with_its_own_forward_is_left_alone() -> None:
    class Wide(nn.GroupNorm):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.float()).to(input.dtype)

    class Called(nn.GroupNorm):
        def __call__(self, input: Tensor) -> Tensor:
            return 2 * super().__call__(input)

    class Same(nn.GroupNorm):
        pass

    net, x = nn.Sequential(Wide(2, 4), Same(2, 4), Called(2, 4), nn.ReLU()), torch.randn(2, 4, 5)
    expected = net(x)
    report = mf.accelerate(net)
    assert [f.name for f in report.replaced] == ["1"] and {s.name for s in report.skipped} == {"0", "2"}
    torch.testing.assert_close(net(x), expected)


def test_second_derivatives() -> None:
    net = randomised(nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())).double()
    mf.accelerate(net)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(net, (x,))


def test_where_autocast_computes_group_norms_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does on GPUs: the result is float32, but for a convolution, which would cast it back."""
    monkeypatch.setattr(norms, "_WIDE_GROUP_NORMS", ("cpu",))
    seen, original = [], norms.ops.epilogue

    def recorded(x: Tensor, *rest: object) -> Tensor:
        seen.append(x.dtype)
        return original(x, *rest)

    monkeypatch.setattr(norms.ops, "epilogue", recorded)
    x = torch.randn(2, 8, 6, 7, dtype=torch.bfloat16)
    alone = nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU())
    before_a_convolution = nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 1))
    for net in (alone, before_a_convolution):
        mf.accelerate(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert alone(x).dtype == torch.float32 and alone[0](x).dtype == torch.float32
        assert before_a_convolution(x).dtype == torch.bfloat16
    assert seen == [torch.float32, torch.float32, torch.bfloat16]

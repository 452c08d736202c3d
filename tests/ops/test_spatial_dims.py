"""Instance norm of lines, images and volumes: the functions and the modules against PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.layouts import lay_out
from munit_fast import functional as mf
from munit_fast import nn as mnn

SHAPES = {1: (2, 5, 24), 2: (2, 5, 6, 7), 3: (2, 5, 3, 4, 7)}
LAYOUTS = ("contiguous", "channels_last", "window")
SPATIAL = pytest.mark.parametrize("spatial", SHAPES)
OURS = {1: mnn.InstanceNorm1d, 2: mnn.InstanceNorm2d, 3: mnn.InstanceNorm3d}
THEIRS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def draw(spatial: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(SHAPES[spatial], dtype=torch.float64) * 1.5 + 0.5).to(dtype)


@SPATIAL
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(backend: str, spatial: int, layout: str) -> None:
    values = draw(spatial)
    x, r = lay_out(values, layout).requires_grad_(), lay_out(values.flip(-1), "contiguous").requires_grad_()
    w, b = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = mf.instance_norm(x, w, b, act="silu", residual=r, impl=backend)
    # In NCHW, where PyTorch's own gradient is right.
    expected = F.silu(F.instance_norm(x.contiguous(), weight=w, bias=b)) + r
    torch.testing.assert_close(y, expected, check_stride=False)
    upstream = torch.randn_like(expected)
    found = torch.autograd.grad(y, (x, w, b, r), lay_out(upstream, layout))
    for got, want in zip(found, torch.autograd.grad(expected, (x, w, b, r), upstream), strict=True):
        torch.testing.assert_close(got, want, check_stride=False)


@SPATIAL
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_layout_is_kept(backend: str, spatial: int, layout: str) -> None:
    x = lay_out(draw(spatial, torch.float32), layout).requires_grad_()
    for function in (mf.instance_norm, mf.scale_bias_act):
        y = function(x, torch.ones(5), impl=backend)
        assert y.stride() == x.stride()
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        assert gradient.stride() == x.stride()


@SPATIAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(cpu: str, spatial: int, dtype: torch.dtype) -> None:
    x = draw(spatial, dtype)
    y = mf.instance_norm(x, act="relu", impl=cpu)
    assert y.dtype == dtype
    expected = F.relu(F.instance_norm(x.double()))
    torch.testing.assert_close(y.double(), expected, rtol=4e-3 if dtype == torch.bfloat16 else 6e-4, atol=1e-6)


@SPATIAL
def test_a_scale_and_a_bias(backend: str, spatial: int) -> None:
    x, w, b = draw(spatial), torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    shape = (5, *(1,) * spatial)
    expected = torch.tanh(x * w.view(shape) + b.view(shape)) + x
    torch.testing.assert_close(mf.scale_bias_act(x, w, b, act="tanh", residual=x, impl=backend), expected)


@pytest.mark.parametrize("spatial", [1, 3])
def test_errors(spatial: int) -> None:
    x = draw(spatial)
    with pytest.raises(ValueError, match="pad must be 0 where x is not"):
        mf.instance_norm(x, pad=1)
    with pytest.raises(ValueError, match="x must not be empty"):
        mf.instance_norm(x[:0])
    with pytest.raises(ValueError, match="residual must have x's shape"):
        mf.instance_norm(x, residual=x[:1])
    with pytest.raises(TypeError, match="residual must have x's dtype"):
        mf.instance_norm(x, residual=x.float())
    with pytest.raises(ValueError, match=r"weight must have shape \[5\]"):
        mf.instance_norm(x, torch.ones(4))
    with pytest.raises(ValueError, match="larger than 1×1"):
        mf.instance_norm(x[(slice(None), slice(None), *(slice(1),) * spatial)])
    with pytest.raises(ValueError, match="must be"):
        mf.instance_norm(x[0, 0].flatten())
    with pytest.raises(TypeError, match="floating-point"):
        mf.instance_norm(x.long())


@SPATIAL
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_modules(spatial: int, affine: bool, tracked: bool, momentum: float | None) -> None:
    options: dict[str, Any] = {"eps": 1e-3, "momentum": momentum, "affine": affine, "track_running_stats": tracked}
    ours, theirs = OURS[spatial](5, **options), THEIRS[spatial](5, **options)
    assert isinstance(ours, THEIRS[spatial])
    with torch.no_grad():
        for value in theirs.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        x = draw(spatial, torch.float32)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(x[0]), theirs(x[0]), rtol=1e-4, atol=1e-5)
        for found, expected in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"x must be \[N, C, "):
        ours(torch.zeros(5))


@SPATIAL
def test_gradients_of_stored_statistics(spatial: int) -> None:
    options: dict[str, Any] = {"affine": True, "track_running_stats": True, "dtype": torch.float64}
    ours, theirs = OURS[spatial](5, **options).eval(), THEIRS[spatial](5, **options).eval()
    theirs.running_mean.normal_(), theirs.running_var.uniform_(0.5, 2)
    nn.init.normal_(theirs.weight), nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    x = draw(spatial).requires_grad_()
    upstream = torch.randn_like(x)
    found, expected = (torch.autograd.grad(m(x), (x, m.weight, m.bias), upstream) for m in (ours, theirs))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_statistics_are_tracked_in_the_dtype_of_the_buffers() -> None:
    module = mnn.InstanceNorm3d(5, track_running_stats=True)
    module(draw(3, torch.bfloat16))
    assert module.running_var is not None and module.running_var.dtype == torch.float32
    assert not torch.equal(module.running_var, torch.ones(5))


@SPATIAL
def test_tracked_modules_under_transforms(spatial: int) -> None:
    ours, theirs = (M[spatial](5, track_running_stats=True).double() for M in (OURS, THEIRS))
    x = draw(spatial)
    found, expected = (torch.func.grad(lambda x, m=m: m(x).pow(3).sum())(x) for m in (ours, theirs))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


def test_stored_statistics_in_bfloat16_lose_no_more_than_the_result() -> None:
    module = mnn.InstanceNorm2d(3, track_running_stats=True, affine=True).eval()
    module.running_mean.fill_(7.3), module.running_var.fill_(0.03)  # type: ignore[union-attr]
    module.bfloat16()
    x = (torch.randn(2, 3, 8, 8) * 0.17 + 7.3).bfloat16()
    exact = F.instance_norm(x.double(), module.running_mean.double(), module.running_var.double(), None, None, False)  # type: ignore[union-attr]
    assert (module(x).double() - exact).abs().max() < 0.01


def test_tracking_that_is_switched_on_later() -> None:
    ours, theirs = mnn.InstanceNorm2d(5), nn.InstanceNorm2d(5)
    x = draw(2, torch.float32)
    for module in (ours, theirs):
        module.track_running_stats = True
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="running statistics"):
        ours.eval()(x)
    with pytest.raises(ValueError, match="5 channels"):
        mnn.InstanceNorm2d(5, track_running_stats=True)(x[:, :4])


# Rows that are joined in part, one by one, not at all and wholly; windows are never joined.
JOINED = {
    "parts": (1, 8, 300, 128),
    "odd": (2, 1, 300, 127),
    "prime": (1, 3, 257, 70),
    "channels": (1, 256, 32, 32),
    "many channels": (2, 2300, 4, 2),
    "narrow": (1, 2, 40000, 1),
    "whole": (2, 5, 7, 9),
    "volume": (1, 12, 24, 25, 31),
}


@pytest.mark.parametrize("shape", JOINED.values(), ids=JOINED.keys())
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("residual", ["none", "dense", "window"])
def test_images_of_many_rows(cpu: str, shape: tuple[int, ...], layout: str, residual: str) -> None:
    """Without padding, rows are joined; the residual must be read row by row all the same."""
    x = lay_out(torch.randn(shape), layout).requires_grad_()
    r = None if residual == "none" else torch.randn(shape)
    if residual == "dense":
        r = lay_out(r, layout)
    if residual == "window" and layout == "contiguous":
        r = lay_out(r, "window")
    elif residual == "window":
        r = lay_out(torch.cat([r, r], -1), layout)[..., : shape[-1]]
    added = 0 if r is None else r.double()
    upstream = torch.randn(shape)
    for act, expected_act in (("relu", F.relu), ("silu", F.silu)):
        y = mf.instance_norm(x, act=act, residual=r, impl=cpu)
        double = x.detach().double().contiguous().requires_grad_()
        over = tuple(range(2, len(shape)))
        centred = double - double.mean(over, keepdim=True)
        expected = expected_act(centred / (centred.square().mean(over, keepdim=True) + 1e-5).sqrt()) + added
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5, check_stride=False)
        found, wanted = (
            torch.autograd.grad(y, x, upstream)[0],
            torch.autograd.grad(expected, double, upstream.double())[0],
        )
        assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-4

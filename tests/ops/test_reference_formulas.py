"""The specification itself: against compositions of PyTorch's own functions, and its gradient against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.oracle import DTYPES, gradients, in_double
from munit_fast.ops.cases import OPS, CaseTensors, EpilogueCase, grid, make_tensors
from munit_fast.ops.spec import ACTIVATIONS
from munit_fast.reference import epilogue as formulas
from munit_fast.reference import layers, losses

EXACT = {"rtol": 1e-12, "atol": 1e-12}
MODULES = {
    "none": nn.Identity(),
    "relu": nn.ReLU(),
    "lrelu": nn.LeakyReLU(0.2),
    "selu": nn.SELU(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
}
PAD_MODULES = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "zero": nn.ZeroPad2d}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * 1.5 + 0.7


def test_instance_norm_is_pytorchs() -> None:
    x, weight, bias = draw(2, 5, 6, 7), draw(5), draw(5)
    expected = F.instance_norm(x, weight=weight, bias=bias, eps=1e-3)
    torch.testing.assert_close(formulas.epilogue(x, weight, bias, norm="instance", eps=1e-3), expected, **EXACT)


def test_adain_is_the_published_layer() -> None:
    x, weight, bias = draw(2, 5, 6, 7), draw(2, 5), draw(2, 5)
    expected = layers.AdaptiveInstanceNorm2d(5)(x, weight, bias)
    torch.testing.assert_close(formulas.epilogue(x, weight, bias, norm="instance"), expected, **EXACT)


def test_layer_norm_is_the_published_layer() -> None:
    x, norm = draw(3, 5, 4, 6) + 7, layers.LayerNorm(5).double()
    y = formulas.epilogue(x, norm.gamma.detach(), norm.beta.detach(), norm="layer")
    torch.testing.assert_close(y, norm(x).detach(), **EXACT)
    mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
    torch.testing.assert_close(formulas.epilogue(x, norm="layer", eps=0.1), (x - mean) / (std + 0.1), **EXACT)


@pytest.mark.parametrize("act", MODULES)
@pytest.mark.parametrize("mode", PAD_MODULES)
def test_the_order_is_activation_residual_padding(act: str, mode: str) -> None:
    x, bias, residual = draw(2, 3, 5, 4), draw(3), draw(2, 3, 5, 4)
    expected = PAD_MODULES[mode](2)(MODULES[act](x + bias[:, None, None]) + residual)
    y = formulas.epilogue(x, None, bias, residual, act=act, pad=2, pad_mode=mode)
    torch.testing.assert_close(y, expected, **EXACT)


@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu_is_pytorchs(slopes: int) -> None:
    x, slope = draw(2, 3, 5, 4), draw(slopes)
    torch.testing.assert_close(formulas.epilogue(x, act="prelu", slope=slope), F.prelu(x, slope), **EXACT)


def test_depth_to_space_is_the_onnx_order() -> None:
    n, p, h, w, r = 2, 3, 4, 5, 2
    x = draw(n, r * r * p, h, w)
    y = formulas.depth_to_space(x, r)
    for i in range(r):
        for j in range(r):
            phase = x[:, (i * r + j) * p : (i * r + j + 1) * p]
            assert torch.equal(y[:, :, i::r, j::r], phase)
    by_pytorch = F.pixel_shuffle(x.view(n, r * r, p, h, w).transpose(1, 2).reshape(n, -1, h, w), r)
    assert torch.equal(y, by_pytorch)
    assert torch.equal(formulas.space_to_depth(y, r), x)


def test_parameters_shared_by_the_phases() -> None:
    x, weight, bias, slope = draw(2, 12, 4, 5), draw(3), draw(3), draw(12)
    y = formulas.epilogue(x, weight, bias, norm="layer", act="prelu", slope=slope, block=2)
    expected = formulas.epilogue(x, weight.repeat(4), bias.repeat(4), norm="layer", act="prelu", slope=slope, block=2)
    assert torch.equal(y, expected)
    # One scale and one shift for each channel of the result.
    by_hand = formulas.depth_to_space(formulas.epilogue(x, norm="layer"), 2)
    by_hand = by_hand * weight[:, None, None] + bias[:, None, None]
    affine = formulas.epilogue(x, weight, bias, norm="layer", block=2)
    torch.testing.assert_close(affine, by_hand, **EXACT)


@pytest.mark.parametrize("mode", PAD_MODULES)
@pytest.mark.parametrize(("h", "w", "pad"), [(2, 2, 1), (4, 3, 2), (5, 9, 4), (1, 6, 3), (3, 1, 5)])
def test_padding_and_its_gradient_are_pytorchs(mode: str, h: int, w: int, pad: int) -> None:
    if mode == "reflect" and pad >= min(h, w):
        pytest.skip("reflection needs a larger side")
    x = draw(2, 3, h, w).requires_grad_()
    expected = PAD_MODULES[mode](pad)(x)
    assert torch.equal(formulas.pad2d(x, pad, mode), expected)
    upstream = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(formulas.pad2d_backward(upstream, pad, mode), gradient, **EXACT)


def test_statistics() -> None:
    x = draw(2, 3, 4, 5)
    mean, variance = formulas.statistics(x, "instance")
    torch.testing.assert_close(mean, x.mean((2, 3)).flatten(), **EXACT)
    torch.testing.assert_close(variance, x.var((2, 3), correction=0).flatten(), **EXACT)
    mean, std = formulas.statistics(x, "layer")
    torch.testing.assert_close(mean, x.mean((1, 2, 3)), **EXACT)
    torch.testing.assert_close(std, x.std((1, 2, 3)), **EXACT)
    assert formulas.statistics(x, "none").shape == (2, 0)
    x = draw(2, 6, 4, 5)
    mean, variance = formulas.statistics(x, "group", 2).view(2, 2, 2, 3)
    for plane in range(3):  # of each group
        torch.testing.assert_close(mean[..., plane], x.view(2, 2, -1).mean(2), **EXACT)
        torch.testing.assert_close(variance[..., plane], x.view(2, 2, -1).var(2, correction=0), **EXACT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arithmetic_is_wide_and_the_result_is_rounded_once(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 3, 8, 8) * 2 + 1).to(dtype)
    wide = x.to(torch.promote_types(dtype, torch.float32))
    for norm in ("none", "instance", "layer"):
        options = {"norm": norm, "act": "selu", "pad": 1}
        y = formulas.epilogue(x, **options)
        assert torch.equal(y, formulas.epilogue(wide, **options).to(dtype))
        assert formulas.statistics(x, norm).dtype == wide.dtype


def backward_of(case: EpilogueCase, inputs: CaseTensors, upstream: Tensor) -> CaseTensors:
    """The gradients by the written-out formula."""
    x, weight, bias, residual, slope = (t if t is None else t.detach() for t in inputs)
    dx, dresidual, sums = formulas.epilogue_backward(
        upstream,
        x,
        formulas.statistics(x, case.norm, case.groups),
        weight,
        bias,
        norm=case.norm,
        eps=case.eps,
        act=case.act,
        slope=0.2 if slope is None else slope,
        block=case.block,
        pad=case.pad,
        pad_mode=case.pad_mode,
        groups=case.groups,
    )

    def of_parameter(planes: Tensor, like: Tensor | None) -> Tensor | None:
        if like is None:
            return None
        if like.dim() == 2:
            return planes
        return torch.stack([planes[:, k :: like.numel()].sum() for k in range(like.numel())])

    parts = of_parameter(sums[1], weight), of_parameter(sums[0], bias)
    return CaseTensors(dx, *parts, None if residual is None else dresidual, of_parameter(sums[2], slope))


@pytest.mark.parametrize("op", OPS)
def test_the_written_gradient_is_autograds(op: str) -> None:
    for case in grid(op, torch.float64, "nchw"):
        inputs = in_double(make_tensors(case))
        y = case.specification(inputs)
        upstream = torch.randn_like(y)
        expected = gradients(y, inputs, upstream)
        for name, got, want in zip(CaseTensors._fields, backward_of(case, inputs, upstream), expected):
            assert (got is None) == (want is None), name
            if got is not None:
                assert torch.allclose(got, want, rtol=1e-10, atol=1e-10), f"{name} of {case}"


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_the_written_gradient_is_finite_on_constant_planes(norm: str, act: str) -> None:
    x = torch.full((2, 3, 4, 4), 0.3)
    slope = torch.tensor([0.2]) if act == "prelu" else 0.2
    stats = formulas.statistics(x, norm)
    for part in formulas.epilogue_backward(torch.randn_like(x), x, stats, norm=norm, act=act, slope=slope):
        assert part.isfinite().all()


def test_losses_are_pytorchs() -> None:
    pairs = [(draw(2, 3, 4, 5), draw(2, 3, 4, 5)), (draw(7), draw(7))]
    pairs = [(a.requires_grad_(), b.requires_grad_()) for a, b in pairs]
    first, second = zip(*pairs)
    values = losses.l1_losses(first, second)
    expected = torch.stack([F.l1_loss(a, b) for a, b in pairs])
    torch.testing.assert_close(values, expected, **EXACT)
    upstream = torch.randn(2, dtype=torch.float64)
    for got, want in zip(losses.l1_losses_backward(upstream, first, second), gradient_of(expected, first, upstream)):
        torch.testing.assert_close(got.detach(), want, **EXACT)

    value = losses.lsgan_loss(first, 0.9)
    expected = sum(F.mse_loss(a, torch.full_like(a, 0.9)) for a in first)
    torch.testing.assert_close(value, expected, **EXACT)
    upstream = torch.tensor(-1.7, dtype=torch.float64)
    for got, want in zip(losses.lsgan_loss_backward(upstream, first, 0.9), gradient_of(expected, first, upstream)):
        torch.testing.assert_close(got.detach(), want, **EXACT)


def gradient_of(y: Tensor, inputs: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, upstream)

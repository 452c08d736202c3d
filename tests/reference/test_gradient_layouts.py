"""The reference's gradients in every memory layout, where torch's own instance norm is wrong at batch 1 on CPUs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast import reference
from munit_fast.reference import layers

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BATCH = pytest.mark.parametrize("n", [1, 2])
SIZE = (6, 9, 7)


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Huang & Belongie, ICCV 2017, eq. 5 to 8, of x [N, C, H, W] with weight and bias [N, C]."""
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    y = (x - mean) / (variance + eps).sqrt()
    return y if weight is None else weight[:, :, None, None] * y + bias[:, :, None, None]


class Formula(nn.Module):
    """A norm by its formula."""

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return instance_norm(x, weight, bias)


class Styled(nn.Module):
    """A block with the norm "adain", called with its three tensors."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.block(x, (weight, bias))


def by_formula(net: nn.Module) -> nn.Module:
    """A copy of a network whose instance norms and AdaIN are their formulas."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, (layers.InstanceNorm2d, layers.AdaptiveInstanceNorm2d)):
            module.forward = Formula().forward
    return net


def draw(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64) + 0.5).to(dtype)


def gradients(call: Callable[..., Tensor], inputs: list[Tensor], before: str, after: str) -> list[Tensor]:
    """The gradients of every input for a gradient in layout `after` of the result, x being in layout `before`."""
    x, *others = (t.detach().clone() for t in inputs)
    x = x.contiguous(memory_format=LAYOUTS[before])
    inputs = [t.requires_grad_() for t in (x, *others)]
    y = call(*inputs)
    upstream = draw(*y.shape).flip(-1).to(y.dtype).contiguous(memory_format=LAYOUTS[after])
    return list(torch.autograd.grad(y, inputs, upstream))


def cases(n: int) -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]]:
    """What is called, its formula, and the inputs, in float64."""
    x, weight, bias = draw(n, *SIZE), draw(n, SIZE[0]), draw(n, SIZE[0] + 1)[:, 1:]
    norm, adain = layers.make_norm("in", SIZE[0]), layers.make_norm("adain", SIZE[0])
    found = {"norm": (norm, instance_norm, [x]), "adain": (adain, instance_norm, [x, weight, bias])}
    torch.manual_seed(0)
    for activation in ("none", "lrelu", "tanh"):
        block = layers.Conv2dBlock(SIZE[0], 5, 3, 1, 1, norm="in", activation=activation, pad_type="reflect").double()
        found[f"block {activation}"] = (block, by_formula(block), [x])
        block = layers.Conv2dBlock(SIZE[0], SIZE[0], 3, 1, 1, norm="adain", activation=activation).double()
        styled, formula = Styled(block), Styled(by_formula(block))
        found[f"adain block {activation}"] = (styled, formula, [x, weight, bias])
    residual = layers.ResBlock(SIZE[0]).double()
    found["residual block"] = (residual, by_formula(residual), [x])
    return found


@BATCH
@pytest.mark.parametrize("name", cases(1))
def test_gradients_in_every_layout(n: int, name: str) -> None:
    call, formula, inputs = cases(n)[name]
    expected = gradients(formula, inputs, "contiguous", "contiguous")
    for before, after in product(LAYOUTS, LAYOUTS):
        for got, want in zip(gradients(call, inputs, before, after), expected, strict=True):
            assert torch.allclose(got, want, rtol=1e-9, atol=1e-12), (before, after)


@BATCH
@pytest.mark.parametrize("activation", ["relu", "selu"])
def test_gradients_of_a_generator_in_channels_last(n: int, activation: str) -> None:
    torch.manual_seed(0)
    sizes = {"dim": 4, "style_dim": 3, "n_downsample": 1, "n_res": 1, "mlp_dim": 8}
    net = reference.AdaINGen(3, {**sizes, "activ": activation, "pad_type": "reflect"}).double()
    formula = by_formula(net)
    net = net.to(memory_format=torch.channels_last)
    x = draw(n, 3, 32, 40)
    (expected,) = gradients(formula, [x], "contiguous", "contiguous")
    of_weights = {}
    for model in (net, formula):
        layout = "channels_last" if model is net else "contiguous"
        y = model(x.contiguous(memory_format=LAYOUTS[layout]))
        y.backward(draw(*y.shape).contiguous(memory_format=LAYOUTS[layout]))
        of_weights[layout] = {name: p.grad for name, p in model.named_parameters()}
    torch.testing.assert_close(*of_weights.values(), check_stride=False)
    for before, after in product(LAYOUTS, LAYOUTS):
        torch.testing.assert_close(gradients(net, [x], before, after)[0], expected, check_stride=False)


@BATCH
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_are_torchs_bit_for_bit(n: int, layout: str, dtype: torch.dtype) -> None:
    x = draw(n, 6, 33, 31, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    norm, theirs = layers.make_norm("in", 6), nn.InstanceNorm2d(6)
    assert torch.equal(norm(x), theirs(x)) and norm(x).stride() == theirs(x).stride()
    assert torch.equal(norm(x[0]), theirs(x[0]))
    weight, bias = draw(n, 6).float(), draw(n, 7)[:, 1:].float()
    flat = F.batch_norm(x.reshape(1, -1, 33, 31), None, None, weight.reshape(-1), bias.reshape(-1), training=True)
    assert torch.equal(layers.AdaptiveInstanceNorm2d(6)(x, weight, bias), flat.view(x.shape))


def test_instance_norm_with_parameters_and_running_statistics() -> None:
    options = {"affine": True, "track_running_stats": True, "momentum": 0.3, "eps": 1e-2}
    ours, theirs = layers.InstanceNorm2d(6, **options), nn.InstanceNorm2d(6, **options)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        for x in (draw(3, *SIZE, dtype=torch.float32), draw(*SIZE, dtype=torch.float32)):
            assert torch.equal(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def adain_net(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return layers.AdaptiveInstanceNorm2d(6)(layers.InstanceNorm2d(6)(x).tanh(), weight, bias)


@BATCH
def test_second_derivatives(n: int) -> None:
    inputs = [t.requires_grad_() for t in (draw(n, 6, 2, 3), draw(n, 6), draw(n, 7)[:, 1:].clone())]
    assert torch.autograd.gradgradcheck(adain_net, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_per_sample(layout: str) -> None:
    x, weight, bias = draw(3, *SIZE), draw(3, 6), draw(3, 7)[:, 1:]
    x, upstream = x.contiguous(memory_format=LAYOUTS[layout]), draw(1, *SIZE)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (adain_net(x[None], weight[None], bias[None]).sin() * upstream).sum()

    found = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)))(x, weight, bias)
    for i in range(3):
        one = [t[i].clone().requires_grad_() for t in (x, weight, bias)]
        y = instance_norm(instance_norm(one[0][None]).tanh(), one[1][None], one[2][None])
        expected = torch.autograd.grad((y.sin() * upstream).sum(), one)
        torch.testing.assert_close([g[i] for g in found], list(expected), check_stride=False)


class AdaINNet(nn.Module):
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return adain_net(x, weight, bias)


def test_an_export_and_a_trace_serve_other_batches() -> None:
    def inputs(n: int) -> tuple[Tensor, ...]:
        return draw(n, *SIZE), draw(n, 6), draw(n, 7)[:, 1:].clone()

    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(AdaINNet(), inputs(2), dynamic_shapes=({0: batch},) * 3).module()
    traced = torch.jit.trace(AdaINNet(), inputs(1), check_trace=False)
    for n in (2, 3):
        torch.testing.assert_close(program(*inputs(n)), adain_net(*inputs(n)))
        torch.testing.assert_close(traced(*inputs(n)), adain_net(*inputs(n)))

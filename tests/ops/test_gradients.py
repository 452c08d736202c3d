"""Autograd: gradcheck, which inputs get a gradient, and what the backward keeps."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from helpers.oracle import run
from munit_fast import functional as mf
from munit_fast.ops.cases import OPS, CaseTensors, EpilogueCase, make_tensors
from munit_fast.ops.spec import ACTIVATIONS, PAD_MODES


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradcheck(impl: str, op: str, act: str) -> None:
    mode = PAD_MODES[(OPS.index(op) + ACTIVATIONS.index(act)) % 3]
    case = EpilogueCase(op, (2, 4, 2, 3), torch.float64, "channels_last", act, 1, mode, residual=True)
    inputs = make_tensors(case)
    given = [t for t in inputs if t is not None]

    def function(*tensors: Tensor) -> Tensor:
        values = iter(tensors)
        return run(case, CaseTensors(*(t if t is None else next(values) for t in inputs)), impl)

    assert torch.autograd.gradcheck(function, given)


def test_gradcheck_of_the_losses(impl: str) -> None:
    a, c = double(2, 3, 4, 3), double(5)
    b, d = (a + 0.5 * torch.randn_like(a).sign()).detach().requires_grad_(), (c - 0.25).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, c, d: mf.l1_losses([(a, b), (c, d)], impl=impl), (a, b, c, d))
    assert torch.autograd.gradcheck(lambda a, b: mf.l1_loss(a, b, impl=impl), (a, b))
    assert torch.autograd.gradcheck(lambda a, c: mf.lsgan_loss([a, c], 0.9, impl=impl), (a, c))


def test_the_first_derivative_is_right_with_create_graph(impl: str) -> None:
    case = EpilogueCase("instance_affine", (2, 4, 5, 4), torch.float64, act="selu", pad=1)
    inputs = make_tensors(case)
    y = run(case, inputs, impl)
    upstream = torch.randn_like(y)
    (plain,) = torch.autograd.grad(y, inputs.x, upstream, retain_graph=True)
    (graph,) = torch.autograd.grad(y, inputs.x, upstream, create_graph=True)
    torch.testing.assert_close(plain, graph.detach())


@pytest.mark.parametrize("op", ["instance_affine", "adain", "layer_shared", "bias_act"])
@pytest.mark.parametrize("pad", [0, 2])
def test_any_subset_of_inputs_may_need_a_gradient(impl: str, op: str, pad: int) -> None:
    case = EpilogueCase(op, (2, 4, 5, 4), torch.float64, "channels_last", "prelu", pad, residual=True)
    inputs = make_tensors(case)
    names = [name for name, t in zip(CaseTensors._fields, inputs) if t is not None]
    y = case.specification(inputs)
    upstream = torch.randn_like(y)
    expected = dict(zip(names, torch.autograd.grad(y, [getattr(inputs, name) for name in names], upstream)))
    for count in range(len(names) + 1):
        for needed in itertools.combinations(names, count):
            for name in names:
                leaf = getattr(inputs, name)
                leaf.grad = None
                leaf.requires_grad_(name in needed)
            y = run(case, inputs, impl)
            assert y.requires_grad == bool(needed)
            if needed:
                y.backward(upstream)
            for name in names:
                gradient = getattr(inputs, name).grad
                assert (gradient is not None) == (name in needed)
                if gradient is not None:
                    torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-10)


def test_a_result_that_is_not_used_has_no_gradient(impl: str) -> None:
    """An upstream gradient that is absent, as opposed to zero."""

    class Two(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, a: Tensor, b: Tensor) -> Tensor:
            return a + b

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
            return grad, None

    x, z = double(1, 2, 3, 3), double(1, 2, 3, 3)
    unused = mf.instance_norm(x, double(2), act="relu", residual=double(1, 2, 3, 3), impl=impl)
    lost = mf.l1_losses([(x, x + 1)], impl=impl)[0] + mf.lsgan_loss(x, 0.0, impl=impl)
    Two.apply(z, unused + lost).sum().backward()
    assert x.grad is None
    assert torch.equal(z.grad, torch.ones_like(z))


def test_without_gradients(impl: str) -> None:
    x, weight = double(2, 3, 4, 4), double(3)
    expected = mf.instance_norm(x, weight, act="relu", pad=1, impl=impl)
    assert expected.requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = mf.instance_norm(x, weight, act="relu", pad=1, impl=impl)
            loss = mf.l1_loss(x, x + 1, impl=impl) + mf.lsgan_loss(x, 0.0, impl=impl)
        assert not y.requires_grad and not loss.requires_grad
        assert torch.equal(y, expected)
    frozen = mf.instance_norm(x.detach(), weight.detach(), impl=impl)
    assert not frozen.requires_grad and frozen.grad_fn is None


def test_only_x_and_the_statistics_are_kept(impl: str) -> None:
    """The result and the residual may be written over before the backward; x may not."""
    case = EpilogueCase("instance_affine", (2, 4, 5, 4), torch.float64, act="selu", pad=1, residual=True)
    inputs = make_tensors(case)
    residual = inputs.residual.detach().clone().requires_grad_()
    changed = residual * 1
    y = run(case, inputs._replace(residual=changed), impl)
    (expected,) = torch.autograd.grad(y, inputs.x, torch.ones_like(y), retain_graph=True)
    with torch.no_grad():
        changed.zero_()
        y.mul_(2)
    (got,) = torch.autograd.grad(y, inputs.x, torch.ones_like(y), retain_graph=True)
    assert torch.equal(got, expected)

    x = inputs.x * 1
    y = run(case, inputs._replace(x=x), impl)
    with torch.no_grad():
        x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        run(case, inputs, impl)
    values = sum(t.numel() for t in held)
    assert values == inputs.x.numel() + inputs.weight.numel() + inputs.bias.numel() + 2 * 2 * 4


@pytest.mark.parametrize("op", ["adain", "instance_affine"])
def test_parameters_that_are_slices(impl: str, op: str) -> None:
    """An MLP gives all AdaIN parameters in one tensor."""
    case = EpilogueCase(op, (2, 4, 5, 4), torch.float64, act="relu")
    inputs = make_tensors(case)
    stacked = torch.stack([inputs.weight, inputs.bias], dim=-1).detach().requires_grad_()
    sliced = run(case, inputs._replace(weight=stacked[..., 0], bias=stacked[..., 1]), impl)
    y = run(case, inputs, impl)
    assert torch.equal(sliced, y)
    upstream = torch.randn_like(y)
    expected = torch.stack(torch.autograd.grad(y, (inputs.weight, inputs.bias), upstream), dim=-1)
    assert torch.equal(*torch.autograd.grad(sliced, stacked, upstream), expected)


def test_one_tensor_in_several_places(impl: str) -> None:
    x = double(2, 3, 4, 4)
    y = mf.instance_norm(x, residual=x, impl=impl)
    upstream = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, x, upstream)
    other = x.detach().clone().requires_grad_()
    expected = sum(torch.autograd.grad(mf.instance_norm(x, residual=other, impl=impl), (x, other), upstream))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["instance_norm", "bias_act", "l1_loss", "lsgan_loss"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(name: str, reentrant: bool) -> None:
    functions = {
        "instance_norm": lambda x: mf.instance_norm(x, act="relu", pad=1),
        "bias_act": lambda x: mf.bias_act(x, act="lrelu"),
        "l1_loss": lambda x: mf.l1_loss(x, torch.zeros_like(x)),
        "lsgan_loss": lambda x: mf.lsgan_loss([x], 1.0),
    }
    x = torch.randn(1, 2, 6, 5, requires_grad=True)
    y = checkpoint(functions[name], x, use_reentrant=reentrant)
    upstream = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, x, upstream) if not reentrant else (_backward(y, x, upstream),)
    (wanted,) = torch.autograd.grad(functions[name](x), x, upstream)
    assert torch.equal(got, wanted)


def _backward(y: torch.Tensor, x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    y.backward(upstream)
    assert x.grad is not None
    return x.grad

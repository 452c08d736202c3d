"""What PyTorch users apply to a function: derivatives of any order, torch.func, tracing and export.

The expectations are written in plain PyTorch here, so that they do not share code with what they check.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from munit_fast import functional as mf
from munit_fast.ops import winograd
from munit_fast.ops.spec import ACTIVATIONS

Function = Callable[..., Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning", "ignore::torch.jit.TracerWarning")


def normalised(x: Tensor, eps: float = 1e-5) -> Tensor:
    over = tuple(range(2, x.dim()))
    centred = x - x.mean(over, keepdim=True)
    return centred / (centred.square().mean(over, keepdim=True) + eps).sqrt()


def layer_normalised(x: Tensor, eps: float = 1e-5) -> Tensor:
    rows = x.flatten(1)
    std = rows.std(1).view(-1, 1, 1, 1)
    return (x - rows.mean(1).view(-1, 1, 1, 1)) / (std + eps)


def of_channel(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(*t.shape, *(1,) * (x.dim() - 2))


def reflected(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="reflect")


# Ours, the same in plain PyTorch, and the shapes of the arguments.
CASES: dict[str, tuple[Function, Function, list[tuple[int, ...]]]] = {
    "instance_norm": (
        lambda x, w, b, r: mf.instance_norm(x, w, b, act="tanh", residual=r, pad=1),
        lambda x, w, b, r: reflected(torch.tanh(normalised(x) * of_channel(w, x) + of_channel(b, x)) + r),
        [(2, 3, 4, 5), (3,), (3,), (2, 3, 4, 5)],
    ),
    "instance_norm of volumes": (
        lambda x, w: mf.instance_norm(x, w, act="silu"),
        lambda x, w: F.silu(normalised(x) * of_channel(w, x)),
        [(2, 3, 2, 4, 3), (3,)],
    ),
    "group_norm": (
        lambda x, w, b: mf.group_norm(x, 2, w, b, act="gelu"),
        lambda x, w, b: F.gelu(normalised(x.reshape(-1, 2, 6)).reshape(x.shape) * of_channel(w, x) + of_channel(b, x)),
        [(2, 4, 3, 1), (4,), (4,)],
    ),
    "adain": (
        lambda x, w, b: mf.adain(x, w, b, act="selu"),
        lambda x, w, b: F.selu(normalised(x) * of_channel(w, x) + of_channel(b, x)),
        [(2, 3, 4, 4), (2, 3), (2, 3)],
    ),
    "layer_norm2d": (
        lambda x, w, b: mf.layer_norm2d(x, w, b, act="silu", depth_to_space=2),
        lambda x, w, b: depth_to_space(F.silu(layer_normalised(x) * of_channel(w, x) + of_channel(b, x))),
        [(2, 4, 3, 3), (4,), (4,)],
    ),
    "bias_act": (
        lambda x, b, s: mf.bias_act(x, b, act="prelu", slope=s),
        lambda x, b, s: F.prelu(x + of_channel(b, x), s),
        [(2, 3, 3, 3), (3,), (1,)],
    ),
    "bias_act and gelu": (
        lambda x, b: mf.bias_act(x, b, act="gelu"),
        lambda x, b: F.gelu(x + of_channel(b, x)),
        [(2, 3, 3, 3), (3,)],
    ),
    "scale_bias_act": (
        lambda x, w, b: mf.scale_bias_act(x, w, b, act="tanh"),
        lambda x, w, b: torch.tanh(x * of_channel(w, x) + of_channel(b, x)),
        [(2, 3, 3, 3), (3,), (3,)],
    ),
    "norm_act_conv2d": (
        lambda x, k, w: mf.norm_act_conv2d(
            x, k, norm="instance", weight=w, act="tanh", padding=1, padding_mode="reflect"
        ),
        lambda x, k, w: F.conv2d(reflected(torch.tanh(normalised(x) * of_channel(w, x))), k),
        [(2, 3, 4, 4), (2, 3, 3, 3), (3,)],
    ),
    "l1_losses": (
        lambda a, b: mf.l1_losses([(a, b), (a * b, b)]),
        lambda a, b: torch.stack([(a - b).abs().mean(), (a * b - b).abs().mean()]),
        [(2, 3, 4), (2, 3, 4)],
    ),
    "lsgan_loss": (
        lambda a, b: mf.lsgan_loss([a, b], 0.9),
        lambda a, b: (a - 0.9).square().mean() + (b - 0.9).square().mean(),
        [(2, 1, 4, 4), (2, 1, 2, 2)],
    ),
}


def depth_to_space(x: Tensor) -> Tensor:
    """Phases are the slow part of the channels: ONNX's DCR."""
    n, c, h, w = x.shape
    return x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Function, Function, list[Tensor]]:
    ours, plain, shapes = CASES[request.param]
    return ours, plain, [torch.randn(shape, dtype=torch.float64) for shape in shapes]


Case = tuple[Function, Function, list[Tensor]]


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, check_stride=False)


def test_the_expectations(case: Case) -> None:
    ours, plain, arguments = case
    close(ours(*arguments), plain(*arguments))


def test_second_derivatives(case: Case) -> None:
    ours, _, arguments = case
    assert torch.autograd.gradgradcheck(ours, [t.requires_grad_() for t in arguments])


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_second_derivatives_of_activations(impl: str, act: str) -> None:
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([0.3], dtype=torch.float64, requires_grad=True) if act == "prelu" else 0.3
    options: dict[str, Any] = {"act": act, "slope": slope, "impl": impl}
    assert torch.autograd.gradgradcheck(lambda x: mf.instance_norm(x, **options), (x,))
    assert torch.autograd.gradgradcheck(lambda x: mf.layer_norm2d(x, **options), (x,))


def test_parameters_that_depend_on_the_input() -> None:
    """What reaches x through the parameters of AdaIN is autograd's to add, once."""

    def function(of: Function) -> Function:
        return lambda x: of(x, x.mean((2, 3)), x.amax((2, 3)))

    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    ours, plain, _ = CASES["adain"]
    results = []
    for of in (ours, plain):
        (gradient,) = torch.autograd.grad(function(of)(x).square().sum(), x, create_graph=True)
        results.append((gradient, *torch.autograd.grad(gradient.square().sum(), x)))
    close(results[0], results[1])


def test_one_tensor_in_several_places() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: mf.instance_norm(x, residual=x, act="tanh"), (x,))
    assert torch.autograd.gradgradcheck(lambda x: mf.l1_losses([(x, 2 * x), (x, x.square() + 3)]), (x,))


def test_a_gradient_penalty_beside_another_loss(impl: str) -> None:
    """Through a discriminator's first layers, as WGAN-GP and R1 have it."""
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    results = []
    for ours in (True, False):
        w, x = weight.clone().requires_grad_(), torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=seeded())
        z = F.conv2d(x.requires_grad_(), w, padding=1)
        y = mf.instance_norm(z, act="tanh", impl=impl) if ours else torch.tanh(normalised(z))
        loss = y.square().mean()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        results.append(torch.autograd.grad(loss + 10 * gradient.square().sum(), w)[0])
    close(results[0], results[1])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_the_backward_without_create_graph_is_the_fused_one(monkeypatch: pytest.MonkeyPatch, cpu: str) -> None:
    from munit_fast.ops import formulas

    def unexpected(*_: Any) -> None:
        raise AssertionError("the formula ran")

    monkeypatch.setattr(formulas, "epilogue", unexpected)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    mf.instance_norm(x, impl=cpu).sum().backward()
    with pytest.raises(AssertionError, match="the formula ran"):
        torch.autograd.grad(mf.instance_norm(x, impl=cpu).sum(), x, create_graph=True)


def test_torch_func(case: Case) -> None:
    ours, plain, arguments = case
    every = tuple(range(len(arguments)))
    tangents = tuple(torch.randn_like(t) for t in arguments)

    def scalar(function: Function) -> Function:
        return lambda *given: function(*given).square().sum()

    close(grad(scalar(ours), every)(*arguments), grad(scalar(plain), every)(*arguments))
    close(jvp(ours, tuple(arguments), tangents), jvp(plain, tuple(arguments), tangents))
    y = ours(*arguments)
    upstream = torch.randn_like(y)
    close(vjp(ours, *arguments)[1](upstream), vjp(plain, *arguments)[1](upstream))
    close(jacrev(ours, every)(*arguments), jacrev(plain, every)(*arguments))
    batched = [torch.stack([t, t + 0.3, 2 * t]) for t in arguments]
    close(vmap(ours)(*batched), vmap(plain)(*batched))
    close(vmap(grad(scalar(ours), every))(*batched), vmap(grad(scalar(plain), every))(*batched))
    only_first = (0, *[None] * (len(arguments) - 1))
    close(vmap(ours, only_first)(batched[0], *arguments[1:]), vmap(plain, only_first)(batched[0], *arguments[1:]))


def test_a_hessian() -> None:
    ours, plain, shapes = CASES["adain"]
    arguments = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    found, expected = (hessian(lambda x, f=f: f(x, *arguments[1:]).square().sum())(arguments[0]) for f in (ours, plain))
    close(found, expected)


def test_forward_mode(case: Case) -> None:
    ours, plain, arguments = case
    tangent = torch.randn_like(arguments[0])
    with forward_ad.dual_level():
        first = forward_ad.make_dual(arguments[0], tangent)
        found, expected = (forward_ad.unpack_dual(f(first, *arguments[1:])).tangent for f in (ours, plain))
    close(found, expected)


@pytest.mark.parametrize("name", ["instance_norm", "group_norm", "layer_norm2d", "norm_act_conv2d"])
def test_traced_programs_need_no_munit_fast(name: str) -> None:
    ours, _, shapes = CASES[name]
    arguments = [torch.randn(shape) for shape in shapes]
    traced = torch.jit.trace(ours, tuple(arguments), check_trace=False)
    assert "munit_fast::" not in str(traced.inlined_graph)
    memory = io.BytesIO()
    torch.jit.save(traced, memory)
    memory.seek(0)
    loaded = torch.jit.load(memory)
    for sides in (1, 2):  # of another size too
        given = [torch.cat([t] * sides, -1) if t.shape == arguments[0].shape else t for t in arguments]
        torch.testing.assert_close(loaded(*given), ours(*given), rtol=1e-4, atol=1e-5, check_stride=False)


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_shows_the_formulas(case: Case, mode: str) -> None:
    ours, plain, arguments = case

    def forward_and_gradient(*given: Tensor) -> tuple[Tensor, Tensor]:
        x = given[0].detach().requires_grad_()
        y = ours(x, *given[1:])
        return y, torch.autograd.grad(y.square().sum(), x)[0]

    traced = make_fx(forward_and_gradient, tracing_mode=mode)(*arguments)
    assert "munit_fast" not in traced.code
    y, gradient = traced(*arguments)
    close(y, plain(*arguments))
    x = arguments[0].requires_grad_()
    close(gradient, torch.autograd.grad(plain(x, *arguments[1:]).square().sum(), x)[0])


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3) / 5)

    def forward(self, x: Tensor) -> Tensor:
        y = mf.norm_act_conv2d(x, self.weight, padding=1, padding_mode="reflect")
        y = mf.instance_norm(y, act="lrelu", pad=1)
        return mf.layer_norm2d(y, act="relu", depth_to_space=2)


@pytest.mark.parametrize("strict", [True, False])
def test_exported_programs_need_no_munit_fast(strict: bool) -> None:
    module = Layers().eval()
    sides = {2: torch.export.Dim("height", min=8, max=64), 3: torch.export.Dim("width", min=8, max=64)}
    program = torch.export.export(module, (torch.randn(2, 3, 16, 12),), dynamic_shapes=(sides,), strict=strict)
    assert "munit_fast" not in str(program.graph_module.code)
    for size in ((16, 12), (24, 33)):
        x = torch.randn(2, 3, *size)
        found, expected = program.module()(x), module(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, check_stride=False)


def test_functional_call_runs_the_fused_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    from munit_fast.ops import formulas

    monkeypatch.setattr(formulas, "epilogue", None)
    module, x = Layers(), torch.randn(1, 3, 16, 16)
    y = functional_call(module, {"weight": torch.zeros(8, 3, 3, 3)}, (x,))
    assert y.isfinite().all()


@pytest.mark.skipif(not winograd.available(), reason="the instruction set in use has no Winograd convolutions")
def test_a_planned_convolution_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from munit_fast.ops import conv_plans

    monkeypatch.setenv("MUNIT_FAST_CONV", "winograd")
    conv_plans._override.cache_clear()
    x, w = torch.randn(1, 16, 12, 12, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    results = []
    for ours in (True, False):
        y = (
            mf.norm_act_conv2d(x, w, norm="instance", act="tanh", padding=1)
            if ours
            else F.conv2d(torch.tanh(normalised(x)), w, padding=1)
        )
        (gradient,) = torch.autograd.grad(y.square().mean(), x, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), (x, w)))
    for found, expected in zip(*results):
        assert (found - expected).norm() <= 1e-4 * expected.norm()
    conv_plans._override.cache_clear()


def cubed(x: Tensor) -> Tensor:
    return (mf.instance_norm(x, act="tanh") ** 3).sum()


COMPILED: dict[str, Function] = {
    "grad": grad(cubed),
    "jvp": lambda x: jvp(cubed, (x,), (x.sin(),))[1],
    "vmap of grad": lambda x: vmap(grad(lambda y: cubed(y[None])))(x),
    "second": grad(lambda x: grad(cubed)(x).square().sum()),
}


@pytest.mark.parametrize("name", COMPILED)
def test_transforms_in_a_compiled_program(name: str) -> None:
    torch._dynamo.reset()
    function, x = COMPILED[name], torch.randn(2, 3, 4, 4, dtype=torch.float64)
    close(torch.compile(function, backend="eager")(x), function(x))


def test_gradients_in_a_batch(case: Case) -> None:
    ours, plain, arguments = case
    for vectorize in (True, False):
        found, expected = (
            torch.autograd.functional.jacobian(f, tuple(arguments), vectorize=vectorize) for f in (ours, plain)
        )
        close(found, expected)


def test_a_dual_gradient(case: Case) -> None:
    ours, plain, arguments = case
    tangents = []
    if ours in (CASES["instance_norm of volumes"][0], CASES["layer_norm2d"][0]):
        pytest.skip("PyTorch's backward of silu has no forward derivative")
    for function in (ours, plain):
        first = arguments[0].clone().requires_grad_()
        y = function(first, *arguments[1:])
        with forward_ad.dual_level():
            upstream = forward_ad.make_dual(torch.ones_like(y), y.detach())
            tangents.append(forward_ad.unpack_dual(torch.autograd.grad(y, first, upstream)[0]).tangent)
    close(tangents[0], tangents[1])


def test_autocast_around_the_backward_changes_nothing() -> None:
    x, w = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = mf.norm_act_conv2d(x, w, norm="instance", act="tanh", padding=1).square().mean()
    (expected,) = torch.autograd.grad(y, x, create_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(y, x, create_graph=True)
    torch.testing.assert_close(found, expected)

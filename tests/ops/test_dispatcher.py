"""The operators under torch.library.opcheck, torch.compile and torch.export."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from helpers.oracle import run
from munit_fast import functional as mf
from munit_fast import nn as mnn
from munit_fast.ops.cases import OPS, EpilogueCase, lay_out, make_tensors

# Autograd is not registered with the dispatcher but written as an autograd.Function around these operators, so they
# are called without gradients and test_autograd_registration would have nothing to look at.
UTILS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def opcheck(operator: Any, *arguments: object, utils: tuple[str, ...] = UTILS) -> None:
    torch.library.opcheck(operator, arguments, test_utils=utils)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", ["none", "instance", "layer", "group"])
def test_opcheck_of_the_epilogue(impl: str, norm: str, layout: str) -> None:
    for dtype, block in ((torch.float32, 1), (torch.bfloat16, 2)):
        x, residual = (lay_out(torch.randn(2, 4, 5, 6).to(dtype), layout) for _ in range(2))
        weight, slope = torch.randn(4), torch.rand(4)
        flags = (norm, 1e-5, "prelu", 0.0, block, 2, "reflect", 2 if norm == "group" else 1, impl)
        opcheck(torch.ops.munit_fast.epilogue, x, weight, weight, residual, slope, *flags)
        opcheck(torch.ops.munit_fast.epilogue, x, None, None, None, slope, *flags, utils=UTILS[:2])
        y, stats = torch.ops.munit_fast.epilogue(x, weight, weight, residual, slope, *flags)
        grad = torch.randn_like(y)
        for needs in itertools.product((False, True), repeat=3):
            arguments = (grad, x, stats, weight, weight, slope, *flags, *needs)
            # Tracing through aot_dispatch takes a second.
            utils = UTILS if needs == (True, False, True) else UTILS[:2]
            opcheck(torch.ops.munit_fast.epilogue_backward, *arguments, utils=utils)


def test_opcheck_where_there_is_nothing_to_do(impl: str) -> None:
    """The result must not be an alias of the input."""
    for shape in ((2, 3, 4, 5), (1, 1, 1, 3)):
        x = torch.randn(shape)
        flags = ("none", 0.0, "none", 0.0, 1, 0, "zero", 1, impl)
        opcheck(torch.ops.munit_fast.epilogue, x, None, None, None, None, *flags)
        arguments = (torch.randn(shape), x, torch.empty(2, 0), None, None, None, *flags, True, True, True)
        opcheck(torch.ops.munit_fast.epilogue_backward, *arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_losses(impl: str, dtype: torch.dtype) -> None:
    first = [torch.randn(2, 3, 4, 5).to(dtype), torch.randn(7).to(dtype)]
    second = [torch.randn(2, 3, 4, 5).to(dtype), torch.randn(7).to(dtype)]
    opcheck(torch.ops.munit_fast.l1_losses, first, second, impl)
    for need in ([True] * 4, [True, False, False, True]):
        opcheck(torch.ops.munit_fast.l1_losses_backward, torch.randn(2), first, second, need, impl)
    opcheck(torch.ops.munit_fast.lsgan_loss, first, 0.9, impl)
    opcheck(torch.ops.munit_fast.lsgan_loss_backward, torch.tensor(1.3), first, 0.9, impl)


def test_fake_tensors_have_the_strides_of_the_real_ones(impl: str) -> None:
    from torch._subclasses import FakeTensorMode

    shapes = [(2, 4, 5, 6), (1, 4, 1, 7), (2, 4, 1, 1), (1, 4, 3, 1), (3, 1, 4, 5)]
    for shape, order, block in itertools.product(shapes, (torch.contiguous_format, torch.channels_last), (1, 2)):
        if shape[1] % block**2:
            continue
        x = torch.empty(shape, memory_format=order).copy_(torch.randn(shape))
        flags = ("layer", 1e-5, "none", 0.0, block, 1, "replicate", 1, impl)
        y, stats = torch.ops.munit_fast.epilogue(x, None, None, None, None, *flags)
        arguments = (torch.randn_like(y), x, stats, None, None, None, *flags, True, True, True)
        real = (y, stats, *torch.ops.munit_fast.epilogue_backward(*arguments))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(t) if isinstance(t, Tensor) else t for t in (x, *arguments)]
            forward = torch.ops.munit_fast.epilogue(fakes[0], None, None, None, None, *flags)
            fake = (*forward, *torch.ops.munit_fast.epilogue_backward(*fakes[1:]))
        for a, b in zip(real, fake):
            assert a.shape == b.shape and a.dtype == b.dtype
            significant = [i for i, size in enumerate(a.shape) if size > 1]
            assert [a.stride(i) for i in significant] == [b.stride(i) for i in significant], (shape, order, block)


def values_and_gradients(function: Callable[..., Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
    y = function(*leaves)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    return (y.detach(), *torch.autograd.grad(y, leaves, upstream))


def assert_compiled_like_eager(function: Callable[..., Tensor], *leaves: Tensor, **options: Any) -> None:
    compiled = torch.compile(function, fullgraph=True, **options)
    for got, expected in zip(values_and_gradients(compiled, *leaves), values_and_gradients(function, *leaves)):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
@pytest.mark.parametrize("op", OPS)
def test_compile_in_one_graph(op: str, layout: str) -> None:
    case = EpilogueCase(op, (2, 8, 5, 6), layout=layout, act="prelu", pad=1, residual=True)
    inputs = make_tensors(case)
    given = [t for t in inputs if t is not None]

    def function(*tensors: Tensor) -> Tensor:
        values = iter(tensors)
        return run(case, type(inputs)(*(t if t is None else next(values) for t in inputs)), "auto")

    assert_compiled_like_eager(function, *given, backend="aot_eager", dynamic=False)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_second_shape_does_not_recompile(impl: str, order: torch.memory_format) -> None:
    def function(x: Tensor, weight: Tensor, style: Tensor, wide: Tensor) -> Tensor:
        y = mf.instance_norm(x, weight, act="relu", pad=1, residual=x * 2, impl=impl)
        y = mf.adain(y, style, style * 2, act="lrelu", pad=2, impl=impl)
        y = mf.layer_norm2d(mf.bias_act(y, weight, act="tanh", impl=impl), weight, impl=impl)
        z = mf.layer_norm2d(wide, weight, depth_to_space=2, pad=1, impl=impl)
        losses = mf.l1_losses([(y, y * 2), (z, z.tanh())], impl=impl)
        return losses.sum() + mf.lsgan_loss([y, z], 1.0, impl=impl)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)

    def leaves(n: int, h: int, w: int) -> list[Tensor]:
        shapes = ((n, 4, h, w), (4,), (n, 4), (n, 16, h, w))
        tensors = (torch.randn(shape) for shape in shapes)
        tensors = (t.contiguous(memory_format=order) if t.dim() == 4 else t for t in tensors)
        return [t.requires_grad_() for t in tensors]

    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in ((2, 7, 9), (3, 12, 8), (5, 6, 31)):
            tensors = leaves(*size)
            for got, expected in zip(
                values_and_gradients(compiled, *tensors), values_and_gradients(function, *tensors)
            ):
                torch.testing.assert_close(got, expected)


def test_compile_with_one_tensor_in_several_places() -> None:
    """A block's input as its residual; one image as the target of two losses, as in MUNIT's reconstructions."""
    x, w = torch.randn(2, 4, 5, 6, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    options = {"backend": "aot_eager", "dynamic": False}
    assert_compiled_like_eager(lambda x: mf.instance_norm(x, act="relu", residual=x), x, **options)
    assert_compiled_like_eager(lambda x, w: mf.adain(x, w, w), x, w, **options)


@pytest.mark.parametrize("of", ["l1", "lsgan"])
def test_compile_of_losses_with_one_tensor_in_several_places(of: str) -> None:
    x, y, z = (torch.randn(2, 4, 5, 6, requires_grad=True) for _ in range(3))
    functions = {
        "l1": lambda x, y, z: mf.l1_losses([(y, x), (z, x)]),
        "lsgan": lambda x, y, z: mf.lsgan_loss([x, y, x, z], 1.0),
    }
    assert_compiled_like_eager(functions[of], x, y, z, backend="aot_eager", dynamic=False)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        mnn.InstanceNorm2d(8, affine=True, act="relu", pad=1),
        nn.Conv2d(8, 16, 3),
        mnn.LayerNorm2d(16, act="prelu", pad=2, pad_mode="replicate"),
        nn.Conv2d(16, 4, 5),
        mnn.BiasAct(4, act="tanh"),
    )


@pytest.mark.slow
def test_inductor() -> None:
    net = network()
    parameters = list(net.parameters())
    x = torch.randn(2, 3, 16, 18, requires_grad=True)
    compiled = torch.compile(net, fullgraph=True)
    for function in (net, compiled):
        y = function(x)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
        found = (y.detach(), *torch.autograd.grad(y, [x, *parameters], upstream))
        if function is net:
            expected = found
    for got, want in zip(found, expected):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# Exported are the formulas.
ROUNDED: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5, "check_stride": False}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_export(frozen: bool, strict: bool) -> None:
    net = network().requires_grad_(not frozen).eval()
    x = torch.randn(2, 3, 16, 18)
    with torch.set_grad_enabled(not frozen):
        program = torch.export.export(net, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), net(x), **ROUNDED)
    names = {str(node.target) for module in program.graph_module.modules() for node in module.graph.nodes}
    assert not [name for name in names if "munit_fast" in name]


def test_export_with_dynamic_shapes() -> None:
    net = network().eval()
    n, h, w = Dim("n", min=1, max=16), Dim("h", min=8, max=256), Dim("w", min=8, max=256)
    with torch.no_grad():
        program = torch.export.export(net, (torch.randn(2, 3, 16, 18),), dynamic_shapes=({0: n, 2: h, 3: w},))
        for size in ((2, 16, 18), (5, 9, 31), (1, 40, 8)):
            x = torch.randn(size[0], 3, *size[1:])
            torch.testing.assert_close(program.module()(x), net(x), **ROUNDED)


def test_exported_programs_can_be_saved(tmp_path: Any) -> None:
    net, x = network().eval(), torch.randn(2, 3, 16, 18)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), net(x), **ROUNDED)


def test_export_of_the_losses() -> None:
    class Losses(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return mf.l1_losses([(a, b), (b, a[:1].expand_as(b))]), mf.lsgan_loss([a, b], 1.0)

    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    program = torch.export.export(Losses(), (a, b))
    for got, expected in zip(program.module()(a, b), Losses()(a, b)):
        torch.testing.assert_close(got, expected, **ROUNDED)


def test_meta_tensors() -> None:
    x = torch.empty(2, 8, 5, 6, device="meta", requires_grad=True)
    y = mf.layer_norm2d(x, depth_to_space=2, pad=3)
    assert y.shape == (2, 2, 16, 18) and y.is_meta
    y.sum().backward()
    assert x.grad.is_meta and x.grad.shape == x.shape
    assert mf.l1_loss(x, x).is_meta and mf.lsgan_loss(x, 1.0).is_meta

"""Memory: layouts, aliases, hidden copies, and nothing read or written outside of what was given."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from helpers.backends import BACKENDS
from helpers.oracle import DTYPES, LARGE, check, run
from munit_fast import functional as mf
from munit_fast.ops.cases import OPS, SHAPES, EpilogueCase, block_of, lay_out, make_tensors

HERE = Path(__file__).resolve().parent


def is_like(y: Tensor, layout: str) -> bool:
    return y.is_contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("op", OPS)
def test_results_and_gradients_have_xs_layout(backend: str, op: str, layout: str) -> None:
    for pad, upstream_layout in ((0, "nchw"), (1, "channels_last"), (2, "sliced")):
        case = EpilogueCase(op, (2, 8, 5, 6), layout=layout, act="relu", pad=pad, residual=True)
        inputs = make_tensors(case)
        y = run(case, inputs, backend)
        assert is_like(y, layout)
        y.backward(lay_out(torch.randn_like(y), upstream_layout))
        assert is_like(inputs.x.grad, layout)
        assert inputs.residual.grad.shape == inputs.x.shape


@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (2, 3, 1, 1), (1, 1, 1, 1), (2, 3, 5, 1), (1, 4, 1, 7)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_shapes_that_are_dense_in_both_layouts(
    backend: str, shape: tuple[int, ...], order: torch.memory_format
) -> None:
    """With one channel or one pixel the strides do not tell the layout."""
    x = torch.empty(shape, memory_format=order).copy_(torch.randn(shape))
    expected = torch.nn.functional.pad(torch.relu(x), (2,) * 4, mode="replicate")
    y = mf.bias_act(x, act="relu", pad=2, pad_mode="replicate", impl=backend)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=order)
    odd = torch.empty_strided(shape, (1000, *x.stride()[1:])).copy_(x) if shape[0] == 1 else x
    assert torch.equal(mf.bias_act(odd, act="relu", pad=2, pad_mode="replicate", impl=backend), expected)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
def test_an_upstream_gradient_with_stride_zero(backend: str, layout: str) -> None:
    case = EpilogueCase("instance_affine", (2, 3, 5, 4), layout=layout, act="lrelu", pad=1, residual=True)
    inputs = make_tensors(case)
    y = run(case, inputs, backend)
    seed = torch.randn(2, 3, 1, 1)
    expanded = torch.autograd.grad(y, inputs[:4], seed.expand_as(y), retain_graph=True)
    dense = torch.autograd.grad(y, inputs[:4], seed.expand_as(y).contiguous())
    for got, expected in zip(expanded, dense):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_is_never_an_alias_of_an_input(backend: str, dtype: torch.dtype, layout: str) -> None:
    x = lay_out(torch.randn(2, 3, 4, 4).to(dtype), layout).requires_grad_()
    residual = lay_out(torch.randn(2, 3, 4, 4).to(dtype), layout).requires_grad_()
    y = mf.bias_act(x, impl=backend)
    assert torch.equal(y, x)
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    with torch.no_grad():
        assert mf.bias_act(x, impl=backend).untyped_storage().data_ptr() != x.untyped_storage().data_ptr()

    y = mf.bias_act(x, residual=residual, impl=backend)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    before = x.grad.clone()
    residual.grad.add_(1)
    upstream.add_(1)
    assert torch.equal(x.grad, before)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 6)])
@pytest.mark.parametrize("pad", [0, 2])
def test_operators_give_fresh_gradients(backend: str, shape: tuple[int, ...], pad: int) -> None:
    """An operator's schema promises that no result shares memory with an argument or another result."""
    x, stats = torch.randn(shape), torch.empty(2, 0)
    n, c, h, w = shape
    grad = torch.randn(n, c, h + 2 * pad, w + 2 * pad)
    flags = ("none", 0.0, "none", 0.0, 1, pad, "zero", 1, backend)
    results = torch.ops.munit_fast.epilogue_backward(grad, x, stats, None, None, None, *flags, True, True, True)
    memory = [t.untyped_storage().data_ptr() for t in (grad, x, *results)]
    assert len(set(memory)) == len(memory)


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_not_modified(backend: str, op: str) -> None:
    for layout in ("nchw", "channels_last", "mixed", "sliced"):
        case = EpilogueCase(op, (2, 4, 5, 6), layout=layout, act="prelu", pad=1, residual=True)
        inputs = make_tensors(case)
        before = [None if t is None else t.detach().clone() for t in inputs]
        y = run(case, inputs, backend)
        upstream = torch.randn_like(y)
        kept = upstream.clone()
        y.backward(upstream)
        assert torch.equal(upstream, kept)
        for t, old in zip(inputs, before):
            assert t is None or torch.equal(t.detach(), old)


def copies(events: Any, least: int) -> list[str]:
    """Operators that copy a tensor of at least this many values."""
    names = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy")
    large = [e for e in events if e.input_shapes and e.input_shapes[0] and math.prod(e.input_shapes[0]) >= least]
    return [e.name for e in large if e.name in names]


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_tensors_are_not_copied(cpu: str, dtype: torch.dtype, layout: str) -> None:
    for op in OPS:
        case = EpilogueCase(op, (2, 8, 9, 10), dtype, layout, "prelu", 2, residual=True)
        inputs = make_tensors(case)
        given = [t for t in inputs if t is not None]
        upstream = lay_out(torch.randn_like(run(case, inputs, cpu)), layout)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            torch.autograd.grad(run(case, inputs, cpu), given, upstream)
        assert any(e.name == "munit_fast_cpu::epilogue_gradients" for e in seen.events())
        assert copies(seen.events(), inputs.x.numel()) == []

        a, b = inputs.x, lay_out(torch.randn_like(inputs.x), layout)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            torch.autograd.grad(mf.l1_loss(a, b, impl=cpu) + mf.lsgan_loss(a, 1.0, impl=cpu), a)
        # The two gradients of `a` are added, not copied.
        assert copies(seen.events(), a.numel()) == []


def test_the_search_for_copies_finds_one(cpu: str) -> None:
    x = make_tensors(EpilogueCase("bias_act", (2, 8, 9, 10), layout="sliced")).x
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        mf.bias_act(x, impl=cpu)
    assert "aten::clone" in copies(seen.events(), x.numel())


def guarded(values: Tensor, shift: int = 5) -> Tensor:
    """The same values and strides in the middle of a larger storage of NaN, not aligned to anything."""
    room = values.new_full((values.numel() + 2 * 64 + shift,), math.nan)
    return room.as_strided(values.shape, values.stride(), 64 + shift).copy_(values)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_outside_of_the_inputs_is_read(backend: str, dtype: torch.dtype, layout: str) -> None:
    for op in OPS:
        for turn, shape in enumerate(SHAPES):
            if shape[1] % block_of(op) ** 2:
                continue
            case = EpilogueCase(op, shape, dtype, layout, "prelu", 2, "replicate", residual=turn % 2 == 0, seed=turn)
            inputs = make_tensors(case)
            inside = type(inputs)(*(t if t is None else guarded(t.detach()).requires_grad_() for t in inputs))
            given, same = ([t for t in each if t is not None] for each in (inputs, inside))
            y, z = run(case, inputs, backend), run(case, inside, backend)
            assert torch.equal(y, z)
            upstream = torch.randn_like(y)
            for got, expected in zip(
                torch.autograd.grad(z, same, guarded(upstream)), torch.autograd.grad(y, given, upstream)
            ):
                assert torch.equal(got, expected)


def test_losses_read_nothing_outside_of_the_inputs(backend: str) -> None:
    for dtype in DTYPES:
        for size in (1, 7, 63, 65, 511, 513, 16385):
            a, b = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
            leaves, inside = (a.requires_grad_(), b.requires_grad_()), (guarded(a.detach()), guarded(b.detach()))
            inside = tuple(t.requires_grad_() for t in inside)
            for loss in (mf.l1_loss, lambda a, b, impl: mf.lsgan_loss([a, b], 0.5, impl=impl)):
                y, z = loss(*leaves, impl=backend), loss(*inside, impl=backend)
                assert torch.equal(y, z)
                for got, expected in zip(torch.autograd.grad(z, inside), torch.autograd.grad(y, leaves)):
                    assert torch.equal(got, expected)


class Fenced:
    """Stands for torch in the operators: what they allocate lies between two fences that can be checked afterwards."""

    FENCE = 64

    def __init__(self) -> None:
        self.rooms: list[tuple[Tensor, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def _room(self, like: Tensor) -> Tensor:
        room = torch.full((like.numel() + 2 * self.FENCE,), math.nan, dtype=like.dtype)
        self.rooms.append((room, like.numel()))
        return room.as_strided(like.shape, like.stride(), self.FENCE)

    def empty(self, *size: Any, **options: Any) -> Tensor:
        return self._room(torch.empty(*size, **options | {"device": "meta"}))

    def empty_like(self, like: Tensor) -> Tensor:
        return self._room(torch.empty_like(like, device="meta"))

    def check(self) -> None:
        assert self.rooms
        for room, size in self.rooms:
            assert room[: self.FENCE].isnan().all() and room[self.FENCE + size :].isnan().all()
            assert not room[self.FENCE : self.FENCE + size].isnan().any()
        self.rooms.clear()


@pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_outside_of_the_results_is_written(
    backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fenced = Fenced()
    for module in ("epilogue", "losses"):
        monkeypatch.setattr(sys.modules[f"munit_fast.ops.{module}"], "torch", fenced)
    # The operators that allocate in Python run the same kernels.
    monkeypatch.setattr(sys.modules["munit_fast.ops.epilogue"], "calls_cpu", lambda x, impl: False)
    for op in OPS:
        for turn, shape in enumerate(SHAPES):
            if shape[1] % block_of(op) ** 2:
                continue
            layout, mode = ("nchw", "channels_last")[turn % 2], ("replicate", "zero")[turn % 3 > 0]
            case = EpilogueCase(op, shape, dtype, layout, "lrelu", turn % 3, mode, residual=True, seed=turn)
            inputs = make_tensors(case)
            y = run(case, inputs, backend)
            torch.autograd.grad(y, [t for t in inputs if t is not None], torch.randn_like(y))
            fenced.check()
    for size in (1, 63, 65, 513):
        a, b = (torch.randn(size).to(dtype).requires_grad_() for _ in range(2))
        (mf.l1_loss(a, b, impl=backend) + mf.lsgan_loss([a, b], 0.5, impl=backend)).backward()
        fenced.check()


@pytest.mark.slow
def test_the_kernels_own_memory_starts_as_garbage(cpu: str) -> None:
    """glibc fills each block that malloc gives with a byte that makes every float 3·10³⁸."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the filling of fresh memory is glibc's")
    script = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_memory import garbage_cases\n"
        "garbage_cases()\n"
    )
    env = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.perturb=128:glibc.malloc.tcache_count=0"}
    subprocess.run([sys.executable, "-c", script], check=True, env=env, timeout=120)


def garbage_cases() -> None:
    for dtype in DTYPES:
        for op in OPS:
            for turn, shape in enumerate(SHAPES):
                if shape[1] % block_of(op) ** 2 == 0:
                    layout = ("nchw", "channels_last")[turn % 2]
                    check(EpilogueCase(op, shape, dtype, layout, "prelu", 2, "zero", residual=True, seed=turn), "cpu")
        for shape, layout in LARGE[:3]:
            check(EpilogueCase("layer_affine", shape, dtype, layout, "relu", 1), "cpu")
            check(EpilogueCase("instance_affine", shape, dtype, layout, "relu", 1), "cpu")

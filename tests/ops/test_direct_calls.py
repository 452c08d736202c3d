"""Plain tensors on the CPU go to its kernels without the registered operators; whoever looks on sees the latter."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.oracle import run
from munit_fast import functional as mf
from munit_fast.ops import native
from munit_fast.ops.cases import OPS, SHAPES, EpilogueCase, block_of, make_tensors

EPILOGUE = sys.modules["munit_fast.ops.epilogue"]
pytestmark = pytest.mark.skipif(native.module is None, reason="the compiled part is missing")


class Seen(TorchDispatchMode):
    """The names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def results(case: EpilogueCase) -> list[Tensor]:
    inputs = make_tensors(case)
    y = run(case, inputs, "cpu")
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    given = [t for t in inputs if t is not None]
    with torch.no_grad():
        again = run(case, inputs, "cpu")
    return [y.detach(), again, *torch.autograd.grad(y, given, upstream)]


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("op", OPS)
def test_both_ways_give_the_same_bits_and_strides(
    op: str, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for turn, shape in enumerate(SHAPES):
        if shape[1] % block_of(op) ** 2:
            continue
        case = EpilogueCase(op, shape, dtype, layout, "prelu", turn % 3, "replicate", residual=turn % 2 == 0, seed=turn)
        direct = results(case)
        with monkeypatch.context() as patched:
            patched.setattr(EPILOGUE, "calls_cpu", lambda x, impl: False)
            registered = results(case)
        for a, b in zip(direct, registered, strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype
            assert [s for s, n in zip(a.stride(), a.shape) if n > 1] == [
                s for s, n in zip(b.stride(), b.shape) if n > 1
            ]


def test_parameters_that_are_windows_of_a_larger_tensor() -> None:
    """As the MLP of AdaIN gives them: rows that are dense, but not next to each other."""
    x, room = torch.randn(3, 4, 5, 6), torch.randn(3, 20)
    weight, bias = room[:, 3:7], room[:, 9:13]
    expected = mf.adain(x, weight.contiguous(), bias.contiguous(), impl="cpu")
    assert torch.equal(mf.adain(x, weight, bias, impl="cpu"), expected)
    steps = torch.randn(3, 8)[:, ::2]
    expected = mf.adain(x, steps.contiguous(), bias.contiguous(), impl="cpu")
    assert torch.equal(mf.adain(x, steps, bias, impl="cpu"), expected)


def test_plain_tensors_take_the_short_way() -> None:
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        mf.instance_norm(x, act="relu", pad=1).sum().backward()
    names = {event.name for event in seen.events()}
    assert {"munit_fast_cpu::epilogue", "munit_fast_cpu::epilogue_gradients"} <= names
    assert not any(name.startswith("munit_fast::") for name in names)


def test_a_dispatch_mode_sees_the_registered_operators() -> None:
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    with Seen() as seen:
        mf.instance_norm(x, act="relu", pad=1).sum().backward()
    assert {"munit_fast::epilogue", "munit_fast::epilogue_backward"} <= seen.names

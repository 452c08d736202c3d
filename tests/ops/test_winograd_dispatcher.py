"""Winograd's operators under torch.library.opcheck, from several threads, and with any number of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.convolutions import Results, WinogradCase, grid, lay_out, make_tensors, run
from munit_fast.ops import winograd
from munit_fast.ops.winograd import NO_EPILOGUE, PLANS, Source

pytestmark = pytest.mark.usefixtures("winograd_isa")
UTILS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
OPS = torch.ops.munit_fast


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def opcheck(operator: Any, *arguments: object, utils: tuple[str, ...] = UTILS) -> None:
    torch.library.opcheck(operator, arguments, test_utils=utils)


def digest(results: Results) -> str:
    found = hashlib.sha256()
    for t in results:
        if t is not None:
            found.update(t.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("plan", PLANS)
def test_opcheck(plan: str) -> None:
    utils = UTILS[:2]  # tracing takes seconds: in the next test
    side = PLANS[plan].side
    weight, bias = torch.randn(6, 5, side, side), torch.randn(6)
    opcheck(OPS.winograd_weights, weight, plan, utils=utils)
    transformed = winograd.transform_weight(weight, plan)
    for layout, dtype in (("channels_last", torch.float32), ("nchw", torch.bfloat16)):
        x = lay_out(torch.randn(2, 5, 9, 12).to(dtype), layout)
        for norm, groups in (("instance", 1), ("layer", 1), ("group", 5)):
            opcheck(OPS.statistics, x, norm, groups, utils=utils)
        stats = winograd.statistics(x, "instance")
        flags = ("instance", 1e-5, "prelu", 0.0, 1, 1, "reflect", 1)
        source = (x, stats, torch.randn(5), torch.randn(5), torch.rand(5), *flags)
        opcheck(OPS.winograd_conv, *source, weight, None, bias, plan, "instance", utils=utils)
        opcheck(OPS.winograd_conv, *source, weight, transformed, None, plan, "none", utils=utils)
        y, _ = OPS.winograd_conv(*source, weight, None, bias, plan, "layer")
        grad = lay_out(torch.randn(y.shape).to(dtype), layout)
        opcheck(OPS.winograd_weight_gradient, grad, *source, weight, plan, utils=utils)
        for add in (None, torch.randn_like(x)):
            opcheck(OPS.winograd_input_gradient, grad, weight, add, 9, 12, 1, "reflect", plan, utils=utils)


def test_opcheck_by_tracing() -> None:
    x, weight = torch.randn(1, 5, 8, 8), torch.randn(6, 5, 3, 3)
    source = (x, None, None, None, None, *NO_EPILOGUE._replace(pad=1))
    opcheck(OPS.winograd_conv, *source, weight, None, None, "f43", "instance", utils=UTILS[2:])
    grad = torch.randn(1, 6, 8, 8)
    opcheck(OPS.winograd_weight_gradient, grad, *source, weight, "f43", utils=UTILS[2:])
    opcheck(OPS.winograd_input_gradient, grad, weight, None, 8, 8, 1, "zero", "f43", utils=UTILS[2:])


def test_fake_tensors_have_the_strides_of_the_real_ones() -> None:
    from torch._subclasses import FakeTensorMode

    for plan, shape in ((p, s) for p in PLANS for s in ((2, 5, 9, 12), (1, 1, 4, 4), (3, 4, 4, 9))):
        side = PLANS[plan].side
        x, weight = torch.randn(shape), torch.randn(6, shape[1], side, side)
        flags = NO_EPILOGUE._replace(pad=1)

        def results(x: Tensor, weight: Tensor, plan: str = plan, flags: Any = flags) -> list[Tensor]:
            y, stats = OPS.winograd_conv(x, None, None, None, None, *flags, weight, None, None, plan, "instance")
            grad_x = OPS.winograd_input_gradient(y, weight, None, *x.shape[2:], 1, "zero", plan)
            grad_w = OPS.winograd_weight_gradient(y, x, None, None, None, None, *flags, weight, plan)
            return [y, stats, grad_x, grad_w, OPS.winograd_weights(weight, plan)]

        with FakeTensorMode() as mode:
            fakes = results(mode.from_tensor(x), mode.from_tensor(weight))
        for real, fake in zip(results(x, weight), fakes):
            assert real.shape == fake.shape and real.dtype == fake.dtype
            significant = [i for i, size in enumerate(real.shape) if size > 1]
            assert [real.stride(i) for i in significant] == [fake.stride(i) for i in significant]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("plan", PLANS)
def test_the_number_of_threads_changes_no_bit(plan: str) -> None:
    for case in grid(plan, rounds=1):
        t, seen = make_tensors(case), set()
        for threads in (1, 2, 3, 5, 16):
            torch.set_num_threads(threads)
            seen.add(digest(run(case, t)))
        assert len(seen) == 1, case


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("inner", [1, 2])
def test_calls_from_several_threads_at_once(inner: int) -> None:
    """Each has scratch memory of its own, of a size that differs from call to call."""
    torch.set_num_threads(inner)
    cases = [case for plan in PLANS for case in grid(plan, rounds=1) if case.shape[0]]
    tensors = {case: make_tensors(case) for case in cases}
    expected = {case: digest(run(case, tensors[case])) for case in cases}

    def work(offset: int) -> list[WinogradCase]:
        torch.set_num_threads(inner)
        order = cases[offset:] + cases[:offset]
        return [case for case in order for _ in range(2) if digest(run(case, tensors[case])) != expected[case]]

    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(work, range(0, 40, 10)))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """To the bit: tiles of other images share a block, but no sum."""
    for plan in PLANS:
        side = PLANS[plan].side
        x, weight = lay_out(torch.randn(5, 24, 18, 21), "channels_last"), torch.randn(20, 24, side, side)
        spec = NO_EPILOGUE._replace(pad=1, pad_mode="reflect")
        y, stats = winograd.conv(Source(x, None, None, None, None, spec), weight, None, None, plan, "instance")
        assert stats is not None
        for i in range(5):
            source = Source(x[i : i + 1], None, None, None, None, spec)
            alone, of_alone = winograd.conv(source, weight, None, None, plan, "instance")
            assert of_alone is not None
            assert torch.equal(alone[0], y[i])
            assert torch.equal(of_alone, stats.view(2, 5, -1)[:, i])
            grad = lay_out(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)), "channels_last")
            together = winograd.input_gradient(grad, weight, source._replace(x=x), plan)
            assert torch.equal(winograd.input_gradient(grad[i : i + 1], weight, source, plan)[0], together[i])

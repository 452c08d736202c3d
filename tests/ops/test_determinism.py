"""The same input gives the same bits: run after run, and on the CPU whatever the number of threads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import torch

from helpers.oracle import DTYPES, LARGE, run
from munit_fast import functional as mf
from munit_fast.ops.cases import OPS, EpilogueCase, make_tensors

SIZES = (((2, 8, 33, 31), "nchw"), ((2, 8, 33, 31), "channels_last"), *LARGE[:5])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bits_of(case: EpilogueCase, impl: str) -> str:
    """A digest of the result and of all gradients."""
    inputs = make_tensors(case)
    y = run(case, inputs, impl)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    parts = (y.detach(), *torch.autograd.grad(y, [t for t in inputs if t is not None], upstream))
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def loss_bits(impl: str) -> tuple[bytes, ...]:
    generator = torch.Generator().manual_seed(2)
    a, b, c = (torch.randn(1, 3, 150, 151, generator=generator, requires_grad=True) for _ in range(3))
    losses = mf.l1_losses([(a, b), (b, c)], impl=impl)
    value = mf.lsgan_loss([a, c], 0.9, impl=impl)
    parts = (losses, value, *torch.autograd.grad(losses.sum() + value, (a, b, c)))
    return tuple(part.detach().numpy().tobytes() for part in parts)


@pytest.mark.parametrize("op", OPS)
def test_ten_runs(backend: str, op: str) -> None:
    for shape, layout in SIZES[:2]:
        case = EpilogueCase(op, shape, layout=layout, act="prelu", pad=2, residual=True)
        assert len({bits_of(case, backend) for _ in range(10)}) == 1


def test_ten_runs_of_the_losses(backend: str) -> None:
    assert len({loss_bits(backend) for _ in range(10)}) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["instance_affine", "adain", "layer_affine", "bias_act"])
@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_nothing(cpu: str, op: str, dtype: torch.dtype) -> None:
    for shape, layout in SIZES:
        case = EpilogueCase(op, shape, dtype, layout, "prelu", 1, residual=True)
        seen = set()
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            seen.add(bits_of(case, cpu))
        assert len(seen) == 1, case


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_loss(cpu: str) -> None:
    seen = set()
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        seen.add(loss_bits(cpu))
    assert len(seen) == 1


def test_a_sample_does_not_depend_on_its_batch(backend: str) -> None:
    for op in ("instance_affine", "layer_affine", "bias_act"):
        case = EpilogueCase(op, (3, 8, 13, 17), act="relu", pad=1)
        inputs = make_tensors(case)
        y = run(case, inputs, backend)
        alone = run(case, inputs._replace(x=inputs.x[1:2]), backend)
        torch.testing.assert_close(y[1:2], alone, rtol=1e-6, atol=1e-6)

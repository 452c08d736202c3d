"""The losses' kernels in Triton's interpreter, on the CPU; `test_interpreter.py` runs this file."""

from __future__ import annotations

import pytest
import torch

from helpers import loss_cases as cases
from munit_fast.kernels import configs
from munit_fast.kernels.losses import l1_losses_forward, lsgan_loss_forward

SHAPES = [(2, 3, 5, 7), (1, 1), (3, 8, 1, 1), (130,), (64,)]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "LOSS_ELEMENTS", 16)
    monkeypatch.setattr(configs, "LOSS_SPLITS", 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_the_oracle(dtype: torch.dtype) -> None:
    cases.check_l1(SHAPES, dtype)
    cases.check_lsgan(SHAPES[:3], dtype)


def test_more_than_one_launch() -> None:
    shapes = [(k + 1, 5) for k in range(19)]
    cases.check_l1(shapes, torch.float32)
    cases.check_lsgan(shapes[:11], torch.float32)


def test_channels_last_pairs() -> None:
    first, second = (
        [torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last) for _ in range(2)] for _ in range(2)
    )
    cases.check_l1_of(first, second)


def test_where_a_pair_is_equal_its_gradient_is_zero() -> None:
    a = torch.tensor([1.0, -2.0, 0.0, 3.0])
    b = torch.tensor([1.0, -3.0, -0.0, 4.0])
    grad_a, grad_b = cases.l1_gradients(torch.tensor([4.0]), [a], [b])
    assert grad_a.tolist() == [0.0, 1.0, 0.0, -1.0] and grad_b.tolist() == [0.0, -1.0, 0.0, 1.0]


def test_only_what_is_needed() -> None:
    first, second = cases.make_pairs(SHAPES[:2], torch.float32)
    grad = torch.randn(2)
    everything = cases.l1_gradients(grad, first, second)
    some = cases.l1_gradients(grad, first, second, (True, False, False, True))
    assert torch.equal(some[0], everything[0]) and torch.equal(some[3], everything[3])


def test_nan_stays_nan() -> None:
    a, b = torch.randn(40), torch.randn(40)
    a[17] = float("nan")
    assert l1_losses_forward([a, b], [b, b]).isnan().tolist() == [True, False]
    grad, *_ = cases.l1_gradients(torch.ones(2), [a, b], [b, b], (True, True, False, False))
    assert grad.isnan().nonzero().tolist() == [[17]]
    assert lsgan_loss_forward([b, a], 1.0).isnan()
    assert cases.lsgan_gradients(torch.ones(()), [a], 1.0)[0].isnan().nonzero().tolist() == [[17]]


def test_the_same_bits_every_time() -> None:
    first, second = cases.make_pairs(SHAPES, torch.bfloat16)
    losses = [l1_losses_forward(first, second) for _ in range(10)]
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    losses = [lsgan_loss_forward(first, 1.0) for _ in range(10)]
    assert all(torch.equal(loss, losses[0]) for loss in losses)

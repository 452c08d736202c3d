"""Cases and oracle for the losses' kernels, the same for the interpreter and for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.kernel_checks import bound, error
from munit_fast.kernels.losses import l1_losses_backward, l1_losses_forward, lsgan_loss_backward, lsgan_loss_forward
from munit_fast.reference import losses as reference


def make_pairs(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str = "cpu"
) -> tuple[list[Tensor], list[Tensor]]:
    """Pairs whose first has some elements in common with its second."""
    generator = torch.Generator(device).manual_seed(0)
    first = [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]
    second = [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]
    for a, b in zip(first, second):
        a.view(-1)[::5] = b.view(-1)[::5]
    return first, second


def l1_gradients(
    grad: Tensor, first: list[Tensor], second: list[Tensor], need: tuple[bool, ...] | None = None
) -> list[Tensor | None]:
    """The kernels' gradients of `first`, then of `second`; None where not needed."""
    tensors = [*first, *second]
    need = (True,) * len(tensors) if need is None else need
    out = [torch.empty_like(t) if needed else None for t, needed in zip(tensors, need)]
    l1_losses_backward(grad, first, second, out)
    return out


def lsgan_gradients(grad: Tensor, outputs: list[Tensor], target: float) -> list[Tensor]:
    """The kernels' gradients of the outputs."""
    out = [torch.empty_like(output) for output in outputs]
    lsgan_loss_backward(grad, outputs, target, out)
    return out


def _wide(tensors: list[Tensor]) -> list[Tensor]:
    return [t.double().requires_grad_() for t in tensors]


def check_l1_of(first: list[Tensor], second: list[Tensor]) -> None:
    loss = l1_losses_forward(first, second)
    wide_first, wide_second = _wide(first), _wide(second)
    expected = reference.l1_losses(wide_first, wide_second)
    assert loss.dtype == torch.float32 and loss.shape == expected.shape
    length = max(a.numel() for a in first)
    assert error(loss, expected) <= bound(first[0].dtype, "loss", len(first), length, stored=torch.float32)
    # Scaled, as a loss is for fp16: divided by a million elements, one would leave fp16's normal range.
    grad = 1000 * torch.randn(len(first), generator=torch.Generator().manual_seed(1)).to(loss.device)
    expected.backward(grad.double())
    grads = l1_gradients(grad, first, second)
    for a, got, other, wide_a, wide_b in zip(first, grads, grads[len(first) :], wide_first, wide_second):
        assert got.dtype == a.dtype and got.stride() == other.stride() == a.stride()
        assert error(got, wide_a.grad) <= bound(a.dtype, "grad", a.numel())
        assert error(other, wide_b.grad) <= bound(a.dtype, "grad", a.numel())


def check_l1(shapes: list[tuple[int, ...]], dtype: torch.dtype, **kw: str) -> None:
    check_l1_of(*make_pairs(shapes, dtype, **kw))


def check_lsgan(shapes: list[tuple[int, ...]], dtype: torch.dtype, **kw: str) -> None:
    outputs, _ = make_pairs(shapes, dtype, **kw)
    for target in (0.0, 1.0):
        loss = lsgan_loss_forward(outputs, target)
        wide = _wide(outputs)
        expected = reference.lsgan_loss(wide, target)
        assert loss.dtype == torch.float32 and loss.shape == ()
        length = max(output.numel() for output in outputs)
        assert error(loss, expected) <= bound(dtype, "loss", 1, length, stored=torch.float32)
        grad = torch.tensor(-1.7, device=loss.device)
        expected.backward(grad.double())
        for got, output, wide_output in zip(lsgan_gradients(grad, outputs, target), outputs, wide):
            assert got.dtype == output.dtype and got.stride() == output.stride()
            assert error(got, wide_output.grad) <= bound(output.dtype, "grad", output.numel())

"""The reconstruction losses (L1, many pairs at once) and the least-squares adversarial loss, forward and backward.

`munit_fast.reference.losses` is the specification. A launch takes up to MAX_TENSORS tensors, or pairs, as its own
arguments: no table of pointers has to reach the device, so a CUDA graph may record it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs, launch

MAX_TENSORS = 8
"""Tensors, or pairs, in one launch: MUNIT's generator update has eight reconstructions. More take several launches."""


@triton.jit
def partial_sum(p_first, p_second, p_out, size, target, tiles, SQUARE: tl.constexpr, TILE: tl.constexpr):
    """This split's part of mean(|a - b|), or of mean((a - target)²), to p_out[split]."""
    b_sum = tl.zeros([TILE], tl.float32)
    for i_tile in range(tiles):
        b_i = (tl.program_id(0) * tl.cast(tiles, tl.int64) + i_tile) * TILE + tl.arange(0, TILE)
        m_i = b_i < size
        b_first = tl.load(p_first + b_i, m_i, other=0).to(tl.float32)
        if SQUARE:
            b_difference = tl.where(m_i, b_first - target, 0.0)
            b_sum += b_difference * b_difference
        else:
            b_sum += tl.abs(b_first - tl.load(p_second + b_i, m_i, other=0).to(tl.float32))
    tl.store(p_out + tl.program_id(0), tl.sum(b_sum, 0) / tl.cast(size, tl.float32))


@triton.jit(do_not_specialize=["tiles"])
def loss_fwd_kernel(
    p_first,  # tuple of COUNT tensors, each read as flat memory
    p_second,  # the same for L1; unused for SQUARE
    p_partial,  # fp32 [COUNT, S]
    sizes,  # tuple of COUNT element counts
    tiles,  # tuple of COUNT: tiles in a split of that tensor
    target,
    COUNT: tl.constexpr,
    SQUARE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (S, COUNT). Reads each element once; writes 4 bytes a split."""
    for k in tl.static_range(COUNT):
        if tl.program_id(1) == k:
            p_out = p_partial + k * tl.num_programs(0)
            partial_sum(p_first[k], p_second[k], p_out, sizes[k], target, tiles[k], SQUARE, TILE)


@triton.jit(do_not_specialize=["splits"])
def loss_combine_fwd_kernel(
    p_partial,  # fp32 [P, S]
    p_loss,  # fp32 [P]
    splits,  # S
    BLOCK: tl.constexpr,  # at least S
):
    """Grid (P). Adds each row in a fixed order."""
    b_s = tl.arange(0, BLOCK)
    b_partial = tl.load(p_partial + tl.program_id(0) * splits + b_s, b_s < splits, other=0)
    tl.store(p_loss + tl.program_id(0), tl.sum(b_partial, 0))


@triton.jit
def write_gradient(
    p_grad, p_first, p_second, p_grad_first, p_grad_second, size, target, SQUARE: tl.constexpr, TILE: tl.constexpr
):
    """One tile of sign(a - b) · grad / size and its negative, or of 2 · (a - target) · grad / size."""
    i_first = tl.program_id(0).to(tl.int64) * TILE
    if i_first < size:
        b_i = i_first + tl.arange(0, TILE)
        m_i = b_i < size
        b_factor = tl.load(p_grad).to(tl.float32) / tl.cast(size, tl.float32)
        b_first = tl.load(p_first + b_i, m_i, other=0).to(tl.float32)
        if SQUARE:
            b_grad = (b_first - target) * (2.0 * b_factor)
        else:
            b_difference = b_first - tl.load(p_second + b_i, m_i, other=0).to(tl.float32)
            # 0 and NaN take the last branch: sign(0) is 0, and a NaN is passed on.
            b_grad = tl.where(
                b_difference > 0, b_factor, tl.where(b_difference < 0, -b_factor, b_difference * b_factor)
            )
        if p_grad_first is not None:
            tl.store(p_grad_first + b_i, b_grad.to(p_grad_first.dtype.element_ty), m_i)
        if p_grad_second is not None:
            tl.store(p_grad_second + b_i, (-b_grad).to(p_grad_second.dtype.element_ty), m_i)


@triton.jit(do_not_specialize=["grad_step"])
def loss_bwd_kernel(
    p_grad,  # [COUNT], or [1] with grad_step = 0
    p_first,  # tuple of COUNT tensors
    p_second,  # the same for L1; unused for SQUARE
    p_grad_first,  # tuple of COUNT tensors or Nones, written
    p_grad_second,
    sizes,  # tuple of COUNT element counts
    grad_step,
    target,
    COUNT: tl.constexpr,
    SQUARE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (largest size / TILE, COUNT). Reads each element once, writes each gradient that is asked for once."""
    for k in tl.static_range(COUNT):
        if tl.program_id(1) == k:
            write_gradient(
                p_grad + k * grad_step,
                p_first[k],
                p_second[k],
                p_grad_first[k],
                p_grad_second[k],
                sizes[k],
                target,
                SQUARE,
                TILE,
            )


def _forward(first: Sequence[Tensor], second: Sequence[Tensor] | None, target: float) -> Tensor:
    """The partial sums [P, S], already divided by each tensor's size."""
    device, splits = first[0].device, configs.LOSS_SPLITS
    largest = max(a.numel() for a in first)
    splits = max(min(splits, configs.cdiv(largest, configs.LOSS_ELEMENTS)), 1)
    partial = torch.empty(len(first), splits, dtype=torch.float32, device=device)
    for start in range(0, len(first), MAX_TENSORS):
        a = tuple(first[start : start + MAX_TENSORS])
        b = tuple(second[start : start + MAX_TENSORS]) if second is not None else (None,) * len(a)
        launch.run(
            loss_fwd_kernel,
            (splits, len(a)),
            device,
            a,
            b,
            partial[start:],
            tuple(t.numel() for t in a),
            tuple(configs.cdiv(t.numel(), splits * configs.LOSS_ELEMENTS) for t in a),
            float(target),
            COUNT=len(a),
            SQUARE=second is None,
            TILE=configs.LOSS_ELEMENTS,
            num_warps=configs.LOSS_WARPS,
        )
    return partial


def _combine(partial: Tensor) -> Tensor:
    loss = torch.empty(partial.shape[0], dtype=torch.float32, device=partial.device)
    launch.run(
        loss_combine_fwd_kernel,
        (partial.shape[0],),
        partial.device,
        partial,
        loss,
        partial.shape[1],
        BLOCK=configs.power_of_two(partial.shape[1]),
        num_warps=configs.COMBINE_WARPS,
    )
    return loss


def _backward(
    grad: Tensor,
    first: Sequence[Tensor],
    second: Sequence[Tensor] | None,
    target: float,
    grad_first: Sequence[Tensor | None],
    grad_second: Sequence[Tensor | None],
) -> None:
    for start in range(0, len(first), MAX_TENSORS):
        part = slice(start, start + MAX_TENSORS)
        a = tuple(first[part])
        launch.run(
            loss_bwd_kernel,
            (configs.cdiv(max(t.numel() for t in a), configs.LOSS_ELEMENTS), len(a)),
            grad.device,
            grad[start:] if second is not None else grad,
            a,
            tuple(second[part]) if second is not None else (None,) * len(a),
            tuple(grad_first[part]),
            tuple(grad_second[part]),
            tuple(t.numel() for t in a),
            int(second is not None),
            float(target),
            COUNT=len(a),
            SQUARE=second is None,
            TILE=configs.LOSS_ELEMENTS,
            num_warps=configs.LOSS_WARPS,
        )


def l1_losses_forward(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
) -> Tensor:
    """`reference.losses.l1_losses`: `mean(|a - b|)` of each of P pairs. Reads each element once.

    Args:
        first: P tensors of any shapes, each dense.
        second: of the same shapes and memory formats.

    Returns:
        fp32 [P].
    """
    return _combine(_forward(first, second, 0.0))


def l1_losses_backward(
    grad: Tensor,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    out: Sequence[Tensor | None],
) -> None:
    """`reference.losses.l1_losses_backward` for each `first`, its negative for each `second`.

    Reads each element once, writes each gradient that is asked for once.

    Args:
        grad: [P].
        first: as in the forward.
        second: as in the forward.
        out: P tensors like `first`, then P like `second`; written, or None.
    """
    _backward(grad.contiguous(), first, second, 0.0, out[: len(first)], out[len(first) :])


def lsgan_loss_forward(
    outputs: Sequence[Tensor],
    target: float,
) -> Tensor:
    """`reference.losses.lsgan_loss`: Σ mean((output - target)²). Reads each element once.

    Args:
        outputs: of any shapes, each dense.
        target: what they are to be.

    Returns:
        An fp32 scalar.
    """
    return _combine(_forward(outputs, None, target).view(1, -1)).view(())


def lsgan_loss_backward(
    grad: Tensor,
    outputs: Sequence[Tensor],
    target: float,
    out: Sequence[Tensor],
) -> None:
    """`reference.losses.lsgan_loss_backward`. Reads each output once, writes each gradient once.

    Args:
        grad: a scalar.
        outputs: as in the forward.
        target: as in the forward.
        out: like `outputs`, written.
    """
    _backward(grad, outputs, None, target, out, [None] * len(outputs))

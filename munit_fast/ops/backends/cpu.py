"""The C++ kernels of csrc/cpu, through torch.ops.munit_fast_cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from munit_fast.ops import native
from munit_fast.ops.layout import is_channels_last, memory_format
from munit_fast.ops.options import ACTIVATIONS, NORMS, PAD_MODES, Options

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it computes on the CPU, the tensors are on {device}"
    if native.module is None:
        return native.native_error
    if dtype not in _DTYPES:
        return f"it serves float32, float64, bfloat16 and float16, not {dtype}"
    return None


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _flags(o: Options, x: Tensor) -> tuple[object, ...]:
    act, mode = ACTIVATIONS.index(o.act), PAD_MODES.index(o.pad_mode)
    return NORMS.index(o.norm), o.eps, act, o.slope, o.block, o.pad, mode, is_channels_last(x)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def epilogue_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    o: Options,
    stats: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    size = (n, c // o.block**2, o.block * h + 2 * o.pad, o.block * w + 2 * o.pad)
    y = torch.empty(size, dtype=x.dtype, memory_format=memory_format(x))
    known = stats is not None
    if stats is None:
        rows = {"none": 0, "instance": n * c, "layer": n}[o.norm]
        stats = torch.empty(2, rows, dtype=_accumulator(x))
    torch.ops.munit_fast_cpu.epilogue_forward(
        x, _contiguous(weight), _contiguous(bias), _contiguous(slopes), residual, y, stats, known, *_flags(o, x)
    )
    return y, stats


def epilogue_backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    o: Options,
    need_x: bool,
    need_residual: bool,
    need_sums: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grad_x = torch.empty_like(x) if need_x else None
    grad_residual = torch.empty_like(x) if need_residual else None
    sums = torch.empty(3, x.shape[0], x.shape[1], dtype=_accumulator(x)) if need_sums else None
    torch.ops.munit_fast_cpu.epilogue_backward(
        grad,
        x,
        _contiguous(weight),
        _contiguous(bias),
        _contiguous(slopes),
        stats,
        grad_x,
        grad_residual,
        sums,
        *_flags(o, x),
    )
    return grad_x, grad_residual, sums


def l1_losses(first: list[Tensor], second: list[Tensor]) -> Tensor:
    values = [torch.ops.munit_fast_cpu.l1_sum(a, b) / a.numel() for a, b in zip(first, second)]
    return torch.tensor(values, dtype=_accumulator(first[0]))


def l1_losses_backward(
    grad: Tensor, first: list[Tensor], second: list[Tensor], need_first: list[bool], need_second: list[bool]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    grads_first: list[Tensor | None] = []
    grads_second: list[Tensor | None] = []
    for upstream, a, b, need_a, need_b in zip(grad.tolist(), first, second, need_first, need_second):
        grads_first.append(torch.empty_like(a) if need_a else None)
        grads_second.append(torch.empty_like(b) if need_b else None)
        torch.ops.munit_fast_cpu.l1_backward(a, b, upstream / a.numel(), grads_first[-1], grads_second[-1])
    return grads_first, grads_second


def lsgan_loss(outputs: list[Tensor], target: float) -> Tensor:
    value = sum(torch.ops.munit_fast_cpu.lsgan_sum(output, target) / output.numel() for output in outputs)
    return torch.tensor(value, dtype=_accumulator(outputs[0]))


def lsgan_loss_backward(grad: Tensor, outputs: list[Tensor], target: float) -> list[Tensor]:
    grads = []
    for output in outputs:
        grads.append(torch.empty_like(output))
        upstream = 2 * grad.item() / output.numel()
        torch.ops.munit_fast_cpu.lsgan_backward(output, target, upstream, grads[-1])
    return grads

"""The CUDA C++ kernels of csrc/cuda, through torch.ops.munit_fast_cuda: channels_last, on NVIDIA GPUs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from munit_fast.ops import native
from munit_fast.ops.backends.registry import Problem
from munit_fast.ops.layout import memory_format
from munit_fast.ops.options import ACTIVATIONS, NORMS, PAD_MODES, Options

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.channels_last,)
MIN_CAPABILITY = (7, 5)
MAX_BLOCKS = 65535  # samples, and channels: the second and third axis of a grid
MAX_SAMPLE = 2**30  # elements, padding included: offsets inside a sample are 32-bit
MAX_TENSORS = 8  # of one launch of the losses: MUNIT's generator update has eight reconstructions
# How an epilogue is computed: by the sizes; in one launch whose blocks keep x in shared memory; in a launch a pass.
WAYS = ("best", "slab", "passes")

_way = "best"  # tests set another


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it computes on NVIDIA GPUs, the tensors are on {device}"
    if native.module is None:
        return native.native_error
    if "cuda_error" in (built := native.module.build_info()):
        return f"munit_fast._C was built without CUDA: {built['cuda_error']}"
    if dtype not in DTYPES:
        return f"it serves float32, bfloat16 and float16, not {dtype}"
    return _why_not_here(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _why_not_here(index: int) -> str | None:
    if torch.version.cuda is None:
        return "this torch is not built for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        return f"it needs compute capability 7.5 or higher; this device has {capability[0]}.{capability[1]}"
    try:
        with torch.cuda.device(index):  # which the call makes the current one
            native.module.prepare_cuda(index)  # type: ignore[union-attr]
    except RuntimeError as error:  # a driver that is too old, for one
        return f"the kernels do not load on this device: {error}"
    return None


def why_not_problem(problem: Problem) -> str | None:
    """None if it can serve this operation, on a device and dtype that it serves; or the reason in words."""
    if problem.op != "epilogue":
        return None
    if not problem.channels_last:
        return "it reads channels_last tensors; x is NCHW (x.to(memory_format=torch.channels_last))"
    if problem.samples > MAX_BLOCKS:
        return f"it serves at most {MAX_BLOCKS} samples; x has {problem.samples}"
    if problem.channels > MAX_BLOCKS:
        return f"it serves at most {MAX_BLOCKS} channels; x has {problem.channels}"
    if problem.sample > MAX_SAMPLE:
        return f"a sample must have at most 2^30 elements, padding included; got {problem.sample}"
    return None


def _ops() -> Any:
    return torch.ops.munit_fast_cuda


def _flags(o: Options) -> tuple[Any, ...]:
    act, mode = ACTIVATIONS.index(o.act), PAD_MODES.index(o.pad_mode)
    return NORMS.index(o.norm), o.eps, act, o.slope, o.block, o.pad, mode, WAYS.index(_way)


def _parameter(t: Tensor | None) -> Tensor | None:
    if t is None:
        return None
    return (t if t.dtype in DTYPES else t.float()).contiguous()


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
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    known = stats is not None
    if stats is None:
        rows = {"none": 0, "instance": n * c, "layer": n}[o.norm]
        stats = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    parameters = _parameter(weight), _parameter(bias), _parameter(slopes)
    _ops().epilogue_forward(x, *parameters, residual, y, stats, known, *_flags(o))
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
    sums = torch.empty(3, x.shape[0], x.shape[1], dtype=torch.float32, device=x.device) if need_sums else None
    parameters = _parameter(weight), _parameter(bias), _parameter(slopes)
    _ops().epilogue_backward(grad, x, *parameters, stats, grad_x, grad_residual, sums, *_flags(o))
    return grad_x, grad_residual, sums


def _room(tensors: Sequence[Tensor], need: Sequence[bool]) -> list[Tensor]:
    """A tensor for each gradient that is needed, an empty one for the others."""
    return [torch.empty_like(t) if needed else t.new_empty(0) for t, needed in zip(tensors, need)]


def l1_losses_and_gradients(
    grad: Tensor | None,  # fp32 [P], or None for no gradients
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    need_first: Sequence[bool],
    need_second: Sequence[bool],
    need_value: bool = True,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """Value [P] and gradients of P pairs, each eight of them in one launch; a gradient not needed comes back empty."""
    value = torch.empty(len(first), dtype=torch.float32, device=first[0].device) if need_value else None
    rooms_first, rooms_second = _room(first, need_first), _room(second, need_second)
    for start in range(0, len(first), MAX_TENSORS):
        part = slice(start, start + MAX_TENSORS)
        some_grad, some_value = (None if t is None else t[part] for t in (grad, value))
        _ops().losses(first[part], second[part], 0.0, some_grad, rooms_first[part], rooms_second[part], some_value)
    return value, rooms_first, rooms_second


def l1_losses(first: list[Tensor], second: list[Tensor]) -> Tensor:
    nothing = [False] * len(first)
    value, _, _ = l1_losses_and_gradients(None, first, second, nothing, nothing)
    assert value is not None
    return value


def l1_losses_backward(
    grad: Tensor, first: list[Tensor], second: list[Tensor], need_first: list[bool], need_second: list[bool]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    _, *rooms = l1_losses_and_gradients(grad.float(), first, second, need_first, need_second, need_value=False)
    grads_first, grads_second = (
        [room if needed else None for room, needed in zip(side, need)]
        for side, need in zip(rooms, (need_first, need_second))
    )
    return grads_first, grads_second


def lsgan_loss(outputs: list[Tensor], target: float) -> Tensor:
    parts = range(0, len(outputs), MAX_TENSORS)
    values = torch.empty(len(parts), dtype=torch.float32, device=outputs[0].device)
    for i, start in enumerate(parts):
        _ops().losses(outputs[start : start + MAX_TENSORS], [], target, None, [], [], values[i : i + 1])
    return values[0] if len(values) == 1 else values.sum()


def lsgan_loss_backward(grad: Tensor, outputs: list[Tensor], target: float) -> list[Tensor]:
    grads = [torch.empty_like(output) for output in outputs]
    for start in range(0, len(outputs), MAX_TENSORS):
        part = slice(start, start + MAX_TENSORS)
        _ops().losses(outputs[part], [], target, grad.float().view(1), grads[part], [], None)
    return grads

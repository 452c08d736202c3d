"""The CUDA C++ kernels of csrc/cuda, through torch.ops.munit_fast_cuda: channels_last, on NVIDIA GPUs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from munit_fast.ops import native
from munit_fast.ops.backends.registry import Problem
from munit_fast.ops.spec import EpilogueGradients, EpilogueInputs, EpilogueSpec

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.channels_last,)
MIN_CAPABILITY = (7, 5)
MAX_BLOCKS = 65535  # samples, and channels: the second and third axis of a grid
MAX_SAMPLE = 2**30  # elements, padding included: offsets inside a sample are 32-bit
MAX_TENSORS = 8  # of one launch of the losses: MUNIT's generator update has eight reconstructions
# How an epilogue is computed: by the sizes; in one launch whose blocks keep x in shared memory; in a launch a pass.
WAYS = ("best", "slab", "passes")

_way = "best"  # tests set another


def unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it serves tensors on NVIDIA GPUs; these are on {device}"
    if native.module is None:
        return native.native_error
    if "cuda_error" in (built := native.module.build_info()):
        return f"munit_fast._C was built without CUDA: {built['cuda_error']}"
    if dtype not in DTYPES:
        return f"it serves float32, bfloat16 and float16, not {dtype}"
    return _device_unsupported_reason(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _device_unsupported_reason(index: int) -> str | None:
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


def unsupported_problem_reason(problem: Problem) -> str | None:
    """Why it does not serve this operation, on a device and dtype that it serves; None if it does."""
    if problem.op == "losses":
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


def _parameter(t: Tensor | None) -> Tensor | None:
    if t is None:
        return None
    return (t if t.dtype in DTYPES else t.float()).contiguous()


def epilogue_forward(spec: EpilogueSpec, inputs: EpilogueInputs, y: Tensor, stats: Tensor, has_stats: bool) -> None:
    x, weight, bias, residual, slopes = inputs
    parameters = _parameter(weight), _parameter(bias), _parameter(slopes)
    _ops().epilogue_forward(x, *parameters, residual, y, stats, has_stats, *spec.codes(), WAYS.index(_way))


def epilogue_backward(
    spec: EpilogueSpec, inputs: EpilogueInputs, grad: Tensor, stats: Tensor, out: EpilogueGradients
) -> None:
    x, weight, bias, _, slopes = inputs
    parameters = _parameter(weight), _parameter(bias), _parameter(slopes)
    _ops().epilogue_backward(grad, x, *parameters, stats, *out, *spec.codes(), WAYS.index(_way))


def phase_border(y: Tensor, a: Tensor, border_weight: Tensor) -> None:
    _ops().phase_border(y, a, border_weight)


def phase_border_backward(
    grad: Tensor, a: Tensor, border_weight: Tensor, grad_a: Tensor | None, grad_border: Tensor | None
) -> None:
    _ops().phase_border_backward(grad, a, border_weight, grad_a, grad_border)


def run_l1(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    value: Tensor | None,  # fp32 [P], written
    grad: Tensor | None = None,  # fp32 [P]
    out: Sequence[Tensor | None] = (),  # the gradients of `first`, then those of `second`, written; none without grad
) -> None:
    """Launch what is wanted of the L1 losses of P pairs: values, gradients or both, MAX_TENSORS pairs in a launch."""
    count, nothing = len(first), first[0].new_empty(0)
    grads = [nothing if t is None else t for t in out] if out else [nothing] * (2 * count)
    for start in range(0, count, MAX_TENSORS):
        part = slice(start, min(start + MAX_TENSORS, count))
        grad_part, value_part = (None if t is None else t[part] for t in (grad, value))
        grads_first, grads_second = grads[:count][part], grads[count:][part]
        _ops().losses(first[part], second[part], 0.0, grad_part, grads_first, grads_second, value_part)


def l1_losses(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    value = torch.empty(len(first), dtype=torch.float32, device=first[0].device)
    run_l1(first, second, value)
    return value


def l1_losses_backward(
    grad: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], out: Sequence[Tensor | None]
) -> None:
    run_l1(first, second, None, grad.float(), out)


def lsgan_loss(outputs: Sequence[Tensor], target: float) -> Tensor:
    parts = range(0, len(outputs), MAX_TENSORS)
    values = torch.empty(len(parts), dtype=torch.float32, device=outputs[0].device)
    for i, start in enumerate(parts):
        _ops().losses(outputs[start : start + MAX_TENSORS], [], target, None, [], [], values[i : i + 1])
    return values[0] if len(values) == 1 else values.sum()


def lsgan_loss_backward(grad: Tensor, outputs: Sequence[Tensor], target: float, out: Sequence[Tensor]) -> None:
    for start in range(0, len(outputs), MAX_TENSORS):
        part = slice(start, start + MAX_TENSORS)
        _ops().losses(outputs[part], [], target, grad.float().view(1), out[part], [], None)

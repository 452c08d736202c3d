"""A square convolution to, or the input gradient of one from, very few channels, on CPUs in float32.

oneDNN pads three output channels to a whole vector. Kernel columns moved into the output channels fill it: a k×1
convolution to k·O channels, then the sum of the k columns, each shifted by its place. At 64 -> 3 channels, 7×7, 256²
on two cores with AVX-512: forward 20 -> 8 ms, input gradient of 3 -> 64 channels 22 -> 8 ms; in bfloat16, whose
convolutions are faster than the sum, it loses. That was with torch's sum of a strided view; csrc/cpu/columns.inl takes
an eighth of its time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from munit_fast.ops import native, winograd
from munit_fast.ops.library import LIBRARY

# The kernel's columns are summed as float32 numbers, which is what `serves_forward` and `serves_backward` ask for.
LIBRARY.define("add_columns(Tensor columns, Tensor? bias, int kernel) -> Tensor")
LIBRARY.define("narrow_weight_gradient(Tensor grad, Tensor a, Tensor weight, int stride) -> Tensor")

_CHANNELS = 4  # 5 · 7 columns would fill vectors as well, but from 8 channels on there is nothing to gain


def _serves(x: Tensor, channels: int, kernel: tuple[int, int], stride: int) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and stride == 1
        and channels <= _CHANNELS
        and kernel[0] == kernel[1] >= 5
    )


def serves_forward(a: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether `forward` takes a convolution with weight [O, C, k, k]: few O, k ≥ 5, stride 1, float32 on a CPU."""
    return _serves(a, weight.shape[0], tuple(weight.shape[2:]), stride)  # type: ignore[arg-type]


def serves_backward(grad: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether `backward` takes it: few C, else as `serves_forward`."""
    return _serves(grad, weight.shape[1], tuple(weight.shape[2:]), stride)  # type: ignore[arg-type]


def _empty_sum(columns: Tensor, k: int) -> Tensor:
    n, c, h, w = columns.shape
    size = (n, c // k, h, w - k + 1)
    return torch.empty(size, dtype=columns.dtype, device=columns.device, memory_format=torch.channels_last)


@torch.library.impl(LIBRARY, "add_columns", "CompositeExplicitAutograd")
def _add_columns(columns: Tensor, bias: Tensor | None, k: int) -> Tensor:
    """[N, k·O, H, W + k - 1] (channel j·O + o) -> [N, O, H, W], channels_last: bias + Σ over j of columns[…, w + j]."""
    y = _empty_sum(columns, k)
    if columns.device.type == "cpu" and native.module is not None:
        dense = columns.contiguous(memory_format=torch.channels_last)
        torch.ops.munit_fast_cpu.add_columns.default(dense, bias, k, y)
        return y
    rows = columns.permute(0, 2, 3, 1).contiguous()
    (_, h, w, c), o = rows.shape, y.shape[1]
    shifted = rows.as_strided((*y.shape[:1], h, w - k + 1, k, o), (h * w * c, w * c, c, c + o, 1))
    y.copy_(shifted.sum(3).permute(0, 3, 1, 2))
    return y if bias is None else y.add_(bias.view(1, -1, 1, 1))


@torch.library.register_fake("munit_fast::add_columns", lib=LIBRARY)
def _add_columns_fake(columns: Tensor, bias: Tensor | None, k: int) -> Tensor:
    return _empty_sum(columns, k)


def forward(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(a, weight, bias).

    Args:
        a: [N, C, H, W].
        weight: [O, C, k, k] with few O.
        bias: [O]; or None.

    Returns:
        [N, O, H - k + 1, W - k + 1], channels_last.
    """
    o, c, k, _ = weight.shape
    columns = torch.conv2d(a, weight.permute(3, 0, 1, 2).reshape(k * o, c, k, 1))
    return torch.ops.munit_fast.add_columns.default(columns, bias, k)


def backward(grad: Tensor, weight: Tensor) -> Tensor:
    """The input gradient of conv2d with weight [O, C, k, k], few C, for grad [N, O, H, W]: [N, C, H+k-1, W+k-1]."""
    o, c, k, _ = weight.shape
    turned = weight.flip(2, 3).permute(3, 1, 0, 2).reshape(k * c, o, k, 1)
    return torch.ops.munit_fast.add_columns.default(torch.conv2d(grad, turned, padding=k - 1), None, k)


def serves_weight_gradient(a: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether `weight_gradient` takes a convolution with weight [O, C, k, k]: few C, or few O and stride 1.

    On two cores of an AMD EPYC, 7×7 and 256²: 64 -> 3 channels 14.4 -> 3.4 ms, 3 -> 64 3.4 -> 3.0 ms.
    """
    o, c, *kernel = weight.shape
    return (
        a.device.type == "cpu"
        and a.dtype == weight.dtype == torch.float32
        and kernel[0] == kernel[1]
        and (c <= _CHANNELS if c <= o else o <= _CHANNELS and stride == 1)
        and winograd.available()
    )


@torch.library.impl(LIBRARY, "narrow_weight_gradient", "CPU")
def _weight_gradient(grad: Tensor, a: Tensor, weight: Tensor, stride: int) -> Tensor:
    result = torch.empty_like(weight)
    dense = [t.contiguous(memory_format=torch.channels_last) for t in (grad, a)]
    torch.ops.munit_fast_cpu.narrow_weight_gradient.default(*dense, stride, result)
    return result


@torch.library.register_fake("munit_fast::narrow_weight_gradient", lib=LIBRARY)
def _weight_gradient_fake(grad: Tensor, a: Tensor, weight: Tensor, stride: int) -> Tensor:
    return torch.empty_like(weight)


def weight_gradient(grad: Tensor, a: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The gradient of the weight [O, C, k, k] of conv2d(a, weight, stride=stride), like it.

    Args:
        grad: [N, O, …], like the result.
        a: [N, C, H, W], padded already.
        weight: few C, or few O.
        stride: of both axes.
    """
    found: Tensor = torch.ops.munit_fast.narrow_weight_gradient.default(grad, a, weight, stride)
    return found

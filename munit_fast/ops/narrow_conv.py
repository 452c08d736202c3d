"""A square convolution to, or the input gradient of one from, very few channels, on CPUs in float32.

oneDNN pads three output channels to a whole vector. Kernel columns moved into the output channels fill it: a k×1
convolution to k·O channels, then the sum of the k columns, each shifted by its place. At 64 -> 3 channels, 7×7, 256²
on two cores with AVX-512: forward 20 -> 8 ms, input gradient of 3 -> 64 channels 22 -> 8 ms; in bfloat16, whose
convolutions are faster than the sum, it loses.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


def _add_columns(columns: Tensor, k: int) -> Tensor:
    """[N, k·O, H, W + k - 1] (channel j·O + o, channels_last) -> [N, O, H, W]: Σ over j of columns[…, w + j]."""
    n, c, h, w = columns.shape
    o = c // k
    rows = columns.permute(0, 2, 3, 1).contiguous()
    shifted = rows.as_strided((n, h, w - k + 1, k, o), (h * w * c, w * c, c, c + o, 1))
    return shifted.sum(3).permute(0, 3, 1, 2)


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
    y = _add_columns(columns, k)
    return y if bias is None else y.add_(bias.view(1, -1, 1, 1))


def backward(grad: Tensor, weight: Tensor) -> Tensor:
    """The input gradient of conv2d with weight [O, C, k, k], few C, for grad [N, O, H, W]: [N, C, H+k-1, W+k-1]."""
    o, c, k, _ = weight.shape
    turned = weight.flip(2, 3).permute(3, 1, 0, 2).reshape(k * c, o, k, 1)
    return _add_columns(torch.conv2d(grad, turned, padding=k - 1), k)

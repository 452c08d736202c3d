"""Nearest ×2, pad 2 and a 5×5 convolution as one 3×3 convolution of the small input to four phases.

Output row 2h + i of the large image sees, through its five kernel rows, only three rows of the small one: kernel rows
{0, 1}, {2, 3}, {4} for even rows (i = 0) and {0}, {1, 2}, {3, 4} for odd ones. With the taps summed, the four (i, j)
phases are the outputs of one 3×3 convolution, phase-major as `depth_to_space` takes them: 9 multiplications instead of
25. The small input is padded by one pixel: zeros for zero padding, else its border replicated.

Zero and replicate padding of the large image are then exact. Reflection differs in the two outermost padded lines
alone, which only the outermost ring of the result reads, each line through one kernel row or column: `add_ring` adds
what is missing there.
"""

from __future__ import annotations

from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_TAPS = (((0, 1), (2, 3), (4,)), ((0,), (1, 2), (3, 4)))


# Kept tensors must be usable in training, wherever they were first needed.
_kept = torch.inference_mode(False)


@cache
@_kept
def _taps(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[25, 36]: which of the 5×5 taps (row-major) make each tap (i, j, a, b) of the phases."""
    lines = torch.zeros(2, 3, 5, dtype=torch.float64)
    for i, groups in enumerate(_TAPS):
        for a, group in enumerate(groups):
            lines[i, a, list(group)] = 1
    return torch.einsum("iak,jbl->klijab", lines, lines).reshape(25, 36).to(device, dtype)


def phase_weight(weight: Tensor) -> Tensor:
    """[O, C, 5, 5] -> [4·O, C, 3, 3], channel (2i + j)·O + o; differentiable, in the dtype of `weight`."""
    o, c = weight.shape[:2]
    taps = weight.reshape(o * c, 25) @ _taps(weight.device, weight.dtype)
    return taps.view(o, c, 2, 2, 3, 3).permute(2, 3, 0, 1, 4, 5).reshape(4 * o, c, 3, 3)


@lru_cache(maxsize=16)
@_kept
def _windows(size: int, reflect: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[size, 2·size · 5]: a line of `size` pixels -> nearest ×2, padded by two, cut into windows of five."""
    index = torch.arange(-2, 2 * size + 2)
    if reflect:
        index = index.abs()
        index = torch.where(index < 2 * size, index, 2 * (2 * size - 1) - index)
    sources = index.clamp(0, 2 * size - 1) // 2
    return F.one_hot(sources.unfold(0, 5, 1).reshape(-1), size).T.to(device, dtype)


def _lines(a: Tensor, vertical: bool) -> Tensor:
    """What the two outermost lines lack, [2, N, C, L] (first, last): pixel 1 minus pixel 0 across the border of a."""
    if vertical:  # left and right columns
        return torch.stack([a[:, :, 1:-1, 2] - a[:, :, 1:-1, 1], a[:, :, 1:-1, -3] - a[:, :, 1:-1, -2]])
    return torch.stack([a[:, :, 2, 1:-1] - a[:, :, 1, 1:-1], a[:, :, -3, 1:-1] - a[:, :, -2, 1:-1]])


def _kernels(ring: Tensor, vertical: bool) -> Tensor:
    """The kernel lines that read them, [2, 5·C, O]."""
    lines = ring[:, :, :, ::4].permute(3, 1, 2, 0) if vertical else ring[:, :, ::4].permute(2, 1, 3, 0)
    return lines.reshape(2, -1, ring.shape[0])


def _columns(a: Tensor, vertical: bool) -> Tensor:
    """The windows of the lines, [2, N·2L, 5·C]. Rows reflect and columns replicate, so that the corners count once."""
    lines = _lines(a, vertical)
    _, n, c, length = lines.shape
    windows = (lines @ _windows(length, not vertical, a.device, a.dtype)).view(2, n, c, 2 * length, 5)
    return windows.permute(0, 1, 3, 2, 4).reshape(2, n * 2 * length, 5 * c)


def _borders(y: Tensor, vertical: bool) -> tuple[Tensor, Tensor]:
    """Views of the outermost lines of the large image inside y [N, 4·O, H, W]: [N, L, 2, O], first and last."""
    n, c, h, w = y.shape
    pixels = y.permute(0, 2, 3, 1).view(n, h, w, 2, 2, c // 4)
    if vertical:
        return pixels[:, :, 0, :, 0], pixels[:, :, -1, :, 1]
    return pixels[:, 0, :, 0], pixels[:, -1, :, 1]


def add_ring(y: Tensor, a: Tensor, ring: Tensor) -> None:
    """Adds to y [N, 4·O, H, W] (channels_last) what reflection padding changes.

    a [N, C, H+2, W+2] is the replicated input, ring the 5×5 kernel [O, C, 5, 5]; H, W ≥ 2.
    """
    for vertical in (False, True):
        found = torch.bmm(_columns(a, vertical), _kernels(ring, vertical))
        for border, line in zip(_borders(y, vertical), found):
            border.add_(line.view(border.shape))


def ring_backward(grad: Tensor, a: Tensor, ring: Tensor, grad_a: Tensor | None, need_ring: bool) -> Tensor | None:
    """Adds the ring's part to grad_a (where there is one) and returns the gradient of `ring`; grad [N, 4·O, H, W]."""
    grad_ring = torch.zeros_like(ring) if need_ring else None
    n, c = a.shape[:2]
    for vertical in (False, True):
        lines = torch.stack([border.reshape(-1, ring.shape[0]) for border in _borders(grad, vertical)])
        if grad_ring is not None:
            found = torch.bmm(_columns(a, vertical).transpose(1, 2), lines).view(2, c, 5, -1)
            if vertical:
                grad_ring[:, :, :, ::4] += found.permute(3, 1, 2, 0)
            else:
                grad_ring[:, :, ::4] += found.permute(3, 1, 0, 2)
        if grad_a is None:
            continue
        length = lines.shape[1] // (2 * n)
        columns = torch.bmm(lines, _kernels(ring, vertical).transpose(1, 2)).view(2, n, 2 * length, c, 5)
        windows = _windows(length, not vertical, a.device, a.dtype)
        first, last = columns.permute(0, 1, 3, 2, 4).reshape(2, n, c, 10 * length) @ windows.T
        if vertical:
            grad_a[:, :, 1:-1, 2] += first
            grad_a[:, :, 1:-1, 1] -= first
            grad_a[:, :, 1:-1, -3] += last
            grad_a[:, :, 1:-1, -2] -= last
        else:
            grad_a[:, :, 2, 1:-1] += first
            grad_a[:, :, 1, 1:-1] -= first
            grad_a[:, :, -3, 1:-1] += last
            grad_a[:, :, -2, 1:-1] -= last
    return grad_ring

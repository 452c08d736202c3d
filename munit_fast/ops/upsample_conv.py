"""Nearest ×2, pad 2 and a 5×5 convolution as one 3×3 convolution of the small input to four phases.

Output row 2h + i of the large image sees, through its five kernel rows, only three rows of the small one: kernel rows
{0, 1}, {2, 3}, {4} for even rows (i = 0) and {0}, {1, 2}, {3, 4} for odd ones. With the taps summed, the four (i, j)
phases are the outputs of one 3×3 convolution, phase-major as `depth_to_space` takes them: 9 multiplications instead of
25. The small input is padded by one pixel: zeros for zero padding, else its border replicated.

Zero and replicate padding of the large image are then exact. Reflection differs in the two outermost padded lines
alone, which only the outermost pixels of the result read, each line through one kernel row or column:
`correct_reflect_border` adds what is missing there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def phase_taps(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[25, 36]: which of the 5×5 taps (row-major) make each tap (i, j, a, b) of the phases; made on the device."""
    k, i, a = (torch.arange(n, device=device) for n in (5, 2, 3))
    lines = ((k + i[:, None, None]) // 2 == a[:, None]).to(dtype)  # [i, a, k]
    both = lines[:, None, :, None, :, None] * lines[:, None, :, None]  # [i, j, a, b, k, l]
    return both.permute(4, 5, 0, 1, 2, 3).reshape(25, 36)


def phase_weight(weight: Tensor, taps: Tensor | None = None) -> Tensor:
    """[O, C, 5, 5] -> [4·O, C, 3, 3], channel (2i + j)·O + o; differentiable, in the dtype of `weight`.

    Args:
        weight: the 5×5 kernel.
        taps: what `phase_taps` gave for its device and dtype, where it is at hand.
    """
    o, c = weight.shape[:2]
    # As a product: in float64, numbers are those of earlier versions to the bit.
    sums = weight.reshape(o * c, 25) @ (phase_taps(weight.device, weight.dtype) if taps is None else taps)
    return sums.view(o, c, 2, 2, 3, 3).permute(2, 3, 0, 1, 4, 5).reshape(4 * o, c, 3, 3)


class Edges(NamedTuple):
    """The outermost pixels of the small input, or their gradients, each [N, L + 2, C]: replicated at the ends.

    Attributes:
        rows: pixel rows 0, 1, H - 2 and H - 1.
        columns: pixel columns 0, 1, W - 2 and W - 1.
    """

    rows: tuple[Tensor, Tensor, Tensor, Tensor]
    columns: tuple[Tensor, Tensor, Tensor, Tensor]

    @classmethod
    def of_padded(cls, a: Tensor) -> Edges:
        """Views of a [N, C, H + 2, W + 2], which is padded by replication."""
        across, along = a.permute(0, 2, 3, 1), a.permute(0, 3, 2, 1)
        return cls(*(tuple(x[:, i] for i in (1, 2, -3, -2)) for x in (across, along)))  # type: ignore[arg-type]

    @classmethod
    def of_inner(cls, rows: Tensor, columns: Tensor) -> Edges:
        """Of rows [N, C, 4, W] and columns [N, C, H, 4] of an input without padding."""
        across, along = rows.permute(0, 2, 3, 1), columns.permute(0, 3, 2, 1)
        wide = [torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2) for x in (across, along)]
        return cls(*(tuple(x.unbind(1)) for x in wide))  # type: ignore[arg-type]

    def add_to_padded(self, a: Tensor) -> None:
        """Add these gradients to that of a padded input, [N, C, H + 2, W + 2], in place."""
        for edges, of_a in zip(self, Edges.of_padded(a)):
            for edge, pixels in zip(edges, of_a):
                pixels += edge

    def add_to_inner(self, a: Tensor) -> None:
        """Add these gradients to that of the input without padding, [N, C, H, W], in place."""
        for edges, x in zip(self, (a.permute(0, 2, 3, 1), a.permute(0, 3, 2, 1))):
            for i, edge in zip((0, 1, -2, -1), edges):
                inner = edge[:, 1:-1].clone()
                inner[:, 0] += edge[:, 0]
                inner[:, -1] += edge[:, -1]
                x[:, i] += inner


def _lines(edges: Edges, vertical: bool) -> Tensor:
    """What the two outermost lines lack, [2, N, L+2, C]: pixel 1 minus pixel 0; replicated at its ends, as a is."""
    first, second, before, last = edges.columns if vertical else edges.rows
    return torch.stack([second - first, before - last])


def _kernels(border_weight: Tensor, vertical: bool) -> Tensor:
    """A view of the kernel lines that read them, [2, O, C, 5]."""
    return border_weight[:, :, :, ::4].permute(3, 0, 1, 2) if vertical else border_weight[:, :, ::4].permute(2, 0, 1, 3)


def _windows(lines: Tensor, backwards: bool = False) -> Tensor:
    """[2, N, L, C] -> [2, N·(L-4), C·5]: the windows of five pixels."""
    windows = lines.unfold(2, 5, 1)
    return (windows.flip(4) if backwards else windows).reshape(2, -1, 5 * lines.shape[3])


def _columns(edges: Edges, vertical: bool) -> Tensor:
    """The windows of the doubled lines, [2, N·2L, C·5]. Rows reflect, columns replicate: the corners count once."""
    lines = _lines(edges, vertical)
    doubled = lines.repeat_interleave(2, 2)
    if not vertical:  # pixels -1 and 2L mirror into the pixels that replication gives, -2 and 2L+1 do not
        # Not in place: inductor (torch 2.13) takes a stride of the changed tensor for a constant.
        doubled = torch.cat([lines[:, :, 2:3], doubled[:, :, 1:-1], lines[:, :, -3:-2]], 2)
    return _windows(doubled)


def _borders(y: Tensor, vertical: bool) -> tuple[Tensor, Tensor]:
    """Views of the outermost lines of the large image inside y [N, 4·O, H, W]: [N, L, 2, O], first and last."""
    n, c, h, w = y.shape
    pixels = y.permute(0, 2, 3, 1).view(n, h, w, 2, 2, c // 4)
    if vertical:
        return pixels[:, :, 0, :, 0], pixels[:, :, -1, :, 1]
    return pixels[:, 0, :, 0], pixels[:, -1, :, 1]


def correct_reflect_border(y: Tensor, edges: Edges, border_weight: Tensor) -> None:
    """Add to y what reflection padding changes.

    Args:
        y: [N, 4·O, H, W], channels_last, H and W ≥ 2; changed in place.
        edges: of the small input.
        border_weight: [O, C, 5, 5].
    """
    for vertical in (False, True):
        kernels = _kernels(border_weight.contiguous(), vertical).flatten(2)  # a product rounds by the layout
        found = torch.bmm(_columns(edges, vertical), kernels.transpose(1, 2))
        for border, line in zip(_borders(y, vertical), found):
            border.add_(line.view(border.shape))


def _lines_backward(grads: Tensor, border_weight: Tensor, vertical: bool) -> Tensor:
    """The gradient of `_lines` [2, N, L+2, C] from that of the result's lines [2, N, 2L, O].

    A pixel of a doubled line takes from the five windows that it is in: the last one saw it first.
    """
    _, n, length, o = grads.shape
    kernels = _kernels(border_weight.contiguous(), vertical).permute(0, 1, 3, 2).reshape(2, o * 5, -1)
    windows = _windows(F.pad(grads, (0, 0, 4, 4)), backwards=True)
    doubled = torch.bmm(windows, kernels).view(2, n, length // 2 + 2, 2, -1)
    lines = doubled.sum(3)
    if not vertical:
        lines[:, :, 0], lines[:, :, -1] = doubled[:, :, 0, 1], doubled[:, :, -1, 0]
        lines[:, :, 2] += doubled[:, :, 0, 0]
        lines[:, :, -3] += doubled[:, :, -1, 1]
    return lines


def correct_reflect_border_backward(
    grad: Tensor, edges: Edges, border_weight: Tensor, need_edges: bool, need_border: bool
) -> tuple[Tensor | None, Edges | None]:
    """The backward of `correct_reflect_border`.

    Args:
        grad: [N, 4·O, H, W].
        edges: of the small input.
        border_weight: [O, C, 5, 5].
        need_edges: whether the gradients of the edges are needed.
        need_border: whether the gradient of `border_weight` is needed.

    Returns:
        The gradient of `border_weight` and those of the edges; None where they are not needed.
    """
    grad_border = torch.zeros_like(border_weight) if need_border else None
    of_edges = []
    for vertical in (False, True):
        grads = torch.stack([border.flatten(1, 2) for border in _borders(grad, vertical)])  # [2, N, 2L, O]
        if grad_border is not None:
            found = torch.bmm(grads.flatten(1, 2).transpose(1, 2), _columns(edges, vertical))
            c = found.shape[2] // 5
            _kernels(grad_border, vertical).add_(found.view(2, border_weight.shape[0], c, 5))
        if need_edges:
            first, last = _lines_backward(grads, border_weight, vertical)
            of_edges.append((-first, first, last, -last))
    return grad_border, Edges(*of_edges) if need_edges else None

"""Lines and volumes as images: what a norm of planes computes does not depend on how a plane is folded."""

from __future__ import annotations

from torch import Tensor


def as_image(x: Tensor) -> Tensor:
    """[N, C] as [N, C, 1, 1], [N, C, L] as [N, C, 1, L], [N, C, D, H, W] as [N, C, D·H, W], [N, C, H, W] as it is.

    A view of a dense x in either layout, contiguous or channels_last; else a copy.

    Args:
        x: [N, C, *spatial], with up to three spatial dimensions.
    """
    if x.dim() == 4:
        return x
    if x.dim() == 2:
        return x[:, :, None, None]
    if x.dim() == 3:
        return x.unsqueeze(2)
    n, c, d, h, w = x.shape
    pixels = x.permute(0, 2, 3, 4, 1)
    if not x.is_contiguous() and pixels.is_contiguous():
        return pixels.reshape(n, d * h, w, c).permute(0, 3, 1, 2)
    return x.reshape(n, c, d * h, w)


def from_image(y: Tensor, x: Tensor) -> Tensor:
    """The inverse of `as_image`: y in the shape of x, in its own layout.

    Args:
        y: like as_image(x).
        x: what has the shape.
    """
    if x.dim() == 4:
        return y
    if x.dim() == 2:
        return y[:, :, 0, 0]
    if x.dim() == 3:
        return y.squeeze(2)
    n, c, d, h, w = x.shape
    if y.is_contiguous():
        return y.reshape(n, c, d, h, w)
    return y.permute(0, 2, 3, 1).reshape(n, d, h, w, c).permute(0, 4, 1, 2, 3)

"""Memory layouts of [N, C, H, W] tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether a dense x counts as channels_last; one that is dense both ways does if its strides were made so."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return not x.is_contiguous() or (x.stride(3) == x.shape[1] and x.stride(1) == 1 and x.shape[1] > 1)


def memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def rows_in_format(x: Tensor, like: Tensor) -> Tensor:
    """x if the pixels of its rows lie as those of `like` do (a window of a padded tensor); else a copy."""
    channels, width = x.shape[1], x.shape[3]
    if is_channels_last(like):
        dense = (channels == 1 or x.stride(1) == 1) and (width == 1 or x.stride(3) == channels)
    else:
        dense = width == 1 or x.stride(3) == 1
    return x if dense else in_format(x, like)


def in_format(x: Tensor, like: Tensor) -> Tensor:
    """x, dense and in the layout of `like`; x itself where it already is."""
    return x.contiguous(memory_format=memory_format(like))

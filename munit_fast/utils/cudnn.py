"""The cuDNN setting that training and the benchmark share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tuned_convolutions(device: torch.device, on: bool = True) -> Iterator[None]:
    """Inside the block, cuDNN times its algorithms for each new size of a convolution and takes the fastest.

    Args:
        device: Nothing is set unless it is a GPU.
        on: False lets cuDNN guess, which is better where hardly any size comes a second time.
    """
    before = torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before

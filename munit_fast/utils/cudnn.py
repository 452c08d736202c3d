"""What training, translation and the benchmark set for as long as they run, all of them alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tuned_convolutions(device: torch.device, on: bool = True) -> Iterator[None]:
    """Inside, cuDNN measures for each new size of a convolution which of its algorithms is the fastest.

    on: False lets it guess, which is better where hardly any size comes a second time. Only for GPUs; elsewhere there
    is no such choice.
    """
    before = torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before

"""Means and variances of features that are seen in parts, each pixel once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations from the mean, of each channel.

    Attributes:
        count: Pixels.
        mean: [C], float64.
        squares: [C], float64: sum of (x - mean)².
    """

    count: int
    mean: Floats
    squares: Floats

    def over_channels(self) -> Moments:
        """The moments of all channels together, as one."""
        return merge(np.full(len(self.mean), self.count), self.mean[:, None], self.squares[:, None])

    def variance(self, correction: int = 0) -> Floats:
        """The variance [C]: divided by count - correction."""
        return self.squares / (self.count - correction)


def measure(x: Tensor) -> Floats:
    """Mean and sum of squared deviations of each channel.

    Args:
        x: [1, C, H, W] with H·W ≥ 1, any floating-point dtype.

    Returns:
        [2, C], float64; summed in float64.
    """
    flat = x[0].flatten(1)
    if flat.device.type not in ("cpu", "cuda"):  # others may lack float64
        flat = flat.cpu()
    # A few channels at a time: the copy in float64 would be twice as large as the features.
    parts = [torch.var_mean(part.double(), 1, correction=0) for part in flat.split(16)]
    variance, mean = (torch.cat(values) for values in zip(*parts))
    return torch.stack([mean, variance * flat.shape[1]]).cpu().numpy()


def merge(counts: npt.NDArray[Any], means: Floats, squares: Floats) -> Moments:
    """Join the moments of disjoint parts (Chan, Golub & LeVeque, 1979, for any number of parts).

    Args:
        counts: [T], pixels of each part.
        means: [T, C].
        squares: [T, C].

    Returns:
        The moments of all.
    """
    total = int(counts.sum())
    mean = (counts[:, None] * means).sum(0) / total
    between = (counts[:, None] * (means - mean) ** 2).sum(0)
    return Moments(total, mean, squares.sum(0) + between)

"""Steps whose gradient is not finite: skipped, counted on the trainer's device, without waiting for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WINDOW = 256  # iterations whose flags are kept


class SkipRecord:
    """How many steps were skipped, and in which of the last WINDOW iterations.

    One tensor on the trainer's device, which a CUDA graph writes to: only `total` and `flags` wait for a GPU.
    """

    def __init__(self) -> None:
        self.values = torch.zeros(1 + WINDOW, dtype=torch.int64)  # the count, then a flag an iteration, oldest first

    def to(self, device: torch.device) -> None:
        """Move to `device`."""
        self.values = self.values.to(device)

    def begin(self) -> None:
        """Enter the next iteration."""
        flags = self.values[1:]
        flags.copy_(torch.cat((flags[1:], torch.zeros_like(flags[:1]))))

    def add(self, found: Tensor) -> None:
        """Count a step of this iteration as skipped if found [] is 1, as taken if it is 0."""
        found = found.to(self.values.dtype)
        self.values[0] += found
        self.values[-1].copy_(torch.maximum(self.values[-1], found))

    @property
    def total(self) -> int:
        """Steps that were skipped, in all."""
        return int(self.values[0])

    def flags(self) -> list[bool]:
        """Of the last WINDOW iterations, oldest first: whether one of its steps was skipped."""
        return [bool(flag) for flag in self.values[1:].tolist()]


def in_a_row(flags: list[bool]) -> int:
    """How many of the newest flags are set without a gap."""
    count = 0
    for flag in reversed(flags):
        if not flag:
            break
        count += 1
    return count


def nan_if_nonfinite(loss: Tensor) -> Tensor:
    """[], 1 for a finite loss, else NaN: as the gradient of the loss it makes every gradient NaN, on every rank."""
    return 1 + 0 * loss.detach()


@contextmanager
def finite_statistics(*networks: nn.Module) -> Iterator[None]:
    """Running statistics of batch norms that become NaN or infinite inside are restored."""
    norms = [m for network in networks for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    before = [s.clone() for s in statistics]
    yield
    for now, then in zip(statistics, before):
        now.copy_(torch.where(torch.isfinite(now), now, then))

"""What metrics share: pictures by number, batches of translations, directions, and the `Metric` interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from munit_fast.evaluate.metrics.table import EvaluationRow

# Pairwise distances hold k·E floats per input, about 3.5 MB at k = 6; eight inputs a step keep that small
# beside the network.
INPUTS_PER_STEP = 8


class Pictures(Protocol):
    """Pictures [C, H, W] in [-1, 1] by number, all of one size: a tensor [N, C, H, W], or files read when needed."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class Batch(NamedTuple):
    """A few inputs and their translations; all float in [-1, 1], on one device.

    Attributes:
        fake: [N, k, C, H, W], k translations of each input.
        source: [N, C', H, W], the inputs.
        truth: [N, C, H, W], their true translations.
        others: For each input all its true translations [m, C, H, W], where several are known.
    """

    fake: Tensor
    source: Tensor | None = None
    truth: Tensor | None = None
    others: Sequence[Tensor | None] = ()


@dataclass(frozen=True)
class Direction:
    """One direction of a translation: what its rows are called and which there are.

    Attributes:
        key: First part of its rows' keys, "a_to_b".
        name: For readers, "A → B".
        answer: What a true translation is called.
        pixels: Which of l1, ssim and line_f1 are measured on pairs.
        features: Whether KID, diversity and the feature distances are measured.
        real: What the real pictures are: "test", or "training" where there are no others.
        colouring: Whether the inputs are line drawings whose colours are looked at, see `colouring`.
    """

    key: str
    name: str
    answer: str = "picture"
    pixels: tuple[str, ...] = ("l1", "ssim")
    features: bool = True
    real: str = "test"
    colouring: bool = False


class Metric(Protocol):
    """Accumulates over the batches of one direction, then gives its rows; as torchmetrics' `update` and `compute`."""

    def update(self, batch: Batch) -> None:
        """Add a batch."""

    def compute(self, direction: Direction, real: Pictures) -> Iterator[EvaluationRow]:
        """The rows of all batches so far. real: the real pictures of the target domain."""


def in_steps(pictures: Pictures) -> Iterator[Tensor]:
    """All pictures, `INPUTS_PER_STEP` at a time, [n, C, H, W]."""
    for start in range(0, len(pictures), INPUTS_PER_STEP):
        yield torch.stack([pictures[i] for i in range(start, min(len(pictures), start + INPUTS_PER_STEP))])

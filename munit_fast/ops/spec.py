"""What an epilogue is: its options and their names, the sizes and dtypes of its tensors, and their memory layout.

Every size, dtype and name that an operator, its fake and its backends must agree on is stated here. The compiled part
receives names as integers, the positions in NORMS, ACTIVATIONS and PAD_MODES; `munit_fast.ops.native` refuses one that
was built with other names.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NORMS = ("none", "instance", "layer", "group")
ACTIVATIONS = ("none", "relu", "lrelu", "prelu", "selu", "tanh", "silu", "gelu", "gelu_tanh")
PAD_MODES = ("reflect", "replicate", "zero")

WINOGRAD_PLANS = ("f43", "f23", "f42")

ENUMS = {"norms": NORMS, "activations": ACTIVATIONS, "pad_modes": PAD_MODES, "winograd_plans": WINOGRAD_PLANS}
"""The names by kind, as `munit_fast._C.enums()` returns them."""


class EpilogueSpec(NamedTuple):
    """The options of an epilogue, and the sizes that follow from them.

    Attributes:
        norm: one of NORMS.
        eps: what the norm adds to the variance ("instance", "group") or the standard deviation ("layer").
        act: one of ACTIVATIONS.
        slope: of "lrelu"; the slopes of "prelu" are a tensor.
        block: side of the blocks of depth-to-space; 1 for none.
        pad: pixels of padding on each side.
        pad_mode: one of PAD_MODES.
        groups: of channels, of the norm "group"; else 1.
    """

    norm: str
    eps: float
    act: str
    slope: float
    block: int
    pad: int
    pad_mode: str
    groups: int = 1

    def output_size(self, x: Tensor) -> tuple[int, int, int, int]:
        """The size of the result for x [N, C, H, W]: [N, C / block², block·H + 2·pad, block·W + 2·pad]."""
        n, c, h, w = x.shape
        block, pad = self.block, self.pad
        return n, c // block**2, block * h + 2 * pad, block * w + 2 * pad

    def stats_size(self, x: Tensor) -> tuple[int, int]:
        """The size [2, R] of x's statistics: one column a plane, a sample (norm "layer"), or none.

        The planes of a group have equal columns: what reads statistics need not know of groups.
        """
        n, c, _, _ = x.shape
        norm = self.norm
        return 2, 0 if norm == "none" else n if norm == "layer" else n * c

    def sums_size(self, x: Tensor) -> tuple[int, int, int]:
        """The size [3, N, C] of the backward's sums: over each plane, for bias, weight and slopes."""
        return 3, x.shape[0], x.shape[1]

    def codes(self) -> tuple[int, float, int, float, int, int, int, int]:
        """The fields as the compiled operators take them, with numbers in place of names."""
        norm, eps, act, slope, block, pad, pad_mode, groups = self
        return NORMS.index(norm), eps, ACTIVATIONS.index(act), slope, block, pad, PAD_MODES.index(pad_mode), groups


class EpilogueInputs(NamedTuple):
    """The tensors that an epilogue reads, checked and dense, in the order of the operators' schema.

    Attributes:
        x: [N, C, H, W], contiguous or channels_last.
        weight: [P] or [N, P], P = C / block² or C; or None.
        bias: like weight; or None.
        residual: like x, or a window of a larger tensor whose rows lie as those of x; or None. Always None backward.
        slopes: [1] or [C] for act "prelu"; else None.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    slopes: Tensor | None


class EpilogueGradients(NamedTuple):
    """What a backward writes: the gradients of x and the residual, like x, and sums [3, N, C]; None: not needed."""

    x: Tensor | None
    residual: Tensor | None
    sums: Tensor | None


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics, sums and losses of tensors of `dtype`: float32, or float64 for float64."""
    return dtype if dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Whether a dense x counts as channels_last; one that is dense both ways does if its strides were made so."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return not x.is_contiguous() or (x.stride(3) == x.shape[1] and x.stride(1) == 1 and x.shape[1] > 1)


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of a dense x [N, C, H, W]."""
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

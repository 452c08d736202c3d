"""Which convolution goes which way on CPUs, as data: the first row of TABLE that fits a convolution names its plan.

``MUNIT_FAST_CONV`` overrides the table: "direct" for PyTorch's convolution everywhere, "winograd" or "winograd2" for
F(4×4) or F(2×2) wherever they can serve.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import torch

from munit_fast.ops import native, winograd
from munit_fast.utils import env


class ConvShape(NamedTuple):
    """A convolution, as far as the choice depends on it.

    Attributes:
        kernel: rows and columns of the kernel.
        stride: of both axes.
        channels: of the input.
        out_channels: of the result.
        samples: N.
        height: rows of the result.
        width: columns of the result.
        dtype: of the input.
        kept: whether the transformed weight is at hand; else each call transforms it.
    """

    kernel: int
    stride: int
    channels: int
    out_channels: int
    samples: int
    height: int
    width: int
    dtype: torch.dtype
    kept: bool

    @property
    def tiles(self) -> int:
        """Tiles of 4×4 results."""
        return self.samples * ((self.height + 3) // 4) * ((self.width + 3) // 4)


class ConvRule(NamedTuple):
    """A set of convolutions, and the plan that is faster for them than a direct convolution."""

    isas: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    kernel: int
    stride: int
    channels: int  # the least, of input and result
    tiles: int  # the least, where each call transforms the weight
    tiles_kept: int  # the least, where it is at hand
    tiles_weight: int  # the least for the weight's gradient, which needs no transformed weight
    plan: str
    because: str


class Plans(NamedTuple):
    """The plans of a convolution; None: direct.

    Attributes:
        result: of the result and the input's gradient.
        weight: of the weight's gradient.
    """

    result: str | None = None
    weight: str | None = None


DIRECT = Plans()


_AVX512 = ("avx512", "avx512_bf16")
TABLE = [
    ConvRule((*_AVX512, "avx2"), (torch.float32,), 3, 1, 16, 32, 4, 16, "f43", ""),
    ConvRule((*_AVX512, "avx2"), (torch.float32,), 4, 2, 16, 128, 16, 16, "f42", ""),
]


@cache
def _override() -> str:
    return env.conv()


def serving_plan(shape: ConvShape, accurate: bool = False) -> str | None:
    """The plan that can serve a convolution, fast or not; None if there is none.

    Args:
        shape: the convolution.
        accurate: F(2×2) instead of F(4×4).
    """
    if not winograd.available() or shape.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return None
    if (shape.kernel, shape.stride) == (3, 1):
        return "f23" if accurate else "f43"
    return "f42" if (shape.kernel, shape.stride) == (4, 2) and not accurate else None


def choose(shape: ConvShape) -> Plans:
    """The plans of a convolution on a CPU."""
    if native.module is None:
        return DIRECT
    # Asked for several times in each convolution.
    search = _search if torch.compiler.is_compiling() else _search_once
    return search(shape, native.module.isa(), _override())


def _search(shape: ConvShape, isa: str, override: str) -> Plans:
    if override == "direct" or not winograd.available():
        return DIRECT
    if override != "auto":
        plan = serving_plan(shape, override == "winograd2")
        return Plans(plan, plan)
    least, tiles = min(shape.channels, shape.out_channels), shape.tiles
    for row in TABLE:
        if (
            (row.kernel, row.stride) == (shape.kernel, shape.stride)
            and isa in row.isas
            and shape.dtype in row.dtypes
            and least >= row.channels
        ):
            result = row.plan if tiles >= (row.tiles_kept if shape.kept else row.tiles) else None
            apart = shape.dtype == torch.float32 and tiles >= row.tiles_weight  # else the weight is rounded
            return Plans(result, row.plan if result or apart else None)
    return DIRECT


_search_once = lru_cache(maxsize=4096)(_search)

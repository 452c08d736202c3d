"""Which convolution goes which way on CPUs, as data: the first row of TABLE that fits a convolution names its plan.

Where none fits, PyTorch's direct convolution runs. `benchmarks/scripts/conv_tune.py` measures and prints the rows.

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
    """A set of convolutions, and the plan that is fastest for them.

    Attributes:
        isas: instruction sets in use.
        dtypes: of the input.
        kernel: rows and columns.
        stride: of both axes.
        channels: the least, of input and result.
        tiles: the least, where each call transforms the weight.
        tiles_kept: the least, where it is at hand.
        plan: of `winograd.PLANS`.
        because: the measurement.
        lacking: an instruction set that speeds up direct convolutions, and that the processor must lack; or "".
    """

    isas: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    kernel: int
    stride: int
    channels: int
    tiles: int
    tiles_kept: int
    plan: str
    because: str
    lacking: str = ""


# What benchmarks/scripts/conv_tune.py measured on an AMD EPYC (Zen 5), two threads: how many times as fast as direct an
# epilogue and its convolution are, the least and the median of the row's grid; in training forward and backward, kept:
# forward with a weight that was transformed before. Below 64 tiles the weights' transforms decide: with 16 tiles, 256
# channels take 1.4 times as long in training as directly. Kept weights gain from one tile on, but a training's passes
# without a graph keep none.
_AVX512, _AVX2 = ("avx512", "avx512_bf16"), ("avx2",)
_FP32, _BF16 = (torch.float32,), (torch.bfloat16,)
TABLE = [
    ConvRule(_AVX512, _FP32, 3, 1, 16, 64, 16, "f43", "training 1.2×, median 1.7×; kept 1.4×, median 2.2×"),
    ConvRule(_AVX512, _FP32, 4, 2, 16, 64, 16, "f42", "training 1.1×, median 1.5×; kept 1.1×, median 1.7×"),
    ConvRule(_AVX2, _FP32, 3, 1, 8, 16, 16, "f43", "training 1.1×, median 1.8×; kept 1.2×, median 2.2×"),
    ConvRule(_AVX2, _FP32, 4, 2, 32, 64, 16, "f42", "training 1.2×, median 1.6×; kept 1.3×, median 1.8×"),
    ConvRule(
        ("avx512_bf16",), _BF16, 3, 1, 64, 256, 16, "f43",
        "training 1.2×, median 1.3×; kept 1.1×, median 1.4×; not measured with AMX", lacking="amx_tile",
    ),
]  # fmt: skip


@cache
def _lacks(feature: str) -> bool:
    """Whether the processor is known to lack an instruction set."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is not None and not capabilities().get(feature, True)


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


def rules() -> list[ConvRule]:
    """The rows of TABLE for the instruction set in use: the first that fits a convolution names its plan."""
    if not winograd.available():
        return []
    isa = native.module.isa()  # type: ignore[union-attr]
    return [row for row in TABLE if isa in row.isas and (not row.lacking or _lacks(row.lacking))]


def choose(shape: ConvShape) -> str | None:
    """The plan of a convolution on a CPU; None: direct."""
    if native.module is None:
        return None
    # Asked for several times in each convolution.
    search = _search if torch.compiler.is_compiling() else _search_once
    return search(shape, native.module.isa(), _override())


def _search(shape: ConvShape, isa: str, override: str) -> str | None:
    if override == "direct":
        return None
    if override != "auto":
        return serving_plan(shape, override == "winograd2")
    least, tiles = min(shape.channels, shape.out_channels), shape.tiles
    for row in rules():
        if (
            (row.kernel, row.stride) == (shape.kernel, shape.stride)
            and shape.dtype in row.dtypes
            and least >= row.channels
            and tiles >= (row.tiles_kept if shape.kept else row.tiles)
        ):
            return row.plan
    return None


_search_once = lru_cache(maxsize=4096)(_search)

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
    """A set of convolutions, and the plan that is faster for them than a direct convolution.

    Attributes:
        isas: instruction sets in use.
        dtypes: of the input.
        kernel: rows and columns.
        stride: of both axes.
        channels: the least, of input and result.
        tiles: the least, where each call transforms the weight.
        tiles_kept: the least, where it is at hand.
        tiles_weight: the least for the weight's gradient, which needs no transformed weight.
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
    tiles_weight: int
    plan: str
    because: str
    lacking: str = ""


class Plans(NamedTuple):
    """The plans of a convolution; None: direct.

    Attributes:
        result: of the result and the input's gradient.
        weight: of the weight's gradient.
    """

    result: str | None = None
    weight: str | None = None


DIRECT = Plans()


# What benchmarks/scripts/conv_tune.py measured on an AMD EPYC (Zen 5), two threads: how many times as fast as direct an
# epilogue and its convolution are, the least and the median of the row's grid; "training" forward and backward, "kept"
# forward with a weight that was transformed before, "weight" the gradient of the weight alone, without the epilogue.
# With few tiles the transforms of the weights decide: 512 channels with 16 tiles took 1.2 times as long in training as
# directly. Weight gradients below 1 are those of the fewest channels. "lacking" tells where direct ones are emulated.
# Rows but AVX-512's in float32 were measured on a busy machine, by the processor's time.
_AVX512, _AVX2 = ("avx512", "avx512_bf16"), ("avx2",)
_FP32, _BF16, _FP16 = (torch.float32,), (torch.bfloat16,), (torch.float16,)
TABLE = [
    ConvRule(
        _AVX512, _FP32, 3, 1, 16, 32, 16, 16, "f43",
        "training 1.3×, median 1.6×; kept 1.4×, 2.4×; weight 0.8× (16 channels), 1.9×",
    ),
    ConvRule(
        _AVX512, _FP32, 4, 2, 16, 64, 16, 32, "f42",
        "training 1.1×, median 1.4×; kept 1.4×, 1.8×; weight 0.5× (16 channels), 1.7×; with 16 tiles as direct",
    ),
    ConvRule(
        _AVX2, _FP32, 3, 1, 16, 32, 16, 16, "f43",
        "training 1.2×, median 2.1×; kept 1.3×, 2.2×; weight 0.8× (16 channels), 2.3×",
    ),
    ConvRule(
        _AVX2, _FP32, 4, 2, 32, 64, 16, 16, "f42",
        "training 1.2×, median 1.6×; kept 1.3×, 1.8×; weight 0.9×, 1.7×",
    ),
    ConvRule(
        ("avx512_bf16",), _BF16, 3, 1, 64, 256, 16, 256, "f43",
        "training 1.2×, median 1.3×; kept 1.1×, 1.4×; 4×4 and AMX: direct", lacking="amx_tile",
    ),
    ConvRule(
        ("avx512",), _BF16, 3, 1, 16, 16, 16, 16, "f43",
        "training 1.6×, median 5.4×; kept 1.4×, 4.9×", lacking="avx512_bf16",
    ),
    ConvRule(
        ("avx512",), _BF16, 4, 2, 16, 16, 16, 16, "f42",
        "training 1.6×, median 4.2×; kept 1.6×, 3.6×", lacking="avx512_bf16",
    ),
    ConvRule(
        _AVX512, _FP16, 3, 1, 16, 16, 16, 16, "f43",
        "training 3.1×, median 17×; kept 2.4×, 12×", lacking="avx512_fp16",
    ),
    ConvRule(
        _AVX512, _FP16, 4, 2, 16, 16, 16, 16, "f42",
        "training 3.6×, median 10×; kept 2.1×, 7.0×", lacking="avx512_fp16",
    ),
    ConvRule(
        _AVX2, _BF16, 3, 1, 16, 16, 16, 16, "f43",
        "training 2.1×, median 13×; kept 2.5×, 9.2×", lacking="avx_ne_convert",
    ),
    ConvRule(
        _AVX2, _BF16, 4, 2, 32, 16, 16, 16, "f42",
        "training 1.1×, median 7.7×; kept 1.9×, 6.5×", lacking="avx_ne_convert",
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


def choose(shape: ConvShape) -> Plans:
    """The plans of a convolution on a CPU; in a program that is being compiled those of large images."""
    if native.module is None:
        return DIRECT
    if torch.compiler.is_compiling():
        kernel, stride, channels, out_channels, _, _, _, dtype, kept = shape
        return _of_large_images(kernel, stride, channels, out_channels, dtype, kept)
    # Asked for several times in each convolution.
    return _search_once(shape, native.module.isa(), _override())


# A compiled program may be called with other sizes; and torch.compile cannot look into the compiled part.
@native.constant_when_compiled
def _of_large_images(
    kernel: int, stride: int, channels: int, out_channels: int, dtype: torch.dtype, kept: bool
) -> Plans:
    shape = ConvShape(kernel, stride, channels, out_channels, 16, 1024, 1024, dtype, kept)
    return _search(shape, native.module.isa(), _override())  # type: ignore[union-attr]


def _search(shape: ConvShape, isa: str, override: str) -> Plans:
    if override == "direct" or not winograd.available():
        return DIRECT
    if override != "auto":
        plan = serving_plan(shape, override == "winograd2")
        return Plans(plan, plan)
    least, tiles = min(shape.channels, shape.out_channels), shape.tiles
    for row in rules():
        if (
            (row.kernel, row.stride) == (shape.kernel, shape.stride)
            and shape.dtype in row.dtypes
            and least >= row.channels
        ):
            result = row.plan if tiles >= (row.tiles_kept if shape.kept else row.tiles) else None
            apart = shape.dtype == torch.float32 and tiles >= row.tiles_weight  # else the weight is rounded
            return Plans(result, row.plan if result or apart else None)
    return DIRECT


_search_once = lru_cache(maxsize=4096)(_search)

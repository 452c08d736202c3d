"""The tile sizes and split counts of every kernel, as data.

Nothing is tuned at run time: a table is read from top to bottom and the first row whose limits hold is used, so the
same shapes give the same launch, and the same bits, on every device. `make gpu-tune` measures tiles for exact shapes
and writes them to tuned.json beside this file: asked first, on the GPU that it was measured on. While there is none,
nothing has been tuned.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

ANY = 1 << 62

SPLIT_PROGRAMS = 512
"""How many programs a split reduction aims at: about four for each of the 132 multiprocessors of an H100."""

MAX_SPLITS = 512
"""The most partial results that a consumer has to add."""

FEW_SPLITS = 16
"""Partial results of each channel that a consumer adds in passing: up to here half of SPLIT_PROGRAMS is aimed at.

Every program of the consumer reads those of all its channels. There are more only until each multiprocessor has a
program, a quarter of SPLIT_PROGRAMS.
"""

MAX_TILES = 8
"""The most tiles of a program that adds up partial results; by then those no longer count."""

COMBINE_ELEMENTS = 2048
"""Partial results that one program of a combine holds at a time: splits × columns."""

COMBINE_WARPS = 4

PARTIAL_ELEMENTS = 4096
"""Partial sums that a program of the backward adds up at a time: splits × channels."""

TERMS = 512
"""Partial sums of a sample, for the layer norm, that a program of the backward adds up at a time."""

GROUP_ELEMENTS, GROUP_WARPS = 1024, 4
"""Partial results that a program of the group norm's combine holds at a time, and its warps."""

LOSS_ELEMENTS, LOSS_WARPS = 2048, 4
"""Elements of a tile, and warps of a program, of the loss kernels."""

LOSS_SPLITS = 256
"""Partial sums of each pair of a loss; the grid of the forward is this × pairs."""


ROW_PIXELS = 16
"""The shortest run of pixels that a row is cut into so that less of a tile lies beyond its end."""


class TileConfig(NamedTuple):
    """What one program works on at a time, and the least number of such tiles it is given."""

    pixels: int  # a power of two
    channels: int  # a power of two
    num_warps: int
    tiles: int  # each program loads its channels' parameters once, so more tiles mean fewer such loads


class TileRule(NamedTuple):
    """A tile and the largest problem it is for."""

    itemsize: int  # of an element of x, in bytes
    channels: int  # of the output (P): the run that a tile divides
    area: int  # pixels of a plane
    tile: TileConfig


# Sixteen elements a thread: two 16-byte accesses in bf16, four in fp32, all in flight at once. Behind a norm a program
# first adds up partial results, 2·S·channels numbers. So its tiles are narrow, 64 channels, which in bf16 are whole
# lines of 128 bytes, and on a larger plane, which has more splits, it has more tiles. Of one sample of MUNIT's:
#   256 channels of 64²: S = 16 (backward 32), 276 (256) programs of 1 tile, 2 for each of 132 multiprocessors
#   128 channels of 128²: S = 32 (64), 266 (256) programs of 2 tiles
#   64 channels of 256²: S = 64 (128), 261 (256) programs of 4 tiles
# That is half a number, in the backward one, for each element of a program's tiles; of 4 and 8 samples an eighth to a
# thirty-second, as S is less and `tiles_of_a_program` more. The layer norm's programs read up to 512 pairs for all of
# their channels.
_WRITING_CHANNELS_LAST = [
    TileRule(4, 4, ANY, TileConfig(pixels=256, channels=4, num_warps=4, tiles=1)),
    TileRule(4, 8, ANY, TileConfig(pixels=256, channels=8, num_warps=4, tiles=1)),
    TileRule(4, 16, ANY, TileConfig(pixels=128, channels=16, num_warps=4, tiles=1)),
    TileRule(4, 32, ANY, TileConfig(pixels=64, channels=32, num_warps=4, tiles=1)),
    TileRule(4, ANY, 1 << 11, TileConfig(pixels=32, channels=64, num_warps=4, tiles=1)),
    TileRule(4, ANY, 1 << 13, TileConfig(pixels=64, channels=64, num_warps=8, tiles=1)),
    TileRule(4, ANY, 1 << 15, TileConfig(pixels=64, channels=64, num_warps=8, tiles=2)),
    TileRule(4, ANY, ANY, TileConfig(pixels=64, channels=64, num_warps=8, tiles=4)),
]
_WRITING_CONTIGUOUS = [
    TileRule(4, ANY, 64, TileConfig(pixels=64, channels=16, num_warps=4, tiles=1)),
    TileRule(4, ANY, 256, TileConfig(pixels=256, channels=4, num_warps=4, tiles=1)),
    TileRule(4, ANY, 1 << 14, TileConfig(pixels=1024, channels=1, num_warps=4, tiles=2)),
    TileRule(4, ANY, ANY, TileConfig(pixels=1024, channels=1, num_warps=4, tiles=4)),
]
# Narrower still, so that few splits are many programs: 128 for one sample of any of MUNIT's shapes, of 8192 elements a
# tile, which are 16 KiB of bf16 in flight on each multiprocessor.
_STATISTICS_COLUMNS = [
    TileRule(4, 8, ANY, TileConfig(pixels=512, channels=8, num_warps=4, tiles=1)),
    TileRule(4, 16, ANY, TileConfig(pixels=256, channels=16, num_warps=4, tiles=1)),
    TileRule(4, 32, ANY, TileConfig(pixels=128, channels=32, num_warps=4, tiles=1)),
    TileRule(4, ANY, ANY, TileConfig(pixels=256, channels=32, num_warps=8, tiles=1)),
]
# One column: the pixels are the elements of a row, that is, of a plane (instance, NCHW) or of a sample (layer).
_STATISTICS_ROWS = [
    TileRule(4, ANY, 256, TileConfig(pixels=256, channels=1, num_warps=1, tiles=1)),
    TileRule(4, ANY, ANY, TileConfig(pixels=2048, channels=1, num_warps=4, tiles=4)),
]
_SUMS_CHANNELS_LAST = [
    TileRule(4, 8, ANY, TileConfig(pixels=256, channels=8, num_warps=4, tiles=2)),
    TileRule(4, 16, ANY, TileConfig(pixels=128, channels=16, num_warps=4, tiles=2)),
    TileRule(4, 32, ANY, TileConfig(pixels=64, channels=32, num_warps=4, tiles=2)),
    TileRule(4, ANY, ANY, TileConfig(pixels=64, channels=64, num_warps=8, tiles=1)),
]
_SUMS_CONTIGUOUS = [
    TileRule(4, ANY, 64, TileConfig(pixels=64, channels=16, num_warps=4, tiles=1)),
    TileRule(4, ANY, 256, TileConfig(pixels=256, channels=4, num_warps=4, tiles=1)),
    TileRule(4, ANY, ANY, TileConfig(pixels=1024, channels=1, num_warps=4, tiles=4)),
]

TABLES: dict[str, list[TileRule]] = {
    "statistics, columns": _STATISTICS_COLUMNS,
    "statistics, rows": _STATISTICS_ROWS,
    "forward, channels_last": _WRITING_CHANNELS_LAST,
    "forward, contiguous": _WRITING_CONTIGUOUS,
    "sums, channels_last": _SUMS_CHANNELS_LAST,
    "sums, contiguous": _SUMS_CONTIGUOUS,
    "backward, channels_last": _WRITING_CHANNELS_LAST,
    "backward, contiguous": _WRITING_CONTIGUOUS,
}


class BorderTile(NamedTuple):
    """What a program of the border of a phase convolution works on: a product of two tiles at a time."""

    line: int  # places of a line, or pixels, or outputs of a tap's gradient: the rows of the product
    channels: int  # its columns
    inner: int  # terms of its sums
    num_warps: int


# Lines are short and their sums long: small tiles make enough programs, which then wait for memory side by side.
BORDER_TILE = BorderTile(line=32, channels=32, inner=32, num_warps=4)


TUNED_FILE = Path(__file__).with_name("tuned.json")


def read_tuned(path: Path, device: str | None) -> dict[tuple[str, int, int, int], TileConfig]:
    """The tiles that `make gpu-tune` measured on `device`.

    Args:
        path: the file.
        device: the name of the GPU.

    Returns:
        (table, itemsize, channels, area) -> tile; {} where there is no file, or one of another device.

    Raises:
        ValueError: the file is none of these.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["measured_on"] != device:
            return {}
        return {
            (e["table"], e["itemsize"], e["channels"], e["area"]): TileConfig(
                *(int(e["tile"][f]) for f in TileConfig._fields)
            )
            for e in content["tiles"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what `make gpu-tune` writes ({error}); remove it, or tune again") from None


@cache
def tuned(device: torch.device) -> dict[tuple[str, int, int, int], TileConfig]:
    """The tuned tiles for `device`; a machine may have GPUs of several models."""
    if not TUNED_FILE.exists():
        return {}
    return read_tuned(TUNED_FILE, torch.cuda.get_device_name(device) if device.type == "cuda" else None)


def tile(table: str, itemsize: int, channels: int, area: int, device: torch.device) -> TileConfig:
    """The tuned tile for exactly this problem, else that of the first row of `table` that is large enough.

    Args:
        table: a key of TABLES.
        itemsize: bytes of an element of x.
        channels: of the output.
        area: pixels of a plane.
        device: the GPU, whose tuned tiles come first.

    Raises:
        LookupError: no row is large enough.
    """
    exact = tuned(device).get((table, itemsize, channels, area))
    if exact is not None:
        return exact
    for row in TABLES[table]:
        if itemsize <= row.itemsize and channels <= row.channels and area <= row.area:
            return row.tile
    raise LookupError(f"table {table!r} has no row for itemsize {itemsize}, {channels} channels, {area} pixels")


def split(tiles: int, at_least: int, columns: int, for_each_channel: bool) -> tuple[int, int]:
    """How to cut a reduction into splits that run in parallel.

    Args:
        tiles: tiles that are reduced.
        at_least: tiles that a split gets at least.
        columns: independent reductions.
        for_each_channel: whether the consumer adds up the splits of every channel it has, or of one column.

    Returns:
        Tiles of a split, and splits.
    """
    wanted = SPLIT_PROGRAMS // max(columns, 1)
    if for_each_channel:
        wanted = max(min(wanted // 2, FEW_SPLITS), wanted // 4)
    wanted = min(max(wanted, 1), MAX_SPLITS)
    per_split = max(at_least, cdiv(tiles, wanted))
    return per_split, cdiv(tiles, per_split)


def tiles_of_a_program(tile: TileConfig, tiles: int, columns: int) -> int:
    """How many tiles a program is given that first adds up partial results: more where that leaves programs enough.

    Args:
        tile: the tile, with the least number.
        tiles: tiles of a column.
        columns: of programs.
    """
    return max(tile.tiles, min(tiles * columns // SPLIT_PROGRAMS, MAX_TILES))


def within_a_row(tile: TileConfig, width: int, channels: int) -> TileConfig:
    """The tile inside one row of pixels, with the least beyond the row's end; of more channels where it is shorter.

    Args:
        tile: the tile for pixels in a run.
        width: pixels of a row.
        channels: of the output.
    """
    longest = min(tile.pixels, power_of_two(width))
    shortest = min(longest, ROW_PIXELS)
    lengths = [1 << i for i in range(shortest.bit_length() - 1, longest.bit_length())]
    pixels = min(lengths, key=lambda length: (cdiv(width, length) * length, -length))
    wider = min(tile.channels * (tile.pixels // pixels), max(power_of_two(channels), tile.channels))
    return tile._replace(pixels=pixels, channels=wider)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()

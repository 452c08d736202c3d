"""Mean and spread of planes (instance norm), groups of them (group norm) or samples (layer norm): one read of x.

x is seen as [G, L, K] and reduced over L. In channels_last memory an instance norm has G = N, L = H·W, K = C; in every
other case the reduced elements are contiguous: G = N·C, L = H·W (instance) or G = N, L = C·H·W (layer), and K = 1.
A group norm reduces planes, which are then united.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs, launch


@triton.jit
def add_pairs(a_first, a_second, b_first, b_second):
    """Two sums in one reduction, which halves its barriers."""
    return a_first + b_first, a_second + b_second


@triton.jit
def merge(b_count, b_mean, b_m2, b_pivot, share, AXIS: tl.constexpr):
    """Unite the (count, mean, Σ(x - mean)²) along AXIS (Chan, Golub and LeVeque, 1983). Returns mean and Σ(x - mean)².

    `share` is one over the sum of the counts, `b_pivot` any of the values: where all are the same, nothing is rounded.
    Deviations are taken from a first estimate of the mean, which is then corrected by their sum: the result is as
    exact when the mean is a thousand times the spread.
    """
    b_estimate = b_pivot + tl.sum(b_count * (b_mean - b_pivot), AXIS, keep_dims=True) * share
    b_deviation = b_mean - b_estimate
    b_along = b_count * b_deviation
    b_first, b_second = tl.reduce((b_along, b_m2 + b_along * b_deviation), AXIS, add_pairs, keep_dims=True)
    return b_estimate + b_first * share, b_second - b_first * b_first * share


@triton.jit
def spread(b_m2, length, NORM: tl.constexpr):
    """The second statistic: the biased variance (instance, group) or the unbiased standard deviation (layer)."""
    if NORM == "layer":
        return tl.sqrt(b_m2 * (1.0 / (length - 1.0)))
    else:
        return b_m2 * (1.0 / length)


@triton.jit
def split_count(b_split, splits, length, split_length):
    """The elements of a split, in fp32: the last one has the rest, and beyond it there are none."""
    b_count = tl.where(b_split < splits - 1, split_length, length - (splits - 1) * split_length)
    return tl.where(b_split < splits, b_count, 0).to(tl.float32)


@triton.jit
def unite_splits(
    p_partial,  # fp32 [2, S, R], at the first split of a column
    columns,  # R
    b_column,  # columns from there on, along the other axis than AXIS
    m_column,
    splits,
    length,
    split_length,
    NORM: tl.constexpr,
    AXIS: tl.constexpr,
    BLOCK_S: tl.constexpr,  # at least S
):
    """The statistics of the columns, from those of their splits: for the prologue of a kernel that needs them."""
    b_s = tl.arange(0, BLOCK_S)
    b_s = b_s[:, None] if AXIS == 0 else b_s[None, :]
    m = (b_s < splits) & m_column
    b_at = b_s.to(tl.int64) * columns + b_column
    b_mean = tl.load(p_partial + b_at, m, other=0)
    b_m2 = tl.load(p_partial + tl.cast(splits, tl.int64) * columns + b_at, m, other=0)
    b_pivot = tl.load(p_partial + b_column, m_column, other=0)
    b_count = split_count(b_s, splits, length, split_length)
    b_mean, b_m2 = merge(b_count, b_mean, b_m2, b_pivot, 1.0 / length, AXIS)
    return b_mean, spread(b_m2, length.to(tl.float32), NORM)


@triton.jit(do_not_specialize=["length_runs", "lane_runs", "tiles"])
def statistics_fwd_kernel(
    p_x,  # [G, L, K]
    p_partial,  # fp32 [2, S, G·K]: mean and Σ(x - mean)² of each split; with FINAL (S = 1) the statistics [2, G·K]
    length_runs,  # L / LENGTH_RUN
    lane_runs,  # K / LANE_RUN
    tiles,  # tiles of a split
    NORM: tl.constexpr,
    FINAL: tl.constexpr,
    ONE_LANE: tl.constexpr,  # K = 1
    LENGTH_RUN: tl.constexpr,
    LANE_RUN: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (G, S, K / BLOCK_K). Reads each element of x once; writes 8 bytes a split and column.

    Every position of a tile runs its own Welford recurrence down the tiles, so that nothing crosses threads until
    the one merge at the end. All positions of a whole tile have the same count, so its reciprocal is one number; the
    tile that the end of x cuts comes last.
    """
    i_g, i_split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = length_runs * LENGTH_RUN
    b_k = tl.arange(0, BLOCK_K)
    if ONE_LANE:
        lanes = 1
    else:
        lanes = lane_runs * LANE_RUN
        b_k += tl.program_id(2) * BLOCK_K
    p_x += i_g * length * lanes
    m_k = b_k < lanes
    first = i_split * tiles * BLOCK_L
    whole = tl.minimum((length - first) // BLOCK_L, tiles)

    b_l = first + tl.arange(0, BLOCK_L)[:, None]
    b_mean = tl.zeros([BLOCK_L, BLOCK_K], tl.float32)
    b_m2 = tl.zeros([BLOCK_L, BLOCK_K], tl.float32)
    for i_tile in range(whole):
        p_at = p_x + (b_l * lanes + b_k[None, :])
        b_x = (tl.load(p_at) if ONE_LANE else tl.load(p_at, m_k[None, :], other=0)).to(tl.float32)
        b_delta = b_x - b_mean
        b_mean += b_delta * (1.0 / (i_tile + 1))
        b_m2 += b_delta * (b_x - b_mean)
        b_l += BLOCK_L
    b_count = tl.zeros([BLOCK_L, 1], tl.float32) + whole
    if whole < tiles:
        m_l = b_l < length
        m_x = m_l & m_k[None, :]
        b_x = tl.load(p_x + (b_l * lanes + b_k[None, :]), m_x, other=0).to(tl.float32)
        b_delta = tl.where(m_x, b_x - b_mean, 0.0)
        b_mean += b_delta * (1.0 / (whole + 1))
        b_m2 += b_delta * (b_x - b_mean)
        b_count += m_l.to(tl.float32)

    b_pivot = tl.load(p_x + first * lanes + b_k[None, :], m_k[None, :], other=0).to(tl.float32)
    b_mean, b_m2 = merge(b_count, b_mean, b_m2, b_pivot, 1.0 / tl.minimum(length - first, tiles * BLOCK_L), 0)
    if FINAL:
        b_m2 = spread(b_m2, length.to(tl.float32), NORM)
    columns = tl.num_programs(0).to(tl.int64) * lanes
    p_out = p_partial + i_split * columns + i_g * lanes + b_k[None, :]
    tl.store(p_out, b_mean, m_k[None, :])
    tl.store(p_out + tl.num_programs(1) * columns, b_m2, m_k[None, :])


@triton.jit(do_not_specialize=["splits", "members", "length", "split_length"])
def united_statistics_fwd_kernel(
    p_partial,  # fp32 [2, S, R]
    p_stats,  # fp32 [2, R]
    splits,  # S
    members,  # columns that are united: the planes of a group, else 1
    length,  # L of a column
    split_length,  # elements of every split but the last, which has the rest
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (R / members). Unites the splits of a group's planes: reads 8·S bytes, writes 8 bytes a column."""
    planes = tl.num_programs(0).to(tl.int64) * members
    p_partial += tl.program_id(0).to(tl.int64) * members
    p_stats += tl.program_id(0).to(tl.int64) * members
    entries = splits * members
    total = length.to(tl.float32) * members

    # As `merge`, in two rounds: what is united may be more than a program holds.
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i in range(0, entries, BLOCK):
        b_i = i + tl.arange(0, BLOCK)
        b_split = b_i // members
        m = b_i < entries
        b_mean = tl.load(p_partial + b_split * planes + b_i % members, m, other=0)
        b_sum += split_count(b_split, splits, length, split_length) * b_mean
    estimate = tl.sum(b_sum, 0) / total
    b_first = tl.zeros([BLOCK], tl.float32)
    b_second = tl.zeros([BLOCK], tl.float32)
    for i in range(0, entries, BLOCK):
        b_i = i + tl.arange(0, BLOCK)
        b_split = b_i // members
        m = b_i < entries
        p_at = p_partial + b_split * planes + b_i % members
        b_deviation = tl.where(m, tl.load(p_at, m, other=0) - estimate, 0.0)
        b_m2 = tl.load(p_at + splits * planes, m, other=0)
        b_count = split_count(b_split, splits, length, split_length)
        b_first += b_count * b_deviation
        b_second += b_m2 + b_count * b_deviation * b_deviation
    first = tl.sum(b_first, 0)
    mean = estimate + first / total
    variance = spread(tl.sum(b_second, 0) - first * first / total, total, NORM)
    for i in range(0, members, BLOCK):
        b_i = i + tl.arange(0, BLOCK)
        tl.store(p_stats + b_i, mean, b_i < members)
        tl.store(p_stats + planes + b_i, variance, b_i < members)


class Splits(NamedTuple):
    """The statistics of the splits of x, which their consumer unites."""

    partial: Tensor  # fp32 [2, S, R]: mean and Σ(x - mean)²
    length: int  # elements of a column
    split_length: int  # elements of every split but the last, which has the rest

    @property
    def splits(self) -> int:
        """S."""
        return self.partial.shape[1]


def split_statistics(x: Tensor, norm: str, channels_last: bool, stats: Tensor) -> Splits | None:
    """The statistics of parts of x. Reads x once.

    Args:
        x: [N, C, H, W], contiguous or channels_last.
        norm: "instance", "layer", or "group", whose planes are still to be united.
        channels_last: the layout of x.
        stats: fp32 [2, R], R = N·C, or N ("layer"); written where there is one split, unless for "group".

    Returns:
        What is still to be united; None if stats are written.
    """
    n, c, h, w = x.shape
    if norm == "layer":
        rows, length, lanes = n, c * h * w, 1
    else:
        rows, length, lanes = (n, h * w, c) if channels_last else (n * c, h * w, 1)
    table = "statistics, rows" if lanes == 1 else "statistics, columns"
    tile = configs.tile(table, x.element_size(), lanes, length, x.device)
    lane_blocks, columns = configs.cdiv(lanes, tile.channels), rows * lanes
    tiles, splits = configs.split(
        configs.cdiv(length, tile.pixels), tile.tiles, rows * lane_blocks, for_each_channel=lanes > 1
    )
    final = splits == 1 and norm != "group"
    partial = stats if final else torch.empty(2, splits, columns, dtype=torch.float32, device=x.device)
    length_run, lane_run = (launch.run_length(length), 1) if lanes == 1 else (1, launch.run_length(lanes))
    launch.run(
        statistics_fwd_kernel,
        (rows, splits, lane_blocks),
        x.device,
        x,
        partial,
        length // length_run,
        lanes // lane_run,
        tiles,
        NORM="layer" if norm == "layer" else "instance",
        FINAL=final,
        ONE_LANE=lanes == 1,
        LENGTH_RUN=length_run,
        LANE_RUN=lane_run,
        BLOCK_L=tile.pixels,
        BLOCK_K=tile.channels,
        num_warps=tile.num_warps,
    )
    return None if final else Splits(partial, length, tiles * tile.pixels)


def unite_statistics(split: Splits, norm: str, members: int, stats: Tensor) -> None:
    """What the splits have, as statistics, where their consumer cannot unite them.

    Args:
        split: from `split_statistics`.
        norm: as there.
        members: planes that are united: those of a group; 1 of the other norms.
        stats: fp32 [2, R], written.
    """
    launch.run(
        united_statistics_fwd_kernel,
        (stats.shape[1] // members,),
        stats.device,
        split.partial,
        stats,
        split.splits,
        members,
        split.length,
        split.split_length,
        NORM=norm,
        BLOCK=min(configs.power_of_two(split.splits * members), configs.GROUP_ELEMENTS),
        num_warps=configs.GROUP_WARPS,
    )


def statistics(x: Tensor, norm: str, groups: int, channels_last: bool, stats: Tensor) -> None:
    """`reference.epilogue.statistics` of x into stats. Reads x once.

    Args:
        x: [N, C, H, W], contiguous or channels_last.
        norm: "instance", "layer" or "group".
        groups: of channels, of the norm "group".
        channels_last: the layout of x.
        stats: fp32 [2, R], written; R = N·C, or N ("layer").
    """
    split = split_statistics(x, norm, channels_last, stats)
    if split is not None:
        unite_statistics(split, norm, x.shape[1] // groups if norm == "group" else 1, stats)

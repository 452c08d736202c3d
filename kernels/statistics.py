"""Mean and spread of planes (instance norm), groups of them (group norm) or samples (layer norm): one read of x.

x is seen as [G, L, K] and reduced over L. In channels_last memory an instance norm has G = N, L = H·W, K = C; in every
other case the reduced elements are contiguous: G = N·C, L = H·W (instance) or G = N, L = C·H·W (layer), and K = 1.
A group norm reduces planes, which are then united.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs, launch


@triton.jit
def merge(b_count, b_mean, b_m2, AXIS: tl.constexpr):
    """Unite the (count, mean, Σ(x - mean)²) along AXIS (Chan, Golub and LeVeque, 1983). Returns mean and Σ(x - mean)².

    Deviations are taken from a first estimate of the mean, which is then corrected by their sum: the result is as
    exact when the mean is a thousand times the spread.
    """
    b_total = tl.sum(b_count, AXIS, keep_dims=True)
    b_estimate = tl.sum(b_count * b_mean, AXIS, keep_dims=True) / b_total
    b_deviation = tl.where(b_count > 0, b_mean - b_estimate, 0.0)
    b_first = tl.sum(b_count * b_deviation, AXIS, keep_dims=True)
    b_second = tl.sum(b_m2 + b_count * b_deviation * b_deviation, AXIS, keep_dims=True)
    return b_estimate + b_first / b_total, b_second - b_first * b_first / b_total


@triton.jit
def spread(b_m2, length, NORM: tl.constexpr):
    """The second statistic: the biased variance (instance, group) or the unbiased standard deviation (layer)."""
    if NORM == "layer":
        return tl.sqrt(b_m2 / (length - 1.0))
    else:
        return b_m2 / length


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
    the one merge at the end.
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

    b_count = tl.zeros([BLOCK_L, 1], tl.float32)
    b_mean = tl.zeros([BLOCK_L, BLOCK_K], tl.float32)
    b_m2 = tl.zeros([BLOCK_L, BLOCK_K], tl.float32)
    for i_tile in range(tiles):
        b_l = (i_split * tiles + i_tile) * BLOCK_L + tl.arange(0, BLOCK_L)[:, None]
        m_l = b_l < length
        m_x = m_l & m_k[None, :]
        b_x = tl.load(p_x + b_l * lanes + b_k[None, :], m_x, other=0).to(tl.float32)
        b_count += m_l.to(tl.float32)
        b_delta = tl.where(m_x, b_x - b_mean, 0.0)
        b_mean += b_delta / tl.maximum(b_count, 1.0)
        b_m2 += b_delta * (b_x - b_mean)

    b_mean, b_m2 = merge(b_count, b_mean, b_m2, 0)
    if FINAL:
        b_m2 = spread(b_m2, length.to(tl.float32), NORM)
    columns = tl.num_programs(0).to(tl.int64) * lanes
    p_out = p_partial + i_split * columns + i_g * lanes + b_k[None, :]
    tl.store(p_out, b_mean, m_k[None, :])
    tl.store(p_out + tl.num_programs(1) * columns, b_m2, m_k[None, :])


@triton.jit(do_not_specialize=["splits", "columns", "length", "split_length"])
def statistics_combine_fwd_kernel(
    p_partial,  # fp32 [2, S, R]
    p_stats,  # fp32 [2, R]
    splits,  # S
    columns,  # R = G·K
    length,  # L
    split_length,  # elements of every split but the last, which has the rest
    NORM: tl.constexpr,
    BLOCK_S: tl.constexpr,  # at least S
    BLOCK_R: tl.constexpr,
):
    """Grid (R / BLOCK_R). Unites the splits of each column: reads 8·S bytes, writes 8 bytes a column."""
    b_s = tl.arange(0, BLOCK_S)[:, None]
    b_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    m_r = b_r < columns
    m = (b_s < splits) & m_r
    b_offset = b_s.to(tl.int64) * columns + b_r
    b_mean = tl.load(p_partial + b_offset, m, other=0)
    b_m2 = tl.load(p_partial + tl.cast(splits, tl.int64) * columns + b_offset, m, other=0)
    b_count = tl.minimum(length - tl.minimum(b_s, splits - 1) * split_length, split_length)
    b_count = tl.where(b_s < splits, b_count, 0).to(tl.float32)
    b_mean, b_m2 = merge(b_count, b_mean, b_m2, 0)
    tl.store(p_stats + b_r, b_mean, m_r)
    tl.store(p_stats + columns + b_r, spread(b_m2, length.to(tl.float32), NORM), m_r)


@triton.jit(do_not_specialize=["splits", "members", "length", "split_length"])
def group_statistics_fwd_kernel(
    p_partial,  # fp32 [2, S, N·C]
    p_stats,  # fp32 [2, N·C]
    splits,  # S
    members,  # planes of a group
    length,  # L of a plane
    split_length,  # elements of every split but the last, which has the rest
    BLOCK: tl.constexpr,
):
    """Grid (groups of all samples). Unites the splits of a group's planes: reads 8·S bytes, writes 8 bytes a plane."""
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
        b_count = tl.minimum(length - tl.minimum(b_split, splits - 1) * split_length, split_length)
        b_sum += tl.where(m, b_count, 0).to(tl.float32) * b_mean
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
        b_count = tl.minimum(length - tl.minimum(b_split, splits - 1) * split_length, split_length)
        b_count = tl.where(m, b_count, 0).to(tl.float32)
        b_first += b_count * b_deviation
        b_second += b_m2 + b_count * b_deviation * b_deviation
    first = tl.sum(b_first, 0)
    mean = estimate + first / total
    variance = spread(tl.sum(b_second, 0) - first * first / total, total, "group")
    for i in range(0, members, BLOCK):
        b_i = i + tl.arange(0, BLOCK)
        tl.store(p_stats + b_i, mean, b_i < members)
        tl.store(p_stats + planes + b_i, variance, b_i < members)


def statistics(
    x: Tensor,
    norm: str,
    groups: int,
    channels_last: bool,
    stats: Tensor,
) -> None:
    """`reference.epilogue.statistics` of x into stats. Reads x once.

    Args:
        x: [N, C, H, W], contiguous or channels_last.
        norm: "instance", "layer" or "group".
        groups: of channels, of the norm "group".
        channels_last: the layout of x.
        stats: fp32 [2, R], written; R = N·C, or N ("layer").
    """
    n, c, h, w = x.shape
    if norm == "layer":
        rows, length, lanes = n, c * h * w, 1
    else:
        rows, length, lanes = (n, h * w, c) if channels_last else (n * c, h * w, 1)
    table = "statistics, rows" if lanes == 1 else "statistics, columns"
    tile = configs.tile(table, x.element_size(), lanes, length, x.device)
    lane_blocks, columns = configs.cdiv(lanes, tile.channels), rows * lanes
    tiles, splits = configs.split(configs.cdiv(length, tile.pixels), tile.tiles, rows * lane_blocks)
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
    if norm == "group":
        members = c // groups
        launch.run(
            group_statistics_fwd_kernel,
            (n * groups,),
            x.device,
            partial,
            stats,
            splits,
            members,
            length,
            tiles * tile.pixels,
            BLOCK=min(configs.power_of_two(splits * members), configs.GROUP_ELEMENTS),
            num_warps=configs.GROUP_WARPS,
        )
    elif splits > 1:
        block_s = configs.power_of_two(splits)
        block_r = max(configs.COMBINE_ELEMENTS // block_s, 1)
        launch.run(
            statistics_combine_fwd_kernel,
            (configs.cdiv(columns, block_r),),
            x.device,
            partial,
            stats,
            splits,
            columns,
            length,
            tiles * tile.pixels,
            NORM=norm,
            BLOCK_S=block_s,
            BLOCK_R=block_r,
            num_warps=configs.COMBINE_WARPS,
        )

"""The kernel of the epilogue's forward: normalise → act → + residual → depth-to-space → pad in one read, one write."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import activate, padding_source, reciprocal
from .statistics import unite_splits


@triton.jit(
    do_not_specialize=[
        "p_runs",
        "area_runs",
        "height",
        "width",
        "weight_row",
        "bias_row",
        "slope_step",
        "residual_image",
        "residual_plane",
        "residual_row",
        "tiles",
        "splits",
        "length",
        "split_length",
    ]
)
def epilogue_fwd_kernel(
    p_x,  # [N, C, H, W], C = BLOCK²·P
    p_residual,  # [N, C, H, W] or None; laid out as x, or a window of a larger tensor laid out so
    p_weight,  # [P] or [N, P], with WEIGHT_PHASES [C] or [N, C]; or None
    p_bias,  # the same with BIAS_PHASES
    p_slope,  # [1] or [C] or None (then `slope` is the number)
    p_stats,  # fp32 [2, R] or None; written where there are partial ones
    p_partial,  # fp32 [2, S, R], the statistics of the splits, or None
    p_y,  # [N, P, OH, OW], OH = BLOCK·H + 2·PAD
    p_runs,  # P / P_RUN
    area_runs,  # OH·OW / AREA_RUN
    height,  # H
    width,  # W
    weight_row,  # elements from one sample's weights to the next's; 0: they are shared
    bias_row,
    slope_step,  # 0 for a slope [1], 1 for [C]
    residual_image,  # of a window: runs of WINDOW_RUN elements from one image to the next
    residual_plane,  # from one plane to the next (contiguous)
    residual_row,  # from one row to the next
    tiles,  # tiles of pixels that one program does
    splits,  # S
    length,  # elements that a statistic is taken of
    split_length,  # elements of every split but the last, which has the rest
    slope,
    eps,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK: tl.constexpr,
    PAD: tl.constexpr,
    MODE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WEIGHT_PHASES: tl.constexpr,  # each phase of depth-to-space has weights of its own
    BIAS_PHASES: tl.constexpr,
    P_RUN: tl.constexpr,
    AREA_RUN: tl.constexpr,
    WINDOW_RUN: tl.constexpr,  # 0: the residual is dense
    TILE_PIXELS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,  # at least S
):
    """Grid (OH·OW / (tiles·TILE_PIXELS), P / TILE_CHANNELS, N). A tile is one of output pixels, padding included, and
    gathers the input pixel that each of them shows: the writes are runs of memory, and border pixels, read more than
    once, come from cache. Reads x and the residual once, writes y once: 2, or 3, elements of traffic an element.

    Every program unites the partial statistics of its channels, or of its sample, by itself; the first along the
    pixels keeps the result for the backward.
    """
    i_n = tl.program_id(2).to(tl.int64)
    channels_p, out_area = p_runs * P_RUN, area_runs * AREA_RUN
    channels, area = channels_p * BLOCK * BLOCK, height * width
    p_x += i_n * channels * area
    p_y += i_n * channels_p * out_area
    if p_residual is not None:
        p_residual += i_n * (residual_image * WINDOW_RUN if WINDOW_RUN > 0 else channels * area)
    full_height, full_width = height * BLOCK, width * BLOCK
    plain: tl.constexpr = PAD == 0 and BLOCK == 1 and WINDOW_RUN == 0

    # The last axis of a tile is the contiguous one.
    b_p = tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    b_p = b_p[None, :] if CHANNELS_LAST else b_p[:, None]
    m_p = b_p < channels_p
    if p_weight is not None and not WEIGHT_PHASES:
        b_weight = tl.load(p_weight + i_n * weight_row + b_p, m_p, other=0).to(tl.float32)
    if p_bias is not None and not BIAS_PHASES:
        b_bias = tl.load(p_bias + i_n * bias_row + b_p, m_p, other=0).to(tl.float32)
    if NORM == "layer" or (NORM == "instance" and BLOCK == 1):
        one: tl.constexpr = NORM == "layer" or TILE_CHANNELS == 1  # for the whole tile
        rows = tl.num_programs(2).to(tl.int64) * (1 if NORM == "layer" else channels)
        b_stat = i_n if NORM == "layer" else i_n * channels + (tl.program_id(1) if one else b_p)
        m_stat = b_stat < rows if one else m_p
        p_mean = p_stats + b_stat
        if p_partial is None:
            b_mean = tl.load(p_mean, m_stat, other=0)
            b_spread = tl.load(p_mean + rows, m_stat, other=1)
        else:
            axis: tl.constexpr = 0 if CHANNELS_LAST or one else 1
            b_mean, b_spread = unite_splits(
                p_partial, rows, b_stat, m_stat, splits, length, split_length, NORM, axis, BLOCK_SPLITS
            )
            if one:
                b_mean, b_spread = tl.sum(b_mean), tl.sum(b_spread)
            if tl.program_id(0) == 0:
                tl.store(p_mean, b_mean, m_stat)
                tl.store(p_mean + rows, b_spread, m_stat)
        b_scale = reciprocal(b_spread, eps, NORM)
    if p_slope is None:
        b_slope = slope
    elif BLOCK == 1:
        b_slope = tl.load(p_slope + b_p * slope_step, m_p, other=0).to(tl.float32)

    for i_tile in range(tiles):
        b_o = (tl.program_id(0) * tiles + i_tile) * TILE_PIXELS + tl.arange(0, TILE_PIXELS)
        b_o = b_o[:, None] if CHANNELS_LAST else b_o[None, :]
        m_y = (b_o < out_area) & m_p
        m_x, b_pixel, b_c = m_y, b_o, b_p
        if not plain:
            b_row = b_o // (full_width + 2 * PAD)
            b_column = b_o - b_row * (full_width + 2 * PAD)
            b_row = padding_source(b_row - PAD, full_height, MODE)
            b_column = padding_source(b_column - PAD, full_width, MODE)
            if MODE == "zero" and PAD > 0:
                m_x = m_y & (b_row >= 0) & (b_row < full_height) & (b_column >= 0) & (b_column < full_width)
            b_pixel = b_row * width + b_column
            if BLOCK > 1:
                b_pixel = (b_row // BLOCK) * width + b_column // BLOCK
                b_c = ((b_row % BLOCK) * BLOCK + b_column % BLOCK) * channels_p + b_p
        b_offset = b_pixel * channels + b_c if CHANNELS_LAST else b_c * area + b_pixel

        b_z = tl.load(p_x + b_offset, m_x, other=0).to(tl.float32)
        if p_residual is not None:
            b_at = b_offset
            if WINDOW_RUN > 0:
                b_at = (b_row // BLOCK) * (residual_row * WINDOW_RUN)
                if CHANNELS_LAST:
                    b_at += (b_column // BLOCK) * channels + b_c
                else:
                    b_at += b_column // BLOCK + b_c * (residual_plane * WINDOW_RUN)
            b_residual = tl.load(p_residual + b_at, m_x, other=0).to(tl.float32)
        # With depth-to-space a pixel's place in its block decides which plane of x it comes from.
        if NORM == "instance" and BLOCK > 1:
            p_mean = p_stats + i_n * channels + b_c
            b_mean = tl.load(p_mean, m_x, other=0)
            b_scale = reciprocal(tl.load(p_mean + tl.num_programs(2).to(tl.int64) * channels, m_x, other=1), eps, NORM)
        if p_weight is not None and WEIGHT_PHASES:
            b_weight = tl.load(p_weight + i_n * weight_row + b_c, m_x, other=0).to(tl.float32)
        if p_bias is not None and BIAS_PHASES:
            b_bias = tl.load(p_bias + i_n * bias_row + b_c, m_x, other=0).to(tl.float32)
        if p_slope is not None and BLOCK > 1:
            b_slope = tl.load(p_slope + b_c * slope_step, m_x, other=0).to(tl.float32)

        # The mean is subtracted before anything else: folded into the bias it would cost digits off centre.
        if NORM != "none":
            b_z = (b_z - b_mean) * b_scale
        if p_weight is not None:
            b_z = b_z * b_weight
        if p_bias is not None:
            b_z = b_z + b_bias
        b_y = activate(b_z, b_slope, ACT)
        if p_residual is not None:
            b_y = b_y + b_residual
        if MODE == "zero" and PAD > 0:
            b_y = tl.where(m_x, b_y, 0.0)
        p_out = p_y + (b_o * channels_p + b_p if CHANNELS_LAST else b_p * out_area + b_o)
        tl.store(p_out, b_y.to(p_y.dtype.element_ty), m_y)

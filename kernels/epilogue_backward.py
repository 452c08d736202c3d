"""The kernels of the epilogue's backward: the gradients of input and residual, and the sums over each plane.

One kernel with two outputs to choose from. Behind a norm it runs twice, for the sums and then with them; without one
both come from the same pass. The activation is computed again from x, and the gradient of the padding is taken while
reading, so the forward has to keep nothing but x and two numbers a plane.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import activate_backward, padding_copy, reciprocal


@triton.jit
def load_unpadded(
    p_grad,  # [P, OH, OW], one sample
    b_row,  # rows before padding, of full_height
    b_column,  # columns before padding, of full_width
    b_p,
    m,
    full_height,
    full_width,
    channels_p,
    i_first,  # the tile's first and last pixel, counted through the input's H·W
    i_last,
    width,  # W of the input
    BLOCK: tl.constexpr,
    PAD: tl.constexpr,
    MODE: tl.constexpr,
    TWICE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """The gradient before padding, in fp32: each pixel adds up the gradients of the positions that show it.

    Only tiles that touch the border look for copies, and only the border's pixels load them.
    """
    out_width = full_width + 2 * PAD
    b_at = (b_row + PAD) * out_width + b_column + PAD
    stride_pixel = channels_p if CHANNELS_LAST else 1
    p_grad += b_p if CHANNELS_LAST else b_p * ((full_height + 2 * PAD) * out_width)
    b_g = tl.load(p_grad + b_at * stride_pixel, m, other=0).to(tl.float32)
    if PAD > 0 and MODE != "zero":
        per_edge: tl.constexpr = 1 if MODE == "reflect" else PAD
        copies: tl.constexpr = 2 * per_edge if TWICE else per_edge
        i_row = i_first // width
        i_column = i_first - i_row * width
        if (i_row * BLOCK <= PAD) | ((i_last // width + 1) * BLOCK >= full_height - PAD):
            for k in range(copies):
                b_row_k, m_row_k = padding_copy(b_row, k, full_height, PAD, MODE, TWICE)
                b_at = b_row_k * out_width + b_column + PAD
                b_g += tl.load(p_grad + b_at * stride_pixel, m & m_row_k, other=0).to(tl.float32)
                for j in range(copies):
                    b_column_j, m_column_j = padding_copy(b_column, j, full_width, PAD, MODE, TWICE)
                    b_at = b_row_k * out_width + b_column_j
                    b_g += tl.load(p_grad + b_at * stride_pixel, m & m_row_k & m_column_j, other=0).to(tl.float32)
        if (i_column * BLOCK <= PAD) | ((i_column + i_last - i_first + 1) * BLOCK >= full_width - PAD):
            for j in range(copies):
                b_column_j, m_column_j = padding_copy(b_column, j, full_width, PAD, MODE, TWICE)
                b_at = (b_row + PAD) * out_width + b_column_j
                b_g += tl.load(p_grad + b_at * stride_pixel, m & m_column_j, other=0).to(tl.float32)
    return b_g


@triton.jit
def weighted_totals(p_sums, p_weight, plane, channels, first, entries, CYCLES: tl.constexpr, TILE: tl.constexpr):
    """Σ gx̂ and Σ gx̂·x̂ over `channels` planes from channel `first` of a sample on, from the sums over each.

    p_sums points at the first plane, p_weight at the sample's weights; `plane` is the distance from a row of sums to
    the next. CYCLES: the weights are fewer than the channels, which read them in turn."""
    b_first = tl.zeros([TILE], tl.float32)
    b_second = tl.zeros([TILE], tl.float32)
    for i in range(0, channels, TILE):
        b_c = i + tl.arange(0, TILE)
        m_c = b_c < channels
        b_sum = tl.load(p_sums + b_c, m_c, other=0)
        b_along = tl.load(p_sums + plane + b_c, m_c, other=0)
        if p_weight is not None:
            b_entry = (first + b_c) % entries if CYCLES else first + b_c
            b_weight = tl.load(p_weight + b_entry, m_c, other=0).to(tl.float32)
            b_sum *= b_weight
            b_along *= b_weight
        b_first += b_sum
        b_second += b_along
    return tl.sum(b_first, 0), tl.sum(b_second, 0)


@triton.jit(
    do_not_specialize=["p_runs", "area_runs", "height", "width", "weight_row", "bias_row", "slope_step", "tiles"]
)
def epilogue_bwd_kernel(
    p_grad,  # [N, P, OH, OW]
    p_x,  # [N, C, H, W], C = BLOCK²·P
    p_stats,  # fp32 [2, R] or None
    p_weight,  # [P] or [N, P], with WEIGHT_PHASES [C] or [N, C]; or None
    p_bias,  # the same with BIAS_PHASES
    p_slope,  # [1] or [C] or None (then `slope` is the number)
    p_sums,  # fp32 [3, N, C], or what group_terms_bwd_kernel made of them; read for grad_x behind a norm
    p_grad_x,  # [N, C, H, W], written, or None
    p_grad_residual,  # [N, C, H, W], written, or None
    p_partial,  # fp32 [3, S, N, C], written: the sums over each split's pixels; or None
    p_runs,  # P / P_RUN
    area_runs,  # H·W / AREA_RUN
    height,  # H
    width,  # W
    weight_row,  # elements from one sample's weights to the next's; 0: they are shared
    bias_row,
    slope_step,  # 0 for a slope [1], 1 for [C]
    tiles,  # tiles of a split
    slope,
    eps,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK: tl.constexpr,
    PAD: tl.constexpr,
    MODE: tl.constexpr,
    TWICE: tl.constexpr,  # the image is so small that a pixel may be mirrored at both edges
    CHANNELS_LAST: tl.constexpr,
    WEIGHT_PHASES: tl.constexpr,  # each phase of depth-to-space has weights of its own
    BIAS_PHASES: tl.constexpr,
    P_RUN: tl.constexpr,
    AREA_RUN: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_TOTALS: tl.constexpr,
):
    """Grid (S, BLOCK²·P / TILE_CHANNELS, N). A tile is one of input pixels × channels of one phase of depth-to-space.

    Reads x and the gradient once; writes grad_x and grad_residual where they are asked for: 2 elements of traffic an
    element for sums alone, 3 or 4 with gradients. Sums stay in registers, one for each position of the tile, until
    the split's end.
    """
    i_split, i_n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels_p, area = p_runs * P_RUN, area_runs * AREA_RUN
    channels = channels_p * BLOCK * BLOCK
    full_height, full_width = height * BLOCK, width * BLOCK
    out_area = (full_height + 2 * PAD) * (full_width + 2 * PAD)
    p_grad += i_n * channels_p * out_area
    p_x += i_n * channels * area
    if p_grad_x is not None:
        p_grad_x += i_n * channels * area
    if p_grad_residual is not None:
        p_grad_residual += i_n * channels * area
    if p_weight is not None:
        p_weight += i_n * weight_row

    channel_blocks = tl.cdiv(channels_p, TILE_CHANNELS)
    i_phase, i_block = tl.program_id(1) // channel_blocks, tl.program_id(1) % channel_blocks
    # The last axis of a tile is the contiguous one.
    b_p = i_block * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    b_p = b_p[None, :] if CHANNELS_LAST else b_p[:, None]
    b_c = i_phase * channels_p + b_p
    m_p = b_p < channels_p

    if p_weight is not None:
        b_weight = tl.load(p_weight + (b_c if WEIGHT_PHASES else b_p), m_p, other=0).to(tl.float32)
    if p_bias is not None:
        b_bias = tl.load(p_bias + i_n * bias_row + (b_c if BIAS_PHASES else b_p), m_p, other=0).to(tl.float32)
    b_slope = slope if p_slope is None else tl.load(p_slope + b_c * slope_step, m_p, other=0).to(tl.float32)
    if NORM == "instance" or NORM == "group":
        p_mean = p_stats + i_n * channels + b_c
        b_mean = tl.load(p_mean, m_p, other=0)
        b_scale = reciprocal(tl.load(p_mean + tl.num_programs(2).to(tl.int64) * channels, m_p, other=1), eps, NORM)
    elif NORM == "layer":
        b_mean = tl.load(p_stats + i_n)
        b_std = tl.load(p_stats + tl.num_programs(2) + i_n)
        b_scale = reciprocal(b_std, eps, NORM)

    # dx = r · (gx̂ - b_shift) - x̂ · b_along, with both taken over the plane or the sample.
    plane = tl.num_programs(2).to(tl.int64) * channels
    if p_grad_x is not None and NORM == "instance":
        b_shift = tl.load(p_sums + i_n * channels + b_c, m_p, other=0) / area.to(tl.float32)
        b_along = tl.load(p_sums + plane + i_n * channels + b_c, m_p, other=0) / area.to(tl.float32) * b_scale
        if p_weight is not None:
            b_shift *= b_weight
            b_along *= b_weight
    elif p_grad_x is not None and NORM == "group":
        b_shift = tl.load(p_sums + i_n * channels + b_c, m_p, other=0)
        b_along = tl.load(p_sums + plane + i_n * channels + b_c, m_p, other=0) * b_scale
    elif p_grad_x is not None and NORM == "layer":
        b_shift, b_along = weighted_totals(
            p_sums + i_n * channels, p_weight, plane, channels, 0, channels_p, not WEIGHT_PHASES, TILE_TOTALS
        )
        count = (channels * area).to(tl.float32)
        b_shift = b_shift / count
        b_along = tl.where(b_std > 0, b_along / ((count - 1.0) * b_std), 0.0)

    if p_partial is not None:
        if CHANNELS_LAST:
            b_sum = tl.zeros([TILE_PIXELS, TILE_CHANNELS], tl.float32)
        else:
            b_sum = tl.zeros([TILE_CHANNELS, TILE_PIXELS], tl.float32)
        b_sum_along = b_sum
        b_sum_slope = b_sum

    for i_tile in range(tiles):
        i_first = (i_split * tiles + i_tile) * TILE_PIXELS
        b_i = i_first + tl.arange(0, TILE_PIXELS)
        b_i = b_i[:, None] if CHANNELS_LAST else b_i[None, :]
        m = (b_i < area) & m_p
        b_row = b_i // width
        b_column = (b_i - b_row * width) * BLOCK + i_phase % BLOCK
        b_row = b_row * BLOCK + i_phase // BLOCK
        b_g = load_unpadded(
            p_grad,
            b_row,
            b_column,
            b_p,
            m,
            full_height,
            full_width,
            channels_p,
            i_first,
            i_first + TILE_PIXELS - 1,
            width,
            BLOCK,
            PAD,
            MODE,
            TWICE,
            CHANNELS_LAST,
        )
        b_offset = b_i * channels + b_c if CHANNELS_LAST else b_c * area + b_i
        if p_grad_residual is not None:
            tl.store(p_grad_residual + b_offset, b_g.to(p_grad_residual.dtype.element_ty), m)

        if p_grad_x is not None or p_partial is not None:
            if p_partial is not None or NORM != "none" or ACT != "none":
                b_xhat = tl.load(p_x + b_offset, m, other=0).to(tl.float32)
                if NORM != "none":
                    b_xhat = (b_xhat - b_mean) * b_scale
                b_z = b_xhat
                if p_weight is not None:
                    b_z = b_z * b_weight
                if p_bias is not None:
                    b_z = b_z + b_bias
                b_gz = activate_backward(b_g, b_z, b_slope, ACT)
            else:
                b_gz = b_g
            if p_partial is not None:
                # Outside the image g is zero, and x̂ is finite unless the statistics are not.
                b_sum += b_gz
                b_sum_along += b_gz * b_xhat
                if ACT == "prelu":
                    b_sum_slope += tl.where(b_z > 0, 0.0, b_g * b_z)
            if p_grad_x is not None:
                b_dx = b_gz
                if p_weight is not None:
                    b_dx = b_dx * b_weight
                if NORM != "none":
                    b_dx = b_scale * (b_dx - b_shift) - b_xhat * b_along
                tl.store(p_grad_x + b_offset, b_dx.to(p_grad_x.dtype.element_ty), m)

    if p_partial is not None:
        axis: tl.constexpr = 0 if CHANNELS_LAST else 1
        p_out = p_partial + i_split * plane + i_n * channels + b_c
        next_row = tl.num_programs(0) * plane
        tl.store(p_out, tl.sum(b_sum, axis, keep_dims=True), m_p)
        tl.store(p_out + next_row, tl.sum(b_sum_along, axis, keep_dims=True), m_p)
        tl.store(p_out + 2 * next_row, tl.sum(b_sum_slope, axis, keep_dims=True), m_p)


@triton.jit(do_not_specialize=["channels", "members", "area", "entries", "weight_row"])
def group_terms_bwd_kernel(
    p_sums,  # fp32 [3, N, C]
    p_weight,  # [P] or [N, P], where P divides C; or None
    p_terms,  # fp32 [2, N, C], written
    channels,  # C
    members,  # channels of a group
    area,  # H·W
    entries,  # P
    weight_row,  # elements from one sample's weights to the next's; 0: they are shared
    TILE: tl.constexpr,
):
    """Grid (groups, N). The means of gx̂ and gx̂·x̂ over each group, for each of its planes. Reads and writes 8 bytes a
    plane."""
    i_n = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * members
    plane = tl.num_programs(1).to(tl.int64) * channels
    if p_weight is not None:
        p_weight += i_n * weight_row
    p_sums += i_n * channels + first
    p_terms += i_n * channels + first
    total, total_along = weighted_totals(p_sums, p_weight, plane, members, first, entries, True, TILE)
    count = members.to(tl.float32) * area.to(tl.float32)
    for i in range(0, members, TILE):
        b_c = i + tl.arange(0, TILE)
        tl.store(p_terms + b_c, total / count, b_c < members)
        tl.store(p_terms + plane + b_c, total_along / count, b_c < members)


@triton.jit(do_not_specialize=["splits", "columns"])
def sums_combine_bwd_kernel(
    p_partial,  # fp32 [3, S, R], R = N·C
    p_sums,  # fp32 [3, R]
    splits,  # S
    columns,  # R
    BLOCK_S: tl.constexpr,  # at least S
    BLOCK_R: tl.constexpr,
):
    """Grid (R / BLOCK_R, 3). Adds the splits of each column: reads 12·S bytes, writes 12 bytes a column."""
    i_row = tl.program_id(1).to(tl.int64)
    b_s = tl.arange(0, BLOCK_S)[:, None]
    b_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    m_r = b_r < columns
    p_at = p_partial + i_row * splits * columns + b_s.to(tl.int64) * columns + b_r
    b_partial = tl.load(p_at, (b_s < splits) & m_r, other=0)
    tl.store(p_sums + i_row * columns + b_r, tl.sum(b_partial, 0, keep_dims=True), m_r)

"""The kernels of the epilogue's backward: the gradients of input and residual, and the sums over each plane.

One kernel with two outputs to choose from. Behind a norm it runs twice, for the sums and then with them; without one
both come from the same pass. The activation is computed again from x, and the gradient of the padding is taken while
reading, so the forward has to keep nothing but x and two numbers a plane.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import activate_backward, padding_copy, reciprocal
from .statistics import add_pairs


@triton.jit
def row_copies(i, size, PAD: tl.constexpr, MODE: tl.constexpr):
    """How many rows of the padded image read row i."""
    if MODE == "reflect":
        low = (i >= 1) & (i <= PAD)
        high = (i <= size - 2) & (i >= size - 1 - PAD)
        return 1 + low.to(tl.int32) + high.to(tl.int32)
    else:
        return 1 + tl.where(i == 0, PAD, 0) + tl.where(i == size - 1, PAD, 0)


@triton.jit
def row_copy(i, k, size, PAD: tl.constexpr, MODE: tl.constexpr, TWICE: tl.constexpr):
    """The k-th of them. Linear in k where it can be: a compiler writes out the rounds of a loop that differ."""
    if MODE == "replicate":
        return k + tl.where(i == 0, 0, i + PAD)
    elif TWICE:
        mirrored = tl.where((k == 1) & (i >= 1) & (i <= PAD), PAD - i, PAD + 2 * (size - 1) - i)
        return tl.where(k == 0, i + PAD, mirrored)
    else:
        return i + PAD + k * 2 * (tl.where(i <= PAD, 0, size - 1) - i)


@triton.jit
def load_unpadded(
    p_grad,  # [P, OH, OW], one sample, at the tile's channels
    i_row,  # the row before padding, of full_height
    b_column,  # columns before padding, of full_width
    m,
    at_edge,  # whether one of the columns has copies
    full_height,
    full_width,
    stride_pixel,
    PAD: tl.constexpr,
    MODE: tl.constexpr,
    TWICE: tl.constexpr,
):
    """The gradient before padding, in fp32: each pixel adds up the gradients of the positions that show it.

    A tile lies in one row, so the rows that show it are a loop of one round, of more at the border alone; only tiles at
    the ends of a row look for copies in its columns.
    """
    out_width = full_width + 2 * PAD
    b_main = (b_column + PAD) * stride_pixel
    if PAD == 0 or MODE == "zero":
        b_g = tl.load(p_grad + ((i_row + PAD) * out_width * stride_pixel + b_main), m, other=0).to(tl.float32)
    else:
        per_edge: tl.constexpr = 1 if MODE == "reflect" else PAD
        copies: tl.constexpr = 2 * per_edge if TWICE else per_edge
        b_g = tl.zeros(m.shape, tl.float32)
        for k in range(row_copies(i_row, full_height, PAD, MODE)):
            i_first = row_copy(i_row, k, full_height, PAD, MODE, TWICE) * out_width * stride_pixel
            b_g += tl.load(p_grad + (i_first + b_main), m, other=0).to(tl.float32)
            if at_edge:
                for j in tl.static_range(copies):
                    b_column_j, m_column_j = padding_copy(b_column, j, full_width, PAD, MODE, TWICE)
                    b_at = i_first + b_column_j * stride_pixel
                    b_g += tl.load(p_grad + b_at, m & m_column_j, other=0).to(tl.float32)
    return b_g


@triton.jit
def add_splits(p_at, splits, next_split, m, AXIS: tl.constexpr, BLOCK_S: tl.constexpr):
    """The sums over the splits of [2, S, columns], at p_at in the first split of the first row."""
    b_s = tl.arange(0, BLOCK_S)
    b_s = b_s[:, None] if AXIS == 0 else b_s[None, :]
    p_first = p_at + b_s.to(tl.int64) * next_split
    p_second = p_first + splits * next_split
    b_first = tl.load(p_first, (b_s < splits) & m, other=0)
    b_second = tl.load(p_second, (b_s < splits) & m, other=0)
    for i in range(BLOCK_S, splits, BLOCK_S):
        m_i = (i + b_s < splits) & m
        b_first += tl.load(p_first + i * next_split, m_i, other=0)
        b_second += tl.load(p_second + i * next_split, m_i, other=0)
    return tl.reduce((b_first, b_second), AXIS, add_pairs, keep_dims=True)


@triton.jit
def add_parts(p_parts, parts, next_row, TILE: tl.constexpr):
    """The sums of two rows of `parts` numbers."""
    b_first = tl.zeros([TILE], tl.float32)
    b_second = tl.zeros([TILE], tl.float32)
    for i in range(0, parts, TILE):
        b_i = i + tl.arange(0, TILE)
        b_first += tl.load(p_parts + b_i, b_i < parts, other=0)
        b_second += tl.load(p_parts + next_row + b_i, b_i < parts, other=0)
    return tl.reduce((b_first, b_second), 0, add_pairs)


@triton.jit(
    do_not_specialize=[
        "p_runs",
        "height",
        "width_runs",
        "weight_row",
        "bias_row",
        "slope_step",
        "tiles",
        "splits",
        "terms",
    ]
)
def epilogue_bwd_kernel(
    p_grad,  # [N, P, OH, OW]
    p_x,  # [N, C, H, W], C = BLOCK²·P
    p_stats,  # fp32 [2, R] or None
    p_weight,  # [P] or [N, P], with WEIGHT_PHASES [C] or [N, C]; or None
    p_bias,  # the same with BIAS_PHASES
    p_slope,  # [1] or [C] or None (then `slope` is the number)
    p_read,  # fp32 [3, S', N, C], written by the first pass; read for grad_x behind a norm, and for the sums
    p_terms,  # fp32 [2, N, T], of the layer norm Σ gx̂ and Σ gx̂·x̂ of T parts, of the group norm the means, T = C
    p_sums,  # fp32 [3, N, C], written: the sums over S'; or None
    p_grad_x,  # [N, C, H, W], written, or None
    p_grad_residual,  # [N, C, H, W], written, or None
    p_partial,  # fp32 [3, S, N, C], written: the sums over each split's pixels; or None
    p_parts,  # fp32 [2, N, S·grid], written: Σ gx̂ and Σ gx̂·x̂ of the program, for the layer norm; or None
    p_runs,  # P / P_RUN
    height,  # H; without padding and depth-to-space planes are one row: 1, and H·W below
    width_runs,  # W / WIDTH_RUN
    weight_row,  # elements from one sample's weights to the next's; 0: they are shared
    bias_row,
    slope_step,  # 0 for a slope [1], 1 for [C]
    tiles,  # tiles of a split
    splits,  # S'
    terms,  # T
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
    WIDTH_RUN: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_TERMS: tl.constexpr,  # of the T that a program adds up at a time
    BLOCK_SPLITS: tl.constexpr,  # of the S' that a program adds up at a time
):
    """Grid (S, BLOCK²·P / TILE_CHANNELS, N). A tile is one of a row's pixels × channels of one phase of depth-to-space.

    Reads x and the gradient once; writes grad_x and grad_residual where they are asked for: 2 elements of traffic an
    element for sums alone, 3 or 4 with gradients. Sums stay in registers, one for each position of the tile, until
    the split's end. The second pass adds up what the first one's splits have, every program for its own channels or
    its sample; the first program along the pixels keeps the result.
    """
    i_split, i_n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels_p, width = p_runs * P_RUN, width_runs * WIDTH_RUN
    channels, area = channels_p * BLOCK * BLOCK, height * width
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
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    b_p = i_block * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    b_p = b_p[None, :] if CHANNELS_LAST else b_p[:, None]
    b_c = i_phase * channels_p + b_p
    m_p = b_p < channels_p

    if p_weight is not None:
        b_weight = tl.load(p_weight + (b_c if WEIGHT_PHASES else b_p), m_p, other=0).to(tl.float32)
    if p_bias is not None:
        b_bias = tl.load(p_bias + i_n * bias_row + (b_c if BIAS_PHASES else b_p), m_p, other=0).to(tl.float32)
    b_slope = slope if p_slope is None else tl.load(p_slope + b_c * slope_step, m_p, other=0).to(tl.float32)
    plane = tl.num_programs(2).to(tl.int64) * channels
    b_plane = i_n * channels + b_c
    if NORM == "instance" or NORM == "group":
        b_mean = tl.load(p_stats + b_plane, m_p, other=0)
        b_scale = reciprocal(tl.load(p_stats + plane + b_plane, m_p, other=1), eps, NORM)
    elif NORM == "layer":
        b_mean = tl.load(p_stats + i_n)
        b_std = tl.load(p_stats + tl.num_programs(2) + i_n)
        b_scale = reciprocal(b_std, eps, NORM)

    # dx = r · (gx̂ - b_shift) - x̂ · b_along, with both taken over the plane or the sample.
    if p_grad_x is not None and NORM == "instance":
        b_total, b_total_along = add_splits(p_read + b_plane, splits, plane, m_p, axis, BLOCK_SPLITS)
        share = 1.0 / area
        b_shift = b_total * share
        b_along = b_total_along * share * b_scale
        if p_weight is not None:
            b_shift *= b_weight
            b_along *= b_weight
    elif p_grad_x is not None and NORM == "group":
        b_shift = tl.load(p_terms + b_plane, m_p, other=0)
        b_along = tl.load(p_terms + plane + b_plane, m_p, other=0) * b_scale
    elif p_grad_x is not None and NORM == "layer":
        next_row = tl.num_programs(2).to(tl.int64) * terms
        total, total_along = add_parts(p_terms + i_n * terms, terms, next_row, TILE_TERMS)
        count = (channels * area).to(tl.float32)
        b_shift = total / count
        b_along = tl.where(b_std > 0, total_along / ((count - 1.0) * b_std), 0.0)
    if p_sums is not None:  # noqa: SIM102  # known when the kernel is compiled, the other one when it runs
        if i_split == 0:
            if p_grad_x is None or NORM != "instance":
                b_kept, b_kept_along = add_splits(p_read + b_plane, splits, plane, m_p, axis, BLOCK_SPLITS)
            else:
                b_kept, b_kept_along = b_total, b_total_along
            if ACT == "prelu":
                p_slopes = p_read + splits * plane + b_plane
                _, b_kept_slope = add_splits(p_slopes, splits, plane, m_p, axis, BLOCK_SPLITS)
            else:
                b_kept_slope = tl.zeros_like(b_kept)
            tl.store(p_sums + b_plane, b_kept, m_p)
            tl.store(p_sums + plane + b_plane, b_kept_along, m_p)
            tl.store(p_sums + 2 * plane + b_plane, b_kept_slope, m_p)

    if p_partial is not None:
        if CHANNELS_LAST:
            b_sum = tl.zeros([TILE_PIXELS, TILE_CHANNELS], tl.float32)
        else:
            b_sum = tl.zeros([TILE_CHANNELS, TILE_PIXELS], tl.float32)
        b_sum_along = b_sum
        b_sum_slope = b_sum

    one_row: tl.constexpr = PAD == 0 and BLOCK == 1
    i_first = i_split * tiles
    tiles_of_row = tl.cdiv(width, TILE_PIXELS)
    i_row = 0 if one_row else i_first // tiles_of_row
    i_column = (i_first - i_row * tiles_of_row) * TILE_PIXELS
    needs_x: tl.constexpr = p_partial is not None or (p_grad_x is not None and (NORM != "none" or ACT != "none"))
    late: tl.constexpr = ACT == "gelu"  # else x is under way while the gradients are; that takes registers
    b_pixel = tl.arange(0, TILE_PIXELS)
    b_pixel = b_pixel[:, None] if CHANNELS_LAST else b_pixel[None, :]
    for _ in range(tl.minimum(tiles, height * tiles_of_row - i_first)):
        b_column = i_column + b_pixel
        m = (b_column < width) & m_p
        b_i = i_row * width + b_column
        b_offset = b_i * channels + b_c if CHANNELS_LAST else b_c * area + b_i
        if needs_x and not late:
            b_x = tl.load(p_x + b_offset, m, other=0)
        b_g = load_unpadded(
            p_grad + (b_p if CHANNELS_LAST else b_p * out_area),
            i_row * BLOCK + i_phase // BLOCK,
            b_column * BLOCK + i_phase % BLOCK,
            m,
            (i_column * BLOCK <= PAD) | ((i_column + TILE_PIXELS) * BLOCK >= full_width - PAD),
            full_height,
            full_width,
            channels_p if CHANNELS_LAST else 1,
            PAD,
            MODE,
            TWICE,
        )
        if p_grad_residual is not None:
            tl.store(p_grad_residual + b_offset, b_g.to(p_grad_residual.dtype.element_ty), m)

        if p_grad_x is not None or p_partial is not None:
            if needs_x:
                if late:
                    b_x = tl.load(p_x + b_offset, m, other=0)
                b_xhat = b_x.to(tl.float32)
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
        i_column += TILE_PIXELS
        if not one_row:
            i_row += (i_column >= width).to(tl.int32)
            i_column = tl.where(i_column >= width, 0, i_column)

    if p_partial is not None:
        b_sum, b_sum_along = tl.reduce((b_sum, b_sum_along), axis, add_pairs, keep_dims=True)
        p_out = p_partial + i_split * plane + b_plane
        next_row = tl.num_programs(0) * plane
        tl.store(p_out, b_sum, m_p)
        tl.store(p_out + next_row, b_sum_along, m_p)
        b_sum_slope = tl.sum(b_sum_slope, axis, keep_dims=True) if ACT == "prelu" else tl.zeros_like(b_sum)
        tl.store(p_out + 2 * next_row, b_sum_slope, m_p)
        if p_parts is not None:
            if p_weight is not None:
                b_sum *= b_weight
                b_sum_along *= b_weight
            parts = tl.num_programs(0) * tl.num_programs(1)
            p_part = p_parts + i_n * parts + i_split * tl.num_programs(1) + tl.program_id(1)
            tl.store(p_part, tl.sum(b_sum))
            tl.store(p_part + tl.num_programs(2).to(tl.int64) * parts, tl.sum(b_sum_along))


@triton.jit(do_not_specialize=["splits", "channels", "members", "area", "entries", "weight_row"])
def group_terms_bwd_kernel(
    p_partial,  # fp32 [3, S, N, C]
    p_weight,  # [P] or [N, P], where P divides C; or None
    p_terms,  # fp32 [2, N, C], written
    splits,  # S
    channels,  # C
    members,  # channels of a group
    area,  # H·W
    entries,  # P
    weight_row,  # elements from one sample's weights to the next's; 0: they are shared
    TILE: tl.constexpr,
):
    """Grid (groups, N). The means of gx̂ and gx̂·x̂ over each group, for each of its planes. Reads 8·S bytes and writes 8
    bytes a plane."""
    i_n = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * members
    plane = tl.num_programs(1).to(tl.int64) * channels
    if p_weight is not None:
        p_weight += i_n * weight_row
    p_partial += i_n * channels + first
    p_terms += i_n * channels + first
    b_total = tl.zeros([TILE], tl.float32)
    b_total_along = tl.zeros([TILE], tl.float32)
    for i in range(0, splits * members, TILE):
        b_i = i + tl.arange(0, TILE)
        m_i = b_i < splits * members
        b_c = b_i % members
        p_at = p_partial + (b_i // members) * plane + b_c
        b_sum = tl.load(p_at, m_i, other=0)
        b_along = tl.load(p_at + splits * plane, m_i, other=0)
        if p_weight is not None:
            b_weight = tl.load(p_weight + (first + b_c) % entries, m_i, other=0).to(tl.float32)
            b_sum *= b_weight
            b_along *= b_weight
        b_total += b_sum
        b_total_along += b_along
    total, total_along = tl.reduce((b_total, b_total_along), 0, add_pairs)
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

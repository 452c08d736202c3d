"""The border of a phase convolution behind reflection padding, forward and backward, in one launch each.

`munit_fast.ops.upsample_conv.correct_reflect_border` is the specification. What the two outermost lines of the large
image lack lies along one line of each side: the pixels of the second line minus those of the first, doubled. Sides are
numbered top, bottom, left, right; a place X of a side's line is a pixel of the large image, from 0 to 2L - 1, and reads
the doubled line at X to X + 4. Every element of a result is written by one program, which adds all sides that reach it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configs, launch


@triton.jit
def side_line(side, sizes):
    """Of a side: whether it is the last of its two, pixels of its line, and pixels across. sizes: (H, W, C, O)."""
    h, w, _, _ = sizes
    return side % 2, tl.where(side < 2, w, h), tl.where(side < 2, h, w)


@triton.jit
def result_offset(side, b_x, sizes):
    """Where place X of a side lies in a sample of the result [H, W, 4·O]."""
    h, w, _, o = sizes
    is_last = side % 2
    if side < 2:
        b_pixel = is_last * (h - 1) * w + b_x // 2
        b_phase = 2 * is_last + b_x % 2
    else:
        b_pixel = b_x // 2 * w + is_last * (w - 1)
        b_phase = 2 * (b_x % 2) + is_last
    return (4 * b_pixel + b_phase) * o


@triton.jit
def load_line(p_a, side, b_t, m_t, b_c, sizes):
    """The doubled line of a side [places t, channels c], from a sample of the input [H + 2, W + 2, C]."""
    _, w, c, _ = sizes
    is_last, length, across = side_line(side, sizes)
    b_pixel = b_t // 2
    if side < 2:  # pixels -1 and 2L mirror into the pixels that replication gives, -2 and 2L + 1 do not
        b_pixel = tl.where(b_t == 0, 2, tl.where(b_t == 2 * length + 3, length - 1, b_pixel))
    step, step_across = tl.where(side < 2, 1, w + 2), tl.where(side < 2, w + 2, 1)
    outer, inner = tl.where(is_last == 1, across, 1), tl.where(is_last == 1, across - 1, 2)
    b_at = (b_pixel * step)[:, None] * c + b_c[None, :]
    m = m_t[:, None] & (b_c[None, :] < c)
    b_outer = tl.load(p_a + outer * step_across * c + b_at, m, other=0).to(tl.float32)
    b_inner = tl.load(p_a + inner * step_across * c + b_at, m, other=0).to(tl.float32)
    return (b_inner - b_outer).to(p_a.dtype.element_ty)


@triton.jit
def tap_offset(side, k, steps):
    """Where tap k of the kernel line that a side reads lies in the kernel. steps: (of rows, of columns)."""
    s_y, s_x = steps
    return tl.where(side < 2, 4 * (side % 2) * s_y + k * s_x, k * s_y + 4 * (side % 2) * s_x)


@triton.jit
def add_side(b_sum, p_a, p_weight, s_c, side, b_x, m_x, m_o, sizes, steps, TILE_INNER: tl.constexpr):
    """b_sum [places, outputs] plus what a side gives to places X where m_x; p_weight: of the outputs, [1, outputs]."""
    _, _, c, _ = sizes
    for step in range(5 * tl.cdiv(c, TILE_INNER)):
        k = step % 5
        b_c = step // 5 * TILE_INNER + tl.arange(0, TILE_INNER)
        b_line = load_line(p_a, side, b_x + k, m_x, b_c, sizes)
        p_tap = p_weight + (b_c * s_c + tap_offset(side, k, steps))[:, None]
        b_w = tl.load(p_tap, (b_c < c)[:, None] & m_o[None, :], other=0)
        b_sum = tl.dot(b_line, b_w.to(b_line.dtype), b_sum, input_precision="ieee")
    return b_sum


@triton.jit(do_not_specialize=["h", "w", "row_tiles"])
def phase_border_fwd_kernel(
    p_y,  # [N, H, W, 4·O], added to
    p_a,  # [N, H + 2, W + 2, C]
    p_weight,  # [O, C, 5, 5] with the strides below
    h,
    w,
    c,
    o,
    s_o,
    s_c,
    s_y,
    s_x,
    row_tiles,  # of a row's places
    TILE_LINE: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_INNER: tl.constexpr,
):
    """Grid (2 · row_tiles + 2 · tiles of a column, O / TILE_CHANNELS, N). The rows own the corners."""
    sizes, steps = (h, w, c, o), (s_y, s_x)
    i_column = tl.program_id(0) - 2 * row_tiles
    of_row = i_column < 0
    side = tl.where(of_row, tl.program_id(0) % 2, 2 + i_column % 2)
    first = tl.where(of_row, tl.program_id(0) // 2, i_column // 2) * TILE_LINE
    _, length, _ = side_line(side, sizes)
    b_x = first + tl.arange(0, TILE_LINE)
    m_x = tl.where(of_row, b_x < 2 * length, (b_x > 0) & (b_x < 2 * length - 1))
    b_o = tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    m_o = b_o < o
    n = tl.program_id(2).to(tl.int64)
    p_a += n * (h + 2) * (w + 2) * c
    p_weight += (b_o.to(tl.int64) * s_o)[None, :]
    b_sum = tl.zeros([TILE_LINE, TILE_CHANNELS], tl.float32)
    b_sum = add_side(b_sum, p_a, p_weight, s_c, side, b_x, m_x, m_o, sizes, steps, TILE_INNER)
    if of_row:
        for is_last in range(2):
            corner = is_last * (2 * w - 1)
            if (first <= corner) & (corner < first + TILE_LINE):
                b_along = tl.zeros([TILE_LINE], tl.int32) + side * (2 * h - 1)
                m_corner = b_x == corner
                b_sum = add_side(
                    b_sum, p_a, p_weight, s_c, 2 + is_last, b_along, m_corner, m_o, sizes, steps, TILE_INNER
                )
    p_y += n * h * w * 4 * o + result_offset(side, b_x, sizes)[:, None] + b_o[None, :]
    m = m_x[:, None] & m_o[None, :]
    tl.store(p_y, (tl.load(p_y, m, other=0).to(tl.float32) + b_sum).to(p_y.dtype.element_ty), m)


@triton.jit
def add_side_backward(
    b_sum, p_grad, p_weight, s_o, side, b_at, b_sign, at_ends, m_c, sizes, steps, TILE_INNER: tl.constexpr
):
    """b_sum [pixels, channels] plus b_sign times the gradient of a side's line at its pixels b_at, 0 to L + 1.

    Pixel p is doubled at places 2p and 2p + 1 of the line. Six places of the result read it, by one tap or by two.
    at_ends: whether some pixels are near the ends of a row, where its outermost places read pixels 2 and L - 1 in place
    of 0 and L + 1: two steps more.
    """
    _, _, _, o = sizes
    _, length, _ = side_line(side, sizes)
    count = tl.where(at_ends & (side < 2), 8, 6)
    for step in range(count * tl.cdiv(o, TILE_INNER)):
        i = step % count
        b_o = step // count * TILE_INNER + tl.arange(0, TILE_INNER)
        b_x, b_factor = 2 * b_at + 1 - i, b_sign
        k_even, k_odd = i - 1, i  # the taps that read places 2p and 2p + 1
        if i >= 6:
            last = i - 6
            here, there = tl.where(last == 1, length + 1, 0), tl.where(last == 1, length - 1, 2)
            b_x = tl.zeros_like(b_at) + last * (2 * length - 1)
            b_factor = b_sign * ((b_at == there).to(tl.int32) - (b_at == here).to(tl.int32))
            k_even, k_odd = 4 * last, 5 + last
        m_x = (b_x >= 0) & (b_x < 2 * length) & (b_factor != 0)
        p_x = p_grad + result_offset(side, b_x, sizes)[:, None] + b_o[None, :]
        b_grad = tl.load(p_x, m_x[:, None] & (b_o < o)[None, :], other=0).to(tl.float32)
        b_grad = tl.where(b_factor[:, None] < 0, -b_grad, b_grad).to(p_grad.dtype.element_ty)
        p_tap = p_weight + (b_o.to(tl.int64) * s_o)[:, None]
        m = (b_o < o)[:, None] & m_c[None, :]
        b_even = tl.load(p_tap + tap_offset(side, k_even, steps), m & (k_even >= 0), other=0).to(tl.float32)
        b_odd = tl.load(p_tap + tap_offset(side, k_odd, steps), m & (k_odd < 5), other=0).to(tl.float32)
        b_sum = tl.dot(b_grad, (b_even + b_odd).to(b_grad.dtype), b_sum, input_precision="ieee")
    return b_sum


@triton.jit
def edge_signs(b_at, length):
    """How padded pixels enter the lines of the first and of the last side: -1 the outer, 1 the inner, 0 the others."""
    b_first = (b_at == 2).to(tl.int32) - (b_at == 1).to(tl.int32)
    b_last = (b_at == length - 1).to(tl.int32) - (b_at == length).to(tl.int32)
    return b_first, b_last


@triton.jit
def add_input_gradient(
    p_grad_a,
    p_grad,
    p_weight,
    s_o,
    i_tile,
    row_tiles,
    line,
    b_c,
    sizes,
    steps,
    TILE_LINE: tl.constexpr,
    TILE_INNER: tl.constexpr,
):
    """A tile of one of the four rows, or columns, that the lines read; the rows own what rows and columns share."""
    h, w, c, _ = sizes
    of_row = i_tile < row_tiles
    first = tl.where(of_row, i_tile, i_tile - row_tiles) * TILE_LINE
    length, across = tl.where(of_row, w, h), tl.where(of_row, h, w)
    fixed = tl.where(line < 2, line + 1, across - 3 + line)
    b_at = first + tl.arange(0, TILE_LINE)
    b_row, b_column = tl.where(of_row, fixed, b_at), tl.where(of_row, b_at, fixed)
    b_top, b_bottom = edge_signs(b_row, h)
    b_left, b_right = edge_signs(b_column, w)
    # The last two rows, or columns, may be among the first.
    m_at = (b_at < length + 2) & ((line < 2) | (fixed > 2)) & (of_row | ((b_top == 0) & (b_bottom == 0)))
    at_ends = (first <= 2) | (first + TILE_LINE >= length)
    b_sum = tl.zeros([TILE_LINE, b_c.shape[0]], tl.float32)
    for side in range(4):
        b_sign = tl.where(side < 2, tl.where(side == 0, b_top, b_bottom), tl.where(side == 2, b_left, b_right))
        b_sign = tl.where(m_at, b_sign, 0)
        if tl.max(tl.abs(b_sign), 0) > 0:
            b_along = tl.where(side < 2, b_column, b_row)
            b_sum = add_side_backward(
                b_sum, p_grad, p_weight, s_o, side, b_along, b_sign, at_ends, b_c < c, sizes, steps, TILE_INNER
            )
    p_pixel = p_grad_a + ((b_row * (w + 2) + b_column) * c)[:, None] + b_c[None, :]
    m = m_at[:, None] & (b_c < c)[None, :]
    tl.store(p_pixel, (tl.load(p_pixel, m, other=0).to(tl.float32) + b_sum).to(p_grad_a.dtype.element_ty), m)


@triton.jit
def tap_gradient(p_grad, p_a, n, y, x, b_o, b_c, sizes, TILE_INNER: tl.constexpr):
    """The gradient of tap (y, x) [outputs, channels]: of the side of a row, of a column, of both, or zero."""
    h, w, c, o = sizes
    b_sum = tl.zeros([b_o.shape[0], b_c.shape[0]], tl.float32)
    for vertical in range(2):
        across, k = tl.where(vertical == 0, y, x), tl.where(vertical == 0, x, y)
        if across % 4 == 0:
            side = 2 * vertical + across // 4
            _, length, _ = side_line(side, sizes)
            blocks = tl.cdiv(2 * length, TILE_INNER)
            for step in range(n * blocks):
                i_n = (step // blocks).to(tl.int64)
                b_x = step % blocks * TILE_INNER + tl.arange(0, TILE_INNER)
                m_x = b_x < 2 * length
                b_line = load_line(p_a + i_n * (h + 2) * (w + 2) * c, side, b_x + k, m_x, b_c, sizes)
                p_x = p_grad + i_n * h * w * 4 * o + result_offset(side, b_x, sizes)[None, :] + b_o[:, None]
                b_grad = tl.load(p_x, m_x[None, :] & (b_o < o)[:, None], other=0)
                b_sum = tl.dot(b_grad, b_line, b_sum, input_precision="ieee")
    return b_sum


@triton.jit(do_not_specialize=["n", "h", "w", "row_tiles", "tiles", "input_programs"])
def phase_border_bwd_kernel(
    p_grad,  # [N, H, W, 4·O]
    p_a,  # [N, H + 2, W + 2, C]
    p_weight,  # [O, C, 5, 5] with the strides below
    p_grad_a,  # like p_a, added to; or None
    p_grad_weight,  # like p_weight, written; or None
    n,
    h,
    w,
    c,
    o,
    s_o,
    s_c,
    s_y,
    s_x,
    row_tiles,  # of a row of the padded input
    tiles,  # the same and those of a column
    input_programs,  # 4 · tiles · N, or 0
    TILE_LINE: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_INNER: tl.constexpr,
):
    """Grid (input_programs + 25 · O / TILE_LINE, C / TILE_CHANNELS): the gradient of the input, then of each tap."""
    sizes = (h, w, c, o)
    i = tl.program_id(0)
    b_c = tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    if i < input_programs:
        if p_grad_a is not None:
            i_n = (i // (4 * tiles)).to(tl.int64)
            p_of_a = p_grad_a + i_n * (h + 2) * (w + 2) * c
            p_of_result = p_grad + i_n * h * w * 4 * o
            p_kernel = p_weight + (b_c * s_c)[None, :]
            i_tile, line, steps = i // 4 % tiles, i % 4, (s_y, s_x)
            add_input_gradient(
                p_of_a,
                p_of_result,
                p_kernel,
                s_o,
                i_tile,
                row_tiles,
                line,
                b_c,
                sizes,
                steps,
                TILE_LINE,
                TILE_INNER,
            )
    elif p_grad_weight is not None:
        tap = (i - input_programs) % 25
        y, x = tap // 5, tap % 5
        b_o = (i - input_programs) // 25 * TILE_LINE + tl.arange(0, TILE_LINE)
        b_sum = tap_gradient(p_grad, p_a, n, y, x, b_o, b_c, sizes, TILE_INNER)
        p_tap = p_grad_weight + (b_o.to(tl.int64) * s_o)[:, None] + (b_c * s_c + y * s_y + x * s_x)[None, :]
        tl.store(p_tap, b_sum.to(p_grad_weight.dtype.element_ty), (b_o < o)[:, None] & (b_c < c)[None, :])


def _check(of_result: Tensor, a: Tensor, border_weight: Tensor) -> None:
    n, c = a.shape[:2]
    for name, x in (("y", of_result), ("a", a)):
        launch.check_layout(name, x, channels_last=True)
    launch.check_size(n, max(c, of_result.shape[1]), max(a[:1].numel(), of_result[:1].numel()))


def phase_border_forward(y: Tensor, a: Tensor, border_weight: Tensor) -> None:
    """`upsample_conv.correct_reflect_border`, in one launch.

    Reads of a the four rows and columns at its border, five times for each tile of outputs. Arguments are checked by
    the caller.

    Args:
        y: [N, 4·O, H, W], channels_last, H and W ≥ 2; fp32, bf16 or fp16; added to.
        a: [N, C, H + 2, W + 2], channels_last, in y's dtype.
        border_weight: [O, C, 5, 5], fp32 or in y's dtype, with any strides.

    Raises:
        ValueError: a size is beyond a launch, or a layout is not channels_last.
    """
    _check(y, a, border_weight)
    n, _, h, w = y.shape
    o, c = border_weight.shape[:2]
    tile = configs.BORDER_TILE
    row_tiles, column_tiles = (configs.cdiv(2 * length, tile.line) for length in (w, h))
    launch.run(
        phase_border_fwd_kernel,
        (2 * (row_tiles + column_tiles), configs.cdiv(o, tile.channels), n),
        y.device,
        y,
        a,
        border_weight,
        h,
        w,
        c,
        o,
        *border_weight.stride(),
        row_tiles,
        TILE_LINE=tile.line,
        TILE_CHANNELS=tile.channels,
        TILE_INNER=tile.inner,
        num_warps=tile.num_warps,
    )


def phase_border_backward(
    grad: Tensor, a: Tensor, border_weight: Tensor, grad_a: Tensor | None, grad_border: Tensor | None
) -> None:
    """`upsample_conv.correct_reflect_border_backward`, in one launch.

    Args:
        grad: [N, 4·O, H, W], like y of the forward.
        a: as in the forward.
        border_weight: as in the forward.
        grad_a: like a; added to, or None.
        grad_border: like border_weight; written, or None.

    Raises:
        ValueError: a size is beyond a launch, or a layout is not channels_last.
    """
    _check(grad, a, border_weight)
    n, _, h, w = grad.shape
    o, c = border_weight.shape[:2]
    tile = configs.BORDER_TILE
    row_tiles, column_tiles = (configs.cdiv(length + 2, tile.line) for length in (w, h))
    tiles = row_tiles + column_tiles
    input_programs = weight_programs = 0
    if grad_a is not None:
        launch.check_layout("grad_a", grad_a, channels_last=True)
        input_programs = 4 * tiles * n
    if grad_border is not None:
        weight_programs = 25 * configs.cdiv(o, tile.line)
        if grad_border.stride() != border_weight.stride():
            border_weight = grad_border.copy_(border_weight).clone()
    launch.run(
        phase_border_bwd_kernel,
        (input_programs + weight_programs, configs.cdiv(c, tile.channels)),
        grad.device,
        grad,
        a,
        border_weight,
        grad_a,
        grad_border,
        n,
        h,
        w,
        c,
        o,
        *border_weight.stride(),
        row_tiles,
        tiles,
        input_programs,
        TILE_LINE=tile.line,
        TILE_CHANNELS=tile.channels,
        TILE_INNER=tile.inner,
        num_warps=tile.num_warps,
    )

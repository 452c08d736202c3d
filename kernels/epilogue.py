"""The epilogue on a GPU: what `munit_fast.reference.epilogue` says, from the kernels beside this file.

Forward: `statistics` where there is a norm, then one pass. Backward: one pass without a norm, two with one. What the
planes of a group norm share is made once for each of them, so that the passes know of planes only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import configs, launch
from .epilogue_backward import epilogue_bwd_kernel, group_terms_bwd_kernel, sums_combine_bwd_kernel
from .epilogue_forward import epilogue_fwd_kernel
from .statistics import split_statistics, unite_statistics


def epilogue_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    stats: Tensor,
    has_stats: bool,
    norm: str,
    eps: float,
    act: str,
    slope: float,
    block: int,
    pad: int,
    pad_mode: str,
    groups: int,
    channels_last: bool,
) -> None:
    """`reference.epilogue.epilogue` of x into y, and `reference.epilogue.statistics` into stats.

    Reads x once, and once more for the statistics; reads the residual once; writes y once. Arguments are checked by
    the caller.

    Args:
        x: [N, C, H, W], contiguous or channels_last; fp32, bf16 or fp16.
        weight: [P], [N, P], [C] or [N, C], any of the dtypes, P = C / block²; or None.
        bias: like weight; or None.
        slopes: of prelu, [1] or [C]; else None.
        residual: like x, or a window of a larger tensor, see `launch.window`; or None.
        y: [N, P, block·H + 2·pad, block·W + 2·pad], laid out as x; written.
        stats: fp32 [2, R], R as `reference.epilogue.statistics` has it; written unless has_stats.
        has_stats: whether stats holds the statistics already.
        norm: "none", "instance", "layer" or "group".
        eps: added to the variance ("instance", "group") or to the standard deviation ("layer").
        act: one of `munit_fast.ops.spec.ACTIVATIONS`.
        slope: of lrelu.
        block: side of the blocks of depth-to-space; 1 for none.
        pad: pixels of padding on each side.
        pad_mode: "reflect", "replicate" or "zero".
        groups: of channels, of the norm "group".
        channels_last: the layout of x.

    Raises:
        ValueError: a size is beyond a launch, or the residual's rows lie otherwise than those of x.
    """
    weight, bias, slopes = (launch.dense_rows(t) for t in (weight, bias, slopes))
    window = launch.window("residual", residual, channels_last)
    n, c, h, w = x.shape
    _, p, oh, ow = y.shape
    launch.check_size(n, c, max(c * h * w, p * oh * ow))
    split = None
    if norm != "none" and not has_stats:
        split = split_statistics(x, norm, channels_last, stats)
        # What a program needs of a group, or of all phases of depth-to-space, is more than it could unite by itself.
        if split is not None and (norm == "group" or (norm == "instance" and block > 1)):
            unite_statistics(split, norm, c // groups if norm == "group" else 1, stats)
            split = None
    table = f"forward, {'channels_last' if channels_last else 'contiguous'}"
    tile = configs.tile(table, x.element_size(), p, oh * ow, x.device)
    p_run, area_run = (launch.run_length(p), 1) if channels_last else (1, launch.run_length(oh * ow))
    blocks, all_tiles, tiles = configs.cdiv(p, tile.channels), configs.cdiv(oh * ow, tile.pixels), tile.tiles
    if split is not None:
        tiles = configs.tiles_of_a_program(tile, all_tiles, n * blocks)
    launch.run(
        epilogue_fwd_kernel,
        (configs.cdiv(all_tiles, tiles), blocks, n),
        x.device,
        x,
        residual,
        weight,
        bias,
        slopes,
        stats if norm != "none" else None,
        None if split is None else split.partial,
        y,
        p // p_run,
        oh * ow // area_run,
        h,
        w,
        launch.row_stride(weight),
        launch.row_stride(bias),
        int(slopes is not None and slopes.numel() > 1),
        window.image,
        window.plane,
        window.row,
        tiles,
        0 if split is None else split.splits,
        0 if split is None else split.length,
        0 if split is None else split.split_length,
        float(slope),
        float(eps),
        NORM="instance" if norm == "group" else norm,
        ACT=act,
        BLOCK=block,
        PAD=pad,
        MODE=pad_mode,
        CHANNELS_LAST=channels_last,
        WEIGHT_PHASES=launch.entries(weight) > p,
        BIAS_PHASES=launch.entries(bias) > p,
        P_RUN=p_run,
        AREA_RUN=area_run,
        WINDOW_RUN=window.run,
        TILE_PIXELS=tile.pixels,
        TILE_CHANNELS=tile.channels,
        BLOCK_SPLITS=1 if split is None else configs.power_of_two(split.splits),
        num_warps=tile.num_warps,
    )


def combine_sums(
    partial: Tensor,
    sums: Tensor,
) -> None:
    """The sums over the S splits.

    Args:
        partial: fp32 [3, S, N, C].
        sums: fp32 [3, N, C], written.
    """
    splits, columns = partial.shape[1], sums[0].numel()
    block_s = configs.power_of_two(splits)
    block_r = max(configs.COMBINE_ELEMENTS // block_s, 1)
    launch.run(
        sums_combine_bwd_kernel,
        (configs.cdiv(columns, block_r), 3),
        sums.device,
        partial,
        sums,
        splits,
        columns,
        BLOCK_S=block_s,
        BLOCK_R=block_r,
        num_warps=configs.COMBINE_WARPS,
    )


def group_terms(partial: Tensor, weight: Tensor | None, groups: int, area: int) -> Tensor:
    """What the gradient of x behind a group norm takes from the sums.

    Args:
        partial: fp32 [3, S, N, C].
        weight: [P] or [N, P] with dense rows; or None.
        groups: of channels.
        area: pixels of a plane.

    Returns:
        fp32 [2, N, C]: the means of gx̂ and gx̂·x̂ over the group of each plane.
    """
    _, splits, n, c = partial.shape
    terms, members = partial.new_empty(2, n, c), c // groups
    launch.run(
        group_terms_bwd_kernel,
        (groups, n),
        partial.device,
        partial,
        weight,
        terms,
        splits,
        c,
        members,
        area,
        launch.entries(weight),
        launch.row_stride(weight),
        TILE=min(configs.power_of_two(splits * members), configs.GROUP_ELEMENTS),
        num_warps=configs.GROUP_WARPS,
    )
    return terms


def epilogue_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    stats: Tensor,
    grad_x: Tensor | None,
    grad_residual: Tensor | None,
    sums: Tensor | None,
    norm: str,
    eps: float,
    act: str,
    slope: float,
    block: int,
    pad: int,
    pad_mode: str,
    groups: int,
    channels_last: bool,
) -> None:
    """`reference.epilogue.epilogue_backward` into the results that are given.

    Reads x and grad once, behind a norm up to twice: for the sums and then for the gradients. Writes each result once.
    Arguments are checked by the caller.

    Args:
        grad: [N, P, block·H + 2·pad, block·W + 2·pad], laid out as x.
        x: [N, C, H, W], contiguous or channels_last; fp32, bf16 or fp16.
        weight: [P], [N, P], [C] or [N, C], any of the dtypes, P = C / block²; or None.
        bias: like weight; or None.
        slopes: of prelu, [1] or [C]; else None.
        stats: fp32 [2, R], from the forward.
        grad_x: like x, written; or None.
        grad_residual: like x, written; or None.
        sums: fp32 [3, N, C], written; or None.
        norm: as in the forward.
        eps: as in the forward.
        act: as in the forward.
        slope: of lrelu.
        block: as in the forward.
        pad: as in the forward.
        pad_mode: as in the forward.
        groups: as in the forward.
        channels_last: the layout of x.

    Raises:
        ValueError: a size is beyond a launch, or grad has another layout than x.
    """
    weight, bias, slopes = (launch.dense_rows(t) for t in (weight, bias, slopes))
    launch.check_layout("grad", grad, channels_last)
    n, c, h, w = x.shape
    _, p, oh, ow = grad.shape
    launch.check_size(n, c, max(c * h * w, p * oh * ow))
    if block == 1 and pad == 0:
        h, w = 1, h * w  # without a border, rows are nothing that a tile has to keep to
    smallest = min(h, w) * block
    p_run, width_run = (launch.run_length(p), 1) if channels_last else (1, launch.run_length(w))
    layout = "channels_last" if channels_last else "contiguous"

    def tile_of(kernel: str) -> configs.TileConfig:
        tile = configs.tile(f"{kernel}, {layout}", x.element_size(), p, h * w, x.device)
        return configs.within_a_row(tile, w, p)

    def run(
        tile: configs.TileConfig,
        tiles: int,
        splits: int,
        read: Tensor | None = None,
        terms: Tensor | None = None,
        sums: Tensor | None = None,
        grad_x: Tensor | None = None,
        grad_residual: Tensor | None = None,
        partial: Tensor | None = None,
        parts: Tensor | None = None,
    ) -> None:
        most = 1 if read is None else read.shape[1]
        launch.run(
            epilogue_bwd_kernel,
            (splits, block**2 * configs.cdiv(p, tile.channels), n),
            x.device,
            grad,
            x,
            stats if norm != "none" else None,
            weight,
            bias,
            slopes,
            read,
            terms,
            sums,
            grad_x,
            grad_residual,
            partial,
            parts,
            p // p_run,
            h,
            w // width_run,
            launch.row_stride(weight),
            launch.row_stride(bias),
            int(slopes is not None and slopes.numel() > 1),
            tiles,
            most,
            0 if terms is None else terms.shape[2],
            float(slope),
            float(eps),
            NORM="instance" if norm == "group" and terms is None else norm,
            ACT=act,
            BLOCK=block,
            PAD=pad,
            MODE=pad_mode,
            TWICE=pad > 0 and (smallest <= 2 * pad + 1 if pad_mode == "reflect" else smallest == 1),
            CHANNELS_LAST=channels_last,
            WEIGHT_PHASES=launch.entries(weight) > p,
            BIAS_PHASES=launch.entries(bias) > p,
            P_RUN=p_run,
            WIDTH_RUN=width_run,
            TILE_PIXELS=tile.pixels,
            TILE_CHANNELS=tile.channels,
            TILE_TERMS=min(configs.power_of_two(0 if terms is None else terms.shape[2]), configs.TERMS),
            BLOCK_SPLITS=min(configs.power_of_two(most), max(configs.PARTIAL_ELEMENTS // tile.channels, 1)),
            num_warps=tile.num_warps,
        )

    written = {"grad_x": grad_x, "grad_residual": grad_residual}
    second = norm != "none" and (grad_x is not None or grad_residual is not None)
    partial = terms = None
    if sums is not None or (grad_x is not None and norm != "none"):
        tile = tile_of("sums")
        blocks = block**2 * configs.cdiv(p, tile.channels)
        tiles, splits = configs.split(h * configs.cdiv(w, tile.pixels), tile.tiles, n * blocks, for_each_channel=True)
        if splits == 1 and sums is not None:
            partial, sums = sums.unsqueeze(1), None
        else:
            partial = torch.empty(3, splits, n, c, dtype=torch.float32, device=x.device)
        parts = None
        if norm == "layer" and grad_x is not None:
            parts = torch.empty(2, n, splits * blocks, dtype=torch.float32, device=x.device)
        run(tile, tiles, splits, partial=partial, parts=parts, **({} if second else written))
        terms = group_terms(partial, weight, groups, h * w) if norm == "group" and grad_x is not None else parts
        if sums is not None and not second:
            combine_sums(partial, sums)
    if second or (partial is None and (grad_x is not None or grad_residual is not None)):
        tile = tile_of("backward")
        all_tiles, tiles = h * configs.cdiv(w, tile.pixels), tile.tiles
        if partial is not None:
            tiles = configs.tiles_of_a_program(tile, all_tiles, n * block**2 * configs.cdiv(p, tile.channels))
        run(tile, tiles, configs.cdiv(all_tiles, tiles), read=partial, terms=terms, sums=sums, **written)

"""The epilogue on a GPU: what `munit_fast.reference.epilogue` says, from the kernels beside this file.

Forward: `statistics` where there is a norm, then one pass. Backward: one pass without a norm, two with one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import configs, launch
from .epilogue_backward import epilogue_bwd_kernel, sums_combine_bwd_kernel
from .epilogue_forward import epilogue_fwd_kernel
from .statistics import statistics


def _parameters(
    weight: Tensor | None, bias: Tensor | None, slope: float | Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Weight, bias and slopes as the kernels read them; slopes is None where the slope is a number."""
    slopes = slope if isinstance(slope, Tensor) else None
    return launch.dense_rows(weight), launch.dense_rows(bias), launch.dense_rows(slopes)


def epilogue_forward(
    x: Tensor,  # [N, C, H, W], contiguous or channels_last; fp32, bf16 or fp16
    weight: Tensor | None,  # [P] or [N, P], any of the dtypes; P = C / block²
    bias: Tensor | None,
    residual: Tensor | None,  # like x; or a window of a larger tensor, see launch.window
    slope: float | Tensor,  # prelu: [1] or [C]
    stats: Tensor | None = None,  # fp32 [2, R], if they are known
    *,
    norm: str,
    eps: float,
    act: str,
    block: int,
    pad: int,
    pad_mode: str,
) -> tuple[Tensor, Tensor]:  # y [N, P, block·H + 2·pad, block·W + 2·pad] laid out as x; statistics fp32 [2, R]
    """`reference.epilogue.epilogue` and `reference.epilogue.statistics` of x. Arguments are checked by the caller."""
    weight, bias, slopes = _parameters(weight, bias, slope)
    channels_last = launch.is_channels_last(x)
    window = launch.window("residual", residual, channels_last)
    n, c, h, w = x.shape
    p, oh, ow = c // block**2, block * h + 2 * pad, block * w + 2 * pad
    launch.check_size(n, c, max(c * h * w, p * oh * ow))
    if stats is None:
        stats = statistics(x, norm, channels_last)
    y = launch.empty((n, p, oh, ow), x, channels_last)
    table = f"forward, {'channels_last' if channels_last else 'contiguous'}"
    tile = configs.tile(table, x.element_size(), p, oh * ow, x.device)
    p_run, area_run = (launch.run_length(p), 1) if channels_last else (1, launch.run_length(oh * ow))
    launch.run(
        epilogue_fwd_kernel,
        (configs.cdiv(oh * ow, tile.pixels * tile.tiles), configs.cdiv(p, tile.channels), n),
        x.device,
        x,
        residual,
        weight,
        bias,
        slopes,
        stats if norm != "none" else None,
        y,
        p // p_run,
        oh * ow // area_run,
        h,
        w,
        stats.shape[1],
        launch.row_stride(weight),
        launch.row_stride(bias),
        int(slopes is not None and slopes.numel() > 1),
        window.image,
        window.plane,
        window.row,
        tile.tiles,
        float(slope) if slopes is None else 0.0,
        float(eps),
        NORM=norm,
        ACT=act,
        BLOCK=block,
        PAD=pad,
        MODE=pad_mode,
        CHANNELS_LAST=channels_last,
        P_RUN=p_run,
        AREA_RUN=area_run,
        WINDOW_RUN=window.run,
        TILE_PIXELS=tile.pixels,
        TILE_CHANNELS=tile.channels,
        num_warps=tile.num_warps,
    )
    return y, stats


def combine_sums(
    partial: Tensor,  # fp32 [3, S, N, C]
    sums: Tensor,  # fp32 [3, N, C], written
) -> None:
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


def epilogue_backward(
    grad: Tensor,  # [N, P, block·H + 2·pad, block·W + 2·pad], laid out as x
    x: Tensor,  # [N, C, H, W], contiguous or channels_last; fp32, bf16 or fp16
    stats: Tensor,  # fp32 [2, R], from the forward
    weight: Tensor | None,  # [P] or [N, P], any of the dtypes; P = C / block²
    bias: Tensor | None,
    slope: float | Tensor,  # prelu: [1] or [C]
    *,
    norm: str,
    eps: float,
    act: str,
    block: int,
    pad: int,
    pad_mode: str,
    need_x: bool,
    need_residual: bool,
    need_sums: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # grad_x and grad_residual like x; sums fp32 [3, N, C]
    """What is asked for of `reference.epilogue.epilogue_backward`. Arguments are checked by the caller."""
    weight, bias, slopes = _parameters(weight, bias, slope)
    channels_last = launch.is_channels_last(x)
    launch.check_layout("grad", grad, channels_last)
    n, c, h, w = x.shape
    p = c // block**2
    launch.check_size(n, c, max(c * h * w, grad[:1].numel()))
    smallest = min(h, w) * block
    p_run, area_run = (launch.run_length(p), 1) if channels_last else (1, launch.run_length(h * w))

    def run(
        tile: configs.Tile,
        tiles: int,
        splits: int,
        sums: Tensor | None = None,
        grad_x: Tensor | None = None,
        grad_residual: Tensor | None = None,
        partial: Tensor | None = None,
    ) -> None:
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
            sums,
            grad_x,
            grad_residual,
            partial,
            p // p_run,
            h * w // area_run,
            h,
            w,
            launch.row_stride(weight),
            launch.row_stride(bias),
            int(slopes is not None and slopes.numel() > 1),
            tiles,
            float(slope) if slopes is None else 0.0,
            float(eps),
            NORM=norm,
            ACT=act,
            BLOCK=block,
            PAD=pad,
            MODE=pad_mode,
            TWICE=smallest <= 2 * pad + 1 if pad_mode == "reflect" else smallest == 1,
            CHANNELS_LAST=channels_last,
            P_RUN=p_run,
            AREA_RUN=area_run,
            TILE_PIXELS=tile.pixels,
            TILE_CHANNELS=tile.channels,
            TILE_TOTALS=configs.LAYER_CHANNELS,
            num_warps=tile.num_warps,
        )

    layout = "channels_last" if channels_last else "contiguous"
    written = {
        "grad_x": torch.empty_like(x) if need_x else None,
        "grad_residual": torch.empty_like(x) if need_residual else None,
    }
    done, sums = False, None
    if need_sums or (need_x and norm != "none"):
        tile = configs.tile(f"sums, {layout}", x.element_size(), p, h * w, x.device)
        columns = n * block**2 * configs.cdiv(p, tile.channels)
        tiles, splits = configs.split(configs.cdiv(h * w, tile.pixels), tile.tiles, columns)
        sums = torch.empty(3, n, c, dtype=torch.float32, device=x.device)
        partial = sums if splits == 1 else torch.empty(3, splits, n, c, dtype=torch.float32, device=x.device)
        done = norm == "none"
        run(tile, tiles, splits, partial=partial, **(written if done else {}))
        if splits > 1:
            combine_sums(partial, sums)
    if not done and (need_x or need_residual):
        tile = configs.tile(f"backward, {layout}", x.element_size(), p, h * w, x.device)
        splits = configs.cdiv(h * w, tile.pixels * tile.tiles)
        run(tile, tile.tiles, splits, sums=sums if norm != "none" else None, **written)
    return written["grad_x"], written["grad_residual"], sums if need_sums else None

"""What stands between two convolutions, as formulas: the specification of the fused epilogue.

    z = normalise(x)                    weight · (x - mean) · r + bias
    y = pad(depth_to_space(act(z) + residual))

Both functions compute in at least float32 and round once, at the end. `epilogue` is differentiable by autograd;
`epilogue_backward` is its gradient written out, from what the fused ops keep: the input and two numbers a plane.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717
GELU_TANH_SCALE = 2 * math.sqrt(2 / math.pi)
GELU_TANH_CUBE = 0.044715
GELU_SQUARE_MAX = 1e4  # from here on σ'(w) = 0, and must not be multiplied by infinity

_PAD_MODES = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    """[P] or [N, P] -> broadcastable to x [N, C, H, W]; channel c of x reads entry c % P, and P divides C."""
    value = value.to(x.dtype).reshape(-1, value.shape[-1])
    return value.repeat(1, x.shape[1] // value.shape[1])[:, :, None, None]


def _per_plane(value: Tensor, x: Tensor) -> Tensor:
    """[N, R] -> broadcastable to x [N, C, H, W], of which C / R neighbouring planes share an entry."""
    return value.repeat_interleave(x.shape[1] // value.shape[1], 1)[:, :, None, None]


def statistics(x: Tensor, norm: str, groups: int = 1) -> Tensor:
    """Mean and spread of x.

    Args:
        x: [N, C, H, W].
        norm: "instance": one pair a plane, R = N·C, and the biased variance; "group": the same of a group of channels,
            repeated for each of its planes; "layer": one pair a sample, R = N, and the unbiased standard deviation
            (divided by C·H·W - 1); "none": R = 0.
        groups: of channels, for "group".

    Returns:
        [2, R] in at least float32.
    """
    x = _wide(x)
    if norm == "none":
        return x.new_empty(2, 0)
    rows = x.flatten(1) if norm == "layer" else x.flatten(0, 1).flatten(1)
    if norm == "group":
        rows = rows.reshape(x.shape[0] * groups, x.shape[1] // groups * rows.shape[1])
    mean = rows.mean(1)
    centred = rows - mean[:, None]
    variance = centred.square().sum(1) / (rows.shape[1] - int(norm == "layer"))
    stats = torch.stack([mean, variance.sqrt() if norm == "layer" else variance])
    return stats.repeat_interleave(x.shape[1] // groups, 1) if norm == "group" else stats


def _mean_and_scale(x: Tensor, stats: Tensor, norm: str, eps: float) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], 1 if norm == "layer" else x.shape[1], 1, 1)
    mean, spread = stats[0].view(shape), stats[1].view(shape)
    return mean, 1 / (spread + eps) if norm == "layer" else (spread + eps).rsqrt()


def activate(z: Tensor, act: str, slope: float | Tensor = 0.2) -> Tensor:
    """The activation of z.

    Args:
        z: [N, C, H, W].
        act: "none"; "relu"; "lrelu"; "prelu" (He et al., 2015); "selu" (Klambauer et al., 2017); "tanh"; "silu",
            z · σ(z) (Hendrycks & Gimpel, 2016; Elfwing et al., 2017); "gelu", z · Φ(z) with the normal distribution
            function Φ, and "gelu_tanh", z · (1 + tanh(√(2/π) · (z + 0.044715 z³))) / 2 (Hendrycks & Gimpel, 2016).
        slope: of "lrelu" a number; of "prelu" a tensor [1] or [C].

    Returns:
        [N, C, H, W] in z's dtype.
    """
    if act == "relu":
        return F.relu(z)
    if act in ("lrelu", "prelu"):
        factor = _per_channel(slope, z) if isinstance(slope, Tensor) else slope
        return torch.where(z > 0, z, z * factor)
    if act == "selu":
        return F.selu(z)
    if act == "tanh":
        return torch.tanh(z)
    if act == "silu":
        return F.silu(z)
    if act == "gelu":
        return F.gelu(z)
    if act == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    return z


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """[N, block²·P, H, W] -> [N, P, block·H, block·W]; channel (block·i + j)·P + p goes to row i, column j of a block.

    The order of ONNX's DepthToSpace in DCR mode: the phases are the slow part of the channel index, so in
    channels_last memory each phase is one run of P values. (torch.pixel_shuffle has them the other way round.)
    """
    if block == 1:
        return x
    n, c, h, w = x.shape
    # As torch.pixel_shuffle, which exporters know with sizes that are not.
    p_first = x.reshape(n, block**2, c // block**2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return F.pixel_shuffle(p_first, block)


def space_to_depth(y: Tensor, block: int) -> Tensor:
    """The inverse of `depth_to_space`."""
    if block == 1:
        return y
    n, p, h, w = y.shape
    x = y.view(n, p, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, p * block**2, h // block, w // block)


def pad2d(x: Tensor, pad: int, pad_mode: str) -> Tensor:
    """x [N, C, H, W] with `pad` pixels on each side: [N, C, H + 2·pad, W + 2·pad]."""
    return F.pad(x, (pad,) * 4, mode=_PAD_MODES[pad_mode]) if pad else x


def pad2d_backward(grad: Tensor, pad: int, pad_mode: str) -> Tensor:
    """The gradient of `pad2d`: each border pixel is added to the pixel it was read from.

    Args:
        grad: [N, C, H + 2·pad, W + 2·pad].
        pad: pixels on each side.
        pad_mode: "reflect", "replicate" or "zero".

    Returns:
        [N, C, H, W].
    """
    if not pad:
        return grad
    if pad_mode == "zero":
        return grad[:, :, pad:-pad, pad:-pad]
    n, c, h, w = grad.shape
    like = grad.new_empty(n, c, h - 2 * pad, w - 2 * pad)
    backward = torch.ops.aten.reflection_pad2d_backward if pad_mode == "reflect" else None
    return (backward or torch.ops.aten.replication_pad2d_backward)(grad.contiguous(), like, (pad,) * 4)


def epilogue(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    norm: str = "none",
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    block: int = 1,
    pad: int = 0,
    pad_mode: str = "reflect",
    groups: int = 1,
    stats: Tensor | None = None,
) -> Tensor:
    """normalise → act → + residual → depth-to-space → pad.

    norm "instance" (MUNIT's AdaIN, section 5.1, when weight and bias are [N, C]): r = 1 / sqrt(var + eps) with the
    biased variance of each plane. norm "group" (Wu & He, 2018, eq. 7): the same of each group of channels. norm "layer"
    (MUNIT, decoder): r = 1 / (std + eps) with the unbiased std of each sample. norm "none": z = weight · x + bias.

    Args:
        x: [N, C, H, W].
        weight: [P] or [N, P], where P divides C and channel c reads entry c % P; None: one.
        bias: like weight; None: zero.
        residual: [N, C, H, W]; or None.
        norm: "none", "instance", "group" or "layer".
        eps: added to the variance ("instance", "group") or to the standard deviation ("layer").
        act: see `activate`.
        slope: see `activate`.
        block: side of the blocks of `depth_to_space`; 1 for none.
        pad: pixels of padding on each side.
        pad_mode: "reflect", "replicate" or "zero".
        groups: of channels, for norm "group".
        stats: `statistics(x, norm, groups)`, if they are known; the result is then differentiable in x as if they were
            constant.

    Returns:
        [N, C / block², block·H + 2·pad, block·W + 2·pad] in x's dtype.
    """
    z = _wide(x)
    if norm != "none":
        mean, scale = _mean_and_scale(z, statistics(x, norm, groups) if stats is None else stats, norm, eps)
        z = (z - mean) * scale
    if weight is not None:
        z = z * _per_channel(weight, z)
    if bias is not None:
        z = z + _per_channel(bias, z)
    y = activate(z, act, slope)
    if residual is not None:
        y = y + residual
    return pad2d(depth_to_space(y, block), pad, pad_mode).to(x.dtype)


def epilogue_backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: str = "none",
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    block: int = 1,
    pad: int = 0,
    pad_mode: str = "reflect",
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of `epilogue`, given its result's gradient, its input and its `statistics`.

    With x̂ = (x - mean)·r, g the gradient at y before padding, gz = act'(z)·g and gx̂ = weight·gz, over M elements:

        instance   dx = r · (gx̂ - mean(gx̂) - x̂ · mean(gx̂·x̂))
        group      the same, with means over a group
        layer      dx = r · (gx̂ - mean(gx̂)) - x̂ · Σ(gx̂·x̂) / ((M - 1) · std)        (no second term at std = 0)

    Args:
        grad: [N, C / block², block·H + 2·pad, block·W + 2·pad].
        x: [N, C, H, W].
        stats: [2, R].
        weight: as for `epilogue`.
        bias: as for `epilogue`.
        norm: as for `epilogue`.
        eps: as for `epilogue`.
        act: as for `epilogue`.
        slope: as for `epilogue`.
        block: as for `epilogue`.
        pad: as for `epilogue`.
        pad_mode: as for `epilogue`.
        groups: as for `epilogue`.

    Returns:
        dx [N, C, H, W] and the gradient of the residual (= g) [N, C, H, W], both in x's dtype; and the sums over each
        plane [3, N, C] in at least float32: of gz (bias), of gz·x̂ (weight), and of g·z where z ≤ 0 (prelu's slope; zero
        otherwise).
    """
    wide, g = _wide(x), space_to_depth(pad2d_backward(_wide(grad), pad, pad_mode), block)
    normalised, scale = wide, None
    if norm != "none":
        mean, scale = _mean_and_scale(wide, stats, norm, eps)
        normalised = (wide - mean) * scale
    z = normalised
    if weight is not None:
        z = z * _per_channel(weight, z)
    if bias is not None:
        z = z + _per_channel(bias, z)

    gz, slope_sum = g, torch.zeros(x.shape[:2], dtype=g.dtype, device=g.device)
    if act == "relu":
        gz = torch.where(z > 0, g, 0)
    elif act in ("lrelu", "prelu"):
        factor = _per_channel(slope, z) if isinstance(slope, Tensor) else slope
        gz = torch.where(z > 0, g, g * factor)
        if act == "prelu":
            slope_sum = torch.where(z > 0, 0, g * z).sum((2, 3))
    elif act == "selu":
        gz = g * SELU_SCALE * torch.where(z > 0, 1, SELU_ALPHA * z.exp())
    elif act == "tanh":
        gz = g * (1 - torch.tanh(z).square())
    elif act == "silu":  # σ · (1 + z · (1 - σ)), where 1 - σ(z) = σ(-z) keeps its digits
        gz = g * torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))
    elif act == "gelu":  # Φ + z · φ
        density = torch.exp(z.square() / -2) / math.sqrt(2 * math.pi)
        gz = g * (torch.erfc(z * -math.sqrt(0.5)) / 2 + z * density)
    elif act == "gelu_tanh":  # z · σ(w) with w = 2 √(2/π) · (z + 0.044715 z³), as (1 + tanh(w / 2)) / 2 = σ(w)
        square = z.square().clamp_max(GELU_SQUARE_MAX)
        w = GELU_TANH_SCALE * z * (1 + GELU_TANH_CUBE * square)
        dw = GELU_TANH_SCALE * (1 + 3 * GELU_TANH_CUBE * square)
        gz = g * (torch.sigmoid(w) + z * (dw * (torch.sigmoid(w) * torch.sigmoid(-w))))

    sums = torch.stack([gz.sum((2, 3)), (gz * normalised).sum((2, 3)), slope_sum])
    dx = gz if weight is None else gz * _per_channel(weight, gz)
    if scale is not None:
        together = {"instance": 1, "group": dx.shape[1] // groups, "layer": dx.shape[1]}[norm]  # planes
        over = dx.reshape(dx.shape[0], dx.shape[1] // together, together, *dx.shape[2:])  # the result's mean over these
        count = math.prod(over.shape[2:])
        mean = _per_plane(over.mean((2, 3, 4)), dx)
        along = _per_plane((over * normalised.reshape(over.shape)).sum((2, 3, 4)), dx)
        if norm == "layer":
            std = stats[1].view(-1, 1, 1, 1)
            second = torch.where(std > 0, along / ((count - 1) * std), 0)
            dx = scale * (dx - mean) - normalised * second
        else:
            dx = scale * (dx - mean - normalised * along / count)
    return dx.to(x.dtype), g.to(x.dtype), sums

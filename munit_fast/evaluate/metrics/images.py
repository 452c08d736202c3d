"""Distances between paired images, pixel by pixel: L1, structural similarity, agreement of drawn lines."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from munit_fast.utils.optional import require

# Ink may sit this many pixels off on a 128-pixel image; other sizes scale it. It is about 0.8 % of the
# diagonal, as in BSDS.
LINE_TOLERANCE = 1.5
LINE_REFERENCE_SIDE = 128
# Below one pixel a tolerance would demand pixel-exact lines, which anti-aliasing alone breaks.
LEAST_TOLERANCE = 1.0
# The window of Wang et al. 2004: a Gaussian of σ = 1.5 cut at 3.5 σ.
SSIM_WINDOW = 11
_RANGE_SLACK = 1e-3
_LUMA = (0.299, 0.587, 0.114)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of each pair, on (x + 1) / 2; lower is better.

    Args:
        x: float [N, C, H, W] in [-1, 1], C 1 or 3, any device.
        y: As `x`.

    Returns:
        float64 [N] on the CPU, in [0, 1].

    Raises:
        ValueError: Other shapes, values out of range or not finite.
    """
    a, b = _pair(x, y, "l1")
    return (a - b).abs().mean(dim=(1, 2, 3))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each pair, on (x + 1) / 2, with the Gaussian window of the paper; higher is better.

    Source: Wang et al. 2004, "Image Quality Assessment", eq. 13, averaged over the window positions and the channels.

    Args:
        x: float [N, C, H, W] in [-1, 1], C 1 or 3, H and W at least 11, any device.
        y: As `x`.

    Returns:
        float64 [N] on the CPU, in [-1, 1].

    Raises:
        ImportError: scikit-image is missing.
        ValueError: Other shapes, values out of range or not finite.
    """
    a, b = _pair(x, y, "ssim")
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"ssim: images of {a.shape[-2]}×{a.shape[-1]} are smaller than the window; give at least 11×11"
        )
    metrics = require("skimage.metrics", "metrics", package="scikit-image")
    values = [
        metrics.structural_similarity(
            p,
            q,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for p, q in zip(a.numpy(), b.numpy(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def line_f1(x: Tensor, y: Tensor, threshold: float = 0.5, tolerance: float = LINE_TOLERANCE) -> Tensor:
    """How well the ink of each drawing agrees with the ink of the true drawing: F1 of the pair; higher is better.

    Ink is where the luminance of (x + 1) / 2 lies below `threshold`. Precision is the share of x's ink with ink of y
    within `tolerance`, recall the share of y's ink with ink of x so near; F1 = 2·P·R / (P + R). Two blank drawings
    agree (1), a blank one and a drawn one do not (0).

    Source: boundary benchmark of Martin, Fowlkes, Malik 2004, with matching to the nearest ink instead of one-to-one
    matching.

    Args:
        x: float [N, 1 or 3, H, W] in [-1, 1], dark lines on white, any device.
        y: The true drawings, of the same number and size; the channels may differ.
        threshold: Luminance in [0, 1] below which a pixel is ink.
        tolerance: In pixels where the shorter side has 128, and in proportion to it, at least 1 pixel.

    Returns:
        float64 [N] on the CPU, in [0, 1].

    Raises:
        ImportError: scipy is missing.
        ValueError: Other shapes, values out of range or not finite.
    """
    a, b = to_unit(x, "line_f1: x"), to_unit(y, "line_f1: y")
    if a.shape[0] != b.shape[0] or a.shape[-2:] != b.shape[-2:]:
        raise ValueError(
            f"line_f1: x is {list(x.shape)}, y is {list(y.shape)}; number and size of the images must agree"
        )
    radius = max(LEAST_TOLERANCE, tolerance * min(a.shape[-2:]) / LINE_REFERENCE_SIDE)
    ink_a, ink_b = (_luminance(images) < threshold for images in (a, b))
    return torch.tensor(
        [_ink_f1(p, q, radius) for p, q in zip(ink_a.numpy(), ink_b.numpy(), strict=True)],
        dtype=torch.float64,
    )


def with_channels(images: Tensor, channels: int) -> Tensor:
    """[N, 1 or 3, H, W] with that many channels: grey repeated, colour brought to its luminance (Rec. 601)."""
    if images.shape[1] == channels:
        return images
    return images.expand(-1, 3, -1, -1) if channels == 3 else _luminance(images)[:, None]


def is_drawing(images: Tensor) -> bool:
    """Whether [N, C, H, W] in [-1, 1] are line drawings: colourless, mostly white, hardly anything between.

    Of OpenMoji's 64 px drawings 91 % of the pixels lie within 0.1 of black or white, and 84 % are white.
    """
    unit = to_unit(images, "images")
    grey = _luminance(unit)
    colourless, white = (unit - grey[:, None]).abs().amax(1) < 0.1, grey > 0.9
    shares = [pixels.double().mean() for pixels in (colourless, white | (grey < 0.1), white)]
    return all(share > least for share, least in zip(shares, (0.98, 0.8, 0.5)))


def to_unit(images: Tensor, name: str) -> Tensor:
    """Check [N, C, H, W] in [-1, 1] and give (images + 1) / 2 in [0, 1], float64, on the CPU."""
    check_images(images, name)
    return ((images.detach().double().cpu() + 1) / 2).clamp(0, 1)


def check_images(images: Tensor, name: str) -> None:
    """Raise ValueError unless `images` is a non-empty finite float [N, 1 or 3, H, W] in [-1, 1]."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0 or not images.is_floating_point():
        raise ValueError(f"{name} is {images.dtype} {list(images.shape)}; give float images [N, 1 or 3, H, W], N > 0")
    if not torch.isfinite(images).all():
        raise ValueError(f"{name} holds NaN or infinity")
    low, high = images.min().item(), images.max().item()
    if low < -1 - _RANGE_SLACK or high > 1 + _RANGE_SLACK:
        raise ValueError(f"{name} spans [{low:.4g}, {high:.4g}]; give images in [-1, 1]")


def _pair(x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape:
        raise ValueError(f"{name}: x is {list(x.shape)} and y is {list(y.shape)}; the shapes must agree")
    return to_unit(x, f"{name}: x"), to_unit(y, f"{name}: y")


def _luminance(images: Tensor) -> Tensor:
    """[N, C, H, W] in [0, 1] → [N, H, W], Rec. 601 weights: a colour picture may be measured as a drawing."""
    if images.shape[1] == 1:
        return images[:, 0]
    return torch.einsum("nchw,c->nhw", images, torch.tensor(_LUMA, dtype=images.dtype))


def _ink_f1(drawn: np.ndarray, true: np.ndarray, radius: float) -> float:
    """F1 of two boolean [H, W] ink masks, matched within `radius` pixels."""
    if not drawn.any() or not true.any():
        return float(drawn.any() == true.any())
    distance_transform = require("scipy.ndimage", "metrics").distance_transform_edt
    precision = (distance_transform(~true)[drawn] <= radius).mean()
    recall = (distance_transform(~drawn)[true] <= radius).mean()
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))

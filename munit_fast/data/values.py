"""From what a file holds to what the networks take: channels, value range, transparency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from munit_fast.data.picture import Array, ImageError, Picture, type_limits

_LUMA = (19595, 38470, 7471)  # ITU-R 601 in 1/65536, as Pillow's "L" has them


@dataclass(frozen=True)
class PixelFormat:
    """How the images of a domain become arrays.

    Attributes:
        channels: Of the arrays.
        limits: The values that become -1 and 1; None: those of each file's type (0..255, 0..65535, 0..1).
        background: Grey level 0..255 between the two limits that transparent areas are laid over.
        domain: "a", "b" or "": which keys of a configuration messages name.
    """

    channels: int = 3
    limits: tuple[float, float] | None = None
    background: int = 255
    domain: str = ""

    def key(self, name: str) -> str:
        """A key of this domain, such as "range_a"."""
        return f"{name}_{self.domain}" if self.domain else name

    def apply(self, picture: Picture) -> Array:
        """The picture as an array in the networks' channels and range.

        Channels: as many as the file has; or grey repeated three times; or the luma of a colour image. Where one more
        is asked for than the file has besides its transparency, that is the last channel, from black (transparent) to
        white; the others are laid over the background all the same.

        Args:
            picture: Of any reader.

        Returns:
            [H, W, channels]: uint8 in 0..255 or uint16 in 0..65535 where the file has these types and no other limits
            hold; else float32 in 0..1, what lies outside the limits clipped.

        Raises:
            ImageError: Without a file's name: other channels, no range, or values outside the range of floating point.
        """
        pixels, alpha = picture.pixels, picture.alpha
        self._check_channels(pixels, picture)
        array = self._scaled(pixels, picture)
        if alpha is None:
            return _with_channels(array, self.channels)
        share = alpha[:, :, None].astype(np.float64) / picture.alpha_limit
        array = self._laid_over(array, alpha, share)
        if self.channels != pixels.shape[2] + 1:
            return _with_channels(array, self.channels)
        last = share * (1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max)
        return np.concatenate([array, (last.round() if array.dtype.kind == "u" else last).astype(array.dtype)], axis=2)

    def values(self, images: Tensor, dtype: npt.DTypeLike) -> Array:
        """Images of the networks in the values of this domain: the inverse of `apply` and `to_model_range`.

        Args:
            images: [..., C, H, W] in -1..1, any floating-point dtype and device; what lies outside is clamped.
            dtype: Of the result. Without `limits`, the range is that of the dtype: 0..255, 0..65535 or 0..1.

        Returns:
            [..., H, W, C], integers rounded to the nearest value that the dtype holds.

        Raises:
            ImageError: A value is NaN or infinite, or the dtype has no range of its own and there are no `limits`.
        """
        dtype = np.dtype(dtype)
        limits = self.limits or type_limits(dtype)
        if limits is None:
            raise ImageError(f"{dtype} has no black and white of its own; set {self.key('range')}: [low, high]")
        if dtype == np.uint8 and limits == type_limits(dtype):
            return to_bytes(images)
        low, high = limits
        shares = _finite(images, torch.float64).clamp(-1, 1).add(1).div(2).movedim(-3, -1).numpy()
        found = low + shares * (high - low)
        if dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            found = np.rint(found).clip(bounds.min, bounds.max)
        return np.ascontiguousarray(found, dtype=dtype)

    def _check_channels(self, pixels: Array, picture: Picture) -> None:
        found = pixels.shape[2]
        if self.channels in (found, found + (picture.alpha is not None)):
            return
        if not (self.channels == 3 and found == 1) and not (self.channels == 1 and picture.colour):
            raise ImageError(
                f"has {found} channels where {self.channels} are wanted; set {self.key('input_dim')}: {found}"
            )

    def _scaled(self, pixels: Array, picture: Picture) -> Array:
        limits = self.limits or picture.limits
        if limits is None:
            kinds = {"i": "signed whole numbers", "u": "unsigned whole numbers", "f": "floating-point values of a scan"}
            raise ImageError(
                f"{pixels.dtype.itemsize * 8}-bit {kinds[pixels.dtype.kind]} have no black and white of their own "
                f"({pixels.min()}..{pixels.max()} here); set {self.key('range')}: [low, high], or auto"
            )
        if pixels.dtype in (np.uint8, np.uint16) and limits == type_limits(pixels.dtype):
            return pixels
        low, high = limits
        if pixels.dtype.kind == "f":
            least, most = float(pixels.min()), float(pixels.max())  # NaN makes all comparisons false
            if not (np.isfinite(least) and np.isfinite(most)):
                raise ImageError("holds NaN or infinite values")
            if self.limits is None and not (least >= low and most <= high):
                raise ImageError(
                    f"floating-point values must lie in 0..1, not {least:g}..{most:g}; "
                    f"or set {self.key('range')}: [low, high], or auto"
                )
        scaled = (pixels.astype(np.float64) - low) / (high - low)
        return scaled.clip(0, 1).astype(np.float32)

    def _laid_over(self, array: Array, alpha: Array, share: Array) -> Array:
        """Composite over the background, in the array's own range; share: `alpha` [H, W] as [H, W, 1] in 0..1."""
        if array.dtype == np.uint8 and array.shape[2] in (1, 3):
            top = np.concatenate([np.broadcast_to(array, (*array.shape[:2], 3)), alpha[:, :, None]], axis=2)
            image = Image.fromarray(np.ascontiguousarray(top))
            under = Image.new("RGBA", image.size, (*(self.background,) * 3, 255))
            return np.asarray(Image.alpha_composite(under, image))[:, :, : array.shape[2]]
        white = type_limits(array.dtype)[1]
        laid = array * share + (1 - share) * white * self.background / 255
        return (laid.round() if array.dtype.kind == "u" else laid).astype(array.dtype)


def to_bytes(images: Tensor, *, name: str = "image") -> Array:
    """[..., C, H, W] in -1..1 → [..., H, W, C] uint8: ``(x + 1) / 2`` at 8 bits, values outside clamped.

    Args:
        images: Any floating-point dtype, any device.
        name: What the message calls them.

    Raises:
        ImageError: A value is NaN or infinite.
    """
    return (
        _finite(images, torch.float32, name)
        .add(1)
        .div(2)
        .clamp(0, 1)
        .mul(255)
        .round()
        .to(torch.uint8)
        .movedim(-3, -1)
        .numpy()
    )


def _finite(images: Tensor, dtype: torch.dtype, name: str = "image") -> Tensor:
    values = images.detach().to("cpu", dtype)
    if not bool(torch.isfinite(values).all()):
        raise ImageError(f"{name}: the image to save holds NaN or infinite values")
    return values


def _with_channels(array: Array, channels: int) -> Array:
    """[H, W, C] → [H, W, channels]: grey repeated, or colour brought to its luma with Pillow's weights."""
    if array.shape[2] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=2)
    if array.dtype.kind == "f":
        luma: Array = array @ (np.array(_LUMA, np.float32) / 65536)
        return luma.clip(0, 1).astype(np.float32)[:, :, None]
    weighted: Array = array.astype(np.uint64) @ np.array(_LUMA, np.uint64)
    return ((weighted + 0x8000) >> 16).astype(array.dtype)[:, :, None]

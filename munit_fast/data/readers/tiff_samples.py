"""What the numbers of a TIFF page mean: colours, transparency, black and white."""

from __future__ import annotations

import numpy as np
from PIL import Image
from tifffile import TiffPage

from munit_fast.data.picture import Array, ImageError, Picture, type_limits
from munit_fast.data.readers.pillow import of_pillow

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
_CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, MASK: 1, CMYK: 4, YCBCR: 3, LAB: 3}
_THROUGH_PILLOW = {CMYK: "CMYK", YCBCR: "YCbCr", LAB: "LAB"}  # 8 bits alone
_PREMULTIPLIED, _STRAIGHT = 1, 2  # of the tag ExtraSamples; 0 is one more channel
JPEG = 7
_INK_SET, _DOT_RANGE = 332, 336
# What Pillow takes YCbCr for: the coefficients of ITU-R 601, and black and white of each channel.
_YCBCR = {529: (0.299, 0.587, 0.114), 532: (0, 255, 128, 255, 128, 255)}


def check_samples(page: TiffPage) -> None:
    """Raise ImageError, with the reason, for pages whose numbers `to_picture` cannot tell the meaning of."""
    bits, dtype, kind = page.bitspersample, page.dtype, page.photometric
    if 262 not in page.tags or kind not in _CHANNELS:
        name = _name(kind) if 262 in page.tags else "none"
        raise ImageError(f"TIFF with photometric interpretation {name}; save it as grey or RGB")
    if not isinstance(bits, int) or dtype is None or dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ImageError(f"TIFF with samples of {bits} bits, format {page.sampleformat}; save whole or real numbers")
    if dtype.kind == "i" and bits not in (8, 16, 32, 64):
        raise ImageError(f"TIFF with signed numbers of {bits} bits; save it with 16 or 32")
    wrong = {
        WHITE_IS_ZERO: dtype.kind not in "bu",
        PALETTE: dtype.kind not in "bu" or bits > 16 or page.colormap is None,
        CMYK: page.tags.valueof(_INK_SET, 1) != 1 or page.tags.valueof(_DOT_RANGE) not in (None, (0, 255)),
        # JPEG gives RGB; else only samples with the usual coefficients, not subsampled, are what Pillow expects.
        YCBCR: page.planarconfig != 1
        if page.compression == JPEG
        else page.is_subsampled or any(not _is_usual(page, tag, value) for tag, value in _YCBCR.items()),
        LAB: page.compression == JPEG,
    }
    if wrong.get(kind, False) or (kind in _THROUGH_PILLOW and (bits, dtype.kind) != (8, "u")):
        raise ImageError(f"TIFF with {_name(kind)} of this kind ({bits} bits); save it as RGB")


def to_picture(samples: Array, page: TiffPage) -> Picture:
    """The picture of a page, as its samples [H, W, C] lie in the file."""
    kind, count = page.photometric, samples.shape[2]
    extras = _extras(page, count - _CHANNELS[kind])
    at = next((i for i, extra in enumerate(extras) if extra), None)
    others = [_CHANNELS[kind] + i for i, extra in enumerate(extras) if i != at]
    if at is not None and any(extras[i] for i in range(at + 1, len(extras))):
        raise ImageError("TIFF with two alpha channels; keep one")
    if others and kind not in (BLACK_IS_ZERO, RGB):
        raise ImageError(f"TIFF with {_name(kind)} and {len(others)} more channels; save it as grey or RGB")
    pixels = samples[:, :, [*range(_CHANNELS[kind]), *others]]
    if kind == PALETTE:
        picture = _of_palette(pixels[:, :, 0], np.asarray(page.colormap))
    elif kind in _THROUGH_PILLOW and (kind, page.compression) != (YCBCR, JPEG):
        mode = _THROUGH_PILLOW[kind]
        picture = of_pillow(Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes()))
    else:
        if kind == WHITE_IS_ZERO:
            pixels = ~pixels if pixels.dtype == bool else np.array(_largest(page), pixels.dtype) - pixels
        picture = Picture(pixels, kind in (RGB, YCBCR) and not others)
    if at is None:
        return _scaled(picture, page) if picture.limits is None else picture
    return _with_alpha(picture, samples[:, :, _CHANNELS[kind] + at], extras[at], page)


def _extras(page: TiffPage, count: int) -> list[int]:
    """What each channel behind those of the colour is; without a word it is one more channel."""
    said = [int(extra) for extra in page.extrasamples]
    if count < 0 or (len(said) != count and any(said)):
        raise ImageError("TIFF whose number of channels does not fit its photometric interpretation")
    return said if len(said) == count else [0] * count


def _with_alpha(picture: Picture, alpha: Array, extra: int, page: TiffPage) -> Picture:
    if alpha.dtype.kind == "i" or page.bitspersample in (*range(17, 32), *range(33, 64)):
        raise ImageError("TIFF with transparency of signed numbers or an odd depth; save it with 8 or 16 bits")
    pixels = picture.pixels
    if extra == _PREMULTIPLIED:
        if picture.limits is not None or page.photometric not in (BLACK_IS_ZERO, RGB) or pixels.dtype == np.uint64:
            raise ImageError("TIFF with premultiplied alpha of this kind; save it as grey or RGB with straight alpha")
        pixels = _straight(pixels, alpha, _largest(page))
    if picture.limits is not None and alpha.dtype != pixels.dtype:
        raise ImageError("TIFF with a palette and transparency of another depth; save it as RGB")
    picture = Picture(pixels, picture.colour, alpha, picture.limits)
    return picture if picture.limits is not None else _scaled(picture, page)


def _straight(pixels: Array, alpha: Array, opaque: float) -> Array:
    """Colours that are not multiplied by their alpha; 0 where nothing is seen of them."""
    alpha = alpha[:, :, None].astype(np.float64)
    colours = np.divide(pixels * np.float64(opaque), alpha, out=np.zeros(pixels.shape), where=alpha > 0)
    colours = colours.clip(0, opaque)
    return (colours.round() if pixels.dtype.kind in "bu" else colours).astype(pixels.dtype)


def _scaled(picture: Picture, page: TiffPage) -> Picture:
    """1, 2 and 4 bits as 8, which is exact; other packed depths keep their numbers and say their limits."""
    pixels, alpha, bits = picture.pixels, picture.alpha, page.bitspersample
    if bits in (1, 2, 4):
        factor = np.uint8(255 // (2**bits - 1))
        alpha = None if alpha is None else alpha.astype(np.uint8) * factor
        return Picture(pixels.astype(np.uint8) * factor, picture.colour, alpha, type_limits(np.dtype(np.uint8)))
    limits = (0.0, float(_largest(page))) if pixels.dtype.kind == "u" and bits <= 16 else type_limits(pixels.dtype)
    picture = Picture(pixels, picture.colour, alpha, limits)
    if alpha is not None and float(_largest(page)) != picture.alpha_limit:
        full = (alpha * (picture.alpha_limit / _largest(page))).round().astype(alpha.dtype)
        return Picture(pixels, picture.colour, full, limits)
    return picture


def _of_palette(indices: Array, table: Array) -> Picture:
    """Colours of a table [3, N] of 16 bits; 8 where they say the same."""
    if table.ndim != 2 or table.shape[0] != 3 or int(indices.max()) >= table.shape[1]:
        raise ImageError("TIFF whose palette has too few colours")
    low, high = table & 255, table >> 8
    if not high.any():  # of writers who took 8 bits for 16
        table = low.astype(np.uint8)
    elif ((low == 0) | (low == high)).all():
        table = high.astype(np.uint8)
    pixels = table.T[indices.astype(np.intp)]
    return Picture(np.ascontiguousarray(pixels), True, limits=type_limits(pixels.dtype))


def _is_usual(page: TiffPage, tag: int, usual: tuple[float, ...]) -> bool:
    """Whether a tag of fractions is missing, which means its usual value, or has it."""
    found = page.tags.valueof(tag)
    if found is None:
        return True
    return len(found) == 2 * len(usual) and np.allclose(np.divide(found[::2], found[1::2]), usual, atol=1e-6)


def _name(photometric: int) -> str:
    """ "CFA" of the interpretation 32803."""
    return str(getattr(photometric, "name", photometric))


def _largest(page: TiffPage) -> int:
    """The largest unsigned number of the page's depth; 1 of floating point."""
    return 1 if np.dtype(page.dtype).kind == "f" else 2 ** int(page.bitspersample) - 1

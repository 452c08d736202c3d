"""Compressed frames of DICOM files that pydicom's own packages leave out, decoded by imagecodecs.

The module has the form of pydicom's decoder plugins: `is_available`, `DECODER_DEPENDENCIES` and a function for a frame.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.pixels.common import PhotometricInterpretation as PI
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

from munit_fast.data.picture import ImageError

# HTJ2K is JPEG 2000 to OpenJPEG, which refuses what is cut; imagecodecs' own decoder of it does not.
DECODERS: dict[uid.UID, tuple[str, Callable[..., Any]]] = {
    uid.JPEGExtended12Bit: ("JPEG8", imagecodecs.jpeg8_decode),
    uid.JPEGLossless: ("JPEG8", imagecodecs.jpeg8_decode),
    uid.JPEGLosslessSV1: ("JPEG8", imagecodecs.jpeg8_decode),
    uid.JPEGLSLossless: ("JPEGLS", imagecodecs.jpegls_decode),
    uid.JPEGLSNearLossless: ("JPEGLS", imagecodecs.jpegls_decode),
    uid.JPEG2000Lossless: ("JPEG2K", imagecodecs.jpeg2k_decode),
    uid.JPEG2000: ("JPEG2K", imagecodecs.jpeg2k_decode),
    uid.HTJ2KLossless: ("JPEG2K", imagecodecs.jpeg2k_decode),
    uid.HTJ2KLosslessRPCL: ("JPEG2K", imagecodecs.jpeg2k_decode),
    uid.HTJ2K: ("JPEG2K", imagecodecs.jpeg2k_decode),
}
DECODER_DEPENDENCIES = dict.fromkeys(DECODERS, ("numpy", "imagecodecs"))


def is_available(syntax: str) -> bool:
    """Whether this build of imagecodecs has the decoder of a transfer syntax."""
    name, _ = DECODERS.get(uid.UID(syntax), ("", None))
    return bool(name) and bool(getattr(getattr(imagecodecs, name, None), "available", False))


def register() -> None:
    """Let pydicom try imagecodecs for these transfer syntaxes, after the packages that it knows itself."""
    for syntax in DECODERS:
        with suppress(ValueError):  # it has been told
            get_decoder(syntax).add_plugin("imagecodecs", (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame in the range and colours of its codestream; `runner` is told its width in bits and its layout.

    Raises:
        ImageError: Its size is not the one that the file states.
    """
    shape = (runner.rows, runner.columns, *((runner.samples_per_pixel,) if runner.samples_per_pixel > 1 else ()))
    name, decode = DECODERS[runner.transfer_syntax]
    options: dict[str, Any] = {}
    if name == "JPEG8":
        if not source.rstrip(b"\0").endswith(b"\xff\xd9"):  # libjpeg makes up what is missing
            raise ImageError("a frame that ends too early")
        # The colours stay as they are stored: pydicom converts them where the file says so.
        options = {"colorspace": "RGB", "outcolorspace": "RGB"} if len(shape) == 3 else {}
    _check_stated_size(source, shape)
    frame = np.asarray(decode(source, **options))
    if frame.shape != shape:
        raise ImageError(f"a frame of shape {list(frame.shape)} where the file states {list(shape)}")
    runner.set_option("bits_allocated", frame.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    if runner.photometric_interpretation in (PI.YBR_ICT, PI.YBR_RCT):
        runner.set_option("photometric_interpretation", PI.RGB)
    return frame.tobytes()


def _check_stated_size(source: bytes, shape: tuple[int, ...]) -> None:
    """Raise ImageError where a codestream states another size, before anything is allocated for it."""
    if source[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: the marker SIZ comes first
        right, bottom, left, top = struct.unpack(">4I", source[8:24])
        stated = (bottom - top, right - left)
    else:
        stated = _start_of_frame(source)
    if stated != shape[:2]:
        raise ImageError(f"a frame of {stated[1]}x{stated[0]} where the file states {shape[1]}x{shape[0]}")


def _start_of_frame(source: bytes) -> tuple[int, int]:
    """Height and width of a JPEG or JPEG-LS, from the first of its segments that states them."""
    at = 2
    while at + 9 <= len(source) and source[at] == 0xFF:
        marker = source[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack(">HH", source[at + 5 : at + 9])
            return height, width
        at += 1 if marker == 0xFF else 2 + int.from_bytes(source[at + 2 : at + 4], "big")
    raise ImageError("a frame without a header")

"""How a kernel is launched: on the right device, with sizes handed over in a form that keeps accesses 16 bytes wide."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import direct

MAX_SAMPLE = 2**30
"""Elements of one sample, padding included: offsets inside a sample are 32-bit, and a split may overhang its end."""

MAX_BLOCKS = 65535
"""Samples, and channels: they are the second and third axis of a grid, and some tiles have one channel."""

MAX_PLANES = 2**30
"""Samples × channels: the first axis of a grid, and 32-bit indices of statistics."""


def run(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **meta: Any) -> None:
    """Launch a kernel on the current stream of a device. Tests replace this function to see what would be launched.

    Args:
        kernel: a triton.jit function.
        grid: its programs; with a 0 in it nothing is launched.
        device: of the tensors.
        *args: its arguments.
        **meta: its constants and launch options.
    """
    if 0 in grid:
        return
    if device.type != "cuda" or device.index is None:
        kernel[grid](*args, **meta)
    elif device.index == torch.cuda.current_device():
        direct.launch(kernel, grid, device.index, args, meta)
    else:
        with torch.cuda.device(device):
            direct.launch(kernel, grid, device.index, args, meta)


def run_length(size: int) -> int:
    """The largest power of two, up to 16, that divides `size`.

    A kernel takes `size // run_length` and the run length as a constant, so that the compiler sees the divisibility
    that wide accesses need. Triton's own specialisation knows only multiples of 16, and would compile a variant for
    each of the other sizes that happens to be one; 8 channels of bf16 are 16 bytes too.
    """
    return min(size & -size, 16) if size else 16


def check_layout(name: str, x: Tensor, channels_last: bool) -> None:
    """Raise unless x has the layout that the kernel is about to assume.

    Args:
        name: names x in the message.
        x: [N, C, H, W].
        channels_last: the layout.

    Raises:
        ValueError: x has another layout.
    """
    if not x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format):
        wanted = "channels_last" if channels_last else "contiguous"
        raise ValueError(f"{name} must be {wanted}, as x is; got shape {tuple(x.shape)} with strides {x.stride()}")


class Window(NamedTuple):
    """The strides of a window in a larger tensor, in runs of `run` elements; run 0: there is none, or it is dense."""

    image: int = 0
    plane: int = 0
    row: int = 0
    run: int = 0


def window(name: str, x: Tensor | None, channels_last: bool) -> Window:
    """How a kernel finds the rows of x.

    Args:
        name: names x in the message.
        x: [N, C, H, W], whose pixels are dense in the given layout; or None.
        channels_last: the layout.

    Raises:
        ValueError: the pixels of a row are not dense.
    """
    if x is None or x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format):
        return Window()
    pixel, channel = (x.shape[1], 1) if channels_last else (1, x.stride(1))
    if (x.shape[3] > 1 and x.stride(3) != pixel) or (x.shape[1] > 1 and x.stride(1) != channel):
        check_layout(name, x, channels_last)
    plane = 0 if channels_last else x.stride(1)
    run = min(run_length(x.stride(0)), run_length(plane), run_length(x.stride(2)))
    return Window(x.stride(0) // run, plane // run, x.stride(2) // run, run)


def unsupported_size_reason(samples: int, channels: int, sample: int) -> str | None:
    """Which of x's sizes is beyond a launch; None if none is.

    Args:
        samples: N.
        channels: C.
        sample: elements of one sample, padding included.
    """
    if samples > MAX_BLOCKS:
        return f"it serves at most {MAX_BLOCKS} samples; x has {samples}"
    if channels > MAX_BLOCKS:
        return f"it serves at most {MAX_BLOCKS} channels; x has {channels}"
    if samples * channels > MAX_PLANES:
        return f"it serves at most 2^30 planes; x has {samples} samples of {channels}"
    if sample > MAX_SAMPLE:
        return f"a sample must have at most 2^30 elements, padding included; got {sample}"
    return None


def check_size(samples: int, channels: int, sample: int) -> None:
    """Raise ValueError if there is an `unsupported_size_reason`.

    Args:
        samples: N.
        channels: C.
        sample: elements of one sample, padding included.

    Raises:
        ValueError: a size is beyond a launch.
    """
    if reason := unsupported_size_reason(samples, channels, sample):
        raise ValueError(reason)


def dense_rows(parameter: Tensor | None) -> Tensor | None:
    """A parameter [P] or [N, P] whose rows are runs of memory, as a kernel reads them; a copy where they are not."""
    if parameter is None or parameter.stride(-1) == 1 or parameter.shape[-1] == 1:
        return parameter
    return parameter.contiguous()


def row_stride(parameter: Tensor | None) -> int:
    """Elements from one sample's row of a parameter [N, P] to the next's; 0 for [P], which all samples share."""
    return parameter.stride(0) if parameter is not None and parameter.dim() == 2 else 0


def entries(parameter: Tensor | None) -> int:
    """The entries of a row of a parameter [P] or [N, P]; 0 without one."""
    return 0 if parameter is None else parameter.shape[-1]

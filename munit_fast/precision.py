"""Mixed precision: which dtype `--amp` means on a device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from munit_fast import native

AMP = ("auto", "bf16", "fp16", "off")


def bf16_hardware(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # The compiled part lists what it can run; it has no such list on processors without AVX-512 bfloat16.
    return native.module is not None and "avx512_bf16" in native.module.available_isas()


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of torch.autocast, or None for full precision. "auto": bf16 where the hardware has it, else off.

    Raises ValueError for an unknown name.
    """
    if amp not in AMP:
        raise ValueError(f"amp must be one of {', '.join(AMP)}; got {amp!r}")
    if amp == "auto":
        amp = "bf16" if bf16_hardware(device) else "off"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """torch.autocast to `dtype`, or nothing for None."""
    if dtype is None:
        return nullcontext()
    # Its cache would keep tensors of a graph's memory beyond the capture.
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return torch.autocast(device.type, dtype, cache_enabled=not capturing)

"""The Triton kernels, for NVIDIA and AMD GPUs: plain functions from tensors to tensors.

`epilogue_forward` and `epilogue_backward` do what stands between two convolutions (with `statistics` before a norm),
`losses` the reconstruction and adversarial losses; each is held to its namesake in `munit_fast.reference`. `device`
has the arithmetic that kernels share, `configs` their tile sizes, `launch` how they are started. Nothing here knows
about autograd, modules or the dispatcher, and importing this package does not import Triton: ask `why_not` first.
"""

from __future__ import annotations

import functools
import importlib.util

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MIN_CAPABILITY = (7, 5)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run on tensors of this device and dtype, or None if they can."""
    if device.type != "cuda":
        return f"the Triton kernels run on CUDA and HIP devices, not on {device.type}"
    if dtype not in DTYPES:
        return f"the Triton kernels take {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}; got {dtype}"
    return _why_not_here(device.index)


@functools.cache
def _why_not_here(index: int | None) -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA or HIP device is visible"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.hip is None:
        capability = torch.cuda.get_device_capability(index)
        if capability < MIN_CAPABILITY:
            return f"Triton needs compute capability 7.5 or higher; this device has {capability[0]}.{capability[1]}"
    return None

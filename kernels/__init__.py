"""The Triton kernels, for NVIDIA and AMD GPUs: plain functions from tensors to tensors.

`epilogue_forward` and `epilogue_backward` do what stands between two convolutions (with `statistics` before a norm),
`losses` the reconstruction and adversarial losses; each is held to its namesake in `munit_fast.reference`.
`phase_border` corrects the border of an upsampling convolution. `device` has the arithmetic that kernels share,
`configs` their tile sizes, `launch` and `direct` how they are started, `probe` a launch that shows whether any can be.
Nothing here knows about autograd, modules or the dispatcher, the caller allocates the results, and importing this
package does not import Triton: ask `unsupported_reason` first.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MIN_CAPABILITY = (7, 5)


_failures: dict[int, str | None] = {}  # by device: why a kernel could not be launched


def unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run on tensors of this device and dtype, or None if they can.

    The first question about a device launches a kernel on it, which takes a moment. Nothing is launched while a CUDA
    graph is being captured: a device that is first asked about then gets the benefit of the doubt.
    """
    if device.type != "cuda":
        return f"the Triton kernels run on CUDA and HIP devices, not on {device.type}"
    if dtype not in DTYPES:
        return f"the Triton kernels take {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}; got {dtype}"
    if not torch.cuda.is_available():
        return "no CUDA or HIP device is visible"
    index = torch.cuda.current_device() if device.index is None else device.index
    return _device_unsupported_reason(index) or _launch_failure(index)


@functools.cache
def _device_unsupported_reason(index: int) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.hip is None:
        capability = torch.cuda.get_device_capability(index)
        if capability < MIN_CAPABILITY:
            return f"Triton needs compute capability 7.5 or higher; this device has {capability[0]}.{capability[1]}"
    return None


def _launch_failure(index: int) -> str | None:
    """What Triton misses only when it launches: a C compiler, a driver that takes its code, a folder for its cache."""
    if index not in _failures:
        capturing = torch.cuda.is_current_stream_capturing()
        failure = _failure(index, launching=not capturing)
        if failure is None and capturing:
            return None
        _failures[index] = failure
    return _failures[index]


def _failure(index: int, launching: bool) -> str | None:
    try:
        from . import probe

        probe.load_driver()
        if launching:
            probe.launch_once(torch.device("cuda", index))
    except subprocess.CalledProcessError as error:
        said = f"{error.cmd[0]} ended with status {error.returncode}, its message is above"
    except Exception as error:  # Triton's, its driver's, the file system's
        said = str(error).strip().partition("\n")[0] or type(error).__name__
    else:
        return None
    return f"Triton cannot launch a kernel on this device: {said}"

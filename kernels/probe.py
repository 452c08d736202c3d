"""A launch that shows whether Triton works on a device: its C compiler, driver and cache folder included."""

from __future__ import annotations

import torch
import triton

from . import launch


@triton.jit
def probe_kernel(number):
    """Grid (1). Does nothing, and takes no tensor: one made under a FakeTensorMode could not be handed over."""


def load_driver() -> None:
    """Make Triton load its driver, which it builds with a C compiler where its cache does not have it."""
    triton.runtime.driver.active.get_current_target()


def launch_once(device: torch.device) -> None:
    """Launch a kernel on `device`. Raises what Triton, the compilers that it starts or the driver raise."""
    launch.run(probe_kernel, (1,), device, 1, num_warps=1)

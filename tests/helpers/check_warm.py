"""Compiles kernels of an iteration ahead, or launches them over a stub of CUDA's driver; what was compiled, as JSON.

    python check_warm.py warm|launch

A process of its own, since it replaces Triton's driver; the cache is that of TRITON_CACHE_DIR.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests, when run as a script

import torch
import triton
from torch import Tensor

from helpers.compile_kernels import TARGETS, Driver
from helpers.trainers import hyperparameters
from munit_fast.benchmarks.stub_driver import DEVICE, StubDriver
from munit_fast.kernels import launch
from munit_fast.train import warm
from munit_fast.train.trace import TritonLaunch, trace_iteration

MEMORY = torch.zeros(4096, dtype=torch.uint8)


def some(launches: list[TritonLaunch]) -> list[TritonLaunch]:
    """All but most of the epilogue's, which take long to compile."""
    names = [one.kernel.__name__ for one in launches]
    return [one for i, one in enumerate(launches) if "epilogue" not in names[i] or names[:i].count(names[i]) < 2]


def on_the_host(argument: Any) -> Any:
    """As far off an aligned address as on the GPU, whose allocator aligns to 512 bytes."""
    if isinstance(argument, tuple):
        return tuple(map(on_the_host, argument))
    if isinstance(argument, Tensor):
        start = -MEMORY.data_ptr() % 512 + argument.storage_offset() * argument.element_size() % 512
        return MEMORY[start : start + 64].view(argument.dtype)
    return argument


def main(what: str) -> None:
    launches = some(trace_iteration(hyperparameters()).triton)
    if what == "warm":
        triton.runtime.driver.set_active(Driver(TARGETS["sm_90"]))
        reported: list[tuple[int, int]] = []
        done = warm.warm(launches, lambda *counts: reported.append(counts))
        print(json.dumps({"kernels": done.kernels, "compiled": done.compiled, "reported": reported}))
        return
    driver = StubDriver()
    with driver.active(), warm._compilations() as compiled:
        for kernel, grid, arguments, meta in launches:
            launch.run(kernel, grid, DEVICE, *map(on_the_host, arguments), **meta)
        kernels = {one.kernel for one in launches}
        loaded = sum(len(kernel.device_caches[DEVICE.index][0]) for kernel in kernels)
    print(json.dumps({"kernels": loaded, "compiled": len(compiled), "launches": len(launches)}))


if __name__ == "__main__":
    main(sys.argv[1])

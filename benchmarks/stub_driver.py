"""Triton's own launcher over a CUDA driver without a GPU: what a launch costs the host, and what it hands over."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

DEVICE = torch.device("cuda", 0)
"""What kernels are launched on; their tensors are the CPU's."""

_SOURCE = Path(__file__).with_name("stub_libcuda.c")
_NAME = "libcuda.so.1"
_SIZES = {"i1": 1, "u1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8, "fp32": 4}


def unsupported_reason() -> str | None:
    """Why this process can have no stub driver; None if it can."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        return f"torch {torch.__version__} was built for GPUs and would take the stub for a driver; use its CPU build"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if _compiler() is None:
        return "there is no C compiler: install gcc or clang, or set CC"
    return None


def _compiler() -> str | None:
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")  # as Triton looks for it


class StubDriver:
    """Triton's CUDA driver over a `libcuda.so.1` whose functions return success, for compute capability 9.0.

    That library stays in the process: whoever loads libcuda.so.1 later gets it. Raises RuntimeError where there is an
    `unsupported_reason`.
    """

    def __init__(self) -> None:
        if reason := unsupported_reason():
            raise RuntimeError(reason)
        driver = importlib.import_module("triton.backends.nvidia.driver")
        # Kept as long as this: Triton 3.6 links the launcher of each signature.
        self._folder = tempfile.TemporaryDirectory(prefix="munit-fast-")
        path = str(Path(self._folder.name, _NAME))
        command = [str(_compiler()), "-O2", "-shared", "-fPIC", f"-Wl,-soname,{_NAME}", str(_SOURCE), "-o", path]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(path)
        with mock.patch.dict(os.environ, {"TRITON_LIBCUDA_PATH": self._folder.name}):
            self._driver = driver.CudaDriver()
        self._library.stub_stop.restype = ctypes.c_uint64
        self._driver.get_current_device = lambda: DEVICE.index
        self._driver.get_current_stream = lambda device: 0
        self._driver.get_device_capability = lambda device: (9, 0)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, Triton launches through this driver, and its device is torch's current one."""
        runtime = importlib.import_module("triton.runtime")
        current = mock.patch.object(torch.cuda, "current_device", lambda: DEVICE.index)  # noqa: PT008, a Mock is slow
        with mock.patch.object(runtime.driver, "_active", self._driver), current:
            yield

    def declare(self, compiled: Any) -> None:
        """Tell the driver the parameters of a compiled kernel, which `kept` needs; it must have been launched."""
        sizes = bytes(_parameter_sizes(tuple(compiled.src.signature.values())))
        self._library.stub_set_parameters(ctypes.c_uint64(compiled.function), len(sizes), sizes)

    def kept(self, step: Callable[[], object]) -> bytes:
        """What the launches of a step hand over: function, grid, block, shared memory, stream and parameters of each.

        The parameters of kernels that were not declared are left out.
        """
        self._library.stub_start()
        try:
            step()
        finally:
            content = ctypes.POINTER(ctypes.c_char)()
            size = self._library.stub_stop(ctypes.byref(content))
        return bytes(content[:size]) if size else b""


def _parameter_sizes(types: tuple[Any, ...]) -> Iterator[int]:
    for name in types:
        if isinstance(name, tuple):
            yield from _parameter_sizes(name)
        elif name != "constexpr":
            yield 8 if name.startswith("*") else _SIZES[name]

"""Contenders at the level of launches: what it costs the host to launch an iteration's Triton kernels, without a GPU.

The launcher and the arguments are real, the driver is a stub (`stub_driver`): the time is that of Python and of the
launcher, in which a GPU plays no part.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from munit_fast.benchmarks.cases import Case
from munit_fast.benchmarks.contenders import OURS, TRITON, Contender, Unavailable, Work
from munit_fast.benchmarks.stub_driver import DEVICE, StubDriver, unsupported_reason
from munit_fast.config import make_config
from munit_fast.kernels import launch
from munit_fast.train.trace import TritonLaunch, trace_iteration

_AMP = {"fp32": "off", "bf16": "bf16", "fp16": "fp16"}


def launch_contenders(case: Case, device: torch.device) -> list[Contender]:
    """The launches of an iteration by Triton's wrapper and by `kernels.launch`, which keeps compiled kernels.

    They are checked by what reaches the driver: the same functions with the same grids and parameters.
    """
    ways = {TRITON: _by_triton, OURS: _by_us}
    return [Contender(name, "channels_last", partial(_work, case, name == OURS, way)) for name, way in ways.items()]


def _by_triton(launches: Sequence[TritonLaunch]) -> None:
    for kernel, grid, arguments, meta in launches:
        kernel[grid](*arguments, **meta)


def _by_us(launches: Sequence[TritonLaunch]) -> None:
    for kernel, grid, arguments, meta in launches:
        launch.run(kernel, grid, DEVICE, *arguments, **meta)


@cache
def _driver() -> StubDriver:
    return StubDriver()


def _work(case: Case, ours: bool, way: Callable[[Sequence[TritonLaunch]], None]) -> Work:
    if reason := unsupported_reason():
        raise Unavailable(reason)
    driver, launches = _driver(), _launches(case)

    def step() -> list[Tensor]:
        with driver.active():
            way(launches)
        return []

    def numbers() -> list[Tensor]:
        with driver.active():
            for kernel, grid, arguments, meta in launches:
                driver.declare(kernel[grid](*arguments, **meta))
        step()  # compiled kernels are kept by the first launch
        return [torch.frombuffer(bytearray(driver.kept(step)), dtype=torch.uint8)]

    def verify() -> None:
        if ours:
            function = importlib.import_module("triton.runtime").JITFunction
            with mock.patch.object(function, "run", side_effect=RuntimeError("a launch went through Triton's")):
                step()

    return Work(step, numbers, verify=verify, launches=len(launches))


@cache
def _launches(case: Case) -> tuple[TritonLaunch, ...]:
    """Those of an iteration; the tensors are small ones of their own on the CPU."""
    config = make_config(
        {
            "batch_size": case.batch,
            "crop_image_height": case.side,
            "crop_image_width": case.side,
            "new_size": case.side,
            "gen": {"dim": case.channels},
            "dis": {"dim": case.channels},
        }
    )

    def on_the_host(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(on_the_host, argument))
        if isinstance(argument, Tensor):
            return torch.empty(1, dtype=argument.dtype)
        return argument

    traced = trace_iteration(config.hyperparameters(), amp=_AMP[case.dtype]).triton
    return tuple(t._replace(arguments=on_the_host(t.arguments)) for t in traced)

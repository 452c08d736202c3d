"""Timing in turns with quantiles over rounds; peak memory, kernel launches and operations of a step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Step = Callable[[], object]

_LONG_S = 20.0  # a step that takes as long is timed by itself and not run once more to find that out


@dataclass(frozen=True)
class Spread:
    """Seconds a call: the 20th, 50th and 80th percentile over rounds."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        """The percentiles of the rounds' times."""
        return cls(*(float(q) for q in np.quantile(seconds, (0.2, 0.5, 0.8))))


def interleaved(
    steps: Mapping[str, Step], device: torch.device, rounds: int, least_s: float, cold: bool = False
) -> dict[str, Spread]:
    """Time `steps` round by round, each in its turn, so that a busy machine slows all of them alike.

    Args:
        steps: By name.
        device: On a GPU the time is the device's, between events.
        rounds: Turns of each step.
        least_s: A turn repeats its step for about so many seconds and counts as the mean; a longer step runs once.
        cold: Whether the GPU's L2 cache is emptied before every call.

    Returns:
        Seconds a call by name.
    """
    repeats = {}
    for name, step in steps.items():
        begin = perf_counter()
        step()
        long = perf_counter() - begin > _LONG_S  # of itself: what is compiled was run before
        repeats[name] = 1 if long else max(1, int(least_s / max(_turn(step, device, 1, False), 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:  # none always follows the same other
            taken[name].append(_turn(steps[name], device, repeats[name], cold))
    return {name: Spread.of(seconds) for name, seconds in taken.items()}


def seconds_per_call(step: Step, device: torch.device, rounds: int = 9) -> float:
    """The median time of a call by itself."""
    step()
    return median(_turn(step, device, 1, False) for _ in range(rounds))


def _turn(step: Step, device: torch.device, repeats: int, cold: bool) -> float:
    """Seconds a call, over `repeats` calls."""
    if device.type != "cuda":
        start = perf_counter()
        for _ in range(repeats):
            step()
        return (perf_counter() - start) / repeats
    spans = []
    for _ in range(repeats if cold else 1):
        if cold:
            _flush(device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(1 if cold else repeats):
            step()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize(device)
    return sum(begin.elapsed_time(end) for begin, end in spans) / 1e3 / repeats


@cache
def _cache_filler(device: torch.device) -> torch.Tensor:
    size = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(max(2 * size, 2**27), dtype=torch.uint8, device=device)


def _flush(device: torch.device) -> None:
    _cache_filler(device).max()  # read, not written: dirty lines would be written back in the next kernel's time


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """The profiler of some builds writes two lines a start to the file descriptor."""
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


def peak_bytes(step: Step, device: torch.device) -> int:
    """The most that torch's allocator held for a step beyond what it held before; the step's result counts."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = step()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    with _stderr_silenced(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = step()
    del result
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def launches(step: Step, device: torch.device) -> int | None:
    """Kernels, copies and fills that a step puts on a GPU; None on the CPU, where nothing is launched."""
    if device.type != "cuda":
        return None
    with _stderr_silenced(), profile(activities=[ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize(device)
    events = recorded.profiler.kineto_results.events()
    return sum(event.device_type() == DeviceType.CUDA for event in events)


class _Flops(TorchDispatchMode):
    """Counts as torch.utils.flop_counter does; its own mode also follows modules, which autograd.grad forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        named = dict(zip((argument.name for argument in func._schema.arguments), args))
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        elif "conv_weight" in named:  # of munit_fast.ops.winograd: as the direct convolution that it replaces
            outputs = named["grad"] if "grad" in named else result[0]
            self.total += 2 * outputs.numel() * named["conv_weight"][0].numel()
        return result


def flops(step: Step) -> int:
    """Multiplications and additions of matrix products and (direct) convolutions in a step, as torch counts them."""
    with _Flops() as counter:
        step()
    return int(counter.total)

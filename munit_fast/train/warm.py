"""Compiles the Triton kernels of an iteration before the first one: side by side, and where it can be seen.

Triton compiles a kernel at its first launch, one after the other and in silence. What an iteration launches is known
without launching it (`trace`), so the kernels are compiled for the same arguments beforehand, in threads: most of that
time is spent in compiled code. They end in Triton's cache, from which every later process loads them.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from rich.text import Text

from munit_fast import kernels
from munit_fast.amp import Workload, amp_dtype, resolve
from munit_fast.config import Config
from munit_fast.kernels import configs, direct
from munit_fast.ops.backends import automatic
from munit_fast.train.progress import compilation_progress
from munit_fast.train.step_options import StepOptions
from munit_fast.train.trace import TritonLaunch, trace_iteration

_MOST_THREADS = 8  # more wait for one another: Triton's front end is Python


class Compiled(NamedTuple):
    """What came of compiling ahead.

    Attributes:
        kernels: all that an iteration launches, each for one kind of arguments.
        compiled: those that were in no cache.
        seconds: that it took.
    """

    kernels: int
    compiled: int
    seconds: float

    def __str__(self) -> str:
        how = f", {self.compiled} of them compiled in {self.seconds:.0f} s" if self.compiled else ""
        return f"{self.kernels} kernels ready{how}"


def unsupported_reason(device: torch.device, amp: str, impl: str = "auto") -> str | None:
    """Why a training there launches no Triton kernels; None if it does.

    Args:
        device: where to train.
        amp: "bf16", "fp16" or "off".
        impl: the backend that is asked for.
    """
    dtype = amp_dtype(amp, device) or torch.float32
    if (reason := kernels.unsupported_reason(device, dtype)) is not None:
        return reason
    if impl == "auto":
        impl = automatic(device, dtype)
    return None if impl == "triton" else f"the backend is {impl}"


def compile_kernels(
    hyperparameters: Mapping[str, Any],
    trainer: str,
    amp: str,
    batch: int,
    device: torch.device,
    console: Console,
    checkpointing: bool = False,
) -> Compiled:
    """Compile what an iteration launches on a GPU, and print what came of it.

    Args:
        hyperparameters: the published configuration keys.
        trainer: "MUNIT" or "UNIT".
        amp: "bf16", "fp16" or "off".
        batch: images of each domain on this device.
        device: a CUDA device that Triton serves.
        console: for a bar, in a terminal, and the result.
        checkpointing: whether the backward computes activations again.
    """
    name = torch.cuda.get_device_name(device)
    tuned = configs.tuned(device)
    with torch.random.fork_rng(devices=[]), patch.object(configs, "tuned", lambda _: tuned):
        arguments = (hyperparameters, trainer, amp, batch, checkpointing)
        # Both kinds of iterations: with the terms that not every iteration computes, and without.
        iterations = {1, StepOptions(hyperparameters, trainer).terms.period(hyperparameters)}
        launches = [launch for i in sorted(iterations) for launch in trace_iteration(*arguments, i).triton]
    with compilation_progress(console, name) as report:
        done = warm(launches, report, lambda: torch.cuda.set_device(device))
    console.print(Text(f"{name}: {done}"), soft_wrap=True)
    return done


def warm_up(cfg: Config, trainer: str, amp: str, device: torch.device, console: Console) -> Compiled:
    """`compile_kernels` for a training with this configuration: `munit-fast doctor --warm`.

    Args:
        cfg: the configuration.
        trainer: "MUNIT" or "UNIT".
        amp: one of `munit_fast.amp.AMP`.
        device: where it will run.
        console: as in `compile_kernels`.

    Raises:
        RuntimeError: no Triton kernel runs on the device.
    """
    batch = cfg.batch_size * cfg.accumulation
    amp = resolve(amp, device, Workload.of(cfg, batch, training=True)) if device.type == "cuda" else "off"
    if (reason := unsupported_reason(device, amp)) is not None:
        raise RuntimeError(f"--warm needs the GPU that will train, with Triton: {reason}")
    return compile_kernels(cfg.hyperparameters(), trainer, amp, batch, device, console)


def warm(
    launches: Sequence[TritonLaunch],
    report: Callable[[int, int], None] = lambda done, total: None,
    begin_thread: Callable[[], None] = lambda: None,
    threads: int | None = None,
) -> Compiled:
    """Compile the kernels of launches for the current device, unless Triton's cache has them.

    Args:
        launches: as `trace_iteration` gives them; none is launched.
        report: called with the kernels that are done and all of them.
        begin_thread: called by each thread; makes the device its current one.
        threads: how many; None: one for each core, up to 8.

    Raises:
        Exception: Triton's, of the first kernel that could not be compiled.
    """
    begin, work = time.monotonic(), distinct(launches)
    threads = threads or min(_cores(), _MOST_THREADS)
    report(0, len(work))
    with _compilations() as compiled, ThreadPoolExecutor(threads, initializer=begin_thread) as pool:
        futures = [pool.submit(_compile, launch) for launch in work]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                report(done, len(work))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Compiled(len(work), len(compiled), time.monotonic() - begin)


def distinct(launches: Sequence[TritonLaunch]) -> list[TritonLaunch]:
    """One of those launches for which Triton compiles the same, in the order of the first."""
    found: dict[Any, TritonLaunch] = {}
    for launch in launches:
        found.setdefault(direct.properties(launch.kernel, launch.arguments, launch.meta), launch)
    return list(found.values())


def _compile(launch: TritonLaunch) -> None:
    launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.meta)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _compilations() -> Iterator[list[str]]:
    """Yields a list to which the hash of each kernel is added that is compiled, not loaded from the cache."""
    knobs: Any = importlib.import_module("triton").knobs.compilation
    before, found, lock = knobs.listener, [], threading.Lock()

    def listen(**info: Any) -> None:
        with lock:
            if not info["cache_hit"]:
                found.append(str(info["metadata"]["hash"]))
            if before is not None:
                before(**info)

    knobs.listener = listen
    try:
        yield found
    finally:
        knobs.listener = before

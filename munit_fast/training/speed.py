"""How fast a configuration trains on this machine, and with how many threads it trains fastest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from munit_fast.config import Config
from munit_fast.graph import WARM_UP
from munit_fast.precision import Workload

_WORK_FOR_ALL = 200_000_000  # multiplications of a residual block's convolution, from which on every thread is of use


def random_iterations(make_trainer: Callable[[], Any], cfg: Config, device: torch.device) -> Callable[[], None]:
    """Iterations of a new trainer on random images of the configuration's sizes, one a call; it is warm.

    On a GPU the last of the first ones captures a graph: what is measured then is what will train.
    """
    size = (cfg.crop_image_height, cfg.crop_image_width)
    hp = cfg.hyperparameters()
    trainer = make_trainer()
    x_a, x_b = (
        torch.rand(cfg.batch_size, channels, *size, device=device) * 2 - 1
        for channels in (cfg.input_dim_a, cfg.input_dim_b)
    )

    def iterate() -> None:
        trainer.update(x_a, x_b, hp)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(WARM_UP + 1):
        iterate()
    return iterate


def _speed(iterate: Callable[[], None], seconds: float) -> float:
    """Iterations a second, over at least one and at least `seconds`."""
    begin, count = time.monotonic(), 0
    while not count or time.monotonic() - begin < seconds:
        iterate()
        count += 1
    return count / (time.monotonic() - begin)


def measure_speed(make_trainer: Callable[[], Any], cfg: Config, device: torch.device, seconds: float = 5.0) -> float:
    """Training iterations a second, as torch's threads are. The process's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        return _speed(random_iterations(make_trainer, cfg, device), seconds)


def threads_to_try(cfg: Config, device: torch.device) -> list[int]:
    """The numbers of threads that may train fastest, all of them first; one where there is nothing to choose.

    Small networks gain little from a second thread, and lose by it where other programs share the cores. Where
    OMP_NUM_THREADS is set it decides, and it is torchrun's way to divide the cores.
    """
    every = torch.get_num_threads()
    load = Workload.of(cfg, cfg.batch_size, training=True)
    large = 9 * load.channels**2 * load.batch * load.height * load.width >= _WORK_FOR_ALL
    if device.type != "cpu" or large or "OMP_NUM_THREADS" in os.environ:
        return [every]
    tried = [every]
    while tried[-1] > 1:
        tried.append(max(1, tried[-1] // 4))
    return tried


def choose_threads(
    make_trainer: Callable[[], Any], cfg: Config, device: torch.device, console: Console, seconds: float = 1.0
) -> float | None:
    """Set torch's threads to what trains fastest here and now; returns its iterations a second.

    None, and nothing is measured, where there is nothing to choose.
    """
    tried = threads_to_try(cfg, device)
    if len(tried) == 1:
        return None
    speeds = {}
    with torch.random.fork_rng(devices=[]):
        iterate = random_iterations(make_trainer, cfg, device)
        for threads in tried:
            torch.set_num_threads(threads)
            iterate()  # the threads begin, and the convolutions choose anew
            speeds[threads] = _speed(iterate, seconds)
    best = max(speeds, key=lambda threads: speeds[threads])
    torch.set_num_threads(best)
    measured = ", ".join(f"{speed:.2f} it/s with {threads}" for threads, speed in speeds.items())
    console.print(f"threads: {measured}; using {best}")
    return speeds[best]

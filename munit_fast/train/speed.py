"""How fast a configuration trains on this machine, and with how many threads it trains fastest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console

from munit_fast.amp import Workload, convolution
from munit_fast.config import Config
from munit_fast.train.cuda_graph import WARM_UP

_LARGE = 200_000_000  # multiplications of a residual block's convolution, from which on it stands for the iteration
_ROUNDS = 6
_WORTH = 1.1  # what fewer threads must gain: one measurement says no more
_WORTH_DAYS = 1.5  # where a run lasts days: what else runs now may end before


def random_iterations(make_trainer: Callable[[], Any], cfg: Config, device: torch.device) -> Callable[[], None]:
    """Iterations of a new trainer on random images of the configuration's sizes, one a call; it is warm.

    On a GPU the last of the first ones captures a graph: what is measured then is what will train.

    Args:
        make_trainer: makes the trainer, on `device`.
        cfg: batch size, crop and channels.
        device: where it trains.
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
    """Training iterations a second, as torch's threads are. The process's random numbers stay as they are.

    Args:
        make_trainer: makes the trainer, on `device`.
        cfg: batch size, crop and channels.
        device: where it trains.
        seconds: about how long to measure.
    """
    with torch.random.fork_rng(devices=[]):
        return _speed(random_iterations(make_trainer, cfg, device), seconds)


def threads_to_try(device: torch.device) -> list[int]:
    """The numbers of threads that may train fastest, all of them first; one where there is nothing to choose.

    Where OMP_NUM_THREADS is set it decides, and it is torchrun's way to divide the cores.
    """
    tried = [torch.get_num_threads()]
    while tried[-1] > 1 and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        tried.append(max(1, tried[-1] // 4))
    return tried


def choose_threads(
    make_trainer: Callable[[], Any], cfg: Config, device: torch.device, console: Console, seconds: float = 1.0
) -> float | None:
    """Set torch's threads to what trains fastest here and now.

    Small networks gain little from a second thread, and lose by it where other programs share the cores: their
    iterations are timed. Large ones spend their time in convolutions, of which one is timed.

    Args:
        make_trainer: makes the trainer, on `device`.
        cfg: the configuration.
        device: where it trains.
        console: gets a line with what was measured.
        seconds: about how long to measure each number of threads.

    Returns:
        The iterations a second where those were timed, else None.
    """
    tried = threads_to_try(device)
    if len(tried) == 1:
        return None
    load = Workload.of(cfg, cfg.batch_size, training=True)
    large = 9 * load.channels**2 * load.batch * load.height * load.width >= _LARGE
    with torch.random.fork_rng(devices=[]):
        if large:
            speeds = _speeds_of_a_convolution(load, tried)
        else:
            speeds = _speeds_of_iterations(random_iterations(make_trainer, cfg, device), tried, seconds)
    worth = _WORTH_DAYS if large else _WORTH
    best = max(tried, key=lambda threads: speeds[threads] * (worth if threads == tried[0] else 1))
    torch.set_num_threads(best)
    what = "convolutions/s" if large else "it/s"
    measured = ", ".join(f"{speed:.2f} {what} with {threads}" for threads, speed in speeds.items())
    console.print(f"threads: {measured}; using {best}")
    return None if large else speeds[best]


def _speeds_of_iterations(iterate: Callable[[], None], tried: list[int], seconds: float) -> dict[int, float]:
    speeds = {}
    for threads in tried:
        torch.set_num_threads(threads)
        iterate()  # the threads begin, and the convolutions choose anew
        speeds[threads] = _speed(iterate, seconds)
    return speeds


def _speeds_of_a_convolution(load: Workload, tried: list[int]) -> dict[int, float]:
    """The median of some rounds, in turns."""
    run = convolution(load, torch.float32, _LARGE)
    times: dict[int, list[float]] = {threads: [] for threads in tried}
    for _ in range(_ROUNDS):
        for threads in tried:
            torch.set_num_threads(threads)
            begin = time.monotonic()
            with torch.no_grad():
                run()
            times[threads].append(time.monotonic() - begin)
    warm = {threads: found[1:] for threads, found in times.items()}
    return {threads: 1 / max(median(found), 1e-9) for threads, found in warm.items()}

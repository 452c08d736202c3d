"""The noise of a run's iterations: a function of seed, iteration and the image's place in the global batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from munit_fast.train.trainer import TrainingNoise


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What is drawn in the block leaves every random generator of the process as it was: torch's, NumPy's, Python's.

    Args:
        device: Whose generator is kept beside the CPU's.
    """
    cpu, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
        if of_device is not None:
            torch.cuda.set_rng_state(of_device, device)


def iteration_seed(seed: int, iteration: int, place: int = 0) -> int:
    """The seed of the noise of one image.

    It does not depend on what ran before, nor on how many processes and parts the batch is divided into.

    Args:
        seed: of the run.
        iteration: its number.
        place: of the image in the iteration's global batch.
    """
    return int(np.random.SeedSequence([seed, iteration, place]).generate_state(1, np.uint64)[0] >> 1)


def iteration_noise(trainer: Any, x_a: Tensor, x_b: Tensor, seed: int, iteration: int, first: int) -> TrainingNoise:
    """The noise of an iteration, drawn on `trainer.noise_device`.

    Args:
        trainer: the trainer.
        x_a: images of domain A, [N, C, H, W]; only the shape matters.
        x_b: images of domain B.
        seed: of the run.
        iteration: its number.
        first: place of the first image in the global batch.

    Returns:
        The noise of the discriminator and of the generator update, as `draw_noise` returns it.
    """
    draws, generator = [], torch.Generator(trainer.noise_device)
    for i in range(x_a.shape[0]):
        generator.manual_seed(iteration_seed(seed, iteration, first + i))
        draws.append(trainer.draw_noise(x_a[i : i + 1], x_b[i : i + 1], generator))
    of_dis, of_gen = ([torch.cat(parts) for parts in zip(*(draw[kind] for draw in draws))] for kind in (0, 1))
    return of_dis, of_gen

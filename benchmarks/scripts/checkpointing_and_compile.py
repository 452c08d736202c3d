"""What --checkpointing saves, and what torch.compile does around the fused networks: numbers of the documentation.

    python benchmarks/scripts/checkpointing_and_compile.py memory --side 1024 [--checkpointing]
    python benchmarks/scripts/checkpointing_and_compile.py compile --side 128 --dim 32 --amp off

memory: the most that torch's allocator held at once in a first iteration: gradients and moments, not parameters.
compile: CPU seconds of an iteration with the discriminators compiled and without, taking turns, on one thread.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import process_time
from typing import Any

import torch

from munit_fast import MUNIT_Trainer, make_config
from munit_fast.benchmarks.timing import peak_bytes

CPU = torch.device("cpu")


def trainer_and_images(side: int, dim: int, **options: Any) -> tuple[MUNIT_Trainer, Any, Any]:
    sizes = {"crop_image_height": side, "crop_image_width": side, "display_size": 1, "ema_half_life": 0}
    hp = make_config(sizes | {"gen": {"dim": dim}, "dis": {"dim": dim}}).hyperparameters()
    torch.manual_seed(0)
    return MUNIT_Trainer(hp, **options), hp, torch.rand(2, 1, 3, side, side) * 2 - 1


def memory(side: int, dim: int, amp: str, checkpointing: bool) -> None:
    trainer, hp, images = trainer_and_images(side, dim, amp=amp, checkpointing=checkpointing)
    peak = peak_bytes(lambda: trainer.update(*images, hp), CPU)
    print(f"{side}², dim {dim}, {amp}, checkpointing {checkpointing}: {peak / 1e6:.0f} MB")


def compiled(side: int, dim: int, amp: str, rounds: int = 7) -> None:
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"plain": [], "compiled discriminators": []}
    trainers = {}
    for name in seconds:
        trainer, hp, images = trainers[name] = trainer_and_images(side, dim, amp=amp)
        if name != "plain":
            trainer.dis_a.compile(dynamic=False)
            trainer.dis_b.compile(dynamic=False)
        for _ in range(2):
            trainer.update(*images, hp)
    for _ in range(rounds):
        for name, (trainer, hp, images) in trainers.items():
            begin = process_time()
            trainer.update(*images, hp)
            seconds[name].append(process_time() - begin)
    for name, values in seconds.items():
        print(f"{side}², dim {dim}, {amp}, {name}: {median(values):.3f} s ({min(values):.3f} – {max(values):.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("memory", "compile"))
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--amp", default="bf16")
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "memory":
        memory(arguments.side, arguments.dim, arguments.amp, arguments.checkpointing)
    else:
        compiled(arguments.side, arguments.dim, arguments.amp)


if __name__ == "__main__":
    main()

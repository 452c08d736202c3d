"""What --checkpointing saves, and what torch.compile does to the networks: numbers of the documentation.

    python benchmarks/scripts/checkpointing_and_compile.py memory --side 1024 [--checkpointing]
    python benchmarks/scripts/checkpointing_and_compile.py compile --side 64 --dim 16 --n_res 2 --amp off [--reference]

memory: the most that torch's allocator held at once in a first iteration: gradients and moments, not parameters.
compile: CPU seconds of an iteration with every network compiled and without, taking turns, on one thread, and their
ratio to the fused networks'; with --reference the reference networks, too. To compile takes minutes.
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


def trainer_and_images(side: int, dim: int, n_res: int, **options: Any) -> tuple[MUNIT_Trainer, Any, Any]:
    sizes = {"crop_image_height": side, "crop_image_width": side, "display_size": 1, "ema_half_life": 0}
    hp = make_config(sizes | {"gen": {"dim": dim, "n_res": n_res}, "dis": {"dim": dim}}).hyperparameters()
    torch.manual_seed(0)
    return MUNIT_Trainer(hp, **options), hp, torch.rand(2, 1, 3, side, side) * 2 - 1


def memory(side: int, dim: int, n_res: int, amp: str, checkpointing: bool) -> None:
    trainer, hp, images = trainer_and_images(side, dim, n_res, amp=amp, checkpointing=checkpointing)
    peak = peak_bytes(lambda: trainer.update(*images, hp), CPU)
    print(f"{side}², dim {dim}, {amp}, checkpointing {checkpointing}: {peak / 1e6:.0f} MB")


def compile_networks(trainer: Any) -> None:
    """Compile what the losses call: `Module.compile` would compile `__call__`, which they go past."""
    encoders = ("encode",) if trainer.gen_a.impl == "reference" else ("content_of", "style_of", "encode")
    for net in (trainer.gen_a, trainer.gen_b, trainer.dis_a, trainer.dis_b):
        is_generator = net in (trainer.gen_a, trainer.gen_b)
        for name in (*encoders, "decode") if is_generator else ("calc_dis_loss", "calc_gen_loss"):
            setattr(net, name, torch.compile(getattr(net, name), fullgraph=True, dynamic=False))


def compiled(side: int, dim: int, n_res: int, amp: str, with_reference: bool, rounds: int = 9) -> None:
    torch.set_num_threads(1)
    trainers = {}
    for impl, name in (("auto", "fused"), *([("reference", "reference")] if with_reference else [])):
        for label in (name, f"{name}, compiled"):
            trainer, hp, images = trainers[label] = trainer_and_images(side, dim, n_res, amp=amp, impl=impl)
            if label != name:
                compile_networks(trainer)
            for _ in range(2):
                trainer.update(*images, hp)
    seconds: dict[str, list[float]] = {label: [] for label in trainers}
    for _ in range(rounds):
        for label, (trainer, hp, images) in trainers.items():
            begin = process_time()
            trainer.update(*images, hp)
            seconds[label].append(process_time() - begin)
    for label, values in seconds.items():
        ratios = [mine / fused for mine, fused in zip(values, seconds["fused"])]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"
        print(f"{side}², dim {dim}, {amp}, {label}: {median(values):.3f} s, {spread} of fused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("memory", "compile"))
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--n_res", type=int, default=4)
    parser.add_argument("--amp", default="bf16")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "memory":
        memory(arguments.side, arguments.dim, arguments.n_res, arguments.amp, arguments.checkpointing)
    else:
        compiled(arguments.side, arguments.dim, arguments.n_res, arguments.amp, arguments.reference)


if __name__ == "__main__":
    main()

"""A training iteration and a translation in ten styles against the published algorithm in plain PyTorch, on the CPU.

    python benchmarks/networks.py [--size 256] [--rounds 5] [--output benchmarks/results/networks-cpu.jsonl]

One process; the competitors take turns, round by round; figures are medians with quartiles. Competitors: the published
algorithm (`munit_fast.reference`) in eager NCHW and channels_last and under torch.compile (each network compiled, in
channels_last), each in float32 and under bfloat16 autocast; and munit_fast in both. Before any timing the
first iteration's losses, or the translations, are compared. Peak memory is what torch's allocator held at most.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch
from epilogue import keep_freed_memory, machine, peak_bytes
from torch import Tensor, nn

from munit_fast import MUNIT, make_config, reference
from munit_fast.trainers import MUNIT_Trainer

STYLES = 10
Step = Callable[[], object]


def context(bf16: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()


def compile_networks(module: nn.Module) -> None:
    """Each part of the networks that runs as one call."""
    for name, part in module.named_modules():
        if name.rpartition(".")[2] in ("enc_content", "enc_style", "dec") or name in ("dis_a", "dis_b"):
            part.compile(dynamic=False)


def competitors(compiled: bool) -> dict[str, dict[str, bool]]:
    """Name -> flags."""
    found: dict[str, dict[str, bool]] = {}
    for bf16 in (False, True):
        dtype = "bf16" if bf16 else "fp32"
        found[f"eager NCHW {dtype}"] = {"bf16": bf16}
        found[f"eager channels_last {dtype}"] = {"bf16": bf16, "last": True}
        if compiled:
            found[f"compile {dtype}"] = {"bf16": bf16, "last": True, "compile": True}
        found[f"munit_fast {dtype}"] = {"bf16": bf16, "fast": True}
    return found


def training(hp: Any, images: tuple[Tensor, Tensor], flags: dict[str, bool]) -> tuple[Step, Callable[[], Tensor]]:
    """One iteration, and the losses of the last one."""
    torch.manual_seed(0)
    bf16 = flags.get("bf16", False)
    if flags.get("fast"):
        trainer: Any = MUNIT_Trainer(hp, amp="bf16" if bf16 else "off")
    else:
        trainer = reference.MUNIT_Trainer(hp)
        if flags.get("last"):
            trainer = trainer.to(memory_format=torch.channels_last)
            images = tuple(x.contiguous(memory_format=torch.channels_last) for x in images)  # type: ignore[assignment]
        if flags.get("compile"):
            compile_networks(trainer)

    def step() -> None:
        trainer.update_learning_rate()
        with context(bf16 and not flags.get("fast")):
            trainer.dis_update(*images, hp)
            trainer.gen_update(*images, hp)

    def losses() -> Tensor:
        terms = [f"recon_{what}_{domain}" for what in "xsc" for domain in "ab"] + ["adv_a", "adv_b", "total"]
        found = [getattr(trainer, f"loss_gen_{term}") for term in terms] + [trainer.loss_dis_total]
        return torch.stack([value.detach().float() for value in found])

    return step, losses


def translation(hp: Any, x: Tensor, flags: dict[str, bool]) -> tuple[Step, Callable[[], Tensor]]:
    """One image in ten styles, and the images of the last time."""
    torch.manual_seed(0)
    model = MUNIT(hp, impl="auto" if flags.get("fast") else "reference").eval()
    codes = torch.randn(STYLES, hp["gen"]["style_dim"], generator=torch.Generator().manual_seed(1))
    if flags.get("last"):
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    if flags.get("compile"):
        compile_networks(model)
    result: list[Tensor] = []

    def step() -> None:
        with context(flags["bf16"]):
            result[:] = [model.translate(x, style=codes)]

    return step, lambda: result[0].float()


def measure(level: str, size: int, batch: int, dim: int, rounds: int, compiled: bool) -> dict[str, Any]:
    torch.compiler.reset()
    gen, dis = {"dim": dim}, {"dim": dim}
    hp = make_config(
        {"gen": gen, "dis": dis, "crop_image_height": size, "crop_image_width": size, "display_size": 1}
    ).hyperparameters()
    draw = torch.Generator().manual_seed(2)
    x_a, x_b = torch.rand(2, batch, 3, size, size, generator=draw) * 2 - 1
    steps: dict[str, Step] = {}
    wanted: Tensor | None = None
    for name, flags in competitors(compiled).items():
        step, result = training(hp, (x_a, x_b), flags) if level == "training" else translation(hp, x_a, flags)
        torch.manual_seed(3)
        step()
        found = result()
        wanted = found if wanted is None else wanted
        error = float((found - wanted).norm() / wanted.norm())
        print(f"  {name}: differs from {next(iter(steps), name)} by {error:.1e}", flush=True)
        if not error < (0.1 if flags["bf16"] else 1e-3):
            raise SystemExit(f"{level}: {name} differs by {error:.1e}; no time is reported")
        steps[name] = step
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = perf_counter()
            step()
            seconds[name].append(perf_counter() - start)
    return {
        "level": level,
        "size": size,
        "batch": batch,
        "dim": dim,
        "rounds": rounds,
        "seconds": {name: [round(q, 4) for q in quantiles(values, n=4)] for name, values in seconds.items()},
        "peak_mb": {name: round(peak_bytes(step) / 1e6, 1) for name, step in steps.items() if "compile" not in name},
    }


def table(path: Path) -> str:
    """The rows of a results file as Markdown."""
    blocks = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        seconds = {name: quartiles[1] for name, quartiles in row["seconds"].items()}
        first, peak = seconds["eager NCHW fp32"], row["peak_mb"]
        what = "training iteration" if row["level"] == "training" else f"translation in {STYLES} styles"
        lines = [
            f"{what}, {row['size']}², batch {row['batch']}, dim {row['dim']} ({row['cpu']}, {row['isa']}, "
            f"{row['threads']} threads, torch {row['torch']}, {row['date']}, commit {row['commit']}, "
            f"{row['rounds']} rounds):",
            "",
            "| | seconds, median (quartiles) | speed | peak memory, MB |",
            "|---|---|---|---|",
        ]
        for name, (low, median, high) in row["seconds"].items():
            lines.append(
                f"| {name} | {median:.3f} ({low:.3f} – {high:.3f}) | {first / median:.2f}× | {peak.get(name, '–')} |"
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--level", choices=("training", "translation"), action="append")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes minutes")
    parser.add_argument("--output", type=Path, help="append one JSON line for each level")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print the rows of FILE as Markdown")
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
        return
    keep_freed_memory()
    where = machine()
    print(json.dumps(where))
    for level in args.level or ("translation", "training"):
        row = where | measure(level, args.size, args.batch, args.dim, args.rounds, not args.no_compile)
        for name, (low, median, high) in row["seconds"].items():
            ratio = row["seconds"]["eager NCHW fp32"][1] / median
            print(f"{level} {name}: {median:.3f} s ({low:.3f} – {high:.3f}), {ratio:.2f}×", flush=True)
        print(level, "peak MB", row["peak_mb"], flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with args.output.open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())

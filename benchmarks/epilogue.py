"""The fused epilogues against plain PyTorch on the CPU, forward and forward + backward.

    python benchmarks/epilogue.py [--quick] [--output benchmarks/results/epilogue-cpu.jsonl]

One process; the competitors of a case take turns, round by round, so that a busy machine slows all of them alike; the
figures are medians over rounds with quartiles beside them. Competitors: eager NCHW, eager channels_last, torch.compile
on both, and munit_fast on both. A correctness check runs before every timing. Freed memory is kept for the next tensor
(glibc would return a large one to the kernel and have it zeroed again, which costs more than any of these operations):
that spares those most who need most temporaries. Results are ratios first: this tells what is faster on one machine,
not how fast a machine is.

Two copies are timed along: one of 256 MB, the machine's copy bandwidth, and one of the case's own tensor, which may
fit a cache. Bandwidth counts x (and a residual) once and the result once.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, quantiles
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from munit_fast import functional as MF
from munit_fast import native


@dataclass(frozen=True)
class Case:
    """One epilogue of MUNIT's networks: `op` at [batch, channels, side, side]."""

    op: str
    channels: int
    side: int
    batch: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.op:<22} {self.batch}×{self.channels}×{self.side}² {str(self.dtype).removeprefix('torch.')}"


# (op, what it stands for): the epilogues between MUNIT's convolutions.
OPS: dict[str, dict[str, Any]] = {
    "instance_relu_pad": {"norm": "instance", "act": "relu", "pad": 1},
    "adain_relu_pad": {"norm": "adain", "act": "relu", "pad": 1},
    "adain_residual_pad": {"norm": "adain", "act": "none", "residual": True, "pad": 1},
    "layer_relu_pad": {"norm": "layer", "act": "relu", "pad": 2},
    "bias_lrelu_pad": {"norm": "none", "act": "lrelu", "pad": 1},
}
SHAPES = ((256, 64), (128, 128), (64, 256))
LARGE = [torch.zeros(256 * 2**20, dtype=torch.uint8) for _ in range(2)]


def eager(spec: dict[str, Any]) -> Callable[..., Tensor]:
    """The epilogue as the published implementation writes it."""
    norm, act, pad = spec["norm"], spec["act"], spec["pad"]

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        n, c, h, w = x.shape
        if norm == "instance":
            x = F.instance_norm(x)
        elif norm == "adain":
            flat = x.reshape(1, n * c, h, w)
            x = F.batch_norm(flat, None, None, weight.reshape(-1), bias.reshape(-1), training=True).view(n, c, h, w)
        elif norm == "layer":
            rows = x.reshape(n, -1)
            mean, std = rows.mean(1).view(-1, 1, 1, 1), rows.std(1).view(-1, 1, 1, 1)
            x = (x - mean) / (std + 1e-5) * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
        else:
            x = x + bias.view(1, -1, 1, 1)
        if act == "relu":
            x = F.relu(x)
        elif act == "lrelu":
            x = F.leaky_relu(x, 0.2)
        if residual is not None:
            x = x + residual
        return F.pad(x, (pad,) * 4, mode="reflect")

    return run


def fused(spec: dict[str, Any]) -> Callable[..., Tensor]:
    norm, options = spec["norm"], {"act": spec["act"], "pad": spec["pad"]}

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        if norm == "instance":
            return MF.instance_norm(x, residual=residual, **options)
        if norm == "adain":
            return MF.adain(x, weight, bias, residual=residual, **options)
        if norm == "layer":
            return MF.layer_norm2d(x, weight, bias, residual=residual, **options)
        return MF.bias_act(x, bias, residual=residual, **options)

    return run


def tensors(case: Case, channels_last: bool) -> tuple[list[Tensor | None], Tensor]:
    """Arguments of an epilogue and an upstream gradient, the same numbers for both layouts."""
    spec = OPS[case.op]
    random = torch.Generator().manual_seed(0)
    form = torch.channels_last if channels_last else torch.contiguous_format

    def draw(*size: int) -> Tensor:
        t = torch.randn(size, generator=random).to(case.dtype)
        return t.contiguous(memory_format=form) if t.dim() == 4 else t

    n, c, side = case.batch, case.channels, case.side
    vector = (n, c) if spec["norm"] == "adain" else (c,)
    x, weight, bias = draw(n, c, side, side), draw(*vector), draw(*vector)
    residual = draw(n, c, side, side) if spec.get("residual") else None
    padded = side + 2 * spec["pad"]
    grad = draw(n, c, padded, padded)
    return [t if t is None else t.requires_grad_() for t in (x, weight, bias, residual)], grad


def competitors(case: Case, compiled: bool) -> dict[str, tuple[Callable[..., Tensor], bool]]:
    spec = OPS[case.op]
    found = {
        "eager NCHW": (eager(spec), False),
        "eager channels_last": (eager(spec), True),
        "munit_fast NCHW": (fused(spec), False),
        "munit_fast channels_last": (fused(spec), True),
    }
    if compiled:
        found["compile NCHW"] = (torch.compile(eager(spec), dynamic=False), False)
        found["compile channels_last"] = (torch.compile(eager(spec), dynamic=False), True)
    return found


def check(case: Case, functions: dict[str, tuple[Callable[..., Tensor], bool]]) -> None:
    """Every competitor agrees with the first, in its result and its gradients (the tests are stricter)."""
    # A single one of a million numbers that rounds to the other side of a relu's kink makes 1e-3.
    # In bfloat16 the eager layer norm rounds after every step and is 3e-2 off by itself.
    limit = {torch.float32: 5e-3, torch.bfloat16: 6e-2}[case.dtype]
    wanted: list[Tensor] = []
    for name, (function, channels_last) in functions.items():
        arguments, grad = tensors(case, channels_last)
        y = function(*arguments)
        used = [t for t in arguments if t is not None]
        grads = torch.autograd.grad(y, used, grad, allow_unused=True)
        seen = [y.detach(), *(g for g in grads if g is not None)]
        if not wanted:
            wanted = seen
        for i, (a, b) in enumerate(zip(seen, wanted, strict=True)):
            error = ((a.float() - b.float()).norm() / b.float().norm()).item()
            if not error < limit:
                raise SystemExit(f"{case}: {name} differs in tensor {i} by {error:.1e}; no time is reported")


def times(steps: dict[str, Callable[[], object]], rounds: int, least_s: float) -> dict[str, list[float]]:
    """Seconds a call, one number a round; each round gives every competitor its turn."""
    repeats = {}
    for name, step in steps.items():
        step()
        start = perf_counter()
        step()
        repeats[name] = max(1, int(least_s / max(perf_counter() - start, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = perf_counter()
            for _ in range(repeats[name]):
                step()
            taken[name].append((perf_counter() - start) / repeats[name])
    return taken


def forward_step(function: Callable[..., Tensor], arguments: list[Tensor | None]) -> Callable[[], object]:
    @torch.no_grad()
    def step() -> object:
        return function(*arguments)

    return step


def training_step(
    function: Callable[..., Tensor], arguments: list[Tensor | None], grad: Tensor
) -> Callable[[], object]:
    used = [t for t in arguments if t is not None]

    def step() -> object:
        return torch.autograd.grad(function(*arguments), used, grad, allow_unused=True)

    return step


def measure(case: Case, compiled: bool, rounds: int, least_s: float) -> dict[str, Any]:
    torch.compiler.reset()
    functions = competitors(case, compiled)
    check(case, functions)
    forward, training = {}, {}
    for name, (function, channels_last) in functions.items():
        arguments, grad = tensors(case, channels_last)
        forward[name] = forward_step(function, arguments)
        training[name] = training_step(function, arguments, grad)
    x = tensors(case, True)[0][0]
    assert x is not None
    source, target = x.detach(), torch.empty_like(x)
    forward["copy"] = lambda: target.copy_(source)
    forward["copy of 256 MB"] = lambda: LARGE[1].copy_(LARGE[0])
    row: dict[str, Any] = {"case": str(case)}
    row["bytes_forward"] = (
        x.numel() * x.element_size()
        + case.batch * case.channels * x.element_size() * (case.side + 2 * OPS[case.op]["pad"]) ** 2
    )
    if OPS[case.op].get("residual"):
        row["bytes_forward"] += x.numel() * x.element_size()
    row["bytes_copy"] = 2 * x.numel() * x.element_size()
    for level, steps in (("forward", forward), ("training", training)):
        row[level] = {
            name: [round(q * 1e6, 1) for q in quantiles(seconds, n=4)]
            for name, seconds in times(steps, rounds, least_s).items()
        }
    row["peak_mb"] = {
        name: round(peak_bytes(step) / 1e6, 2) for name, step in training.items() if not name.startswith("compile")
    }
    return row


def peak_bytes(step: Callable[[], object]) -> int:
    """The most memory that torch's allocator held at once for a step, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = step()
    del result
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def score(row: dict[str, Any]) -> dict[str, float]:
    """Ratios of medians: the fastest baseline of each kind over munit_fast channels_last, and shares of a copy."""
    training = {name: q[1] for name, q in row["training"].items()}
    forward = {name: q[1] for name, q in row["forward"].items()}
    ours = training["munit_fast channels_last"]
    found = {"eager": min(t for name, t in training.items() if name.startswith("eager")) / ours}
    compiled = [t for name, t in training.items() if name.startswith("compile")]
    if compiled:
        found["compile"] = min(compiled) / ours
    rate = row["bytes_forward"] / forward["munit_fast channels_last"]
    found["share of copy"] = rate / (2 * LARGE[0].numel() / forward["copy of 256 MB"])
    found["share of own copy"] = rate / (row["bytes_copy"] / forward["copy"])
    found["NCHW over eager"] = found["eager"] * ours / training["munit_fast NCHW"]
    peak = {name: row["peak_mb"][name] for name in row["peak_mb"]}
    least = min(peak[f"eager {layout}"] for layout in ("NCHW", "channels_last"))
    found["peak memory"] = peak["munit_fast channels_last"] / least
    return found


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: nothing is mapped on its own, and the heap does not shrink."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    m_mmap_max, m_trim_threshold = -4, -1
    if mallopt is None or not (mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1)):
        print("freed memory is not kept: not glibc", file=sys.stderr)


def table(path: Path) -> str:
    """The rows of a results file as Markdown: one line for each operation and dtype, over the shapes and batches."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    groups: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        words = row["case"].split()
        groups.setdefault(f"{words[0]}, {words[-1]}", []).append(row["score"])
    groups["all"] = [row["score"] for row in rows]
    first = rows[0]
    lines = [
        f"{first['cpu']} ({first['isa']}), {first['threads']} threads, torch {first['torch']}, {first['date']}, commit "
        f"{first['commit']}: {len(rows)} cases.",
        "",
        "| epilogue | over eager | over torch.compile | forward, share of copy | peak memory |",
        "|---|---|---|---|---|",
    ]
    for name, scores in groups.items():
        cells = []
        for key in ("eager", "compile", "share of copy", "peak memory"):
            values = [score[key] for score in scores]
            worst = max(values) if key == "peak memory" else min(values)
            cells.append(f"{geometric_mean(values):.2f} ({worst:.2f})")
        lines.append(f"| {name.replace('_', ' + ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    cpu = ""
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else ""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "cpu": cpu or platform.processor(),
        "isa": native.module.isa() if native.module else "none",
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="no torch.compile, one shape, few rounds")
    parser.add_argument("--op", choices=sorted(OPS), action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), action="append")
    parser.add_argument("--output", type=Path, help="append one JSON line for each case")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print the rows of FILE as Markdown")
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
        return
    dtypes = [getattr(torch, name) for name in args.dtype or ("float32", "bfloat16")]
    shapes = SHAPES[:1] if args.quick else SHAPES
    keep_freed_memory()
    where = machine()
    print(json.dumps(where))
    scores = []
    for op in args.op or OPS:
        for dtype in dtypes:
            for channels, side in shapes:
                for batch in args.batch or (1, 4):
                    case = Case(op, channels, side, batch, dtype)
                    row = measure(case, not args.quick, args.rounds, 0.002 if args.quick else 0.02)
                    scores.append(score(row))
                    row["score"] = {name: round(value, 3) for name, value in scores[-1].items()}
                    print(f"{case}  " + "  ".join(f"{k} {v:.2f}" for k, v in row["score"].items()), flush=True)
                    if args.output:
                        args.output.parent.mkdir(parents=True, exist_ok=True)
                        with args.output.open("a") as file:
                            file.write(json.dumps(where | row, ensure_ascii=False) + "\n")
    for name in scores[0]:
        values = [s[name] for s in scores]
        print(f"{name}: geometric mean {geometric_mean(values):.2f}, least {min(values):.2f}, most {max(values):.2f}")


if __name__ == "__main__":
    sys.exit(main())

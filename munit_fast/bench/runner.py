"""The runner: for each case, build the contenders, check their numbers, time them in turns, write rows."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from munit_fast.bench import blocks, machine, measure, models, ops
from munit_fast.bench.cases import DTYPES, LOSSES, Case
from munit_fast.bench.contenders import COMPILED, MAX_AUTOTUNE, PUBLISHED, Contender, Work, in_graph
from munit_fast.bench.measure import Spread
from munit_fast.bench.rows import Row, append
from munit_fast.bench.summary import Summary, summarize

# Relative errors that a contender may have against the expected numbers. In float32 a value that rounds to the other
# side of a kink makes 1e-3; in lower precisions the plain networks' own gradients are off by tens of percent. The
# tests are stricter; this is to keep a wrong result from being timed.
LIMITS = {
    "op": {"fp32": 5e-3, "bf16": 6e-2, "fp16": 2e-2},
    "block": {"fp32": 1e-2, "bf16": 0.15, "fp16": 5e-2},
    "network": {"fp32": 2e-2, "bf16": 0.4, "fp16": 0.15},
    "training": {"fp32": 2e-3, "bf16": 0.1, "fp16": 0.05},
    "translation": {"fp32": 2e-3, "bf16": 0.1, "fp16": 0.05},
}


class RedCheck(RuntimeError):
    """A contender's numbers are wrong, so it has no time."""


@dataclass(frozen=True)
class BenchOptions:
    """How to measure."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: int = 15
    least_s: float = 0.02  # of a turn; a longer step runs once a turn
    compile: bool = True
    max_autotune: bool = True
    output: Path | None = None
    seconds: float | None = None  # no case begins after this; what is left out is said


def run(cases: Sequence[Case], options: BenchOptions, console: Console) -> tuple[list[Row], list[str]]:
    """Measure every case. Rows are appended to `options.output` case by case.

    Returns (rows, failures): a contender whose numbers are wrong, or that raised, has no row but a line of failures.
    """
    machine.keep_freed_memory()
    where = machine.describe(options.device)
    console.print(f"{where['device']}, torch {where['torch']}, {where['threads']} threads, commit {where['commit']}")
    found: list[Row] = []
    failures: list[str] = []
    begin = time.monotonic()
    for number, case in enumerate(cases, 1):
        if options.seconds is not None and time.monotonic() - begin > options.seconds:
            console.print(f"time is up: the last {len(cases) - number + 1} of {len(cases)} cases were not measured")
            break
        torch.compiler.reset()
        try:
            rows, failed = _measure(case, options, where)
        except torch.OutOfMemoryError:
            rows, failed = [], [f"{case}: out of memory"]
            gc.collect()
            torch.cuda.empty_cache()
        found += rows
        failures += failed
        for line in failed:
            console.print(line, style="red", markup=False, highlight=False)
        if options.output is not None:
            append(options.output, rows)
        console.print(f"[{number}/{len(cases)}] {_line(case, rows)}", markup=False, highlight=False, soft_wrap=True)
    return found, failures


def _line(case: Case, rows: list[Row]) -> str:
    summaries = [s for s in summarize(rows) if s.ours is not None]
    if not summaries:
        return f"{case}: no time"
    return f"{case}: " + "; ".join(_words(s) for s in summaries)


def _words(s: Summary) -> str:
    assert s.ours is not None
    words = f"{s.ours.p50 * 1e3:.4g} ms"
    if s.best_baseline is not None:
        words += f", {s.speedup:.2f}× the fastest baseline ({s.best_baseline.title})"
    return words + (f", {s.ours.l2} L2" if s.ours.l2 else "")


def contenders(case: Case, device: torch.device) -> list[Contender]:
    """Every way to do a case's work on a device, CUDA graphs of models included."""
    if case.level == "training":
        return models.training_contenders(case, device)
    if case.level == "translation":
        return models.translation_contenders(case, device)
    if case.level in ("block", "network"):
        return blocks.block_contenders(case, device)
    if case.name in LOSSES:
        return ops.loss_contenders(case, device)
    return ops.epilogue_contenders(case, device)


def _measure(case: Case, options: BenchOptions, where: dict[str, Any]) -> tuple[list[Row], list[str]]:
    device = options.device
    expected: list[Tensor] | None = ops.expected(case) if case.name in ops.SPECS else None
    works: dict[Contender, Work] = {}
    errors: dict[Contender, float] = {}
    failures = []
    left_out = set() if options.compile else set(COMPILED)
    left_out |= set() if options.max_autotune else {MAX_AUTOTUNE}
    every = [c for c in contenders(case, device) if c.implementation not in left_out]
    # The published algorithm in float32 first: the others are held to it where there is no formula in float64.
    every.sort(key=lambda c: (c.implementation != PUBLISHED, c.layout != "NCHW", c.precision is None, c.graph))
    for contender in every:
        try:
            work = contender.make()
            outputs = work.outputs()
            expected = outputs if expected is None else expected
            errors[contender] = check(case, contender, outputs, expected)
            works[contender] = work
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a baseline that cannot run here is a result too
            failures.append(f"{case}: {contender}: {(str(error) or type(error).__name__).splitlines()[0]}")
    if device.type == "cuda" and case.level in ("op", "block", "network", "translation"):
        for contender, work in list(works.items()):
            if not contender.compiled:
                try:
                    captured = replace(contender, graph=True)
                    works[captured], errors[captured] = in_graph(work), errors[contender]
                except RuntimeError as error:
                    failures.append(f"{case}: {captured}: {str(error).splitlines()[0]}")
    if case.level == "training" and device.type == "cuda":
        for work in works.values():
            for _ in range(5):  # beyond the warm-up and the capture
                work.step()
    steps = {str(contender): work.step for contender, work in works.items()}
    states = ("warm", "cold") if device.type == "cuda" and case.level == "op" else (None,)
    extras = {contender: _extras(case, contender, work, device) for contender, work in works.items()}
    rows = []
    for state in states:
        spreads = measure.interleaved(steps, device, options.rounds, options.least_s, cold=state == "cold")
        l2 = state or ("warm" if device.type == "cuda" else None)
        rows += [
            _row(case, c, spreads[str(c)], where, options, extras[c] | {"error": errors[c], "l2": l2}) for c in works
        ]
    return rows, failures


def check(case: Case, contender: Contender, outputs: list[Tensor], expected: list[Tensor]) -> float:
    """The worst relative error of a contender's numbers. Raises RedCheck beyond LIMITS.

    A tensor that is all but zero beside the others (the gradient of a bias before an instance norm) is held to a
    twentieth of the largest.
    """
    if len(outputs) != len(expected):
        raise RedCheck(f"{len(outputs)} results instead of {len(expected)}; no time is reported")
    size = max(float(b.double().norm()) for b in expected)
    worst = 0.0
    for a, b in zip(outputs, expected):
        a, b = a.double().cpu(), b.double().cpu()
        error = float((a - b).norm() / max(float(b.norm()), 0.05 * size, 1e-30))
        worst = max(worst, error if error == error else float("inf"))
    limit = LIMITS[case.level]["fp32" if contender.precision == "fp32" else case.dtype]
    if not worst <= limit:
        raise RedCheck(f"its numbers are off by {worst:.1e} (allowed: {limit:.0e}); no time is reported")
    return worst


def _extras(case: Case, contender: Contender, work: Work, device: torch.device) -> dict[str, Any]:
    # What inductor allocates on the CPU does not pass torch's profiler; a graph's memory is its pool's.
    hidden = contender.graph or (contender.compiled and device.type == "cpu")
    least = ops.minimal_bytes(case) if case.name in ops.SPECS else None
    # Counting would break a compiled function's graph; it multiplies what the eager one does.
    counted = case.level != "op" and not contender.compiled and not contender.graph
    return {
        "bytes": least,
        "flops": measure.flops(work.step) if counted else None,
        "peak_bytes": None if hidden else measure.peak_bytes(work.step, device),
        "launches": measure.launches(work.step, device),
    }


def _row(
    case: Case, c: Contender, spread: Spread, where: dict[str, Any], options: BenchOptions, extras: dict[str, Any]
) -> Row:
    precision = c.precision or case.dtype
    values: dict[str, Any] = where | asdict(case) | {k: float(f"{v:.5g}") for k, v in asdict(spread).items()}
    return Row(
        **values,
        implementation=c.implementation,
        layout=c.layout,
        precision=precision,
        graph=c.graph,
        rounds=options.rounds,
        copy_speed=float(f"{machine.copy_speed(options.device):.4g}"),
        matrix_rate=float(f"{machine.matrix_rate(options.device, DTYPES[precision]):.4g}"),
        **(extras | {"error": float(f"{extras['error']:.2g}")}),
    )

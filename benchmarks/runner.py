"""For each case, build the contenders, check their results, time them in turns and write rows."""

from __future__ import annotations

import datetime
import gc
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from munit_fast.benchmarks import (
    contenders_accelerated,
    contenders_convs,
    contenders_folders,
    contenders_launches,
    contenders_networks,
    contenders_ops,
    contenders_training,
    contenders_translation,
    machine,
    timing,
)
from munit_fast.benchmarks.cases import DTYPES, LOSSES, Case
from munit_fast.benchmarks.contenders import (
    COMPILED,
    FROZEN,
    MAX_AUTOTUNE,
    NETWORK_ALONE,
    PUBLISHED,
    Contender,
    Unavailable,
    Work,
    in_graph,
)
from munit_fast.benchmarks.rows import Row, append, parse
from munit_fast.benchmarks.summary import Summary, summarize
from munit_fast.benchmarks.timing import Spread
from munit_fast.train.cuda_graph import capture_stream
from munit_fast.utils.cudnn import tuned_convolutions

# Relative errors that a contender may have against the expected numbers. In float32 a value that rounds to the other
# side of a kink makes 1e-3; in lower precisions the plain networks' own gradients are off by tens of percent. "moved":
# how far weights went in a few iterations; Adam's first steps are signs, which rounding turns where gradients are
# small (seen: 0.01 in float32; in the plain networks' bfloat16 0.47, and 0.06 in a loss). The tests are
# stricter; this is to keep a wrong result from being timed.
LIMITS = {
    "op": {"fp32": 5e-3, "bf16": 6e-2, "fp16": 2e-2},
    "block": {"fp32": 1e-2, "bf16": 0.15, "fp16": 5e-2},
    "network": {"fp32": 2e-2, "bf16": 0.4, "fp16": 0.15},
    "training": {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05},
    "moved": {"fp32": 0.1, "bf16": 0.6, "fp16": 0.6},
    "translation": {"fp32": 2e-3, "bf16": 0.1, "fp16": 0.05},
    "accelerated": {"fp32": 2e-2, "bf16": 0.4, "fp16": 0.15},
    "folder": {"fp32": 1e-2, "bf16": 0.1, "fp16": 0.05},  # of files, which round to 8 bits
    "exported": {"fp32": 2e-3, "bf16": 0.1, "fp16": 0.05},
    "launch": {"fp32": 0.0, "bf16": 0.0, "fp16": 0.0},  # what reaches the driver, byte by byte
}


class AccuracyError(RuntimeError):
    """A contender's results are further from the expected ones than LIMITS allow, so it has no time."""


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        device: Where the contenders run.
        rounds: Turns of each contender.
        least_s: Least seconds of a turn; a longer step runs once a turn.
        compile: Whether torch.compile is among the baselines.
        max_autotune: Whether its mode max-autotune is.
        output: File that the rows are appended to.
        seconds: No case begins that would probably outlast this; what is left out is printed.
        only_missing: Leave out cases that `output` has rows of, measured on this machine at this commit.
        compile_last: Measure iterations without torch.compile, and in the case's dtype alone; at the end the first of
            them once more with everything. To compile an iteration takes minutes.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: int = 9
    least_s: float = 0.02
    compile: bool = True
    max_autotune: bool = True
    output: Path | None = None
    seconds: float | None = None
    only_missing: bool = False
    compile_last: bool = False


@dataclass(frozen=True)
class Turn:
    """A case and which of its contenders take part.

    Attributes:
        case: What is measured.
        lean: Without torch.compile and without baselines of another precision.
        again: It has been measured lean before.
    """

    case: Case
    lean: bool = False
    again: bool = False

    def __str__(self) -> str:
        return f"{self.case} with torch.compile" if self.again else str(self.case)

    def measured(self, rows: Sequence[Row]) -> bool:
        """Whether rows have this case; of one that is measured again, whether a compiled contender has a time."""
        mine = [r for r in rows if all(getattr(r, name) == value for name, value in asdict(self.case).items())]
        return any(r.implementation in COMPILED and r.failure is None for r in mine) if self.again else bool(mine)


def plan(cases: Sequence[Case], options: BenchOptions) -> list[Turn]:
    """The turns of a run, in their order.

    Args:
        cases: What to measure.
        options: `compile` and `compile_last` count.
    """
    iterations = [case for case in cases if options.compile_last and case.level == "training"]
    last = iterations[:1] if options.compile else []
    return [Turn(case, lean=case in iterations) for case in cases] + [Turn(case, again=True) for case in last]


def missing(turns: Sequence[Turn], rows: Sequence[Row], where: dict[str, Any]) -> list[Turn]:
    """The turns that no row tells of.

    Args:
        turns: Of `plan`.
        rows: Of this machine and others.
        where: What `machine.describe` says: rows of another device, commit or torch do not count.
    """
    names = ("device", "threads", "torch", "commit")
    here = [row for row in rows if all(getattr(row, name) == where[name] for name in names)]
    return [turn for turn in turns if not turn.measured(here)]


def run(cases: Sequence[Case], options: BenchOptions, console: Console) -> tuple[list[Row], list[str]]:
    """Measure every case. Rows are appended to `options.output` case by case.

    Args:
        cases: What to measure; see `munit_fast.benchmarks.select`.
        options: How to measure.
        console: Where progress is printed.

    Returns:
        All rows, and a line for each failure. A contender whose results are wrong, or that raised, has a row without
        times that gives the reason, and is a failure; one that cannot run on this machine has such a row and is none.

    Raises:
        FileWriteError: The output cannot be written; raised before anything is measured.
    """
    if options.output is not None:
        append(options.output, [])
    if options.device.type == "cuda":
        torch.cuda.set_device(options.device)  # events, streams and captures take the current one
    _let_compile_fail_loudly()
    machine.keep_freed_memory()
    where = machine.describe(options.device) | {"run": _run_name()}
    turns = plan(cases, options)
    console.print(
        f"{where['device']}, torch {where['torch']}, {where['threads']} threads, commit {where['commit']}",
        soft_wrap=True,
    )
    if options.only_missing and options.output is not None:
        turns = missing(turns, parse(options.output.read_text(encoding="utf-8"), str(options.output)), where)
    found: list[Row] = []
    failures: list[str] = []
    left_out: list[Turn] = []
    longest: dict[str, float] = {}  # by level: what another case of it will probably take
    begin = time.monotonic()
    deadline = None if options.seconds is None else begin + options.seconds
    for number, turn in enumerate(turns, 1):
        case, start = turn.case, time.monotonic()
        if deadline is not None and start + longest.get(case.level, 0.0) >= deadline:
            left_out.append(turn)
            continue
        with _conditions(options.device):
            own_run = {"run": _run_name()} if turn.again else {}  # what is not timed in turns is not compared
            rows, unavailable = _measured(case, options, where | own_run, turn.lean, deadline)
        longest[case.level] = max(longest.get(case.level, 0.0), time.monotonic() - start)
        found += rows
        for row in rows:
            if row.failure is not None:
                line, harmless = f"{case}: {row.title}: {row.failure}", row in unavailable
                failures += [] if harmless else [line]
                style = None if harmless else "red"
                console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
        if options.output is not None:
            append(options.output, rows)
        console.print(f"[{number}/{len(turns)}] {_line(case, rows)}", markup=False, highlight=False, soft_wrap=True)
    if left_out:
        console.print(f"time is up: {len(left_out)} of {len(turns)} cases were not measured:", highlight=False)
        for turn in left_out:
            console.print(f"  {turn}", markup=False, highlight=False, soft_wrap=True)
    return found, failures


@contextmanager
def _conditions(device: torch.device) -> Iterator[None]:
    """Those of training and translation; on a GPU everything runs on the stream that graphs are captured on.

    A backward runs on the stream of its forward, so a captured one needs a forward that ran there.
    """
    with ExitStack() as held:
        held.enter_context(tuned_convolutions(device))
        if device.type == "cuda":
            held.enter_context(torch.cuda.stream(capture_stream(device)))
        yield


def _run_name() -> str:
    """Sorts by time, and no two runs share one."""
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def _let_compile_fail_loudly() -> None:
    """A contender that quietly ran eagerly would be timed under a wrong name."""
    from torch import _dynamo, _functorch

    _dynamo.config.recompile_limit = 256
    _dynamo.config.fail_on_recompile_limit_hit = True
    _functorch.config.donated_buffer = False  # a backward alone runs more than once


class _Deadline:
    """Raises in the block when the time is up: a compiler is not asked to end, and may take minutes."""

    def __init__(self, at: float | None) -> None:
        self.at = at if threading.current_thread() is threading.main_thread() else None
        self.is_over = False

    def __enter__(self) -> _Deadline:
        if self.at is not None:
            self.before = signal.signal(signal.SIGALRM, self._raise)
            self.begin = time.monotonic()
            # Again and again: what is raised inside a compiler may be caught there.
            self.timer = signal.setitimer(signal.ITIMER_REAL, max(self.at - self.begin, 1e-3), 5.0)
        return self

    def __exit__(self, *_: object) -> None:
        if self.at is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self.before)
            if self.timer[0]:  # another's
                left = self.timer[0] - (time.monotonic() - self.begin)
                signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3), self.timer[1])

    def _raise(self, *_: object) -> None:
        self.is_over = True
        raise TimeoutError("time is up")


def _line(case: Case, rows: list[Row]) -> str:
    summaries = [s for s in summarize(rows) if s.ours is not None]
    if not summaries:
        return f"{case}: no time"
    return f"{case}: " + "; ".join(_describe(s) for s in summaries)


def _describe(s: Summary) -> str:
    assert s.ours is not None
    text = f"{s.ours.seconds * 1e3:.4g} ms"
    if s.best_baseline is not None:
        text += f", {s.speedup:.2f}× the fastest baseline ({s.best_baseline.title})"
    return text + (f", {s.ours.l2} L2" if s.ours.l2 else "")


def contenders(case: Case, device: torch.device) -> list[Contender]:
    """Every way to do a case's work on a device, without the CUDA graphs that are captures of another's step."""
    if case.level == "training":
        return contenders_training.training_contenders(case, device)
    if case.level == "translation":
        return contenders_translation.translation_contenders(case, device)
    if case.level == "exported":
        return contenders_translation.exported_contenders(case, device)
    if case.level == "folder":
        return contenders_folders.folder_contenders(case, device)
    if case.level == "accelerated":
        return contenders_accelerated.accelerated_contenders(case, device)
    if case.level == "launch":
        return contenders_launches.launch_contenders(case, device)
    if case.level in ("block", "network"):
        return contenders_networks.block_contenders(case, device)
    if case.name in contenders_convs.SPECS:
        return contenders_convs.conv_contenders(case, device)
    if case.name in LOSSES:
        return contenders_ops.loss_contenders(case, device)
    return contenders_ops.epilogue_contenders(case, device)


def expected(case: Case, device: torch.device) -> Sequence[Tensor] | None:
    """A case's numbers in float64; None where there is no formula, and contenders are held to the published modules.

    Args:
        case: Of an operator, or of anything else.
        device: Where an epilogue is computed; the large ones take seconds on a CPU.
    """
    if case.name in contenders_ops.SPECS:
        return contenders_ops.expected(case, device)
    return contenders_convs.expected(case) if case.name in contenders_convs.SPECS else None


class _Checked:
    """The contenders of a case that passed their checks, and rows without times for the others."""

    def __init__(self, case: Case, options: BenchOptions, where: dict[str, Any], deadline: float | None) -> None:
        self.case, self.options, self.where, self.deadline = case, options, where, deadline
        self.works: dict[Contender, Work] = {}
        self.extras: dict[Contender, dict[str, Any]] = {}
        self.failed: list[Row] = []
        self.unavailable: list[Row] = []  # those of the failed that only another machine could time
        self.expected: Sequence[Tensor] | None = expected(case, options.device)

    def add(self, contender: Contender, make: Callable[[], Work]) -> None:
        """Build and check one. A baseline that cannot run here is a result too."""
        limit = _Deadline(self.deadline if contender.compiled else None)
        try:
            with limit:
                work = make()
                numbers = [t.detach().double() for t in (work.numbers or work.step)()]
            work.verify()
            self.expected = numbers if self.expected is None else self.expected
            error = check(self.case, contender, numbers, self.expected)
            self.extras[contender] = _extras(self.case, contender, work, self.options.device) | {"error": error}
            self.works[contender] = work
        except Exception as error:
            reason = "time is up" if limit.is_over else (str(error) or type(error).__name__).splitlines()[0]
            row = _row(self.case, contender, None, self.where, self.options, _NOTHING | {"failure": reason})
            self.failed.append(row)
            self.unavailable += [row] if isinstance(error, Unavailable) or limit.is_over else []
        if self.failed and self.options.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def _measured(
    case: Case, options: BenchOptions, where: dict[str, Any], lean: bool = False, deadline: float | None = None
) -> tuple[list[Row], list[Row]]:
    """The rows of a case, and those of them that have no time because this machine lacks something."""
    device = options.device
    torch.compiler.reset()
    left_out = set() if options.compile and not lean else {*COMPILED, FROZEN}
    left_out |= set() if options.max_autotune else {MAX_AUTOTUNE}
    every = [c for c in contenders(case, device) if c.implementation not in left_out]
    # The published algorithm in float32 first: the others are held to it where there is no formula in float64. What may
    # be stopped comes last.
    every.sort(
        key=lambda c: (
            c.implementation not in (PUBLISHED, NETWORK_ALONE),
            c.compiled,
            c.layout != "NCHW",
            c.precision is None,
            c.graph,
        )
    )
    checked = _Checked(case, options, where, deadline)
    if lean and every[0].precision is not None:  # held to it without its time, nor that of tuning its convolutions
        with tuned_convolutions(device, on=False):
            checked.add(every[0], every[0].make)
        checked.works.pop(every[0], None)
        every = [c for c in every if c.precision is None]
    for contender in every:
        checked.add(contender, contender.make)
    if device.type == "cuda" and case.level not in ("training", "folder"):
        for contender, work in list(checked.works.items()):
            checked.add(replace(contender, graph=True), lambda work=work: in_graph(work))  # type: ignore[misc]
    if not checked.works:
        return checked.failed, checked.unavailable
    _share_flops(checked.extras)
    steps = {str(contender): work.step for contender, work in checked.works.items()}
    states = ("warm", "cold") if device.type == "cuda" and case.level == "op" else (None,)
    rows = []
    for state in states:
        spreads = timing.interleaved(steps, device, options.rounds, options.least_s, cold=state == "cold")
        l2 = {"l2": state or ("warm" if device.type == "cuda" else None)}
        rows += [_row(case, c, spreads[str(c)], where, options, checked.extras[c] | l2) for c in checked.works]
    return [*rows, *checked.failed], checked.unavailable


def check(case: Case, contender: Contender, numbers: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The worst relative error of a contender's results; see LIMITS.

    In networks and their blocks a vector that is all but zero beside the others, the gradient of a bias before an
    instance norm, is compared with a twentieth of the largest.

    Args:
        case: Its level and dtype choose the limits.
        contender: Its precision, where it has one, takes the place of the dtype.
        numbers: Its results.
        expected: The results of the reference or of the published modules, in the same order.

    Raises:
        AccuracyError: An error beyond its limit, or another number of results.
    """
    if len(numbers) != len(expected):
        raise AccuracyError(f"{len(numbers)} results instead of {len(expected)}; no time is reported")
    size = max(float(b.double().norm()) for b in expected)
    precision = contender.precision or case.dtype
    worst = 0.0
    for a, b in zip(numbers, expected):
        a, b = a.double(), b.double().to(a.device)
        floor = 0.05 * size if b.dim() == 1 and case.level in ("block", "network", "accelerated") else 1e-30
        error = float((a - b).norm() / max(float(b.norm()), floor))
        limit = LIMITS["moved" if case.level == "training" and b.dim() == 1 else case.level][precision]
        if not error <= limit:
            raise AccuracyError(f"its numbers are off by {error:.1e} (allowed: {limit:.0e}); no time is reported")
        worst = max(worst, error)
    return worst


_NOTHING = dict.fromkeys(("bytes", "flops", "peak_bytes", "state_bytes", "launches", "error", "l2", "failure"))


def _extras(case: Case, contender: Contender, work: Work, device: torch.device) -> dict[str, Any]:
    if case.level == "folder":  # minutes a step, and threads that no profiler follows
        return _NOTHING.copy()
    # What inductor allocates on the CPU does not pass torch's profiler; a graph's memory is its pool's.
    hidden = contender.graph or contender.external or (contender.compiled and device.type == "cpu")
    # Counting would break a compiled function's graph, and sees nothing of a CUDA graph's: see _share_flops.
    moves = case.level == "op" and case.name not in contenders_convs.SPECS  # bound by memory, not by arithmetic
    counted = not moves and not (contender.compiled or contender.graph or contender.external)
    return _NOTHING | {
        "bytes": contenders_ops.minimal_bytes(case) if moves else None,
        "flops": timing.flops(work.step) if counted else None,
        "peak_bytes": None if hidden else timing.peak_bytes(work.step, device),
        "state_bytes": work.state_bytes,
        "launches": timing.launches(work.step, device) if work.launches is None else work.launches,
    }


def _share_flops(extras: dict[Contender, dict[str, Any]]) -> None:
    """A compiled, captured or exported contender multiplies what the eager one of its algorithm does."""
    counted = {c.algorithm: e["flops"] for c, e in extras.items() if e["flops"]}
    for contender, values in extras.items():
        values["flops"] = values["flops"] or counted.get(contender.algorithm)


def _row(
    case: Case,
    c: Contender,
    spread: Spread | None,
    where: dict[str, Any],
    options: BenchOptions,
    extras: dict[str, Any],
) -> Row:
    precision = c.precision or case.dtype
    # The rate of a dtype that the processor lacks, a reason for no time, takes minutes to measure.
    rated = case.dtype if spread is None else precision
    times: dict[str, float | None] = {"p20": None, "p50": None, "p80": None}
    if spread is not None:
        times = {k: float(f"{v:.5g}") for k, v in asdict(spread).items()}
    error = None if extras["error"] is None else float(f"{extras['error']:.2g}")
    values: dict[str, Any] = where | asdict(case) | times | extras | {"error": error}
    return Row(
        **values,
        implementation=c.implementation,
        layout=c.layout,
        precision=precision,
        graph=c.graph,
        rounds=options.rounds,
        copy_speed=float(f"{machine.copy_speed(options.device):.4g}"),
        matrix_rate=float(f"{machine.matrix_rate(options.device, DTYPES[rated]):.4g}"),
    )

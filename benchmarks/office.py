"""What `munit-fast bench` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from munit_fast.benchmarks import compare as comparison
from munit_fast.benchmarks import rows
from munit_fast.benchmarks.cases import LEVELS, Case
from munit_fast.benchmarks.report import write_report
from munit_fast.benchmarks.runner import BenchOptions, run
from munit_fast.benchmarks.summary import complete


def measure(cases: Sequence[Case], options: BenchOptions, console: Console) -> None:
    """Run the cases and sum them up. Raises RuntimeError where a contender had wrong numbers or broke."""
    found, failures = run(cases, options, console)
    summaries = complete(found)
    for level in LEVELS:
        speed = [s.speedup for s in summaries if s.first.level == level]
        if speed:
            lost = sum(ratio < 1 for ratio in speed)
            console.print(
                f"{level}: {geometric_mean(speed):.2f}× the fastest baseline in the geometric mean of {len(speed)} "
                f"cases, {min(speed):.2f}× to {max(speed):.2f}×, {lost} slower",
                soft_wrap=True,
            )
    if options.output is not None:
        console.print(f"{len(found)} rows added to {options.output}", markup=False)
    if failures:
        raise RuntimeError(f"{len(failures)} contenders have no time:\n" + "\n".join(failures))


def write(results: Path, readme: Path | None, pages: Path, console: Console) -> None:
    """Write the README's table, if there is a README to write to, and the machines' pages and plots."""
    for path in write_report(results, readme, pages):
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def compare(against: str, results: Path, console: Console) -> None:
    """Print what changed against a file of rows or a git revision."""
    after = rows.load(results)
    if Path(against).exists():
        before = rows.load(Path(against))
    else:
        before = rows.load_revision(against, results if results.is_dir() else results.parent)
    changes = comparison.compare(before, after)
    table = Table("case", "before, ms", "after, ms", "as fast", "noise", "", box=SIMPLE_HEAD)
    for change in changes:
        row = change.case
        l2 = f" {row.l2} L2" if row.l2 else ""
        table.add_row(
            f"{row.level} {row.name} {row.mode} {row.shape} {row.dtype}{l2}",
            f"{change.before * 1e3:.4g}",
            f"{change.after * 1e3:.4g}",
            f"{change.ratio:.3f}×" + ("" if change.relative else " (plain times)"),
            f"± {(change.noise - 1) * 100:.1f} %",
            change.verdict,
        )
    console.print("Ours against the steadiest baseline of its own run, before and after; above 1 is faster now.")
    console.print(table)
    beyond = [change for change in changes if change.beyond_noise > 1]
    mean = geometric_mean(change.ratio for change in changes)
    console.print(
        f"{len(changes)} cases: {sum(c.ratio > 1 for c in beyond)} faster and {sum(c.ratio < 1 for c in beyond)} "
        f"slower beyond the noise; geometric mean {mean:.3f}×",
        soft_wrap=True,
    )

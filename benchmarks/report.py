"""Writes the pages, their index and the README's rows from committed rows, and prints what `munit-fast bench` found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from munit_fast.benchmarks import plots
from munit_fast.benchmarks.cases import LEVELS
from munit_fast.benchmarks.compare import Change, compare
from munit_fast.benchmarks.rows import Machine, Row, load, load_revision
from munit_fast.benchmarks.summary import by_machine, complete
from munit_fast.benchmarks.tables import five_rows, page, summary
from munit_fast.io.atomic import atomic_write_bytes

BEGIN = "<!-- written by `munit-fast bench --report`; edits between here and the end are lost -->"
END = "<!-- end of what `munit-fast bench --report` writes -->"
HOW = """\
## How it is measured

Each case is timed in one process. All implementations take turns, so that a busy machine slows all of them alike, and
the numbers of each one are checked against the reference before it is timed. The score is against the *fastest*
baseline:

- the published algorithm in eager mode, NCHW and channels_last, float32 and autocast;
- for a convolution by itself PyTorch's direct one, NCHW and channels_last;
- `F.batch_norm` at N = 1 and `group_norm(C)` in place of instance norm;
- `torch.compile` in its default and max-autotune modes;
- on a GPU, each of them in a CUDA graph;
- for translation on a CPU also `torch.compile` with freezing, ONNX Runtime and OpenVINO (float32 and bfloat16) on the
  published generators exported to ONNX, with as many threads as torch.

The files of `munit-fast export` are timed as ours, beside these baselines and never as one.

The committed iterations, networks and blocks of the Xeon, and all cases of the EPYC, were timed without the
max-autotune mode.

Every figure is a row in `benchmarks/results`, with processor, versions, commit, shapes, dtype and percentiles.

```sh
munit-fast bench --set cpu --output benchmarks/results/cpu.jsonl   # --level, --name, --side, --batch, --dtype; --list
munit-fast bench --set others --rounds 3 --output FILE             # networks before and after `accelerate`
munit-fast bench --set exported --output FILE                      # files of `munit-fast export` in their runtimes
munit-fast bench --set folders --rounds 3 --output FILE            # 1,000 files translated, against the network alone
munit-fast bench --report                                          # these pages and the README's rows
munit-fast bench --compare REVISION_OR_FILE                        # what changed, beside the noise
make bench                                                         # the first two
pytest benchmarks                                                  # operators under pytest-benchmark
```"""


def print_summary(rows: Sequence[Row], console: Console) -> None:
    """Print the geometric mean of the speed-ups of a run for each level."""
    summaries = complete(rows)
    for level in LEVELS:
        speedups = [s.speedup for s in summaries if s.first.level == level]
        if speedups:
            lost = sum(ratio < 1 for ratio in speedups)
            console.print(
                f"{level}: {geometric_mean(speedups):.2f}× the fastest baseline in the geometric mean of "
                f"{len(speedups)} cases, {min(speedups):.2f}× to {max(speedups):.2f}×, {lost} slower",
                soft_wrap=True,
            )


def print_comparison(against: str, results: Path, console: Console) -> None:
    """Print what changed since earlier rows.

    Args:
        against: The earlier rows: a file or folder, or a git revision of `results`.
        results: File or folder of the later rows.
        console: Where to print.

    Raises:
        RowsError: One side has no rows that can be read.
        ValueError: No case was measured on the same machine on both sides.
    """
    after = load(results)
    if Path(against).exists():
        before = load(Path(against))
    else:
        before = load_revision(against, results if results.is_dir() else results.parent)
    changes = compare(before, after)
    console.print("Ours against the steadiest baseline of its own run, before and after; above 1 is faster now.")
    console.print(_change_table(changes))
    beyond = [change for change in changes if change.beyond_noise > 1]
    mean = geometric_mean(change.ratio for change in changes)
    console.print(
        f"{len(changes)} cases: {sum(c.ratio > 1 for c in beyond)} faster and {sum(c.ratio < 1 for c in beyond)} "
        f"slower beyond the noise; geometric mean {mean:.3f}×",
        soft_wrap=True,
    )


def _change_table(changes: Sequence[Change]) -> Table:
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
    return table


def write_report(results: Path, readme: Path | None, folder: Path) -> list[Path]:
    """Write a page and plots for each machine, their index with the table of all, and the README's rows.

    Args:
        results: File or folder of rows.
        readme: Where its rows are put, between `BEGIN` and `END`; created if it is missing. None: only the pages.
        folder: Where the pages, the plots and index.md are put.

    Returns:
        The files written.

    Raises:
        RowsError: There are no rows that can be read.
        ValueError: `readme` lacks the marks.
        FileWriteError: A file cannot be written.
    """
    rows = load(results)
    marked = None if readme is None else _marked(readme)
    drawn = plots.draw(rows, folder)
    written = [path for made in drawn.values() for path in made.values()]
    pages = {}
    for machine, mine in by_machine(rows).items():
        pages[machine] = folder / f"{plots.slug(str(machine))}.md"
        shown = [(path.name, plots.ALT[name]) for name, path in drawn.get(machine, {}).items()]
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(pages[machine], page(machine, mine, shown).encode())
    index = folder / "index.md"
    atomic_write_bytes(index, _index(rows, pages).encode())
    written += [*pages.values(), index]
    if readme is not None and marked is not None:
        links = {name: Path(os.path.relpath(path, readme.parent)).as_posix() for name, path in pages.items()}
        atomic_write_bytes(readme, f"{marked[0]}\n\n{five_rows(rows, links)}\n\n{marked[1]}".encode())
        written.append(readme)
    return written


def _index(rows: Sequence[Row], pages: Mapping[Machine, Path]) -> str:
    names = "\n".join(path.stem for path in pages.values())
    table = summary(rows, {machine: path.name for machine, path in pages.items()})
    contents = f"```{{toctree}}\n:hidden:\n\n{names}\n```"
    head = "# Benchmarks\n\nWritten by `munit-fast bench --report`: edits are lost."
    return "\n\n".join([head, table, HOW, contents]) + "\n"


def _marked(readme: Path) -> tuple[str, str]:
    """What stands before and after the report, marks included. Raises ValueError."""
    text = readme.read_text(encoding="utf-8") if readme.exists() else f"# Measured speed\n\n{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} needs one line\n{BEGIN}\nand after it one line\n{END}")
    return text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]

"""A page for each machine, an index of them and the README's rows, from committed rows; what `munit-fast bench` prints.

Cases where munit_fast is slower are printed as those where it is faster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from munit_fast.benchmarks import plots
from munit_fast.benchmarks.cases import HEADLINES, LEVELS, STYLES, Case
from munit_fast.benchmarks.compare import Change, compare
from munit_fast.benchmarks.contenders import COMPILED, FROZEN, ONNX_RUNTIME, OPENVINO, PUBLISHED
from munit_fast.benchmarks.rows import Machine, Row, load, load_revision
from munit_fast.benchmarks.summary import Summary, by_machine, complete, summarize
from munit_fast.io.atomic import atomic_write_bytes

NONE = "–"  # where a figure does not apply or was not measured
BEGIN = "<!-- written by `munit-fast bench --report`; edits between here and the end are lost -->"
END = "<!-- end of what `munit-fast bench --report` writes -->"
HOW = """\
## How it is measured

Each case is timed in one process. All implementations take turns, so that a busy machine slows all of them alike, and
the numbers of each one are checked against the reference before it is timed. The score is against the *fastest*
baseline:

- the published algorithm in eager mode, NCHW and channels_last, float32 and autocast;
- `F.batch_norm` at N = 1 and `group_norm(C)` in place of instance norm;
- `torch.compile` in its default and max-autotune modes;
- on a GPU, each of them in a CUDA graph;
- for translation on a CPU also `torch.compile` with freezing, ONNX Runtime and OpenVINO (float32 and bfloat16) on the
  published generators exported to ONNX, with as many threads as torch.

The committed iterations, networks and blocks of the Xeon, and all cases of the EPYC, were timed without the
max-autotune mode.

Every figure is a row in `benchmarks/results`, with processor, versions, commit, shapes, dtype and percentiles.

```sh
munit-fast bench --set cpu --output benchmarks/results/cpu.jsonl   # --level, --name, --side, --batch, --dtype; --list
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


def five_rows(rows: Sequence[Row], links: Mapping[Machine, str]) -> str:
    """The README's table: iterations and translations in ten styles in both precisions, and all operations."""
    machines = {machine: complete(mine) for machine, mine in by_machine(rows).items()}
    cases = [case for case in HEADLINES if case.name != "in 1 style"]
    lines = [[_headline_title(case), *(_headline(case, found) for found in machines.values())] for case in cases]
    lines.append(_operations(machines.values()))
    table = _table(["256², batch 1, dim 64", *(f"[{name}]({links[name]})" for name in machines)], lines)
    return f"{table}\n\n{_not_measured(rows)}"


def _operations(machines: Iterable[list[Summary]]) -> list[str]:
    operations = [[s.speedup for s in found if s.first.level == "op"] for found in machines]
    return [
        "operations, geometric mean",
        *(f"{geometric_mean(o):.2f}× ({len(o)} cases)" if o else NONE for o in operations),
    ]


def _marked(readme: Path) -> tuple[str, str]:
    """What stands before and after the report, marks included. Raises ValueError."""
    text = readme.read_text(encoding="utf-8") if readme.exists() else f"# Measured speed\n\n{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} needs one line\n{BEGIN}\nand after it one line\n{END}")
    return text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]


def summary(rows: Sequence[Row], links: Mapping[Machine, str] | None = None) -> str:
    """The table of the headline cases, a column for each machine, and what was not measured.

    links: to each machine's page.
    """
    machines = {machine: complete(mine) for machine, mine in by_machine(rows).items()}
    names = [f"[{name}]({links[name]})" if links else str(name) for name in machines]
    lines = [[_headline_title(case), *(_headline(case, found) for found in machines.values())] for case in HEADLINES]
    lines.append(_operations(machines.values()))
    lost = [f"{sum(s.speedup < 1 for s in found)} of {len(found)}" for found in machines.values()]
    lines.append(["cases slower than the fastest baseline", *lost])
    lines = [line for line in lines if set(line[1:]) != {NONE}]
    text = (
        "Seconds of munit_fast, how many times as fast it is as the fastest baseline of the same case, and in brackets "
        "as the published algorithm in eager NCHW float32. All contenders, networks, blocks, operations and every loss "
        "are on the machines' pages."
    )
    table = _table(["256², batch 1, dim 64", *names], lines)
    untried = [sentence for name, found in machines.items() if (sentence := _untried(found, f" on {name}"))]
    return "\n\n".join([text, table, " ".join([_not_measured(rows), *untried])])


def _headline_title(case: Case) -> str:
    what = "training iteration" if case.level == "training" else f"{case.level} {case.name}"
    return f"{what}, {case.dtype}"


def _headline(case: Case, summaries: list[Summary]) -> str:
    """The cell of one case on one machine: of its newest torch, if there are rows of several."""
    found = [s for s in summaries if all(getattr(s.first, name) == value for name, value in asdict(case).items())]
    if not found:
        return NONE
    newest = max(found, key=lambda s: s.first.run)
    assert newest.ours is not None
    over = "" if newest.over_published is None else f" ({newest.over_published:.2f}×)"
    return f"{newest.ours.seconds:.3g} s: {newest.speedup:.2f}×{over}"


def page(machine: Machine, rows: Sequence[Row], pictures: Sequence[tuple[str, str]] = ()) -> str:
    """All tables of one machine's rows as Markdown.

    pictures: (path, description) of its plots.
    """
    every = summarize(rows)
    summaries = complete(rows)
    parts = [f"# {machine}", "Written by `munit-fast bench --report`: edits are lost."]
    parts.append(_provenance([row for s in every for row in (*s.rows, *s.failed)]))
    parts += [f"![{alt}]({path})" for path, alt in pictures]
    for level, make in _TABLES.items():
        chosen = [s for s in summaries if s.first.level == level]
        if chosen:
            parts.append(make(chosen))
    parts.append(_losses(summaries))
    parts += [sentence for sentence in [_untried(summaries)] if sentence]
    parts += _failures(every)
    return "\n\n".join(parts) + "\n"


def _provenance(rows: list[Row]) -> str:
    def values(name: str) -> str:
        return ", ".join(sorted({str(getattr(row, name)) for row in rows if getattr(row, name) is not None}))

    machine = rows[0].machine
    cpu = f"CPU {machine.cpu}{machine.features} ({values('isa')})"
    words = [f"torch {values('torch')}", cpu]
    words += [f"triton {values('triton')}, CUDA {values('cuda')}, driver {values('driver')}"] if values("cuda") else []
    copy = sorted(row.copy_speed for row in rows)[len(rows) // 2]
    rates = {row.precision: row.matrix_rate for row in rows}
    ceilings = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in sorted(rates.items(), reverse=True))
    return (
        f"{len(rows)} rows of {values('date')}, commits {values('commit')}; {'; '.join(words)}. Measured ceilings: "
        f"copy {copy / 1e9:.3g} GB/s (read and written), matrix products {ceilings}. "
        "Speed is the time of the fastest baseline over ours, so 1 is a draw."
    )


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _mean_and_worst(values: list[float], worst: float) -> str:
    return f"{geometric_mean(values):.2f} ({worst:.2f})"


def _ratios(summaries: list[Summary], others: set[str]) -> list[float]:
    """The fastest of the named baselines over ours, where one was measured."""
    found = []
    for s in summaries:
        times = [row.seconds for row in s.rows if row.implementation in others]
        if times and s.ours is not None:
            found.append(min(times) / s.ours.seconds)
    return found


def _op_table(summaries: list[Summary]) -> str:
    """One line for each operation, mode and dtype, over the shapes."""
    groups: dict[tuple[str, ...], list[Summary]] = {}
    for s in summaries:
        row = s.first
        l2 = f", {row.l2} L2" if row.l2 else ""
        groups.setdefault((row.name, f"{row.mode}{l2}", row.dtype), []).append(s)
    groups[("all", "", "")] = summaries
    lines = []
    for (name, mode, dtype), chosen in groups.items():
        speed = [s.speedup for s in chosen]
        cells = [name, mode, dtype, str(len(chosen)), _mean_and_worst(speed, min(speed))]
        for others in ({PUBLISHED}, set(COMPILED)):
            ratios = _ratios(chosen, others)
            cells.append(_mean_and_worst(ratios, min(ratios)) if ratios else NONE)
        shares = [s.ours.share_of_copy for s in chosen if s.ours and s.ours.share_of_copy]
        cells.append(_mean_and_worst(shares, min(shares)) if shares else NONE)
        memory = [s.memory for s in chosen if s.memory]
        cells.append(_mean_and_worst(memory, max(memory)) if memory else NONE)
        lines.append(cells)
    header = (
        "operation",
        "mode",
        "dtype",
        "shapes",
        "over the fastest baseline",
        "over the published formula",
        "over torch.compile",
        "share of copy speed",
        "peak memory over the leanest",
    )
    return "**Operations.** Geometric means over shapes, with the worst in brackets.\n\n" + _table(header, lines)


def _part_table(summaries: list[Summary]) -> str:
    lines = []
    for s in summaries:
        assert s.ours is not None and s.best_baseline is not None
        row = s.first
        memory = NONE if s.memory is None else f"{s.memory:.2f}"
        share = NONE if s.ours.share_of_matrix is None else f"{s.ours.share_of_matrix:.2f}"
        lines.append(
            (
                f"{row.name}, {row.shape}",
                row.dtype,
                f"{s.ours.seconds * 1e3:.4g}",
                f"{s.speedup:.2f}×",
                s.best_baseline.title,
                share,
                memory,
            )
        )
    level = {"block": "Blocks", "network": "Networks"}[summaries[0].first.level]
    header = ("", "dtype", "ms", "speed", "fastest baseline", "share of matrix rate", "peak memory over the leanest")
    return f"**{level}**, forward and backward.\n\n" + _table(header, lines)


def _whole_table(summaries: list[Summary]) -> str:
    """Every contender of iterations and translations, slowest first."""
    blocks = []
    for s in summaries:
        row, published = s.first, s.published
        training = row.level == "training"
        columns: dict[str, Callable[[Row], str]] = {
            "": lambda r: f"**{r.title}**" if r.ours else r.title,
            "seconds, median (p20 – p80)": lambda r: f"{r.p50:.4g} ({r.p20:.4g} – {r.p80:.4g})",
            "over published": lambda r, p=published: NONE if p is None else f"{p.seconds / r.seconds:.2f}×",  # type: ignore[misc]
        }
        if training:
            columns["it/s"] = lambda r: f"{1 / r.seconds:.3g}"
            columns["hours for 1M"] = lambda r: f"{r.hours_per_million:,.0f}"
        else:
            columns["images/s"] = lambda r: f"{r.batch * STYLES[r.name] / r.seconds:.3g}" if r.name in STYLES else NONE
        columns["TFLOP/s"] = lambda r: NONE if r.flop_rate is None else f"{r.flop_rate / 1e12:.3g}"
        columns["peak MB"] = _memory_cell
        if any(r.launches is not None for r in s.rows):
            columns["launches"] = lambda r: NONE if r.launches is None else str(r.launches)
        lines = [[cell(r) for cell in columns.values()] for r in sorted(s.rows, key=lambda r: -r.seconds)]
        size = f"{row.side}², batch {row.batch}, dim {row.channels}, {row.dtype}"
        what = "Training iteration" if training else f"Translation {row.name}"
        assert s.best_baseline is not None
        title = f"**{what}**, {size}: {s.speedup:.2f}× the fastest baseline ({s.best_baseline.title})."
        note = " Peak memory beyond weights and moments, and with them in brackets." if training else ""
        blocks.append(f"{title}{note}\n\n{_table(list(columns), lines)}")
    return "\n\n".join(blocks)


def _memory_cell(row: Row) -> str:
    if row.peak_bytes is None:
        return NONE
    whole = "" if row.state_bytes is None else f" ({(row.peak_bytes + row.state_bytes) / 1e6:.0f})"
    return f"{row.peak_bytes / 1e6:.0f}{whole}"


_TABLES = {
    "training": _whole_table,
    "translation": _whole_table,
    "network": _part_table,
    "block": _part_table,
    "op": _op_table,
}


def _losses(summaries: list[Summary]) -> str:
    lost = sorted((s for s in summaries if s.speedup < 1), key=lambda s: s.speedup)
    if not lost:
        return f"No case of {len(summaries)} is slower than its fastest baseline."
    named = []
    for s in lost:
        assert s.best_baseline is not None
        l2 = f", {s.first.l2} L2" if s.first.l2 else ""
        what = f"{s.first.name} {s.first.mode} {s.first.shape} {s.first.dtype}{l2}"
        named.append(f"{what}: {s.speedup:.2f}× ({s.best_baseline.title})")
    return f"Slower than the fastest baseline in {len(lost)} of {len(summaries)} cases: " + "; ".join(named) + "."


def _failures(summaries: list[Summary]) -> list[str]:
    """What has no time, and why: a baseline that is missing is no baseline that was beaten."""
    failed = [row for s in summaries for row in s.failed]
    if not failed:
        return []
    named = [f"{row.name} {row.mode} {row.shape} {row.dtype}, {row.title}: {row.failure}" for row in failed]
    return [f"Without a time ({len(failed)}): " + "; ".join(named) + "."]


def _untried(summaries: list[Summary], where: str = "") -> str | None:
    """Which baselines of translation alone were not timed in each one on a CPU; None where all were."""
    found = [{row.implementation for row in s.rows} for s in summaries if s.first.level == "translation"]
    missing = [name for name in (FROZEN, ONNX_RUNTIME, OPENVINO) if any(name not in timed for timed in found)]
    if not missing or any(s.first.cuda for s in summaries):
        return None
    return f"**Translations{where} were not timed against {', '.join(missing)}.**"


def _not_measured(rows: Sequence[Row]) -> str:
    """A plain sentence on what these numbers do not say."""
    gpus = sorted({row.device for row in rows if row.cuda})
    cpus = sorted({row.cpu + row.machine.features for row in rows if not row.cuda})
    sides = sorted({row.side for row in rows if row.level == "training"})
    batches = sorted({row.batch for row in rows if row.level == "training"})
    words = []
    words.append(f"Measured on these alone: {', '.join([*gpus, *cpus])}.")
    if not gpus:
        words.append("**Nothing has been measured on a GPU.**")
    if sides:
        words.append(
            f"Iterations were timed at {', '.join(f'{side}²' for side in sides)} with batches of "
            f"{', '.join(map(str, batches))}; other sizes were not."
        )
    return " ".join(words)

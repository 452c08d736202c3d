"""Rows as Markdown: a page for each machine, the table of the headline cases and the README's rows.

Cases where munit_fast is slower are printed as those where it is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import geometric_mean

from munit_fast.benchmarks.cases import HEADLINES, STYLES, Case, shape_of
from munit_fast.benchmarks.contenders import COMPILED, FROZEN, ONNX_RUNTIME, OPENVINO, PUBLISHED
from munit_fast.benchmarks.rows import Machine, Row
from munit_fast.benchmarks.summary import Summary, by_machine, complete, summarize

NONE = "–"  # where a figure does not apply or was not measured


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
        "Seconds of munit_fast; how many times as fast that is as the fastest baseline of the same case; in brackets, "
        "as the published algorithm in eager NCHW float32. The machines' pages have every implementation, network, "
        "block and operation, losses included."
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
    parts.append(_losses([s for s in summaries if s.first.level != "folder"]))  # the network alone is a bound
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
    rates = {row.precision: row.matrix_rate for row in rows if row.failure is None}
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


def _accelerated_table(summaries: list[Summary]) -> str:
    """One line for each network, with a pair of columns for each batch: before and after."""
    batches = sorted({s.first.batch for s in summaries})
    found = {(s.first.name, s.first.channels, s.first.side, s.first.mode, s.first.batch): s for s in summaries}
    lines = []
    for name, channels, side, mode in dict.fromkeys(key[:4] for key in found):
        cells = [f"{name}, {shape_of(name, 1, channels, side).partition('×')[2]}", _MODES.get(mode, mode)]
        for batch in batches:
            s = found.get((name, channels, side, mode, batch))
            cells += [NONE] * 3 if s is None else _before_and_after(s)
        lines.append(cells)
    header = ["channels and side", ""]
    for batch in batches:
        header += [f"batch {batch}: seconds before → after", "as fast", "peak MB before → after"]
    text = (
        "**Networks of others**, before and after `munit_fast.accelerate`, in eager NCHW float32. A training step is "
        "forward, loss, backward and Adam's step; peak memory is beyond weights and moments."
    )
    return f"{text}\n\n{_table(header, lines)}"


_MODES = {"training": "training step"}


def _before_and_after(s: Summary) -> list[str]:
    assert s.ours is not None and s.best_baseline is not None
    before, after = s.best_baseline, s.ours
    memory = NONE
    if before.peak_bytes and after.peak_bytes:
        memory = f"{before.peak_bytes / 1e6:.0f} → {after.peak_bytes / 1e6:.0f}"
    return [f"{before.seconds:.3g} → {after.seconds:.3g}", f"{s.speedup:.2f}×", memory]


def _exported_table(summaries: list[Summary]) -> str:
    """A line for each contender, slowest first, with a column for each case: of its newest torch, as in `_headline`."""
    newest: dict[tuple[object, ...], Summary] = {}
    for s in summaries:
        key = (s.first.side, s.first.channels, s.first.name, s.first.batch, s.first.dtype)
        newest[key] = max(s, newest.get(key, s), key=lambda s: s.first.run)
    summaries = list(newest.values())
    times: dict[str, list[float | None]] = {}  # by title, over that of the published algorithm
    cells: dict[str, list[str]] = {}
    shown = {row.title: f"**{row.title}**" if row.ours else row.title for s in summaries for row in s.rows}
    for s in summaries:
        found = {row.title: row for row in s.rows}
        for title in shown:
            row = found.get(title)
            over = None if row is None or s.published is None else row.seconds / s.published.seconds
            times.setdefault(title, []).append(over)
            speed = "" if over is None else f" ({1 / over:.2f}×)"
            cells.setdefault(title, []).append(NONE if row is None else f"{_milliseconds(row)}{speed}")

    def mean(title: str) -> float:
        return geometric_mean([over for over in times[title] if over is not None] or [1.0])

    columns = [f"{s.first.side}², dim {s.first.channels}, {s.first.name}" for s in summaries]
    lines = [[shown[title], *cells[title]] for title in sorted(shown, key=mean, reverse=True)]
    text = (
        "**Exported files.** Milliseconds to translate an image on the CPU, in brackets how many times as fast as the "
        "published algorithm in eager NCHW. ONNX Runtime and OpenVINO by themselves run what `torch.onnx.export` makes "
        "of the published networks for that size alone; the files of `munit-fast export` take any size and any number "
        "of styles."
    )
    return f"{text}\n\n{_table(['', *columns], lines)}"


def _milliseconds(row: Row) -> str:
    """Three digits, without an exponent."""
    value = row.seconds * 1e3
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def exported(rows: Sequence[Row]) -> str:
    """The table of exported files of each machine that has one, for a page on them."""
    parts = []
    for machine, mine in by_machine(rows).items():
        chosen = [s for s in complete(mine) if s.first.level == "exported"]
        parts += [f"On {machine}:", _exported_table(chosen)] if chosen else []
    return "\n\n".join(parts) or "Nothing has been measured: `munit-fast bench --set exported` does it."


def _folder_table(summaries: list[Summary]) -> str:
    lines = []
    for s in summaries:
        assert s.ours is not None and s.best_baseline is not None
        rates = [f"{row.batch / row.seconds:.3g}" for row in (s.best_baseline, s.ours)]
        size = f"{s.first.batch} files of {s.first.side}², dim {s.first.channels}, in 1 style"
        lines.append([size, s.first.dtype, *rates, f"{s.speedup:.0%}"])
    header = ("", "dtype", "pictures a second of the network alone", "from files to files", "share")
    text = (
        "**Whole folders.** What `munit-fast translate` reads, translates and writes (PNG to PNG, in batches of 8), "
        "against its network on tensors in memory."
    )
    return f"{text}\n\n{_table(header, lines)}"


def _launch_table(summaries: list[Summary]) -> str:
    lines = []
    for s in summaries:
        assert s.ours is not None and s.best_baseline is not None
        row = s.ours
        each = [f"{r.seconds / r.launches * 1e6:.3g}" if r.launches else NONE for r in (s.best_baseline, row)]
        size = f"{row.side}², batch {row.batch}, dim {row.channels}"
        launches = NONE if row.launches is None else str(row.launches)
        lines.append([f"{row.name}, {size}", row.dtype, launches, *each, f"{s.speedup:.2f}×"])
    header = ("", "dtype", "launches", "µs each by Triton's wrapper", "µs each by munit_fast", "as fast")
    text = (
        "**Launches.** The time of the host alone, over a stub of CUDA's driver: no kernel runs, and no GPU is there. "
        "It counts where launches are not replayed from a CUDA graph."
    )
    return f"{text}\n\n{_table(header, lines)}"


_TABLES = {
    "training": _whole_table,
    "translation": _whole_table,
    "exported": _exported_table,
    "folder": _folder_table,
    "accelerated": _accelerated_table,
    "network": _part_table,
    "block": _part_table,
    "op": _op_table,
    "launch": _launch_table,
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

"""A trace of training iterations for people and for programs: tables on a console, or JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from munit_fast.train.trace import Kind, Trace


def as_json(trace: Trace, kinds: Sequence[Kind] = ()) -> str:
    """A trace as JSON: its sums, the launches of each operator and kernel, and the same of each further kind."""
    others = [{"every": kind.every, "computes": kind.computes, **_content(kind.trace)} for kind in kinds]
    return json.dumps(_content(trace) | {"kinds_of_iterations": others}, indent=1)


def _content(trace: Trace) -> dict[str, Any]:
    return {
        "launches": trace.launches,
        "kinds": {
            kind: dict(zip(("launches", "bytes_read", "bytes_written"), sums)) for kind, sums in trace.by_kind().items()
        },
        "names": {f"{kind}: {name}": launches for (kind, name), launches in trace.by_name().most_common()},
        "parameter_casts": sorted(set(trace.parameter_casts)),
        "host_bytes": trace.host_bytes,
        "noise_bytes": trace.noise_bytes,
        "blocking": trace.blocking,
    }


def show(trace: Trace, console: Console, top: int = 20, kinds: Sequence[Kind] = ()) -> None:
    """Print a trace.

    Args:
        trace: of an iteration.
        console: where.
        kinds: further kinds of iterations, of which the difference is printed.
        top: how many operators and kernels are listed, those with the most launches.
    """
    table = Table("kind", *(Column(name, justify="right") for name in ("launches", "MB read", "MB written")))
    for kind, (launches, read, written) in trace.by_kind().items():
        table.add_row(kind, f"{launches:,}", f"{read / 1e6:,.0f}", f"{written / 1e6:,.0f}")
    table.add_section()
    table.add_row("all", f"{trace.launches:,}", *(f"{sum(column) / 1e6:,.0f}" for column in _byte_columns(trace)))
    console.print(table)
    if top:
        names = Table("operator or kernel", "kind", Column("launches", justify="right"))
        for (kind, name), launches in trace.by_name().most_common(top):
            names.add_row(name, kind, f"{launches:,}")
        console.print(names)
    for what, count in Counter(trace.blocking).items():
        console.print(f"keeps a CUDA graph from capturing it: {what} ({count} times)", markup=False)
    if not trace.blocking:
        console.print("Nothing keeps a CUDA graph from capturing it.")
    for each in kinds:
        _show_kind(each, trace, console)
    casts = len(trace.parameter_casts)
    console.print(f"{casts} times a parameter is cast by itself." if casts else "No parameter is cast by itself.")
    console.print(
        f"{trace.host_bytes + trace.noise_bytes:,} bytes are made on the host, {trace.noise_bytes:,} of noise."
    )


def _show_kind(kind: Kind, common: Trace, console: Console) -> None:
    traces = (kind.trace, common)
    read, written = (of_kind - usual for of_kind, usual in zip(*([sum(c) for c in _byte_columns(t)] for t in traces)))
    line = (
        f"iterations {kind.every}, {2 * kind.every}, … ({', '.join(kind.computes)}) launch "
        f"{kind.trace.launches - common.launches:,} more: {kind.trace.launches:,}; they read {read / 1e6:,.0f} MB more "
        f"and write {written / 1e6:,.0f} MB more"
    )
    if kind.trace.blocking and not common.blocking:
        line += f"; no CUDA graph can capture them: {', '.join(dict.fromkeys(kind.trace.blocking))}"
    if casts := len(kind.trace.parameter_casts) - len(common.parameter_casts):
        line += f"; they cast parameters by themselves {casts} times more"
    console.print(line, markup=False, soft_wrap=True)


def _byte_columns(trace: Trace) -> tuple[list[int], list[int]]:
    return [o.read for o in trace.operations], [o.written for o in trace.operations]

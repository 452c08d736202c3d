"""What `make gpu-check` makes of its rows: a page of them, the goals, and whether they switch on a backend.

    python benchmarks/scripts/gpu_report.py ROWS --set gate --device cuda --out FOLDER

Writes PAGE.md (named after the machine, without plots: `munit-fast bench --report` draws them elsewhere), goals.md,
measured.json and ROWS-gpu-check.json, and prints each goal and each case that was not measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from munit_fast.benchmarks import SETS, BenchOptions, backend_choice, goals, machine, runner, tables
from munit_fast.benchmarks.plots import slug
from munit_fast.benchmarks.rows import parse
from munit_fast.io.atomic import atomic_write_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--set", choices=SETS, required=True, help="the cases that were to be measured")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--no-compile", action="store_true", help="torch.compile was not to be measured")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    text = args.rows.read_text(encoding="utf-8") if args.rows.exists() else ""
    rows, here = parse(text, str(args.rows)), machine.describe(torch.device(args.device))
    options = BenchOptions(compile=not args.no_compile, compile_last=True)
    missing = [str(turn) for turn in runner.missing(runner.plan(SETS[args.set], options), rows, here)]
    verdicts = goals.assess([row for row in rows if row.device == here["device"] and row.commit == here["commit"]])
    choice = backend_choice.choose(rows) if rows else None
    written = {"goals.md": goals.page(here["device"], verdicts, missing, choice)}
    if choice is not None:
        written["measured.json"] = json.dumps(choice, indent=1, ensure_ascii=False) + "\n"
        where = max(rows, key=lambda row: row.run).machine
        written[f"{slug(str(where))}.md"] = tables.page(where, [row for row in rows if row.machine == where])
    found = {"goals": [verdict.plain() for verdict in verdicts], "not_measured": missing}
    written[f"{args.rows.stem}-gpu-check.json"] = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    for name, content in written.items():
        atomic_write_bytes(args.out / name, content.encode())
    for verdict in verdicts:
        value = "" if verdict.value is None else f", {verdict.value:.3g} {verdict.unit}"
        limit = f"{'at most' if verdict.at_most else 'at least'} {verdict.limit:g} {verdict.unit}"
        print(f"{verdict.verdict}: {verdict.goal} ({limit}{value})")
    print("every case was measured" if not missing else f"{len(missing)} cases were not measured:")
    for name in missing:
        print(f"  {name}")


if __name__ == "__main__":
    main()

"""Write the parts of the documentation that follow from committed numbers, or see whether they are up to date.

    python docs/generate.py            # write them
    python docs/generate.py --check    # fail where one is stale, and change nothing

README's rows, docs/benchmarks and the table in docs/export.md come from benchmarks/results, docs/scaling.md from
docs/scaling.json, the tables of docs/ablation.md from docs/ablation/results.jsonl, and the tables of metrics in the
model cards, docs/demo.md and docs/training.md from the JSON files named in the comments before them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

from munit_fast.benchmarks.report import write_report
from munit_fast.benchmarks.rows import load
from munit_fast.benchmarks.tables import exported

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README, BENCHMARKS = ROOT / "benchmarks" / "results", ROOT / "README.md", ROOT / "docs" / "benchmarks"
CARDS = sorted((ROOT / "munit_fast" / "models" / "pretrained").glob("*.md"))
ABLATION = ROOT / "docs" / "ablation" / "results.jsonl"
TABLE = re.compile(r"<!-- table( with errors)? of (\S+) (.+?) -->\n(.*?)\n<!-- end of table -->", re.DOTALL)
EXPORTED = re.compile(r"(<!-- rows of exported files -->\n).*?(\n<!-- end of rows -->)", re.DOTALL)
ABLATED = re.compile(r"(<!-- runs of the ablation by (iterations|time) -->\n).*?(\n<!-- end of runs -->)", re.DOTALL)
COPY = "copy the input"


def metrics_table(columns: list[list[Path]], header: str, errors: bool = False) -> str:
    """A row for each metric, a column for each group of runs, and the bounds and baselines of the first run.

    errors: with the standard error of each value where there is one.
    """
    runs = [
        [{row["key"]: row for row in json.loads(path.read_text())["entries"]} for path in group] for group in columns
    ]
    lines = [f"| metric | {header} | real data | input left untranslated | other baselines |"]
    lines.append("|---" * (4 + len(columns)) + "|")
    rows = sorted(runs[0][0].values(), key=lambda row: "lines" not in _direction(row).split("→")[1])
    for row in rows:
        values = [", ".join(_value(run[row["key"]], errors) for run in group) for group in runs]
        lines.append(_line(row, values))
    return "\n".join(lines)


def _value(row: dict[str, Any], errors: bool) -> str:
    error = f" ± {row['stderr']:.2g}" if errors and row.get("stderr") is not None else ""
    return f"{row['value']:.4g}{error}"


def _direction(row: dict[str, Any]) -> str:
    names = {"A": "lines", "B": "colour"}
    return " → ".join(names.get(part, part) for part in row["direction"].split(" → "))


def _line(row: dict[str, Any], values: list[str]) -> str:
    arrow = "↓" if row["better"] == "lower" else "↑"
    baselines = ", ".join(f"{name} {value:.4g}" for name, value in row["baselines"].items() if name != COPY)
    bounds = ("–" if row[key] is None else f"{row[key]:.4g}" for key in ("floor", "ceiling"))
    name = f"{_direction(row)}: {row['name']} {arrow}"
    return f"| {' | '.join([name, *values, *bounds, baselines])} |"


def ablation_table(rows: list[dict[str, Any]]) -> str:
    """A row for each option: the mean of its seeds with its standard error, or one run with that over the drawings."""
    lines = [
        "| option | seeds | iterations | minutes | KID × 10³ ↓ | of the untranslated | L1 of copying ↓ | line F1 ↑ "
        "| diversity ↑ | two hues ↑ | fill ↑ |",
        "|---" * 11 + "|",
    ]
    for option in dict.fromkeys(row["option"] for row in rows):
        runs = [row for row in rows if row["option"] == option]
        kid, lines_l1 = "lines_to_colour.kid_e3", "colour_to_lines.l1"
        share = mean(run["metrics"][kid] / run["ceilings"][kid] for run in runs)
        copied = _ablated(runs, lines_l1, ".3f", runs[0]["ceilings"][lines_l1])
        cells = [
            option,
            str(len(runs)),
            f"{mean(run['iterations'] for run in runs):,.0f}",
            f"{mean(run['seconds'] for run in runs) / 60:.1f}",
            _ablated(runs, kid, ".1f"),
            f"{share:.0%}",
            copied,
            _ablated(runs, "colour_to_lines.line_f1", ".3f"),
            *(_ablated(runs, f"lines_to_colour.{key}", ".3f") for key in ("diversity", "distinct_hues", "fill")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ablated(runs: list[dict[str, Any]], key: str, form: str, unit: float = 1) -> str:
    values = [run["metrics"][key] / unit for run in runs]
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else runs[0]["errors"][key] / unit
    return f"{mean(values):{form}} ± {error:{form}}"


def _ablation(by: str) -> str:
    rows = [json.loads(line) for line in ABLATION.read_text().splitlines()]
    return ablation_table([row for row in rows if (row["minutes"] is not None) == (by == "time")])


def _with_tables(page: Path) -> str:
    def table(found: re.Match[str]) -> str:
        columns = [[ROOT / "docs" / name for name in group.split(",")] for group in found[2].split(";")]
        begin, end = found[0].splitlines()[0], found[0].splitlines()[-1]
        return f"{begin}\n\n{metrics_table(columns, found[3], errors=bool(found[1]))}\n\n{end}"

    def rows(found: re.Match[str]) -> str:
        return f"{found[1]}\n{exported(load(RESULTS))}\n{found[2]}"

    def runs(found: re.Match[str]) -> str:
        return f"{found[1]}\n{_ablation(found[2])}\n{found[3]}"

    return ABLATED.sub(runs, EXPORTED.sub(rows, TABLE.sub(table, page.read_text())))


def stale() -> list[Path]:
    """The files that `write` would change, or leave behind though nothing makes them any more."""
    found = [page for page in _pages_with_tables() if page.read_text() != _with_tables(page)]
    with TemporaryDirectory() as folder:
        copy = Path(folder, "README.md")
        copy.write_text(README.read_text())
        made = write_report(RESULTS, copy, Path(folder, "docs", "benchmarks"))
        names = {path.name for path in made} - {README.name}
        found += [path for path in BENCHMARKS.iterdir() if path.name not in names]
        for path in made:
            committed = README if path == copy else BENCHMARKS / path.name
            # Another version of matplotlib draws the same plot with other bytes.
            if not committed.exists() or (path.suffix == ".md" and path.read_text() != committed.read_text()):
                found.append(committed)
    return found


def _pages_with_tables() -> list[Path]:
    return [*CARDS, *(ROOT / "docs" / f"{name}.md" for name in ("ablation", "demo", "export", "training"))]


def write() -> None:
    write_report(RESULTS, README, BENCHMARKS)
    for page in _pages_with_tables():
        page.write_text(_with_tables(page))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    scaling = [sys.executable, str(ROOT / "benchmarks" / "scripts" / "scaling.py"), *(["--check"] if check else [])]
    failed = subprocess.run(scaling).returncode
    if not check:
        write()
    elif found := stale():
        print("stale, run `python docs/generate.py`:", *(path.relative_to(ROOT) for path in found), file=sys.stderr)
        failed = 1
    sys.exit(failed)


if __name__ == "__main__":
    main()

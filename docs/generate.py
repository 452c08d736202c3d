"""Write the parts of the documentation that follow from committed numbers, or see whether they are up to date.

    python docs/generate.py            # write them
    python docs/generate.py --check    # fail where one is stale, and change nothing

README's rows, docs/benchmarks and the table in docs/export.md come from benchmarks/results, docs/scaling.md from
docs/scaling.json, and the tables of metrics in the model card, docs/demo.md and docs/training.md from the JSON files
named in the comments before them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from munit_fast.benchmarks.report import write_report
from munit_fast.benchmarks.rows import load
from munit_fast.benchmarks.tables import exported

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README, BENCHMARKS = ROOT / "benchmarks" / "results", ROOT / "README.md", ROOT / "docs" / "benchmarks"
CARD = ROOT / "munit_fast" / "models" / "pretrained" / "openmoji-lines2color.md"
TABLE = re.compile(r"<!-- table( with errors)? of (\S+) (.+?) -->\n(.*?)\n<!-- end of table -->", re.DOTALL)
EXPORTED = re.compile(r"(<!-- rows of exported files -->\n).*?(\n<!-- end of rows -->)", re.DOTALL)
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


def _with_tables(page: Path) -> str:
    def table(found: re.Match[str]) -> str:
        columns = [[ROOT / "docs" / name for name in group.split(",")] for group in found[2].split(";")]
        begin, end = found[0].splitlines()[0], found[0].splitlines()[-1]
        return f"{begin}\n\n{metrics_table(columns, found[3], errors=bool(found[1]))}\n\n{end}"

    def rows(found: re.Match[str]) -> str:
        return f"{found[1]}\n{exported(load(RESULTS))}\n{found[2]}"

    return EXPORTED.sub(rows, TABLE.sub(table, page.read_text()))


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
    return [CARD, *(ROOT / "docs" / f"{name}.md" for name in ("demo", "export", "training"))]


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

"""Compare the generated pages with what would be generated: a part of `make docs`.

    python benchmarks/scripts/check_pages.py

The README's table and the pages of docs/benchmarks come from the rows in benchmarks/results (`munit-fast bench
--report`), docs/scaling.md from its script. Exits with the names of those that differ, or that no row belongs to.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import scaling

from munit_fast.benchmarks import report, rows
from munit_fast.benchmarks.plots import slug
from munit_fast.benchmarks.summary import by_machine

ROOT = Path(__file__).resolve().parents[2]
README, PAGES = ROOT / "README.md", ROOT / "docs" / "benchmarks"


def differing() -> list[str]:
    """The files that are not what the committed rows say."""
    found = rows.load(ROOT / "benchmarks" / "results")
    machines = by_machine(found)
    pages = {machine: PAGES / f"{slug(str(machine))}.md" for machine in machines}
    links = {machine: page.relative_to(ROOT).as_posix() for machine, page in pages.items()}
    wrong = [] if report.summary(found, links) in README.read_text(encoding="utf-8") else [README]
    expected = set(pages.values())
    for machine, mine in machines.items():
        text = pages[machine].read_text(encoding="utf-8") if pages[machine].exists() else ""
        shown = [(name, alt) for alt, name in re.findall(r"!\[(.+?)\]\((.+?)\)", text)]
        expected |= {PAGES / name for name, _ in shown}
        wrong += [] if shown and text == report.page(machine, mine, shown) else [pages[machine]]
    wrong += [path for path in PAGES.iterdir() if path not in expected]
    wrong += [] if scaling.PAGE.read_text(encoding="utf-8") == scaling.page() else [scaling.PAGE]
    return [str(path.relative_to(ROOT)) for path in wrong]


if __name__ == "__main__":
    if names := differing():
        sys.exit(f"not what is generated: {', '.join(names)}; run `munit-fast bench --report` and scaling.py")

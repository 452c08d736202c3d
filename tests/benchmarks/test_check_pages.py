"""Pages that somebody edited, and pages that no row belongs to, are named."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.bench import baseline, row
from munit_fast.benchmarks.report import write_report

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scripts" / "check_pages.py"


@pytest.fixture
def check_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script on a checkout of one row and its baseline, whose pages were just written."""
    pytest.importorskip("matplotlib")
    page = tmp_path / "scaling.md"
    page.write_text("as written")
    monkeypatch.setitem(sys.modules, "scaling", SimpleNamespace(PAGE=page, page=lambda: "as written"))
    spec = importlib.util.spec_from_file_location("check_pages", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    iteration = {"level": "training", "name": "MUNIT iteration", "side": 256}
    rows = [row(**iteration), baseline(2.0, **iteration)]
    (results / "rows.jsonl").write_text("".join(r.line() + "\n" for r in rows))
    module.ROOT, module.README, module.PAGES = tmp_path, tmp_path / "README.md", tmp_path / "docs" / "benchmarks"
    write_report(results, module.README, module.PAGES)
    return module


def test_what_was_just_written_agrees(check_pages: Any) -> None:
    assert check_pages.differing() == []


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks/a-cpu-2-threads.md", "scaling.md"])
def test_an_edited_page_is_named(check_pages: Any, name: str) -> None:
    path = check_pages.ROOT / name
    text = path.read_text()
    path.write_text(text.replace("2.00×", "3.00×") if "2.00×" in text else "edited")
    assert check_pages.differing() == [name]


def test_a_page_without_rows_is_named(check_pages: Any) -> None:
    (check_pages.PAGES / "gone.md").write_text("# An earlier machine\n")
    assert check_pages.differing() == ["docs/benchmarks/gone.md"]

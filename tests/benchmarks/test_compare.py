"""What changed between two sets of rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.bench import baseline, quiet, row
from munit_fast.benchmarks.compare import compare
from munit_fast.benchmarks.report import print_comparison
from munit_fast.benchmarks.rows import RowsError


def test_comparison_takes_a_busier_machine_out() -> None:
    """Everything twice as slow is no change; ours alone twice as slow is one, beyond the noise."""
    steady = {"p20": 0.99, "p50": 1.0, "p80": 1.01}
    before = [row(**steady), baseline(3.0, p20=2.97, p80=3.03)]
    slow = {"p20": 1.98, "p50": 2.0, "p80": 2.02}
    [same] = compare(before, [row(**slow), baseline(6.0, p20=5.94, p80=6.06)])
    assert same.ratio == pytest.approx(1) and same.verdict == "within the noise" and same.relative
    [worse] = compare(before, [row(**slow), baseline(3.0, p20=2.97, p80=3.03)])
    assert worse.ratio == pytest.approx(0.5) and worse.verdict == "slower" and worse.beyond_noise > 10
    [plain] = compare([row(**steady)], [row(**slow)])
    assert not plain.relative
    with pytest.raises(ValueError, match="same machine"):
        compare(before, [replace(r, device="another") for r in before])


def test_comparing_with_what_is_neither_file_nor_revision(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(row().line() + "\n")
    with pytest.raises(RowsError, match="no-such-revision"):
        print_comparison("no-such-revision", path, quiet())

"""Rows survive their file, and what is no row is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.bench import baseline, row
from munit_fast.benchmarks import rows
from munit_fast.benchmarks.rows import RowsError


def test_rows_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    first, second = row(), baseline(2.0, bytes=None, flops=10)
    rows.append(path, [first])
    failed = replace(baseline(1.0), p20=None, p50=None, p80=None, failure="out of memory")
    rows.append(path, [second, failed])
    assert rows.load(path) == rows.load(tmp_path / "deep") == [first, second, failed]
    line = json.loads(path.read_text().splitlines()[0])
    assert line["bandwidth"] == 4e9 and line["share_of_copy"] == 0.5 and line["hours_per_million"] == 277.8


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.pop("p50"), "line 2 .*'p50'"),
        (lambda d: d.update(p50=-1), "times .*p20 ≤ p50"),
        (lambda d: d.update(p20=3), "p20 ≤ p50"),
        (lambda d: d.update(p50=None), "times .*p20 ≤ p50"),
        (lambda d: d.update(p50="x"), "p50 .*float or NoneType.*'x'"),
        (lambda d: d.update(side="a"), "side .*int.*'a'"),
        (lambda d: d.update(threads=True), "threads .*int.*True"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, spoil: Any, message: str) -> None:
    values = asdict(row())
    spoil(values)
    (tmp_path / "x.jsonl").write_text(row().line() + "\n" + json.dumps(values) + "\n")
    with pytest.raises(RowsError, match=message):
        rows.load(tmp_path)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="no rows"):
        rows.load(tmp_path)
    with pytest.raises(RowsError, match="cannot read"):
        rows.load(tmp_path / "missing.jsonl")


def test_rows_without_the_flags_are_read(tmp_path: Path) -> None:
    values = asdict(row(cpu_flags="avx2"))
    del values["cpu_flags"]
    (tmp_path / "old.jsonl").write_text(json.dumps(values) + "\n")
    [old] = rows.load(tmp_path)
    assert old == row() and old.cpu_flags is None

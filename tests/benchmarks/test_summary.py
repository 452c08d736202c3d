"""Ours beside the baselines, run by run and machine by machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.bench import baseline, row
from munit_fast.benchmarks.compare import compare
from munit_fast.benchmarks.contenders import EXPORTED, OPENVINO, OURS
from munit_fast.benchmarks.rows import Machine
from munit_fast.benchmarks.summary import by_machine, summarize

CPU = torch.device("cpu")


def test_the_score_is_against_the_fastest_baseline() -> None:
    compiled = baseline(0.8, implementation="torch.compile", layout="channels_last", peak_bytes=None)
    [summary] = summarize([row(), row(layout="NCHW", p50=1.05), baseline(3.0), compiled])
    assert summary.speedup == pytest.approx(0.8) and summary.over_published == pytest.approx(3.0)
    assert summary.memory == pytest.approx(0.5)


@pytest.mark.parametrize("level", ["translation", "exported"])
def test_an_exported_file_is_neither_a_baseline_nor_what_is_scored(level: str) -> None:
    files = [row(level=level, p20=0.1, p50=0.2, p80=0.3, peak_bytes=1, implementation=name) for name in EXPORTED]
    [summary] = summarize([row(level=level), *files, baseline(3.0, level=level)])
    assert summary.speedup == pytest.approx(3.0) and summary.memory == pytest.approx(0.5)
    assert summary.ours is not None and summary.ours.implementation == OURS and len(summary.rows) == 2 + len(files)
    assert not summarize([row(level=level), *files])[0].complete


def test_runs_are_never_mixed() -> None:
    """Ours of one run and a baseline of another say nothing; the newest run that has both counts."""
    old = [row(p20=0.1, p50=0.2, p80=0.3, run="1"), baseline(2.0, run="1")]
    new = [row(run="2"), baseline(3.0, run="2")]
    [summary] = summarize(old + new)
    assert summary.speedup == pytest.approx(3.0) and len(summary.rows) == 2
    [summary] = summarize([*old, row(run="2")])  # the second run has no baseline
    assert summary.speedup == pytest.approx(10.0)
    stronger = [replace(r, run="0") for r in new] + [baseline(1.0, run="0", implementation=OPENVINO)]
    [summary] = summarize([*stronger, *new])  # a later run without the strongest baseline does not hide it
    assert summary.best_baseline is not None and summary.best_baseline.implementation == OPENVINO
    assert len(summarize([*old, *(replace(r, torch="2.11") for r in new)])) == 2


def test_processors_of_one_name_with_and_without_amx_are_two_machines() -> None:
    flags = ("avx2 avx512f avx512_bf16", "avx2 avx512f avx512_bf16 amx_bf16")
    without, with_amx = ([row(cpu_flags=f), baseline(2.0, cpu_flags=f)] for f in flags)
    assert len(by_machine(without + with_amx)) == 2 == len(summarize(without + with_amx))
    assert [rows[0].machine.amx for rows in (without, with_amx)] == [False, True]
    with pytest.raises(ValueError, match="same machine"):
        compare(without, with_amx)
    arm = Machine("Graviton", "Graviton", "asimd sve bf16", 2)
    assert (arm.amx, str(arm)) == (False, "Graviton, 2 threads")
    assert (row().machine.amx, str(row().machine)) == (None, "A CPU, 2 threads")  # rows that lack the flags

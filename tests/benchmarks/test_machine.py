"""What a row says of its machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from munit_fast.benchmarks import machine

CPU = torch.device("cpu")


def test_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    where = machine.describe(CPU)
    assert where["cpu"] and where["python"].count(".") == 2 and where["version"]
    monkeypatch.setenv("MUNIT_FAST_COMMIT", "abc1234")
    assert machine.describe(CPU)["commit"] == "abc1234"
    assert machine.copy_speed(CPU) > 0 < machine.matrix_rate(CPU, torch.float32)
    monkeypatch.setattr(machine, "seconds_per_call", lambda call, device, **_: call() is None or 2.0)
    assert machine.copy_speed.__wrapped__(CPU) == machine.COPY_BYTES  # read and written in two seconds


def test_flags_of_a_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f amx_tile amx_bf16 avx512_bf16x\n")
    assert machine.cpu_flags(info) == "avx2 avx512f amx_bf16"
    info.write_text("Features\t: fp asimd bf16\n")
    assert machine.cpu_flags(info) == "asimd bf16"
    assert machine.cpu_flags(tmp_path / "none") is None
    assert machine.describe(CPU)["cpu_flags"] == machine.cpu_flags()

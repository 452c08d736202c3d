"""The simulated GPU finds the faults that it is there for, in a kernel made wrong on purpose."""

from __future__ import annotations

import ctypes

import pytest

from helpers import simulated
from helpers.simulated import HERE, Simulator

# As in simt/faults.cpp: a word of the error, or None where the fault shows in the results.
FAULTS = {
    "no barrier": None,
    "no barrier before memory is used again": None,
    "no barrier before another block's memory is read": None,
    "a block that leaves before the others have read": None,
    "beyond shared memory": "beyond",
    "misaligned": "aligned",
    "a barrier that half of the threads reach": "wait for each other",
}
EXPECTED = [float(64 * (1 - block) + (thread + 2) % 64) for block in (0, 1) for thread in range(64)]


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Simulator:
    return Simulator(simulated.build(tmp_path_factory.mktemp("faults"), [(HERE / "simt/faults.cpp", [])], []))


def _run(simulator: Simulator, kind: int, schedule: int) -> tuple[list[float], str]:
    out = (ctypes.c_float * 128)(*[-1.0] * 128)
    simulator.set(schedule=schedule)
    status = simulator.library.run_fault(kind, out)
    assert (status != 0) == ("wait for each other" in simulator.problem)
    return list(out), simulator.problem


@pytest.mark.parametrize("schedule", range(6))
def test_a_right_kernel_is_right_in_every_order(simulator: Simulator, schedule: int) -> None:
    assert _run(simulator, 0, schedule) == (EXPECTED, "")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(simulator: Simulator, fault: str) -> None:
    runs = [_run(simulator, 1 + list(FAULTS).index(fault), schedule) for schedule in range(6)]
    if (words := FAULTS[fault]) is None:
        assert any(out != EXPECTED for out, _ in runs) and not any(problem for _, problem in runs)
    else:
        assert any(words in problem for _, problem in runs)

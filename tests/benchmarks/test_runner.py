"""What is timed is right before it is timed."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.bench import QUICK, quiet, row
from munit_fast.benchmarks import SETS, Case, run, runner, select, tables
from munit_fast.benchmarks.cases import CONVOLUTIONS, LEVELS
from munit_fast.benchmarks.contenders import ONNX_RUNTIME, OPENVINO, OURS, PUBLISHED, Contender, Work
from munit_fast.train import trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize("level", [level for level in LEVELS if level not in ("launch", "exported", "folder")])
def test_every_level_is_measured_and_complete(level: str) -> None:
    """One case of each name: every contender passes its check and gets a row with all of its figures.

    Of the translations one: `test_command.py` measures the other, and `test_contenders_exported.py` exported files.
    """
    cases = list({case.name: case for case in select(SETS["smoke"], levels=[level])}.values())
    cases = cases[:1] if level == "translation" else cases
    found, failures = run(cases, QUICK, quiet())
    assert failures == []
    for case in cases:
        mine = [r for r in found if r.name == case.name]
        assert {r.implementation for r in mine} >= {OURS, PUBLISHED}
        assert len({r.contender for r in mine}) == len(mine) >= 2 and len({r.run for r in mine}) == 1
        if level == "translation":
            assert {r.implementation for r in mine} >= {ONNX_RUNTIME, OPENVINO}
        for r in mine:
            assert r.p20 and r.p50 and r.p80 and 0 < r.p20 <= r.p50 <= r.p80
            assert r.error is not None and r.error < 0.05
            assert r.peak_bytes or r.implementation in (ONNX_RUNTIME, OPENVINO)
            assert r.torch == torch.__version__ and r.threads == torch.get_num_threads()
            moves = level == "op" and case.name not in CONVOLUTIONS
            assert r.flops is None and (r.bytes or 0) > 0 if moves else (r.flops or 0) > 0 and r.bytes is None


def _spoiled(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    """Let ours of the layout NCHW, or of an iteration, do its work through `spoil`."""
    made = runner.contenders

    def replaced(case: Case, device: torch.device) -> list[Contender]:
        def wrong(contender: Contender) -> Work:
            return spoil(contender.make())

        return [
            replace(c, make=lambda c=c: wrong(c)) if c.ours and (c.layout == "NCHW" or case.level != "op") else c
            for c in made(case, device)
        ]

    monkeypatch.setattr(runner, "contenders", replaced)


@pytest.mark.parametrize("mode", ["forward", "backward", "training"])
def test_a_contender_with_wrong_numbers_gets_no_time(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """What is checked is what the timed step itself gives."""
    _spoiled(monkeypatch, lambda work: Work(lambda: [*work.step()[:-1], 1.1 * work.step()[-1]]))
    case = next(c for c in SETS["smoke"] if c.mode == mode)
    console = quiet()
    found, failures = run([case], QUICK, console)
    assert len(failures) == 1 and re.search(r"\b1\.0e-01\b.*no time", failures[0])
    [bad] = [r for r in found if r.failure]
    assert bad.implementation == OURS and bad.layout == "NCHW" and bad.p50 is None
    assert [r for r in found if r.implementation == OURS and r.failure is None]
    assert "Without a time (1)" in tables.page(found[0].machine, found)


def test_an_iteration_that_does_not_train_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of the first iteration are right, but the generators do not move."""
    step = _only_discriminators(trainer.MUNIT_Trainer._backward_and_step)
    monkeypatch.setattr(trainer.MUNIT_Trainer, "_backward_and_step", step)
    [case] = select(SETS["smoke"], levels=["training"])
    _, failures = run([case], QUICK, quiet())
    assert len(failures) == 1 and "off by 1.0e+00" in failures[0]


def _only_discriminators(step: Any) -> Any:
    def patched(self: Any, update: str, *rest: Any) -> Any:
        generators = [*self.gen_a.parameters(), *self.gen_b.parameters()]
        before = [p.detach().clone() for p in generators]
        losses = step(self, update, *rest)
        with torch.no_grad():
            for p, old in zip(generators, before):
                p.copy_(old)
        return losses

    return patched


def test_a_step_that_breaks_costs_its_own_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(work: Work) -> Work:
        def step() -> Any:
            raise RuntimeError("out of luck\nand more")

        return Work(step)

    _spoiled(monkeypatch, broken)
    found, failures = run([SETS["smoke"][0]], QUICK, quiet())
    assert len(failures) == 1 and failures[0].endswith("out of luck")
    assert len([r for r in found if r.failure is None]) >= 4


def _numbers(*scales: float) -> list[Tensor]:
    return [scale * torch.ones(2, 2, 2, 2) for scale in scales]


def test_each_number_is_held_to_its_limit() -> None:
    op = next(c for c in SETS["smoke"] if c.name == "adain + relu + pad")
    ours = next(c for c in runner.contenders(op, CPU) if c.ours)
    for level, limits in runner.LIMITS.items():
        if level in ("moved", "launch"):  # the latter allow no error
            continue
        for dtype, limit in limits.items():
            case = replace(op, level=level, dtype=dtype)
            assert runner.check(case, ours, _numbers(1, 0.01 * (1 + 0.9 * limit)), _numbers(1, 0.01)) > 0.8 * limit
            with pytest.raises(runner.AccuracyError):  # a small one beside a large one, too
                runner.check(case, ours, _numbers(1, 0.01 * (1 + 1.1 * limit)), _numbers(1, 0.01))
    with pytest.raises(runner.AccuracyError, match="off by nan"):
        runner.check(op, ours, _numbers(float("nan")), _numbers(1))
    with pytest.raises(runner.AccuracyError, match="1 results instead of 2"):
        runner.check(op, ours, _numbers(1), _numbers(1, 1))
    # The gradient of a bias before an instance norm is rounding noise in one and zero in the other.
    block = replace(op, level="block")
    noise, nothing = torch.full((8,), 1e-6), torch.zeros(8)
    assert runner.check(block, ours, [*_numbers(1), nothing], [*_numbers(1), noise]) < 1e-4
    moved = [torch.zeros(9)], [torch.ones(9)]
    with pytest.raises(runner.AccuracyError, match=r"off by 1\.0e"):
        runner.check(replace(op, level="training", dtype="bf16"), ours, *moved)


def test_time_that_is_up_leaves_cases_out_and_names_them() -> None:
    console = quiet()
    found, _ = run(SETS["smoke"][:3], replace(QUICK, seconds=0.0), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert found == [] and "3 of 3 cases" in said and all(str(case) in said for case in SETS["smoke"][:3])


def test_a_case_is_left_out_where_one_of_its_level_took_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cheaper comes all the same."""
    levels = {"op": 40.0, "training": 100.0}
    clock = [0.0]

    def measured(case: Case, *_: Any) -> Any:
        clock[0] += levels[case.level]
        return [row(**asdict(case))], []

    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(runner, "_measured", measured)
    op, iteration = SETS["smoke"][0], select(SETS["smoke"], levels=["training"])[0]
    cases = [iteration, op, replace(iteration, batch=4), replace(op, batch=4), replace(op, batch=8)]
    console = quiet()
    found, _ = run(cases, replace(QUICK, seconds=200.0), console)
    assert [(r.level, r.batch) for r in found] == [("training", 1), ("op", 1), ("op", 4)]
    assert str(cases[2]) in console.file.getvalue() and str(cases[4]) in console.file.getvalue()  # type: ignore[attr-defined]


ITERATION = Case("training", "MUNIT iteration", "training", "bf16", 1, 8, 32)


def test_iterations_are_compiled_last_and_once() -> None:
    op = SETS["smoke"][0]
    cases = [op, ITERATION, replace(ITERATION, batch=4)]
    options = replace(QUICK, compile=True, compile_last=True)
    *first, last = runner.plan(cases, options)
    assert [(turn.case, turn.lean, turn.again) for turn in first] == [
        (op, False, False),
        (ITERATION, True, False),
        (replace(ITERATION, batch=4), True, False),
    ]
    assert (last.case, last.lean, last.again) == (ITERATION, False, True) and str(last) != str(first[1])
    assert len(runner.plan(cases, replace(options, compile=False))) == 3
    assert [turn.lean for turn in runner.plan(cases, QUICK)] == [False] * 3


def test_what_is_missing() -> None:
    options = replace(QUICK, compile=True, compile_last=True)
    turns = runner.plan([ITERATION, replace(ITERATION, batch=4)], options)
    where = {name: getattr(row(), name) for name in ("device", "threads", "torch", "commit")}
    first = row(**asdict(ITERATION))
    assert runner.missing(turns, [], where) == turns
    assert runner.missing(turns, [first], where) == turns[1:]
    assert runner.missing(turns, [first], where | {"commit": "newer"}) == turns
    stopped = row(**asdict(ITERATION), implementation="torch.compile", failure="time is up", p50=None)
    assert runner.missing(turns, [first, stopped], where) == turns[1:]
    timed = row(**asdict(ITERATION), implementation="torch.compile")
    assert runner.missing(turns, [first, timed], where) == turns[1:2]


def test_a_lean_iteration_is_held_to_float32_that_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def checking(case: Case, contender: Contender, numbers: Any, expected: Any) -> float:
        seen.append((contender.precision, [t.clone() for t in expected]))
        return check(case, contender, numbers, expected)

    check = runner.check
    monkeypatch.setattr(runner, "check", checking)
    found, failures = run([ITERATION], replace(QUICK, compile_last=True), quiet())
    assert failures == [] and {r.precision for r in found} == {"bf16"} and len(found) == 3
    assert seen[0][0] == "fp32" and len(seen) == 4
    assert all(torch.equal(a, b) for _, expected in seen for a, b in zip(expected, seen[0][1], strict=True))
    everything, _ = run([ITERATION], QUICK, quiet())
    assert {r.precision for r in everything} == {"bf16", "fp32"}


def test_a_compiler_is_stopped_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that catches what is raised in it; the others are timed, and it is no failure of the run."""

    built: list[str] = []

    def building(contender: Contender) -> Work:
        built.append(contender.implementation)
        return contender.make()

    def compiler() -> Work:
        built.append("slow")
        for _ in range(2):
            with contextlib.suppress(TimeoutError):
                time.sleep(120)
        raise RuntimeError("nobody stopped it")

    made = runner.contenders
    slow = Contender("torch.compile", "NCHW", compiler)

    def contenders(case: Case, device: torch.device) -> list[Contender]:
        return [slow, *(replace(c, make=lambda c=c: building(c)) for c in made(case, device))]

    monkeypatch.setattr(runner, "contenders", contenders)
    begin, timer = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)[0]  # pytest-timeout's
    found, failures = run([SETS["smoke"][0]], replace(QUICK, compile=True, max_autotune=False, seconds=1.0), quiet())
    assert failures == [] and time.monotonic() - begin < 100
    stopped = [r for r in found if r.failure is not None]
    assert {r.failure for r in stopped} == {"time is up"} and {r.implementation for r in stopped} == {"torch.compile"}
    assert len([r for r in found if r.failure is None and r.implementation in (OURS, PUBLISHED)]) == 4
    assert {*built[built.index("slow") :]} == {"slow", "torch.compile"}  # after all that is not compiled
    after = signal.getitimer(signal.ITIMER_REAL)[0]
    assert timer - 60 < after < timer if timer else after == 0

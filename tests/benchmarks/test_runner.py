"""What is timed is right before it is timed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.bench import QUICK, quiet
from munit_fast.benchmarks import SETS, Case, run, runner, select, tables
from munit_fast.benchmarks.cases import CONVOLUTIONS, LEVELS
from munit_fast.benchmarks.contenders import ONNX_RUNTIME, OPENVINO, OURS, PUBLISHED, Contender, Work
from munit_fast.train import trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "launch"])
def test_every_level_is_measured_and_complete(level: str) -> None:
    """One case of each name: every contender passes its check and gets a row with all of its figures.

    Of the translations one: `test_command.py` measures the other.
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
        if level == "moved":
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


def test_time_that_is_up_leaves_cases_out_and_says_so() -> None:
    console = quiet()
    found, _ = run(SETS["smoke"][:3], replace(QUICK, seconds=0.0), console)
    assert found == [] and "3 of 3 cases" in console.file.getvalue()  # type: ignore[attr-defined]

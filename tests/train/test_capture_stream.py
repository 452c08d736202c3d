"""What the benchmark captures in CUDA graphs can be captured: a backward's forward ran on the capture's stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers import fake_cuda
from helpers.bench import QUICK, quiet, row
from helpers.fake_cuda import FakeCuda
from munit_fast.benchmarks import (
    SETS,
    Case,
    contenders,
    contenders_convs,
    contenders_networks,
    contenders_ops,
    runner,
    timing,
)
from munit_fast.benchmarks.contenders import Contender, Work, in_graph
from munit_fast.benchmarks.rows import Row
from munit_fast.train.cuda_graph import capture_stream

GPU = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def forwards(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The stream of each forward that a gradient is taken of."""
    streams: list[Any] = []
    made = contenders.differentiable

    def watched(run: Any, *rest: Any) -> Work:
        def on_stream() -> Any:
            if torch.is_grad_enabled():
                streams.append(cuda.current)
            return run()

        return made(on_stream, *rest)

    for module in (contenders_ops, contenders_convs, contenders_networks):
        monkeypatch.setattr(module, "differentiable", watched)
    return streams


def run(monkeypatch: pytest.MonkeyPatch, case: Case) -> tuple[list[Row], list[str]]:
    """The rows and failures of a case on the fake GPU."""
    real, expected = runner.contenders, runner.expected

    def on_the_cpu(case: Case, device: torch.device) -> list[Contender]:
        return [c for c in real(case, torch.device("cpu")) if not c.compiled]

    def timed(steps: Any, *_: Any, **__: Any) -> Any:
        return {name: step() and timing.Spread(1, 1, 1) for name, step in steps.items()}

    def made(case: Case, c: Contender, spread: Any, where: Any, options: Any, extras: Any) -> Any:
        return row(implementation=c.implementation, layout=c.layout, graph=c.graph, failure=extras["failure"])

    monkeypatch.setattr(runner, "contenders", on_the_cpu)
    monkeypatch.setattr(runner, "expected", lambda case, device: expected(case, torch.device("cpu")))
    monkeypatch.setattr(
        runner.machine, "describe", lambda device: dict.fromkeys(("device", "torch", "threads", "commit"))
    )
    monkeypatch.setattr(runner, "_extras", lambda *_: {"flops": None, "failure": None})
    monkeypatch.setattr(timing, "interleaved", timed)
    monkeypatch.setattr(runner, "_row", made)
    monkeypatch.setattr(runner, "_line", lambda case, rows: "")
    return runner.run([case], replace(QUICK, device=GPU), quiet())


@pytest.mark.parametrize("level", ["op", "block"])
def test_backwards_alone(cuda: FakeCuda, forwards: list[Any], monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    case = next(c for c in SETS["smoke"] if c.level == level)
    rows, failures = run(monkeypatch, replace(case, mode="backward"))
    assert failures == [] and {r.graph for r in rows} == {False, True}
    assert forwards and all(stream is capture_stream(GPU) for stream in forwards)
    assert cuda.replays > 0 and cuda.current is cuda.default


def test_what_is_made_elsewhere_is_not_captured(cuda: FakeCuda) -> None:
    x = torch.ones(3, requires_grad=True)
    work = contenders.differentiable(lambda: x * 2, [x], "backward")
    with pytest.raises(RuntimeError, match=r"munit_fast\..*capture_stream"):
        in_graph(work)
    with torch.cuda.stream(capture_stream(GPU)):
        captured = in_graph(contenders.differentiable(lambda: x * 2, [x], "backward"))
        [expected], [got] = work.step(), captured.step()
        assert torch.equal(got, expected)


def test_a_capture_that_fails_leaves_the_stream(cuda: FakeCuda) -> None:
    cuda.fail = "operation failed due to a previous error during capture"
    with torch.cuda.stream(capture_stream(GPU)):
        with pytest.raises(RuntimeError, match="previous error"):
            in_graph(Work(lambda: [torch.ones(3)]))
        assert cuda.current is capture_stream(GPU)
    assert cuda.current is cuda.default and cuda.released == cuda.pools

"""What `timing` counts, against things that can be counted on paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from munit_fast.benchmarks import Case, contenders_ops, timing
from munit_fast.ops import winograd
from munit_fast.ops.fused_conv import Conv, convolution

CPU = torch.device("cpu")


def test_figures_by_hand() -> None:
    """Bytes, operations, memory and quantiles of things that can be counted on paper."""
    case = Case("op", "adain + residual + pad", "forward", "bf16", 2, 3, 4)
    x, y = 2 * 3 * 16, 2 * 3 * 36
    assert contenders_ops.minimal_bytes(case) == 2 * (2 * x + y)
    assert contenders_ops.minimal_bytes(replace(case, mode="backward")) == 2 * (y + 3 * x)
    assert contenders_ops.minimal_bytes(replace(case, mode="training")) == 2 * (5 * x + 2 * y)
    plain = replace(case, name="bias + lrelu + pad", dtype="fp32")
    assert contenders_ops.minimal_bytes(plain) == 4 * (x + y)
    scales = Case("op", "lsgan of three scales", "training", "fp32", 1, 3, 64)
    assert contenders_ops.minimal_bytes(scales) == 4 * 2 * (16 + 4 + 1)
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert timing.flops(lambda: [a @ b]) == 2 * 3 * 5 * 7
    image, kernel = torch.randn(1, 2, 6, 6), torch.randn(4, 2, 3, 3)
    assert timing.flops(lambda: [torch.conv2d(image, kernel)]) == 2 * 4 * 16 * 2 * 9
    for plan, side, stride in (("f43", 3, 1), ("f42", 4, 2)) if winograd.available() else ():
        x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(5, 3, side, side, requires_grad=True)
        conv = Conv(weight, None, stride, plan=plan, pad=1, weight_plan=plan)

        def train(x: torch.Tensor = x, weight: torch.Tensor = weight, conv: Conv = conv) -> Any:
            return torch.autograd.grad(convolution(x, conv).z.sum(), (x, weight))

        assert timing.flops(train) == 3 * 2 * (2 * 5 * (8 // stride) ** 2) * 3 * side**2
    assert timing.peak_bytes(lambda: [torch.empty(1000), torch.empty(500)], CPU) == pytest.approx(6000, abs=128)
    assert timing.Spread.of([float(i) for i in range(11)]) == timing.Spread(2, 5, 8)


def test_a_turn_repeats_short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []

    def step() -> Any:
        now[0] += 0.001
        calls.append(1)
        return []

    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    spread = timing.interleaved({"a": step}, CPU, rounds=3, least_s=0.01)["a"]
    assert spread.p50 == pytest.approx(0.001) and len(calls) == 2 + 3 * 10


def test_interleaving() -> None:
    order: list[str] = []
    steps: dict[str, Any] = {name: (lambda name=name: order.append(name)) for name in "ab"}
    spreads = timing.interleaved(steps, CPU, rounds=3, least_s=0)
    assert order[-6:] == ["a", "b", "b", "a", "a", "b"] and set(spreads) == {"a", "b"}

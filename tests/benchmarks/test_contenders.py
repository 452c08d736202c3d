"""The contenders do what their names say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from munit_fast.benchmarks import (
    SETS,
    Case,
    contenders,
    contenders_convs,
    contenders_launches,
    contenders_training,
    contenders_translation,
    runner,
    select,
    stub_driver,
)
from munit_fast.benchmarks.cases import CONVOLUTIONS
from munit_fast.benchmarks.contenders import FROZEN, OURS, PUBLISHED, TRITON, Unavailable, compiled, frozen
from munit_fast.ops import winograd
from munit_fast.ops.conv_plans import DIRECT, Plans

CPU = torch.device("cpu")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="freezing is seen by what oneDNN packs")
def test_freezing_freezes() -> None:
    """Also where the same code was compiled before without it; and that it did not is an error, not a time."""
    torch.compiler.reset()
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
    x = torch.randn(1, 3, 16, 16)

    def step_of(implementation: str) -> Any:
        function = compiled(module, implementation)
        return torch.no_grad()(lambda: function(x))

    plain = step_of("torch.compile")
    expected = plain()
    step = step_of(FROZEN)
    frozen(step)
    torch.testing.assert_close(step(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="freeze"):
        frozen(plain)


def test_the_frozen_translation_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its networks are compiled for that, and its first step is the one that freezes."""
    names: list[str] = []
    steps: list[Any] = []
    monkeypatch.setattr(contenders, "compiled", lambda f, name: names.append(name) or f)
    monkeypatch.setattr(contenders_translation, "frozen", steps.append)
    case = next(c for c in SETS["smoke"] if c.level == "translation")
    made = contenders_translation.translation_contenders(case, CPU)
    work = next(c for c in made if c.implementation == FROZEN).make()
    assert steps == [work.step] and set(names) == {FROZEN}


def test_modes_of_an_operator() -> None:
    """The backward alone gives the gradients that forward and backward together give."""
    [backward], [training] = (
        [c for c in SETS["smoke"] if c.name == "adain + residual + pad" and c.mode == mode]
        for mode in ("backward", "training")
    )
    for contender in runner.contenders(backward, CPU):
        if not contender.compiled:
            same = next(c for c in runner.contenders(training, CPU) if str(c) == str(contender))
            alone, both = contender.make().step(), same.make().step()
            assert len(alone) == 4 and len(both) == 5  # x, weight, bias, residual; and the result
            assert all(torch.equal(a, b) for a, b in zip(alone, both[1:]))


@pytest.mark.skipif(not winograd.available(), reason="the instruction set in use has no such convolutions")
@pytest.mark.parametrize("case", [c for c in SETS["smoke"] if c.name in CONVOLUTIONS], ids=str)
@pytest.mark.parametrize("planned", [True, False])
def test_a_convolution_goes_the_way_that_is_chosen(case: Case, planned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours by the plan and, beside it, without; what the convolution before would have made is not timed."""
    chosen = {3: "f43", 4: "f42"}[contenders_convs.SPECS[case.name].kernel] if planned else None
    monkeypatch.setattr(contenders_convs, "choose", lambda shape: Plans(chosen, chosen))
    ours = [c for c in contenders_convs.conv_contenders(case, CPU) if c.ours]
    assert [c.implementation for c in ours] == ([OURS, f"{OURS} direct"] if planned else [OURS])
    ran = [_operators(c.make().step) for c in ours]
    forward = case.mode == "forward"
    for names, by_plan in zip(ran, (planned, False)):
        assert ("winograd_conv" in names, "conv2d" in names or "convolution" in names) == (by_plan, not by_plan)
        assert ("winograd_weight_gradient" in names) == (by_plan and not forward)
        assert ("epilogue" in names) == (not by_plan and contenders_convs.SPECS[case.name].joined)
        assert "winograd_weights" not in names and "statistics" not in names
        if by_plan:
            assert (names["winograd_conv"]["transformed"] is not None) == forward


def _operators(step: Any) -> dict[str, dict[str, Any]]:
    """The operators that a step runs, with their arguments."""

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = zip((argument.name for argument in func._schema.arguments), args)
            found[func._schema.name.partition("::")[2]] = dict(given)
            return func(*args, **(kwargs or {}))

    found: dict[str, dict[str, Any]] = {}
    with Recording():
        step()
    return found


def test_our_convolution_is_direct_on_a_gpu() -> None:
    for case in SETS["smoke"]:
        if case.name in CONVOLUTIONS:
            assert contenders_convs.plans_of(case, torch.device("cuda")) == DIRECT


def test_compiled_contenders_compile_every_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside and outside of the discriminators: none is left to eager."""
    seen: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            seen.extend(str(n.target) for n in module.graph.nodes if "conv2d" in str(n.target))
            return module(*arguments)

        return counted

    monkeypatch.setattr(
        contenders, "compiled", lambda function, name: torch.compile(function, backend=backend, dynamic=False)
    )
    called: list[int] = []
    conv2d = torch.conv2d

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        called.append(1)
        return conv2d(*args, **kwargs)

    [case] = select(SETS["smoke"], levels=["training"])
    contender = next(c for c in contenders_training.training_contenders(case, CPU) if c.compiled)
    work = contender.make()
    work.step()
    seen.clear()
    work.step()
    plain = next(c for c in contenders_training.training_contenders(case, CPU) if c.implementation == PUBLISHED).make()
    monkeypatch.setattr(torch.nn.functional, "conv2d", counting)
    plain.step()
    assert len(seen) == len(called) > 50


@pytest.mark.skipif(stub_driver.unsupported_reason() is not None, reason=str(stub_driver.unsupported_reason()))
def test_launches_are_what_their_names_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both contenders hand the driver the same, a wrong one does not pass, and ours does without Triton's wrapper."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = Case("launch", "launches of a MUNIT iteration", "training", "bf16", 1, 4, 64)
    traced = contenders_launches._launches(case)
    kernels = {launch.kernel.__name__: launch for launch in traced}
    monkeypatch.setattr(contenders_launches, "_launches", lambda case: tuple(kernels.values())[:3])
    triton, ours = contenders_launches.launch_contenders(case, CPU)
    assert (triton.implementation, ours.implementation) == (TRITON, OURS)
    expected, got = (list((work.numbers or work.step)()) for work in (triton.make(), ours.make()))
    assert runner.check(case, ours, got, expected) == 0 and expected[0].numel() > 3 * 48  # more than grids
    got[0][-1] ^= 1
    with pytest.raises(runner.AccuracyError):
        runner.check(case, ours, got, expected)
    ours.make().verify()
    monkeypatch.setattr(contenders_launches, "_by_us", contenders_launches._by_triton)
    with pytest.raises(RuntimeError, match="Triton"):
        contenders_launches.launch_contenders(case, CPU)[1].make().verify()


def test_launches_need_a_stub_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders_launches, "unsupported_reason", lambda: "there is no C compiler")
    [case] = SETS["launch"]
    for contender in contenders_launches.launch_contenders(case, CPU):
        with pytest.raises(Unavailable, match="compiler"):
            contender.make()

"""Which convolution goes which way: the table, what overrides it, and where only direct convolution is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from munit_fast import make_config
from munit_fast.models.networks import AdaINGen
from munit_fast.ops import conv_plans, fused_conv, native, winograd
from munit_fast.ops.conv_plans import DIRECT, TABLE, ConvShape, choose
from munit_fast.ops.winograd import PLANS

LARGE = ConvShape(3, 1, 256, 256, 1, 64, 64, torch.float32, False)
STRIDED = ConvShape(4, 2, 256, 256, 1, 32, 32, torch.float32, False)
served = pytest.mark.skipif(not winograd.available(), reason="no instruction set with these convolutions")


@pytest.fixture(autouse=True)
def _fresh_override() -> Iterator[None]:
    conv_plans._override.cache_clear()
    yield
    conv_plans._override.cache_clear()


@pytest.fixture
def isa() -> Iterator[None]:
    chosen = native.module.isa() if native.module is not None else None
    yield
    if native.module is not None:
        native.module.set_isa(chosen)


@served
@pytest.mark.parametrize(
    ("value", "of_large", "of_strided"),
    [("direct", None, None), ("winograd", "f43", "f42"), ("winograd2", "f23", None), (" Winograd ", "f43", "f42")],
)
def test_the_environment_overrides_the_table(
    monkeypatch: pytest.MonkeyPatch, value: str, of_large: str | None, of_strided: str | None
) -> None:
    monkeypatch.setenv("MUNIT_FAST_CONV", value)
    assert choose(LARGE) == (of_large, of_large)
    assert choose(STRIDED) == (of_strided, of_strided)
    small = LARGE._replace(channels=1, out_channels=1, height=1, width=1)
    assert choose(small) == (of_large, of_large)
    for dtype in (torch.bfloat16, torch.float16):
        assert choose(LARGE._replace(dtype=dtype)) == (of_large, of_large)


@pytest.mark.parametrize("value", ["winograd4", "on", "f43"])
def test_an_unknown_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MUNIT_FAST_CONV", value)
    with pytest.raises(ValueError, match=rf"MUNIT_FAST_CONV.*auto, direct, winograd, winograd2.*'{value}'"):
        choose(LARGE)


@pytest.mark.parametrize("value", ["", "auto", "winograd", "winograd2"])
def test_what_no_plan_serves_is_direct(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MUNIT_FAST_CONV", value)
    assert choose(LARGE._replace(dtype=torch.float64)) == DIRECT
    for kernel, stride in ((7, 1), (1, 1), (5, 1), (3, 2), (4, 1), (2, 2)):
        assert choose(LARGE._replace(kernel=kernel, stride=stride)) == DIRECT


@pytest.mark.parametrize("value", ["auto", "winograd", "winograd2"])
def test_without_the_compiled_part(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MUNIT_FAST_CONV", value)
    monkeypatch.setattr(native, "module", None)
    assert not winograd.available()
    assert choose(LARGE) == choose(STRIDED) == DIRECT


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("value", ["auto", "winograd"])
def test_an_instruction_set_without_these_convolutions(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    if native.module is None:
        pytest.skip(f"the compiled part is missing: {native.native_error}")
    monkeypatch.setenv("MUNIT_FAST_CONV", value)
    baseline = native.module.available_isas()[-1]
    native.module.set_isa(baseline)
    assert not winograd.available()
    assert choose(LARGE) == DIRECT
    assert torch.isfinite(generator()(torch.rand(1, 3, 32, 32))).all()
    weight, u = torch.randn(8, 8, 3, 3), torch.empty(1)
    with pytest.raises(RuntimeError, match="instruction set"):
        torch.ops.munit_fast_cpu.winograd_weights(weight, 0, u)


@served
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("row", TABLE)
def test_a_row_of_the_table(monkeypatch: pytest.MonkeyPatch, row: conv_plans.ConvRule) -> None:
    """It names a plan that serves it, from its least sizes on and with its instruction sets alone."""
    monkeypatch.setenv("MUNIT_FAST_CONV", "auto")
    plan = PLANS[row.plan]
    assert (row.kernel, row.stride) == (plan.side, plan.stride)
    assert row.tiles_kept <= row.tiles and set(row.dtypes) <= {torch.float32, torch.bfloat16, torch.float16}
    shape = ConvShape(row.kernel, row.stride, row.channels, row.channels, 1, 4 * row.tiles, 4, row.dtypes[0], False)
    assert shape.tiles == row.tiles
    for isa in native.module.available_isas():
        native.module.set_isa(isa)
        if isa not in row.isas or not winograd.available():
            continue
        assert choose(shape).result == row.plan
        assert choose(shape._replace(height=4 * row.tiles_kept, kept=True)).result == row.plan
        for less in (
            shape._replace(channels=row.channels - 1),
            shape._replace(out_channels=row.channels - 1),
            shape._replace(height=4 * row.tiles - 4),
            shape._replace(height=4 * row.tiles_kept - 4, kept=True),
        ):
            assert choose(less).result is None or sum(r.plan == row.plan for r in TABLE) > 1


def test_tiles() -> None:
    assert LARGE.tiles == 256
    assert LARGE._replace(samples=3, height=5, width=1).tiles == 6


def generator() -> AdaINGen:
    torch.manual_seed(0)
    return AdaINGen(3, make_config({"gen": {"dim": 16, "n_res": 1}}).gen.model_dump())


@dataclass
class Calls:
    plans: list[str | None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The plans of the convolutions that run."""
    found, convolve = Calls([]), fused_conv._convolve

    def recorded(source: winograd.Source, conv: fused_conv.Conv, *rest: object) -> object:
        found.plans.append(conv.plan)
        return convolve(source, conv, *rest)

    monkeypatch.setattr(fused_conv, "_convolve", recorded)
    return found


@served
@pytest.mark.parametrize("value", ["direct", "winograd", "winograd2"])
def test_the_networks_follow(monkeypatch: pytest.MonkeyPatch, calls: Calls, value: str) -> None:
    monkeypatch.setenv("MUNIT_FAST_CONV", value)
    generator()(torch.rand(1, 3, 32, 32))
    wanted = {"direct": {None}, "winograd": {None, "f43", "f42"}, "winograd2": {None, "f23"}}
    assert set(calls.plans) == wanted[value]


@served
@pytest.mark.parametrize("change", ["float64", "reference"])
def test_what_the_networks_convolve_directly(monkeypatch: pytest.MonkeyPatch, calls: Calls, change: str) -> None:
    """Float64 keeps the golden agreement, to the bit that of MUNIT_FAST_CONV=direct."""
    net, x = generator(), torch.rand(1, 3, 32, 32)
    results = []
    for value in ("winograd", "direct"):
        monkeypatch.setenv("MUNIT_FAST_CONV", value)
        conv_plans._override.cache_clear()
        if change == "float64":
            net, x = net.double(), x.double()
        else:
            net.set_impl("reference")
        results.append(net(x))
    assert set(calls.plans) <= {None}
    assert torch.equal(*results)

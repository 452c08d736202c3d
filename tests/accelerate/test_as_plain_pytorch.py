"""What plain PyTorch computes an accelerated network computes, whatever was done to it, and refuses what it refuses."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import munit_fast as mf
from helpers import published_layers as published
from munit_fast.benchmarks.networks_translation import ResnetBlock

accelerate = mf.accelerate
C = 6


def run_of_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(C, C, 3), nn.InstanceNorm2d(C, affine=True), nn.ReLU(), nn.ReflectionPad2d(1))


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(C, C, 3), nn.InstanceNorm3d(C, affine=True), nn.LeakyReLU(0.1))


MAKES: dict[str, Callable[[], nn.Module]] = {
    "sequential": run_of_norm,
    "convolution last": lambda: nn.Sequential(
        nn.InstanceNorm2d(C), nn.PReLU(), nn.ReplicationPad2d(2), nn.Conv2d(C, C, 3)
    ),
    "residual block": lambda: ResnetBlock(C),
    "conv block": lambda: published.Conv2dBlock(C, C, 3, 1, 1, "in", "relu"),
    "munit residual block": lambda: published.ResBlock(C),
    "volumes": volumes,
}
Change = Callable[[nn.Module], object]


def norms_of(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, (nn.InstanceNorm2d, nn.InstanceNorm3d))]


def each_norm(change: Callable[[Any], object]) -> Change:
    return lambda net: [change(norm) for norm in norms_of(net)]


def assigned(**values: Any) -> Change:
    return each_norm(lambda norm: [setattr(norm, name, value) for name, value in values.items()])


def with_statistics(norm: Any) -> None:
    norm.track_running_stats = True
    for name, value in (("running_mean", torch.linspace(-1, 1, C)), ("running_var", torch.linspace(0.5, 2, C))):
        del norm._buffers[name]
        norm.register_buffer(name, value.to(torch.get_default_dtype()).double())


def with_affine(*size: int, dtype: torch.dtype = torch.float64) -> Change:
    def change(norm: Any) -> None:
        norm.weight = nn.Parameter(torch.linspace(0.5, 2, max(size)).expand(size).clone().to(dtype))
        norm.bias = nn.Parameter(torch.linspace(-1, 1, max(size)).expand(size).clone().to(dtype))

    return each_norm(change)


CHANGES: dict[str, Change] = {
    "nothing": lambda net: None,
    **{
        f"eps {eps!r}": assigned(eps=eps)
        for eps in (-1e-3, 0, 1, 0.5, float("nan"), float("inf"), np.float32(0.1), True)
    },
    "eps a tensor": assigned(eps=torch.tensor(0.1)),
    "eps a string": assigned(eps="1e-5"),
    "running statistics": each_norm(with_statistics),
    "statistics without their buffers": assigned(track_running_stats=True),
    "other affine": with_affine(C),
    "no affine": assigned(weight=None, bias=None),
    "no bias": assigned(bias=None),
    "affine of another length": with_affine(C + 1),
    "affine of another shape": with_affine(2, C),
    "affine of another dtype": with_affine(C, dtype=torch.float32),
    "affine in half": with_affine(C, dtype=torch.float16),
    "frozen": lambda net: net.requires_grad_(False),
    "other activation": lambda net: [setattr(m, "negative_slope", -2.0) for m in net.modules()],
}


def outcome(net: nn.Module, x: Tensor, second: bool = False) -> Any:
    """Results, gradients and buffers; or the error, its type and words."""
    net.zero_grad()
    x = x.detach().clone().requires_grad_(x.is_floating_point() or x.is_complex())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            y = net(x)
            inputs = [x, *(p for p in net.parameters() if p.requires_grad)]
            if not y.is_floating_point():
                inputs = []
            upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(y) if inputs else None
            grads = torch.autograd.grad(y, inputs, upstream, create_graph=second, allow_unused=True) if inputs else ()
            found = [y, *grads]
            if second:
                square = sum(g.square().sum() for g in grads if g is not None and g.requires_grad)
                again = torch.autograd.grad(square, inputs, allow_unused=True)
                found += [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, again)]
        except Exception as error:
            return type(error), str(error)
    found += [b.clone() for b in net.buffers()]
    return [None if t is None else t.detach() for t in found], sorted(str(w.message) for w in warned)


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    if isinstance(expected[0], type):
        assert got == expected
        return
    assert got[1] == expected[1]  # warnings
    for a, b in zip(got[0], expected[0], strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
            if b.device.type != "meta":
                scale = max(1.0, float(b.detach().abs().nan_to_num(0, 0).max())) if b.numel() else 1.0
                assert torch.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)


def pair(make: Callable[[], nn.Module], training: bool) -> tuple[nn.Module, nn.Module, Any]:
    torch.manual_seed(0)
    plain = make().double().train(training)
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert report.replaced
    return plain, fast, report


def image(net: nn.Module, batch: int = 2, channels: int = C) -> Tensor:
    size = (5, 7, 6) if any(isinstance(m, nn.Conv3d) for m in net.modules()) else (9, 8)
    return torch.randn(batch, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", MAKES)
def test_changed_modules(make: str, change: str, when: str) -> None:
    """Before it is accelerated the layer is left alone, or its fused form copes; afterwards each call decides."""
    for training in (True, False):
        torch.manual_seed(0)
        plain = MAKES[make]().double().train(training)
        fast = copy.deepcopy(plain)
        if when == "after":
            accelerate(fast)
        CHANGES[change](plain)
        CHANGES[change](fast)
        if when == "before":
            accelerate(fast)
        for batch in (1, 2):
            x = image(plain, batch)
            assert_same(outcome(fast, x), outcome(plain, x), 1e-8)


@pytest.mark.parametrize("make", MAKES)
def test_second_derivatives(make: str) -> None:
    for training in (True, False):
        plain, fast, _ = pair(MAKES[make], training)
        x = image(plain)
        assert_same(outcome(fast, x, second=True), outcome(plain, x, second=True), 1e-9)


TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "no samples": lambda x: x[:0],
    "no batch": lambda x: x[0],
    "other channels": lambda x: torch.cat((x, x), 1),
    "float32": lambda x: x.float(),
    "integers": lambda x: x.long(),
    "complex": lambda x: torch.complex(x, x),
    "meta": lambda x: x.to("meta"),
    "not a number": lambda x: x.index_fill(-1, torch.tensor([2]), float("nan")),
    "infinite": lambda x: x.index_fill(-1, torch.tensor([2]), float("inf")),
    "strided": lambda x: torch.cat((x, x), -1)[..., ::2],
    "flat": lambda x: x.flatten(1),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("make", [*MAKES, "norm alone", "norm of volumes alone"])
def test_unusual_tensors(make: str, name: str) -> None:
    makes = MAKES | {"norm alone": lambda: nn.InstanceNorm2d(C), "norm of volumes alone": lambda: nn.InstanceNorm3d(C)}
    for training in (True, False):
        plain, fast, _ = pair(makes[make], training)
        x = TENSORS[name](image(volumes() if "volumes" in make else plain))
        got, expected = outcome(fast, x), outcome(plain, x)
        if name in ("not a number", "infinite"):  # of which ReLU has no gradient here, and in PyTorch the given one
            got, expected = (got[0][:1], got[1]), (expected[0][:1], expected[1])
        assert_same(got, expected, 1e-4 if x.dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("make", MAKES)
def test_fake_tensors_and_the_meta_device(make: str) -> None:
    plain, fast, _ = pair(MAKES[make], True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(image(plain))
        got, expected = fast(x), plain(x)
    assert type(got) is type(expected)
    assert (got.shape, got.dtype, got.device, got.stride()) == (
        expected.shape,
        expected.dtype,
        expected.device,
        expected.stride(),
    )
    x = image(plain).to("meta")
    assert_same(outcome(fast.to("meta"), x), outcome(plain.to("meta"), x), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("how", ["autocast", "converted"])
@pytest.mark.parametrize("make", MAKES)
def test_half_precision(make: str, how: str, dtype: torch.dtype) -> None:
    """As near to float64 as PyTorch comes, in the same dtypes."""
    exact, fast, _ = pair(MAKES[make], True)
    x = image(exact, 1)
    truth = exact(x).detach()
    plain = copy.deepcopy(exact)
    to = torch.float32 if how == "autocast" else dtype
    with torch.autocast("cpu", dtype) if how == "autocast" else nullcontext():
        expected, got = plain.to(to)(x.to(to)), fast.to(to)(x.to(to))
    assert got.dtype == expected.dtype
    error, theirs = ((y.detach().double() - truth).norm() for y in (got, expected))
    assert float(error) <= 2 * float(theirs) + 1e-6


HOOKED: dict[str, Callable[[Any], object]] = {
    "spectral norm": spectral_norm,
    "three power iterations": lambda conv: spectral_norm(conv, n_power_iterations=3),
    "weight norm": weight_norm,
    "pruning": lambda conv: prune.random_unstructured(conv, "weight", 0.3),
    "parametrization": parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("hook", HOOKED)
@pytest.mark.parametrize("make", MAKES)
def test_computed_weights_stop_no_norm(make: str, hook: str) -> None:
    """Norm, activation and sum are fused as without; vectors of the spectral norm advance as often as before."""

    def hooked() -> nn.Module:
        torch.manual_seed(0)
        net = MAKES[make]().double()
        for m in list(net.modules()):
            if isinstance(m, (nn.Conv2d, nn.Conv3d)):
                HOOKED[hook](m)
        return net

    def fused(net: nn.Module) -> list[tuple[str, str]]:
        return [(f.name, f.what) for f in accelerate(net).replaced if "norm_act_conv2d" not in f.into]

    plain, fast = hooked(), hooked()
    before = {name: value.clone() for name, value in fast.state_dict().items()}
    assert fused(fast) == fused(MAKES[make]())
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())  # the trial's traces
    x = image(plain)
    for training in (True, True, False, True):
        assert_same(outcome(fast.train(training), x), outcome(plain.train(training), x), 1e-9)
        expected = plain.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in fast.state_dict().items())

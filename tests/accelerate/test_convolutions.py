"""`munit_fast.accelerate` on convolutions: which ones Winograd's algorithms compute, and that nothing else changes."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import munit_fast as mf
from munit_fast.accelerate import restore, swaps
from munit_fast.ops import conv_plans, native, winograd
from munit_fast.ops.conv_plans import ConvRule

pytestmark = pytest.mark.skipif(not winograd.available(), reason="no Winograd convolutions on this processor")
accelerate = mf.accelerate


class Residual(nn.Module):
    """CycleGAN's block with a body of another name, so that only its Sequential is known."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResnetBlock(nn.Module):
    """The same with the published name, whose sum joins the last norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = Residual(channels).body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def cyclegan(c: int = 8) -> nn.Sequential:
    """The ResNet generator of Zhu et al., ICCV 2017."""
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, c, 7),
        nn.InstanceNorm2d(c),
        nn.ReLU(True),
        nn.Conv2d(c, 2 * c, 3, 2, 1),
        nn.InstanceNorm2d(2 * c, affine=True),
        nn.ReLU(True),
        ResnetBlock(2 * c),
        Residual(2 * c),
        nn.ConvTranspose2d(2 * c, c, 3, 2, 1, 1),
        nn.InstanceNorm2d(c),
        nn.ReLU(True),
        nn.ReflectionPad2d(3),
        nn.Conv2d(c, 3, 7),
        nn.Tanh(),
    )


def double(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, 3, padding="same", padding_mode="replicate" if norm else "zeros"))
        layers += [nn.InstanceNorm2d(outputs, affine=True)] if norm else []
        layers.append(nn.LeakyReLU(0.1, inplace=True))
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Ronneberger et al., MICCAI 2015, with 4×4 convolutions down."""

    def __init__(self, c: int = 16, norm: bool = True) -> None:
        super().__init__()
        self.first, self.inner, self.last = double(3, c, norm), double(2 * c, 2 * c, norm), double(2 * c, c, norm)
        self.down = nn.Conv2d(c, 2 * c, 4, 2, 1)
        self.up = nn.ConvTranspose2d(2 * c, c, 2, 2)
        self.head = nn.Conv2d(c, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        return self.head(self.last(torch.cat([skip, self.up(self.inner(F.leaky_relu(self.down(skip), 0.2)))], 1)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cyclegan": cyclegan,
    "unet": UNet,
    "unet without norms": lambda: UNet(norm=False),
}
SKIPPED = {"cyclegan": ["1", "4", "13"], "unet": ["head"], "unet without norms": ["head"]}
SHAPE = (2, 3, 32, 48)


@pytest.fixture(autouse=True)
def conv(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets what MUNIT_FAST_CONV says, which is read once: at first, that all convolutions with a plan have it."""

    def choose(value: str) -> None:
        monkeypatch.setenv("MUNIT_FAST_CONV", value)
        conv_plans._override.cache_clear()

    torch.manual_seed(0)
    choose("winograd")
    yield choose
    monkeypatch.undo()
    conv_plans._override.cache_clear()
    conv_plans._search_once.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """The convolutions that ran by a plan: (plan, norm and activation that joined, norm whose statistics it gave)."""
    seen: list[tuple[str, str | None, str]] = []
    real = swaps.planned_conv

    def watched(output: Any, e: Any, w: Any, b: Any, plans: Any, pad: int, mode: str, y_norm: str) -> Any:
        seen.append((plans.result, None if e is None else f"{e.spec.norm} {e.spec.act}", y_norm))
        return real(output, e, w, b, plans, pad, mode, y_norm)

    monkeypatch.setattr(swaps, "planned_conv", watched)
    return seen


def picture(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def outcome(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The result and all gradients."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype))
    gradients = {name.removeprefix("_orig_mod."): p.grad.clone() for name, p in net.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients}


def assert_close(got: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    """By relative norm; a bias before a norm has no gradient but rounding."""
    largest = max((float(value.norm()) for name, value in exact.items() if name not in ("x", "y")), default=0.0)
    for name, expected in exact.items():
        scale = max(float(expected.norm()), 1e-2 * largest if name != "y" else 0.0)
        assert float((got[name].double() - expected).norm()) < tolerance * scale, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_same_before_and_after(name: str, layout: Any, training: bool) -> None:
    net, x = NETWORKS[name]().train(training).to(memory_format=layout), picture().contiguous(memory_format=layout)
    exact, before = outcome(copy.deepcopy(net).double(), x.double()), outcome(copy.deepcopy(net), x)
    assert_close(before, exact, 1e-4)
    state, kinds = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    report = accelerate(net)
    assert [s.name for s in report.skipped] == SKIPPED[name]
    assert_close(outcome(net, x), exact, 1e-4)
    assert [type(m) for m in net.modules()] != kinds
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    report.restore()
    assert [type(m) for m in net.modules()] == kinds
    assert not any(swaps.MARK in vars(m) for m in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in outcome(net, x).items())


def test_what_runs(calls: list[Any], conv: Any) -> None:
    net, x = cyclegan(), picture()
    accelerate(net)
    first, second = ("f43", None, "instance"), ("f43", "instance relu", "instance")
    with torch.no_grad():
        net(x)
    assert calls == [first, second, first, second]
    calls.clear()
    unet = UNet()
    accelerate(unet)
    unet(x)
    alone = ("f43", "instance lrelu", "instance")
    assert calls == [first, alone, ("f42", None, "none"), first, alone, first, alone]
    calls.clear()
    for dtype in (torch.float64, torch.bfloat16):
        unet.to(dtype)(x.to(dtype))
    unet.float()
    with torch.autocast("cpu", torch.bfloat16):
        unet.first[0](x)  # its result is to be bfloat16
    unet.to("meta")(x.to("meta"))
    assert not calls


@pytest.mark.parametrize("value", ["direct", "winograd2"])
def test_the_environment_decides(calls: list[Any], conv: Any, value: str) -> None:
    net, x = UNet(), picture()
    exact = outcome(copy.deepcopy(net).double(), x.double())
    conv(value)
    report = accelerate(net)
    assert_close(outcome(net, x), exact, 1e-4)
    left = [s.name for s in report.skipped if f"MUNIT_FAST_CONV={value}" in s.reason]
    if value == "winograd2":
        assert left == ["down"] and {plan for plan, _, _ in calls} == {"f23"}
    else:
        assert left == ["first.0", "first.3", "inner.0", "inner.3", "last.0", "last.3", "down"] and not calls


def test_the_table_decides_at_each_call(calls: list[Any], conv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    isas = (native.module.isa(),)  # type: ignore[union-attr]
    row = ConvRule(isas, (torch.float32,), 3, 1, 16, 16, 4, 4, "f43", "")
    monkeypatch.setattr(conv_plans, "TABLE", [row])
    conv_plans._search_once.cache_clear()
    conv("auto")
    few = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 4, 2))
    reasons = {s.name: s.reason for s in accelerate(few).skipped}
    assert "3 to 16 channels" in reasons["0"] and "16 to 32 channels" in reasons["1"]
    net = nn.Conv2d(16, 16, 3, padding=1)
    accelerate(net)

    def runs(x: Tensor) -> bool:
        calls.clear()
        net(x)
        return bool(calls)

    assert runs(picture((1, 16, 16, 16))) and runs(picture((4, 16, 8, 8)))
    assert not runs(picture((1, 16, 12, 12)))
    with torch.no_grad():
        assert runs(picture((1, 16, 8, 8))) and not runs(picture((1, 16, 8, 4)))
        with torch.autocast("cpu", torch.bfloat16):
            assert not runs(picture((1, 16, 16, 16)).bfloat16())
    conv("direct")
    assert not runs(picture((1, 16, 16, 16)))


def test_the_report() -> None:
    report = accelerate(nn.ModuleDict({"gen": cyclegan(), "unet": UNet()}))
    found = {f.name: (f.what, f.into) for f in report.replaced if "Conv2d" in f.what}
    pad = "padding=1, padding_mode=reflect"
    assert found["gen.7.conv_block.1"] == ("ReflectionPad2d + Conv2d", f"norm_act_conv2d({pad})")
    assert found["gen.8.body.5"] == (
        "InstanceNorm2d + ReLU + ReflectionPad2d + Conv2d",
        f"norm_act_conv2d({pad}, norm=instance, act=relu)",
    )
    assert found["unet.inner.3"] == (
        "InstanceNorm2d + LeakyReLU + Conv2d",
        "norm_act_conv2d(padding=1, padding_mode=replicate, norm=instance, act=lrelu, slope=0.1)",
    )
    assert found["unet.down"] == ("Conv2d", "norm_act_conv2d(stride=2, padding=1, padding_mode=zeros)")
    norms = [f for f in report.replaced if not f.into.startswith("norm_act_conv2d")]
    assert len(found) + len(norms) == len(report.replaced)
    numbers = re.findall(r"\d+", str(report).splitlines()[0])
    assert numbers == [str(n) for n in (len(norms), len(found), len(report.skipped))]


class Own(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Padded(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(input, (1, 0, 1, 0)), weight, bias)


class Same(nn.Conv2d):
    pass


def replaced() -> nn.Conv2d:
    conv = nn.Conv2d(16, 16, 3)
    conv.forward = lambda x: x  # type: ignore[method-assign,assignment]
    return conv


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Conv2d(16, 16, 3))


REASONS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "groups": (lambda: nn.Conv2d(16, 16, 3, groups=2), "groups=2"),
    "dilation": (lambda: nn.Conv2d(16, 16, 3, dilation=2), r"dilation=\(2, 2\)"),
    "circular": (lambda: nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
    "uneven padding": (lambda: nn.Conv2d(16, 16, 3, padding=(0, 1)), r"padding=\(0, 1\)"),
    "kernel": (lambda: nn.Conv2d(16, 16, 5), "5×5, stride 1: .*3×3.*4×4"),
    "kernel of two sizes": (lambda: nn.Conv2d(16, 16, (3, 1)), "3×1, stride 1"),
    "stride": (lambda: nn.Conv2d(16, 16, 3, 2), "3×3, stride 2"),
    "strides": (lambda: nn.Conv2d(16, 16, 3, (1, 2)), "3×3"),
    "4×4, stride 1": (lambda: nn.Conv2d(16, 16, 4), "4×4, stride 1"),
    "lazy": (lambda: nn.LazyConv2d(16, 3), "no parameters yet"),
    "own forward": (lambda: Own(16, 16, 3), "Own has its own forward"),
    "own padding": (lambda: Padded(16, 16, 3), "Padded has its own forward"),
    "forward on the object": (replaced, "forward .*on the object"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Conv2d(16, 16, 3)), "parametrization"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(16, 16, 3)), "parametrization"),
    "weight norm by hook": (old_weight_norm, "weight that a hook"),
    "spectral norm by hook": (lambda: nn.utils.spectral_norm(nn.Conv2d(16, 16, 3)), "weight that a hook"),
    "pruning": (lambda: prune.random_unstructured(nn.Conv2d(16, 16, 3), "weight", 0.5), "weight that a hook"),
    "quantised": (
        lambda: torch.ao.nn.qat.Conv2d(16, 16, 3, qconfig=torch.ao.quantization.get_default_qat_qconfig("fbgemm")),
        "own forward",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_left_alone(name: str) -> None:
    make, reason = REASONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make()
    kind = type(module)
    report = accelerate(nn.Sequential(module, nn.ReLU()))
    assert report.replaced == []
    [skipped] = report.skipped
    assert skipped.name == "0" and re.search(reason, skipped.reason)
    assert type(module) is kind


def test_other_backends_and_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Conv2d(16, 16, 3)
    for impl in ("reference", "triton", "cuda"):
        [skipped] = accelerate(net, impl).skipped
        assert f"impl='{impl}'" in skipped.reason
    with monkeypatch.context() as m:
        m.setattr(winograd, "available", lambda: False)
        [skipped] = accelerate(net).skipped
        assert "this processor" in skipped.reason
    assert len(accelerate(net, "cpu").replaced) == 1
    [skipped] = accelerate(net).skipped
    assert "already" in skipped.reason
    assert len(accelerate(Same(16, 16, 3)).replaced) == 1


def test_hooks_see_what_they_saw(calls: list[Any]) -> None:
    """On a convolution, and on what would become one call with it."""
    for watched in ("0", "1", "2", "3", "4", "5", "6"):
        net, x = Residual(16).body, picture((1, 16, 24, 24))
        seen: list[Tensor] = []
        expected = net(x)
        accelerate(net)
        layer = net.get_submodule(watched)
        handle = layer.register_forward_hook(lambda m, a, y, seen=seen: seen.append(y.clone()))
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
        restore(net)
        net(x)
        torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)
        handle.remove()
    names: list[str] = []
    conv = nn.Conv2d(16, 16, 3)
    conv.register_forward_pre_hook(lambda m, a: (2 * a[0],))
    conv.register_full_backward_hook(lambda m, gi, go: names.append("backward"))
    x = picture((1, 16, 24, 24)).requires_grad_()
    expected = conv(x)
    accelerate(conv)
    calls.clear()
    y = conv(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert names == ["backward"] and len(calls) == 1


def test_changes_after_it_was_accelerated(calls: list[Any]) -> None:
    """A convolution computes what its attributes and parameters say at the call."""
    x = picture((2, 16, 20, 20))

    def changed(change: Callable[[Any], object], planned: int, mode: str = "zeros") -> None:
        conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode=mode)
        accelerate(conv)
        restore(twin := copy.deepcopy(conv))
        for module in (conv, twin):
            torch.manual_seed(1)
            change(module)
        calls.clear()
        torch.testing.assert_close(conv(x), twin(x), rtol=1e-4, atol=1e-4)
        assert len(calls) == planned

    replacement = nn.Parameter(torch.randn(16, 16, 3, 3))
    changed(lambda m: setattr(m, "stride", (2, 2)), 0)
    changed(lambda m: setattr(m, "stride", 2), 0)
    changed(lambda m: setattr(m, "padding", 0), 1)
    changed(lambda m: setattr(m, "dilation", (2, 2)), 0)
    changed(lambda m: setattr(m, "padding", (2, 2)), 1)
    changed(lambda m: setattr(m, "padding", (2, 2)), 1, "reflect")
    changed(lambda m: setattr(m, "padding", "same"), 1)
    changed(lambda m: setattr(m, "bias", None), 1)
    changed(lambda m: setattr(m, "weight", replacement), 1)
    changed(lambda m: setattr(m, "padding_mode", "circular"), 0)
    changed(lambda m: m.register_forward_hook(lambda m, a, y: 2 * y), 1)
    changed(lambda m: nn.utils.parametrizations.weight_norm(m), 1)
    changed(lambda m: nn.utils.spectral_norm(m).eval(), 1)


def test_weights_are_those_of_now() -> None:
    """In inference, where transformed weights are kept; shared by two convolutions too."""
    net, x = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)), picture((1, 16, 24, 24))
    net[1].weight = net[0].weight
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=layout)
        report = accelerate(net)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for change in range(4):
            with torch.no_grad():
                for _ in range(3):
                    expected = F.conv2d(F.conv2d(x, net[0].weight, net[0].bias), net[1].weight, net[1].bias)
                    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
            if change == 0:
                net(x).square().mean().backward()
                optimizer.step()
            elif change == 1:
                net[0].weight.data.mul_(1.1)
            elif change == 2:
                net.load_state_dict({key: 0.9 * value for key, value in net.state_dict().items()})
        report.restore()


def test_an_optimizer_goes_on() -> None:
    """Accelerated in the middle of a training, and restored before its end: the same losses as without."""

    def losses(change: bool) -> list[float]:
        torch.manual_seed(5)
        net, found = UNet(), []
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        report = None
        for step in range(6):
            if change and step == 1:
                report = accelerate(net)
            if report is not None and step == 5:
                report.restore()
            optimizer.zero_grad()
            loss = (net(picture()) - picture()).abs().mean()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    assert losses(True) == pytest.approx(losses(False), rel=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_files_and_shared_modules(name: str, calls: list[Any]) -> None:
    net, x = NETWORKS[name](), picture()
    expected = net(x)
    accelerate(net)
    net(x)
    count = len(calls)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)):
        calls.clear()
        torch.testing.assert_close(twin(x), expected, rtol=1e-3, atol=1e-4)
        assert len(calls) == count
        restore(twin)
        assert not any(swaps.is_swapped(m) for m in twin.modules())
    fresh = NETWORKS[name]()
    fresh.load_state_dict(net.state_dict())
    torch.testing.assert_close(fresh(x), expected)
    block = Residual(16)
    both = nn.Sequential(block, nn.ReLU(), block)
    x = picture((1, 16, 24, 24))
    expected = both(x)
    assert len([f for f in accelerate(both).replaced if "Conv2d" in f.what]) == 2
    torch.testing.assert_close(both(x), expected, rtol=1e-3, atol=1e-4)


def test_functional_calls_and_transforms() -> None:
    net, x = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()), picture((2, 16, 24, 24))
    other = {name: 2 * value for name, value in net.state_dict().items()}
    expected = torch.func.functional_call(net, other, x)
    vectors = torch.func.vmap(net)(x[None])
    _, tangent = torch.func.jvp(net, (x,), (torch.ones_like(x),))

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, parameters, x).square().mean()

    gradients = torch.func.grad(loss)(other)
    accelerate(net)
    torch.testing.assert_close(torch.func.functional_call(net, other, x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.func.vmap(net)(x[None]), vectors)
    torch.testing.assert_close(torch.func.jvp(net, (x,), (torch.ones_like(x),))[1], tangent)
    for name, value in torch.func.grad(loss)(other).items():
        torch.testing.assert_close(value, gradients[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_compiles_in_one_graph(name: str) -> None:
    torch._dynamo.reset()
    net, x = NETWORKS[name](), picture()
    exact = outcome(copy.deepcopy(net).double(), x.double())
    accelerate(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert_close(outcome(compiled, x), exact, 1e-4)
    with torch.no_grad():
        assert_close({"y": compiled(x)}, {"y": exact["y"]}, 1e-4)


def test_unusual_tensors_are_as_before() -> None:
    """What PyTorch computes, it still computes; what it refuses, it refuses with the same words."""
    shapes = [(16, 9, 9), (0, 16, 9, 9), (1, 16, 1, 1), (1, 16, 1, 9), (1, 15, 9, 9), (1, 16, 9), (1, 16, 0, 9)]
    modules = [
        lambda: nn.Conv2d(16, 16, 3),
        lambda: nn.Conv2d(16, 16, 3, padding=2, padding_mode="reflect"),
        lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3)),
        lambda: nn.Sequential(nn.InstanceNorm2d(16), nn.ReLU(), nn.ReplicationPad2d(1), nn.Conv2d(16, 16, 3)),
        lambda: nn.Sequential(nn.InstanceNorm2d(16), nn.PReLU(3), nn.Conv2d(16, 16, 3, padding=1)),
    ]

    def result(net: nn.Module, x: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return net(x)
            except (ValueError, RuntimeError, TypeError, AttributeError) as error:
                return f"{type(error).__name__}: {error}"

    for make in modules:
        net = make()
        inputs: list[Any] = [torch.randn(shape) for shape in shapes]
        inputs += [
            torch.randn(1, 16, 9, 9).double(),
            torch.ones(1, 16, 9, 9).int(),
            torch.randn(1, 16, 9, 9).to("meta"),
        ]
        inputs += [torch.randn(1, 16, 9, 9)[:, :, ::2, 1:], None]
        expected = [result(net, x) for x in inputs]
        accelerate(net)
        for x, want in zip(inputs, expected):
            got = result(net, x)
            if isinstance(want, str):
                assert got == want
            elif x.device.type != "meta":
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_layouts_are_those_of_pytorch() -> None:
    for x_layout in (torch.contiguous_format, torch.channels_last):
        for weight_layout in (torch.contiguous_format, torch.channels_last):
            conv = nn.Conv2d(16, 24, 3, padding=1).to(memory_format=weight_layout)
            x = picture((2, 16, 24, 24)).contiguous(memory_format=x_layout)
            expected = conv(x)
            accelerate(conv)
            assert conv(x).stride() == expected.stride()
            pads = [nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3), nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3)]
            net = nn.Sequential(*pads, nn.Flatten(), nn.Unflatten(1, (16, 24, 24)), *copy.deepcopy(pads))
            net.to(memory_format=weight_layout)
            expected = net(x)
            accelerate(net)
            got = net(x)  # Flatten would raise for a channels_last view
            assert got.stride() == expected.stride()
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_orders_of_modules(calls: list[Any]) -> None:
    """What does not join, and statistics that are those of another tensor by then."""
    conv = functools.partial(nn.Conv2d, 16, 16, 3)
    norm = functools.partial(nn.InstanceNorm2d, 16, affine=True)
    for modules, joined in (
        ([nn.ReflectionPad2d(1), conv(padding=1)], [None]),
        ([norm(), nn.ReflectionPad2d(2), conv(padding=1), norm()], [None]),
        ([conv(), nn.Tanh(), norm(), nn.ReLU()], [None]),
        ([conv(), norm(), norm(), nn.ReLU(), conv()], [None, "instance relu"]),
        ([norm(), nn.ReLU(), nn.Tanh(), conv()], [None]),
        ([norm(), nn.Mish(), conv(), nn.ReplicationPad2d((1, 2, 1, 1)), conv()], [None, None]),
        ([norm(), nn.GELU(), conv(), norm(), nn.GELU("tanh"), conv()], ["instance gelu", "instance gelu_tanh"]),
        ([norm(), conv(), conv(), nn.ZeroPad2d(1), nn.ReLU(), conv()], ["instance none", None, None]),
        ([nn.ReLU(), nn.Sequential(norm(), nn.SiLU()), nn.Sequential(conv(), norm())], [None]),
    ):
        net, x = nn.Sequential(*modules), 2 * picture((2, 16, 20, 24)) + 1
        exact = outcome(copy.deepcopy(net).double(), x.double())
        accelerate(net)
        calls.clear()
        assert_close(outcome(net, x), exact, 1e-4)
        assert [inner for _, inner, _ in calls] == joined

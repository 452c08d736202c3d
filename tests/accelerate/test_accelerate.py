"""`munit_fast.accelerate`: the same networks before and after, what is found, what is left alone, and the way back."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import munit_fast as mf
from helpers import published_layers as published
from munit_fast import nn as fused_nn
from munit_fast.accelerate import Report, Skipped, restore, swaps
from munit_fast.accelerate.probe import difference
from munit_fast.ops import backends, native
from munit_fast.reference import AdaINGen, MsImageDis, VAEGen, layers

accelerate = mf.accelerate
GEN = {"dim": 4, "mlp_dim": 8, "style_dim": 3, "n_res": 1, "n_downsample": 1, "activ": "lrelu", "pad_type": "reflect"}
DIS = {"dim": 4, "n_layer": 2, "num_scales": 2, "norm": "in", "activ": "lrelu", "pad_type": "zero", "gan_type": "lsgan"}

# The network, and how many norms are fused: with what follows, alone.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "published": (published.Generator, 7, 0),
    "published prelu": (lambda: published.Generator("prelu"), 7, 0),
    "cyclegan": (published.cyclegan, 5, 0),
    "unet": (published.unet, 0, 3),
    "patchgan": (published.patchgan, 1, 0),
    "reference munit": (lambda: AdaINGen(3, GEN), 7, 0),
    "reference unit": (lambda: VAEGen(3, GEN | {"activ": "prelu"}), 7, 0),
    "reference discriminator": (lambda: MsImageDis(3, DIS), 2, 0),
    "reference discriminator, layer norm": (lambda: MsImageDis(3, DIS | {"norm": "ln"}), 2, 0),
    "reference discriminator, spectral norm": (lambda: MsImageDis(3, DIS | {"norm": "sn"}), 0, 0),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def picture(dtype: torch.dtype = torch.float64, size: tuple[int, ...] = (2, 3, 16, 24)) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def copied(net: nn.Module) -> nn.Module:
    """A copy; PyTorch cannot copy the published AdaIN while it holds a style with a graph."""
    for m in net.modules():
        if isinstance(m, published.AdaptiveInstanceNorm2d):
            m.weight = m.bias = None
    return copy.deepcopy(net)


def outcome(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Results and all gradients, for random upstream gradients."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(2)  # UNIT draws its noise
    y = net(x)
    outputs = y if isinstance(y, list) else [y]
    random = torch.Generator().manual_seed(3)
    torch.autograd.backward(
        outputs, [torch.randn(o.shape, generator=random, dtype=torch.float64).to(o) for o in outputs]
    )
    found = {f"output {i}": o.detach().clone() for i, o in enumerate(outputs)} | {"x": x.grad}
    return found | {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Within tolerance of the largest value: a bias before a norm has no gradient but rounding."""
    assert got.keys() == expected.keys()
    outputs = max(float(v.abs().max()) for n, v in expected.items() if n.startswith("output"))
    gradients = max(float(v.abs().max()) for n, v in expected.items() if not n.startswith("output"))
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        scale = outputs if name.startswith("output") else gradients
        assert float((got[name] - value).abs().max()) <= tolerance * scale, name


def snapshot(net: nn.Module) -> dict[str, tuple[type, dict[str, Any]]]:
    def members(m: nn.Module) -> dict[str, Any]:
        return {k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items()}

    return {name: (type(m), members(m)) for name, m in net.named_modules()}


def norms_left(report: Report) -> list[Skipped]:
    """What was skipped, but for convolutions: most of these networks' are too small for a plan."""
    return [s for s in report.skipped if not s.reason.startswith("Conv2d ")]


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.name().partition("::")[2].partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def calls(net: nn.Module, x: Tensor) -> Counter[str]:
    with torch.no_grad(), Calls() as counted:
        net(x)
    return counted.seen


needs_native = pytest.mark.skipif(native.module is None, reason="without the compiled part the original runs")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
def test_same_before_and_after(name: str, dtype: torch.dtype, tolerance: float) -> None:
    make, joined, alone = NETWORKS[name]
    net = make().to(dtype)
    for training in (True, False):
        net.train(training)
        x = picture(dtype)
        before = outcome(copied(net), x)
        state, parameters = copy.deepcopy(net.state_dict()), list(net.parameters())
        expected = snapshot(net)
        report = accelerate(net)
        norms = [f for f in report.replaced if "Conv2d" not in f.what]
        assert (sum("+" in f.what for f in norms), len(norms)) == (joined, joined + alone)
        assert norms_left(report) == []
        assert_same(outcome(net, x), before, tolerance)
        assert list(net.state_dict()) == list(state)
        # Spectral norm's vectors advance with every forward.
        assert "spectral" in name or all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
        assert all(m.training is training for m in net.modules())
        net.zero_grad()
        report.restore()
        assert {n: t for n, (t, _) in snapshot(net).items()} == {n: t for n, (t, _) in expected.items()}
        assert not any(swaps.MARK in vars(m) for m in net.modules())
        if "spectral" not in name:
            after = outcome(net, x)
            assert all(torch.equal(after[k], v) for k, v in before.items())  # the last bit too


@needs_native
def test_fewer_operators_run() -> None:
    x = picture(torch.float32)
    generator = published.cyclegan()
    accelerate(generator)
    seen = calls(generator, x)
    # Left are the first padding of the network and of the residual block, and the last tanh.
    assert seen["epilogue"] == 5
    assert (seen["reflection_pad2d"], seen["tanh"]) == (2, 1)
    assert not set(seen) & {"native_batch_norm", "relu_", "relu", "prelu", "_prelu_kernel", "add"}
    munit = published.Generator()
    accelerate(munit)
    seen = calls(munit, x)
    assert (seen["epilogue"], seen["add_"], seen["relu_"], seen["std"]) == (7, 0, 0, 0)
    unit = VAEGen(3, GEN).eval()
    accelerate(unit)
    seen = calls(unit, x)
    assert (seen["epilogue"], seen["add"], seen["leaky_relu"]) == (7, 0, 0)


def test_the_report() -> None:
    net = nn.ModuleDict({"gen": published.cyclegan(), "dis": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))})
    report = accelerate(net)
    assert [(f.name, f.what, f.into) for f in report.replaced] == [
        ("gen.2", "InstanceNorm2d + ReLU", "instance_norm(act=relu)"),
        ("gen.5", "InstanceNorm2d + ReLU", "instance_norm(act=relu)"),
        (
            "gen.7.conv_block.2",
            "InstanceNorm2d + ReLU + ReflectionPad2d",
            "instance_norm(act=relu, pad=1, pad_mode=reflect)",
        ),
        ("gen.7.conv_block.6", "InstanceNorm2d + sum", "instance_norm(residual=x)"),
        (
            "gen.9",
            "InstanceNorm2d + PReLU + ReflectionPad2d",
            "instance_norm(act=prelu, slope=the weight, pad=3, pad_mode=reflect)",
        ),
    ]
    [skipped] = norms_left(report)
    assert skipped.name == "dis.1" and "BatchNorm2d" in skipped.reason
    text = str(report)
    assert re.findall(r"\d+", text.splitlines()[0]) == ["5", str(len(report.skipped))]
    assert "fused  InstanceNorm2d + ReLU → instance_norm(act=relu)\n         gen.2, gen.5\n" in text
    assert re.search(r"^left +BatchNorm2d .*\n +dis\.1$", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 120
    assert repr(report) == f"<accelerate.Report: 5 fused, {len(report.skipped)} left>"


def test_a_second_call_finds_nothing_and_undoes_nothing() -> None:
    net, x = published.cyclegan().double(), picture()
    expected = outcome(net, x)
    first = accelerate(net)
    kinds = [type(m) for m in net.modules()]
    second = accelerate(net)
    assert [type(m) for m in net.modules()] == kinds
    assert second.replaced == []
    assert {s.reason for s in norms_left(second)} == {"is accelerated already"}
    second.restore()
    assert [type(m) for m in net.modules()] == kinds
    assert_same(outcome(net, x), expected, 1e-10)
    first.restore()
    assert not any(swaps.is_swapped(m) for m in net.modules())
    first.restore()
    third = accelerate(net)
    assert len(third.replaced) == len(first.replaced)


def test_a_part_first() -> None:
    net = published.cyclegan()
    part = accelerate(net[2])
    assert [(f.name, f.what) for f in part.replaced] == [("(the module itself)", "InstanceNorm2d")]
    whole = accelerate(net)
    assert next((f.name, f.what) for f in whole.replaced) == ("2", "InstanceNorm2d + ReLU")
    whole.restore()
    assert [m for m in net.modules() if swaps.is_swapped(m)] == [net[2]]
    part.restore()
    assert not any(swaps.is_swapped(m) for m in net.modules())


def test_modules_and_what_hangs_on_them_stay() -> None:
    net, x = published.cyclegan(), picture(torch.float32)
    seen: list[str] = []
    net[2].register_forward_hook(lambda m, a, y: seen.append("norm"))
    net[0].register_forward_hook(lambda m, a, y: seen.append("pad"))
    before, modules = snapshot(net), list(net.modules())
    names = [(m.__class__.__name__, m.__class__.__module__, repr(m)) for m in modules]
    report = accelerate(net)
    assert [id(m) for m in net.modules()] == [id(m) for m in modules]
    assert [(m.__class__.__name__, m.__class__.__module__, repr(m)) for m in modules] == names
    assert isinstance(net[2], nn.InstanceNorm2d) and isinstance(net, nn.Sequential)
    net(x)
    assert seen == ["pad", "norm"]
    report.restore()
    assert snapshot(net) == before


@pytest.mark.parametrize("watched", ["2", "3", "9", "10", "11"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_see_what_they_saw(watched: str, when: str) -> None:
    """On each module of a run, set before it is accelerated and after."""
    net, x = published.cyclegan().double(), picture()
    seen: list[Tensor] = []

    def watch() -> Any:
        return net.get_submodule(watched).register_forward_hook(lambda m, a, y: seen.append(y.clone()))

    handle = watch()
    expected = net(x)
    if when == "after":
        handle.remove()
    report = accelerate(net)
    if when == "after":
        watch()
    elif watched != "11":
        assert any(s.name == watched and "hook" in s.reason for s in report.skipped)
    assert torch.allclose(net(x), expected, rtol=0, atol=1e-10)
    assert len(seen) == 2
    assert torch.allclose(*seen, rtol=0, atol=1e-10)


def test_hooks_of_every_kind_and_global_ones() -> None:
    # PyTorch's backward hooks do not go with in-place activations.
    net, x = published.Generator("tanh"), picture(torch.float32)
    accelerate(net)
    seen: list[str] = []
    block, res = net.encode[0], net.encode[2]
    handles = [
        block.activation.register_forward_pre_hook(lambda m, a: seen.append("before")),
        res.model.register_forward_hook(lambda m, a, y: seen.append("model")),
        net.decode[0].model[1].register_forward_hook(lambda m, a, y: seen.append("block")),
        net.decode[2].norm.register_full_backward_hook(lambda m, gi, go: seen.append("backward")),
        net.decode[2].activation.register_full_backward_pre_hook(lambda m, go: seen.append("backward before")),
    ]
    net(x).sum().backward()
    assert seen == ["before", "model", "block", "backward before", "backward"]
    for handle in handles:
        handle.remove()
    names: list[str] = []
    everywhere = nn.modules.module.register_module_forward_hook(lambda m, a, y: names.append(type(m).__name__))
    try:
        net(x)
    finally:
        everywhere.remove()
    assert Counter(names) == Counter(type(m).__name__ for m in net.modules())


def test_shared_and_indexed_modules() -> None:
    """One activation for all, one norm twice, layers called by their index: only containers fuse."""
    act, norm = nn.ReLU(True), nn.InstanceNorm2d(4, affine=True)
    parts = [nn.Conv2d(3, 4, 3), norm, act, nn.Conv2d(4, 4, 3), norm, nn.ReflectionPad2d(1), nn.InstanceNorm2d(4), act]
    net, x = nn.Sequential(*parts).double(), picture()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)

    def features() -> list[Tensor]:
        found, y = [], x
        for layer in net:
            y = layer(y.clone())
            found.append(y.clone())
        return [*found, net[:2](x), net[2:5](found[1]), net(x)]

    expected, gradients = features(), outcome(net, x)
    report = accelerate(net)
    assert [(f.name, f.what) for f in report.replaced] == [
        ("1", "InstanceNorm2d + ReLU"),
        ("4", "InstanceNorm2d + ReflectionPad2d"),
        ("6", "InstanceNorm2d + ReLU"),
    ]
    for got, want in zip(features(), expected, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-10)
    assert_same(outcome(net, x), gradients, 1e-10)


def test_children_exchanged_afterwards() -> None:
    net, x = published.cyclegan().double(), picture()
    accelerate(net)
    plain = copy.deepcopy(net)
    restore(plain)
    for changed in (net, plain):
        changed[3], changed[5] = nn.ELU(), nn.BatchNorm2d(8).double()
        changed[11] = nn.ReflectionPad2d((3, 2, 3, 4))
        changed[10].forward = torch.sin
    assert torch.allclose(net(x), plain(x), rtol=0, atol=1e-10)
    for changed in (net, plain):
        changed[9] = nn.Identity()
    assert torch.allclose(net(x), plain(x), rtol=0, atol=1e-10)


def test_only_equal_zero_padding_is_fused() -> None:
    x, ones = picture(), nn.ZeroPad2d(1)
    ones.value = 1.0
    for pad in (nn.ReflectionPad2d((1, 2, 1, 1)), nn.ZeroPad2d((1, 1, 0, 1)), nn.ZeroPad2d(-1), ones):
        net = nn.Sequential(nn.InstanceNorm2d(3), nn.Tanh(), pad)
        expected = net(x)
        assert [f.what for f in accelerate(net).replaced] == ["InstanceNorm2d + Tanh"]
        assert torch.allclose(net(x), expected, rtol=0, atol=1e-10)
    for pad in (nn.ReplicationPad2d(2), nn.ZeroPad2d(1), nn.ReflectionPad2d(0)):
        for act in (
            nn.LeakyReLU(0.3),
            nn.SELU(),
            nn.SiLU(),
            nn.GELU(),
            nn.GELU("tanh"),
            nn.PReLU(3, 0.1).double(),
        ):
            net = nn.Sequential(nn.InstanceNorm2d(3, eps=0.1), act, pad)
            expected = net(x)
            [entry] = accelerate(net).replaced
            assert entry.what == f"InstanceNorm2d + {type(act).__name__} + {type(pad).__name__}"
            assert torch.allclose(net(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["cyclegan", "published", "reference munit"])
def test_copies_and_files(name: str) -> None:
    net, x = NETWORKS[name][0]().double(), picture()
    expected = outcome(net, x)
    net = copied(net)
    accelerate(net)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(net),
        copy.copy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(file, weights_only=False),
    ):
        assert [type(m) for m in twin.modules()] == [type(m) for m in net.modules()]
        assert_same(outcome(twin, x), expected, 1e-10)
    twin = pickle.loads(pickle.dumps(net))
    restore(twin)
    assert not any(swaps.is_swapped(m) for m in twin.modules())
    assert all(swaps.is_swapped(m) for m in net.modules() if isinstance(m, nn.InstanceNorm2d))
    assert_same(outcome(twin, x), expected, 1e-10)
    fresh = NETWORKS[name][0]().double()
    fresh.load_state_dict(net.state_dict())
    assert_same(outcome(fresh, x), expected, 1e-10)


def test_a_file_opens_in_a_new_process_and_both_names_can_be_called() -> None:
    net = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())
    accelerate(net)
    # Here the package was imported before its function was asked for; there it is the other way round.
    program = """
import pickle, sys, torch, munit_fast as mf
mine = torch.nn.Sequential(torch.nn.InstanceNorm2d(3), torch.nn.ReLU())
assert len(mf.accelerate(mine).replaced) == 1
net = pickle.loads(sys.stdin.buffer.read())
from munit_fast.accelerate import Report, restore
from munit_fast import accelerate
assert {s.reason for s in mf.accelerate(net).skipped} == {"is accelerated already"}
assert isinstance(accelerate(net), Report)
restore(mine)
x = torch.randn(1, 3, 5, 6)
assert torch.allclose(net(x), mine(x), atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", program], input=pickle.dumps(net), check=True)
    assert callable(sys.modules["munit_fast.accelerate"])
    assert sys.modules["munit_fast.accelerate"](net).replaced == []  # type: ignore[operator]


@needs_native
@pytest.mark.parametrize("name", ["cyclegan", "published", "reference munit", "unet"])
def test_compiles_in_one_graph(name: str) -> None:
    torch._dynamo.reset()
    net, x = NETWORKS[name][0]().double(), picture()
    expected = outcome(copied(net), x)
    accelerate(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        y = compiled(x)
    assert torch.allclose(y, expected["output 0"], rtol=0, atol=1e-10)
    if name in ("cyclegan", "unet"):
        random = torch.Generator().manual_seed(3)
        net.zero_grad()
        compiled(x).backward(torch.randn(y.shape, generator=random, dtype=y.dtype))
        for parameter, value in net.named_parameters():
            assert torch.allclose(value.grad, expected[parameter], rtol=0, atol=1e-9)


def test_an_optimizer_goes_on() -> None:
    """Accelerated in the middle of a training, and restored before its end: the same weights as without."""

    def train(change: bool) -> dict[str, Tensor]:
        torch.manual_seed(5)
        net = published.Generator().double()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        report = None
        for step in range(4):
            if change and step == 1:
                report = accelerate(net)
            if report is not None and step == 3:
                report.restore()
            optimizer.zero_grad()
            (net(picture()) - picture()).abs().mean().backward()
            optimizer.step()
        return net.state_dict()

    expected = train(False)
    got = train(True)
    for name, value in expected.items():
        # A bias before a norm has a gradient of rounding alone, which Adam blows up to a full step.
        if not name.endswith("conv.bias"):
            assert torch.allclose(got[name], value, rtol=0, atol=1e-6), name


def lookalike(base: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """A class with the name of `base` that computes something else."""
    return type(base.__name__, (base,), {"forward": forward})


class Counting(published.LayerNorm):
    """MUNIT's layer norm with a memory."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.calls = [0]
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        self.count += 1
        return super().forward(x) + 0 * torch.rand(1, dtype=x.dtype)


Counting.__name__ = "LayerNorm"


LOOKALIKES: dict[str, tuple[type[nn.Module], Callable[..., Any], str]] = {
    "scaled": (published.LayerNorm, lambda s, x: published.LayerNorm.forward(s, x) * 1.001, "the result "),
    "eps inside": (
        published.LayerNorm,
        lambda s, x: (
            (x - x.mean((1, 2, 3), keepdim=True))
            / (x.var((1, 2, 3), keepdim=True) + s.eps).sqrt()
            * s.gamma.view(1, -1, 1, 1)
            + s.beta.view(1, -1, 1, 1)
        ),
        "the result ",
    ),
    "detached": (
        published.LayerNorm,
        lambda s, x: published.LayerNorm.forward(s, x.detach()) + 0 * x,
        "gradient of x ",
    ),
    "frozen gamma": (
        published.LayerNorm,
        lambda s, x: (
            published.LayerNorm.forward(s, x) + (s.gamma.detach() - s.gamma).view(1, -1, 1, 1) * x.detach().mean() * 0.1
        ),
        "gradient of gamma ",
    ),
    "batch of one": (
        published.LayerNorm,
        lambda s, x: published.LayerNorm.forward(s, x) if len(x) > 1 else x * s.gamma.sum() * s.beta.sum(),
        "batch of 1 in training",
    ),
    "evaluation": (
        published.LayerNorm,
        lambda s, x: published.LayerNorm.forward(s, x) if s.training else x * s.gamma.sum() * s.beta.sum(),
        "in evaluation",
    ),
    "adain times two": (
        published.AdaptiveInstanceNorm2d,
        lambda s, x: 2 * published.AdaptiveInstanceNorm2d.forward(s, x),
        "the result ",
    ),
    "adain that tracks": (
        published.AdaptiveInstanceNorm2d,
        lambda s, x: (s.running_mean.add_(1), published.AdaptiveInstanceNorm2d.forward(s, x))[1],
        "buffer running_mean ",
    ),
    "raising": (published.LayerNorm, lambda s, x: {}["no"], "KeyError: 'no'"),
    "more arguments": (
        published.LayerNorm,
        lambda s, x, mask: x,
        "(x, mask)",
    ),
    "instance norm": (nn.InstanceNorm2d, lambda s, x: x * 2, "own forward"),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_are_left_alone(name: str) -> None:
    base, forward, reason = LOOKALIKES[name]
    module = lookalike(base, forward)(4)
    report = accelerate(nn.Sequential(module, nn.ReLU()))
    assert report.replaced == []
    assert len(report.skipped) == 1
    assert reason in report.skipped[0].reason
    assert not swaps.is_swapped(module)


def test_a_lookalike_of_a_container_keeps_its_forward() -> None:
    def act_first(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.conv(self.pad(x))))

    def no_sum(self: Any, x: Tensor) -> Tensor:
        return self.model(x) + 2 * x

    x = picture(size=(2, 4, 9, 8))
    for base, forward, arguments, outer in (
        (published.Conv2dBlock, act_first, (4, 4, 3, 1, 1, "in"), "Conv2dBlock"),
        (published.ResBlock, no_sum, (4, "in"), "ResBlock"),
        (published.ResnetBlock, lambda s, x: s.conv_block(x) - x, (4,), "ResnetBlock"),
    ):
        net = lookalike(base, forward)(*arguments).double()
        expected = outcome(net, x)
        report = accelerate(net)
        assert [s.name for s in norms_left(report)] == ["(the module itself)"]
        assert re.match(rf"{outer}: .*\bresult\b", norms_left(report)[0].reason)
        assert report.replaced  # the norms inside
        assert not swaps.is_swapped(net)
        assert_same(outcome(net, x), expected, 1e-10)


def test_a_block_with_another_activation_fuses_its_norm_only() -> None:
    block = published.Conv2dBlock(4, 4, 3, 1, 1, "in")
    block.activation = nn.Mish()
    report = mf.accelerate(block)
    assert [(f.name, f.what) for f in report.replaced] == [("norm", "InstanceNorm2d")]
    assert "Mish" in norms_left(report)[0].reason


def test_a_sequential_with_its_own_forward() -> None:
    class Odd(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for m in reversed(self):
                x = m(x)
            return x

    net, x = Odd(nn.InstanceNorm2d(3), nn.ReLU()).double(), picture()
    expected = outcome(net, x)
    report = accelerate(net)
    assert [(f.name, f.what) for f in report.replaced] == [("0", "InstanceNorm2d")]
    assert "its own forward" in report.skipped[0].reason
    assert_same(outcome(net, x), expected, 1e-10)


def test_a_trial_leaves_no_trace() -> None:
    norm = Counting(4)
    net = nn.Sequential(norm, nn.ReLU()).eval()
    norm.train()
    norm.register_forward_hook(lambda m, a, y: pytest.fail("a hook ran in the trial"))
    state = torch.get_rng_state()
    with torch.no_grad():
        report = accelerate(net)
    assert "buffer count " in report.skipped[0].reason
    assert torch.equal(torch.get_rng_state(), state)
    assert norm.calls == [0] and norm.count == 0 and norm.training and not net.training
    assert all(p.grad is None for p in net.parameters())
    with torch.inference_mode():
        assert len(accelerate(published.Generator()).replaced) == 7


def test_norms_that_are_not_ours() -> None:
    class Replaced(nn.InstanceNorm2d):
        pass

    on_object = nn.InstanceNorm2d(4)
    on_object.forward = lambda x: x  # type: ignore[method-assign]
    parametrized = nn.InstanceNorm2d(4, affine=True)
    parametrize.register_parametrization(parametrized, "weight", nn.Identity())
    reasons = {
        nn.InstanceNorm1d(4, track_running_stats=True): "track_running_stats=True",
        nn.InstanceNorm3d(4, track_running_stats=True): "track_running_stats=True",
        nn.LocalResponseNorm(4): "^LocalResponseNorm .*no fused",
        nn.BatchNorm2d(4): "^BatchNorm2d .*no fused",
        nn.LayerNorm(4): "^LayerNorm .*no fused",
        nn.InstanceNorm2d(4, track_running_stats=True): "track_running_stats=True",
        nn.LazyInstanceNorm2d(): "LazyInstanceNorm2d .*no parameters",
        on_object: "forward .*object",
        parametrized: "parametrization",
        fused_nn.InstanceNorm2d(4): r"munit_fast\.nn\.InstanceNorm2d ",
        fused_nn.AdaptiveInstanceNorm2d(4): r"munit_fast\.nn\.AdaptiveInstanceNorm2d ",
        type("LayerNorm", (nn.Module,), {"forward": lambda s, x: x})(): "num_features, eps, affine",
    }
    for module, reason in reasons.items():
        report = accelerate(nn.Sequential(module, nn.ReLU()))
        assert report.replaced == []
        assert [s.name for s in norms_left(report)] == ["0"]
        assert re.search(reason, norms_left(report)[0].reason)
        assert not swaps.is_swapped(module)
    # A subclass that changes nothing is still an instance norm.
    assert len(accelerate(Replaced(4)).replaced) == 1
    # These have the shape of a block, but nothing in them is ours.
    report = accelerate(published.Conv2dBlock(3, 4, 3, 1))
    assert report.replaced == norms_left(report) == []


def test_torchscript_is_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()))
    report = accelerate(nn.ModuleDict({"a": scripted, "b": nn.InstanceNorm2d(3)}))
    assert [s.name for s in report.skipped] == ["a"]
    assert [f.name for f in report.replaced] == ["b"]


def test_a_class_put_on_top_stops_restore() -> None:
    net = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.ReLU(), nn.InstanceNorm2d(3))
    report = accelerate(net)
    parametrize.register_parametrization(net[0], "weight", nn.Identity())
    with pytest.raises(RuntimeError, match=r"^1 .*parametrization.*restore\(\)"):
        report.restore()
    assert type(net[2]) is nn.InstanceNorm2d
    parametrize.remove_parametrizations(net[0], "weight")
    report.restore()
    assert [type(m) for m in net.modules()] == [nn.Sequential, nn.InstanceNorm2d, nn.ReLU, nn.InstanceNorm2d]


UNUSUAL = {
    "no batch": (3, 8, 9),
    "empty batch": (0, 3, 8, 9),
    "no rows": (2, 3, 0, 9),
    "two pixels": (2, 3, 1, 2),
    "one pixel": (2, 3, 1, 1),
    "other channels": (2, 5, 8, 9),
    "narrower than the padding": (1, 3, 2, 9),
    "five dimensions": (1, 3, 4, 4, 4),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_tensors_are_as_before(name: str) -> None:
    """What PyTorch computes, it still computes; what it refuses, it refuses with the same words."""
    for make in (
        lambda: nn.InstanceNorm2d(3),
        lambda: nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU(), nn.ReflectionPad2d(2)),
        lambda: published.LayerNorm(3),
        lambda: nn.Sequential(published.LayerNorm(3), nn.Tanh()),
    ):
        for training in (True, False):
            net = make().double().train(training)
            x = picture(size=UNUSUAL[name])

            def result(net: nn.Module = net, x: Tensor = x) -> Tensor | str:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        return net(x)
                    except (ValueError, RuntimeError) as error:
                        return f"{type(error).__name__}: {error}"

            expected = result()
            accelerate(net)
            got = result()
            if isinstance(expected, str):
                assert got == expected
            else:
                assert isinstance(got, Tensor)
                assert torch.allclose(got, expected, rtol=0, atol=1e-10, equal_nan=True)


def test_adain_without_a_style_and_with_a_wrong_one() -> None:
    norm, x = published.AdaptiveInstanceNorm2d(3).double(), picture()
    accelerate(norm)
    with pytest.raises(AssertionError, match="no style yet"):
        norm(x)
    norm.weight = norm.bias = torch.ones(5, dtype=x.dtype)
    with pytest.raises(RuntimeError):
        norm(x)
    passed = layers.AdaptiveInstanceNorm2d(3).double()
    accelerate(passed)
    with pytest.raises(ValueError, match=r"^weight .*\[2, 3\]"):
        passed(x, torch.ones(2, 4, dtype=x.dtype), torch.ones(2, 4, dtype=x.dtype))
    style = torch.randn(2, 2, 3, dtype=x.dtype)
    expected = layers.AdaptiveInstanceNorm2d(3).double()(x, *style)
    assert torch.allclose(passed(x, *style), expected, rtol=0, atol=1e-12)
    assert torch.allclose(passed(x, weight=style[0], bias=style[1]), expected, rtol=0, atol=1e-12)
    block = layers.Conv2dBlock(3, 4, 3, 1, 1, norm="adain")
    accelerate(block)
    with pytest.raises(ValueError, match=r"'adain'.*weight, bias"):
        block(picture(torch.float32))


def test_dtypes_layouts_and_devices() -> None:
    net = published.cyclegan()
    x = picture(torch.float32)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        expected_amp = net(x)
    accelerate(net)
    assert torch.allclose(net(x.to(memory_format=torch.channels_last)), expected, atol=1e-4)
    net.to(memory_format=torch.channels_last)
    assert torch.allclose(net(x.to(memory_format=torch.channels_last)), expected, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == expected_amp.dtype
    assert float(((y - expected_amp).norm() / expected_amp.norm()).detach()) < 0.03
    y.float().sum().backward()
    half = net.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert float(((half - expected).norm() / expected.norm()).detach()) < 0.05
    assert net.to("meta")(x.bfloat16().to("meta")).shape == expected.shape
    with torch.device("meta"):
        there = published.Generator()
    assert len(accelerate(there).replaced) == 7
    assert accelerate(there).skipped


def test_autocast_of_munit() -> None:
    net, x = published.Generator(dim=8), picture(torch.float32)
    expected = net(x).detach()
    accelerate(net)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    y.float().square().sum().backward()
    assert float((y.detach() - expected).norm() / expected.norm()) < 0.05
    # Where a float32 image meets a bfloat16 norm: added in place it stays bfloat16, else it is promoted.
    x = picture(torch.float32, (2, 4, 9, 8))
    for block, dtype in (
        (published.ResBlock(4), torch.bfloat16),
        (published.ResnetBlock(4), torch.float32),
        (layers.ResBlock(4), torch.float32),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            expected = block(x).detach()
            accelerate(block)
            y = block(x).detach()
        assert y.dtype == expected.dtype == dtype
        assert float((y - expected).norm() / expected.norm()) < 0.01


def test_impl(caplog: pytest.LogCaptureFixture) -> None:
    net, x = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()), picture(torch.float32)
    expected = net(x)
    accelerate(net, impl="reference")
    assert torch.allclose(net(x), expected, atol=1e-5)
    restore(net)
    accelerate(net, impl="triton")
    with pytest.raises(RuntimeError, match=r"^impl='triton' .*cpu.*report\.restore\(\)"):
        net(x)
    with pytest.raises(ValueError, match=r"^impl .*auto, triton, cuda, cpu, reference.*'gpu'"):
        accelerate(net, impl="gpu")
    with pytest.raises(TypeError, match=r"^module .*torch\.nn\.Module.*Tensor"):
        accelerate(x)  # type: ignore[arg-type]


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "native_error", "not built")
    caches = (swaps._is_served, backends.choose, backends._warn_once)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_without_a_fast_backend_pytorch_computes(no_native: None, caplog: pytest.LogCaptureFixture) -> None:
    net, x = published.Generator(), picture(torch.float32)
    expected = outcome(copied(net), x)
    accelerate(net)
    with caplog.at_level(logging.WARNING):
        got = outcome(net, x)
    assert all(torch.equal(got[k], v) for k, v in expected.items())
    assert calls(net, x)["epilogue"] == 0
    [record] = caplog.records
    assert re.search("'reference'.*cpu: not built$", record.getMessage())


def test_symbolic_tracing_still_works() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()).double(), picture()
    expected = net(x)
    accelerate(net)
    assert torch.allclose(torch.fx.symbolic_trace(net)(x), expected, rtol=0, atol=1e-10)


def test_what_the_trial_answers() -> None:
    assert difference(published.LayerNorm(3), swaps.LayerNorm, 3) is None
    assert difference(nn.InstanceNorm2d(3, affine=True, eps=0.1), swaps.InstanceNorm, 3) is None
    assert difference(published.LayerNorm(3), swaps.InstanceNorm, 3) is not None
    assert isinstance(accelerate(nn.Identity()), Report)


def test_a_block_with_dropout_is_fused_with_its_sum() -> None:
    """Its two trials must drop the same values."""
    block = published.ResnetBlock(4)
    plain = block.conv_block
    block.conv_block = nn.Sequential(*plain[:4], nn.Dropout(0.5), *plain[4:])
    x = torch.randn(2, 4, 8, 8)
    torch.manual_seed(1)
    before = block(x)
    report = mf.accelerate(block)
    assert not norms_left(report), report
    torch.manual_seed(1)
    torch.testing.assert_close(block(x), before)

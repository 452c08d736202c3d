"""`munit_fast.accelerate` on the networks of CycleGAN, pix2pix, CUT, StarGAN v2, FUNIT, EdgeConnect, nnU-Net and MONAI.

The definitions are those that the benchmark times, a few channels wide.
"""

from __future__ import annotations

import copy
import io
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import munit_fast as mf
from munit_fast.accelerate import restore, swaps
from munit_fast.benchmarks import networks_translation as translation
from munit_fast.benchmarks.networks_of_others import NETWORKS, outputs
from munit_fast.ops import winograd

accelerate = mf.accelerate
WIDTH = 4
_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, translation.AdaptiveInstanceNorm2d)
WITH_GROUP_NORM = {"MONAI SegResNet 3d", "MONAI AutoencoderKL 2d"}
SPECTRAL = {"EdgeConnect edges", "EdgeConnect discriminator"}

# What the norms are fused with, and how many times.
FUSED: dict[str, dict[str, int]] = {
    "CycleGAN generator": {
        "InstanceNorm2d + ReLU": 4,
        "InstanceNorm2d + ReLU + ReflectionPad2d": 10,
        "InstanceNorm2d + sum": 9,
    },
    # The activation after a norm is the first of the next block, and changes the skip connection too.
    "pix2pix U-Net": {"InstanceNorm2d": 7},
    "PatchGAN": {"InstanceNorm2d + LeakyReLU": 3},
    "CUT generator": {
        "InstanceNorm2d + ReLU": 4,
        "InstanceNorm2d + ReLU + ReflectionPad2d": 10,
        "InstanceNorm2d + sum": 9,
    },
    # Activations, scales and sums of the residual blocks stand in their forward.
    "StarGAN v2 generator": {"InstanceNorm2d": 24, "InstanceNorm2d + LeakyReLU": 1},
    "StarGAN v2 discriminator": {"InstanceNorm2d": 6},
    "FUNIT generator": {
        "InstanceNorm2d + ReLU": 9,
        "InstanceNorm2d + sum": 2,
        "AdaptiveInstanceNorm2d + ReLU": 2,
        "AdaptiveInstanceNorm2d + sum": 2,
    },
    "EdgeConnect edges": {
        "InstanceNorm2d + ReLU": 4,
        "InstanceNorm2d + ReLU + ReflectionPad2d": 9,
        "InstanceNorm2d + sum": 8,
    },
    "EdgeConnect colours": {
        "InstanceNorm2d + ReLU": 4,
        "InstanceNorm2d + ReLU + ReflectionPad2d": 9,
        "InstanceNorm2d + sum": 8,
    },
    "EdgeConnect discriminator": {},
    "nnU-Net plain 2d": {"InstanceNorm2d + LeakyReLU": 14},
    "nnU-Net plain 3d": {"InstanceNorm3d + LeakyReLU": 14},
    # The activation after a sum follows no norm.
    "nnU-Net residual 2d": {"InstanceNorm2d + LeakyReLU": 12, "InstanceNorm2d": 11},
    "nnU-Net residual 3d": {"InstanceNorm3d + LeakyReLU": 12, "InstanceNorm3d": 11},
    "MONAI UNet 2d": {"InstanceNorm2d + Dropout + PReLU": 13},
    "MONAI UNet 3d": {"InstanceNorm3d + Dropout + PReLU": 13},
    "MONAI DynUNet 3d": {"InstanceNorm3d": 14},
    "MONAI DynUNet residual 3d": {"InstanceNorm3d": 18},
}


def made(name: str, dtype: torch.dtype, width: int = WIDTH) -> nn.Module:
    """The network, the same at each call, with affine parameters that differ from channel to channel."""
    torch.manual_seed(0)
    net = NETWORKS[name].make(width)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)) and m.affine:
                m.weight.uniform_(0.5, 2)
                m.bias.normal_()
    return net.to(dtype)


def outcome(net: nn.Module, arguments: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Results, the gradients of all images, styles and parameters, and the buffers afterwards."""
    net.zero_grad()
    arguments = tuple(t.clone().requires_grad_(t.is_floating_point()) for t in arguments)
    torch.manual_seed(2)  # for dropout and the noise of an autoencoder
    results = outputs(net(*arguments))
    random = torch.Generator().manual_seed(3)
    upstream = [torch.randn(y.shape, generator=random, dtype=torch.float64).to(y.dtype) for y in results]
    torch.autograd.backward(results, upstream)
    found = {f"output {i}": y.detach().clone() for i, y in enumerate(results)}
    found |= {f"gradient of argument {i}": t.grad for i, t in enumerate(arguments) if t.grad is not None}
    found |= {f"gradient of {name}": p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": b.clone() for name, b in net.named_buffers()}


def scales(expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest value of each kind: the gradient of a bias before a norm is rounding noise beside the others."""
    largest: dict[str, float] = {}
    for name, value in expected.items():
        kind = name.partition(" ")[0]
        largest[kind] = max(largest.get(kind, 1e-30), float(value.abs().max()))
    return {name: largest[name.partition(" ")[0]] for name in expected}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert got.keys() == expected.keys()
    for name, scale in scales(expected).items():
        assert got[name].dtype == expected[name].dtype
        assert float((got[name] - expected[name]).abs().max()) <= tolerance * scale, name


def arguments_of(name: str, dtype: torch.dtype, batch: int = 2, times: int = 1) -> tuple[Tensor, ...]:
    network = NETWORKS[name]
    return network.arguments(batch, times * network.least, dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_in_float64(name: str, training: bool) -> None:
    plain, fast = made(name, torch.float64).train(training), made(name, torch.float64).train(training)
    kinds = [type(m) for m in fast.modules()]
    report = accelerate(fast)
    for batch in (1, 2):
        arguments = arguments_of(name, torch.float64, batch)
        assert_same(outcome(fast, arguments), outcome(plain, arguments))
    report.restore()
    assert [type(m) for m in fast.modules()] == kinds
    assert not any(swaps.MARK in vars(m) for m in fast.modules())
    after, expected = outcome(fast, arguments), outcome(plain, arguments)
    assert all(torch.equal(after[k], v) for k, v in expected.items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_as_exact_as_pytorch_in_float32(name: str, training: bool) -> None:
    """Beside the same weights in float64, and wide enough for planned convolutions."""
    plain, fast, exact = (made(name, torch.float32, 16).train(training) for _ in range(3))
    exact = exact.double()
    accelerate(fast)
    times = 2 if NETWORKS[name].dims == 2 and name != "StarGAN v2 discriminator" else 1
    arguments = arguments_of(name, torch.float32, 1, times)
    truth = outcome(exact, tuple(t.double() if t.is_floating_point() else t for t in arguments))

    def errors(found: dict[str, Tensor]) -> dict[str, float]:
        squares: Counter[str] = Counter()
        for key, value in found.items():
            squares[key.partition(" ")[0]] += float((value.double() - truth[key]).square().sum())
        return {kind: value**0.5 for kind, value in squares.items()}

    ours, theirs = errors(outcome(fast, arguments)), errors(outcome(plain, arguments))
    for kind, error in theirs.items():
        assert ours[kind] <= 4 * error, (kind, ours[kind] / error)


@pytest.mark.parametrize("name", FUSED)
def test_what_is_fused_and_what_is_left(name: str) -> None:
    net = made(name, torch.float32)
    report = accelerate(net)
    norms = [f for f in report.replaced if not f.into.startswith("norm_act_conv2d")]
    assert Counter(f.what for f in norms) == FUSED[name]
    assert {net.get_submodule(f.name) for f in norms} == {m for m in net.modules() if isinstance(m, _NORMS)}
    for skipped in report.skipped:
        module = net.get_submodule(skipped.name)
        assert isinstance(module, nn.Conv2d)  # transposed ones and volumes are not looked for
        assert skipped.reason.startswith("Conv2d ")
        assert ("hook" in skipped.reason) == hasattr(module, "weight_orig")
    assert (name in SPECTRAL) == any("hook" in skipped.reason for skipped in report.skipped)


@pytest.mark.skipif(not winograd.available(), reason="no Winograd convolutions on this processor")
def test_convolutions_of_the_published_width() -> None:
    """Of those that have kernel 3×3 or 4×4 with stride 2, all but the first get a plan."""
    for name in ("CycleGAN generator", "CUT generator", "nnU-Net plain 2d", "EdgeConnect colours"):
        network = NETWORKS[name]
        with torch.device("meta"):
            report = accelerate(network.make(32 if "nnU" in name else 64))
        assert any(f.into.startswith("norm_act_conv2d") for f in report.replaced)
        for skipped in report.skipped:
            assert re.search(r"\d×\d, stride|with [134] to|dilation", skipped.reason), skipped


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_averages_and_files(name: str) -> None:
    plain, fast = made(name, torch.float64), made(name, torch.float64)
    keys = list(fast.state_dict())
    accelerate(fast)
    assert list(fast.state_dict()) == keys
    arguments = arguments_of(name, torch.float64)
    # Copied before the first forward: PyTorch cannot copy the weight that a spectral norm computed with a graph.
    averages = [AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for net in (plain, fast)]
    twin = copy.deepcopy(fast)
    file = io.BytesIO()
    torch.save(fast, file)
    read = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    other = made(name, torch.float64)
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    accelerate(other)
    other.load_state_dict(plain.state_dict())
    expected = outcome(plain, arguments)
    for net in (fast, twin, read, other):
        assert Counter(map(swaps.is_swapped, net.modules())) == Counter(map(swaps.is_swapped, fast.modules()))
        assert_same(outcome(net, arguments), expected)
    for net, average in zip((plain, fast), averages):
        torch.optim.SGD(net.parameters(), 1e-3).step()
        average.update_parameters(net)
        torch.optim.SGD(net.parameters(), 1e-3).step()
        average.update_parameters(net)
    assert_same(outcome(averages[1].eval(), arguments), outcome(averages[0].eval(), arguments), 1e-8)
    plain.load_state_dict(fast.state_dict())
    restore(read)
    assert not any(swaps.is_swapped(m) for m in read.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_fire_with_the_same_values(name: str) -> None:
    seen: list[list[tuple[str, list[Tensor]]]] = []
    results = []
    for fuse in (False, True):
        net, calls = made(name, torch.float64), []
        if fuse:
            accelerate(net)
        for key, module in net.named_modules():

            def note(m: nn.Module, a: Any, y: Any, key: str = key, calls: Any = calls) -> None:
                calls.append((key, [t.detach().clone() for t in outputs(y)]))

            module.register_forward_hook(note)
        results.append(outcome(net, arguments_of(name, torch.float64)))
        seen.append(calls)
    assert_same(results[1], results[0])
    assert [key for key, _ in seen[1]] == [key for key, _ in seen[0]]
    for (key, expected), (_, got) in zip(*seen):
        for a, b in zip(got, expected, strict=True):
            assert float((a - b).abs().max()) <= 1e-9 * max(1.0, float(b.abs().max())), key


def test_features_of_single_layers() -> None:
    """CUT's loss compares what single layers give, which it calls one by one."""
    plain, fast = made("CUT generator", torch.float64), made("CUT generator", torch.float64)
    accelerate(fast)
    x = arguments_of("CUT generator", torch.float64)[0]
    numbers = (0, 4, 8, 12, 16)
    for got, expected in zip(fast.features(x, numbers), plain.features(x, numbers), strict=True):  # type: ignore[operator]
        assert torch.allclose(got, expected, rtol=0, atol=1e-10)


def test_a_dropout_between_norm_and_activation_drops_in_training() -> None:
    """It is passed over while it drops nothing, and runs where it does."""
    from monai.networks.nets import UNet

    def make() -> nn.Module:
        torch.manual_seed(0)
        return UNet(2, 1, 2, (4, 8), (2,), num_res_units=1, dropout=0.5).double()

    plain, fast = make().eval(), make().eval()
    report = accelerate(fast)
    assert "InstanceNorm2d + Dropout + PReLU" in {f.what for f in report.replaced}
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    for training in (False, True, False):
        assert_same(outcome(fast.train(training), (x,)), outcome(plain.train(training), (x,)))
    fast = make()
    assert {f.what for f in accelerate(fast).replaced} == {"InstanceNorm2d"}


@pytest.mark.parametrize("watched", ["1", "2"])
def test_a_hook_on_what_is_idle_fires(watched: str) -> None:
    for when in ("before", "after"):
        net = nn.Sequential(nn.InstanceNorm2d(3), nn.Dropout(0.0), nn.Identity(), nn.ReLU())
        seen: list[Tensor] = []

        def hook(m: nn.Module, a: Any, y: Tensor, seen: list[Tensor] = seen) -> None:
            seen.append(y.clone())

        if when == "before":
            net.get_submodule(watched).register_forward_hook(hook)
        report = accelerate(net)
        if when == "after":
            net.get_submodule(watched).register_forward_hook(hook)
        else:
            assert any(s.name == watched and "hook" in s.reason for s in report.skipped)
        x = torch.randn(2, 3, 8, 8)
        assert torch.allclose(net(x), nn.functional.instance_norm(x).relu(), atol=1e-5)
        assert len(seen) == 1 and (seen[0] < 0).any()

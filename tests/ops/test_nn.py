"""The modules: files and behaviour of what they replace, and the same numbers as the functions."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast import functional as mf
from munit_fast import nn as mnn
from munit_fast.reference import layers

MODULES: dict[str, Callable[[], nn.Module]] = {
    "instance": lambda: mnn.InstanceNorm2d(4, act="relu", pad=1),
    "instance affine": lambda: mnn.InstanceNorm2d(4, affine=True, act="prelu", pad=1, pad_mode="zero"),
    "instance tracked": lambda: mnn.InstanceNorm2d(4, track_running_stats=True, act="lrelu", slope=0.1),
    "group": lambda: mnn.GroupNorm(2, 4, act="silu", pad=1),
    "group plain": lambda: mnn.GroupNorm(4, 4, affine=False, act="prelu"),
    "layer": lambda: mnn.LayerNorm2d(4, act="selu", pad=2, pad_mode="replicate"),
    "layer plain": lambda: mnn.LayerNorm2d(4, affine=False),
    "layer shuffled": lambda: mnn.LayerNorm2d(1, depth_to_space=2, act="prelu", pad=1),
    "bias": lambda: mnn.BiasAct(4, act="tanh", pad=3),
    "no bias": lambda: mnn.BiasAct(4, bias=False, act="prelu"),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 6, 5) * 1.5 + 0.5


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.2)
    return module


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_pickles_are_equal(name: str, x: Tensor) -> None:
    module = randomised(MODULES[name]()).eval()
    y = module(x)
    y.sum().backward() if y.requires_grad else None
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), y)
        assert twin.state_dict().keys() == module.state_dict().keys()
        assert repr(twin) == repr(module)


@pytest.mark.parametrize("name", MODULES)
def test_state_dict_round_trip(name: str, x: Tensor) -> None:
    module, other = randomised(MODULES[name]()).eval(), MODULES[name]().eval()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tracked", [False, True])
def test_instance_norm_replaces_pytorchs(affine: bool, tracked: bool, x: Tensor) -> None:
    theirs = randomised(nn.InstanceNorm2d(4, affine=affine, track_running_stats=tracked, momentum=0.3, eps=1e-3))
    ours = mnn.InstanceNorm2d(4, 1e-3, 0.3, affine, tracked)
    assert isinstance(ours, nn.InstanceNorm2d)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("affine", [False, True])
def test_group_norm_replaces_pytorchs(affine: bool, x: Tensor) -> None:
    theirs = randomised(nn.GroupNorm(2, 4, 1e-3, affine))
    ours = mnn.GroupNorm(2, 4, 1e-3, affine)
    assert isinstance(ours, nn.GroupNorm)
    ours.load_state_dict(theirs.state_dict())
    for part in (x, x[..., 0], x[..., 0, 0], x[:, :, None], x.contiguous(memory_format=torch.channels_last)):
        y = ours(part)
        assert y.stride() == part.contiguous().stride() or part.dim() == 4
        torch.testing.assert_close(y, theirs(part), rtol=1e-5, atol=1e-6, check_stride=False)


def test_group_norm_without_a_bias(x: Tensor) -> None:
    ours = mnn.GroupNorm(2, 4, bias=False)
    assert [name for name, _ in ours.named_parameters()] == ["weight"] and ours.bias is None
    nn.init.normal_(ours.weight)
    torch.testing.assert_close(ours(x), F.group_norm(x, 2, ours.weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "GroupNorm"])
def test_norms_take_the_arguments_of_the_installed_torch(name: str) -> None:
    theirs, ours = (inspect.signature(getattr(module, name).__init__).parameters for module in (nn, mnn))
    for name, parameter in theirs.items():
        assert ours[name].kind == parameter.kind and ours[name].default == parameter.default, name


@pytest.mark.parametrize("tracked", [False, True])
def test_instance_norm_without_a_bias(tracked: bool, x: Tensor) -> None:
    ours = mnn.InstanceNorm2d(4, affine=True, track_running_stats=tracked, bias=False)
    assert [name for name, _ in ours.named_parameters()] == ["weight"] and ours.bias is None
    nn.init.normal_(ours.weight)
    expected = F.instance_norm(x) * ours.weight[:, None, None]
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-6)
    if "bias" in inspect.signature(nn.InstanceNorm2d.__init__).parameters:
        theirs = nn.InstanceNorm2d(4, affine=True, track_running_stats=tracked, bias=False)
        theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_instance_norm_of_one_image_without_a_batch(tracked: bool, training: bool, x: Tensor) -> None:
    options = {"affine": True, "track_running_stats": tracked}
    theirs, ours = nn.InstanceNorm2d(4, **options).train(training), mnn.InstanceNorm2d(4, **options).train(training)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]), rtol=1e-5, atol=1e-6)


def test_instance_norm_of_one_image_with_an_epilogue(x: Tensor) -> None:
    module = mnn.InstanceNorm2d(4, act="relu", pad=1)
    assert torch.equal(module(x[0], x[1]), module(x[:1], x[1:])[0])


def test_tracked_instance_norm_has_its_epilogue(x: Tensor) -> None:
    options = {"affine": True, "track_running_stats": True}
    theirs, ours = nn.InstanceNorm2d(4, **options), mnn.InstanceNorm2d(4, **options, act="lrelu", slope=0.3, pad=2)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        expected = F.pad(F.leaky_relu(theirs(x), 0.3) + x, (2,) * 4, mode="reflect")
        torch.testing.assert_close(ours(x, x), expected)


def test_layer_norm_replaces_the_published_one(x: Tensor) -> None:
    for affine in (True, False):
        theirs = randomised(layers.LayerNorm(4, affine=affine))
        ours = mnn.LayerNorm2d(4, affine=affine)
        assert isinstance(ours, layers.LayerNorm)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))
        theirs.load_state_dict(ours.state_dict())


def test_adain_replaces_the_published_one(x: Tensor) -> None:
    theirs, ours = layers.AdaptiveInstanceNorm2d(4), mnn.AdaptiveInstanceNorm2d(4)
    weight, bias = torch.randn(2, 4), torch.randn(2, 4)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["running_mean", "running_var"]
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(x, weight, bias)
    torch.testing.assert_close(ours(x, weight, bias), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(x, weight.flatten(), bias.flatten()), expected, rtol=1e-5, atol=1e-6)
    assert ours.running_mean.eq(0).all() and ours.running_var.eq(1).all()


def test_adain_in_the_published_manner(x: Tensor) -> None:
    module = mnn.AdaptiveInstanceNorm2d(4, act="relu", pad=1)
    with pytest.raises(ValueError, match=r"^weight and bias "):
        module(x)
    weight, bias = torch.randn(2, 4), torch.randn(2, 4)
    module.weight, module.bias = weight.reshape(-1), bias.reshape(-1)
    assert torch.equal(module(x), mf.adain(x, weight, bias, act="relu", pad=1))
    assert torch.equal(module(x, residual=x), mf.adain(x, weight, bias, act="relu", pad=1, residual=x))
    assert list(module.state_dict()) == ["running_mean", "running_var"]
    assert list(module.parameters()) == []
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    with pytest.raises(ValueError, match=r"^weight .*\[2, 4\]"):
        module(x, torch.ones(3, 4), bias)


def test_modules_are_their_functions(impl: str, x: Tensor) -> None:
    options = {"act": "lrelu", "slope": 0.1, "pad": 2, "pad_mode": "replicate", "impl": impl}
    norm = randomised(mnn.InstanceNorm2d(4, eps=0.1, affine=True, **options))
    assert torch.equal(norm(x, x), mf.instance_norm(x, norm.weight, norm.bias, eps=0.1, residual=x, **options))
    layer = randomised(mnn.LayerNorm2d(1, eps=0.1, depth_to_space=2, **options))
    expected = mf.layer_norm2d(x, layer.gamma, layer.beta, eps=0.1, residual=x, depth_to_space=2, **options)
    assert torch.equal(layer(x, x), expected)
    bias = randomised(mnn.BiasAct(4, **options))
    assert torch.equal(bias(x, x), mf.bias_act(x, bias.bias, residual=x, **options))
    a, b = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.equal(mnn.L1Loss(impl=impl)(a, b), mf.l1_loss(a, b, impl=impl))
    assert torch.equal(mnn.LSGANLoss(impl=impl)([a, b], 1.0), mf.lsgan_loss([a, b], 1.0, impl=impl))


def test_a_learned_slope_is_a_parameter(x: Tensor) -> None:
    for module in (
        mnn.InstanceNorm2d(4, act="prelu", slope=0.25),
        mnn.LayerNorm2d(4, act="prelu", slope=0.25),
        mnn.BiasAct(4, act="prelu", slope=0.25),
    ):
        assert dict(module.named_parameters())["slope"].tolist() == [0.25]
        module(x).square().sum().backward()
        assert module.slope.grad.abs() > 0
    assert "slope" not in dict(mnn.InstanceNorm2d(4, act="lrelu").named_parameters())


def test_bias_act_starts_at_zero(x: Tensor) -> None:
    assert list(mnn.BiasAct(4).state_dict()) == ["bias"]
    assert torch.equal(mnn.BiasAct(4)(x), x)
    assert list(mnn.BiasAct(4, bias=False).state_dict()) == []


def test_modules_train(x: Tensor) -> None:
    """A few steps lower a loss: the gradients reach every parameter with the right sign."""
    for name, make in MODULES.items():
        module = make().train()
        parameters = list(module.parameters())
        if not parameters:
            continue
        target = torch.randn_like(module(x))
        optimizer = torch.optim.SGD(parameters, lr=0.02)
        losses, reached = [], [0.0] * len(parameters)
        for _ in range(4):
            optimizer.zero_grad()
            loss = (module(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            reached = [most + float(p.grad.abs().sum()) for most, p in zip(reached, parameters)]
        assert losses == sorted(losses, reverse=True), name
        assert all(reached), name


def test_moving_a_module_to_another_dtype(x: Tensor) -> None:
    module = randomised(mnn.LayerNorm2d(4, act="prelu")).bfloat16()
    y = module(x.bfloat16())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert module.gamma.grad.dtype == module.slope.grad.dtype == torch.bfloat16


def test_reprs_say_what_follows_the_norm() -> None:
    assert repr(mnn.InstanceNorm2d(4, act="relu", pad=1)).endswith("act=relu, pad=1, pad_mode=reflect)")
    assert "depth_to_space=2" in repr(mnn.LayerNorm2d(4, depth_to_space=2))
    assert "slope=0.1" in repr(mnn.BiasAct(4, act="lrelu", slope=0.1))
    assert "act" not in repr(mnn.AdaptiveInstanceNorm2d(4))

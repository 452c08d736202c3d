"""The residual discriminator: one score for a whole image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from munit_fast import CheckpointError, ConfigError, make_config, reference
from munit_fast.config import smallest_discriminator_size
from munit_fast.io.checkpoints import load_states
from munit_fast.models.algorithm import unread_keys
from munit_fast.models.networks import MsImageDis, ResidualDis

DIS = {"dim": 4, "n_layer": 4, "arch": "residual"}


def params(**over: Any) -> dict[str, Any]:
    return make_config({"dis": DIS | over}).dis.model_dump()


def images(count: int, height: int = 35, width: int = 50, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, dtype=dtype, generator=draw) * 2 - 1


def formula(state: dict[str, Tensor], x: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Scores [N] and features, by functional operations alone: reflection, leaky ReLU."""

    def conv(x: Tensor, name: str, act: bool = True, normed: bool = True) -> Tensor:
        weight, bias = state[f"cnns.0.{name}.conv.weight"], state[f"cnns.0.{name}.conv.bias"]
        x = F.pad(x, [weight.shape[-1] // 2] * 4, mode="reflect") if weight.shape[-1] > 1 else x
        x = F.conv2d(x, weight, bias)
        if normed and norm == "in":
            x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        if normed and norm == "ln":
            gamma, beta = (state[f"cnns.0.{name}.norm.{end}"][:, None, None] for end in ("gamma", "beta"))
            deviation = x.std((1, 2, 3), keepdim=True) + 1e-5
            x = (x - x.mean((1, 2, 3), keepdim=True)) / deviation * gamma + beta
        return F.leaky_relu(x, 0.2) if act else x

    y = conv(x, "0", normed=False)
    for i in range(1, DIS["n_layer"] + 1):  # type: ignore[operator]
        main = conv(conv(y, f"{i}.model.0"), f"{i}.model.1")
        skipped = conv(F.avg_pool2d(y, 2), f"{i}.skip", act=False, normed=False)
        y = (F.avg_pool2d(main, 2) + skipped) / 2**0.5
    pooled = F.leaky_relu(y, 0.2).mean((2, 3))
    return pooled @ state["cnns.0.5.fc.weight"][0] + state["cnns.0.5.fc.bias"], y


@pytest.mark.parametrize("norm", ["none", "in", "ln"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_scores_features_and_gradients_are_the_formula(norm: str, impl: str) -> None:
    torch.manual_seed(0)
    net = ResidualDis(3, params(norm=norm), impl).double()
    x = images(2).requires_grad_()
    judged = net.judge(x)
    [scores], [features] = judged.outputs, judged.features
    state = {k: v.detach().clone().requires_grad_() for k, v in net.state_dict().items()}
    theirs = x.detach().clone().requires_grad_()
    wanted, wanted_features = formula(state, theirs, norm)
    assert scores.shape == (2, 1, 1, 1) and features.shape == (2, 32, 2, 3)
    assert torch.allclose(scores.flatten(), wanted, rtol=1e-10, atol=1e-12)
    assert torch.allclose(features, wanted_features, rtol=1e-10, atol=1e-12)
    assert [p.shape[0] for k, p in net.named_parameters() if k.endswith("skip.conv.weight")] == [8, 16, 32, 32]
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    (scores.flatten() @ weights + features.square().sum()).backward()
    (wanted @ weights + wanted_features.square().sum()).backward()
    assert x.grad is not None and theirs.grad is not None
    assert torch.allclose(x.grad, theirs.grad, rtol=1e-8, atol=1e-10)
    for name, p in net.named_parameters():
        grad = state[name].grad
        assert p.grad is not None and grad is not None, name
        assert torch.allclose(p.grad, grad, rtol=1e-8, atol=1e-9), name


@pytest.mark.parametrize("gan_type", ["lsgan", "nsgan"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_losses(gan_type: str, impl: str) -> None:
    torch.manual_seed(0)
    net = ResidualDis(3, params(gan_type=gan_type), impl).double()
    fake, real = images(2, seed=1), images(3, seed=2)
    f, r = (net(x)[0].flatten() for x in (fake, real))
    if gan_type == "lsgan":
        dis, gen = (f**2).mean() + ((r - 1) ** 2).mean(), ((f - 1) ** 2).mean()
    else:
        dis, gen = F.softplus(f).mean() + F.softplus(-r).mean(), F.softplus(-f).mean()
    assert float(net.calc_dis_loss(fake, real)) == pytest.approx(float(dis), rel=1e-12)
    assert float(net.calc_gen_loss(fake)) == pytest.approx(float(gen), rel=1e-12)
    judged = net.judge_both(fake, real)
    assert float(net.dis_loss(*judged)) == pytest.approx(float(dis), rel=1e-12)
    assert float(net.gen_loss(judged[0])) == pytest.approx(float(gen), rel=1e-12)
    other = net.judge_both(fake, images(1, 40, 40))  # of another size
    assert torch.allclose(other[0].outputs[0], judged[0].outputs[0])


def test_scores_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    net = ResidualDis(3, params(dim=16))
    x = images(2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        judged = net.judge(x)
    assert judged.outputs[0].dtype == torch.float32 and judged.features[0].dtype == torch.bfloat16
    assert torch.allclose(judged.outputs[0], net.judge(x).outputs[0], atol=0.02)


@pytest.mark.parametrize("norm", ["none", "in", "bn"])
@pytest.mark.parametrize("n_layer", [1, 4])
def test_smallest_size(n_layer: int, norm: str) -> None:
    config = make_config({"dis": DIS | {"n_layer": n_layer, "norm": norm}}).dis
    smallest = smallest_discriminator_size(config)
    assert smallest == 2**n_layer
    net = ResidualDis(3, config.model_dump())
    assert net(images(1, smallest, smallest, torch.float32))[0].isfinite().all()
    with pytest.raises((RuntimeError, ValueError)):
        net(images(1, smallest - 1, smallest - 1, torch.float32))
    with pytest.raises(ConfigError, match="crop_image_height: 16 is too small"):
        make_config({"dis": DIS | {"n_layer": 5}, "crop_image_height": 16})


def test_one_scale_whatever_the_published_key_says() -> None:
    config = make_config({"dis": {"arch": "residual", "num_scales": 3, "dim": 4}})
    assert unread_keys(config, "MUNIT") == ["dis.num_scales"]
    assert unread_keys(make_config({"dis": {"arch": "residual"}}), "MUNIT") == []
    assert unread_keys(make_config({"dis": {"num_scales": 2}}), "MUNIT") == []
    for made in (reference.ResidualDis, ResidualDis):
        assert len(made(3, config.dis.model_dump()).cnns) == 1
        with pytest.raises(ValueError, match="norm sn is of arch"):
            made(3, params() | {"norm": "sn"})
    with pytest.raises(ConfigError, match=r"norm: sn with arch: residual"):
        make_config({"dis": {"arch": "residual", "norm": "sn"}})
    with pytest.raises(ConfigError, match=r"dis\.arch.*'multiscale' or 'residual'"):
        make_config({"dis": {"arch": "patch"}})


def test_files_of_the_other_architecture_are_refused() -> None:
    residual, multiscale = ResidualDis(3, params()), MsImageDis(3, params() | {"arch": "multiscale"})
    states = {d: multiscale.state_dict() for d in "ab"}
    with pytest.raises(CheckpointError, match=r"dis\.arch is multiscale in the file and residual here"):
        load_states("dis.pt", states, residual, residual)
    other = ResidualDis(3, params(n_layer=3))
    with pytest.raises(CheckpointError, match=r"dis\.n_layer is 3 in the file and 4 here"):
        load_states("dis.pt", {d: other.state_dict() for d in "ab"}, residual, residual)
    load_states("dis.pt", {d: reference.ResidualDis(3, params()).state_dict() for d in "ab"}, residual, residual)

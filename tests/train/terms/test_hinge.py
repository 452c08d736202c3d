"""The adversarial losses of a discriminator against plain formulas, and the hinge loss in trainings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.trainers import hyperparameters
from munit_fast import reference
from munit_fast.models.discriminators import MsImageDis
from munit_fast.models.gan_losses import GAN_LOSSES
from munit_fast.train import trainer as trainers

NORMS = ["none", "in", "ln", "bn", "sn"]


def discriminator(gan_type: str, norm: str = "none") -> MsImageDis:
    torch.manual_seed(0)
    params = {"dim": 4, "norm": norm, "activ": "lrelu", "n_layer": 2, "num_scales": 2, "pad_type": "reflect"}
    net = MsImageDis(3, params | {"gan_type": gan_type}).double()
    with torch.no_grad():
        for _ in range(300 if norm == "sn" else 0):  # each forward moves its vectors, until they have converged
            net(images(1, 0))
    return net.eval()


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 32, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 6 - 3


def hinge_of_discriminator(fake: list[Tensor], real: list[Tensor]) -> float:
    """By loops over numbers, from the papers."""
    total = 0.0
    for f, r in zip(fake, real):
        total += sum(max(0.0, 1 + y) for y in f.flatten().tolist()) / f.numel()
        total += sum(max(0.0, 1 - y) for y in r.flatten().tolist()) / r.numel()
    return total


@pytest.mark.parametrize("norm", NORMS)
def test_hinge_is_the_papers(norm: str) -> None:
    net = discriminator("hinge", norm)
    nets: Any = net.cnns
    for cnn, factor in zip(nets, (30, 300)):
        cnn[-1].weight.data.mul_(factor)
    fake, real = images(2, 1), images(3, 2)
    outputs = [[y.detach() for y in net(x)] for x in (fake, real)]
    corners = torch.cat([y.flatten() for y in outputs[0]])
    assert (corners > 1).any() or (corners < -1).any()
    assert (corners.abs() < 1).any()
    with torch.no_grad():
        loss, of_generator = float(net.calc_dis_loss(fake, real)), float(net.calc_gen_loss(fake))
    assert loss == pytest.approx(hinge_of_discriminator(*outputs), rel=1e-9)
    up = -sum(float(y.sum()) / y.numel() for y in outputs[0])
    assert of_generator == pytest.approx(up, rel=1e-9)


@pytest.mark.parametrize("norm", ["none", "sn"])
def test_a_generator_step_raises_the_outputs(norm: str) -> None:
    net, x = discriminator("hinge", norm), images(2, 1).requires_grad_()
    (grad,) = torch.autograd.grad(net.calc_gen_loss(x), x)
    with torch.no_grad():
        before, after = (sum(float(y.mean()) for y in net(at)) for at in (x, x - 1e-4 * grad / grad.norm()))
    assert after > before


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gan_type", ["lsgan", "nsgan"])
def test_the_published_losses_are_the_references(gan_type: str, norm: str) -> None:
    net, fake, real = discriminator(gan_type, norm), images(2, 1), images(2, 2)
    plain = reference.MsImageDis.calc_dis_loss, reference.MsImageDis.calc_gen_loss
    with torch.no_grad():
        assert float(net.calc_dis_loss(fake, real)) == pytest.approx(float(plain[0](net, fake, real)), rel=1e-9)
        assert float(net.calc_gen_loss(fake)) == pytest.approx(float(plain[1](net, fake)), rel=1e-9)


def test_what_has_no_hinge_says_so() -> None:
    hp: Any = hyperparameters(dis={"gan_type": "hinge"})
    with pytest.raises(ValueError, match=r"^dis\.gan_type: hinge: impl='reference' .*use another impl$"):
        trainers.MUNIT_Trainer(hp, impl="reference")
    with pytest.raises(ValueError, match="lsgan, nsgan; got 'hinge'"):
        reference.MUNIT_Trainer(hp)
    with pytest.raises(ValueError, match="lsgan, nsgan, hinge; got 'wgan'"):
        trainers.MUNIT_Trainer(hp | {"dis": hp["dis"] | {"gan_type": "wgan"}})
    assert set(GAN_LOSSES) - set(reference.MsImageDis.gan_types) == {"hinge"}


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_both_trainers_minimise_it(kind: str) -> None:
    hp = hyperparameters(dis={"gan_type": "hinge"})
    torch.manual_seed(0)
    trainer: Any = getattr(trainers, kind)(hp)
    x_a, x_b = torch.rand(2, 2, 3, 32, 40) * 2 - 1
    of_dis, of_gen = trainer.draw_noise(x_a, x_b)
    codes = trainer.objective.encode(trainer, x_a, x_b)
    with torch.no_grad():
        x_ab, x_ba = trainer.objective._translate(trainer, x_a, x_b, codes, of_dis)
        wanted = [
            hinge_of_discriminator(net(fake), net(real))
            for net, fake, real in ((trainer.dis_a, x_ba, x_a), (trainer.dis_b, x_ab, x_b))
        ]
    losses = trainer.update(x_a, x_b, hp, (of_dis, of_gen))
    assert [float(losses[f"loss_dis_{d}"]) for d in "ab"] == pytest.approx(wanted, rel=1e-5)
    assert float(losses["loss_dis_total"]) == pytest.approx(sum(wanted), rel=1e-5)

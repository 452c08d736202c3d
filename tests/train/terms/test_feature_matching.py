"""Feature matching against a plain formula over the reference's networks, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.trainers import check_generator_gradients, hyperparameters
from munit_fast import reference
from munit_fast.train import trainer as trainers

OFF = {"gan_w": 0, "recon_x_w": 0, "recon_s_w": 0, "recon_c_w": 0, "recon_kl_w": 0, "recon_kl_cyc_w": 0}


def means(net: Any, x: Tensor) -> list[Tensor]:
    """[N, C] at each scale: what the last convolution reads, averaged over its places."""
    found: list[Tensor] = []
    hooks = [
        cnn[-1].register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].flatten(2).sum(2)))
        for cnn in net.cnns
    ]
    sizes = [output.shape[2] * output.shape[3] for output in net(x)]
    for hook in hooks:
        hook.remove()
    return [total / size for total, size in zip(found, sizes)]


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
@pytest.mark.parametrize("norm", ["none", "in", "ln"])
def test_value_and_gradient_are_the_formulas(kind: str, norm: str) -> None:
    torch.manual_seed(0)
    hp = hyperparameters(feature_matching_w=0.6, **OFF, dis={"norm": norm})
    trainer: Any = getattr(trainers, kind)(hp).double()
    draw = torch.Generator().manual_seed(3)
    x_a, x_b = torch.rand(2, 3, 3, 32, 40, generator=draw, dtype=torch.float64) * 2 - 1
    of_dis, of_gen = trainer.draw_noise(x_a, x_b)
    assert (len(of_dis), len(of_gen)) == ((2, 2) if kind == "MUNIT_Trainer" else (2, 4))
    plain: Any = getattr(reference, kind)(hp).double()
    plain.load_state_dict(trainer.state_dict())
    noise = [n.double() for n in of_gen]
    if kind == "MUNIT_Trainer":
        (c_a, _), (c_b, _) = plain.gen_a.encode(x_a), plain.gen_b.encode(x_b)
        fakes = {"a": plain.gen_a.decode(c_b, noise[0]), "b": plain.gen_b.decode(c_a, noise[1])}
    else:
        h_a, h_b = (gen.enc(x) for gen, x in ((plain.gen_a, x_a), (plain.gen_b, x_b)))
        fakes = {"a": plain.gen_a.decode(h_b + noise[1]), "b": plain.gen_b.decode(h_a + noise[0])}
    wanted: dict[str, Any] = {}
    for d, real in (("a", x_a), ("b", x_b)):
        net = plain.discriminators[d]
        with torch.no_grad():
            of_real = means(net, real)
        of_fake = means(net, fakes[d])
        wanted[d] = sum((f - r).abs().sum() / f.numel() for f, r in zip(of_fake, of_real, strict=True))
    (0.6 * (wanted["a"] + wanted["b"])).backward()

    trainer.gen_update(x_a, x_b, hp, of_gen)
    for d, loss in wanted.items():
        assert float(getattr(trainer, f"loss_gen_feature_matching_{d}")) == pytest.approx(
            float(loss.detach()), rel=1e-10
        )
    total = 0.6 * float((wanted["a"] + wanted["b"]).detach())
    assert float(trainer.loss_gen_total) == pytest.approx(total, rel=1e-10)
    check_generator_gradients(trainer, plain)


def test_it_is_float32_in_mixed_precision() -> None:
    torch.manual_seed(0)
    hp = hyperparameters(feature_matching_w=1)
    trainer = trainers.MUNIT_Trainer(hp, amp="bf16")
    x_a, x_b = torch.rand(2, 2, 3, 32, 40) * 2 - 1
    losses = trainer.update(x_a, x_b, hp)
    assert losses["loss_gen_feature_matching_a"].dtype == torch.float32

"""Mode seeking and diversity against plain formulas over the reference's networks, in float64."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from helpers.trainers import check_generator_gradients, hyperparameters
from munit_fast import ConfigError, make_config, reference
from munit_fast.models.algorithm import choose_algorithm, complete_values, unread_keys
from munit_fast.train import trainer as trainers

OFF = {"gan_w": 0, "recon_x_w": 0, "recon_s_w": 0, "recon_c_w": 0}


def batch(count: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x_a, x_b = torch.rand(2, count, 3, 32, 40, generator=draw, dtype=torch.float64) * 2 - 1
    return x_a, x_b


def trainer_with(**over: Any) -> Any:
    torch.manual_seed(0)
    return trainers.MUNIT_Trainer(hyperparameters(**over)).double()


def plain_mode_seeking(first: Tensor, second: Tensor, z_1: Tensor, z_2: Tensor) -> Any:
    """Mao et al.: 1 / (L1 of the images / L1 of the codes + 1e-5), the mean over images."""
    total: Any = 0
    for i in range(len(first)):
        images = sum((first[i] - second[i]).abs().flatten().unbind()) / first[i].numel()
        codes = sum((z_1[i] - z_2[i]).abs().flatten().unbind()) / z_1[i].numel()
        total = total + 1 / (images / codes + 0.00001)
    return total / len(first)


def plain_diversity(first: Tensor, second: Tensor, z_1: Tensor, z_2: Tensor) -> Any:
    """Choi et al.: -‖x₁ - x₂‖₁ / pixels, the mean over images."""
    return -sum((first - second).abs().flatten().unbind()) / first.numel()


PLAIN: dict[str, Any] = {"mode_seeking_w": plain_mode_seeking, "diversity_w": plain_diversity}


def losses_of(trainer: Any, kind: str) -> list[float]:
    return [float(getattr(trainer, f"loss_gen_{kind}_{d}")) for d in "ab"]


@pytest.mark.parametrize("keys", [["mode_seeking_w"], ["diversity_w"], ["mode_seeking_w", "diversity_w"]], ids=str)
def test_value_and_gradient_are_the_papers(keys: list[str]) -> None:
    weights = dict(zip(keys, (0.3, 0.7)))
    trainer = trainer_with(**weights, **OFF)
    hp, (x_a, x_b) = trainer.hyperparameters, batch()
    torch.manual_seed(1)
    of_dis, of_gen = trainer.draw_noise(x_a, x_b)
    assert len(of_dis) == 2 and len(of_gen) == 4
    s_a, s_b, more_a, more_b = (s.double() for s in of_gen)
    plain: Any = reference.MUNIT_Trainer(hp).double()
    plain.load_state_dict(trainer.state_dict())
    (c_a, _), (c_b, _) = plain.gen_a.encode(x_a), plain.gen_b.encode(x_b)
    pairs = {
        "a": (plain.gen_a.decode(c_b, s_a), plain.gen_a.decode(c_b, more_a), s_a, more_a),
        "b": (plain.gen_b.decode(c_a, s_b), plain.gen_b.decode(c_a, more_b), s_b, more_b),
    }
    wanted = {key: [PLAIN[key](*pairs[d]) for d in "ab"] for key in keys}
    total = sum(weights[key] * loss for key in keys for loss in wanted[key])
    total.backward()

    trainer.gen_update(x_a, x_b, hp, of_gen)
    for key in keys:
        expected = [float(loss.detach()) for loss in wanted[key]]
        assert losses_of(trainer, key.removesuffix("_w")) == pytest.approx(expected, rel=1e-10)
    assert float(trainer.loss_gen_total) == pytest.approx(float(total.detach()), rel=1e-10)
    check_generator_gradients(trainer, plain)


def test_equal_translations_cost_the_most_that_there_is() -> None:
    """1 / 1e-5: styles that change nothing are no division by zero."""
    trainer = trainer_with(mode_seeking_w=1)
    (x_a, x_b), hp = batch(), trainer.hyperparameters
    for generator in (trainer.gen_a, trainer.gen_b):
        last = generator.dec.model[-1].conv
        last.weight.data.zero_()
    trainer.gen_update(x_a, x_b, hp)
    assert losses_of(trainer, "mode_seeking") == pytest.approx([1e5, 1e5])


def test_published_noise_stays_and_the_second_styles_are_decoded_once() -> None:
    x_a, x_b = batch()
    found, calls = [], []
    for weights in ({}, {"mode_seeking_w": 1}, {"mode_seeking_w": 1, "diversity_w": 1}):
        trainer = trainer_with(**weights)
        torch.manual_seed(1)
        of_dis, of_gen = trainer.draw_noise(x_a, x_b)
        found.append([*of_dis, *of_gen[:2]])
        decode = type(trainer.gen_a).decode
        with patch.object(type(trainer.gen_a), "decode", autospec=True, side_effect=decode) as counted:
            trainer.gen_update(x_a, x_b, trainer.hyperparameters, of_gen)
        calls.append(counted.call_count)
        if weights:
            assert not any(torch.equal(published, own) for published, own in zip(of_gen[:2], of_gen[2:], strict=True))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    assert calls == [2, 4, 4]


def test_an_update_that_draws_its_own_noise_draws_all() -> None:
    """And one that is given the published part draws the rest; another number of tensors is refused."""
    trainer = trainer_with(diversity_w=1)
    (x_a, x_b), hp = batch(), trainer.hyperparameters
    _, of_gen = trainer.draw_noise(x_a, x_b)
    trainer.gen_update(x_a, x_b, hp)
    trainer.gen_update(x_a, x_b, hp, of_gen[:2])
    assert all(loss < 0 for loss in losses_of(trainer, "diversity"))
    with pytest.raises(ValueError, match=r"4 tensors.*got 3"):
        trainer.gen_update(x_a, x_b, hp, of_gen[:3])


@pytest.mark.parametrize("key", sorted(PLAIN))
def test_unit_has_no_styles(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: only MUNIT has this term; set it to 0 for UNIT"):
        trainers.UNIT_Trainer(hyperparameters(**{key: 0.5}))
    config = make_config({key: 0.5})
    assert choose_algorithm(config) == "MUNIT" and unread_keys(config, "UNIT") == [key]
    assert key in complete_values(config, "MUNIT") and key not in complete_values(config, "UNIT")
    with pytest.raises(ConfigError, match=f"one for MUNIT: it has {key}"):
        choose_algorithm(config, "UNIT")

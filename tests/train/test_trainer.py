"""One iteration: the losses that it returns, what its two steps share, and what the published calls add."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.trainers import hyperparameters, parameters
from munit_fast import reference
from munit_fast.reference import Vgg16
from munit_fast.train import losses
from munit_fast.train import trainer as trainers

DIS = {"loss_dis_a", "loss_dis_b", "loss_dis_total"}
ADDED = {"loss_gen_adv_a", "loss_gen_adv_b", "loss_gen_vgg_a", "loss_gen_vgg_b", "loss_gen_total"}
GEN = {
    "MUNIT_Trainer": ADDED
    | {f"loss_gen_{term}_{d}" for term in ("recon_x", "recon_s", "recon_c", "cycrecon_x") for d in "ab"},
    "UNIT_Trainer": ADDED
    | {f"loss_gen_{term}_{d}" for term in ("recon_x", "recon_kl", "cyc_x") for d in "ab"}
    | {"loss_gen_recon_kl_cyc_aba", "loss_gen_recon_kl_cyc_bab"},
}
OPTIONAL = {
    "MUNIT_Trainer": {"loss_gen_cycrecon_x_a", "loss_gen_cycrecon_x_b"},
    "UNIT_Trainer": {"loss_gen_cyc_x_a", "loss_gen_cyc_x_b"},
}
VGG = {"loss_gen_vgg_a", "loss_gen_vgg_b"}


def images() -> tuple[Tensor, Tensor]:
    x_a, x_b = torch.rand(2, 1, 3, 32, 40, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return x_a, x_b


def with_vgg(trainer: Any) -> Any:
    torch.manual_seed(1)
    trainer.vgg = Vgg16().requires_grad_(False)
    return trainer


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("kind", list(GEN))
def test_losses_have_exactly_the_published_names(kind: str, impl: str, optional: bool) -> None:
    """And are the trainer's attributes; terms that are off are 0.0, the others not zero."""
    hp = hyperparameters(recon_x_cyc_w=float(optional)) | {"vgg_w": float(optional)}
    trainer: Any = getattr(trainers, kind)(hp | {"vgg_w": 0}, impl=impl)
    found = (with_vgg(trainer) if optional else trainer).update(*images(), hp)
    assert set(found) == DIS | GEN[kind]
    assert {name for name in vars(trainer) if name.startswith("loss_")} == set(found)
    for name, value in found.items():
        assert getattr(trainer, name) is value
        if name in OPTIONAL[kind] | VGG and not optional:
            assert value == 0.0
        else:
            assert isinstance(value, Tensor) and not value.requires_grad and float(value) != 0, name


@pytest.mark.parametrize("kind", list(GEN))
def test_the_reference_has_the_same_names(kind: str) -> None:
    hp = hyperparameters()
    trainer: Any = getattr(reference, kind)(hp)
    trainer.dis_update(*images(), hp)
    assert {name for name in vars(trainer) if name.startswith("loss_")} == DIS
    trainer.gen_update(*images(), hp)
    assert {name for name in vars(trainer) if name.startswith("loss_")} == DIS | GEN[kind]


@pytest.mark.parametrize("kind", list(GEN))
def test_an_iteration_encodes_its_images_once_and_checks_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`update` passes the codes on; only the published pair has to find out whether they are still right."""
    hp = hyperparameters()
    trainer: Any = getattr(trainers, kind)(hp)
    encoded: list[bool] = []
    objective = type(trainer.fused_objective)
    encode = objective.encode
    monkeypatch.setattr(objective, "encode", lambda *arguments: encoded.append(True) or encode(*arguments))
    checked: list[bool] = []
    versions = losses._versions
    monkeypatch.setattr(losses, "_versions", lambda *arguments: checked.append(True) or versions(*arguments))
    trainer.update(*images(), hp)
    assert (len(encoded), len(checked)) == (1, 0)
    pair = images()
    trainer.dis_update(*pair, hp)
    trainer.gen_update(*pair, hp)
    assert (len(encoded), len(checked)) == (2, 2)
    trainer.dis_update(*pair, hp)
    trainer.gen_update(*images(), hp)
    assert len(encoded) == 4  # other tensors, equal as they are
    trainer.update(*(torch.cat([x, x]) for x in pair), hp | {"accumulation": 2})
    assert len(encoded) == 8  # each part in each step


@pytest.mark.parametrize("kind", list(GEN))
def test_codes_of_an_earlier_update_are_not_taken(kind: str) -> None:
    """A lone discriminator update caches codes; an iteration in between makes them those of other weights."""
    hp = hyperparameters()
    pair, found = images(), []
    for lone in (True, False):
        torch.manual_seed(0)
        trainer: Any = getattr(trainers, kind)(hp)
        noise = trainer.draw_noise(*pair)
        trainer.dis_update(*pair, hp, noise[0])
        if not lone:
            trainer._cached_codes = None
        trainer.update(*pair, hp, noise)
        assert trainer._cached_codes is None
        trainer.gen_update(*pair, hp, noise[1])
        found.append(parameters(trainer))
    assert torch.equal(*found)


def test_a_trainer_of_the_reference_is_a_trainer() -> None:
    """`impl` changes what is minimised and how, not the class: nobody has to ask for it."""
    trainer = trainers.MUNIT_Trainer(hyperparameters(), "reference")
    assert type(trainer) is trainers.MUNIT_Trainer and isinstance(trainer, reference.MUNIT_Trainer)


@pytest.mark.parametrize("kind", list(GEN))
def test_loss_scaling_of_both_optimizers_goes_on(kind: str) -> None:
    """A step that overflows lowers its own scale, and a state loaded into another trainer steps alike."""
    hp = hyperparameters()
    trainer: Any = getattr(trainers, kind)(hp, amp="fp16")
    x_a, x_b = images()
    trainer.update(x_a, torch.full_like(x_b, float("inf")), hp)
    assert {name: state["scale"] for name, state in trainer.scaler_states().items()} == {"dis": 2.0**15, "gen": 2.0**15}
    trainer.load_scalers({name: state | {"scale": 2.0**8} for name, state in trainer.scaler_states().items()})
    before = parameters(trainer)
    trainer.update(x_a, x_b, hp)
    assert not torch.equal(parameters(trainer), before)
    assert all(s["_growth_tracker"] == 1 and s["scale"] == 2.0**8 for s in trainer.scaler_states().values())


@pytest.mark.parametrize("kind", list(GEN))
def test_an_overridden_update_is_called(kind: str) -> None:
    """And the iteration computes what it computes without: both take the published calls' path."""
    hp = hyperparameters()
    called: list[str] = []

    class Watched(getattr(trainers, kind)):  # type: ignore[misc]
        def gen_update(self, *arguments: Any) -> None:
            called.append("gen")
            super().gen_update(*arguments)

    torch.manual_seed(0)
    plain: Any = getattr(trainers, kind)(hp)
    torch.manual_seed(0)
    watched: Any = Watched(hp)
    for _ in range(2):
        torch.manual_seed(1)
        expected = plain.update(*images(), hp)
        torch.manual_seed(1)
        found = watched.update(*images(), hp)
        assert {k: float(v) for k, v in found.items()} == {k: float(v) for k, v in expected.items()}
    assert called == ["gen", "gen"] and torch.equal(parameters(plain), parameters(watched))

    watched.dis_update = lambda *arguments: called.append("dis")  # on this object alone, and without losses
    assert set(watched.update(*images(), hp)) == GEN[kind]
    assert called == ["gen", "gen", "dis", "gen"]


@pytest.mark.parametrize("kind", list(GEN))
def test_terms_that_may_be_off_are_there_from_the_start(kind: str) -> None:
    trainer: Any = getattr(trainers, kind)(hyperparameters())
    assert all(getattr(trainer, name) == 0.0 for name in OPTIONAL[kind])

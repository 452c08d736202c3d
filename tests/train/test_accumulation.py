"""A batch in parts, and activations computed twice: the same numbers for less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from munit_fast import make_config
from munit_fast.train import trainer as trainers

KINDS = ["MUNIT_Trainer", "UNIT_Trainer"]


def hyperparameters(small_config: dict[str, Any], **over: Any) -> dict[str, Any]:
    weights = {"recon_x_cyc_w": 1, "recon_kl_w": 0.1, "recon_kl_cyc_w": 0.1}
    return make_config(small_config | weights | over).hyperparameters()


def trained(
    kind: str, hp: dict[str, Any], iterations: int = 3, dtype: torch.dtype = torch.float64, **options: Any
) -> Any:
    torch.manual_seed(0)
    trainer: Any = getattr(trainers, kind)(hp, **options).to(dtype)
    draw = torch.Generator().manual_seed(5)
    for i in range(iterations):
        x_a, x_b = torch.rand(2, 4, 3, 32, 32, generator=draw, dtype=dtype) * 2 - 1
        torch.manual_seed(100 + i)
        trainer.update(x_a, x_b, hp)
    return trainer


def parameters(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.parameters()])


def losses(trainer: Any) -> dict[str, float]:
    return {k: float(torch.as_tensor(v).detach()) for k, v in vars(trainer).items() if k.startswith("loss_")}


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_are_the_batch(small_config: dict[str, Any], kind: str, count: int) -> None:
    """The same noise, and the mean of the parts' losses and gradients: each loss is a mean over images."""
    whole = trained(kind, hyperparameters(small_config))
    parts = trained(kind, hyperparameters(small_config, accumulation=count))
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-11)
    difference = (parameters(parts) - parameters(whole)).norm() / parameters(whole).norm()
    assert float(difference) < 1e-12
    assert not torch.equal(parameters(trained(kind, hyperparameters(small_config), 2)), parameters(whole))


def test_a_batch_that_cannot_be_divided(small_config: dict[str, Any]) -> None:
    hp = hyperparameters(small_config, accumulation=3)
    with pytest.raises(ValueError, match=r"^accumulation: 3 .*\b4 and 4 "):
        trained("MUNIT_Trainer", hp, 1)
    with pytest.raises(ValueError, match=r"^accumulation .*impl='reference'"):
        trained("MUNIT_Trainer", hp, 1, impl="reference")


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_nothing(small_config: dict[str, Any], kind: str) -> None:
    """Losses to the bit; gradients but for the order in which a weight's uses are summed."""
    hp = hyperparameters(small_config)
    found = [trained(kind, hp, checkpointing=choice) for choice in (False, True)]
    difference = (parameters(found[0]) - parameters(found[1])).norm() / parameters(found[0]).norm()
    assert float(difference) < 1e-12
    assert losses(found[0]) == pytest.approx(losses(found[1]), rel=1e-11)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_checkpointing_under_autocast(small_config: dict[str, Any], amp: str) -> None:
    hp = hyperparameters(small_config)
    found = [trained("MUNIT_Trainer", hp, 1, torch.float32, amp=amp, checkpointing=choice) for choice in (False, True)]
    assert losses(found[0]) == losses(found[1])
    gradients = [torch.cat([p.grad.flatten() for p in t.gen_a.parameters()]) for t in found]
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.01  # sums rounded to 8 or 11 bits


def peak_bytes(trainer: Any, hp: dict[str, Any], size: int, count: int = 1) -> int:
    """The most memory that torch's allocator held at once for an iteration, beyond what there was before."""
    x_a, x_b = torch.rand(2, count, 3, size, size) * 2 - 1
    trainer.update(x_a, x_b, hp)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer.update(x_a, x_b, hp)
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_checkpointing_and_accumulation_need_less_memory(small_config: dict[str, Any]) -> None:
    size = {"new_size": 128, "crop_image_height": 128, "crop_image_width": 128}
    networks = {"gen": {"dim": 8, "mlp_dim": 8, "n_res": 4}, "dis": {"dim": 4, "n_layer": 2, "num_scales": 1}}
    hp = hyperparameters(small_config, **size, **networks)
    kept = peak_bytes(trainers.MUNIT_Trainer(hp), hp, 128)
    again = peak_bytes(trainers.MUNIT_Trainer(hp, checkpointing=True), hp, 128)
    assert again < 0.6 * kept
    whole = peak_bytes(trainers.MUNIT_Trainer(hp), hp, 128, 4)
    parts = hp | {"accumulation": 4}
    divided = peak_bytes(trainers.MUNIT_Trainer(parts), parts, 128, 4)
    assert divided < 0.6 * whole

"""The moving average of the generators: its values, its files, and who uses it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import runs
from munit_fast import MUNIT, UNIT, CheckpointError, make_config
from munit_fast.train import trainer as trainers
from munit_fast.train.ema import GeneratorAverage
from munit_fast.train.run_state import apply_state, find_state

KINDS = ["MUNIT_Trainer", "UNIT_Trainer"]


def config(small_config: dict[str, Any], **over: Any) -> Any:
    return make_config(small_config | {"ema_half_life": 6, "batch_size": 2, "lr": 0.01} | over)


def batches(count: int) -> list[Any]:
    draw = torch.Generator().manual_seed(5)
    return [tuple(torch.rand(2, 2, 3, 32, 32, generator=draw) * 2 - 1) for _ in range(count)]


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_the_weighted_sum_of_what_the_weights_were(
    small_config: dict[str, Any], kind: str, impl: str
) -> None:
    hp = config(small_config).hyperparameters()
    torch.manual_seed(0)
    trainer: Any = getattr(trainers, kind)(hp, impl=impl).double()
    wanted: torch.Tensor | None = None
    images = 0
    for x_a, x_b in batches(5):
        trainer.update(x_a.double(), x_b.double(), hp)
        now = torch.cat([p.detach().flatten() for net in (trainer.gen_a, trainer.gen_b) for p in net.parameters()])
        images += 2
        share = 1 - 0.5 ** (2 / min(6, 0.05 * images))
        wanted = now if wanted is None else wanted + share * (now - wanted)
    assert wanted is not None and trainer.average.images == 10
    found = torch.cat([t.flatten() for t in trainer.average.tensors])
    assert float((found - wanted).norm() / wanted.norm()) < 1e-14
    assert float((found - now).norm() / now.norm()) > 1e-12


def test_the_share_of_new_weights() -> None:
    """A young average forgets fast; an old one halves a weight's share in half_life images, at any batch size."""
    average = GeneratorAverage(1000)
    assert average.weight(1) > 0.999
    average.images = 10**6
    assert 1 - average.weight(1000) == pytest.approx(0.5)
    assert (1 - average.weight(1)) ** 1000 == pytest.approx(0.5)
    average.images = 10**4 - 100
    assert 1 - average.weight(100) == pytest.approx(0.5 ** (100 / 500))
    with pytest.raises(ValueError, match=r"^half_life .*positive.* 0"):
        GeneratorAverage(0)


@pytest.mark.parametrize("kind", KINDS)
def test_its_file_has_the_layout_of_the_generators(small_config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    cfg = config(small_config)
    hp = cfg.hyperparameters()
    trainer: Any = getattr(trainers, kind)(hp)
    for pair in batches(3):
        trainer.update(*pair, hp)
    trainer.save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{stem}.pt" for stem in ("dis_00000003", "ema_00000003", "gen_00000003", "optimizer")
    ]
    path = tmp_path / "gen_00000003.pt"
    translator = {"MUNIT_Trainer": MUNIT, "UNIT_Trainer": UNIT}[kind]
    averaged, newest, itself = (translator(cfg) for _ in range(3))
    assert averaged.load(path).loaded == itself.load(tmp_path / "ema_00000003.pt").loaded
    assert newest.load(path, average=False).loaded == path
    values = [p for net in (averaged.gen_a, averaged.gen_b) for p in net.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(values, trainer.average.tensors, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(newest.gen_a.parameters(), trainer.gen_a.parameters()))
    other: Any = getattr(trainers, kind)(hp)
    assert other.resume(tmp_path, hp) == 3 and other.average.images == 6
    assert all(torch.equal(p, q) for p, q in zip(other.average.tensors, trainer.average.tensors, strict=True))
    path.unlink()
    with pytest.raises(CheckpointError, match="gen_00000003"):  # a name that is not there is not quietly another
        averaged.load(path)


def test_published_files_say_how_many_images_by_one_rule(small_config: dict[str, Any], tmp_path: Path) -> None:
    hp = config(small_config, accumulation=2).hyperparameters()
    trainer = trainers.MUNIT_Trainer(hp)
    for pair in batches(3):
        trainer.update(*(torch.cat([x, x]) for x in pair), hp)
    assert trainer.average is not None and trainer.average.images == 12
    trainer.save(tmp_path, 2)
    found = [trainers.MUNIT_Trainer(hp) for _ in range(3)]
    found[0].resume(tmp_path, hp)
    runs.resume(found[1], tmp_path)
    state = find_state(tmp_path)
    apply_state(found[2], state.state, state.source, 4)
    assert [other.average.images for other in found] == [12, 12, 48]  # type: ignore[union-attr]


def test_none_is_kept_unless_asked_for(small_config: dict[str, Any], tmp_path: Path) -> None:
    for hp in (config(small_config, ema_half_life=0).hyperparameters(), config(small_config).hyperparameters()):
        plain = {k: v for k, v in hp.items() if k != "ema_half_life"}
        for values in (plain, hp if not hp["ema_half_life"] else plain):
            trainer = trainers.MUNIT_Trainer(values)
            trainer.update(*batches(1)[0], values)
            assert trainer.average is None
            trainer.save(tmp_path, 0)
            assert not list(tmp_path.glob("ema_*"))


def test_it_moves_and_is_copied_with_the_trainer(small_config: dict[str, Any]) -> None:
    hp = config(small_config).hyperparameters()
    trainer = trainers.MUNIT_Trainer(hp)
    pairs = batches(2)
    trainer.update(*pairs[0], hp)
    for name in [name for name in vars(trainer) if name.startswith("loss_")]:
        vars(trainer)[name] = 0.0
    assert all(t.dtype == torch.float64 for t in copy.deepcopy(trainer).double().average.tensors)  # type: ignore[union-attr]
    twin = copy.deepcopy(trainer)
    before = [t.clone() for t in trainer.average.tensors]  # type: ignore[union-attr]
    twin.update(*pairs[1], hp)
    assert not torch.equal(twin.average.tensors[0], before[0])  # type: ignore[union-attr]
    assert all(torch.equal(t, b) for t, b in zip(trainer.average.tensors, before))  # type: ignore[union-attr]

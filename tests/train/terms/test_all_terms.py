"""All terms at once, as trainings use them: CUDA graphs, parts of a batch, stopped runs, and what they are without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import fake_cuda
from helpers.runs import checkpoints, equal, run
from helpers.trainers import hyperparameters, parameters
from munit_fast.io.checkpoints import CheckpointError, load_file
from munit_fast.train import trainer as trainers
from munit_fast.train.cuda_graph import WARM_UP
from munit_fast.train.run_state import apply_state, run_state
from munit_fast.train.terms import TERMS

BOTH: dict[str, Any] = {"r1_w": 0.5, "r1_iter": 2, "feature_matching_w": 0.3, "dis": {"gan_type": "hinge"}}
ALL: dict[str, dict[str, Any]] = {
    "MUNIT_Trainer": BOTH | {"mode_seeking_w": 0.01, "diversity_w": 0.2},
    "UNIT_Trainer": BOTH,
}
KINDS = list(ALL)


def losses(trainer: Any) -> dict[str, float]:
    return {k: float(torch.as_tensor(v)) for k, v in vars(trainer).items() if k.startswith("loss_")}


def update(trainer: Any, iteration: int, count: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    draw = torch.Generator().manual_seed(iteration)
    x_a, x_b = torch.rand(2, count, 3, 32, 40, generator=draw, dtype=dtype) * 2 - 1
    torch.manual_seed(100 + iteration)
    found = trainer.update(x_a, x_b, trainer.hyperparameters)
    return {name: float(torch.as_tensor(value)) for name, value in found.items()}


@pytest.mark.parametrize(("kind", "amp"), [*((kind, "off") for kind in KINDS), ("MUNIT_Trainer", "bf16")])
def test_replays_are_eager_iterations(monkeypatch: pytest.MonkeyPatch, kind: str, amp: str) -> None:
    """Two graphs, with R1 and without, which share their memory: the last value is not in it."""
    cuda = fake_cuda.install(monkeypatch)
    hp = hyperparameters(lr=2**-10, **ALL[kind])
    graphed, eager = (_made(kind, hp, amp) for _ in range(2))
    cuda.modules.append(graphed)
    monkeypatch.setattr(eager, "_iterate_in_graph", lambda *_: None)
    for i in range(2 * WARM_UP + 6):
        of_graph = update(graphed, i)
        assert of_graph == update(eager, i)
    captured = [step for step in graphed._graphs.by_key.values() if step.graph is not None]
    assert graphed._graphs.failure is None and len(captured) == 2 and cuda.replays == 6
    assert torch.equal(parameters(graphed), parameters(eager)) and losses(graphed) == losses(eager)
    written = {t.untyped_storage().data_ptr() for step in captured for t in step.result.values() if torch.is_tensor(t)}
    shown = {t.untyped_storage().data_ptr() for t in graphed.options.terms.last.values()}
    assert len(shown) == 1 and not shown & written


def _made(kind: str, hp: dict[str, Any], amp: str = "off") -> Any:
    torch.manual_seed(0)
    return getattr(trainers, kind)(hp, amp=amp)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_are_the_batch(kind: str) -> None:
    found = []
    for count in (1, 2, 4):
        trainer = _made(kind, hyperparameters(accumulation=count, **ALL[kind])).double()
        found.append([update(trainer, i, 4, torch.float64) for i in range(3)] + [parameters(trainer)])
    whole, *others = found
    for parts in others:
        for mine, theirs in zip(parts[:-1], whole[:-1], strict=True):
            # The hinge's gradient of the last bias is 0 or a rounding error, which Adam's first steps make larger.
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-9)
        assert float((parts[-1] - whole[-1]).norm() / whole[-1].norm()) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_nothing(kind: str) -> None:
    hp = hyperparameters(**ALL[kind])
    found = []
    for choice in (False, True):
        torch.manual_seed(0)
        trainer = getattr(trainers, kind)(hp, checkpointing=choice).double()
        found.append([update(trainer, i, 2, torch.float64) for i in range(2)])
    for mine, theirs in zip(*found):
        assert mine == pytest.approx(theirs, rel=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_that_are_off_change_nothing(kind: str) -> None:
    """Every key at 0 or left out: to the bit, and no loss more."""
    off = {term.key: 0 for term in TERMS}
    left_out = {key: value for key, value in hyperparameters().items() if key not in off and key != "r1_iter"}
    found = []
    for hp in (left_out, left_out | off | {"r1_iter": 1, "lr_gen": None, "lr_dis": None}):
        trainer = _made(kind, hp)
        found.append(([update(trainer, i) for i in range(2)], parameters(trainer)))
        assert trainer.options.named == () and trainer.options.due(hp, 16) == ()
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    assert not any(term.name in name for term in TERMS for name in found[0][0][0])


def history(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "logs/small/losses.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "run"} for row in rows]


@pytest.mark.parametrize("trainer", ["MUNIT", "UNIT"])
def test_a_run_that_was_stopped_goes_on_the_same(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, trainer: str
) -> None:
    """Stopped between a penalty, of iteration 3 and 6, and the iteration that logs it; numbers too."""
    of_term = ALL[f"{trainer}_Trainer"] | {"r1_iter": 3, "dis": small_config["dis"] | {"gan_type": "hinge"}}
    config = small_config | of_term | {"recon_kl_w": 0.01, "max_iter": 8, "log_iter": 5, "snapshot_save_iter": 4}
    run(config, picture_folders, tmp_path / "whole", trainer=trainer)
    for i, end in enumerate((4, 5, 7, 8)):
        run(config | {"max_iter": end}, picture_folders, tmp_path / "parts", trainer=trainer, resume=i > 0)
    states = [load_file(checkpoints(tmp_path / name) / "resume_00000008.pt") for name in ("whole", "parts")]
    assert equal(*states) and set(states[0]["last_losses"]) == {"loss_dis_r1_a", "loss_dis_r1_b"}
    rows = history(tmp_path / "whole")
    assert rows == history(tmp_path / "parts") and [row["iteration"] for row in rows] == [5]
    assert rows[0]["loss_dis_r1_a"] > 0


def test_the_last_values_of_a_state_are_checked() -> None:
    trainer = _made("MUNIT_Trainer", hyperparameters(**BOTH))
    for i in range(2):
        update(trainer, i)
    state = run_state(trainer, 2)
    assert set(state["last_losses"]) == {"loss_dis_r1_a", "loss_dis_r1_b"}
    for wrong in (torch.zeros(2), 3.0, None):
        changed = state | {"last_losses": state["last_losses"] | {"loss_dis_r1_a": wrong}}
        with pytest.raises(CheckpointError, match="last_losses"):
            apply_state(trainer, changed, Path("x.pt"))
    without = _made("MUNIT_Trainer", hyperparameters(dis={"gan_type": "hinge"}))
    apply_state(without, state, Path("x.pt"))
    assert without.options.terms.last == {}
    apply_state(trainer, {key: value for key, value in state.items() if key != "last_losses"}, Path("x.pt"))
    assert trainer.options.terms.last == {}

"""All terms at once, as trainings use them: CUDA graphs, parts of a batch, stopped runs, and what they are without."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import fake_cuda
from helpers.runs import checkpoints, equal, resume, run, save
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


SEEN = {"diffaugment": ["color", "translation", "cutout"]}
ADAPTED = {"ada_target": 0.6, "ada_iter": 2, "ada_images": 20}
SPECTRAL = {"weight_norm": "spectral"}
COMBINED: dict[str, tuple[str, dict[str, Any]]] = {
    "spectral": ("MUNIT_Trainer", SEEN | {"dis": SPECTRAL, "gen": SPECTRAL}),
    "residual": ("MUNIT_Trainer", ADAPTED | {"dis": {"arch": "residual"}}),
    "residual and spectral": ("MUNIT_Trainer", SEEN | ADAPTED | {"dis": SPECTRAL | {"arch": "residual"}}),
    "UNIT": ("UNIT_Trainer", SEEN | ADAPTED | {"dis": SPECTRAL | {"arch": "residual"}, "gen": SPECTRAL}),
}


def combined(name: str, accumulation: int = 1, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A trainer with R1, feature matching, a moving average and the hinge, and with what the name says."""
    kind, over = COMBINED[name]
    values = BOTH | {"ema_half_life": 10, "accumulation": accumulation} | over
    hp = hyperparameters(**values | {"dis": BOTH["dis"] | over["dis"], "gen": {}})
    hp["gen"] = hyperparameters()["gen"] | over.get("gen", {})
    torch.manual_seed(0)
    return getattr(trainers, kind)(hp, **options).to(dtype)


def whole_state(trainer: Any) -> dict[str, Any]:
    """All that training changes and that iterations read."""
    return {key: value for key, value in run_state(trainer, int(trainer.iterations)).items() if key != "notes"}


def differences(mine: Any, theirs: Any) -> list[float]:
    """|mine - theirs| / |theirs| of each tensor of floating point in two states; all else is the same."""
    if isinstance(theirs, torch.Tensor) and theirs.is_floating_point():
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        return [float((mine - theirs).norm() / theirs.norm().clamp(min=1e-6))]
    if isinstance(theirs, dict):
        assert list(mine) == list(theirs)
        return [d for key in theirs for d in differences(mine[key], theirs[key])]
    if isinstance(theirs, (list, tuple)):
        assert len(mine) == len(theirs)
        return [d for pair in zip(mine, theirs) for d in differences(*pair)]
    assert torch.equal(mine, theirs) if isinstance(theirs, torch.Tensor) else mine == theirs
    return []


@pytest.mark.parametrize("name", COMBINED)
def test_combined_options_are_the_same_in_parts_and_checkpointed(name: str) -> None:
    whole, *others = [combined(name), combined(name, accumulation=2), combined(name, checkpointing=True)]
    for i in range(2):
        wanted = update(whole, i, 2, torch.float64)
        for other in others:
            assert update(other, i, 2, torch.float64) == pytest.approx(wanted, rel=1e-8, abs=1e-9)
    assert {"loss_dis_r1_a", "loss_gen_feature_matching_b"} <= set(wanted)
    assert whole.options.ada is None or bool((whole.options.ada.p > 0).any())
    for other in others:
        assert float((parameters(other) - parameters(whole)).norm() / parameters(whole).norm()) < 1e-9
        averages = [t.average.states(t.generators) for t in (other, whole)]
        assert max(differences(*averages)) < 1e-6
        if whole.options.ada is not None:
            assert set(differences(other.options.ada.state(), whole.options.ada.state())) == {0}


@pytest.mark.parametrize("name", COMBINED)
def test_combined_options_go_on_from_a_state_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, other = (combined(name, dtype=torch.float32) for _ in range(2))
    for i in range(3):
        update(whole, i)
    save(whole, tmp_path, 3)
    assert resume(other, tmp_path)[0] == 3
    for i in range(3, 6):
        assert update(other, i) == update(whole, i)
    assert equal(whole_state(other), whole_state(whole))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"dis": {"gan_type": "hinge"}}, "dis.gan_type: hinge"),
        ({"r1_w": 1, "feature_matching_w": 1}, "r1_w, feature_matching_w: impl='reference'"),
        ({"diffaugment": ["color"]}, "diffaugment: impl='reference'"),
        ({"accumulation": 2}, "accumulation needs the fast trainers"),
        ({"amp": "fp16"}, "amp='fp16'"),
        ({"mode_seeking_w": 1, "impl": "auto", "trainer": "UNIT"}, "mode_seeking_w: only MUNIT"),
    ],
    ids=str,
)
def test_what_is_refused_leaves_no_folders(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, asked: dict[str, Any], named: str
) -> None:
    options = {key: asked[key] for key in ("amp", "impl", "trainer") if key in asked}
    config = small_config | {key: value for key, value in asked.items() if key not in options}
    config["dis"] = small_config["dis"] | asked.get("dis", {})
    if "trainer" in asked:
        config["recon_kl_w"] = 0.01
    with pytest.raises(ValueError, match=re.escape(named)):
        run(config, picture_folders, tmp_path / "out", **{"impl": "reference"} | options)
    assert not (tmp_path / "out").exists()


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

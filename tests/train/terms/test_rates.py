"""`lr_gen` and `lr_dis`: in the step, its schedule, a CUDA graph, files, a resumed run and what is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from helpers import fake_cuda
from helpers.runs import checkpoints, equal, run
from helpers.trainers import hyperparameters
from munit_fast import ConfigError, make_config
from munit_fast.io.checkpoints import load_file
from munit_fast.train import trainer as trainers
from munit_fast.train.cuda_graph import WARM_UP
from munit_fast.train.run_dir import RunDirectory

KINDS = ["MUNIT_Trainer", "UNIT_Trainer"]


def parameters(*networks: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for net in networks for p in net.parameters()])


def stepped(kind: str, update: str, impl: str = "auto", **rates: float) -> Any:
    torch.manual_seed(0)
    hp = hyperparameters(**rates)
    trainer: Any = getattr(trainers, kind)(hp, impl=impl)
    x_a, x_b = torch.rand(2, 1, 3, 32, 40) * 2 - 1
    trainer.update_learning_rate()
    getattr(trainer, f"{update}_update")(x_a, x_b, hp)
    return trainer


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_update_steps_with_its_own(kind: str, impl: str) -> None:
    for update in ("dis", "gen"):
        networks = (f"{update}_a", f"{update}_b")
        own = stepped(kind, update, impl, **{"lr": 0.3, f"lr_{update}": 0.002})
        of_lr, other = (stepped(kind, update, impl, lr=rate) for rate in (0.002, 0.3))
        mine, theirs, others = (parameters(*(getattr(t, n) for n in networks)) for t in (own, of_lr, other))
        assert torch.equal(mine, theirs) and not torch.equal(mine, others)


def test_both_follow_the_schedule_in_a_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """In graphs the rates are tensors, which hold powers of 2 to the bit."""
    cuda = fake_cuda.install(monkeypatch)
    hp = hyperparameters(lr=0.5, lr_gen=2**-9, lr_dis=2**-7, step_size=6)
    found = []
    for graphed in (True, False):
        torch.manual_seed(0)
        trainer: Any = trainers.MUNIT_Trainer(hp)
        for i in range(WARM_UP + 4):
            x_a, x_b = torch.rand(2, 1, 3, 32, 40, generator=torch.Generator().manual_seed(i)) * 2 - 1
            torch.manual_seed(i)
            noise = trainer.draw_noise(x_a, x_b)
            if graphed:
                trainer.update(x_a, x_b, hp, noise)
            else:
                trainer.update_learning_rate()
                trainer.dis_update(x_a, x_b, hp, noise[0])
                trainer.gen_update(x_a, x_b, hp, noise[1])
        found.append(parameters(trainer))
        rates = [o.param_groups[0]["lr"] for o in (trainer.gen_opt, trainer.dis_opt)]
        assert [isinstance(rate, Tensor) for rate in rates] == [graphed] * 2
        assert [float(rate) for rate in rates] == [2**-10, 2**-8]
        states = [o.state_dict()["param_groups"][0] for o in (trainer.gen_opt, trainer.dis_opt)]
        assert [(s["lr"], s["initial_lr"]) for s in states] == [(2**-10, 2**-9), (2**-8, 2**-7)]
    assert cuda.replays == 4 and torch.equal(*found)


def logged(out: Path) -> dict[str, list[float]]:
    history = RunDirectory(out, "small").read_run()
    return {key: [value for _, value in curve] for key, curve in history.items() if key.startswith("learning_rate")}


def test_a_resumed_run_takes_an_override_of_one(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    config = small_config | {"step_size": 3, "gamma": 0.5, "lr": 0.016, "snapshot_save_iter": 1}
    run(config | {"max_iter": 2}, picture_folders, tmp_path)
    assert logged(tmp_path) == {"learning_rate": [0.016] * 2}
    with pytest.raises(ConfigError, match=r"^lr_dis: null -> 0\.032: give --override lr_dis=0\.032"):
        run(config | {"lr_dis": 0.032}, picture_folders, tmp_path, resume=True)
    console = Console(record=True, width=1000, file=open("/dev/null", "w"))  # noqa: SIM115
    run(config, picture_folders, tmp_path, console, resume=True, overrides=["lr_dis=0.032"])
    said = console.export_text()
    assert "changed: lr_dis: null -> 0.032" in said
    assert "the learning rates after iteration 2 are 0.016 (lr_gen) and 0.032 (lr_dis)" in said
    run(config | {"max_iter": 5}, picture_folders, tmp_path, resume=True)  # lasts without being repeated
    found = logged(tmp_path)
    assert found["learning_rate"] == [0.016, 0.016, 0.008, 0.008, 0.008]
    assert found["learning_rate_dis"] == [0.016, 0.016, 0.016]
    page = (tmp_path / "outputs/small/index.html").read_text()
    assert "learning_rate_dis" in page
    groups = load_file(checkpoints(tmp_path) / "resume_00000005.pt")["optimizers"]
    assert [groups[o]["param_groups"][0]["initial_lr"] for o in ("gen", "dis")] == [0.016, 0.032]


def test_a_run_that_was_stopped_goes_on_the_same(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    config = small_config | {"step_size": 3, "lr_gen": 0.001, "lr_dis": 0.004}
    run(config, picture_folders, tmp_path / "whole")
    run(config | {"max_iter": 2}, picture_folders, tmp_path / "parts")
    run(config, picture_folders, tmp_path / "parts", resume=True)
    states = [load_file(checkpoints(tmp_path / name) / "resume_00000004.pt") for name in ("whole", "parts")]
    assert equal(*states) and logged(tmp_path / "whole") == logged(tmp_path / "parts")
    assert logged(tmp_path / "whole")["learning_rate_dis"] == [0.004, 0.004, 0.002, 0.002]


@pytest.mark.parametrize("rate", [0, -1, "fast", float("inf")])
def test_impossible_rates(rate: Any) -> None:
    with pytest.raises(ConfigError, match="lr_dis"):
        make_config({"lr_dis": rate})

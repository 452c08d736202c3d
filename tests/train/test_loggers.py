"""The logs of a run: JSON lines that survive a kill, TensorBoard across a resume, Weights & Biases on request."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.runs import run
from munit_fast.train.loggers import LogError
from munit_fast.train.run_dir import RunDirectory
from munit_fast.train.summary import describe_run, write_summary


@pytest.fixture
def folder(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path, "small")
    made.logs.mkdir(parents=True)
    return made


def test_lines_are_strict_json_and_come_back(folder: RunDirectory) -> None:
    folder.append_losses(1, {"loss_a": 0.5, "loss_b": math.nan}, {"speed": math.inf})
    folder.append_losses(2, {"loss_a": 0.25, "loss_b": -math.inf}, {"speed": 2.0})

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in folder.history.read_text().splitlines()]
    assert rows[0] == {"iteration": 1, "loss_a": 0.5, "loss_b": "NaN", "run": {"speed": "Infinity"}}
    losses = folder.read_losses()
    assert losses["loss_a"] == [(1, 0.5), (2, 0.25)]
    assert math.isnan(losses["loss_b"][0][1])
    assert losses["loss_b"][1] == (2, -math.inf)
    assert folder.read_run() == {"speed": [(1, math.inf), (2, 2.0)]}


def test_a_line_torn_by_a_kill_is_cut_and_nothing_else(folder: RunDirectory) -> None:
    for i in (1, 2, 3):
        folder.append_losses(i, {"loss": float(i)})
    whole = folder.history.read_text()
    folder.history.write_text(whole[:-5])
    folder.truncate_histories(3)
    folder.append_losses(3, {"loss": 3.0})
    assert folder.history.read_text() == whole
    folder.truncate_histories(1)
    assert folder.read_losses() == {"loss": [(1, 1.0)]}


def test_a_torn_event_spoils_no_other(folder: RunDirectory) -> None:
    folder.append_event({"kind": "first"})
    folder.append_event({"kind": "second"})
    folder.events.write_text(folder.events.read_text()[:-5])
    folder.append_event({"kind": "third"})
    lines = folder.events.read_text().splitlines()
    assert len(lines) == 3 and [json.loads(lines[i])["kind"] for i in (0, 2)] == ["first", "third"]


def test_what_a_run_was(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    config = small_config | {"batch_size": 2}
    run(config | {"max_iter": 3}, picture_folders, tmp_path)
    root = tmp_path / "outputs" / "small"
    first = json.loads((root / "summary.json").read_text())
    assert (first["iterations"], first["images_of_each_domain"], len(first["sessions"])) == (3, 6, 1)
    run(config, picture_folders, tmp_path, resume=True)
    found = json.loads((root / "summary.json").read_text())
    parts = [(part["from"], part["to"], part["global_batch"], part["ended"]) for part in found["sessions"]]
    assert parts == [(0, 3, 2, "finished"), (3, 4, 2, "finished")]
    assert found["images_of_each_domain"] == 8 and found["skipped_steps"] == 0 and found["faults"] == {}
    assert found["hours"] == pytest.approx(sum(part["seconds"] for part in found["sessions"]) / 3600, abs=1e-3)
    folder = RunDirectory(tmp_path, "small")
    curve = dict(folder.read_losses()["loss_gen_total"])
    tenths = found["losses"]["loss_gen_total"]
    assert [tenths[i] for i in (0, 2, 5, 7)] == pytest.approx([curve[i] for i in (1, 2, 3, 4)], rel=1e-3)
    assert [tenths[i] for i in (1, 3, 4, 6, 8, 9)] == [None] * 6
    words = describe_run(root / "checkpoints" / "gen_00000004.pt")
    assert words is not None
    assert re.match(r"4 iterations.* 8 images.* 0\.0 hours.* 2 sessions", words)
    assert describe_run(root / "checkpoints" / "gen_00000003.pt") is None  # the summary is not of that one
    assert describe_run(tmp_path / "gen_00000004.pt") is None


def test_a_killed_session_ends_where_the_next_began(folder: RunDirectory) -> None:
    folder.append_event({"kind": "begin", "iteration": 0, "global_batch": 4})
    folder.append_event({"kind": "data", "message": "a bad image"})
    folder.append_event({"kind": "begin", "iteration": 20, "global_batch": 8})
    folder.append_event({"kind": "end", "iteration": 30, "seconds": 72.0, "message": "stopped"})
    folder.root.mkdir(parents=True)
    for iteration, skipped in ((10, 1.0), (20, 3.0)):
        folder.append_losses(iteration, {}, {"skipped_steps": skipped, "iterations_per_second": iteration / 10})
    found = write_summary(folder, 30, {"trainer": "MUNIT", "filled": {}})
    assert (found["skipped_steps"], found["iterations_per_second"]) == (3, 1.5)
    parts = [(part["from"], part["to"], part["ended"], "seconds" in part) for part in found["sessions"]]
    assert parts == [(0, 20, "killed or failed", False), (20, 30, "stopped", True)]
    assert (found["hours"], found["images_of_each_domain"], found["faults"]) == (0.02, 160, {"data": 1})


def test_steps_after_the_resumed_iteration_are_cut_everywhere(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    # As if killed after iteration 4 with the state of iteration 2 as the newest on the disk.
    run(small_config | {"max_iter": 2}, picture_folders, tmp_path)
    checkpoints = tmp_path / "outputs" / "small" / "checkpoints"
    shutil.copytree(checkpoints, tmp_path / "kept")
    run(small_config, picture_folders, tmp_path, resume=True)
    shutil.rmtree(checkpoints)
    (tmp_path / "kept").rename(checkpoints)
    result = run(small_config | {"max_iter": 3}, picture_folders, tmp_path, resume=True)
    assert result.iterations == 3
    assert [i for i, _ in result.folder.read_losses()["loss_gen_total"]] == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "logs" / "small")).Reload()
    assert [e.step for e in events.Scalars("loss_gen_total")] == [1, 2, 3]
    assert [e.step for e in events.Images("gen_a2b_test")] == [2]


class Wandb(types.ModuleType):
    """Stands in for the package: keeps what it was told."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__("wandb")
        self.fails = fails
        self.begun: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.ended: list[int] = []
        self.id = "abc123"

    def init(self, **options: Any) -> Any:
        if self.fails:
            raise RuntimeError("api_key not configured (no-tty)")
        self.begun.append(options)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.rows.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)

    @staticmethod
    def Image(pixels: Any) -> tuple[int, ...]:
        assert pixels.dtype == "uint8"
        return tuple(pixels.shape)


def test_weights_and_biases_on_request(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    run(small_config | {"max_iter": 2}, picture_folders, tmp_path, wandb="edges")
    (begun,) = stub.begun
    assert (begun["project"], begun["name"], begun["id"], begun["resume"]) == ("edges", "small", None, "allow")
    assert begun["config"]["gen"]["dim"] == 4
    assert "mode" not in begun  # WANDB_MODE decides
    assert "settings" not in begun
    numbers = [(step, values) for step, values in stub.rows if "loss_gen_total" in values]
    assert [step for step, _ in numbers] == [1, 2]
    assert {"learning_rate", "images_per_second", "skipped_steps"} <= set(numbers[0][1])
    assert (2, {"gen_a2b_test": (138, 70, 3)}) in stub.rows
    assert stub.ended == [0]
    run(small_config, picture_folders, tmp_path, wandb="edges", resume=True)
    assert stub.begun[1]["id"] == "abc123"  # the same run there
    assert [step for step, values in stub.rows if "loss_gen_total" in values] == [1, 2, 3, 4]


def test_weights_and_biases_that_cannot_be(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LogError, match="pip install wandb"):
        run(small_config, picture_folders, tmp_path, wandb="edges")
    assert not (tmp_path / "outputs").exists()
    monkeypatch.setitem(sys.modules, "wandb", Wandb(fails=True))
    with pytest.raises(LogError, match=r"--wandb edges: .*\(no-tty\).*`wandb login`.*WANDB_MODE"):
        run(small_config, picture_folders, tmp_path, wandb="edges")
    assert not (tmp_path / "outputs" / "small").exists()
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    run(small_config, picture_folders, tmp_path)  # not asked for: not touched
    assert stub.begun == []


def test_a_run_that_fails_says_so_there(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setattr("munit_fast.train.loop.write_grids", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(small_config, picture_folders, tmp_path, wandb="edges")
    assert stub.ended == [1]

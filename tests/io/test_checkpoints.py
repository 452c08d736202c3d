"""Checkpoint files: published ones load and are written back bit for bit, others are refused with the reason."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import runs
from munit_fast import MUNIT, UNIT, CheckpointError, MUNIT_Trainer, UNIT_Trainer, make_config
from munit_fast.io.checkpoints import load_file, save_atomically
from munit_fast.models.portable import write_portable
from munit_fast.train.run_state import save_state

FILES = Path(__file__).parents[1] / "golden" / "files"


def published_config() -> Any:
    golden: dict[str, Any] = torch.load(FILES.parent / "cyc.pt", weights_only=True)
    return golden["config"]


def test_published_files_load_and_are_written_back_bit_for_bit(tmp_path: Path) -> None:
    hp = published_config()
    trainer = MUNIT_Trainer(hp)
    assert trainer.resume(FILES, hp) == 1
    trainer.save(tmp_path, 0)
    for name in ("gen_00000001.pt", "dis_00000001.pt", "optimizer.pt"):
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, FILES))
        compare(ours, theirs, name)


def compare(ours: Any, theirs: Any, where: str) -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            compare(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype, where
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs)):
            compare(*pair, f"{where}[{i}]")
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("kind", ["MUNIT", "UNIT"])
def test_save_and_resume_restore_everything(small_config: dict[str, Any], tmp_path: Path, kind: str) -> None:
    hp = make_config(small_config).hyperparameters()
    new = {"MUNIT": MUNIT_Trainer, "UNIT": UNIT_Trainer}[kind]
    first, second = new(hp), new(hp)
    x_a, x_b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    first.update_learning_rate()
    first.dis_update(x_a, x_b, hp)
    first.gen_update(x_a, x_b, hp)
    runs.save(first, tmp_path, 1, {"seed": 7})
    assert runs.resume(second, tmp_path) == (1, {"seed": 7})
    compare(first.state_dict(), second.state_dict(), "networks")
    compare(first.gen_opt.state_dict(), second.gen_opt.state_dict(), "gen_opt")
    compare(first.dis_opt.state_dict(), second.dis_opt.state_dict(), "dis_opt")
    if kind == "MUNIT":
        assert torch.equal(first.s_a, second.s_a)


def refusal(path: Path, cfg: Any, kind: Any = MUNIT) -> str:
    with pytest.raises(CheckpointError) as error:
        kind(cfg).load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_another_configuration_is_named(small_config: dict[str, Any], tmp_path: Path) -> None:
    cfg = make_config(small_config)
    runs.save(MUNIT_Trainer(cfg.hyperparameters()), tmp_path, 1)
    path = tmp_path / "gen_00000001.pt"
    other = make_config(small_config | {"gen": small_config["gen"] | {"dim": 8, "n_res": 2}})
    text = refusal(path, other)
    assert "gen.dim is 4" in text
    assert "gen.n_res is 1" in text
    assert "style_dim" not in text
    assert "trainer is MUNIT" in refusal(path, cfg, UNIT)
    assert "input_dim_a is 3" in refusal(path, make_config(small_config | {"input_dim_a": 1}))
    assert "gen_########.pt" in refusal(tmp_path / "dis_00000001.pt", cfg)


def test_a_failed_load_changes_nothing(small_config: dict[str, Any], tmp_path: Path) -> None:
    cfg = make_config(small_config)
    model = MUNIT(cfg)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = {"a": MUNIT(cfg).gen_a.state_dict(), "b": {"x": torch.ones(1)}}
    torch.save(states, tmp_path / "gen.pt")
    with pytest.raises(CheckpointError):
        model.load(tmp_path / "gen.pt")
    compare(dict(model.state_dict()), before, "model")


class RunsCode:
    def __reduce__(self) -> Any:
        return os.system, ("touch code-was-run",)


def test_pickles_are_not_run(small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in (("zip.pt", torch.save), ("plain.pt", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        write({"a": RunsCode(), "b": {}}, tmp_path / name)
        assert "only tensors" in refusal(tmp_path / name, make_config(small_config))
    assert not (tmp_path / "code-was-run").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken", b"\x80\x02}q\x00."])
def test_files_that_are_no_checkpoint(small_config: dict[str, Any], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gen_00000001.pt"
    path.write_bytes(content)
    refusal(path, make_config(small_config))


def test_missing_truncated_and_third_party_files(small_config: dict[str, Any], tmp_path: Path) -> None:
    cfg = make_config(small_config)
    assert "none.pt" in refusal(tmp_path / "none.pt", cfg)
    assert "folder" in refusal(tmp_path, cfg)
    whole = (FILES / "gen_00000001.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    refusal(tmp_path / "cut.pt", cfg)
    torch.save([1, 2], tmp_path / "list.pt")
    assert "'a' and 'b'" in refusal(tmp_path / "list.pt", cfg)
    torch.save({"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}}, tmp_path / "third_party.pt")
    refusal(tmp_path / "third_party.pt", cfg)


def test_resume_without_or_with_third_party_files(small_config: dict[str, Any], tmp_path: Path) -> None:
    trainer = MUNIT_Trainer(make_config(small_config).hyperparameters())
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        runs.resume(trainer, tmp_path)
    runs.save(trainer, tmp_path, 1)
    torch.save({"optimizers": {"gen": {}, "dis": {}}}, tmp_path / "resume_00000001.pt")
    with pytest.raises(CheckpointError, match=r"resume_00000001\.pt"):
        runs.resume(trainer, tmp_path)
    (tmp_path / "resume_00000001.pt").unlink()
    assert runs.resume(trainer, tmp_path) == (1, {})  # as a folder of the published implementation
    torch.save([1], tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        runs.resume(trainer, tmp_path)


def test_a_save_killed_at_any_file_leaves_a_state_to_resume(
    small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hp = make_config(small_config).hyperparameters()
    trainer = MUNIT_Trainer(hp)
    replace = os.replace
    for survivors in range(6):
        folder = tmp_path / str(survivors)
        folder.mkdir()
        runs.save(trainer, folder, 5)
        renamed: list[str] = []

        def dying(source: Any, target: Any, renamed: list[str] = renamed, survivors: int = survivors) -> None:
            if len(renamed) == survivors:
                raise KeyboardInterrupt
            renamed.append(Path(target).name)
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            runs.save(trainer, folder, 10)
        except KeyboardInterrupt:
            assert survivors < 4  # the state, then dis, gen and optimizer.pt; there is no average yet
        monkeypatch.undo()
        iterations, _ = runs.resume(MUNIT_Trainer(hp), folder)
        assert iterations == (10 if survivors >= 1 else 5), renamed


def test_published_optimizer_of_a_constant_rate(small_config: dict[str, Any], tmp_path: Path) -> None:
    hp = make_config(small_config | {"lr_policy": "constant", "lr": 0.5}).hyperparameters()
    trainer = MUNIT_Trainer(hp)
    trainer.save(tmp_path, 0)
    states = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    for state in states.values():
        del state["param_groups"][0]["initial_lr"]
    torch.save(states, tmp_path / "optimizer.pt")
    other = MUNIT_Trainer(hp)
    assert runs.resume(other, tmp_path)[0] == other.resume(tmp_path, hp) == 1
    other.update_learning_rate()
    assert other.gen_opt.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("display_size", [1, 5])
def test_resume_with_another_display_size(small_config: dict[str, Any], tmp_path: Path, display_size: int) -> None:
    trainer = MUNIT_Trainer(make_config(small_config).hyperparameters())
    runs.save(trainer, tmp_path, 1)
    other = MUNIT_Trainer(make_config(small_config | {"display_size": display_size}).hyperparameters())
    runs.resume(other, tmp_path)
    assert len(other.s_a) == display_size
    shared = min(2, display_size)
    assert torch.equal(other.s_a[:shared], trainer.s_a[:shared])


@pytest.mark.parametrize("write", ["state", "published", "portable"])
def test_what_cannot_be_made_again_is_flushed(
    small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    cfg = make_config(small_config)
    trainer, flushed = MUNIT_Trainer(cfg.hyperparameters()), set()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (flushed.add(os.fstat(d).st_ino), fsync(d)))
    if write == "state":
        save_state(trainer, tmp_path, 1)
    elif write == "published":
        trainer.save(tmp_path, 0)
    else:
        write_portable(tmp_path / "model.safetensors", MUNIT(cfg))
    files = list(tmp_path.iterdir())
    assert files and {path.stat().st_ino for path in [tmp_path, *files]} <= flushed


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gen_00000001.pt"
    save_atomically({"x": torch.ones(3)}, path)

    def fail(obj: Any, file: Any) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=path.name):
        save_atomically({"x": torch.zeros(3)}, path)
    assert torch.equal(load_file(path)["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

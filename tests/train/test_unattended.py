"""Runs that are left alone: killed, out of disk, with damaged files, with gradients that are not finite."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from helpers import runs
from helpers.runs import checkpoints, equal, events, run, tensors
from munit_fast import CheckpointError, MUNIT_Trainer, make_config
from munit_fast.io.atomic import FileWriteError
from munit_fast.io.checkpoints import CheckpointReadError, load_file
from munit_fast.train import loop as train_run
from munit_fast.train import losses
from munit_fast.train import trainer as trainers
from munit_fast.train.distributed import Ranks
from munit_fast.train.events import NotFiniteError
from munit_fast.train.nonfinite import WINDOW, SkipRecord, in_a_row
from munit_fast.train.optim import step_async
from munit_fast.train.run_dir import RunDirectory
from munit_fast.train.run_state import apply_state, find_state, run_state, save_state

# ---- exact resume ----


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute of a quiet processor
def test_a_run_killed_fifty_times_is_the_run_that_was_not(tmp_path: Path) -> None:
    """By the clock and inside saves; every file of every run that got to its end is the same to the bit."""
    script = Path(__file__).parents[1] / "helpers" / "crash.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path, "50"], capture_output=True, text=True, env=environment, timeout=850
    )
    assert done.returncode == 0, done.stderr
    clock, save = (int(done.stdout.split()[i]) for i in (0, 5))
    assert clock + save >= 50 and min(clock, save) >= 10, done.stdout


@pytest.mark.parametrize("trainer", ["MUNIT", "UNIT"])
def test_states_are_whole_or_noticed(small_config: dict[str, Any], tmp_path: Path, trainer: str) -> None:
    """One flipped bit anywhere: either nothing that is loaded has changed, or the file is not used."""
    hp = make_config(small_config).hyperparameters()
    mine: Any = {"MUNIT": MUNIT_Trainer, "UNIT": trainers.UNIT_Trainer}[trainer](hp)
    other: Any = type(mine)(hp)
    save_state(other, tmp_path, 1, keep=2)
    x_a, x_b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    mine.update(x_a, x_b, hp)
    save_state(mine, tmp_path, 2, keep=2)
    path = tmp_path / "resume_00000002.pt"
    whole, wanted = path.read_bytes(), load_file(path)
    draw = random.Random(0)
    damaged = 0
    for _ in range(80):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        found = find_state(tmp_path)
        if found.source == path:
            assert found.state["checksum"] == wanted["checksum"] and equal(found.state, wanted)
        else:
            assert found.source.name == "resume_00000001.pt" and list(found.damaged) == [path]
            damaged += 1
    assert damaged > 30
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert find_state(tmp_path).source.name == "resume_00000001.pt"


def test_the_state_before_a_damaged_one_is_used_and_said(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(small_config, picture_folders, out, save_minutes=0, keep=2)
    assert sorted(p.name for p in checkpoints(out).glob("resume_*")) == ["resume_00000003.pt", "resume_00000004.pt"]
    newest = checkpoints(out) / "resume_00000004.pt"
    wanted, data = load_file(newest), bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    console = Console(record=True, quiet=False, file=open(os.devnull, "w"), width=500)  # noqa: SIM115
    result = run(small_config, picture_folders, out, console, resume=True)
    said = console.export_text()
    assert "resume_00000004.pt" in said and "resume_00000003.pt" in said
    assert "resuming after iteration 3" in said
    assert (result.iterations, [e["kind"] for e in events(out)]) == (4, ["begin", "end", "checkpoint", "begin", "end"])
    assert equal(load_file(newest), wanted)
    assert (checkpoints(out) / "resume_00000004.pt.damaged").exists()


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "Stale file handle"),
        (MemoryError(), "not enough memory"),
        (RuntimeError(ALLOCATOR), "not enough memory"),
    ],
)
def test_a_read_that_fails_is_no_damage(
    small_config: dict[str, Any],
    picture_folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
) -> None:
    out = tmp_path / "out"
    run(small_config, picture_folders, out, save_minutes=0)
    before = sorted(path.name for path in checkpoints(out).iterdir())

    def failing(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", failing)
        with pytest.raises(CheckpointReadError, match=rf"resume_00000004\.pt: .*: {reason}"):
            run(small_config, picture_folders, out, resume=True)
    assert sorted(path.name for path in checkpoints(out).iterdir()) == before
    assert run(small_config | {"max_iter": 5}, picture_folders, out, resume=True).iterations == 5


def test_a_read_error_that_another_hides_is_found(
    small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.save(MUNIT_Trainer(make_config(small_config).hyperparameters()), tmp_path, 1)
    (tmp_path / "resume_00000001.pt").write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match=r"resume_00000001\.pt.*no state"):
        find_state(tmp_path)

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(CheckpointReadError, match="Input/output error"):
        find_state(tmp_path)


def test_without_a_good_state_nothing_is_guessed(small_config: dict[str, Any], tmp_path: Path) -> None:
    hp = make_config(small_config).hyperparameters()
    runs.save(MUNIT_Trainer(hp), tmp_path, 1)
    (tmp_path / "resume_00000001.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"resume_00000001\.pt.*no state") as caught:
        find_state(tmp_path)
    assert "\n" not in str(caught.value)
    other = make_config(small_config | {"gen": small_config["gen"] | {"dim": 8}}).hyperparameters()
    save_state(MUNIT_Trainer(hp), tmp_path, 2)
    trainer = MUNIT_Trainer(other)
    before = run_state(trainer, 0)
    with pytest.raises(CheckpointError, match=r"gen\.dim .*\b4\b.*\b8\b"):  # another model is no damage
        runs.resume(trainer, tmp_path)
    assert run_state(trainer, 0)["checksum"] == before["checksum"]


def test_auto_resume_begins_or_goes_on(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    assert run(small_config | {"max_iter": 2}, picture_folders, tmp_path, auto_resume=True).iterations == 2
    history = (tmp_path / "logs/small/losses.jsonl").read_text()
    assert run(small_config, picture_folders, tmp_path, auto_resume=True).iterations == 4
    assert (tmp_path / "logs/small/losses.jsonl").read_text().startswith(history)


def test_a_signal_during_the_last_save_does_not_end_it(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    config = small_config | {"max_iter": 2, "snapshot_save_iter": 100}
    assert in_child("signalled", config, picture_folders, tmp_path) == (0, "")
    names = {path.name for path in checkpoints(tmp_path).iterdir()}
    assert {"resume_00000002.pt", "gen_00000002.pt", "dis_00000002.pt", "optimizer.pt"} <= names


@pytest.mark.parametrize("lacking", [False, True])
def test_a_failure_is_saved_unless_gradients_may_be_missing(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: bool
) -> None:
    def after_one(*arguments: Any) -> None:  # the failure is noticed between iterations
        raise RuntimeError("NCCL: a peer is gone")

    assert [train_run._may_lack_gradients(Ranks(0, size, torch.device(device))) for size, device in
            ((1, "cuda"), (2, "cpu"), (2, "cuda"))] == [False, False, True]  # fmt: skip
    monkeypatch.setattr(train_run, "_may_lack_gradients", lambda ranks: lacking)
    monkeypatch.setattr(train_run._Run, "_after_iteration", after_one)
    with pytest.raises(RuntimeError, match="NCCL"):
        run(small_config, picture_folders, tmp_path)
    assert len(list((tmp_path / "outputs").rglob("resume_*.pt"))) == (0 if lacking else 1)


# ---- a disk that fills ----


def in_child(how: str, config: dict[str, Any], data: Path, out: Path, **options: Any) -> tuple[int, str]:
    """Exit code and last words of a run in a process of its own; see child_runs.py."""
    given = json.dumps({"config": config, "data": str(data), "out": str(out), "options": options})
    command = [sys.executable, Path(__file__).parents[1] / "helpers" / "child_runs.py", how, given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_file_that_cannot_grow(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    """The system refuses the bytes of a state: the run ends in one clear line, and goes on later as if it had not."""
    long = small_config | {"max_iter": 6}
    run(long, picture_folders, tmp_path / "whole")
    run(long | {"max_iter": 2}, picture_folders, tmp_path / "parts")
    before = sorted(p.name for p in checkpoints(tmp_path / "parts").iterdir())

    code, words = in_child("limited", long, picture_folders, tmp_path / "parts", resume=True)
    assert code == 1 and words.startswith("FileWriteError: cannot write") and "checkpoints" in words, words
    left = sorted(p.name for p in checkpoints(tmp_path / "parts").iterdir())
    assert [name for name in left if name in before] == before and not [n for n in left if n.startswith(".")]
    run(long, picture_folders, tmp_path / "parts", resume=True)
    for name in ("resume_00000006.pt", "gen_00000006.pt", "ema_00000006.pt", "optimizer.pt"):
        assert equal(*(load_file(checkpoints(tmp_path / part) / name) for part in ("whole", "parts")))
    histories = [RunDirectory(tmp_path / part, "small").read_losses() for part in ("whole", "parts")]
    assert histories[0] == histories[1]


def test_a_small_disk(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.decode().strip()}")
    try:
        config = small_config | {"image_save_iter": 100, "image_display_iter": 100}
        with pytest.raises(FileWriteError, match="cannot write") as caught:
            run(config | {"max_iter": 50}, picture_folders, disk, save_minutes=0, keep=50)
        assert caught.value.errno == errno.ENOSPC
        done = find_state(checkpoints(disk)).state["iterations"]
        assert 2 <= done < 50
        for old in checkpoints(disk).glob("*.pt"):
            if old.name != f"resume_{done:08d}.pt":
                old.unlink()
        result = run(config | {"max_iter": done + 2}, picture_folders, disk, resume=True, keep=1)
        assert result.finished
        run(config | {"max_iter": done + 2}, picture_folders, tmp_path / "whole", keep=1)
        name = f"resume_{done + 2:08d}.pt"
        assert equal(*(load_file(checkpoints(out) / name) for out in (disk, tmp_path / "whole")))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# ---- gradients that are not finite ----


def test_skipped_steps_are_counted_named_and_kept(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = MUNIT_Trainer.update
    seen: list[int] = []

    def poisoned(self: Any, x_a: Any, x_b: Any, hp: Any, noise: Any = None) -> Any:
        x_a = torch.full_like(x_a, float("nan")) if self.iterations in (1, 2) else x_a
        seen.append(self.iterations)
        return update(self, x_a, x_b, hp, noise)

    monkeypatch.setattr(MUNIT_Trainer, "update", poisoned)
    result = run(small_config | {"log_iter": 3}, picture_folders, tmp_path)
    assert result.skipped_steps == 4 and result.finished  # two iterations of two steps
    told = [e for e in events(tmp_path) if e["kind"] == "skipped"]
    assert [e["iteration"] for e in told] == [2, 3]
    assert "trainA" in told[0]["message"] and "trainB" in told[0]["message"]
    state = load_file(checkpoints(tmp_path) / "resume_00000004.pt")
    assert state["skips"][0] == 4 and state["skips"][-4:].tolist() == [0, 1, 1, 0]
    assert all(torch.isfinite(t).all() for t in tensors(state) if t.is_floating_point())


def test_too_many_in_a_row_end_the_run_with_what_repeats_them(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = MUNIT_Trainer.update

    def poisoned(self: Any, x_a: Any, x_b: Any, hp: Any, noise: Any = None) -> Any:
        if self.iterations >= 2:
            x_b.fill_(float("inf"))
        return update(self, x_a, x_b, hp, noise)

    monkeypatch.setattr(MUNIT_Trainer, "update", poisoned)
    with pytest.raises(NotFiniteError, match=r"^3 iterations .*iteration 5; .*lr.*--amp off"):
        run(small_config | {"max_iter": 20}, picture_folders, tmp_path, patience=3)
    state = load_file(checkpoints(tmp_path) / "resume_00000005.pt")
    good = load_file(checkpoints(tmp_path) / "resume_00000002.pt")
    assert state["optimizers"]["gen"]["state"][0]["step"] == 2
    assert equal(state["networks"], good["networks"]) and equal(state["optimizers"], good["optimizers"])
    assert all(torch.isfinite(t).all() for t in tensors(state) if t.is_floating_point())
    # The dump repeats it, elsewhere and without the data.
    monkeypatch.undo()
    dump = load_file(tmp_path / "outputs" / "small" / "notfinite_00000005.pt")
    assert len(dump["images"]["a"]) == 1 and torch.isinf(dump["x_b"]).all()
    hp = make_config(small_config).hyperparameters()
    trainer = MUNIT_Trainer(hp)
    apply_state(trainer, dump["state"], tmp_path)
    before = trainer.skipped_steps
    trainer.update(dump["x_a"], dump["x_b"], hp, (dump["noise"]["dis"], dump["noise"]["gen"]))
    assert trainer.skipped_steps == before + 2


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_step_that_a_graph_holds_reads_nothing_and_poisons_nothing(
    small_config: dict[str, Any], kind: str, scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's way of skipping, on the CPU: fused Adam looks at found_inf itself."""
    hp = make_config(small_config | {"ema_half_life": 5}).hyperparameters()
    trainer: Any = getattr(trainers, kind)(hp, amp="fp16" if scaled else "off")
    monkeypatch.setattr(type(trainer), "_step", lambda self, optimizer: step_async(optimizer, None, self.skips))
    x_a, x_b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    trainer.update(x_a, x_b, hp)
    before, skipped = copy.deepcopy(run_state(trainer, 0)), trainer.skipped_steps
    trainer.update(x_a, torch.full_like(x_b, float("nan")), hp)
    after = copy.deepcopy(run_state(trainer, 0))
    assert trainer.skipped_steps == skipped + 2 and trainer.skips.flags()[-1]
    for part in ("networks", "optimizers"):
        assert equal(before[part], after[part])
    assert all(torch.isfinite(t).all() for t in trainer.average.tensors)
    for _ in range(4):  # fp16's scale may have to fall first
        trainer.update(x_a, x_b, hp)
    assert trainer.skips.flags()[-1] is False and not equal(after["networks"], run_state(trainer, 0)["networks"])


def test_a_loss_that_is_not_finite_is_enough(small_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where every gradient would be finite."""
    hp = make_config(small_config).hyperparameters()
    trainer = MUNIT_Trainer(hp)
    total = losses.munit_total
    monkeypatch.setattr(losses, "munit_total", lambda *arguments: total(*arguments) + float("inf"))
    before = [p.detach().clone() for p in trainer.gen_a.parameters()]
    x_a, x_b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    trainer.update(x_a, x_b, hp)
    assert trainer.skipped_steps == 1
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.gen_a.parameters()))


def test_running_statistics_are_not_poisoned_either(small_config: dict[str, Any]) -> None:
    hp = make_config(small_config | {"dis": small_config["dis"] | {"norm": "bn"}}).hyperparameters()
    trainer = MUNIT_Trainer(hp)
    x_a, x_b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    trainer.update(x_a, x_b, hp)
    trainer.update(torch.full_like(x_a, float("nan")), x_b, hp)
    assert trainer.skipped_steps == 2
    assert all(torch.isfinite(b).all() for b in trainer.state_dict().values())


def test_the_record_counts_and_forgets() -> None:
    record = SkipRecord()
    for i in range(WINDOW + 5):
        record.begin()
        record.add(torch.tensor(1.0 if i in (3, WINDOW + 3, WINDOW + 4) else 0.0))
        record.add(torch.tensor(0.0))
    flags = record.flags()
    assert record.total == 3 and sum(flags) == 2 and len(flags) == WINDOW and in_a_row(flags) == 2
    record.begin()
    assert in_a_row(record.flags()) == 0


def test_a_record_of_another_shape_changes_nothing(small_config: dict[str, Any], tmp_path: Path) -> None:
    hp = make_config(small_config).hyperparameters()
    state = run_state(MUNIT_Trainer(hp), 3)
    trainer = MUNIT_Trainer(hp)
    before = run_state(trainer, 0)["checksum"]
    for skips in (torch.zeros(3, dtype=torch.int64), torch.zeros(1 + WINDOW), None):
        with pytest.raises(CheckpointError, match=r"skipped steps .*shape"):
            apply_state(trainer, state | {"skips": skips}, tmp_path)
        assert run_state(trainer, 0)["checksum"] == before and trainer.iterations == 0

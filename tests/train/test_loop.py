"""Training runs: files, logs, resume, signals, refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from munit_fast import make_config
from munit_fast.io.checkpoints import load_file
from munit_fast.train import TrainOptions, TrainResult, train, warm
from munit_fast.train.progress import Speedometer, format_seconds
from munit_fast.train.run_dir import RunDirectory, RunDirectoryError

PUBLISHED_SCALARS = {
    f"loss_gen_{part}_{d}" for part in ("recon_x", "recon_s", "recon_c", "cycrecon_x", "adv", "vgg") for d in "ab"
} | {
    "loss_gen_total",
    "loss_dis_a",
    "loss_dis_b",
    "loss_dis_total",
}


def run(config: dict[str, Any], data: Path, out: Path, **options: Any) -> TrainResult:
    values = config | {"data_root": str(data)}
    return train(
        make_config(values),
        TrainOptions(name="small", output_path=out, **{"amp": "off"} | options),
        config_text=yaml.safe_dump(values),
        console=Console(quiet=True),
    )


def test_the_published_tree(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    result = run(small_config, picture_folders, tmp_path)
    assert (result.iterations, result.finished, result.skipped_steps) == (4, True, 0)
    root = tmp_path / "outputs" / "small"
    assert yaml.safe_load((root / "config.yaml").read_text())["gen"]["dim"] == 4
    for iteration in (2, 4):
        for direction in ("a2b", "b2a"):
            for split in ("train", "test"):
                grid = Image.open(root / "images" / f"gen_{direction}_{split}_{iteration:08d}.jpg")
                assert grid.size == (2 * 34 + 2, 4 * 34 + 2)  # display_size columns; x, recon, two translations
        assert (root / "checkpoints" / f"gen_{iteration:08d}.pt").is_file()
    assert (root / "images" / "gen_a2b_train_current.jpg").is_file()
    page = (root / "index.html").read_text()
    assert "gen_a2b_test_00000004.jpg" in page
    assert 'http-equiv="refresh"' not in page  # the run is over

    events = EventAccumulator(str(tmp_path / "logs" / "small")).Reload()
    assert set(events.Tags()["scalars"]) >= PUBLISHED_SCALARS
    about_the_run = {"learning_rate", "iterations_per_second", "images_per_second", "skipped_steps", "memory_mb"}
    assert set(events.Tags()["scalars"]) == PUBLISHED_SCALARS | about_the_run
    grids = {f"gen_{direction}_{split}" for direction in ("a2b", "b2a") for split in ("train", "test")}
    assert set(events.Tags()["images"]) == grids
    assert [(e.step, e.width, e.height) for e in events.Images("gen_a2b_test")] == [(2, 70, 138), (4, 70, 138)]
    recorded = events.Scalars("loss_gen_total")
    assert [e.step for e in recorded] == [1, 2, 3, 4]
    rows = [json.loads(line) for line in (tmp_path / "logs" / "small" / "losses.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss_gen_total"] == pytest.approx(recorded[-1].value, rel=1e-6)
    assert set(rows[-1]["run"]) == about_the_run
    for name, value in rows[-1]["run"].items():
        assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6)
    assert rows[-1]["run"]["images_per_second"] == pytest.approx(2 * rows[-1]["run"]["iterations_per_second"])
    assert 50 < rows[-1]["run"]["memory_mb"] < 10_000
    assert "Images a second" in page


@pytest.mark.parametrize("trainer", ["MUNIT", "UNIT"])
def test_resumed_is_bit_for_bit_the_uninterrupted_run(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, trainer: str
) -> None:
    changes: dict[str, Any] = {"lr_policy": "step", "step_size": 2, "recon_x_cyc_w": 1.0, "max_iter": 6}
    changes |= {"recon_kl_w": 0.01} if trainer == "UNIT" else {}
    run(small_config | changes, picture_folders, tmp_path / "whole", trainer=trainer)
    run(small_config | changes | {"max_iter": 3}, picture_folders, tmp_path / "parts", trainer=trainer)
    result = run(small_config | changes, picture_folders, tmp_path / "parts", trainer=trainer, resume=True)
    assert result.iterations == 6
    for name in ("gen_00000006.pt", "dis_00000006.pt", "optimizer.pt"):
        files = [tmp_path / part / "outputs" / "small" / "checkpoints" / name for part in ("whole", "parts")]
        whole, parts = ([*flatten(load_file(f))] for f in files)
        assert len(whole) == len(parts) > 20
        assert all(torch.equal(x, y) for x, y in zip(whole, parts)), name
    histories = [RunDirectory(tmp_path / part, "small").read_losses() for part in ("whole", "parts")]
    assert histories[0] == histories[1]
    rows = [json.loads(line) for line in RunDirectory(tmp_path / "parts", "small").history.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]


def flatten(value: Any) -> Any:
    if isinstance(value, dict):
        for item in value.values():
            yield from flatten(item)
    elif isinstance(value, torch.Tensor):
        yield value


def test_a_finished_run_is_not_overwritten(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    run(small_config, picture_folders, tmp_path)
    with pytest.raises(RunDirectoryError, match="--resume"):
        run(small_config, picture_folders, tmp_path)


def test_two_runs_in_one_folder(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    with RunDirectory(tmp_path, "small").open(resume=False), pytest.raises(RunDirectoryError, match="another run"):
        run(small_config, picture_folders, tmp_path, resume=True)
    assert run(small_config, picture_folders, tmp_path).finished


def test_constant_pictures_are_survived_and_counted(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    for path in picture_folders.rglob("*.png"):
        Image.new("RGB", (32, 32), "white").save(path)
    # In bfloat16, whose gradients of a constant picture overflow sooner.
    result = run(small_config | {"gen": {"dim": 8, "n_res": 4}}, picture_folders, tmp_path, amp="bf16")
    assert result.skipped_steps > 0
    states = load_file(tmp_path / "outputs" / "small" / "checkpoints" / "gen_00000004.pt")
    assert all(torch.isfinite(x).all() for x in flatten(states))


def test_training_without_test_pictures(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    for split in ("testA", "testB"):
        (picture_folders / split).rename(picture_folders / f"no-{split}")
    run(small_config, picture_folders, tmp_path)
    assert not list((tmp_path / "outputs" / "small" / "images").glob("*_test_*"))


def test_time_limit_stops_and_saves(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    result = run(small_config | {"max_iter": 10**6}, picture_folders, tmp_path, time_limit=1.0)
    assert not result.finished
    assert result.iterations >= 1
    assert (tmp_path / "outputs" / "small" / "checkpoints" / f"gen_{result.iterations:08d}.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_exit_0(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, number: int
) -> None:
    config = tmp_path / "small.yaml"
    values = small_config | {"data_root": str(picture_folders), "max_iter": 10**6, "image_display_iter": 10**6}
    config.write_text(yaml.safe_dump(values | {"image_save_iter": 10**6, "snapshot_save_iter": 10**6}))
    command = [sys.executable, "-m", "munit_fast", "train", "--config", str(config), "--output_path", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--device", "cpu"], stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    history = tmp_path / "logs" / "small" / "losses.jsonl"
    deadline = time.monotonic() + 120
    while not (history.exists() and history.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0, text
    saved = sorted((tmp_path / "outputs" / "small" / "checkpoints").glob("gen_*.pt"))
    assert len(saved) == 1
    assert re.search(rf"stopped .*\b{int(saved[0].stem[4:])}\b", text)


def test_time_left() -> None:
    assert (format_seconds(59), format_seconds(3723)) == ("0:59", "1:02:03")
    meter = Speedometer()
    meter.update(0)
    assert meter.seconds_left(0, 10) is None
    meter._marks = [(0.0, 0), (2.0, 4)]
    assert meter.speed == 2.0
    assert meter.seconds_left(4, 10) == 3.0
    meter.leave_out(7.0, 4)  # evaluations, one of which is still to come
    assert meter.speed == 2.0
    assert meter.seconds_left(4, 10) == 10.0
    assert meter._marks == [(7.0, 0), (9.0, 4)]


WORKERS = """
import sys
from pathlib import Path
from munit_fast.data import ImageSet, UnpairedBatches, list_images
from munit_fast.train.signals import StopRequest

sets = [ImageSet(list_images(Path(sys.argv[1]) / name), cache=False) for name in ("trainA", "trainB")]
with StopRequest() as stop:
    for number, batch in enumerate(UnpairedBatches(*sets, (32, 32), (32, 32), 2, num_workers=2)):
        print("batch", flush=True)
        if stop.requested:
            break
        if number > 100_000:
            sys.exit("never asked to stop")
print("stopped", flush=True)
"""


def test_ctrl_c_in_a_terminal_leaves_the_loader_working(picture_folders: Path) -> None:
    # A terminal signals the whole process group, the loader's workers too.
    process = subprocess.Popen(
        [sys.executable, "-c", WORKERS, str(picture_folders)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n"
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.endswith("stopped\n")
    assert errors == ""


def test_kernels_are_compiled_ahead_where_triton_serves(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first process of a machine; where that fails the run goes on, and says so."""
    called: list[Any] = []

    def fail(*arguments: Any) -> None:
        called.append(arguments)
        raise OSError("no space left")

    monkeypatch.setattr(warm, "compile_kernels", fail)
    run(small_config | {"max_iter": 1}, picture_folders, tmp_path / "cpu")
    assert called == []
    monkeypatch.setattr(warm, "unsupported_reason", lambda device, amp, impl: None)
    assert run(small_config | {"max_iter": 1, "batch_size": 2}, picture_folders, tmp_path).finished
    [(values, trainer, amp, batch, device, _, checkpointing)] = called
    assert (values["gen"]["dim"], trainer, amp, batch, device.type, checkpointing) == (
        4,
        "MUNIT",
        "off",
        2,
        "cpu",
        False,
    )
    events = RunDirectory(tmp_path, "small").read_events()
    assert [event["message"].endswith("no space left") for event in events if event["kind"] == "kernels"] == [True]
    monkeypatch.setenv("LOCAL_RANK", "1")
    run(small_config | {"max_iter": 1}, picture_folders, tmp_path / "second")
    assert len(called) == 1

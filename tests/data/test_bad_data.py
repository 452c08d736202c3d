"""Images that go bad during a run, and loader processes that die."""

from __future__ import annotations

import multiprocessing
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
from rich.console import Console
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from helpers.runs import checkpoints, equal, events, run
from munit_fast import ConfigError, MUNIT_Trainer
from munit_fast.data import ImageError, ImageSet, UnpairedBatches, configured, list_images
from munit_fast.data import unpaired as batches
from munit_fast.io.checkpoints import load_file
from munit_fast.train.run_state import find_state


def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image sets that read from the disk."""
    monkeypatch.setattr(configured, "ImageSet", lambda *args, **_: _lazy_set(*args))


def _lazy_set(paths: Any, channels: int, short: int, cache: Any) -> Any:
    return ImageSet(paths, channels, short, False)


def recorded() -> Console:
    return Console(record=True, file=open(os.devnull, "w"), width=500)


@pytest.mark.parametrize("cached", [True, False])
def test_images_that_are_bad_from_the_start(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """Among those that a size is estimated from and those of the grids: replaced or left out, in memory or not."""
    if not cached:
        lazy(monkeypatch)
    for split in ("trainA", "testB"):
        (picture_folders / split / "0.png").write_bytes(b"")
    assert run(small_config, picture_folders, tmp_path).iterations == 4
    told = [e["message"] for e in events(tmp_path) if e["kind"] == "data"]
    assert len(told) == 1 and "trainA/0.png" in told[0] and "another image" in told[0]
    assert run(small_config | {"max_iter": 6}, picture_folders, tmp_path, resume=True).iterations == 6
    for path in (picture_folders / "trainA").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"trainA/"):
        run(small_config | {"max_iter": 8}, picture_folders, tmp_path, resume=True)


def test_a_resume_says_what_changes_the_order(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    run(small_config | {"max_iter": 1}, picture_folders, tmp_path)
    console = recorded()
    run(small_config | {"max_iter": 2}, picture_folders, tmp_path, console, resume=True)
    assert (
        "order" not in console.export_text()
        and "trainA" not in console.export_text()
        and "domain" not in console.export_text()
    )
    (picture_folders / "trainA" / "3.png").unlink()
    (picture_folders / "trainB" / "3.png").rename(picture_folders / "trainB" / "other.png")
    console = recorded()
    larger = {"max_iter": 3, "batch_size": 2}
    with pytest.raises(ConfigError, match=r"^batch_size: 1 -> 2 .*--override batch_size=2"):
        run(small_config | larger, picture_folders, tmp_path, resume=True)
    run(small_config | larger, picture_folders, tmp_path, console, resume=True, overrides=["batch_size=2"])
    said = console.export_text()
    assert re.search(r"began with 1 .*\b2\b.* order ", said)
    assert re.search(r"domain A had 4 .*\b3\b", said)
    assert re.search("domain B .*names", said)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_go_bad_are_replaced_and_said_once(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    lazy(monkeypatch)
    config = small_config | {"max_iter": 8, "num_workers": workers, "image_display_iter": 100, "image_save_iter": 100}
    (picture_folders / "trainA" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    whole = picture_folders / "trainB" / "3.png"
    whole.write_bytes(whole.read_bytes()[:200])
    run(config, picture_folders, tmp_path / "whole")
    run(config | {"max_iter": 3}, picture_folders, tmp_path / "parts")
    run(config, picture_folders, tmp_path / "parts", resume=True)
    told = [e["message"] for e in events(tmp_path / "whole") if e["kind"] == "data"]
    assert len(told) == 2 and all("another image" in m for m in told)
    assert any("trainA/2.png" in m for m in told) and any("trainB/3.png" in m for m in told)
    name = "resume_00000008.pt"
    assert equal(*(load_file(checkpoints(tmp_path / part) / name) for part in ("whole", "parts")))


def test_when_no_image_can_be_read_the_run_ends(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy(monkeypatch)
    config = small_config | {"display_size": 1, "max_iter": 50}
    update = MUNIT_Trainer.update

    def vanish(self: Any, *arguments: Any) -> Any:
        losses = update(self, *arguments)
        if self.iterations == 5:
            for path in (picture_folders / "trainA").iterdir():
                path.unlink()
        return losses

    monkeypatch.setattr(MUNIT_Trainer, "update", vanish)
    with pytest.raises(ImageError, match=r"trainA/.*no such file"):
        run(config, picture_folders, tmp_path)
    assert find_state(checkpoints(tmp_path)).state["iterations"] == 5  # what was done is kept


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that looks after its processes five times a second instead of every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.mark.usefixtures("watchful")
def test_a_loader_that_dies_is_started_again(picture_folders: Path) -> None:
    sets = [ImageSet(list_images(picture_folders / name), cache=False) for name in ("trainA", "trainB")]

    def batches(**options: Any) -> Any:
        return UnpairedBatches(*sets, (32, 32), (32, 32), 2, **options)

    whole = iter(batches())
    wanted = [next(whole) for _ in range(12)]
    said: list[str] = []
    found = []
    for i, pair in enumerate(batches(num_workers=2, report=said.append)):
        found.append(pair)
        if i in (2, 6):
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        if len(found) == 12:
            break
    assert all(torch.equal(a[k], b[k]) for a, b in zip(found, wanted) for k in (0, 1))
    assert 1 <= len(said) <= 2 and re.search(r"died before iteration \d+", said[0])


@pytest.mark.usefixtures("watchful")
def test_loaders_that_keep_dying_end_the_run_with_an_error(
    picture_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [ImageSet(list_images(picture_folders / name), cache=False) for name in ("trainA", "trainB")]
    monkeypatch.setattr(batches, "train_crop", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    said: list[str] = []
    loader = UnpairedBatches(*sets, (32, 32), (32, 32), 2, num_workers=1, report=said.append)
    with pytest.raises(batches.LoaderError, match=r"iteration 1; .*num_workers"):
        next(iter(loader))
    assert len(said) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the loader looks every few seconds")
def test_loaders_do_not_outlive_a_parent_that_is_killed(picture_folders: Path) -> None:
    """They hold its lock on the run's folder."""
    script = f"""
import multiprocessing
from pathlib import Path
from munit_fast.data import ImageSet, UnpairedBatches, list_images
sets = [ImageSet(list_images(Path({str(picture_folders)!r}) / name), cache=False) for name in ("trainA", "trainB")]
batches = iter(UnpairedBatches(*sets, (32, 32), (32, 32), 2, num_workers=1))
next(batches)
print(multiprocessing.active_children()[0].pid, flush=True)
import time; time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.read()  # until no process holds the pipe any more
    deadline = time.monotonic() + 3  # the loader's own look at its parent comes after five seconds
    while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{worker}/stat").read_text().split()[2] in "ZX":  # dead, though not reaped yet
            return
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()

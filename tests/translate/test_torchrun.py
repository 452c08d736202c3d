"""`torchrun -m munit_fast translate`: the processes share the images, and end together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from munit_fast.translate.journal import FOLDER

ONE = [sys.executable, "-m", "munit_fast"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "munit_fast"]


def translate(start: list[str], source: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    options = ["--pretrained", "openmoji-lines2color", "--native_size", "--num_style", "3", "--batch_size", "2"]
    return subprocess.run(
        [*start, "translate", *options, "--format", "npy", "--input", source, "--output_folder", out, *more],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(source / f"{i}.png")
    (source / "2.png").write_bytes(b"no picture")  # of the second process's first chunk: the first must not be ended
    alone = translate(ONE, source, tmp_path / "one")
    both = translate(TWO, source, tmp_path / "two", "--workers", "3")
    assert alone.returncode == 1 and both.returncode != 0
    assert files(tmp_path / "two") == files(tmp_path / "one") and len(files(tmp_path / "one")) == 8 * 4
    assert "process 1 of 2: " in both.stderr and "2.png" in both.stderr and "32 files in" in both.stderr
    assert len(list((tmp_path / "two" / FOLDER).glob("*.jsonl"))) == 2
    (source / "2.png").unlink()
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(source / "2.png")
    again = translate(TWO, source, tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert "process 0 of 2: 5 of 5 images were done already" in again.stderr
    assert "8 files in" in again.stderr  # a chunk of two
    refused = translate(TWO, source, tmp_path / "three", "--grid", str(tmp_path / "grid.png"))
    assert refused.returncode != 0 and "--grid is made by one process" in refused.stderr

"""Shared pieces of the test suite."""

from __future__ import annotations

from munit_fast.utils.env import set_process_defaults

set_process_defaults()  # before torch is imported

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


@pytest.fixture
def small_config() -> dict[str, Any]:
    """A configuration of the smallest useful size, as a plain mapping with the published keys."""
    return {
        "display_size": 2,
        "max_iter": 4,
        "log_iter": 1,
        "image_save_iter": 2,
        "image_display_iter": 2,
        "snapshot_save_iter": 2,
        "num_workers": 0,
        "gen": {"dim": 4, "mlp_dim": 8, "style_dim": 3, "n_res": 1},
        "dis": {"dim": 4, "n_layer": 2, "num_scales": 2},
        "new_size": 32,
        "crop_image_height": 32,
        "crop_image_width": 32,
    }


@pytest.fixture
def picture_folders(tmp_path: Path) -> Path:
    """trainA, trainB, testA, testB with four 40×32 pictures each."""
    rng = np.random.default_rng(0)
    for split in ("trainA", "trainB", "testA", "testB"):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"

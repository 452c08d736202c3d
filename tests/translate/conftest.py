"""A small model and a few pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import munit_fast as mf


@pytest.fixture
def model(small_config: dict[str, Any]) -> mf.MUNIT:
    torch.manual_seed(0)
    return mf.MUNIT(mf.make_config(small_config)).eval()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name, size in (("a.png", (32, 32)), ("b.jpg", (45, 37)), ("more/c.png", (32, 32)), ("more/d.bmp", (32, 32))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder

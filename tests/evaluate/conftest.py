"""A paired data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """A paired data set of five 32 px drawings (A, grey) and colourings (B), two of them with several colourings."""
    rng = np.random.default_rng(1)
    root = tmp_path / "pairs"
    for split in ("trainA", "trainB", "testA", "testB"):
        (root / split).mkdir(parents=True)
    for i in range(5):
        line = np.full((32, 32), 255, np.uint8)
        line[4 + i, 4:28] = line[4:28, 4 + i] = 0
        colour = np.minimum(line[..., None], rng.integers(60, 256, 3, dtype=np.uint8))
        for split, pixels in (("trainA", line), ("testA", line), ("trainB", colour), ("testB", colour)):
            Image.fromarray(pixels).save(root / split / f"{i}.png")
    for i in (0, 3):
        folder = root / "colourings" / str(i)
        folder.mkdir(parents=True)
        for j in range(3):
            colour = np.full((32, 32, 3), rng.integers(0, 256, 3), np.uint8)
            Image.fromarray(colour).save(folder / f"{j}.png")
    return root

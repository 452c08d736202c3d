"""Moments of parts join to those of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from munit_fast.tiles.plan import tiles_of
from munit_fast.tiles.statistics import measure, merge


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_parts_join(shift: float) -> None:
    x = torch.randn(1, 20, 37, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + shift
    boxes = tiles_of(1, 37, 41, 8)
    parts = np.stack([measure(x[:, :, box.top : box.bottom, box.left : box.right]) for box in boxes])
    moments = merge(np.array([box.height * box.width for box in boxes]), parts[:, 0], parts[:, 1])
    flat = x[0].flatten(1)
    assert moments.count == 37 * 41
    np.testing.assert_allclose(moments.mean, flat.mean(1), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(moments.variance(), flat.var(1, correction=0), rtol=1e-7 if shift else 1e-13)
    whole = moments.over_channels()
    np.testing.assert_allclose(whole.variance(1)[0], x.var(), rtol=1e-7 if shift else 1e-13)


def test_tiles_hold_every_pixel_once() -> None:
    seen = np.zeros((2, 33, 50), int)
    for box in tiles_of(2, 33, 50, 16):
        seen[box.plane, box.top : box.bottom, box.left : box.right] += 1
    assert (seen == 1).all()

"""Several images as one."""

from __future__ import annotations

import torch

from munit_fast.data import make_grid
from munit_fast.data.grid import shown


def test_layout() -> None:
    rows = [torch.full((3, 1, 4, 5), value) for value in (-1.0, 0.0)]
    grid = make_grid(rows, gap=2)
    assert grid.shape == (3, 2 * 6 + 2, 3 * 7 + 2)
    assert (grid[:, 2:6, 2:7] == -1).all()
    assert (grid[:, 8:12, 16:21] == 0).all()
    assert (grid[:, :2] == 1).all()


def test_rows_of_other_sizes() -> None:
    """Each as high as its images; narrow ones in the middle of their cells."""
    grid = make_grid([torch.zeros(1, 1, 4, 8), -torch.ones(2, 3, 6, 2)], gap=1)
    assert grid.shape == (3, 4 + 6 + 3, 2 * 9 + 1)
    expected = torch.ones_like(grid)
    expected[:, 1:5, 1:9] = 0
    expected[:, 6:12, 4:6] = expected[:, 6:12, 13:15] = -1
    assert torch.equal(grid, expected)


def test_three_channels_of_any_number_are_shown() -> None:
    images = torch.rand(2, 5, 4, 4)
    assert torch.equal(shown(images), images[:, :3]) and torch.equal(shown(images[:, :3]), images[:, :3])
    assert torch.equal(shown(images[:, :2]), images[:, :1]) and torch.equal(shown(images[:, :1]), images[:, :1])
    assert torch.equal(shown(images, [4, 0, 0]), images[:, [4, 0, 0]])
    assert torch.equal(shown(images[0], [1, 2, 3]), images[0, 1:4])

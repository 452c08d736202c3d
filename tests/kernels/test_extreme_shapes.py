"""Shapes at and beyond what a launch can do: `auto` names Triton or CUDA C++ only where they serve. Needs no GPU."""

from __future__ import annotations

import re

import pytest
import torch

from munit_fast.ops import backends
from munit_fast.ops.backends import cuda, triton
from munit_fast.ops.epilogue import _problem, empty_gradients, empty_result, empty_stats
from munit_fast.ops.phase_border import problem_of as phase_border_problem
from munit_fast.ops.spec import EpilogueGradients, EpilogueInputs, EpilogueSpec

pytest.importorskip("triton")

from munit_fast.kernels import launch

GPU = torch.device("cuda", 0)
MOST_BLOCKS = (2**31 - 1, 65535, 65535)  # of a grid, by CUDA's axes

# Shape, block, pad, and whether Triton's launches can do it.
SHAPES = [
    ((65535, 4, 2, 3), 1, 1, True),
    ((65536, 4, 2, 3), 1, 1, False),
    ((70000, 4, 1, 1), 2, 0, False),
    ((1, 65535, 17, 17), 1, 0, True),
    ((1, 65536, 17, 17), 1, 0, False),
    ((1, 65532, 20, 20), 2, 0, True),
    ((1, 4 * 65536, 20, 20), 2, 0, False),
    ((1, 2**26, 1, 2), 1, 0, False),
    ((16384, 65535, 1, 1), 1, 0, True),
    ((65535, 65535, 1, 1), 1, 0, False),
    ((1, 64, 4096, 4096), 1, 0, True),
    ((1, 64, 4096, 4096), 1, 1, False),
    ((1, 256, 2048, 2048), 2, 3, False),
    ((1, 1, 1, 2**30), 1, 0, True),
    ((1, 1, 1, 2**30 + 1), 1, 0, False),
    ((60000, 32, 256, 256), 1, 1, True),
]


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The grids of what is launched, instead of launching it."""
    found: list[tuple[int, ...]] = []
    monkeypatch.setattr(launch, "run", lambda kernel, grid, device, *args, **meta: found.append(grid))
    return found


def run(x: torch.Tensor, o: EpilogueSpec) -> None:
    """Everything that an epilogue of x launches, forward and backward."""
    inputs, y, stats = EpilogueInputs(x, None, None, None, None), empty_result(x, o), empty_stats(x, o)
    triton.epilogue_forward(o, inputs, y, stats, has_stats=False)
    triton.epilogue_backward(o, inputs, y, stats, EpilogueGradients(*empty_gradients(x, o, (True, True, True))))


@pytest.mark.parametrize("norm", ["none", "instance", "layer"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "block", "pad", "served"), SHAPES)
def test_auto_names_who_serves(
    shape: tuple[int, int, int, int],
    block: int,
    pad: int,
    served: bool,
    layout: torch.memory_format,
    norm: str,
    grids: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("triton", "cuda"):
        monkeypatch.setattr(backends.BACKENDS[name], "unsupported_reason", lambda device, dtype: None)
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta", memory_format=layout)
    o = EpilogueSpec(norm, 1e-5, "relu", 0.0, block, pad, "zero")
    name = backends.automatic(GPU, x.dtype, _problem(x, o))
    assert (name == "triton") == served
    if served:
        run(x, o)
        assert all(size <= most for grid in grids for size, most in zip(grid, MOST_BLOCKS))
    else:
        reason = backends.unsupported_reason("triton", GPU, x.dtype, _problem(x, o))
        with pytest.raises(ValueError, match=re.escape(str(reason))):
            run(x, o)
        assert name != "cuda" or cuda.unsupported_problem_reason(_problem(x, o)) is None


def test_the_limits_are_those_of_the_grids(grids: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check the launches of a refused shape would be beyond a grid, or beyond 32-bit offsets."""
    monkeypatch.setattr(launch, "check_size", lambda *sizes: None)
    for shape, block, pad, served in SHAPES:
        grids.clear()
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.empty(shape, dtype=torch.bfloat16, device="meta", memory_format=layout)
            run(x, EpilogueSpec("instance", 1e-5, "relu", 0.0, block, pad, "zero"))
        c, h, w = shape[1:]
        sample = max(c * h * w, c // block**2 * (block * h + 2 * pad) * (block * w + 2 * pad))
        beyond = any(size > most for grid in grids for size, most in zip(grid, MOST_BLOCKS)) or sample > 2**30
        assert beyond != served, shape


# [N, C, H, W] of the small input, O, and whether Triton's launches can do the border of a phase convolution.
BORDERS = [
    ((1, 256, 64, 64), 128, True),
    ((8, 128, 128, 128), 64, True),
    ((65535, 4, 2, 3), 1, True),
    ((65536, 4, 2, 3), 1, False),
    ((1, 65535, 4, 4), 8, True),
    ((1, 65536, 4, 4), 8, False),
    ((1, 4, 4, 4), 16384, False),
    ((1, 16, 4096, 4096), 16, True),
    ((1, 16, 4096, 4097), 16, False),
]


@pytest.mark.parametrize(("shape", "out", "served"), BORDERS)
def test_the_border_of_a_phase_convolution_is_one_launch_each_way(
    shape: tuple[int, int, int, int],
    out: int,
    served: bool,
    grids: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("triton", "cuda"):
        monkeypatch.setattr(backends.BACKENDS[name], "unsupported_reason", lambda device, dtype: None)
    n, c, h, w = shape
    layout = torch.channels_last
    a = torch.empty(n, c, h + 2, w + 2, dtype=torch.bfloat16, device="meta", memory_format=layout)
    y = torch.empty(n, 4 * out, h, w, dtype=torch.bfloat16, device="meta", memory_format=layout)
    weight = torch.empty(out, c, 5, 5, device="meta")
    problem = phase_border_problem(y, a)
    assert (backends.automatic(GPU, a.dtype, problem) == "triton") == served
    for way in (
        lambda: triton.phase_border(y, a, weight),
        lambda: triton.phase_border_backward(y, a, weight, torch.empty_like(a), torch.empty_like(weight)),
    ):
        grids.clear()
        if served:
            way()
            assert len(grids) == 1 and all(size <= most for size, most in zip(grids[0], MOST_BLOCKS))
        else:
            with pytest.raises(ValueError, match=re.escape(str(triton.unsupported_problem_reason(problem)))):
                way()

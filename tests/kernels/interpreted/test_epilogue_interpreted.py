"""The epilogue's kernels in Triton's interpreter, on the CPU; `test_interpreter.py` runs this file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers import kernel_cases as cases
from helpers import kernel_checks as checks
from helpers import oracle
from helpers.kernel_cases import KernelCase
from munit_fast.kernels import configs, launch
from munit_fast.kernels.statistics import statistics
from munit_fast.ops import backends
from munit_fast.ops.backends import triton
from munit_fast.ops.cases import selftest_cases
from munit_fast.ops.spec import ACTIVATIONS
from munit_fast.reference import epilogue as reference

SMALL = (8, 8, 1, 64)
SPLIT = (4, 4, 1, 64)
ONLY_X = (True, False, False)


@pytest.mark.parametrize("case", cases.covering_cases(), ids=str)
def test_against_the_oracle(case: KernelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.use_tile(case, monkeypatch)
    inputs = cases.make_inputs(case)
    stats = checks.check_forward(case, inputs)
    checks.check_backward(case, inputs, stats)


@pytest.mark.parametrize("layout", ["channels_last", "nchw"])
def test_the_shared_cases_through_the_public_functions(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "unsupported_reason", lambda device, dtype: None)
    backends.choose.cache_clear()
    for case in selftest_cases():
        case = replace(case, dtype=torch.float32, parameter_dtype=None, layout=layout)
        oracle.check(case, "triton")
    backends.choose.cache_clear()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("shape", "block", "pad", "mode"),
    [
        ((1, 8, 4, 4), 1, 3, "reflect"),  # a pixel mirrored at both edges, in both directions
        ((1, 8, 2, 9), 1, 1, "reflect"),
        ((1, 8, 7, 3), 1, 2, "reflect"),
        ((1, 8, 2, 2), 2, 3, "reflect"),
        ((1, 8, 5, 5), 1, 2, "reflect"),
        ((1, 8, 6, 6), 1, 2, "reflect"),
        ((1, 8, 1, 5), 1, 2, "replicate"),
        ((2, 8, 1, 1), 1, 1, "replicate"),
        ((1, 8, 1, 1), 2, 2, "replicate"),
        ((1, 8, 3, 3), 1, 3, "zero"),
    ],
)
def test_small_images_and_wide_borders(
    shape: tuple[int, int, int, int],
    block: int,
    pad: int,
    mode: str,
    channels_last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = KernelCase(shape, norm="none", act="lrelu", block=block, pad=pad, pad_mode=mode, residual=True, tile=SMALL)
    case = cases.replace(case, channels_last=channels_last)
    cases.use_tile(case, monkeypatch)
    inputs = cases.make_inputs(case)
    checks.check_backward(case, inputs, checks.check_forward(case, inputs))


@pytest.mark.parametrize("channels_last", [True, False])
def test_tiles_that_begin_where_the_border_ends(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of two pixels of a row: the backward looks for copies tile by tile, and may not miss one."""
    case = KernelCase((1, 4, 6, 8), norm="none", act="none", pad=2, channels_last=channels_last, tile=(2, 4, 1, 64))
    cases.use_tile(case, monkeypatch)
    inputs = cases.make_inputs(case)
    checks.check_backward(case, inputs, torch.empty(2, 0))


@pytest.mark.parametrize("norm", ["none", "layer", "group"])
def test_only_what_is_needed(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = KernelCase((1, 8, 2, 3), norm=norm, act="prelu", weight="shared", pad=1, tile=SMALL)
    cases.use_tile(case, monkeypatch)
    inputs = cases.make_inputs(case)
    checks.check_needs(case, inputs, reference.statistics(inputs.x, norm, case.groups))


def test_no_reduction_that_nobody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    run = launch.run
    monkeypatch.setattr(launch, "run", lambda kernel, *args, **meta: launched.append(1) or run(kernel, *args, **meta))
    case = KernelCase((1, 4, 3, 3), norm="none", act="relu", tile=SPLIT)
    cases.use_tile(case, monkeypatch)
    checks.run_backward(case, cases.make_inputs(case), torch.empty(2, 0), ONLY_X)
    assert len(launched) == 1


@pytest.mark.parametrize("norm", ["instance", "layer", "group"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_statistics_far_from_zero(norm: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = KernelCase((1, 4, 7, 11), norm=norm, channels_last=channels_last, mean=1000.0, tile=SPLIT)
    cases.use_tile(case, monkeypatch)
    x = cases.make_inputs(case).x
    mean, spread = stats = torch.empty(2, 1 if norm == "layer" else 4)
    statistics(x, norm, case.groups, channels_last, stats)
    expected = reference.statistics(x.double(), norm, case.groups)
    assert checks.error(mean, expected[0]) < 1e-7
    assert checks.error(spread, expected[1]) < 1e-5


@pytest.mark.parametrize("norm", ["instance", "layer"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_statistics_beside_a_first_value_far_away(
    norm: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What deviations are taken from at first: the mean and the spread may not depend on it."""
    case = KernelCase((1, 4, 7, 11), norm=norm, channels_last=channels_last, act="none", mean=0.0, tile=SPLIT)
    cases.use_tile(case, monkeypatch)
    inputs = cases.make_inputs(case)
    inputs.x[:, :, 0, 0] = 1e6
    _, stats = checks.run_forward(case, inputs)
    expected = reference.statistics(inputs.x.double(), norm, case.groups)
    assert checks.error(stats[0], expected[0]) < 3e-7
    assert checks.error(stats[1], expected[1]) < 1e-6


@pytest.mark.parametrize("norm", ["instance", "layer", "group"])
def test_a_constant_plane(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = KernelCase((1, 4, 3, 5), norm=norm, act="none", pad=1, tile=SPLIT)
    cases.use_tile(case, monkeypatch)
    i = cases.make_inputs(case)
    i.x = torch.full_like(i.x, 3.7)
    y, stats = checks.run_forward(case, i)
    assert y.abs().max() == 0 and torch.equal(stats[1], torch.zeros_like(stats[1]))
    grad_x, _, _ = checks.run_backward(case, i, stats, ONLY_X)
    expected, _, _ = reference.epilogue_backward(i.grad, i.x, stats, **case.options)
    assert checks.error(grad_x, expected.double()) < 1e-5


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nan_stays_nan(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = KernelCase((1, 4, 3, 4), norm="none", act=act, pad=1, tile=SMALL)
    cases.use_tile(case, monkeypatch)
    i = cases.make_inputs(case)
    i.x[0, 2, 1, 1] = float("nan")
    y, _ = checks.run_forward(case, i)
    assert torch.equal(y.isnan(), reference.epilogue(i.x, act=act, slope=i.slope, pad=1).isnan())


@pytest.mark.parametrize("act", ["tanh", "selu", "silu", "gelu", "gelu_tanh"])
def test_activations_keep_their_digits(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and derivative element by element: close to zero, across the seams of the formulas, and far out."""
    case = KernelCase((1, 1, 8, 64), norm="none", act=act, pad=0, tile=(512, 1, 1, 64))
    cases.use_tile(case, monkeypatch)
    size = torch.cat([torch.logspace(-30, -2, 56), torch.linspace(0.01, 1.2, 156), torch.linspace(1.2, 80, 44)])
    x = torch.cat([size, -size]).view(case.shape)
    i = cases.KernelInputs(x, None, None, None, 0.2, torch.ones_like(x))
    y, stats = checks.run_forward(case, i)
    slope, _, _ = checks.run_backward(case, i, stats, ONLY_X)
    z = x.double().requires_grad_()
    exact = oracle.exact_activation(z, act)
    (exact_slope,) = torch.autograd.grad(exact, z, torch.ones_like(z))
    exact, z, condition = exact.detach(), z.detach(), torch.ones(())
    terms = exact_slope.abs()
    if act == "tanh":
        terms = exact_slope = torch.cosh(z) ** -2
    elif act != "selu":  # z · σ(z): a derivative of two terms, of either sign
        terms = (exact / z).abs() + (exact_slope - exact / z).abs()
        # Far below zero gelu is exp(-z²/2), so a rounding of z²/2, relative to 1, becomes one of the value.
        condition = 1 + (z * exact_slope / exact).abs().nan_to_num() if act.startswith("gelu") else condition
    normal = exact.abs() > (1e-30 if act.startswith("gelu") else 0)  # below, fp32 itself has fewer digits
    assert ((y - exact) / exact / condition)[normal].abs().max() < (8e-7 if act == "gelu" else 4e-7)
    normal = terms > 1e-30
    assert ((slope - exact_slope) / terms / condition)[normal].abs().max() < 1e-6


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_same_bits_every_time(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = KernelCase((1, 4, 3, 3), torch.bfloat16, channels_last, act="prelu", weight="shared", tile=SPLIT)
    cases.use_tile(case, monkeypatch)
    i = cases.make_inputs(case)
    runs = []
    for _ in range(10):
        y, stats = checks.run_forward(case, i)
        runs.append((y, stats, *checks.run_backward(case, i, stats)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))


def test_parameters_may_be_rows_of_a_larger_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdaIN's weights and biases are slices of the MLP's output; only their last axis has to be contiguous."""
    case = KernelCase((2, 4, 3, 3), act="none", weight="sample", bias="sample", tile=SMALL)
    cases.use_tile(case, monkeypatch)
    inputs = cases.make_inputs(case)
    wide = torch.randn(2, 24)
    inputs.bias, inputs.weight = wide[:, 4:8], wide[:, 8:12]
    checks.check_backward(case, inputs, checks.check_forward(case, inputs))


def test_an_empty_batch() -> None:
    case = KernelCase((0, 4, 3, 3), pad=1)
    inputs = cases.make_inputs(case)
    y, stats = checks.run_forward(case, inputs)
    assert y.shape == (0, 4, 5, 5) and stats.shape == (2, 0)
    grad_x, _, sums = checks.run_backward(case, inputs, stats)
    assert grad_x.shape == inputs.x.shape and sums.shape == (3, 0, 4)


def test_a_gradient_in_another_layout_is_refused() -> None:
    case = KernelCase((1, 4, 3, 3), norm="none", act="none", pad=0)
    inputs = cases.make_inputs(case)
    inputs.grad = inputs.grad.contiguous()
    with pytest.raises(ValueError, match=r"^grad .*channels_last"):
        checks.run_backward(case, inputs, torch.empty(2, 0), ONLY_X)


def test_samples_beyond_32_bits_are_refused() -> None:
    x = torch.empty(1, 1 << 11, 1 << 10, 1 << 10, device="meta")
    with pytest.raises(ValueError, match="2\\^30 elements"):
        checks.run_forward(KernelCase(norm="none", pad=0), cases.KernelInputs(x, None, None, None, 0.2, x))


def test_the_real_tables_cover_every_shape() -> None:
    for table in configs.TABLES:
        for itemsize in (2, 4):
            for channels in (1, 3, 8, 17, 64, 96, 4096):
                for area in (1, 64, 4096, 1 << 24):
                    tile = configs.tile(table, itemsize, channels, area, torch.device("cpu"))
                    assert tile.pixels & (tile.pixels - 1) == 0 and tile.channels & (tile.channels - 1) == 0


@pytest.mark.parametrize("for_each_channel", [False, True])
def test_splits_cover_every_tile(for_each_channel: bool) -> None:
    for tiles in (1, 2, 7, 511, 512, 513, 100_000):
        for at_least in (1, 4):
            for columns in (0, 1, 3, 256, 5000):
                each, splits = configs.split(tiles, at_least, columns, for_each_channel)
                assert splits <= configs.MAX_SPLITS
                assert (splits - 1) * each < tiles <= splits * each


def test_tiles_within_a_row() -> None:
    tile = configs.TileConfig(64, 32, 4, 1)
    for width, pixels in ((1, 1), (5, 8), (16, 16), (33, 16), (63, 64), (65, 16), (96, 32), (256, 64)):
        within = configs.within_a_row(tile, width, 256)
        assert within.pixels == pixels and within.pixels * within.channels == min(64 * 32, pixels * 256)
    assert configs.within_a_row(tile, 4, 3) == tile._replace(pixels=4)


@pytest.mark.parametrize("norm", ["instance", "layer", "group"])
@pytest.mark.parametrize(
    ("block", "channels", "channels_last"), [(1, 4, True), (1, 4, False), (1, 1, False), (2, 1, True)]
)
def test_partial_results(
    block: int, channels: int, norm: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many splits, the last one shorter; and tiles of one channel."""
    launched: list[tuple[object, ...]] = []
    run = launch.run
    monkeypatch.setattr(
        launch, "run", lambda kernel, grid, *args, **meta: launched.append(grid) or run(kernel, grid, *args, **meta)
    )
    case = KernelCase((2, 4, 3, 5), norm=norm, act="prelu", weight="sample", bias="shared", block=block, pad=2)
    case = replace(case, channels_last=channels_last, tile=(4, channels, 1, 256))
    cases.use_tile(case, monkeypatch)
    inputs = cases.make_inputs(case)
    stats = checks.check_forward(case, inputs)
    assert launched[0][1] > 3
    launched.clear()
    checks.check_backward(case, inputs, stats)
    assert launched[0][0] > 3

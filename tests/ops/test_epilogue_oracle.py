"""Every backend against the specification in float64, forward and backward, in memory that starts as NaN."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from helpers.oracle import DTYPES, LARGE, check, errors
from helpers.tolerances import tolerance
from munit_fast import functional as mf
from munit_fast.ops.cases import LAYOUTS, OPS, SHAPES, EpilogueCase, block_of, grid, lay_out
from munit_fast.reference import epilogue as formulas

pytestmark = pytest.mark.usefixtures("poisoned")


def name(value: object) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("op", OPS)
def test_grid(backend: str, op: str, dtype: torch.dtype, layout: str) -> None:
    for case in grid(op, dtype, layout):
        check(case, backend)


def large(shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype) -> Iterator[EpilogueCase]:
    for op, act, mode in (
        ("instance_affine", "relu", "reflect"),
        ("layer_affine", "selu", "replicate"),
        ("bias_act", "prelu", "zero"),
        ("adain", "tanh", "reflect"),
    ):
        yield EpilogueCase(op, shape, dtype, layout, act, 2, mode, residual=act != "tanh")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("shape", "layout"), LARGE)
def test_sizes_beyond_every_constant_of_the_kernels(
    backend: str, shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype
) -> None:
    for case in large(shape, layout, dtype):
        check(case, backend)


# Results that are streamed past the caches (12 MiB), batches that are worked on a few images at a time (16 MiB), tasks
# whose running sums are flushed at their very end (65536 values).
HUGE = (
    EpilogueCase("instance_affine", (3, 16, 330, 320), layout="channels_last", act="relu", pad=1, residual=True),
    EpilogueCase("adain", (3, 16, 330, 320), layout="channels_last", act="lrelu", pad=2, pad_mode="replicate"),
    EpilogueCase("layer_affine", (3, 4, 512, 640), layout="nchw", act="relu", pad=1),
    EpilogueCase("instance_affine", (1, 2, 256, 256), layout="nchw"),
    EpilogueCase("layer_affine", (1, 2, 256, 256), layout="channels_last", pad=0),
    EpilogueCase("bias_act", (1, 2, 256, 256), layout="nchw", act="prelu", pad=0),
)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", HUGE, ids=str)
def test_sizes_at_which_the_cpu_works_otherwise(case: EpilogueCase, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(case, "auto")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("norm", "block"), [("instance", 1), ("layer", 1), ("layer", 2), ("group", 1), ("none", 1)])
def test_a_window_of_a_padded_tensor_as_residual(
    backend: str, norm: str, block: int, layout: str, dtype: torch.dtype
) -> None:
    """Read where it lies, it gives the bits of a dense copy; and so does the result rebuilt from its statistics."""
    x = lay_out(torch.randn(2, 12, 5, 7), layout).to(dtype)
    window = lay_out(torch.randn(2, 12, 9, 11), layout).to(dtype)[:, :, 2:-2, 2:-2]
    groups = 3 if norm == "group" else 1
    impl = backend if backend == "reference" else "cpu"
    flags = (norm, 1e-5, "relu", 0.2, block, 1, "reflect", groups, impl)
    y, stats = torch.ops.munit_fast.epilogue(x, None, None, window, None, *flags)
    dense = window.contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
    assert torch.equal(y, torch.ops.munit_fast.epilogue(x, None, None, dense, None, *flags)[0])
    assert torch.equal(y, torch.ops.munit_fast.epilogue_again(x, stats, None, None, window, None, *flags))
    other = stats * 1.5
    changed = torch.ops.munit_fast.epilogue_again(x, other, None, None, window, None, *flags)
    assert norm == "none" or not torch.equal(y, changed)


def far_from_zero(op: str, dtype: torch.dtype, mean: float) -> Iterator[EpilogueCase]:
    sizes = [*itertools.product(SHAPES, ("nchw", "channels_last")), *LARGE[:4]]
    for turn, (shape, layout) in enumerate(sizes):
        if shape[1] % block_of(op) ** 2:
            continue
        act = ("none", "relu", "tanh")[turn % 3]
        yield EpilogueCase(op, shape, dtype, layout, act, 1, "replicate", mean=mean, std=1.0, seed=turn)


# At mean 1000 all bfloat16 values of a plane would be the same few.
FAR = ((torch.float32, 1000.0), (torch.float64, 1e6), (torch.bfloat16, 30.0), (torch.float16, 100.0))
NORMED = [op for op in OPS if op not in ("bias_act", "scale_bias_act")]


@pytest.mark.parametrize(("dtype", "mean"), FAR, ids=name)
@pytest.mark.parametrize("op", NORMED)
def test_far_from_zero(backend: str, op: str, dtype: torch.dtype, mean: float) -> None:
    """Mean 1000, standard deviation 1: E[x²] - E[x]² has no correct digit left of such a variance in float32."""
    for case in far_from_zero(op, dtype, mean):
        check(case, backend)


ON_CUDA = [dtype for dtype in DTYPES if dtype != torch.float64]


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ON_CUDA, ids=name)
@pytest.mark.parametrize("op", OPS)
def test_grid_on_cuda(op: str, dtype: torch.dtype, layout: str) -> None:
    for case in grid(op, dtype, layout):
        check(case, "triton", "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ON_CUDA, ids=name)
def test_sizes_beyond_every_constant_of_the_kernels_on_cuda(dtype: torch.dtype) -> None:
    for shape, layout in LARGE:
        for case in large(shape, layout, dtype):
            check(case, "triton", "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "mean"), [far for far in FAR if far[0] in ON_CUDA], ids=name)
@pytest.mark.parametrize("op", NORMED)
def test_far_from_zero_on_cuda(op: str, dtype: torch.dtype, mean: float) -> None:
    for case in far_from_zero(op, dtype, mean):
        check(case, "triton", "cuda")


@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_parameters_of_any_dtype(backend: str, dtype: torch.dtype, parameter_dtype: torch.dtype) -> None:
    for op in ("instance_affine", "adain", "layer_affine", "layer_shared", "bias_act"):
        case = EpilogueCase(op, (2, 8, 6, 5), dtype, "channels_last", "prelu", 1, parameter_dtype=parameter_dtype)
        check(case, backend)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.5, 10.0])
def test_eps_is_inside_the_root_of_instance_norm_and_outside_that_of_layer_norm(backend: str, eps: float) -> None:
    for op, layout, std in itertools.product(("instance", "adain", "layer_affine"), ("nchw", "channels_last"), (1, 5)):
        check(EpilogueCase(op, (2, 6, 7, 5), layout=layout, act="lrelu", pad=1, std=std, eps=eps), backend)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_small_and_large_values(backend: str, scale: float) -> None:
    """Where eps counts, and where it does not."""
    for op, act in itertools.product(("instance_affine", "layer_affine", "bias_act"), ("none", "relu", "selu")):
        check(EpilogueCase(op, (2, 5, 8, 7), layout="channels_last", act=act, pad=1, mean=0.0, std=scale), backend)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("block", [3, 4])
def test_depth_to_space_by_more_than_two(backend: str, block: int, layout: str) -> None:
    x = lay_out(torch.randn(2, 3 * block**2, 4, 5, dtype=torch.float64), layout).requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = mf.layer_norm2d(x, weight, bias, act="lrelu", depth_to_space=block, pad=3, impl=backend)
    expected = formulas.epilogue(x, weight, bias, norm="layer", act="lrelu", block=block, pad=3)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    leaves = (x, weight, bias)
    for got, want in zip(torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_the_comparison_sees_an_error() -> None:
    """The tolerance is far below the smallest mistake that it must catch: an unbiased variance at 4096 pixels."""
    got = errors(EpilogueCase("instance", (1, 2, 64, 64)), "reference")
    assert got["y"][1] < 1 / (2 * 4096) / 10
    assert tolerance(torch.float32, "result", 10**6, 4096, 1000) < 1e-3

"""The border of an upsampling convolution behind reflection padding, against padding and convolving the large image."""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from helpers.border_cases import lacking
from helpers.convolutions import lay_out
from helpers.tolerances import unit_roundoff
from munit_fast.ops import winograd
from munit_fast.ops.spec import EpilogueSpec
from munit_fast.ops.winograd import Source
from munit_fast.reference import epilogue as formulas

pytestmark = pytest.mark.usefixtures("winograd_isa")

# Of the small input [N, C, H, W], and O: the smallest that can be reflected, lines shorter and longer than the blocks
# of rows of the products, channels that fill no vector, and as many as one or several, one image and several.
SHAPES = (
    ((1, 1, 2, 2), 1),
    ((2, 3, 2, 6), 2),
    ((1, 5, 8, 2), 3),
    ((3, 20, 4, 6), 9),
    ((2, 17, 14, 16), 33),
    ((1, 64, 30, 4), 32),
    ((4, 32, 16, 62), 16),
    ((0, 4, 6, 6), 2),
)
EPILOGUES = (
    ("none", "none", 1),
    ("instance", "relu", 1),
    ("layer", "lrelu", 2),
    ("none", "prelu", 1),
    ("none", "none", 2),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Case(NamedTuple):
    source: Source
    weight: Tensor
    y: Tensor
    grad: Tensor
    grad_x: Tensor


def make(
    shape: tuple[int, int, int, int], out: int, epilogue: tuple[str, str, int], dtype: torch.dtype, layout: str
) -> Case:
    (n, c, h, w), (norm, act, block) = shape, epilogue
    x = lay_out((torch.randn(n, c * block**2, h // block, w // block) + 0.5).to(dtype), "channels_last")
    parameters = (torch.rand(c * block**2) + 0.5, torch.randn(c * block**2)) if norm != "none" else (None, None)
    slopes = torch.rand(1) if act == "prelu" else None
    stats = winograd.statistics(x, norm) if norm != "none" else None
    spec = EpilogueSpec(norm, 1e-5 if norm != "none" else 0.0, act, 0.2, block, 1, "replicate")
    source = Source(x, stats, *parameters, slopes, spec)
    weight = lay_out(torch.randn(out, c, 5, 5), layout)
    y, grad, grad_x = (
        lay_out(torch.randn(size).to(dtype), "channels_last") for size in ((n, 4 * out, h, w),) * 2 + ((n, c, h, w),)
    )
    return Case(source, weight, y, grad, grad_x)


def expected(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    source, spec = case.source, case.source.spec
    x, weight, bias, slopes = (
        None if t is None else t.double() for t in (source.x, source.weight, source.bias, source.slopes)
    )
    assert x is not None
    slope = spec.slope if slopes is None else slopes
    options: dict[str, Any] = {"norm": spec.norm, "eps": spec.eps, "act": spec.act, "slope": slope, "block": spec.block}
    a = formulas.epilogue(x, weight, bias, **options).contiguous().requires_grad_()
    kernel = case.weight.double().contiguous().requires_grad_()
    change = lacking(a, kernel)
    grads = torch.autograd.grad(change, (a, kernel), case.grad.double().contiguous())
    return case.y.double() + change.detach(), case.grad_x.double() + grads[0], grads[1]


def run(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    y, grad_x = case.y.clone(), case.grad_x.clone()
    winograd.phase_border(case.source, case.weight, y)
    grad_weight = winograd.phase_border_gradients(case.grad, case.source, case.weight, grad_x, True)
    assert grad_weight is not None
    return y, grad_x, grad_weight


def check(found: Tensor, wanted: Tensor, terms: int) -> None:
    if found.numel() == 0:
        return
    bound = (12 + math.sqrt(terms)) * unit_roundoff(torch.float32)
    if found.dtype != torch.float32:
        bound += 4 * unit_roundoff(found.dtype)  # the corners of an image are stored twice, their neighbours thrice
    error = (found.double() - wanted).norm()
    assert error <= bound * wanted.norm(), f"{error / wanted.norm():.2e} > {bound:.2e}"


def soil() -> None:
    """Leave NaN in the memory that the calls share."""
    case = make((2, 64, 32, 32), 40, ("none", "none", 1), torch.float32, "nchw")
    case.source.x.fill_(math.nan), case.grad.fill_(math.nan), case.weight.fill_(math.nan)
    run(case)


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
@pytest.mark.parametrize(("shape", "out"), SHAPES, ids=str)
def test_against_float64(shape: tuple[int, int, int, int], out: int, epilogue: tuple[str, str, int]) -> None:
    n, c, h, w = shape
    if epilogue[2] == 2 and epilogue[0] != "none" and h * w <= 4:
        pytest.skip("a norm of one pixel")
    soil()
    for dtype in DTYPES:
        for layout in ("nchw", "channels_last"):
            case = make(shape, out, epilogue, dtype, layout)
            found, wanted = run(case), expected(case)
            for name, of_found, of_wanted, terms in zip(
                ("y", "grad_x", "grad_weight"), found, wanted, (5 * c, 10 * out, 2 * n * (h + w)), strict=True
            ):
                assert of_found.isfinite().all(), name
                check(of_found, of_wanted, terms)
            assert found[2].stride() == case.weight.stride()


def test_inner_pixels_are_left_alone() -> None:
    case = make((2, 6, 7, 8), 5, ("none", "none", 1), torch.float32, "nchw")
    y, grad_x, grad_weight = run(case)
    assert torch.equal(y[..., 1:-1, 1:-1], case.y[..., 1:-1, 1:-1])
    assert torch.equal(grad_x[..., 2:-2, 2:-2], case.grad_x[..., 2:-2, 2:-2])
    assert not grad_weight[..., 1:-1, 1:-1].any()


def test_what_is_not_needed() -> None:
    case = make((2, 6, 7, 8), 5, ("instance", "relu", 1), torch.float32, "nchw")
    _, grad_x, grad_weight = run(case)
    only = case.grad_x.clone()
    assert winograd.phase_border_gradients(case.grad, case.source, case.weight, only, False) is None
    assert torch.equal(only, grad_x)
    found = winograd.phase_border_gradients(case.grad, case.source, case.weight, None, True)
    assert found is not None
    assert torch.equal(found, grad_weight)


def test_the_number_of_threads_changes_no_bit() -> None:
    case = make((3, 64, 40, 64), 40, ("instance", "relu", 1), torch.float32, "nchw")
    before, digests = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            digests.add(hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in run(case))).hexdigest())
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5, 6, 3, 3)}, "the weight must be float32"),
        ({"weight": torch.zeros(5, 7, 5, 5)}, "the weight must be float32"),
        ({"y": torch.zeros(2, 20, 7, 8)}, "channels_last"),
        ({"grad": torch.zeros(2, 20, 7, 9).contiguous(memory_format=torch.channels_last)}, "channels_last"),
        ({"grad_x": torch.zeros(2, 6, 7, 7).contiguous(memory_format=torch.channels_last)}, "gradient of the input"),
    ],
)
def test_wrong_tensors(change: dict[str, Tensor], message: str) -> None:
    case = make((2, 6, 7, 8), 5, ("none", "none", 1), torch.float32, "nchw")._replace(**change)
    with pytest.raises(RuntimeError, match=message):
        run(case)


def test_a_line_of_one_pixel() -> None:
    case = make((2, 6, 1, 8), 5, ("none", "none", 1), torch.float32, "nchw")
    with pytest.raises(RuntimeError, match="two pixels a side"):
        run(case)

"""`functional.group_norm` against PyTorch's, in any number of dimensions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.layouts import lay_out
from munit_fast import functional as mf

SHAPES = {0: (3, 12), 1: (2, 12, 24), 2: (2, 12, 6, 7), 3: (2, 12, 3, 4, 7)}
LAYOUTS = ("contiguous", "channels_last", "window")
SPATIAL = pytest.mark.parametrize("spatial", SHAPES)
GROUPS = pytest.mark.parametrize("groups", [1, 3, 12])


def draw(spatial: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(SHAPES[spatial], dtype=torch.float64) * 1.5 + 0.5).to(dtype)


@SPATIAL
@GROUPS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(backend: str, spatial: int, groups: int, layout: str) -> None:
    if spatial == 0 and groups == 12:
        pytest.skip("the gradient of planes of one number is rounding in PyTorch, and zero here")
    values = draw(spatial)
    x, r = lay_out(values, layout).requires_grad_(), lay_out(values.flip(-1), "contiguous").requires_grad_()
    w, b = (torch.randn(12, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = mf.group_norm(x, groups, w, b, act="silu", residual=r, eps=1e-2, impl=backend)
    expected = F.silu(F.group_norm(x, groups, w, b, eps=1e-2)) + r
    torch.testing.assert_close(y, expected, check_stride=False)
    upstream = torch.randn_like(expected)
    found = torch.autograd.grad(y, (x, w, b, r), lay_out(upstream, layout))
    for got, want in zip(found, torch.autograd.grad(expected, (x, w, b, r), upstream), strict=True):
        torch.testing.assert_close(got, want, check_stride=False)


def test_planes_of_one_number(backend: str) -> None:
    """Where each is a group of its own, nothing is left of x."""
    x, b = draw(0).requires_grad_(), torch.randn(12, dtype=torch.float64)
    y = mf.group_norm(x, 12, None, b, impl=backend)
    assert torch.equal(y, b.expand(3, 12))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


@SPATIAL
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_layout_is_kept(backend: str, spatial: int, layout: str) -> None:
    x = lay_out(draw(spatial, torch.float32), layout).requires_grad_()
    y = mf.group_norm(x, 3, torch.ones(12), impl=backend)
    assert y.stride() == x.stride()
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.stride() == x.stride()


@SPATIAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(cpu: str, spatial: int, dtype: torch.dtype) -> None:
    x = draw(spatial, dtype)
    y = mf.group_norm(x, 3, act="gelu", impl=cpu)
    assert y.dtype == dtype
    expected = F.gelu(F.group_norm(x.double(), 3))
    torch.testing.assert_close(y.double(), expected, rtol=4e-3 if dtype == torch.bfloat16 else 6e-4, atol=1e-6)


def test_as_many_groups_as_channels_is_instance_norm(backend: str) -> None:
    x, w = draw(2), torch.randn(12, dtype=torch.float64)
    options = {"act": "tanh", "pad": 2, "pad_mode": "reflect", "impl": backend}
    torch.testing.assert_close(mf.group_norm(x, 12, w, **options), mf.instance_norm(x, w, **options))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_bits_do_not_depend_on_the_threads(layout: str) -> None:
    x = lay_out(torch.randn(3, 32, 40, 37), layout).requires_grad_()
    w = torch.randn(32, requires_grad=True)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            y = mf.group_norm(x, 8, w, act="silu")
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, w))))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_mean_that_is_far_from_zero(cpu: str) -> None:
    """Statistics as E[x²] - E[x]² would have no digit left; the planes of a group have means of their own."""
    x = torch.randn(2, 12, 9, 11, dtype=torch.float64) + 1e4 + 5 * torch.randn(2, 12, 1, 1, dtype=torch.float64)
    x = x.float()
    for layout in ("contiguous", "channels_last"):
        y = mf.group_norm(lay_out(x, layout), 3, impl=cpu)
        torch.testing.assert_close(y.double(), F.group_norm(x.double(), 3), rtol=1e-3, atol=1e-3, check_stride=False)


def test_in_front_of_a_convolution(cpu: str) -> None:
    x, w, b = torch.randn(1, 12, 20, 21), torch.rand(12), torch.randn(12)
    kernel = torch.randn(8, 12, 3, 3)
    options = {"weight": w, "bias": b, "act": "silu", "padding": 1, "impl": cpu}
    y = mf.norm_act_conv2d(x, kernel, norm="group", num_groups=4, **options)
    expected = F.conv2d(F.silu(F.group_norm(x.double(), 4, w.double(), b.double())), kernel.double(), padding=1)
    assert float((y.double() - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, "^num_groups must divide the channels of x, 12; got 5", {"num_groups": 5}),
        (ValueError, "^num_groups must be at least 1; got 0", {"num_groups": 0}),
        (TypeError, "^num_groups must be a whole number; got float", {"num_groups": 3.0}),
        (ValueError, r"^weight must have shape \[12\]", {"weight": torch.ones(3)}),
        (ValueError, r"^bias must have shape \[12\]", {"bias": torch.ones(2, 12)}),
        (ValueError, "^x must be .* got 6 dimensions", {"x": torch.ones(1, 12, 1, 2, 2, 2)}),
        (ValueError, "^x must not be empty", {"x": torch.ones(0, 12, 2)}),
        (ValueError, "^x must have more than one number a group", {"x": torch.ones(1, 12), "num_groups": 12}),
        (ValueError, "^pad must be 0 where x is not", {"x": torch.ones(2, 12, 3), "pad": 1}),
        (ValueError, "^eps must be", {"eps": -1e-5}),
        (TypeError, "^x must be floating-point", {"x": torch.ones(1, 12, 3).long()}),
    ],
)
def test_errors(error: type[Exception], match: str, options: dict[str, object]) -> None:
    given = {"x": draw(2), "num_groups": 3} | options
    with pytest.raises(error, match=match):
        mf.group_norm(given.pop("x"), given.pop("num_groups"), **given)


def test_groups_of_another_norm() -> None:
    x, kernel = torch.randn(1, 12, 5, 5), torch.randn(4, 12, 3, 3)
    with pytest.raises(ValueError, match="num_groups is of norm='group'"):
        mf.norm_act_conv2d(x, kernel, norm="instance", num_groups=3)
    with pytest.raises(ValueError, match="num_groups must divide"):
        mf.norm_act_conv2d(x, kernel, norm="group", num_groups=5)

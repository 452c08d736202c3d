"""The border of a phase convolution behind reflection padding: cases and oracle, the same for every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.tolerances import unit_roundoff
from munit_fast.ops import upsample_conv

# Of the small input [N, C, H, W], and O: the smallest that can be reflected, lines whose ends share pixels, lines of
# several tiles, and channels that fill no tile or more than one.
SHAPES = (
    ((1, 1, 2, 2), 1),
    ((2, 3, 2, 3), 2),
    ((2, 4, 3, 2), 3),
    ((1, 5, 3, 3), 2),
    ((2, 6, 4, 5), 3),
    ((1, 18, 2, 17), 4),
    ((1, 4, 17, 3), 17),
)
# For tiles of 32.
LARGE = (((1, 35, 2, 33), 4), ((1, 4, 33, 3), 35), ((2, 3, 17, 18), 3))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def phases(large: Tensor) -> Tensor:
    """[N, O, 2·H, 2·W] -> [N, 4·O, H, W], channel (2i + j)·O + o."""
    n, o, h, w = large.shape
    return large.view(n, o, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * o, h // 2, w // 2)


def lacking(a: Tensor, weight: Tensor) -> Tensor:
    """What reflecting the large image gives beyond replicating its border, as phases."""
    large = F.interpolate(a, scale_factor=2, mode="nearest")
    found = [F.conv2d(F.pad(large, (2, 2, 2, 2), mode=mode), weight) for mode in ("reflect", "replicate")]
    return phases(found[0] - found[1])


class BorderCase(NamedTuple):
    a: Tensor  # padded by replication
    weight: Tensor
    y: Tensor
    grad: Tensor
    grad_a: Tensor


def make_case(
    shape: tuple[int, int, int, int],
    out: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    channels_last_weight: bool = False,
    place: Callable[[Tensor], Tensor] = lambda t: t,
) -> BorderCase:
    """A case with random numbers; `place` gives a copy of each tensor."""
    n, c, h, w = shape
    x = torch.randn(shape) + 0.5
    y, grad, grad_a = torch.randn(n, 4 * out, h, w), torch.randn(n, 4 * out, h, w), torch.randn(n, c, h + 2, w + 2)
    images = [t.to(dtype) for t in (F.pad(x, (1, 1, 1, 1), mode="replicate"), y, grad, grad_a)]
    a, y, grad, grad_a = (place(t.contiguous(memory_format=torch.channels_last)) for t in images)
    weight = torch.randn(out, c, 5, 5).to(weight_dtype)
    if channels_last_weight:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return BorderCase(a, place(weight), y, grad, grad_a)


def fold(grad_a: Tensor) -> Tensor:
    """The gradient of an input from that of the input padded by replication."""
    n, c, h, w = grad_a.shape
    x = torch.zeros(n, c, h - 2, w - 2, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(F.pad(x, (1, 1, 1, 1), mode="replicate"), x, grad_a.double())
    return found


def _close(name: str, found: Tensor, wanted: Tensor, terms: int, rounded: torch.dtype) -> None:
    """rounded: what the factors of the products are rounded to."""
    bound = (12 + math.sqrt(terms)) * unit_roundoff(torch.float32)
    for dtype in {found.dtype, rounded} - {torch.float32, torch.float64}:
        bound += 4 * unit_roundoff(dtype)
    assert found.isfinite().all(), name
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error <= bound, f"{name}: {error:.2e} > {bound:.2e}"


def check(backend: ModuleType, case: BorderCase, rounds_factors: bool) -> None:
    """A backend's results and gradients against reflecting the large image in float64.

    Args:
        backend: a module of `munit_fast.ops.backends`.
        case: its y and grad_a are changed.
        rounds_factors: whether it rounds the factors of its products to the tensors' dtype.
    """
    a, weight, y, grad, grad_a = case
    (n, c, h, w), o = a.shape, weight.shape[0]
    x = a[:, :, 1:-1, 1:-1].to(torch.float64, copy=True).contiguous().requires_grad_()
    kernel = weight.to(torch.float64, copy=True).contiguous().requires_grad_()
    change = lacking(x, kernel)
    of_x, of_kernel = torch.autograd.grad(change, (x, kernel), grad.double().contiguous())
    want_y, want_x, inner = y.double() + change.detach(), fold(grad_a) + of_x, grad_a[..., 3:-3, 3:-3].clone()
    edges = upsample_conv.Edges.of_padded(a.double())
    _, of_edges = upsample_conv.correct_reflect_border_backward(grad.double(), edges, weight.double(), True, False)
    want_a = grad_a.to(torch.float64, copy=True)
    of_edges.add_to_padded(want_a)

    grad_weight = torch.empty_like(weight)
    backend.phase_border(y, a, weight)
    backend.phase_border_backward(grad, a, weight, grad_a, grad_weight)
    rounded = a.dtype if rounds_factors else torch.float32
    _close("y", y, want_y, 10 * c, rounded)
    _close("grad_a", grad_a, want_a, 20 * o, rounded)
    assert ((fold(grad_a) - want_x).norm() / want_x.norm()) <= 20 * unit_roundoff(a.dtype) + 1e-5
    _close("grad_weight", grad_weight, of_kernel, 2 * n * (h + w), rounded)
    assert torch.equal(grad_a[..., 3:-3, 3:-3], inner) and not grad_weight[:, :, 1:-1, 1:-1].any()


def check_single_gradients(backend: ModuleType, case: BorderCase) -> None:
    """Each gradient alone has the bits that it has beside the other."""
    a, weight, _, grad, grad_a = case
    both, alone = grad_a.clone(), grad_a.clone()
    of_weight, of_weight_alone = torch.empty_like(weight), torch.empty_like(weight)
    backend.phase_border_backward(grad, a, weight, both, of_weight)
    backend.phase_border_backward(grad, a, weight, alone, None)
    backend.phase_border_backward(grad, a, weight, None, of_weight_alone)
    assert torch.equal(both, alone) and torch.equal(of_weight, of_weight_alone)


def check_not_a_number(backend: ModuleType, case: BorderCase) -> None:
    """What is not a number inside the image stays out of its border, and what is on the border stays in its sample."""
    case.a[0, 0, 4, 4] = math.nan
    case.grad[0, 0, 3, 3] = math.nan
    y, grad_a, grad_weight = case.y.clone(), case.grad_a.clone(), torch.empty_like(case.weight)
    backend.phase_border(y, case.a, case.weight)
    backend.phase_border_backward(case.grad, case.a, case.weight, grad_a, grad_weight)
    assert y.isfinite().all() and grad_a.isfinite().all() and grad_weight.isfinite().all()
    case.a[0, 0, 1, 4] = math.nan
    backend.phase_border(y, case.a, case.weight)
    assert y[0].isnan().any() and y[1].isfinite().all()

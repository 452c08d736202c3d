"""The 3×3 kernels of the four phases, from a 5×5 kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from munit_fast.ops.upsample_conv import phase_weight

TAPS = (((0, 1), (2, 3), (4,)), ((0,), (1, 2), (3, 4)))  # that read row a of the small image, by phase


def expected(weight: Tensor) -> Tensor:
    o, c = weight.shape[:2]
    found = weight.new_zeros(2, 2, o, c, 3, 3)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for a, rows in enumerate(TAPS[i]):
            for b, columns in enumerate(TAPS[j]):
                for y in rows:
                    for x in columns:
                        found[i, j, :, :, a, b] += weight[:, :, y, x]
    return found.view(4 * o, c, 3, 3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (33, 20)])
def test_taps_that_meet_the_same_pixel_are_summed(shape: tuple[int, int], layout: torch.memory_format) -> None:
    for dtype in (torch.float64, torch.float32):
        weight = torch.randn(*shape, 5, 5, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
        got, want = phase_weight(weight), expected(weight)
        assert torch.equal(got, want)
        upstream = torch.randn_like(want)
        (of_got,), (of_want,) = (torch.autograd.grad(y, weight, upstream) for y in (got, want))
        assert (of_got - of_want).abs().max() <= 2 * torch.finfo(dtype).eps * of_want.abs().max()  # in another order


def test_second_derivatives() -> None:
    weight = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(phase_weight, weight, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(phase_weight, weight)


VIEWS = ("view", "unbind", "slice")


class Launches(TorchDispatchMode):
    """Keeps the operators that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::") not in VIEWS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_few_operators_and_none_of_the_host() -> None:
    """On a GPU each is a launch; a constant would have to be copied there."""
    weight = torch.empty(8, 4, 5, 5, device="meta", memory_format=torch.channels_last, requires_grad=True)
    with Launches() as forward:
        y = phase_weight(weight)
    upstream = torch.empty_like(y)
    with Launches() as backward:
        torch.autograd.grad(y, weight, upstream)
    assert len(forward.found) <= 2 and len(backward.found) <= 4, (forward.found, backward.found)

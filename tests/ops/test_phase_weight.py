"""The 3×3 kernels of the four phases, from a 5×5 kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from munit_fast.ops.upsample_conv import phase_taps, phase_weight

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
        assert (got - want).abs().max() <= 2 * torch.finfo(dtype).eps * want.abs().max()  # in another order
        assert torch.equal(got, phase_weight(weight, phase_taps(weight.device, dtype)))
        upstream = torch.randn_like(want)
        (of_got,), (of_want,) = (torch.autograd.grad(y, weight, upstream) for y in (got, want))
        assert (of_got - of_want).abs().max() <= 2 * torch.finfo(dtype).eps * of_want.abs().max()


def test_numbers_are_those_of_a_product_with_the_taps() -> None:
    """To the bit: runs go on as they began. The matrix is what `TAPS` says, and nothing keeps it."""
    lines = torch.zeros(2, 3, 5, dtype=torch.float64)
    for i, groups in enumerate(TAPS):
        for a, group in enumerate(groups):
            lines[i, a, list(group)] = 1
    taps = torch.einsum("iak,jbl->klijab", lines, lines).reshape(25, 36)
    assert torch.equal(phase_taps(torch.device("cpu"), torch.float64), taps)
    weight = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    phases = (weight.reshape(24, 25) @ taps).view(6, 4, 2, 2, 3, 3).permute(2, 3, 0, 1, 4, 5)
    assert torch.equal(phase_weight(weight), phases.reshape(24, 4, 3, 3))
    assert phase_taps(torch.device("cpu"), torch.float64) is not phase_taps(torch.device("cpu"), torch.float64)


def test_second_derivatives() -> None:
    weight = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(phase_weight, weight, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(phase_weight, weight)


VIEWS = ("view", "slice", "unsqueeze", "permute", "t", "_unsafe_view", "detach", "transpose")


class Launches(TorchDispatchMode):
    """Keeps the operators that are no views, all of which must be about tensors without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::") not in VIEWS:
            self.found.append(str(func))
        result = func(*args, **(kwargs or {}))
        assert result.device.type == "meta"
        return result


def test_few_operators_and_none_of_the_host() -> None:
    """On a GPU each is a launch; a constant would have to be copied there."""
    weight = torch.empty(8, 4, 5, 5, device="meta", memory_format=torch.channels_last, requires_grad=True)
    with Launches() as of_taps:
        taps = phase_taps(weight.device, weight.dtype)
    with Launches() as forward:
        y = phase_weight(weight, taps)
    upstream = torch.empty_like(y)
    with Launches() as backward:
        torch.autograd.grad(y, weight, upstream)
    assert len(of_taps.found) <= 9 and len(forward.found) <= 3 and len(backward.found) <= 4, backward.found

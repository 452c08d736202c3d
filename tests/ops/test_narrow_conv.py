"""Convolutions to and from very few channels as a convolution of one kernel column, and the sum of the columns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.backends import BACKENDS
from munit_fast.ops import narrow_conv, native

ADD_COLUMNS = torch.ops.munit_fast.add_columns.default


def sum_of_columns(columns: Tensor, bias: Tensor | None, kernel: int) -> Tensor:
    """In float64, place by place."""
    n, c, h, w = columns.shape
    parts = columns.double().view(n, kernel, c // kernel, h, w)
    width = w - kernel + 1
    y = sum(parts[:, j, :, :, j : j + width] for j in range(kernel))
    assert isinstance(y, Tensor)
    return y if bias is None else y + bias.double().view(1, -1, 1, 1)


@pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [5, 7])
def test_the_sum_of_the_columns(backend: str, channels: int, kernel: int, biased: bool) -> None:
    bias = torch.randn(channels) if biased else None
    for n, h, width in ((1, 1, 1), (2, 3, 2), (1, 2, 3), (3, 5, 4), (1, 70, 65)):
        columns = torch.randn(n, kernel * channels, h, width + kernel - 1).contiguous(memory_format=torch.channels_last)
        y = ADD_COLUMNS(columns, bias, kernel)
        torch.testing.assert_close(y.double(), sum_of_columns(columns, bias, kernel), rtol=1e-5, atol=1e-5)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ADD_COLUMNS(columns.contiguous(), bias, kernel), y, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_nothing_outside_is_read_or_written(backend: str, channels: int) -> None:
    n, h, width, kernel = 2, 3, 4, 5

    def inside(*size: int) -> tuple[Tensor, Tensor]:
        room = torch.full((math.prod(size) + 32,), math.nan)
        a, c, b, d = size
        strides = (c * b * d, 1, d * c, c)
        return room, room.as_strided((a, c, b, d), strides, 16)

    _, columns = inside(n, kernel * channels, h, width + kernel - 1)
    columns.copy_(torch.randn(columns.shape))
    result_room, y = inside(n, channels, h, width)
    torch.ops.munit_fast_cpu.add_columns(columns, None, kernel, y)
    assert not y.isnan().any()
    assert result_room[:16].isnan().all() and result_room[-16:].isnan().all()


def test_without_the_compiled_part(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, bias = torch.randn(2, 15, 4, 9), torch.randn(3)
    monkeypatch.setattr(native, "module", None)
    y = ADD_COLUMNS(columns, bias, 5)
    torch.testing.assert_close(y.double(), sum_of_columns(columns, bias, 5), rtol=1e-5, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_opcheck() -> None:
    for layout in (torch.channels_last, torch.contiguous_format):
        columns = torch.randn(2, 15, 4, 9).contiguous(memory_format=layout)
        utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(ADD_COLUMNS, (columns, torch.randn(3), 5), test_utils=utils)


@pytest.mark.skipif(native.module is None, reason="the compiled part is missing")
def test_what_the_kernel_refuses() -> None:
    columns = torch.randn(1, 15, 4, 9).contiguous(memory_format=torch.channels_last)
    y = torch.empty(1, 3, 4, 5, memory_format=torch.channels_last)
    add = torch.ops.munit_fast_cpu.add_columns
    add(columns, None, 5, y)
    for wrong in (
        (columns, None, 3, y),
        (columns.double(), None, 5, y),
        (columns.contiguous(), None, 5, y),
        (columns, torch.randn(2), 5, y),
        (columns, None, 5, y[:, :, 1:]),
    ):
        with pytest.raises(RuntimeError):
            add(*wrong)


def test_the_convolution_and_its_input_gradient() -> None:
    a, weight, bias = torch.randn(2, 6, 11, 12), torch.randn(3, 6, 7, 7), torch.randn(3)
    a = a.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = F.conv2d(a.double(), weight.double(), bias.double())
    assert narrow_conv.serves_forward(a, weight, 1)
    torch.testing.assert_close(narrow_conv.forward(a.detach(), weight, bias).double(), expected, rtol=1e-4, atol=1e-4)
    grad = torch.randn(2, 6, 5, 6).contiguous(memory_format=torch.channels_last)
    back = torch.randn(6, 3, 7, 7)
    assert narrow_conv.serves_backward(grad, back, 1)
    expected = F.conv_transpose2d(grad.double(), back.double())
    torch.testing.assert_close(narrow_conv.backward(grad, back).double(), expected, rtol=1e-4, atol=1e-4)

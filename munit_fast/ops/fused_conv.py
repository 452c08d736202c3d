"""An epilogue and the convolution that reads it as one node of the graph: the padded activation is rebuilt, not kept.

Every convolution here reads an input that is padded already, channels_last, and gives channels_last. A convolution is
described by `Conv`; "phase" is the upsampling one of `munit_fast.ops.upsample_conv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from munit_fast.ops import narrow_conv, upsample_conv
from munit_fast.ops.autograd import once_differentiable
from munit_fast.ops.epilogue import gradients
from munit_fast.ops.spec import EpilogueInputs, EpilogueSpec


class Conv(NamedTuple):
    """A convolution.

    Attributes:
        weight: [O, C, k, k]; of a phase convolution [4·O, C, 3, 3].
        bias: [O], or [4·O]; or None.
        stride: of both axes.
        border_weight: the 5×5 kernel [O, C, 5, 5] of a phase convolution behind reflection padding, whose border needs
            a correction; else None.
        unused_bias: a bias that has no influence and is not added; its gradient is exactly zero.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: int = 1
    border_weight: Tensor | None = None
    unused_bias: Tensor | None = None


class EpilogueArgs(NamedTuple):
    """What an epilogue is called with besides x and a residual; the tensors as in `EpilogueInputs`."""

    weight: Tensor | None
    bias: Tensor | None
    slopes: Tensor | None
    spec: EpilogueSpec
    impl: str = "auto"


def _forward(a: Tensor, weight: Tensor, bias: Tensor | None, border_weight: Tensor | None, stride: int) -> Tensor:
    if border_weight is None and narrow_conv.serves_forward(a, weight, stride):
        return narrow_conv.forward(a, weight, bias)
    y = torch.conv2d(a, weight, bias, stride).contiguous(memory_format=torch.channels_last)
    if border_weight is not None:
        upsample_conv.correct_reflect_border(y, a, border_weight)
    return y


def _backward(
    grad: Tensor,
    a: Tensor,
    weight: Tensor,
    border_weight: Tensor | None,
    stride: int,
    need: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of a, weight, bias and border_weight."""
    need_a, need_weight, need_bias, need_border = need
    grad = grad.contiguous(memory_format=torch.channels_last)
    narrow = need_a and border_weight is None and narrow_conv.serves_backward(grad, weight, stride)
    grad_a = grad_weight = grad_bias = grad_border = None
    if narrow:
        grad_a = narrow_conv.backward(grad, weight)
    if (need_a and not narrow) or need_weight or need_bias:
        given, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            a,
            weight,
            [weight.shape[0]],
            (stride, stride),
            (0, 0),
            (1, 1),
            False,
            (0, 0),
            1,
            (need_a and not narrow, need_weight, need_bias),
        )
        grad_a = grad_a if narrow else given
    if border_weight is not None:
        grad_border = upsample_conv.correct_reflect_border_backward(grad, a, border_weight, grad_a, need_border)
    return grad_a, grad_weight, grad_bias, grad_border


def _zero_gradient(unused_bias: Tensor | None, need: bool) -> Tensor | None:
    return torch.zeros_like(unused_bias) if need and unused_bias is not None else None


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        border_weight: Tensor | None,
        unused_bias: Tensor | None,
        stride: int,
    ) -> Tensor:
        ctx.save_for_backward(a, weight, border_weight, unused_bias)
        ctx.stride = stride
        return _forward(a, weight, bias, border_weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Sequence[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
        a, weight, border_weight, unused_bias = saved
        need = ctx.needs_input_grad
        return (
            *_backward(grad, a, weight, border_weight, ctx.stride, need[:4]),
            _zero_gradient(unused_bias, need[4]),
            None,
        )


class _EpilogueConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        slopes: Tensor | None,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        border_weight: Tensor | None,
        unused_bias: Tensor | None,
        stride: int,
        *flags: Any,
    ) -> Tensor:
        a, stats = torch.ops.munit_fast.epilogue(z, weight, bias, None, slopes, *flags)
        ctx.save_for_backward(z, stats, weight, bias, slopes, conv_weight, border_weight, unused_bias)
        ctx.stride, ctx.flags = stride, flags
        return _forward(a, conv_weight, conv_bias, border_weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Sequence[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
        z, stats, weight, bias, slopes, conv_weight, border_weight, unused_bias = saved
        need_z, need_weight, need_bias, need_slopes, *need_conv, need_unused = ctx.needs_input_grad[:8]
        need_a = need_z or need_weight or need_bias or need_slopes
        a = torch.ops.munit_fast.epilogue_again(z, stats, weight, bias, None, slopes, *ctx.flags)
        grad_a, *grads_conv = _backward(grad, a, conv_weight, border_weight, ctx.stride, (need_a, *need_conv))
        del a
        grads: tuple[Tensor | None, ...] = (None,) * 5
        if grad_a is not None:
            need = (need_z, need_weight, need_bias, False, need_slopes)
            inputs = EpilogueInputs(z, weight, bias, None, slopes)
            grads = gradients(grad_a, inputs, stats, ctx.flags, need)
        nothing = (None,) * (1 + len(ctx.flags))
        return (*grads[:3], grads[4], *grads_conv, _zero_gradient(unused_bias, need_unused), *nothing)


class _ResidualBlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, conv_1: Tensor, conv_2: Tensor, *rest: Any) -> Tensor:
        weight_1, bias_1, weight_2, bias_2, slopes, unused_bias_1, unused_bias_2, pad, flags_1, flags_2 = rest
        ops = torch.ops.munit_fast
        z_1 = _forward(h, conv_1, None, None, 1)
        a, stats_1 = ops.epilogue(z_1, weight_1, bias_1, None, slopes, *flags_1)
        z_2 = _forward(a, conv_2, None, None, 1)
        y, stats_2 = ops.epilogue(z_2, weight_2, bias_2, _inner(h, pad), None, *flags_2)
        convs = (h, conv_1, conv_2, unused_bias_1, unused_bias_2)
        ctx.save_for_backward(*convs, weight_1, bias_1, weight_2, bias_2, slopes, z_1, stats_1, z_2, stats_2)
        ctx.pad, ctx.flags = pad, (flags_1, flags_2)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: Sequence[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
        h, conv_1, conv_2, unused_bias_1, unused_bias_2, *rest = saved
        weight_1, bias_1, weight_2, bias_2, slopes, z_1, stats_1, z_2, stats_2 = rest
        flags_1, flags_2 = ctx.flags
        need_h, need_conv_1, need_conv_2, need_w1, need_b1, need_w2, need_b2, need_slopes = ctx.needs_input_grad[:8]
        need = (True, need_w2, need_b2, need_h, False)
        inputs = EpilogueInputs(z_2, weight_2, bias_2, None, None)
        grad_z, grad_w2, grad_b2, grad_residual, _ = gradients(grad, inputs, stats_2, flags_2, need)
        assert grad_z is not None
        a = torch.ops.munit_fast.epilogue_again(z_1, stats_1, weight_1, bias_1, None, slopes, *flags_1)
        grad_a, grad_conv_2, _, _ = _backward(grad_z, a, conv_2, None, 1, (True, need_conv_2, False, False))
        del a, grad_z
        assert grad_a is not None
        need = (True, need_w1, need_b1, False, need_slopes)
        inputs = EpilogueInputs(z_1, weight_1, bias_1, None, slopes)
        grad_z, grad_w1, grad_b1, _, grad_slopes = gradients(grad_a, inputs, stats_1, flags_1, need)
        del grad_a
        assert grad_z is not None
        grad_h, grad_conv_1, _, _ = _backward(grad_z, h, conv_1, None, 1, (need_h, need_conv_1, False, False))
        if grad_h is not None and grad_residual is not None:
            _inner(grad_h, ctx.pad).add_(grad_residual)
        return (
            grad_h,
            grad_conv_1,
            grad_conv_2,
            grad_w1,
            grad_b1,
            grad_w2,
            grad_b2,
            grad_slopes,
            _zero_gradient(unused_bias_1, ctx.needs_input_grad[8]),
            _zero_gradient(unused_bias_2, ctx.needs_input_grad[9]),
            None,
            None,
            None,
        )


def _inner(x: Tensor, pad: int) -> Tensor:
    return x[:, :, pad:-pad, pad:-pad] if pad else x


def convolution(a: Tensor, conv: Conv) -> Tensor:
    """A convolution without padding of its own.

    Args:
        a: [N, C, H, W], channels_last, padded already.
        conv: the convolution.

    Returns:
        [N, O, (H - k) // stride + 1, …], channels_last.
    """
    return _ConvFunction.apply(a, conv.weight, conv.bias, conv.border_weight, conv.unused_bias, conv.stride)


def epilogue_conv(z: Tensor, epilogue: EpilogueArgs, conv: Conv) -> Tensor:
    """conv(epilogue(z)); keeps z and two numbers a plane for the backward.

    Args:
        z: [N, C, H, W], channels_last: the output of the convolution before.
        epilogue: what stands between; its padding is that of `conv`.
        conv: the convolution.

    Returns:
        As `convolution`.
    """
    weight, bias, slopes, spec, impl = epilogue
    of_conv = (conv.weight, conv.bias, conv.border_weight, conv.unused_bias, conv.stride)
    return _EpilogueConvFunction.apply(z, weight, bias, slopes, *of_conv, *spec, impl)


def residual_block(
    h: Tensor, conv_1: Conv, first: EpilogueArgs, conv_2: Conv, second: EpilogueArgs, pad: int
) -> Tensor:
    """second(conv_2(first(conv_1(h)))) with the unpadded h as the residual of `second`.

    Keeps h and the two convolutions' outputs for the backward.

    Args:
        h: [N, C, H + 2·pad, W + 2·pad], channels_last, padded already.
        conv_1: 3×3, C to C channels, without a bias that is added.
        first: what follows it, with the padding of `conv_2`.
        conv_2: like `conv_1`.
        second: what follows it; its padding is that of the result.
        pad: pixels of h's padding.

    Returns:
        [N, C, H + 2·pad of `second`, …], channels_last.
    """
    return _ResidualBlockFunction.apply(
        h,
        conv_1.weight,
        conv_2.weight,
        first.weight,
        first.bias,
        second.weight,
        second.bias,
        first.slopes,
        conv_1.unused_bias,
        conv_2.unused_bias,
        pad,
        (*first.spec, first.impl),
        (*second.spec, second.impl),
    )

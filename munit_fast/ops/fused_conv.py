"""An epilogue and the convolution that reads it as one node of the graph: the padded activation is not kept.

A convolution is described by `Conv`; "phase" is the upsampling one of `munit_fast.ops.upsample_conv`. Tensors are
channels_last. Directly (by PyTorch's convolution) it reads an input that is padded already, and the backward rebuilds
it; by one of Winograd's (`munit_fast.ops.winograd`) it pads while it reads, and neither pass writes its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from munit_fast.ops import formulas, narrow_conv, phase_border, upsample_conv, winograd
from munit_fast.ops.autograd import differentiable, needs_gradient
from munit_fast.ops.backends import cpu
from munit_fast.ops.epilogue import calls_cpu, empty_stats, gradients, is_real_cpu, run
from munit_fast.ops.memory import reused
from munit_fast.ops.spec import EpilogueInputs, EpilogueSpec
from munit_fast.ops.winograd import Source


class Conv(NamedTuple):
    """A convolution.

    Attributes:
        weight: [O, C, k, k]; of a phase convolution [4·O, C, 3, 3]. Float32 where there is a plan.
        bias: [O], or [4·O]; or None.
        stride: of both axes.
        border_weight: the 5×5 kernel [O, C, 5, 5] of a phase convolution behind reflection padding, whose border needs
            a correction; else None. Float32, or where there is no plan in the dtype of `weight`.
        unused_bias: a bias that has no influence and is not added; its gradient is exactly zero.
        plan: of `winograd.PLANS`, for the result and the input's gradient; None: a direct convolution.
        pad: pixels of padding that the convolution adds; always 0 for a direct one, whose input is padded already.
        pad_mode: its mode.
        transformed: the weight as the plan takes it, if it was transformed before.
        weight_plan: the plan of the weight's gradient, which pays for fewer pixels than `plan` does; None: as `plan`.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: int = 1
    border_weight: Tensor | None = None
    unused_bias: Tensor | None = None
    plan: str | None = None
    pad: int = 0
    pad_mode: str = "zero"
    transformed: Tensor | None = None
    weight_plan: str | None = None


class EpilogueArgs(NamedTuple):
    """What an epilogue is called with besides x and a residual; the tensors as in `EpilogueInputs`."""

    weight: Tensor | None
    bias: Tensor | None
    slopes: Tensor | None
    spec: EpilogueSpec
    impl: str = "auto"


class ConvOutput(NamedTuple):
    """The result of a convolution.

    Attributes:
        z: [N, C, H, W], channels_last.
        stats: its statistics for the norm that follows, where the convolution gave them; else None.
    """

    z: Tensor
    stats: Tensor | None = None


def _with_stats(source: Source) -> Source:
    x, spec = source.x, source.spec
    if source.stats is not None:
        return source
    known = empty_stats(x, spec) if spec.norm == "none" else winograd.statistics(x, spec.norm, spec.groups)
    return source._replace(stats=known)


def _activation(source: Source, impl: str) -> tuple[Tensor, Tensor | None]:
    """What the source's epilogue gives, padded, and the statistics of x: for a direct convolution."""
    x, stats, weight, bias, slopes, spec = source
    if source.is_plain and spec.pad == 0:
        return x, None
    flags = (*spec, impl)
    if not calls_cpu(x, impl):
        return run(x, weight, bias, None, slopes, flags, stats)
    has_stats = stats is not None
    stats = empty_stats(x, spec) if stats is None else stats
    y = reused(spec.output_size(x), x, once=True)
    cpu.epilogue_forward(spec, EpilogueInputs(x, weight, bias, None, slopes), y, stats, has_stats)
    return y, stats


def _edges(source: Source, impl: str) -> upsample_conv.Edges:
    """The outermost pixels of what the source's epilogue gives, for the border of a phase convolution."""
    x, spec = source.x, source.spec
    depth = 2 // spec.block  # rows of x that make two of the activation

    def activate(part: Tensor) -> Tensor:
        part = part.contiguous(memory_format=torch.channels_last)
        return _activation(source._replace(x=part, spec=spec._replace(pad=0, pad_mode="zero")), impl)[0]

    rows = activate(torch.cat([x[:, :, :depth], x[:, :, -depth:]], 2))
    columns = activate(torch.cat([x[..., :depth], x[..., -depth:]], 3))
    return upsample_conv.Edges.of_inner(rows, columns)


def _convolve(
    source: Source, conv: Conv, impl: str, y_norm: str, reuse: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The result, its statistics where they are at hand, and the statistics of the source."""
    border = conv.border_weight
    if conv.plan is not None:
        source = _with_stats(source)
        wanted = "none" if border is not None else y_norm
        y, y_stats = winograd.conv(source, conv.weight, conv.transformed, conv.bias, conv.plan, wanted, reuse)
        if border is not None and is_real_cpu(y):
            winograd.phase_border(source, border, y)
        elif border is not None:
            y = _with_reflect_border(y, _edges(source, impl), border.to(y.dtype))
        return y, y_stats, source.stats
    a, stats = _activation(source, impl)
    if border is None and narrow_conv.serves_forward(a, conv.weight, conv.stride):
        return narrow_conv.forward(a, conv.weight, conv.bias), None, stats
    y = torch.conv2d(a, conv.weight, conv.bias, conv.stride).contiguous(memory_format=torch.channels_last)
    if border is not None and _on_device(y):
        phase_border.phase_border(y, a, border, impl)
    elif border is not None:
        y = _with_reflect_border(y, upsample_conv.Edges.of_padded(a), border.to(y.dtype))
    return y, None, stats


def _on_device(x: Tensor) -> bool:
    """Whether the border of a phase convolution is an operator: one kernel, where formulas would be twenty launches."""
    return x.device.type != "cpu"


def _with_reflect_border(y: Tensor, edges: upsample_conv.Edges, border_weight: Tensor) -> Tensor:
    """`correct_reflect_border`: y changed in place, or in a compiled program a new tensor."""
    if not torch.compiler.is_compiling():
        upsample_conv.correct_reflect_border(y, edges, border_weight)
        return y
    # What is changed in place through views becomes a view itself, and no view in channels_last can be kept for the
    # backward where sizes are symbolic (inductor of torch 2.13).
    change = torch.zeros_like(y)
    upsample_conv.correct_reflect_border(change, edges, border_weight)
    return y + change


_FEW_PIXELS = 4096  # whose plain sums have an error of less than 1e-6


class _Gradients(NamedTuple):
    """Of what `_convolve` takes: the activation, before its padding where there is a plan, and the convolution's."""

    a: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    border_weight: Tensor | None


def _backward(
    grad: Tensor, source: Source, conv: Conv, impl: str, need: Sequence[bool], add: Tensor | None = None
) -> _Gradients:
    """The gradients, those that `need` asks for (in their order); `add` is added to the first one."""
    need_a, need_weight, need_bias, need_border = need
    grad = grad.contiguous(memory_format=torch.channels_last)
    grad_weight = grad_bias = None
    if need_weight and (weight_plan := conv.weight_plan or conv.plan) is not None:
        grad_weight = winograd.weight_gradient(grad, source, conv.weight, weight_plan)
    if conv.plan is None:
        return _backward_direct(grad, source, conv, impl, need, add, grad_weight)
    if need_bias:
        grad_bias = _bias_gradient(grad, conv)
    border = conv.border_weight
    grad_a = grad_border = None
    if need_a:
        grad_a = winograd.input_gradient(grad, conv.weight, source, conv.plan, add)
    if border is not None and is_real_cpu(grad):
        grad_border = winograd.phase_border_gradients(grad, source, border, grad_a, need_border)
    elif border is not None:
        grad_border, of_edges = upsample_conv.correct_reflect_border_backward(
            grad, _edges(source, impl), border.to(grad.dtype), need_a, need_border
        )
        if grad_a is not None and of_edges is not None:
            of_edges.add_to_inner(grad_a)
        grad_border = None if grad_border is None else grad_border.to(border.dtype)
    return _Gradients(grad_a, grad_weight, grad_bias, grad_border)


def _bias_gradient(grad: Tensor, conv: Conv) -> Tensor | None:
    if conv.bias is None:
        return None
    pixels = grad.numel() // grad.shape[1]
    on_cpu = grad.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and 0 < pixels <= _FEW_PIXELS and grad.dtype == conv.bias.dtype:
        # As a matrix product: on small maps 0.01 ms, where torch's sum over three dimensions takes 0.07.
        return torch.mv(grad.permute(0, 2, 3, 1).reshape(pixels, -1).t(), grad.new_ones(pixels))
    return grad.sum((0, 2, 3), dtype=conv.bias.dtype)


def _backward_direct(
    grad: Tensor,
    source: Source,
    conv: Conv,
    impl: str,
    need: Sequence[bool],
    add: Tensor | None,
    grad_weight: Tensor | None,
) -> _Gradients:
    """As `_backward`, given the gradient of the weight where that has a plan."""
    need_a, need_weight, need_bias, need_border = need
    need_weight = need_weight and grad_weight is None
    weight, stride, border = conv.weight, conv.stride, conv.border_weight
    # PyTorch reads of the activation no more than its size, where the weight needs no gradient.
    read = need_weight or border is not None
    a = _activation(source, impl)[0] if read else grad.new_empty(()).expand(source.spec.output_size(source.x))
    narrow = need_a and border is None and narrow_conv.serves_backward(grad, weight, stride)
    grad_a = narrow_conv.backward(grad, weight) if narrow else None
    grad_bias = grad_border = None
    if need_weight and narrow_conv.serves_weight_gradient(a, weight, stride):
        grad_weight, need_weight = narrow_conv.weight_gradient(grad, a, weight, stride), False
    if need_bias and not need_weight:  # oneDNN would compute the weight's gradient for it
        grad_bias, need_bias = _bias_gradient(grad, conv), False
    need_direct = (need_a and not narrow, need_weight, need_bias)
    if any(need_direct):
        found = torch.ops.aten.convolution_backward.default(
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
            need_direct,
        )
        known = (grad_a, grad_weight, grad_bias)
        grad_a, grad_weight, grad_bias = (new if needed else old for new, needed, old in zip(found, need_direct, known))
    if border is not None and _on_device(grad):
        grad_a = None if grad_a is None else grad_a.contiguous(memory_format=torch.channels_last)
        if need_a or need_border:
            grad_border = phase_border.phase_border_backward(grad, a, border, grad_a, need_border, impl)
    elif border is not None:
        grad_border, of_edges = upsample_conv.correct_reflect_border_backward(
            grad, upsample_conv.Edges.of_padded(a), border.to(grad.dtype), need_a, need_border
        )
        if grad_a is not None and of_edges is not None:
            of_edges.add_to_padded(grad_a)
        grad_border = None if grad_border is None else grad_border.to(border.dtype)
    if grad_a is not None and add is not None:
        _inner(grad_a, (grad_a.shape[2] - add.shape[2]) // 2).add_(add)
    return _Gradients(grad_a, grad_weight, grad_bias, grad_border)


def _zero_gradient(unused_bias: Tensor | None, need: bool) -> Tensor | None:
    return torch.zeros_like(unused_bias) if need and unused_bias is not None else None


# How a convolution crosses autograd: its tensors that may need gradients, then the rest.
def _tensors(conv: Conv) -> tuple[Tensor | None, ...]:
    return conv.weight, conv.bias, conv.border_weight, conv.unused_bias


def _rest(conv: Conv) -> tuple[Any, ...]:
    return conv.stride, conv.plan, conv.pad, conv.pad_mode, conv.weight_plan, conv.transformed


def _conv_of(tensors: Sequence[Any], rest: Sequence[Any]) -> Conv:
    weight, bias, border_weight, unused_bias = tensors
    stride, plan, pad, pad_mode, weight_plan, transformed = rest
    return Conv(weight, bias, stride, border_weight, unused_bias, plan, pad, pad_mode, transformed, weight_plan)


def _padding(conv: Conv) -> EpilogueSpec:
    """That of a convolution of x itself."""
    # With literal numbers: those of a global would be variables of a compiled program.
    return _padded(EpilogueSpec("none", 0.0, "none", 0.0, 1, 0, "zero", 1), conv)


def _padded(spec: EpilogueSpec, conv: Conv) -> EpilogueSpec:
    """The epilogue of a convolution's source: where there is a plan, the padding is the convolution's."""
    return spec if conv.plan is None else spec._replace(pad=conv.pad, pad_mode=conv.pad_mode)


def _conv_formula(ctx: Any, saved: Sequence[Any]) -> tuple[Tensor, Sequence[Tensor | None]]:
    a, *tensors = saved
    return formulas.convolve(a, _conv_of(tensors, ctx.rest)), (a, *tensors)


def _epilogue_conv_formula(ctx: Any, saved: Sequence[Any]) -> tuple[Tensor, Sequence[Tensor | None]]:
    z, _, weight, bias, slopes, *tensors = saved
    a = formulas.epilogue(z, weight, bias, None, slopes, EpilogueSpec._make(ctx.flags[:-1]))
    return formulas.convolve(a, _conv_of(tensors, ctx.rest)), (z, None, weight, bias, slopes, *tensors)


def _residual_block_formula(ctx: Any, saved: Sequence[Any]) -> tuple[Tensor, Sequence[Tensor | None]]:
    tensors_1, tensors_2, parameters_1, parameters_2 = (saved[i:j] for i, j in _BLOCK_PARTS)
    h, (rest_1, rest_2), (flags_1, flags_2) = saved[14], ctx.rest, ctx.flags
    first = EpilogueArgs._make((*parameters_1, EpilogueSpec._make(flags_1[:-1]), flags_1[-1]))
    second = EpilogueArgs._make((*parameters_2, EpilogueSpec._make(flags_2[:-1]), flags_2[-1]))
    y = _residual_block(h, _conv_of(tensors_1, rest_1), first, _conv_of(tensors_2, rest_2), second, ctx.pad)
    return y, (h, *saved[:14])


def _residual_block(
    h: Tensor, conv_1: Conv, first: EpilogueArgs, conv_2: Conv, second: EpilogueArgs, pad: int
) -> Tensor:
    """`residual_block` in plain PyTorch."""
    weight, bias, slopes, spec, _ = first
    a = formulas.epilogue(formulas.convolve(h, conv_1), weight, bias, None, slopes, spec)
    weight, bias, slopes, spec, _ = second
    return formulas.epilogue(formulas.convolve(a, conv_2), weight, bias, _inner(h, pad), slopes, spec)


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        *tensors, rest, y_norm = arguments
        conv = _conv_of(tensors, rest)
        source = Source(a, None, None, None, None, _padding(conv))
        y, y_stats, _ = _convolve(source, conv, "auto", y_norm)
        ctx.save_for_backward(a, *tensors)
        ctx.rest = (*rest[:5], None)
        if y_stats is not None:
            ctx.mark_non_differentiable(y_stats)
        return y, y_stats

    @staticmethod
    @differentiable(_conv_formula)
    def backward(ctx: Any, saved: Sequence[Tensor], grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        conv = _conv_of(saved[1:], ctx.rest)
        source = Source(saved[0], None, None, None, None, _padding(conv))
        need = ctx.needs_input_grad
        grads = _backward(grad, source, conv, "auto", need[:4])
        return (*grads, _zero_gradient(conv.unused_bias, need[4]), None, None)


class _EpilogueConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, stats: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        parameters, tensors, (rest, y_norm, flags) = arguments[:3], arguments[3:7], arguments[7:]
        conv = _conv_of(tensors, rest)
        weight, bias, slopes = parameters
        source = Source(z, stats, weight, bias, slopes, _padded(EpilogueSpec._make(flags[:-1]), conv))
        y, y_stats, stats = _convolve(source, conv, flags[-1], y_norm)
        ctx.save_for_backward(z, stats, *parameters, *tensors)
        ctx.rest, ctx.flags = (*rest[:5], None), flags
        if y_stats is not None:
            ctx.mark_non_differentiable(y_stats)
        return y, y_stats

    @staticmethod
    @differentiable(_epilogue_conv_formula)
    def backward(ctx: Any, saved: Sequence[Tensor], grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        z, stats, weight, bias, slopes, *tensors = saved
        flags = ctx.flags
        conv, spec = _conv_of(tensors, ctx.rest), EpilogueSpec._make(flags[:-1])
        need_z, _, need_weight, need_bias, need_slopes, *need_conv, need_unused = ctx.needs_input_grad[:9]
        need_a = need_z or need_weight or need_bias or need_slopes
        source = Source(z, stats, weight, bias, slopes, _padded(spec, conv))
        of_conv = _backward(grad, source, conv, flags[-1], (need_a, *need_conv))
        grads: tuple[Tensor | None, ...] = (None,) * 5
        if of_conv.a is not None:
            need = (need_z, need_weight, need_bias, False, need_slopes)
            inputs = EpilogueInputs(z, weight, bias, None, slopes)
            grads = gradients(of_conv.a, inputs, stats, flags, need)
        unused = _zero_gradient(conv.unused_bias, need_unused)
        return (grads[0], None, *grads[1:3], grads[4], *of_conv[1:], unused, None, None, None)


class _ResidualBlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, *arguments: Any) -> Tensor:
        tensors_1, tensors_2, parameters_1, parameters_2 = (arguments[i:j] for i, j in _BLOCK_PARTS)
        pad, rest_1, rest_2, flags_1, flags_2 = arguments[14:]
        conv_1, conv_2 = _conv_of(tensors_1, rest_1), _conv_of(tensors_2, rest_2)
        of_h, spec_1 = _padding(conv_1), EpilogueSpec._make(flags_1[:-1])
        z_1, stats_1, _ = _convolve(Source(h, None, None, None, None, of_h), conv_1, flags_1[-1], spec_1.norm)
        weight_1, bias_1, slopes = parameters_1
        source = Source(z_1, stats_1, weight_1, bias_1, slopes, _padded(spec_1, conv_2))
        z_2, stats_2, stats_1 = _convolve(source, conv_2, flags_1[-1], flags_2[0])
        weight_2, bias_2, _ = parameters_2
        y, stats_2 = run(z_2, weight_2, bias_2, _inner(h, pad), None, flags_2, stats_2)
        ctx.save_for_backward(*arguments[:14], h, z_1, stats_1, z_2, stats_2)
        ctx.rest, ctx.flags = ((*rest_1[:5], None), (*rest_2[:5], None)), (flags_1, flags_2)
        ctx.pad = pad
        return y

    @staticmethod
    @differentiable(_residual_block_formula)
    def backward(ctx: Any, saved: Sequence[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors_1, tensors_2, parameters_1, parameters_2 = (saved[i:j] for i, j in _BLOCK_PARTS)
        h, z_1, stats_1, z_2, stats_2 = saved[14:]
        (rest_1, rest_2), (flags_1, flags_2) = ctx.rest, ctx.flags
        conv_1, conv_2 = _conv_of(tensors_1, rest_1), _conv_of(tensors_2, rest_2)
        need_h, *need_others = ctx.needs_input_grad[:15]
        need_1, need_2, need_p1, need_p2 = (need_others[i:j] for i, j in _BLOCK_PARTS)
        (weight_1, bias_1, slopes), (weight_2, bias_2, _) = parameters_1, parameters_2
        inputs = EpilogueInputs(z_2, weight_2, bias_2, None, None)
        need = (True, need_p2[0], need_p2[1], need_h, False)
        grad_z, grad_w2, grad_b2, grad_residual, _ = gradients(grad, inputs, stats_2, flags_2, need)
        assert grad_z is not None
        spec_1 = EpilogueSpec._make(flags_1[:-1])
        source = Source(z_1, stats_1, weight_1, bias_1, slopes, _padded(spec_1, conv_2))
        of_conv_2 = _backward(grad_z, source, conv_2, flags_1[-1], (True, need_2[0], False, False))
        grad_a, grad_conv_2 = of_conv_2.a, of_conv_2.weight
        del grad_z, of_conv_2
        assert grad_a is not None
        inputs = EpilogueInputs(z_1, weight_1, bias_1, None, slopes)
        need = (True, need_p1[0], need_p1[1], False, need_p1[2])
        grad_z, grad_w1, grad_b1, _, grad_slopes = gradients(grad_a, inputs, stats_1, flags_1, need)
        del grad_a
        assert grad_z is not None
        source = Source(h, None, None, None, None, _padding(conv_1))
        add = grad_residual if need_h else None
        of_conv_1 = _backward(grad_z, source, conv_1, flags_1[-1], (need_h, need_1[0], False, False), add)
        return (
            of_conv_1.a,
            *(of_conv_1.weight, None, None, _zero_gradient(conv_1.unused_bias, need_1[3])),
            *(grad_conv_2, None, None, _zero_gradient(conv_2.unused_bias, need_2[3])),
            *(grad_w1, grad_b1, grad_slopes),
            *(grad_w2, grad_b2, None),
            *(None,) * 5,
        )


_BLOCK_PARTS = ((0, 4), (4, 8), (8, 11), (11, 14))  # of the arguments of a residual block behind h


def _inner(x: Tensor, pad: int) -> Tensor:
    return x[:, :, pad:-pad, pad:-pad] if pad else x


def convolution(a: Tensor, conv: Conv, y_norm: str = "none") -> ConvOutput:
    """A convolution.

    Args:
        a: [N, C, H, W], channels_last; padded already unless `conv` has a plan.
        conv: the convolution.
        y_norm: the norm that follows, whose statistics are wanted: "instance", "layer" or "none".

    Returns:
        [N, O, (H + 2·pad - k) // stride + 1, …], channels_last, with its statistics where they are at hand.
    """
    if formulas.are_needed():
        return ConvOutput(formulas.convolve(a, conv))
    if not needs_gradient((a, *_tensors(conv))):
        source = Source(a, None, None, None, None, _padding(conv))
        return ConvOutput(*_convolve(source, conv, "auto", y_norm, reuse=True)[:2])
    return ConvOutput(*_ConvFunction.apply(a, *_tensors(conv), _rest(conv), y_norm))


def epilogue_conv(output: ConvOutput, epilogue: EpilogueArgs, conv: Conv, y_norm: str = "none") -> ConvOutput:
    """conv(epilogue(z)); keeps z and two numbers a plane for the backward.

    Args:
        output: of the convolution before.
        epilogue: what stands between; its padding is that of `conv`, and zero where `conv` has a plan.
        conv: the convolution.
        y_norm: as in `convolution`.

    Returns:
        As `convolution`.
    """
    weight, bias, slopes, spec, impl = epilogue
    if formulas.are_needed():
        a = formulas.epilogue(output.z, weight, bias, None, slopes, spec)
        return ConvOutput(formulas.convolve(a, conv))
    if not needs_gradient((output.z, weight, bias, slopes, *_tensors(conv))):
        source = Source(*output, weight, bias, slopes, _padded(spec, conv))
        return ConvOutput(*_convolve(source, conv, impl, y_norm, reuse=True)[:2])
    of_conv = (*_tensors(conv), _rest(conv), y_norm)
    return ConvOutput(*_EpilogueConvFunction.apply(*output, weight, bias, slopes, *of_conv, (*spec, impl)))


def residual_block(
    h: Tensor, conv_1: Conv, first: EpilogueArgs, conv_2: Conv, second: EpilogueArgs, pad: int
) -> Tensor:
    """second(conv_2(first(conv_1(h)))) with the unpadded h as the residual of `second`.

    Keeps h and the two convolutions' outputs for the backward.

    Args:
        h: [N, C, H + 2·pad, W + 2·pad], channels_last.
        conv_1: 3×3, C to C channels, without a bias that is added.
        first: what follows it; its padding is that of `conv_2`, and zero where `conv_2` has a plan.
        conv_2: like `conv_1`.
        second: what follows it; its padding is that of the result.
        pad: pixels of padding that h has; 0 where `conv_1` has a plan.

    Returns:
        [N, C, H + 2·pad of `second`, …], channels_last.
    """
    if formulas.are_needed():
        return _residual_block(h, conv_1, first, conv_2, second, pad)
    return _ResidualBlockFunction.apply(
        h,
        *_tensors(conv_1),
        *_tensors(conv_2),
        *(first.weight, first.bias, first.slopes),
        *(second.weight, second.bias, None),
        pad,
        _rest(conv_1),
        _rest(conv_2),
        (*first.spec, first.impl),
        (*second.spec, second.impl),
    )

"""The convolutions of any tensors by their plan: what `munit_fast.functional` and `munit_fast.accelerate` share."""

from __future__ import annotations

import torch
from torch import Tensor

from munit_fast.ops import conv_plans, formulas, winograd
from munit_fast.ops.autograd import distinct
from munit_fast.ops.conv_plans import DIRECT, ConvShape, Plans
from munit_fast.ops.epilogue import is_plain_cpu
from munit_fast.ops.fused_conv import Conv, ConvOutput, EpilogueArgs, convolution, epilogue_conv
from munit_fast.ops.winograd import NO_EPILOGUE


def plans_of(x: Tensor, weight: Tensor, stride: int, pad: int, impl: str = "auto") -> Plans:
    """The plans of the convolution of x, with `pad` pixels of padding, by weight.

    Args:
        x: [N, C, H, W], any layout.
        weight: [O, C, kh, kw].
        stride: of both axes.
        pad: pixels on each side.
        impl: the backend of the epilogue.

    Returns:
        As `conv_plans.choose`; DIRECT wherever a plan would give another dtype than PyTorch's convolution, too, and in
        a compiled program, which may be called with other sizes.
    """
    if torch.compiler.is_compiling() or formulas.are_needed():
        return DIRECT
    if x.device.type != "cpu" or weight.device.type != "cpu" or impl not in ("auto", "cpu"):
        return DIRECT
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    (n, c, h, w), (out, _, kernel, columns) = x.shape, weight.shape
    if x.dtype != dtype or weight.dtype != torch.float32 or kernel != columns:
        return DIRECT
    rows, columns = ((side + 2 * pad - kernel) // stride + 1 for side in (h, w))
    kept = not torch.is_grad_enabled()
    return conv_plans.choose(ConvShape(kernel, stride, c, out, n, rows, columns, dtype, kept))


def has_plan(kernel: int, stride: int, channels: int, out_channels: int) -> bool:
    """Whether a convolution in float32 has a plan for images that are large enough.

    Args:
        kernel: rows and columns of the kernel.
        stride: of both axes.
        channels: of the input.
        out_channels: of the result.
    """
    shape = ConvShape(kernel, stride, channels, out_channels, 16, 1024, 1024, torch.float32, True)
    return conv_plans.choose(shape).result is not None


def _transformed(weight: Tensor, plan: str) -> Tensor | None:
    """The weight as the plan takes it, kept from the second inference with it on; None where it is not at hand."""
    if torch.is_grad_enabled() or not is_plain_cpu(weight):
        return None
    return winograd.kept_weight(weight, plan, False, lambda: weight)[1]


def planned_conv(
    output: ConvOutput,
    epilogue: EpilogueArgs | None,
    weight: Tensor,
    bias: Tensor | None,
    plans: Plans,
    pad: int = 0,
    pad_mode: str = "zero",
    y_norm: str = "none",
) -> ConvOutput:
    """conv2d(pad(epilogue(z)), weight, bias) by its plans, whose stride it has.

    Args:
        output: z [N, C, H, W] in any layout, with its statistics for the epilogue's norm where they are at hand.
        epilogue: without padding or depth-to-space; None: z itself is padded and convolved.
        weight: [O, C, k, k], float32.
        bias: [O], float32; or None.
        plans: what `plans_of` gave, with one for the result.
        pad: pixels on each side.
        pad_mode: "reflect", "replicate" or "zero".
        y_norm: the norm that follows, whose statistics are wanted: "instance", "layer" or "none".

    Returns:
        [N, O, …], channels_last, in z's dtype; with its statistics where they are wanted and at hand.
    """
    plan, weight_plan = plans
    assert plan is not None
    stride = winograd.PLANS[plan].stride
    e = EpilogueArgs(None, None, None, NO_EPILOGUE) if epilogue is None else epilogue
    tensors = (output.z.contiguous(memory_format=torch.channels_last), e.weight, e.bias, e.slopes, weight, bias)
    z, norm_weight, norm_bias, slopes, used, bias = distinct(tensors)
    assert z is not None and used is not None
    conv = Conv(used, bias, stride, None, None, plan, pad, pad_mode, _transformed(weight, plan), weight_plan)
    if epilogue is None:
        return convolution(z, conv, y_norm)
    e = e._replace(weight=norm_weight, bias=norm_bias, slopes=slopes)
    return epilogue_conv(ConvOutput(z, output.stats), e, conv, y_norm)

"""The operators in plain PyTorch, for whoever must see only that: transforms, tracers, and second derivatives.

`munit_fast.reference.epilogue` has the mathematics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad

from munit_fast.ops import upsample_conv
from munit_fast.ops.spec import EpilogueSpec, accumulator_dtype
from munit_fast.reference import epilogue as reference

if TYPE_CHECKING:
    from munit_fast.ops.fused_conv import Conv

_PROXY = torch._C._TorchDispatchModeKey.PROXY  # the dispatch mode of make_fx


def are_needed() -> bool:
    """Whether the operators must be their formulas here.

    That is so under the transforms of torch.func, in forward-mode differentiation, and while a program is traced by
    torch.jit or make_fx, or exported: what comes out then needs no munit_fast to run.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch._C._get_tracing_state() is not None or torch._C._get_dispatch_mode(_PROXY) is not None


def epilogue(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    spec: EpilogueSpec,
) -> Tensor:
    """`munit_fast.ops.epilogue`: [N, C / block², block·H + 2·pad, block·W + 2·pad], in any layout.

    Args:
        x: as the members of `EpilogueInputs`, and so the other tensors.
        weight: likewise.
        bias: likewise.
        residual: likewise.
        slopes: likewise.
        spec: the options.
    """
    return reference.epilogue(
        x,
        weight,
        bias,
        residual,
        norm=spec.norm,
        eps=spec.eps,
        act=spec.act,
        slope=spec.slope if slopes is None else slopes,
        block=spec.block,
        pad=spec.pad,
        pad_mode=spec.pad_mode,
        groups=spec.groups,
    )


def convolve(a: Tensor, conv: Conv) -> Tensor:
    """A convolution of `munit_fast.ops.fused_conv`, directly.

    Args:
        a: [N, C, H, W], padded already unless `conv` has a plan.
        conv: the convolution.
    """
    a = reference.pad2d(a, conv.pad, conv.pad_mode) if conv.plan is not None else a
    bias = None if conv.bias is None else conv.bias.to(a.dtype)
    y = torch.conv2d(a, conv.weight.to(a.dtype), bias, conv.stride)
    if conv.border_weight is not None:
        y = y.contiguous(memory_format=torch.channels_last)
        upsample_conv.correct_reflect_border(y, upsample_conv.Edges.of_padded(a), conv.border_weight.to(a.dtype))
    return y


def l1_losses(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """`munit_fast.ops.l1_losses`: [P].

    Args:
        first: P tensors of one dtype.
        second: like `first`.
    """
    wide = accumulator_dtype(first[0].dtype)
    return torch.stack([(a.to(wide) - b.to(wide)).abs().mean() for a, b in zip(first, second)])


def lsgan_loss(outputs: Sequence[Tensor], target: float) -> Tensor:
    """`munit_fast.ops.lsgan_loss`: a scalar.

    Args:
        outputs: tensors of one dtype.
        target: what they are to be.
    """
    wide = accumulator_dtype(outputs[0].dtype)
    return torch.stack([(output.to(wide) - target).square().mean() for output in outputs]).sum()

"""The fused forward of convolutions, and what leads to one: a norm, the activation and the padding before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from munit_fast.accelerate.norms import GroupNorm, LayerNorm, Norm, followers, padding, spatial_dimensions
from munit_fast.accelerate.swaps import Keywords, Swapped, is_plain
from munit_fast.ops import formulas, winograd
from munit_fast.ops.fused_conv import ConvOutput, EpilogueArgs
from munit_fast.ops.planned_conv import planned_conv, plans_of

_PADDING_MODES = {"zeros": "zero", "reflect": "reflect", "replicate": "replicate"}
_PLANNED = {(plan.side, plan.stride) for plan in winograd.PLANS.values()}  # kernel and stride


class Geometry(NamedTuple):
    """A convolution that can have a plan: its stride, pixels of padding and their mode."""

    stride: int
    pad: int
    pad_mode: str


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, int) else tuple(value)


def geometry(conv: Any) -> Geometry | str:
    """The geometry of a `torch.nn.Conv2d`, or why Winograd's algorithms cannot compute it."""
    (rows, columns), (stride, stride_x), mode = _pair(conv.kernel_size), _pair(conv.stride), conv.padding_mode
    if rows != columns or stride != stride_x or (rows, stride) not in _PLANNED:
        return f"{rows}×{columns}, stride {stride}: only 3×3 with stride 1 and 4×4 with stride 2 are planned"
    if conv.groups != 1:
        return f"has groups={conv.groups}"
    if _pair(conv.dilation) != (1, 1):
        return f"has dilation={conv.dilation}"
    if mode not in _PADDING_MODES:
        return f"has padding_mode={mode!r}"
    if mode != "zeros":
        sides = tuple(conv._reversed_padding_repeated_twice)  # what its forward reads
    elif isinstance(conv.padding, str):
        sides = ((rows - 1) // 2, rows // 2) if conv.padding == "same" else (0, 0)
    else:
        sides = _pair(conv.padding)
    if any(side != sides[0] for side in sides):
        return f"has padding={conv.padding}, not equal on all sides"
    return Geometry(stride, sides[0], _PADDING_MODES[mode])


def _is_plain_tensor(t: Any) -> bool:
    """Whether it is a tensor and nothing derived from it, which may give operators another meaning."""
    return type(t) in (Tensor, nn.Parameter)


def is_channels_last(t: Tensor) -> bool:
    """Whether the channels of an image or a weight lie side by side."""
    return t.stride(1) == 1 and t.shape[1] > 1


class Conv2d(Swapped):
    """`torch.nn.Conv2d` with kernel 3×3 and stride 1, or 4×4 and stride 2: by Winograd's algorithms on CPUs."""

    weight: Tensor
    bias: Tensor | None

    def _munit_fast_convolved(
        self, output: ConvOutput, epilogue: EpilogueArgs | None, outer: Keywords, y_norm: str
    ) -> ConvOutput | None:
        """conv(pad(epilogue(z))), channels_last, with the statistics that a norm after it needs.

        None where there is no plan for these tensors, and wherever PyTorch would raise.

        Args:
            output: z, with its statistics where they are at hand.
            epilogue: what stands before the convolution, without padding.
            outer: padding before the convolution, as keywords, where it has none itself.
            y_norm: the norm that follows: "instance", "layer" or "none".
        """
        x, weight, bias = output.z, self.weight, self.bias
        if not (_is_plain_tensor(x) and _is_plain_tensor(weight)) or x.dim() != 4 or x.numel() == 0:
            return None
        if bias is not None and not (_is_plain_tensor(bias) and bias.dtype == torch.float32):
            return None
        found = geometry(self)
        if isinstance(found, str) or x.shape[1] != weight.shape[1] or formulas.are_needed():
            return None
        pad, mode = (outer["pad"], outer["pad_mode"]) if outer else (found.pad, found.pad_mode)
        smallest = min(x.shape[2:])
        if (mode == "reflect" and pad >= smallest) or smallest + 2 * pad < weight.shape[2]:
            return None
        plans = plans_of(x, weight, found.stride, pad, self._munit_fast_impl)
        if plans.result is None:
            return None
        return planned_conv(output, epilogue, weight, bias, plans, pad, mode, y_norm)

    def forward(self, input: Any) -> Any:
        """The convolution by its plan, or the module's own forward where there is none."""
        y = self._munit_fast_convolved(ConvOutput(input), None, {}, "none") if isinstance(input, Tensor) else None
        if y is None:
            return super().forward(input)
        return y.z if is_channels_last(input) or is_channels_last(self.weight) else y.z.contiguous()


def statistics_wanted(module: Any) -> str:
    """The statistics that a module wants of its input, if a convolution can give them."""
    if not isinstance(module, Norm) or isinstance(module, GroupNorm) or not is_plain(module):
        return "none"
    return "layer" if isinstance(module, LayerNorm) else "instance"


class Lead(NamedTuple):
    """What stands before a convolution and becomes one call with it.

    Attributes:
        length: how many modules that are.
        inner: the activation of a norm, as keywords; None where there is no norm.
        outer: the padding, as keywords.
    """

    length: int
    inner: Keywords | None
    outer: Keywords


def lead(modules: Sequence[Any]) -> Lead | None:
    """[norm, activation,] [padding,] before the convolution that they lead to; None if they do not, or are watched."""
    inner, outer, length = None, {}, 0
    if isinstance(modules[0], Norm):
        if spatial_dimensions(modules[0]) != 2:
            return None
        keywords, used = followers(modules[0], modules[1:])
        outer = {name: value for name, value in keywords.items() if name.startswith("pad")}
        inner, length = {name: value for name, value in keywords.items() if name not in outer}, 1 + used
    elif (found := padding(modules[0])) is not None:
        outer, length = found, 1
    conv = modules[length] if length < len(modules) else None
    if not isinstance(conv, Conv2d) or not all(is_plain(module) for module in modules[: length + 1]):
        return None
    own = geometry(conv)
    return None if isinstance(own, str) or (outer and own.pad) else Lead(length, inner, outer)

"""What the networks are built from: a convolution with what follows it, up to the padding of the next one.

These helpers translate a block of `munit_fast.reference.layers` into arguments of the fused operators. The networks and
the benchmark share them. Tensors are [N, C, H, W], channels_last, in the dtype that `compute_dtype` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from munit_fast import functional, ops, reference
from munit_fast.models import step_weights, weights
from munit_fast.models.weights import in_dtype, planned_weight, prepared_weight, weight_of
from munit_fast.ops import formulas
from munit_fast.ops.backends import IMPLEMENTATIONS
from munit_fast.ops.conv_plans import DIRECT, ConvShape, Plans, choose
from munit_fast.ops.fused_conv import Conv, ConvOutput, EpilogueArgs, convolution, epilogue_conv, residual_block
from munit_fast.ops.spec import EpilogueSpec
from munit_fast.reference import layers
from munit_fast.reference.weight_norms import hold_vectors, source_of

_PAD_MODES = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate", nn.ZeroPad2d: "zero"}
_EPS = 1e-5

T = TypeVar("T")


class Fused(nn.Module):
    """What the fused networks share.

    Attributes:
        impl: the backend, as in `munit_fast.functional`; "reference": the reference's own forward.
        checkpointing: whether the backward computes activations again instead of keeping them.
        float32_images: whether the convolutions that read and write images stay in float32 under autocast: bfloat16 has
            fewer steps than images of more than 8 bits.
        holds_vectors: whether only whoever trains advances the vectors of spectral norms, and no forward.
    """

    impl: str = "auto"
    checkpointing: bool = False
    float32_images: bool = False
    holds_vectors: bool = False

    def set_impl(self, impl: str) -> None:
        """Choose the backend of every fused network inside this module.

        Args:
            impl: As in `munit_fast.functional`; "reference": the reference's own forward.

        Raises:
            ValueError: an unknown name.
        """
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
        for module in self.modules():
            if isinstance(module, Fused):
                module.impl = impl

    def set_checkpointing(self, on: bool) -> None:
        """Choose whether the encoders and decoders inside this module compute activations again in the backward.

        Args:
            on: False: they keep them.
        """
        for module in self.modules():
            if isinstance(module, Fused):
                module.checkpointing = on

    def set_float32_images(self, on: bool) -> None:
        """Choose whether images of more than 8 bits keep their steps under autocast, inside this module.

        Args:
            on: The convolutions that read and write images stay in float32.
        """
        for module in self.modules():
            if isinstance(module, Fused):
                module.float32_images = on

    def hold_vectors(self) -> None:
        """Let no forward advance the vectors of spectral norms: `reference.weight_norms.advance_vectors` does.

        So a weight is the same however often, in whatever mode and in how many parts of a batch it is read.
        """
        self.holds_vectors = True
        hold_vectors(self)

    def train(self, mode: bool = True) -> Any:
        """As torch's."""
        super().train(mode)
        if self.holds_vectors:
            hold_vectors(self)
        return self

    def image_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the convolutions that read and write images, where the others have `dtype`."""
        return torch.float32 if self.float32_images and dtype.itemsize < 4 else dtype

    def _recomputed(self, stage: Callable[..., T], *arguments: Any) -> T:
        """stage(*arguments); with checkpointing only the arguments are kept, and the backward runs it again."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return stage(*arguments)

        of_step, computed = step_weights.active(), weights.computed_weights()

        def alone(*arguments: Any) -> T:
            with weights.alone(computed), step_weights.use(of_step):  # where the backward runs, no context is active
                return stage(*arguments)

        return checkpoint(alone, *arguments, use_reentrant=False, preserve_rng_state=False)

    @property
    def uses_reference(self) -> bool:
        """Whether the reference's own forward runs, by choice or where `munit_fast.ops.formulas` are needed."""
        return self.impl == "reference" or formulas.are_needed()

    @property
    def layers(self) -> Any:
        """The reference's layers in order."""
        return self.model


def autocast_off(x: Tensor) -> Any:
    """A context without autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


def compute_dtype(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the convolutions: that of autocast, where it is on, else that of the parameters."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and dtype == torch.float32:
        return torch.get_autocast_dtype(kind)
    return dtype


def padding(block: Any) -> tuple[int, str]:
    """(pixels, mode) of the padding before the convolution of `block`."""
    return block.pad.padding[0], _PAD_MODES[type(block.pad)]


def _activation(module: nn.Module | None) -> tuple[str, float, Tensor | None]:
    """(act, slope, slopes) of a reference activation."""
    if isinstance(module, nn.LeakyReLU):
        return "lrelu", module.negative_slope, None
    if isinstance(module, nn.PReLU):
        return "prelu", 0.0, module.weight
    return {type(None): "none", nn.ReLU: "relu", nn.SELU: "selu", nn.Tanh: "tanh"}[type(module)], 0.0, None


def norm_of(block: Any) -> str:
    """The norm of `block`, as `EpilogueSpec` names it."""
    norms = {
        type(None): "none",
        layers.InstanceNorm2d: "instance",
        reference.AdaptiveInstanceNorm2d: "instance",
        reference.LayerNorm: "layer",
    }
    return norms[type(block.norm)]


def epilogue_args(
    block: Any,
    pad: int,
    pad_mode: str,
    impl: str,
    adain: tuple[Tensor, Tensor] | None = None,
    depth: int = 1,
) -> EpilogueArgs:
    """What follows the convolution of `block`, up to the padding of the next one.

    Args:
        block: a `reference.Conv2dBlock`.
        pad: pixels of padding of the next convolution.
        pad_mode: its mode: "reflect", "replicate" or "zero".
        impl: the backend.
        adain: (weight, bias), both [N, C], of a norm "adain".
        depth: side of the blocks of depth-to-space; 1 for none.
    """
    norm, (act, slope, slopes) = norm_of(block), _activation(block.activation)
    weight, bias = adain if adain is not None else (None, None)
    if isinstance(block.norm, reference.LayerNorm):
        weight, bias = block.norm.gamma, block.norm.beta
    spec = EpilogueSpec(norm, _EPS if norm != "none" else 0.0, act, slope, depth, pad, pad_mode)
    return EpilogueArgs(weight, bias, slopes, spec, impl)


class ConvInput(NamedTuple):
    """What a convolution reads, as far as its plan depends on it.

    Attributes:
        size: [N, C, H, W], without the convolution's padding.
        dtype: its dtype.
        device: its device.
        impl: the backend of the epilogues around it.
    """

    size: tuple[int, int, int, int]
    dtype: torch.dtype
    device: torch.device
    impl: str

    @classmethod
    def of(cls, x: Tensor, impl: str, pad: int = 0, depth: int = 1) -> ConvInput:
        """Of an x that has `pad` pixels of padding already, or that depth-to-space is still to rearrange."""
        n, c, h, w = x.shape
        size = (n, c // depth**2, depth * (h - 2 * pad), depth * (w - 2 * pad))
        return cls(size, x.dtype, x.device, impl)

    def plans(self, conv: nn.Conv2d, kernel: int, stride: int, out_channels: int, pad: int) -> Plans:
        """The plans of a convolution with `pad` pixels of padding."""
        if self.device.type != "cpu" or self.impl not in ("auto", "cpu") or source_of(conv).dtype != torch.float32:
            return DIRECT
        n, _, h, w = self.size
        rows, columns = (h + 2 * pad - kernel) // stride + 1, (w + 2 * pad - kernel) // stride + 1
        kept = not (torch.is_grad_enabled() or conv.training)  # a training changes the weight before the next use
        return choose(ConvShape(kernel, stride, conv.in_channels, out_channels, n, rows, columns, self.dtype, kept))


def conv_args(block: Any, x: ConvInput, padded: bool = False) -> Conv:
    """The convolution of `block`; without its bias where an instance norm follows, which removes it.

    Args:
        block: a `reference.Conv2dBlock`.
        x: what it reads.
        padded: whether what it reads is padded already; else the convolution pads if it has a plan.
    """
    conv = block.conv
    assert conv.bias is not None
    plan, weight_plan = _plans(block, x)
    used, unused = (None, conv.bias) if norm_of(block) == "instance" else (conv.bias, None)
    if step_weights.active() is not None:
        unused = None  # whoever makes the step knows its gradient
    if plan is None:
        bias, weight = None if used is None else in_dtype(used, x.dtype), prepared_weight(conv, x.dtype)
        return Conv(weight, bias, conv.stride[0], None, unused, weight_plan=weight_plan)
    weight, transformed = planned_weight(conv, plan)
    pad, mode = (0, "zero") if padded else padding(block)
    return Conv(weight, used, conv.stride[0], None, unused, plan, pad, mode, transformed, weight_plan)


def phase_conv_args(block: Any, x: ConvInput, pad_mode: str) -> Conv:
    """Nearest ×2 and the 5×5 convolution of `block` as one 3×3 convolution to four phases.

    Args:
        block: a `reference.Conv2dBlock`, 5×5, stride 1.
        x: what it reads.
        pad_mode: the padding of the large image; "reflect" needs the 5×5 weight for its border too.
    """
    conv = block.conv
    plan, weight_plan = _phase_plans(block, x)
    bias = in_dtype(conv.bias, x.dtype if plan is None else conv.bias.dtype).repeat(4)
    border_weight = weight_of(conv) if pad_mode == "reflect" else None
    if plan is None:
        return Conv(prepared_weight(conv, x.dtype, phases=True), bias, 1, border_weight, weight_plan=weight_plan)
    weight, transformed = planned_weight(conv, plan, phases=True)
    return Conv(weight, bias, 1, border_weight, None, plan, *_phase_padding(pad_mode), transformed, weight_plan)


def _plans(block: Any, x: ConvInput) -> Plans:
    conv = block.conv
    return x.plans(conv, conv.kernel_size[0], conv.stride[0], conv.out_channels, padding(block)[0])


def _phase_plans(block: Any, x: ConvInput) -> Plans:
    return x.plans(block.conv, 3, 1, 4 * block.conv.out_channels, 1)


def _phase_padding(pad_mode: str) -> tuple[int, str]:
    """(pixels, mode) of the small image's padding: its border, or zeros."""
    return 1, "zero" if pad_mode == "zero" else "replicate"


def input_padding(block: Any, x: ConvInput) -> tuple[int, str]:
    """(pixels, mode) of the padding that the convolution of `block` needs: none where it pads while it reads."""
    return padding(block) if _plans(block, x).result is None else (0, "zero")


def phase_input_padding(block: Any, x: ConvInput, pad_mode: str) -> tuple[int, str]:
    """The same before a phase convolution, for the padding `pad_mode` of the large image."""
    return _phase_padding(pad_mode) if _phase_plans(block, x).result is None else (0, "zero")


def apply_epilogue(output: ConvOutput, e: EpilogueArgs, residual: Tensor | None = None) -> Tensor:
    """The epilogue of a convolution's output.

    Args:
        output: of a convolution, z [N, C, H, W].
        e: the epilogue.
        residual: [N, C, H, W], z's dtype; may be a window of a larger tensor.

    Returns:
        [N, C / depth², depth·H + 2·pad, depth·W + 2·pad] in z's dtype and layout.
    """
    return ops.epilogue(output.z, e.weight, e.bias, residual, e.slopes, e.spec, e.impl, output.stats)


def pad_input(x: Tensor, pad: int, pad_mode: str, dtype: torch.dtype, impl: str) -> Tensor:
    """x [N, C, H, W] in channels_last and `dtype`, padded.

    Args:
        x: [N, C, H, W], any layout.
        pad: pixels on each side.
        pad_mode: "reflect", "replicate" or "zero".
        dtype: of the result.
        impl: the backend.

    Returns:
        [N, C, H + 2·pad, W + 2·pad].
    """
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    return functional.bias_act(x, pad=pad, pad_mode=pad_mode, impl=impl) if pad else x


def check_planes(z: Tensor, what: str) -> None:
    """Raise ValueError where an instance norm would see a single pixel.

    Args:
        z: [N, C, H, W].
        what: names the origin of z in the message.
    """
    if z.shape[2] * z.shape[3] == 1:
        raise ValueError(f"{what} is too small: a plane of 1×1 cannot be normalised; use a larger image")


def conv_chain(p: Tensor, blocks: list[Any], impl: str, dtype: torch.dtype | None = None) -> ConvOutput:
    """The convolutions of `blocks` and all between them.

    Args:
        p: [N, C, H, W], padded for the first convolution.
        blocks: of `reference.Conv2dBlock`, at least one.
        impl: the backend.
        dtype: of the convolutions after the first, which has that of p; None: that of p. Where they differ, the first
            one's norm is computed in p's: what is left of fine steps after rounding is what a norm would enlarge.

    Returns:
        The output of the last convolution, without its norm and activation.

    Raises:
        ValueError: an instance norm would see a plane of 1×1.
    """
    previous = blocks[0]
    x = ConvInput.of(p, impl, pad=padding(previous)[0])
    output = convolution(p, conv_args(previous, x, padded=True), norm_of(previous))
    for block in blocks[1:]:
        if norm_of(previous) == "instance":
            check_planes(output.z, "the image")
        x = ConvInput.of(output.z, impl)._replace(dtype=dtype or p.dtype)
        epilogue = epilogue_args(previous, *input_padding(block, x), impl)
        if output.z.dtype == x.dtype:
            output = epilogue_conv(output, epilogue, conv_args(block, x), norm_of(block))
        else:
            output = convolution(apply_epilogue(output, epilogue).to(x.dtype), conv_args(block, x), norm_of(block))
        previous = block
    return output


def res_blocks(
    h: Tensor,
    pad: int,
    blocks: Any,
    after: tuple[int, str],
    impl: str,
    adain: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """A chain of residual blocks.

    Args:
        h: [N, dim, H + 2·pad, W + 2·pad].
        pad: pixels of padding that h has: those of `input_padding` of the first block.
        blocks: of `reference.ResBlock`.
        after: (pixels, mode) of the padding that the result gets.
        impl: the backend.
        adain: two (weight, bias) pairs a block, each [N, dim]; None without AdaIN.

    Returns:
        [N, dim, H + 2·after, W + 2·after].
    """
    x = ConvInput.of(h, impl, pad)
    for i, block in enumerate(blocks):
        first, second = block.model
        style_1, style_2 = adain[2 * i : 2 * i + 2] if adain is not None else (None, None)
        out = input_padding(blocks[i + 1].model[0], x) if i + 1 < len(blocks) else after
        h = residual_block(
            h,
            conv_args(first, x),
            epilogue_args(first, *input_padding(second, x), impl, style_1),
            conv_args(second, x),
            epilogue_args(second, *out, impl, style_2),
            input_padding(first, x)[0],
        )
    return h

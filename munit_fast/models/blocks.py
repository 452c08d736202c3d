"""What the networks are built from: a convolution with what follows it, up to the padding of the next one.

These helpers translate a block of `munit_fast.reference.layers` into arguments of the fused operators. The networks and
the benchmark share them. Tensors are [N, C, H, W], channels_last, in the dtype that `compute_dtype` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from munit_fast import functional, ops, reference
from munit_fast.ops.backends import IMPLEMENTATIONS
from munit_fast.ops.fused_conv import Conv, EpilogueArgs, convolution, epilogue_conv, residual_block
from munit_fast.ops.spec import EpilogueSpec
from munit_fast.ops.upsample_conv import phase_weight

_PAD_MODES = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate", nn.ZeroPad2d: "zero"}
_EPS = 1e-5

# The convolutions' weights as they are used: cast, and summed for the phases. Kept for the calls of one context only.
_cache: ContextVar[dict[Any, tuple[Tensor, Tensor]] | None] = ContextVar("munit_fast_weights", default=None)


@contextmanager
def shared_weights() -> Iterator[None]:
    """Inside, each weight is cast and rearranged once for all the calls; nobody may change a parameter meanwhile."""
    token = _cache.set({})
    try:
        yield
    finally:
        _cache.reset(token)


class Fused(nn.Module):
    """What the fused networks share.

    Attributes:
        impl: the backend, as in `munit_fast.functional`; "reference": the reference's own forward.
        checkpointing: whether the backward computes activations again instead of keeping them.
    """

    impl: str = "auto"
    checkpointing: bool = False

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

    def _recomputed(self, stage: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """stage(*arguments); with checkpointing only the arguments are kept, and the backward runs it again."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return stage(*arguments)

        def alone(*arguments: Any) -> Tensor:
            token = _cache.set(None)  # the weights of another call would not be there the second time
            try:
                return stage(*arguments)
            finally:
                _cache.reset(token)

        return checkpoint(alone, *arguments, use_reentrant=False, preserve_rng_state=False)

    @property
    def uses_reference(self) -> bool:
        """Whether the reference's own forward runs."""
        return self.impl == "reference"

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


def _prepared_weight(conv: nn.Conv2d, dtype: torch.dtype, phases: bool = False) -> Tensor:
    """The weight in `dtype` and channels_last, summed for the four phases if asked; once in `shared_weights`."""
    cache, key = _cache.get(), (id(conv.weight), dtype, phases, torch.is_grad_enabled(), conv.weight.requires_grad)
    if cache is not None and key in cache:
        return cache[key][1]
    weight = phase_weight(conv.weight) if phases else conv.weight
    weight = weight.to(dtype=dtype, memory_format=torch.channels_last)
    if cache is not None:
        cache[key] = (conv.weight, weight)  # held, so that no other tensor takes its id
    return weight


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
        nn.InstanceNorm2d: "instance",
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


def conv_args(block: Any, dtype: torch.dtype) -> Conv:
    """The convolution of `block` in `dtype`; without its bias where an instance norm follows, which removes it."""
    conv = block.conv
    assert conv.bias is not None
    if norm_of(block) == "instance":  # which subtracts it again
        return Conv(_prepared_weight(conv, dtype), None, conv.stride[0], unused_bias=conv.bias)
    return Conv(_prepared_weight(conv, dtype), conv.bias.to(dtype), conv.stride[0])


def phase_conv_args(block: Any, dtype: torch.dtype, pad_mode: str) -> Conv:
    """Nearest ×2 and the 5×5 convolution of `block` as one 3×3 convolution to four phases.

    Args:
        block: a `reference.Conv2dBlock`, 5×5, stride 1.
        dtype: that of the convolution.
        pad_mode: the padding of the large image; "reflect" needs the 5×5 weight for its border too.
    """
    conv = block.conv
    bias = conv.bias.to(dtype).repeat(4)
    border_weight = conv.weight.to(dtype) if pad_mode == "reflect" else None
    return Conv(_prepared_weight(conv, dtype, phases=True), bias, 1, border_weight)


def apply_epilogue(z: Tensor, e: EpilogueArgs, residual: Tensor | None = None) -> Tensor:
    """The epilogue of a convolution's output.

    Args:
        z: [N, C, H, W].
        e: the epilogue.
        residual: [N, C, H, W], z's dtype; may be a window of a larger tensor.

    Returns:
        [N, C / depth², depth·H + 2·pad, depth·W + 2·pad] in z's dtype and layout.
    """
    return ops.epilogue(z, e.weight, e.bias, residual, e.slopes, e.spec, e.impl)


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


def conv_chain(p: Tensor, blocks: list[Any], impl: str) -> Tensor:
    """The convolutions of `blocks` and all between them.

    Args:
        p: [N, C, H, W], padded for the first convolution.
        blocks: of `reference.Conv2dBlock`, at least one.
        impl: the backend.

    Returns:
        The output of the last convolution, without its norm and activation.

    Raises:
        ValueError: an instance norm would see a plane of 1×1.
    """
    z, previous = convolution(p, conv_args(blocks[0], p.dtype)), blocks[0]
    for block in blocks[1:]:
        if norm_of(previous) == "instance":
            check_planes(z, "the image")
        z = epilogue_conv(z, epilogue_args(previous, *padding(block), impl), conv_args(block, p.dtype))
        previous = block
    return z


def res_blocks(
    h: Tensor,
    blocks: Any,
    after: tuple[int, str],
    impl: str,
    adain: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """A chain of residual blocks.

    Args:
        h: [N, dim, H + 2·pad, W + 2·pad], padded for the first block.
        blocks: of `reference.ResBlock`.
        after: (pixels, mode) of the padding that the result gets.
        impl: the backend.
        adain: two (weight, bias) pairs a block, each [N, dim]; None without AdaIN.

    Returns:
        [N, dim, H + 2·after, W + 2·after].
    """
    for i, block in enumerate(blocks):
        first, second = block.model
        style_1, style_2 = adain[2 * i : 2 * i + 2] if adain is not None else (None, None)
        pad, mode = padding(first)
        out = (pad, mode) if i + 1 < len(blocks) else after
        h = residual_block(
            h,
            conv_args(first, h.dtype),
            epilogue_args(first, *padding(second), impl, style_1),
            conv_args(second, h.dtype),
            epilogue_args(second, *out, impl, style_2),
            pad,
        )
    return h

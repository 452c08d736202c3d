"""Contenders at the level of blocks and networks: modules of the reference beside the same modules fused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast import reference
from munit_fast.benchmarks.cases import Case
from munit_fast.benchmarks.contenders import (
    LAYOUTS,
    OURS,
    PUBLISHED,
    Contender,
    Variant,
    Work,
    autocast,
    compiled,
    differentiable,
    placed,
    published_variants,
)
from munit_fast.models import blocks, networks
from munit_fast.ops.fused_conv import convolution
from munit_fast.reference.layers import Conv2dBlock, ResBlock

Call = Callable[[Tensor], Any]


def _fused(block: Any) -> Call:
    """What the fused networks make of a block that stands alone: padded by itself, not by the block before."""

    def run(x: Tensor) -> Tensor:
        conv: Any = (
            block.model[0] if isinstance(block, ResBlock) else block[1] if isinstance(block, nn.Sequential) else block
        )
        dtype = blocks.compute_dtype(x, conv.conv.weight.dtype)
        with blocks.autocast_off(x):
            x = x.to(dtype)
            like = blocks.ConvInput.of(x, "auto")
            if isinstance(block, nn.Sequential):  # nearest x 2, then the convolution: four phases
                p = blocks.pad_input(x, *blocks.phase_input_padding(conv, like, "reflect"), dtype, "auto")
                output = convolution(p, blocks.phase_conv_args(conv, like, "reflect"), "layer")
                return blocks.apply_epilogue(output, blocks.epilogue_args(conv, 0, "zero", "auto", depth=2))
            pad, mode = blocks.input_padding(conv, like)
            p = blocks.pad_input(x, pad, mode, dtype, "auto")
            if isinstance(block, ResBlock):
                return blocks.res_blocks(p, pad, [block], (0, "zero"), "auto")
            output = convolution(p, blocks.conv_args(conv, like), blocks.norm_of(block))
            return blocks.apply_epilogue(output, blocks.epilogue_args(block, 0, "zero", "auto"))

    return run


def _block(case: Case) -> nn.Module:
    """A block of the reference."""
    c = case.channels
    if case.name == "residual block":
        return ResBlock(c, "in", "relu", "reflect")
    if case.name == "downsampling block":
        return Conv2dBlock(c, 2 * c, 4, 2, 1, "in", "relu", "reflect")
    if case.name == "upsampling block":
        return nn.Sequential(nn.Upsample(scale_factor=2), Conv2dBlock(c, c // 2, 5, 1, 2, "ln", "relu", "reflect"))
    return Conv2dBlock(c, 2 * c, 4, 2, 1, "none", "lrelu", "reflect")


def _network(case: Case) -> tuple[nn.Module, nn.Module]:
    """A network of the reference and the fused one, with the same parameters."""
    params: dict[str, Any]
    if case.name == "discriminator":
        params = {
            "dim": case.channels,
            "n_layer": 4 if case.side >= 128 else 2,
            "num_scales": 3 if case.side >= 128 else 2,
            "norm": "none",
            "activ": "lrelu",
            "pad_type": "reflect",
            "gan_type": "lsgan",
        }
        pair: tuple[Any, Any] = (reference.MsImageDis(3, params), networks.MsImageDis(3, params))
    else:
        params = {
            "dim": case.channels,
            "mlp_dim": 4 * case.channels,
            "style_dim": 8,
            "activ": "relu",
            "n_downsample": 2,
            "n_res": 4,
            "pad_type": "reflect",
        }
        pair = (reference.AdaINGen(3, params), networks.AdaINGen(3, params))
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


class _Part(nn.Module):
    """One part of a generator as a function of one tensor."""

    def __init__(self, network: Any, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name
        self.style: Tensor
        self.register_buffer("style", torch.linspace(-1, 1, 8).view(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Any:
        if self.name == "discriminator":
            return self.network(x)
        if self.name == "content encoder":
            return self.network.enc_content(x)
        if self.name == "style encoder":
            return self.network.enc_style(x)
        return self.network.decode(x, self.style.expand(x.shape[0], -1, -1, -1))


def _input(case: Case, layout: str, device: torch.device) -> Tensor:
    if case.level == "block":
        size = (case.batch, case.channels, case.side, case.side)
    elif case.name == "decoder":
        size = (case.batch, 4 * case.channels, case.side // 4, case.side // 4)
    else:
        size = (case.batch, 3, case.side, case.side)
    x = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(device)
    return x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def block_contenders(case: Case, device: torch.device) -> list[Contender]:
    """A block or a network with the gradients of its input and parameters, parameters being float32 as in training."""
    torch.manual_seed(0)
    if case.level == "block":
        plain = _block(case)
        ours = copy.deepcopy(plain)
        call = _fused(ours)
    else:
        plain, ours = (_Part(network, case.name) for network in _network(case))
        call = ours

    def make(module: nn.Module, layout: str, function: Callable[[nn.Module], Call], precision: str) -> Work:
        module = placed(module, layout, device)
        run, x = function(module), _input(case, layout, device)

        def forward() -> Any:
            with autocast(precision, device):
                return run(x)

        # An encoder leaves half of its generator unused.
        return differentiable(forward, [x, *module.parameters()], case.mode)

    def published(variant: Variant) -> Contender:
        name, layout, precision = variant
        function: Callable[[nn.Module], Call] = (lambda m: m) if name == PUBLISHED else lambda m: compiled(m, name)
        return variant.contender(case, lambda: make(copy.deepcopy(plain), layout, function, precision))

    fused = Contender(OURS, "channels_last", lambda: make(ours, "channels_last", lambda _: call, case.dtype))
    return [fused, *map(published, published_variants(case))]

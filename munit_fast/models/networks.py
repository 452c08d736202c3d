"""MUNIT's and UNIT's networks built from convolutions and fused epilogues.

The modules, their constructors, state_dict keys and parameter order are the reference's, and so is the mathematics
(`munit_fast.reference` is the specification). What differs is how it is computed: channels_last throughout; what stands
between two convolutions is one operation that writes the next one's padding; a bias before an instance norm, which
changes nothing, is not added and gets a gradient of exactly zero; nearest ×2 + 5×5 convolution are one 3×3 convolution
to four phases; the backward rebuilds padded activations instead of keeping them.

Under torch.autocast the convolutions take its dtype; what is small and sensitive (style codes, the AdaIN parameters'
MLP, the discriminator's last layer) stays in float32.

`impl` is `munit_fast.functional`'s, with "reference" for the reference networks' own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from munit_fast import functional, ops, reference
from munit_fast.ops.backends import IMPLEMENTATIONS
from munit_fast.ops.fused_conv import Conv, EpilogueArgs, convolution, epilogue_conv, residual_block
from munit_fast.ops.spec import EpilogueSpec
from munit_fast.ops.upsample_conv import phase_weight
from munit_fast.reference.networks import Params
from munit_fast.reference.networks import split_adain_params as split_adain_params

__all__ = ["AdaINGen", "ContentEncoder", "Decoder", "MsImageDis", "StyleEncoder", "VAEGen", "shared_weights"]

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
    """What the fused networks share: who computes, and whether the backward computes activations again."""

    impl: str = "auto"
    checkpointing: bool = False

    def set_impl(self, impl: str) -> None:
        """Choose the backend of every fused network inside this module ("reference": plain). Raises ValueError."""
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
        for module in self.modules():
            if isinstance(module, Fused):
                module.impl = impl

    def set_checkpointing(self, on: bool) -> None:
        """Choose whether the encoders and decoders inside this module keep their activations for the backward."""
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
    def plain(self) -> bool:
        return self.impl == "reference"

    @property
    def layers(self) -> Any:
        return self.model


def _autocast_off(x: Tensor) -> Any:
    return torch.autocast(x.device.type, enabled=False)


def _compute(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the convolutions: that of autocast, where it is on, else that of the parameters."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and dtype == torch.float32:
        return torch.get_autocast_dtype(kind)
    return dtype


def _prepared(conv: nn.Conv2d, dtype: torch.dtype, phases: bool = False) -> Tensor:
    cache, key = _cache.get(), (id(conv.weight), dtype, phases, torch.is_grad_enabled(), conv.weight.requires_grad)
    if cache is not None and key in cache:
        return cache[key][1]
    weight = phase_weight(conv.weight) if phases else conv.weight
    weight = weight.to(dtype=dtype, memory_format=torch.channels_last)
    if cache is not None:
        cache[key] = (conv.weight, weight)  # held, so that no other tensor takes its id
    return weight


def _pad(block: Any) -> tuple[int, str]:
    return block.pad.padding[0], _PAD_MODES[type(block.pad)]


def _activation(module: nn.Module | None) -> tuple[str, float, Tensor | None]:
    """(act, slope, slopes) of a reference activation."""
    if isinstance(module, nn.LeakyReLU):
        return "lrelu", module.negative_slope, None
    if isinstance(module, nn.PReLU):
        return "prelu", 0.0, module.weight
    return {type(None): "none", nn.ReLU: "relu", nn.SELU: "selu", nn.Tanh: "tanh"}[type(module)], 0.0, None


def _norm(block: Any) -> str:
    norms = {
        type(None): "none",
        nn.InstanceNorm2d: "instance",
        reference.AdaptiveInstanceNorm2d: "instance",
        reference.LayerNorm: "layer",
    }
    return norms[type(block.norm)]


def _epilogue(
    block: Any,
    pad: int,
    pad_mode: str,
    impl: str,
    adain: tuple[Tensor, Tensor] | None = None,
    depth: int = 1,
) -> EpilogueArgs:
    """What follows the convolution of `block`, up to the padding of the next one."""
    norm, (act, slope, slopes) = _norm(block), _activation(block.activation)
    weight, bias = adain if adain is not None else (None, None)
    if isinstance(block.norm, reference.LayerNorm):
        weight, bias = block.norm.gamma, block.norm.beta
    spec = EpilogueSpec(norm, _EPS if norm != "none" else 0.0, act, slope, depth, pad, pad_mode)
    return EpilogueArgs(weight, bias, slopes, spec, impl)


def _conv(block: Any, dtype: torch.dtype) -> Conv:
    """The convolution of `block`, with its bias where that matters."""
    conv = block.conv
    assert conv.bias is not None
    if _norm(block) == "instance":  # which subtracts it again
        return Conv(_prepared(conv, dtype), None, conv.stride[0], unused_bias=conv.bias)
    return Conv(_prepared(conv, dtype), conv.bias.to(dtype), conv.stride[0])


def _phase_conv(block: Any, dtype: torch.dtype, pad_mode: str) -> Conv:
    conv = block.conv
    bias = conv.bias.to(dtype).repeat(4)
    border_weight = conv.weight.to(dtype) if pad_mode == "reflect" else None
    return Conv(_prepared(conv, dtype, phases=True), bias, 1, border_weight)


def _apply(z: Tensor, e: EpilogueArgs, residual: Tensor | None = None) -> Tensor:
    return ops.epilogue(z, e.weight, e.bias, residual, e.slopes, e.spec, e.impl)


def _padded(x: Tensor, pad: int, pad_mode: str, dtype: torch.dtype, impl: str) -> Tensor:
    """x in channels_last and `dtype`, padded."""
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    return functional.bias_act(x, pad=pad, pad_mode=pad_mode, impl=impl) if pad else x


def _check_planes(z: Tensor, what: str) -> None:
    if z.shape[2] * z.shape[3] == 1:
        raise ValueError(f"{what} is too small: a plane of 1×1 cannot be normalised; use a larger image")


def _chain(p: Tensor, blocks: list[Any], impl: str) -> Tensor:
    """The convolutions of `blocks` and all between them; p is padded for the first. Gives the last one's output."""
    z, previous = convolution(p, _conv(blocks[0], p.dtype)), blocks[0]
    for block in blocks[1:]:
        if _norm(previous) == "instance":
            _check_planes(z, "the image")
        z = epilogue_conv(z, _epilogue(previous, *_pad(block), impl), _conv(block, p.dtype))
        previous = block
    return z


def _res_blocks(
    h: Tensor,
    blocks: Any,
    after: tuple[int, str],
    impl: str,
    adain: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Residual blocks on h, which is padded for the first; gives the last one's result padded as `after` says."""
    for i, block in enumerate(blocks):
        first, second = block.model
        style_1, style_2 = adain[2 * i : 2 * i + 2] if adain is not None else (None, None)
        pad, mode = _pad(first)
        out = (pad, mode) if i + 1 < len(blocks) else after
        h = residual_block(
            h,
            _conv(first, h.dtype),
            _epilogue(first, *_pad(second), impl, style_1),
            _conv(second, h.dtype),
            _epilogue(second, *out, impl, style_2),
            pad,
        )
    return h


class _Encoder(Fused):
    """What both encoders share: they read the same padded image."""

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            return super().forward(x)
        first = self.layers[0]
        dtype = _compute(x, first.conv.weight.dtype)
        with _autocast_off(x):
            return self.of_padded(_padded(x, *_pad(first), dtype, self.impl))

    def of_padded(self, p: Tensor) -> Tensor:
        """The code of an image that is padded and cast already."""
        raise NotImplementedError


class StyleEncoder(_Encoder, reference.StyleEncoder):
    """`reference.StyleEncoder`: [N, input_dim, H, W] -> [N, style_dim, 1, 1]; float32 under autocast."""

    def of_padded(self, p: Tensor) -> Tensor:
        return self._recomputed(self._of_padded, p)

    def _of_padded(self, p: Tensor) -> Tensor:
        *blocks, _, last = self.layers
        z = _chain(p, blocks, self.impl)
        pooled = _apply(z, _epilogue(blocks[-1], 0, "zero", self.impl)).mean((2, 3), dtype=last.weight.dtype)
        return F.linear(pooled, last.weight.flatten(1), last.bias)[:, :, None, None]


class ContentEncoder(_Encoder, reference.ContentEncoder):
    """`reference.ContentEncoder`: [N, input_dim, H, W] -> [N, dim · 2^d, H / 2^d, W / 2^d], channels_last."""

    def of_padded(self, p: Tensor) -> Tensor:
        res = self.layers[-1].model
        after = _pad(res[0].model[0]) if len(res) else (0, "zero")
        h = self._recomputed(self._halved, p, after)
        return self._recomputed(_res_blocks, h, res, (0, "zero"), self.impl) if len(res) else h

    def _halved(self, p: Tensor, after: tuple[int, str]) -> Tensor:
        """What comes before the residual blocks, padded for the first of them as `after` says."""
        blocks = list(self.layers[:-1])
        z = _chain(p, blocks, self.impl)
        _check_planes(z, "the image")
        return _apply(z, _epilogue(blocks[-1], *after, self.impl))


class Decoder(reference.Decoder, Fused):
    """`reference.Decoder`: content [N, dim, h, w] -> images [N, output_dim, h · 2^d, w · 2^d], channels_last."""

    def forward(self, x: Tensor, adain: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        if self.plain:
            return super().forward(x, adain)
        dtype = _compute(x, self.layers[-1].conv.weight.dtype)
        with _autocast_off(x):
            res, entry, after = self._plan(x)
            h = _padded(x, *entry, dtype, self.impl)
            if len(res):
                h = self._recomputed(_res_blocks, h, res, after, self.impl, adain)
            return self._recomputed(self._tail, h, [], None)

    def _plan(self, x: Tensor) -> tuple[Any, tuple[int, str], tuple[int, str]]:
        """The residual blocks; the padding of the first convolution, and of the first one after the blocks."""
        chain, *layers, last = self.layers
        mode = _pad(last)[1]
        if len(chain.model):
            _check_planes(x, "the content")
        if not layers:
            after = _pad(last)
        else:  # a small image padded by 1 for a phase convolution: its border, or zeros
            after = (1, "zero" if mode == "zero" else "replicate")
            if mode == "reflect" and min(x.shape[2:]) < 2:
                raise ValueError(f"content must be at least 2×2 for reflection padding; got {list(x.shape)}")
        return chain.model, (_pad(chain.model[0].model[0]) if len(chain.model) else after), after

    def _tail(self, h: Tensor, res: Any, adain: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """The image from h, which is padded for the first of the residual blocks `res` (those that are left)."""
        _, *layers, last = self.layers
        mode, after = _pad(last)[1], self._plan(h)[2]
        if len(res):
            h = _res_blocks(h, res, after, self.impl, adain)
        blocks = [block for block in layers if not isinstance(block, nn.Upsample)]
        if not blocks:
            z = convolution(h, _conv(last, h.dtype))
        else:
            z = convolution(h, _phase_conv(blocks[0], h.dtype, mode))
            for block, following in zip(blocks, [*blocks[1:], None]):
                if following is None:
                    z = epilogue_conv(z, _epilogue(block, *_pad(last), self.impl, depth=2), _conv(last, h.dtype))
                else:
                    z = epilogue_conv(
                        z, _epilogue(block, *after, self.impl, depth=2), _phase_conv(following, h.dtype, mode)
                    )
        return _apply(z, _epilogue(last, 0, "zero", self.impl))

    @torch.no_grad()
    def in_styles(self, x: Tensor, adain: list[list[tuple[Tensor, Tensor]]]) -> list[Tensor]:
        """`forward` for several styles, without a graph; the first convolution, which sees no style, runs once."""
        if self.plain or not len(self.layers[0].model):
            return [self(x, style) for style in adain]
        dtype = _compute(x, self.layers[-1].conv.weight.dtype)
        images = []
        with _autocast_off(x):
            res, entry, after = self._plan(x)
            first, second = res[0].model
            h = _padded(x, *entry, dtype, self.impl)
            z = convolution(h, _conv(first, dtype))
            out = entry if len(res) > 1 else after
            for style in adain:
                z_2 = epilogue_conv(z, _epilogue(first, *_pad(second), self.impl, style[0]), _conv(second, dtype))
                inner = h[:, :, entry[0] : h.shape[2] - entry[0], entry[0] : h.shape[3] - entry[0]]
                y = _apply(z_2, _epilogue(second, *out, self.impl, style[1]), inner)
                images.append(self._tail(y, res[1:], style[2:]))
        return images


class AdaINGen(reference.AdaINGen, Fused):
    """MUNIT's auto-encoder of one domain; see `reference.AdaINGen`, whose state_dict it shares."""

    enc_style: StyleEncoder
    enc_content: ContentEncoder
    dec: Decoder

    style_encoder = StyleEncoder
    content_encoder = ContentEncoder
    decoder = Decoder

    def __init__(self, input_dim: int, params: Params, impl: str = "auto") -> None:
        super().__init__(input_dim, params)
        self.set_impl(impl)

    def pad_image(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] as both encoders read them, for `of_padded`."""
        first = self.enc_content.layers[0]
        dtype = _compute(images, first.conv.weight.dtype)
        with _autocast_off(images):
            return _padded(images, *_pad(first), dtype, self.impl)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.plain:
            return super().encode(images)
        p = self.pad_image(images)
        return self.content_of(p), self.style_of(p)

    def content_of(self, p: Tensor) -> Tensor:
        """The content code of `pad_image(images)`."""
        with _autocast_off(p):
            return self.enc_content.of_padded(p)

    def style_of(self, p: Tensor) -> Tensor:
        """The style code of `pad_image(images)`."""
        with _autocast_off(p):
            return self.enc_style.of_padded(p)

    def adain_params(self, style: Tensor) -> list[tuple[Tensor, Tensor]]:
        """One (weight, bias) pair [N, C] for each AdaIN layer from a style [N, style_dim, 1, 1]; not under autocast."""
        with _autocast_off(style):
            return split_adain_params(self.mlp(style.to(next(self.mlp.parameters()).dtype)), self.dec)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        if self.plain:
            return super().decode(content, style)
        return self.dec(content, self.adain_params(style))

    @torch.no_grad()
    def decode_styles(self, content: Tensor, styles: Tensor) -> Tensor:
        """content [N, …] in several styles [N, S, style_dim] -> images [N, S, C, H, W], without a graph."""
        with shared_weights():
            if self.plain:
                images = [self.decode(content, s[:, :, None, None]) for s in styles.unbind(1)]
            else:
                images = self.dec.in_styles(content, [self.adain_params(s) for s in styles.unbind(1)])
        return torch.stack(images, dim=1)


class VAEGen(reference.VAEGen, Fused):
    """UNIT's auto-encoder of one domain; see `reference.VAEGen`, whose state_dict it shares."""

    content_encoder = ContentEncoder
    decoder = Decoder

    def __init__(self, input_dim: int, params: Params, impl: str = "auto") -> None:
        super().__init__(input_dim, params)
        self.set_impl(impl)


class MsImageDis(reference.MsImageDis, Fused):
    """The multi-scale discriminator; see `reference.MsImageDis`, whose state_dict it shares.

    With norm "bn" or "sn", which no epilogue has, the reference's forward runs. Outputs are float32 under autocast.
    """

    def __init__(self, input_dim: int, params: Params, impl: str = "auto") -> None:
        super().__init__(input_dim, params)
        # With these, one call for real and fake images together is not the same as two.
        self.fused_norm = params["norm"] not in ("bn", "sn")
        self.set_impl(impl)

    @property
    def plain(self) -> bool:
        return self.impl == "reference" or not self.fused_norm

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.plain:
            return super().forward(x)
        dtype = _compute(x, next(self.parameters()).dtype)
        outputs = []
        with _autocast_off(x):
            x = x.to(dtype).contiguous(memory_format=torch.channels_last)
            for net in self.cnns:
                outputs.append(self._net(net, x))
                x = self.downsample(x)
        return outputs

    def _net(self, net: Any, x: Tensor) -> Tensor:
        *blocks, last = net
        p = _padded(x, *_pad(blocks[0]), x.dtype, self.impl)
        z = _chain(p, blocks, self.impl)
        if _norm(blocks[-1]) == "instance":
            _check_planes(z, "the image")
        y = _apply(z, _epilogue(blocks[-1], 0, "zero", self.impl))
        return F.conv2d(y.to(last.weight.dtype), last.weight, last.bias)

    def calc_dis_loss(self, input_fake: Tensor, input_real: Tensor) -> Tensor:
        """The discriminator's loss, summed over the scales: fake towards 0, real towards 1."""
        if self.plain:
            return super().calc_dis_loss(input_fake, input_real)
        if input_fake.shape[1:] != input_real.shape[1:]:
            return self._losses(self.forward(input_fake), 0.0) + self._losses(self.forward(input_real), 1.0)
        n = input_fake.shape[0]
        outputs = self.forward(torch.cat([input_fake.to(input_real.dtype), input_real]))
        fake, real = [y[:n] for y in outputs], [y[n:] for y in outputs]
        return self._losses(fake, 0.0) + self._losses(real, 1.0)

    def calc_gen_loss(self, input_fake: Tensor) -> Tensor:
        """The generator's adversarial loss, summed over the scales: fake towards 1."""
        if self.plain:
            return super().calc_gen_loss(input_fake)
        return self._losses(self.forward(input_fake), 1.0)

    def _losses(self, outputs: list[Tensor], target: float) -> Tensor:
        if self.gan_type == "lsgan":
            return functional.lsgan_loss(outputs, target, impl=self.impl)
        return torch.stack([self._loss(output, target) for output in outputs]).sum()

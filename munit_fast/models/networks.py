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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast import reference
from munit_fast.models.blocks import (
    ConvInput,
    Fused,
    apply_epilogue,
    autocast_off,
    check_planes,
    compute_dtype,
    conv_args,
    conv_chain,
    epilogue_args,
    input_padding,
    norm_of,
    pad_input,
    padding,
    phase_conv_args,
    phase_input_padding,
    res_blocks,
)
from munit_fast.models.discriminators import MsImageDis
from munit_fast.models.residual import ResidualDis
from munit_fast.models.weights import computed_once, shared_weights, weight_of
from munit_fast.ops.fused_conv import convolution, epilogue_conv
from munit_fast.reference.networks import Params, split_adain_params

__all__ = [
    "AdaINGen",
    "ContentEncoder",
    "Decoder",
    "Fused",
    "MsImageDis",
    "Params",
    "ResidualDis",
    "StyleEncoder",
    "VAEGen",
    "shared_weights",
    "split_adain_params",
]


class _Encoder(Fused):
    """What both encoders share: they read the same padded image."""

    def forward(self, x: Tensor) -> Tensor:
        """The code of images.

        Args:
            x: Images [N, C, H, W] in [-1, 1], NCHW or channels_last.

        Returns:
            The code, of the shape that the class states.

        Raises:
            ValueError: The image is so small that an instance norm would see a plane of 1×1.
        """
        if self.uses_reference:
            return super().forward(x)
        first = self.layers[0]
        dtype = compute_dtype(x, first.conv.bias.dtype)
        with autocast_off(x):
            return self.of_padded(pad_input(x, *padding(first), self.image_dtype(dtype), self.impl), dtype)

    def of_padded(self, p: Tensor, dtype: torch.dtype) -> Tensor:
        """The code of an image that is padded and cast already.

        Args:
            p: [N, C, H + 6, W + 6], as `AdaINGen.pad_image` returns it.
            dtype: Of the convolutions after the first.
        """
        raise NotImplementedError


class StyleEncoder(_Encoder, reference.StyleEncoder):
    """`reference.StyleEncoder`: [N, input_dim, H, W] -> [N, style_dim, 1, 1]; float32 under autocast."""

    def of_padded(self, p: Tensor, dtype: torch.dtype) -> Tensor:
        """The style code [N, style_dim, 1, 1] of a padded image, in the dtype of the parameters.

        Args:
            p: [N, C, H + 6, W + 6], as `AdaINGen.pad_image` returns it.
            dtype: Of the convolutions after the first.
        """
        with computed_once(self):
            return self._recomputed(self._of_padded, p, dtype)

    def _of_padded(self, p: Tensor, dtype: torch.dtype) -> Tensor:
        *blocks, _, last = self.layers
        output = conv_chain(p, blocks, self.impl, dtype)
        pooled = apply_epilogue(output, epilogue_args(blocks[-1], 0, "zero", self.impl)).mean(
            (2, 3), dtype=last.bias.dtype
        )
        return F.linear(pooled, weight_of(last).flatten(1), last.bias)[:, :, None, None]


class ContentEncoder(_Encoder, reference.ContentEncoder):
    """`reference.ContentEncoder`: [N, input_dim, H, W] -> [N, dim · 2^d, H / 2^d, W / 2^d], channels_last."""

    def of_padded(self, p: Tensor, dtype: torch.dtype) -> Tensor:
        """The content code [N, dim · 2^d, H / 2^d, W / 2^d] of a padded image, in `dtype`.

        Args:
            p: [N, C, H + 6, W + 6], as `AdaINGen.pad_image` returns it.
            dtype: Of the convolutions after the first.

        Raises:
            ValueError: An instance norm would see a plane of 1×1.
        """
        res = self.layers[-1].model
        with computed_once(self):
            if not len(res):
                return self._recomputed(self._halved, p, dtype, None)[0]
            h, pad = self._recomputed(self._halved, p, dtype, res[0].model[0])
            return self._recomputed(res_blocks, h, pad, res, (0, "zero"), self.impl)

    def _halved(self, p: Tensor, dtype: torch.dtype, following: Any) -> tuple[Tensor, int]:
        """What comes before the residual blocks, and its pixels of padding for `following`, the first of them."""
        blocks = list(self.layers[:-1])
        output = conv_chain(p, blocks, self.impl, dtype)
        check_planes(output.z, "the image")
        x = ConvInput.of(output.z, self.impl)._replace(dtype=dtype)
        after = input_padding(following, x) if following is not None else (0, "zero")
        return apply_epilogue(output, epilogue_args(blocks[-1], *after, self.impl)).to(dtype), after[0]


class Decoder(reference.Decoder, Fused):
    """`reference.Decoder`: content [N, dim, h, w] -> images [N, output_dim, h · 2^d, w · 2^d], channels_last."""

    def forward(self, x: Tensor, adain: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Images from a content code.

        Args:
            x: Content [N, dim, h, w].
            adain: 2 · n_res pairs (weight, bias), each [N, dim], for the residual blocks' norms "adain"; else None.

        Returns:
            Images [N, output_dim, h · 2^d, w · 2^d] in [-1, 1], channels_last, in the dtype of the convolutions, or
            with `float32_images` at least float32.

        Raises:
            ValueError: The content has planes of 1×1, which cannot be normalised, or is too small to be reflected.
        """
        if self.uses_reference:
            return super().forward(x, adain)
        dtype = compute_dtype(x, self.layers[-1].conv.bias.dtype)
        with autocast_off(x), computed_once(self):
            x = x.to(dtype)
            res, entry, after = self._plan(x)
            h = pad_input(x, *entry, dtype, self.impl)
            if len(res):
                h = self._recomputed(res_blocks, h, entry[0], res, after, self.impl, adain)
            return self._recomputed(self._tail, h, after[0] if len(res) else entry[0])

    def _plan(self, x: Tensor) -> tuple[Any, tuple[int, str], tuple[int, str]]:
        """The residual blocks; what pads the content for the first convolution, and the first one after the blocks."""
        chain, *layers, last = self.layers
        mode, like = padding(last)[1], ConvInput.of(x, self.impl)
        if len(chain.model):
            check_planes(x, "the content")
        if not layers:
            after = input_padding(last, like._replace(dtype=self.image_dtype(like.dtype)))
        else:
            after = phase_input_padding(_without_upsampling(layers)[0], like, mode)
            if mode == "reflect" and min(x.shape[2:]) < 2:
                raise ValueError(f"content must be at least 2×2 for reflection padding; got {list(x.shape)}")
        entry = input_padding(chain.model[0].model[0], like) if len(chain.model) else after
        return chain.model, entry, after

    def _tail(self, h: Tensor, pad: int) -> Tensor:
        """The image from what the residual blocks give, h, which has `pad` pixels of padding."""
        _, *layers, last = self.layers
        mode, x = padding(last)[1], ConvInput.of(h, self.impl, pad)
        blocks = _without_upsampling(layers)
        image = self.image_dtype(h.dtype)
        if not blocks:
            output = convolution(h.to(image), conv_args(last, x._replace(dtype=image)))
        else:
            output = convolution(h, phase_conv_args(blocks[0], x, mode), norm_of(blocks[0]))
            for block, following in zip(blocks, [*blocks[1:], None]):
                x = ConvInput.of(output.z, self.impl, depth=2)
                if following is None and image != x.dtype:
                    x = x._replace(dtype=image)
                    epilogue = epilogue_args(block, *input_padding(last, x), self.impl, depth=2)
                    output = convolution(apply_epilogue(output, epilogue).to(image), conv_args(last, x))
                elif following is None:
                    epilogue = epilogue_args(block, *input_padding(last, x), self.impl, depth=2)
                    output = epilogue_conv(output, epilogue, conv_args(last, x))
                else:
                    epilogue = epilogue_args(block, *phase_input_padding(following, x, mode), self.impl, depth=2)
                    output = epilogue_conv(output, epilogue, phase_conv_args(following, x, mode), norm_of(following))
        return apply_epilogue(output, epilogue_args(last, 0, "zero", self.impl))

    @torch.no_grad()
    def in_styles(self, x: Tensor, adain: list[list[tuple[Tensor, Tensor]]]) -> list[Tensor]:
        """`forward` for several styles, without a graph; the first convolution, which sees no style, runs once.

        Args:
            x: Content [N, dim, h, w].
            adain: For each style the pairs that `forward` takes.

        Returns:
            For each style images [N, output_dim, h · 2^d, w · 2^d].

        Raises:
            ValueError: As `forward`.
        """
        if self.uses_reference or not len(self.layers[0].model):
            return [self(x, style) for style in adain]
        dtype = compute_dtype(x, self.layers[-1].conv.bias.dtype)
        images = []
        with autocast_off(x), computed_once(self):
            x = x.to(dtype)
            res, entry, after = self._plan(x)
            first, second = res[0].model
            like = ConvInput.of(x, self.impl)
            h = pad_input(x, *entry, dtype, self.impl)
            shared = convolution(h, conv_args(first, like), norm_of(first))
            out = input_padding(res[1].model[0], like) if len(res) > 1 else after
            inner = h[:, :, entry[0] : h.shape[2] - entry[0], entry[0] : h.shape[3] - entry[0]]
            for style in adain:
                epilogue = epilogue_args(first, *input_padding(second, like), self.impl, style[0])
                output = epilogue_conv(shared, epilogue, conv_args(second, like), norm_of(second))
                y = apply_epilogue(output, epilogue_args(second, *out, self.impl, style[1]), inner)
                y = res_blocks(y, out[0], res[1:], after, self.impl, style[2:]) if len(res) > 1 else y
                images.append(self._tail(y, after[0]))
        return images


def keep_steps(gen_a: Any, gen_b: Any, range_a: object = "dtype", range_b: object = "dtype") -> None:
    """Keep the images of domains with a value range of their own in float32 under autocast: they have over 8 bits.

    Args:
        gen_a: The generator of domain A.
        gen_b: The generator of domain B.
        range_a: `range_a` of the configuration.
        range_b: `range_b` of the configuration.
    """
    gen_a.set_float32_images(range_a != "dtype")
    gen_b.set_float32_images(range_b != "dtype")


def fused_blocks(network: nn.Module) -> list[tuple[Any, bool]]:
    """The blocks whose convolutions the fused networks compute, and whether each is computed as phases.

    Args:
        network: of this module; one that uses the reference's forward has none.
    """
    if isinstance(network, Fused) and network.uses_reference:
        return []
    decoders = [m for m in network.modules() if isinstance(m, Decoder)]
    phases = {id(block) for decoder in decoders for block in _without_upsampling(list(decoder.layers)[1:-1])}
    blocks = [m for m in network.modules() if isinstance(m, reference.Conv2dBlock)]
    return [(block, id(block) in phases) for block in blocks]


def _without_upsampling(layers: list[nn.Module]) -> list[Any]:
    return [layer for layer in layers if not isinstance(layer, nn.Upsample)]


class AdaINGen(reference.AdaINGen, Fused):
    """MUNIT's auto-encoder of one domain; see `reference.AdaINGen`, whose state_dict it shares.

    Args:
        input_dim: Channels C of the images.
        params: The `gen:` section of a configuration: dim, style_dim, n_downsample, n_res, activ, pad_type, mlp_dim;
            not published: weight_norm.
        impl: The backend, as in `munit_fast.functional`; "reference": the reference's own forward.

    Raises:
        ValueError: activ, pad_type, weight_norm or impl is unknown.
    """

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
        """Images as both encoders read them, for `content_of` and `style_of`.

        Args:
            images: [N, C, H, W] in [-1, 1].

        Returns:
            [N, C, H + 6, W + 6], channels_last, in the dtype of the convolutions, or with `float32_images` at least
            float32.
        """
        first = self.enc_content.layers[0]
        dtype = self.image_dtype(self._dtype(images))
        with autocast_off(images):
            return pad_input(images, *padding(first), dtype, self.impl)

    def _dtype(self, x: Tensor) -> torch.dtype:
        return compute_dtype(x, self.enc_content.layers[0].conv.bias.dtype)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The content and the style of images (section 3 of the paper).

        Args:
            images: [N, C, H, W] in [-1, 1].

        Returns:
            Content [N, dim · 2^d, H / 2^d, W / 2^d] and style [N, style_dim, 1, 1], with d = n_downsample. Under
            autocast the style is float32 and the content has autocast's dtype.

        Raises:
            ValueError: The image is so small that an instance norm would see a plane of 1×1.
        """
        if self.uses_reference:
            return super().encode(images)
        p = self.pad_image(images)
        return self.content_of(p), self.style_of(p)

    def content_of(self, p: Tensor) -> Tensor:
        """The content code [N, dim · 2^d, H / 2^d, W / 2^d] of images.

        Args:
            p: What `pad_image` returned for them.
        """
        dtype = self._dtype(p)
        with autocast_off(p):
            return self.enc_content.of_padded(p, dtype)

    def style_of(self, p: Tensor) -> Tensor:
        """The style code [N, style_dim, 1, 1] of images.

        Args:
            p: What `pad_image` returned for them.
        """
        dtype = self._dtype(p)
        with autocast_off(p):
            return self.enc_style.of_padded(p, dtype)

    def adain_params(self, style: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The parameters of the decoder's AdaIN layers, from an MLP (section 5.1 of the paper); not under autocast.

        Args:
            style: [N, style_dim, 1, 1].

        Returns:
            One (weight, bias) pair for each layer, both [N, channels of the layer].
        """
        with autocast_off(style):
            return split_adain_params(self.mlp(style.to(next(self.mlp.parameters()).dtype)), self.dec)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """Images of a content and a style.

        Args:
            content: [N, dim · 2^d, h, w].
            style: [N, style_dim, 1, 1].

        Returns:
            Images [N, C, h · 2^d, w · 2^d] in [-1, 1], channels_last.

        Raises:
            ValueError: As `Decoder.forward`.
        """
        if self.uses_reference:
            return super().decode(content, style)
        return self.dec(content, self.adain_params(style))

    @torch.no_grad()
    def decode_styles(self, content: Tensor, styles: Tensor) -> Tensor:
        """Images of a content in several styles, without a graph.

        Args:
            content: [N, dim · 2^d, h, w].
            styles: [N, S, style_dim].

        Returns:
            Images [N, S, C, h · 2^d, w · 2^d] in [-1, 1].

        Raises:
            ValueError: As `Decoder.forward`.
        """
        with shared_weights():
            if self.uses_reference:
                images = [self.decode(content, s[:, :, None, None]) for s in styles.unbind(1)]
            else:
                images = self.dec.in_styles(content, [self.adain_params(s) for s in styles.unbind(1)])
        return torch.stack(images, dim=1)


class VAEGen(reference.VAEGen, Fused):
    """UNIT's auto-encoder of one domain; see `reference.VAEGen`, whose state_dict it shares.

    Args:
        input_dim: Channels C of the images.
        params: The `gen:` section of a configuration: dim, n_downsample, n_res, activ, pad_type; not
            published: weight_norm.
        impl: The backend, as in `munit_fast.functional`; "reference": the reference's own forward.

    Raises:
        ValueError: activ, pad_type, weight_norm or impl is unknown.
    """

    content_encoder = ContentEncoder
    decoder = Decoder

    def __init__(self, input_dim: int, params: Params, impl: str = "auto") -> None:
        super().__init__(input_dim, params)
        self.set_impl(impl)

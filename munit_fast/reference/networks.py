"""MUNIT's generator (style and content encoders, AdaIN decoder), UNIT's VAE generator, the multi-scale discriminator.

`params` are the `gen:` and `dis:` sections of a configuration; see each constructor for the keys it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import AdaptiveInstanceNorm2d, Conv2dBlock, LinearBlock, ResBlock
from .weight_norms import norm_weights

Params = Mapping[str, Any]


class StyleEncoder(nn.Module):
    """Image -> style code: 7×7 conv, four stride-2 4×4 convs (whatever n_downsample is), global average, 1×1 conv.

    Shape: [N, input_dim, H, W] -> [N, style_dim, 1, 1]. No normalisation: it would erase the style.

    Args:
        input_dim: channels of the images.
        dim: channels after the first convolution.
        style_dim: length of the style code.
        activ: one of `layers.ACTIVATIONS`.
        pad_type: one of `layers.PADDINGS`.
    """

    def __init__(self, input_dim: int, dim: int, style_dim: int, activ: str, pad_type: str) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            Conv2dBlock(input_dim, dim, 7, 1, 3, activation=activ, pad_type=pad_type),
            Conv2dBlock(dim, 2 * dim, 4, 2, 1, activation=activ, pad_type=pad_type),
            Conv2dBlock(2 * dim, 4 * dim, 4, 2, 1, activation=activ, pad_type=pad_type),
            Conv2dBlock(4 * dim, 4 * dim, 4, 2, 1, activation=activ, pad_type=pad_type),
            Conv2dBlock(4 * dim, 4 * dim, 4, 2, 1, activation=activ, pad_type=pad_type),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(4 * dim, style_dim, 1, 1, 0),
        ]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The style code [N, style_dim, 1, 1] of images x [N, input_dim, H, W] in [-1, 1]."""
        return self.model(x)


class _ResBlocks(nn.Module):
    """A chain of residual blocks; `adain` holds two (weight, bias) pairs a block. Shape: [N, dim, H, W], kept."""

    def __init__(self, num_blocks: int, dim: int, norm: str, activ: str, pad_type: str) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *(ResBlock(dim, norm=norm, activation=activ, pad_type=pad_type) for _ in range(num_blocks))
        )

    def forward(self, x: Tensor, adain: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        for i, block in enumerate(self.model):
            x = block(x, None if adain is None else adain[2 * i : 2 * i + 2])
        return x


class ContentEncoder(nn.Module):
    """Image -> content code: 7×7 conv, n_downsample stride-2 4×4 convs (channels doubled), residual blocks; IN inside.

    Shape: [N, input_dim, H, W] -> [N, dim · 2^n_downsample, H / 2^n_downsample, W / 2^n_downsample].

    Args:
        n_downsample: how often the image is halved.
        n_res: residual blocks.
        input_dim: channels of the images.
        dim: channels after the first convolution.
        activ: one of `layers.ACTIVATIONS`.
        pad_type: one of `layers.PADDINGS`.

    Attributes:
        output_dim: channels of the code, dim · 2^n_downsample.
    """

    def __init__(self, n_downsample: int, n_res: int, input_dim: int, dim: int, activ: str, pad_type: str) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv2dBlock(input_dim, dim, 7, 1, 3, "in", activ, pad_type)]
        for _ in range(n_downsample):
            layers.append(Conv2dBlock(dim, 2 * dim, 4, 2, 1, "in", activ, pad_type))
            dim *= 2
        layers.append(_ResBlocks(n_res, dim, "in", activ, pad_type))
        self.model = nn.Sequential(*layers)
        self.output_dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """The content code [N, output_dim, H / 2^d, W / 2^d] of images x [N, input_dim, H, W]; d = n_downsample."""
        return self.model(x)


class Decoder(nn.Module):
    """Content code -> image: residual blocks, n_upsample × (nearest ×2, 5×5 conv, layer norm), 7×7 conv, tanh.

    Shape: [N, dim, h, w] -> [N, output_dim, h · 2^n_upsample, w · 2^n_upsample], values in [-1, 1].
    With res_norm "adain", `adain` gives 2 · n_res (weight, bias) pairs, each [N, dim].

    Args:
        n_upsample: how often the content is doubled.
        n_res: residual blocks.
        dim: channels of the content.
        output_dim: channels of the images.
        res_norm: the residual blocks' norm, one of `layers.NORMS`: "adain" for MUNIT, "in" for UNIT.
        activ: one of `layers.ACTIVATIONS`.
        pad_type: one of `layers.PADDINGS`.
    """

    def __init__(
        self, n_upsample: int, n_res: int, dim: int, output_dim: int, res_norm: str, activ: str, pad_type: str
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_ResBlocks(n_res, dim, res_norm, activ, pad_type)]
        for _ in range(n_upsample):
            layers.append(nn.Upsample(scale_factor=2))
            layers.append(Conv2dBlock(dim, dim // 2, 5, 1, 2, "ln", activ, pad_type))
            dim //= 2
        layers.append(Conv2dBlock(dim, output_dim, 7, 1, 3, "none", "tanh", pad_type))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor, adain: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Images from a content code.

        Args:
            x: content [N, dim, h, w].
            adain: 2 · n_res pairs (weight, bias), each [N, dim], for res_norm "adain"; else None.

        Returns:
            Images [N, output_dim, h · 2^n_upsample, w · 2^n_upsample] in [-1, 1].
        """
        x = self.model[0](x, adain)
        return self.model[1:](x)


class MLP(nn.Module):
    """Style code -> AdaIN parameters: three linear layers with ReLU between.

    Shape: [N, style_dim] or [N, style_dim, 1, 1] -> [N, output_dim].
    """

    def __init__(self, input_dim: int, output_dim: int, dim: int, activ: str = "relu") -> None:
        super().__init__()
        self.model = nn.Sequential(
            LinearBlock(input_dim, dim, activ),
            LinearBlock(dim, dim, activ),
            LinearBlock(dim, output_dim, "none"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, style_dim] or [N, style_dim, 1, 1] -> [N, output_dim]."""
        return self.model(x.reshape(x.shape[0], -1))


def num_adain_params(module: nn.Module) -> int:
    """How many numbers per sample the AdaIN layers inside `module` take: two per feature."""
    return sum(2 * m.num_features for m in module.modules() if isinstance(m, AdaptiveInstanceNorm2d))


def split_adain_params(params: Tensor, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Cut the MLP's output [N, P] into one (weight, bias) pair [N, C] per AdaIN layer, in module order.

    The layout is bias first, then weight (the "mean" and the "std" of section 5.1 of the paper), at raw scale.
    """
    widths = [m.num_features for m in module.modules() if isinstance(m, AdaptiveInstanceNorm2d)]
    if not widths:
        return []
    # One operation: the backward is then a single concatenation.
    parts = params.split([c for c in widths for _ in range(2)], dim=1)
    return list(zip(parts[1::2], parts[::2]))


class AdaINGen(nn.Module):
    """MUNIT's auto-encoder of one domain (section 5.1 of the paper).

    Keys of `params`: dim, style_dim, n_downsample, n_res, activ, pad_type, mlp_dim; not published: weight_norm, "none"
    (default) or "spectral".
    """

    style_encoder: type[StyleEncoder] = StyleEncoder
    content_encoder: type[ContentEncoder] = ContentEncoder
    decoder: type[Decoder] = Decoder

    def __init__(self, input_dim: int, params: Params) -> None:
        super().__init__()
        dim, n_downsample, n_res = params["dim"], params["n_downsample"], params["n_res"]
        activ, pad_type = params["activ"], params["pad_type"]
        self.enc_style = self.style_encoder(input_dim, dim, params["style_dim"], activ, pad_type)
        self.enc_content = self.content_encoder(n_downsample, n_res, input_dim, dim, activ, pad_type)
        self.dec = self.decoder(n_downsample, n_res, self.enc_content.output_dim, input_dim, "adain", activ, pad_type)
        self.mlp = MLP(params["style_dim"], num_adain_params(self.dec), params["mlp_dim"], activ)
        norm_weights(self, params.get("weight_norm", "none"))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The content and the style of images (section 3 of the paper).

        Args:
            images: [N, C, H, W] in [-1, 1].

        Returns:
            Content [N, dim · 2^d, H / 2^d, W / 2^d] and style [N, style_dim, 1, 1], with d = n_downsample.
        """
        style = self.enc_style(images)
        return self.enc_content(images), style

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """Images of a content and a style.

        Args:
            content: [N, dim · 2^d, h, w].
            style: [N, style_dim, 1, 1].

        Returns:
            Images [N, C, h · 2^d, w · 2^d] in [-1, 1].
        """
        return self.dec(content, split_adain_params(self.mlp(style), self.dec))

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct: decode(encode(images)), images [N, C, H, W] in [-1, 1]."""
        content, style = self.encode(images)
        return self.decode(content, style)


class VAEGen(nn.Module):
    """UNIT's auto-encoder of one domain: the code is the mean of a unit-variance Gaussian.

    Keys of `params`: dim, n_downsample, n_res, activ, pad_type; not published: weight_norm, "none" (default) or
    "spectral".
    """

    content_encoder: type[ContentEncoder] = ContentEncoder
    decoder: type[Decoder] = Decoder

    def __init__(self, input_dim: int, params: Params) -> None:
        super().__init__()
        dim, n_downsample, n_res = params["dim"], params["n_downsample"], params["n_res"]
        activ, pad_type = params["activ"], params["pad_type"]
        self.enc = self.content_encoder(n_downsample, n_res, input_dim, dim, activ, pad_type)
        self.dec = self.decoder(n_downsample, n_res, self.enc.output_dim, input_dim, "in", activ, pad_type)
        norm_weights(self, params.get("weight_norm", "none"))

    def encode(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The code of images: the mean of a Gaussian of unit variance, and a draw of its noise.

        Args:
            images: [N, C, H, W] in [-1, 1].
            noise: of the code's shape; None draws it with torch's CPU generator.

        Returns:
            Mean and noise, both [N, dim · 2^d, H / 2^d, W / 2^d] on one device, in one dtype. Their sum is a sample.
        """
        mean = self.enc(images)
        if noise is None:
            noise = torch.randn(mean.shape)
        return mean, noise.to(mean)

    def decode(self, code: Tensor) -> Tensor:
        """[N, dim · 2^d, h, w] -> images [N, C, H, W] in [-1, 1]."""
        return self.dec(code)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images [N, C, H, W] in [-1, 1]; the code is noisy in training mode only."""
        mean, noise = self.encode(images)
        return self.decode(mean + noise if self.training else mean)


class MsImageDis(nn.Module):
    """Multi-scale patch discriminator (Wang et al., CVPR 2018) with LSGAN or non-saturating losses.

    Keys of `params`: dim, norm, activ, n_layer, gan_type, num_scales, pad_type; not published: weight_norm, "none"
    (default) or "spectral", for norm "none", "in" and "ln".
    """

    gan_types: ClassVar[tuple[str, ...]] = ("lsgan", "nsgan")  # published
    arch: ClassVar[str] = "multiscale"  # `dis.arch` of the configurations that are for it

    def __init__(self, input_dim: int, params: Params) -> None:
        super().__init__()
        if params.get("arch", self.arch) != self.arch:
            raise ValueError(f"arch must be {self.arch} for {type(self).__name__}; got {params['arch']!r}")
        if params["gan_type"] not in self.gan_types:
            raise ValueError(f"gan_type must be one of {', '.join(self.gan_types)}; got {params['gan_type']!r}")
        if params.get("weight_norm", "none") != "none" and params["norm"] in ("sn", "bn"):
            raise ValueError(
                f"weight_norm needs norm none, in or ln, which leave weights alone; got {params['norm']!r}"
            )
        self.gan_type: str = params["gan_type"]
        self.downsample = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.cnns = nn.ModuleList(self._make_net(input_dim, params) for _ in range(params["num_scales"]))
        norm_weights(self, params.get("weight_norm", "none"))

    @staticmethod
    def _make_net(input_dim: int, params: Params) -> nn.Sequential:
        dim, activ, pad_type = params["dim"], params["activ"], params["pad_type"]
        layers: list[nn.Module] = [Conv2dBlock(input_dim, dim, 4, 2, 1, "none", activ, pad_type)]
        for _ in range(params["n_layer"] - 1):
            layers.append(Conv2dBlock(dim, 2 * dim, 4, 2, 1, params["norm"], activ, pad_type))
            dim *= 2
        layers.append(nn.Conv2d(dim, 1, 1, 1, 0))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """One patch map [N, 1, h_i, w_i] for each scale of images x [N, C, H, W] in [-1, 1], finest first."""
        outputs = []
        for net in self.cnns:
            outputs.append(net(x))
            x = self.downsample(x)
        return outputs

    def calc_dis_loss(self, input_fake: Tensor, input_real: Tensor) -> Tensor:
        """The discriminator's loss, summed over the scales: fake towards 0, real towards 1.

        Args:
            input_fake: images [N, C, H, W] in [-1, 1].
            input_real: images [M, C, H', W'] in [-1, 1].

        Returns:
            A scalar.
        """
        fake, real = self.forward(input_fake), self.forward(input_real)
        return torch.stack([self._loss(f, 0.0) + self._loss(r, 1.0) for f, r in zip(fake, real)]).sum()

    def calc_gen_loss(self, input_fake: Tensor) -> Tensor:
        """The generator's adversarial loss on images [N, C, H, W], summed over the scales, a scalar: fake towards 1."""
        return torch.stack([self._loss(f, 1.0) for f in self.forward(input_fake)]).sum()

    def _loss(self, output: Tensor, target: float) -> Tensor:
        if self.gan_type == "lsgan":
            return torch.mean((output - target) ** 2)
        # With logits: the published sigmoid followed by a cross-entropy saturates and loses its gradient.
        return F.binary_cross_entropy_with_logits(output, torch.full_like(output, target))

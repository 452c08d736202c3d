"""Networks of other image translations, written for `networks_of_others` from their papers' descriptions.

None of it is their code. What decides whether `munit_fast.accelerate` finds a norm is as in the published networks:
class names, the attributes of a block, which modules stand in a `Sequential`, which activations work in place or are
functions in a forward, and the kind of spectral norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """Residual block of CycleGAN (Zhu et al., ICCV 2017): x + conv_block(x).

    Args:
        dim: channels.
        dilation: of the first convolution, as in EdgeConnect.
        spectral: whether the convolutions have spectral norms, as in EdgeConnect.
    """

    def __init__(self, dim: int, dilation: int = 1, spectral: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for spread in (dilation, 1):
            conv = _spectral(nn.Conv2d(dim, dim, 3, dilation=spread, bias=not spectral), spectral)
            layers += [nn.ReflectionPad2d(spread), conv, nn.InstanceNorm2d(dim), nn.ReLU(True)]
        self.conv_block = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The sum: [N, dim, H, W], kept."""
        return x + self.conv_block(x)


def _spectral(module: nn.Module, wanted: bool = True) -> nn.Module:
    """With PyTorch's older spectral norm, a hook that computes the weight before each forward."""
    return nn.utils.spectral_norm(module) if wanted else module


class _Blur(nn.Module):
    """A 3×3 or 4×4 binomial filter with stride 2, of each channel by itself (Zhang, ICML 2019)."""

    filt: Tensor

    def __init__(self, channels: int, taps: Sequence[float], gain: float) -> None:
        super().__init__()
        row = torch.tensor(taps)
        kernel = torch.outer(row, row) / row.sum() ** 2 * gain
        self.register_buffer("filt", kernel.expand(channels, 1, -1, -1).clone())


class Downsample(_Blur):
    """Antialiased halving: reflection padding, then the filter 1 2 1 with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, (1.0, 2.0, 1.0), 1.0)
        self.pad = nn.ReflectionPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, H / 2, W / 2]."""
        return F.conv2d(self.pad(x), self.filt, stride=2, groups=x.shape[1])


class Upsample(_Blur):
    """Antialiased doubling: replication padding, then the transposed filter 1 3 3 1 with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, (1.0, 3.0, 3.0, 1.0), 4.0)
        self.pad = nn.ReplicationPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, 2·H, 2·W]."""
        y = F.conv_transpose2d(self.pad(x), self.filt, stride=2, padding=2, groups=x.shape[1])
        return y[:, :, 1:, 1:][:, :, :-1, :-1]


class ResnetGenerator(nn.Module):
    """The ResNet generator of CycleGAN; `antialias`: that of CUT (Park et al., ECCV 2020), with blurred resampling.

    Args:
        width: channels of the first layer.
        blocks: residual blocks.
        antialias: blur before each halving and after each doubling.
    """

    def __init__(self, width: int = 64, blocks: int = 9, antialias: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), *_normed(width)]
        for c in (width, 2 * width):
            layers += [nn.Conv2d(c, 2 * c, 3, 1 if antialias else 2, 1), *_normed(2 * c)]
            layers += [Downsample(2 * c)] if antialias else []
        layers += [ResnetBlock(4 * width) for _ in range(blocks)]
        for c in (4 * width, 2 * width):
            if antialias:
                layers += [Upsample(c), nn.Conv2d(c, c // 2, 3, 1, 1)]
            else:
                layers += [nn.ConvTranspose2d(c, c // 2, 3, 2, 1, 1)]
            layers += _normed(c // 2)
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """A picture from a picture: [N, 3, H, W], kept."""
        return self.model(x)

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """What the numbered layers give, which CUT's loss compares; each layer is called by itself."""
        found = []
        for i, layer in enumerate(self.model):
            x = layer(x)
            if i in layers:
                found.append(x)
        return found


def _normed(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels), nn.ReLU(True)]


class UnetSkipConnectionBlock(nn.Module):
    """One level of the U-Net of pix2pix (Isola et al., CVPR 2017), with the deeper levels inside.

    The activation in front works in place, so that it changes the skip connection too.
    """

    def __init__(self, outer: int, inner: int, within: nn.Module | None, outermost: bool, dropout: bool) -> None:
        super().__init__()
        self.outermost = outermost
        down: list[nn.Module] = [nn.Conv2d(outer, inner, 4, 2, 1)]
        up: list[nn.Module] = [
            nn.ReLU(True),
            nn.ConvTranspose2d(inner if within is None else 2 * inner, outer, 4, 2, 1),
        ]
        if outermost:
            up.append(nn.Tanh())
        else:
            down.insert(0, nn.LeakyReLU(0.2, True))
            up.append(nn.InstanceNorm2d(outer))
            if within is not None:
                down.append(nn.InstanceNorm2d(inner))
                up += [nn.Dropout(0.5)] if dropout else []
        self.model = nn.Sequential(*down, *([] if within is None else [within]), *up)

    def forward(self, x: Tensor) -> Tensor:
        """[N, outer, H, W] to [N, 2·outer, H, W], the input in front; of the outermost level the picture."""
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class UnetGenerator(nn.Module):
    """The U-Net generator of pix2pix, with instance norms as CycleGAN uses it.

    Args:
        width: channels of the first layer.
        levels: halvings; the input's sides are divisible by 2**levels and larger than that.
        dropout: whether the deep levels drop half of their values in training.
    """

    def __init__(self, width: int = 64, levels: int = 8, dropout: bool = True) -> None:
        super().__init__()
        widths = [3, *(min(2**i, 8) * width for i in range(levels))]
        block: nn.Module | None = None
        for i in reversed(range(levels)):
            block = UnetSkipConnectionBlock(widths[i], widths[i + 1], block, i == 0, dropout and i >= 4)
        assert block is not None
        self.model = block

    def forward(self, x: Tensor) -> Tensor:
        """A picture from a picture: [N, 3, H, W], kept."""
        return self.model(x)


class NLayerDiscriminator(nn.Module):
    """PatchGAN, the discriminator of pix2pix, CycleGAN and (with `antialias`) CUT."""

    def __init__(self, width: int = 64, layers: int = 3, antialias: bool = False) -> None:
        super().__init__()

        def halving(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, 4, 1 if antialias else 2, 1)
            found = [conv, *([nn.InstanceNorm2d(outputs)] if norm else []), nn.LeakyReLU(0.2, True)]
            return [*found, Downsample(outputs)] if antialias else found

        sequence, c = halving(3, width, False), width
        for i in range(1, layers + 1):
            inputs, c = c, min(2**i, 8) * width
            if i < layers:
                sequence += halving(inputs, c, True)
            else:
                sequence += [nn.Conv2d(inputs, c, 4, 1, 1), nn.InstanceNorm2d(c), nn.LeakyReLU(0.2, True)]
        self.model = nn.Sequential(*sequence, nn.Conv2d(c, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """A score for each patch: [N, 3, H, W] to [N, 1, H', W']."""
        return self.model(x)


class ResBlk(nn.Module):
    """Residual block of StarGAN v2 (Choi et al., CVPR 2020), activation first; norms and activation are calls."""

    def __init__(self, inputs: int, outputs: int, normalize: bool = False, downsample: bool = False) -> None:
        super().__init__()
        self.actv = nn.LeakyReLU(0.2)
        self.normalize, self.downsample, self.learned_sc = normalize, downsample, inputs != outputs
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 1, 1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, 1, 1)
        if normalize:
            self.norm1 = nn.InstanceNorm2d(inputs, affine=True)
            self.norm2 = nn.InstanceNorm2d(inputs, affine=True)
        if self.learned_sc:
            self.conv1x1 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W], or half of that."""
        shortcut = self.conv1x1(x) if self.learned_sc else x
        y = self.actv(self.norm1(x) if self.normalize else x)
        y = self.conv1(y)
        if self.downsample:
            shortcut, y = F.avg_pool2d(shortcut, 2), F.avg_pool2d(y, 2)
        y = self.conv2(self.actv(self.norm2(y) if self.normalize else y))
        return (shortcut + y) / 2**0.5


class AdaIN(nn.Module):
    """StarGAN v2's: the style gives scale minus one, and shift."""

    def __init__(self, style_dim: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=False)
        self.fc = nn.Linear(style_dim, 2 * channels)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """[N, C, H, W], kept."""
        gamma, beta = self.fc(s)[:, :, None, None].chunk(2, 1)
        return (1 + gamma) * self.norm(x) + beta


class AdainResBlk(nn.Module):
    """Residual block of StarGAN v2's decoder."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, upsample: bool = False) -> None:
        super().__init__()
        self.actv = nn.LeakyReLU(0.2)
        self.upsample, self.learned_sc = upsample, inputs != outputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm1 = AdaIN(style_dim, inputs)
        self.norm2 = AdaIN(style_dim, outputs)
        if self.learned_sc:
            self.conv1x1 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W], or twice that."""
        y = self.actv(self.norm1(x, s))
        if self.upsample:
            x, y = F.interpolate(x, scale_factor=2), F.interpolate(y, scale_factor=2)
        y = self.conv2(self.actv(self.norm2(self.conv1(y), s)))
        return (y + (self.conv1x1(x) if self.learned_sc else x)) / 2**0.5


class StarGenerator(nn.Module):
    """The generator of StarGAN v2 without the high-pass masks, which it has for faces only.

    Args:
        width: channels of the first layer.
        most: of the deepest.
        levels: halvings and doublings.
        style_dim: of a style code.
    """

    def __init__(self, width: int = 64, most: int = 512, levels: int = 4, style_dim: int = 64) -> None:
        super().__init__()
        self.from_rgb = nn.Conv2d(3, width, 3, 1, 1)
        self.encode, self.decode = nn.ModuleList(), nn.ModuleList()
        self.to_rgb = nn.Sequential(nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(0.2), nn.Conv2d(width, 3, 1))
        c = width
        for _ in range(levels):
            inner = min(2 * c, most)
            self.encode.append(ResBlk(c, inner, normalize=True, downsample=True))
            self.decode.insert(0, AdainResBlk(inner, c, style_dim, upsample=True))
            c = inner
        for _ in range(2):
            self.encode.append(ResBlk(c, c, normalize=True))
            self.decode.insert(0, AdainResBlk(c, c, style_dim))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """A picture from a picture and a style: [N, 3, H, W] and [N, style_dim] to [N, 3, H, W]."""
        x = self.from_rgb(x)
        for block in self.encode:
            x = block(x)
        for block in self.decode:
            x = block(x, s)
        return self.to_rgb(x)


class StarDiscriminator(nn.Module):
    """The discriminator of StarGAN v2, which has an output for each domain; its style encoder is built alike.

    Args:
        width: channels of the first layer.
        most: of the deepest.
        levels: halvings; the input's sides are 4·2**levels.
        outputs: for each domain: 1, or the length of a style code.
        domains: number of them.
        normalize: with instance norms in the residual blocks, which the published one leaves out.
    """

    def __init__(
        self,
        width: int = 64,
        most: int = 512,
        levels: int = 6,
        outputs: int = 1,
        domains: int = 2,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1)]
        c = width
        for _ in range(levels):
            inner = min(2 * c, most)
            blocks.append(ResBlk(c, inner, normalize, downsample=True))
            c = inner
        blocks += [nn.LeakyReLU(0.2), nn.Conv2d(c, c, 4, 1, 0), nn.LeakyReLU(0.2)]
        self.shared = nn.Sequential(*blocks)
        self.unshared = nn.ModuleList(nn.Linear(c, outputs) for _ in range(domains))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[N, 3, H, W] and domains [N], int64, to [N, outputs]."""
        h = self.shared(x).flatten(1)
        every = torch.stack([layer(h) for layer in self.unshared], 1)
        return every[torch.arange(len(y), device=y.device), y]


class AdaptiveInstanceNorm2d(nn.Module):
    """FUNIT's (Liu et al., ICCV 2019): weight and bias [N·C] are assigned before each forward."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], kept."""
        n, c = x.shape[:2]
        mean, var = self.running_mean.repeat(n), self.running_var.repeat(n)
        rows = x.contiguous().view(1, n * c, *x.shape[2:])
        return F.batch_norm(rows, mean, var, self.weight, self.bias, True, self.momentum, self.eps).view_as(x)


class Conv2dBlock(nn.Module):
    """FUNIT's block, which is MUNIT's with `activation_first`: activation, padding, convolution, norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        padding: int,
        norm: str = "none",
        activation: str = "relu",
        activation_first: bool = False,
    ) -> None:
        super().__init__()
        norms = {"in": nn.InstanceNorm2d, "adain": AdaptiveInstanceNorm2d}
        activations = {"relu": nn.ReLU(inplace=False), "lrelu": nn.LeakyReLU(0.2, inplace=False), "tanh": nn.Tanh()}
        self.activation_first = activation_first
        self.pad = nn.ReflectionPad2d(padding)
        self.norm = norms[norm](outputs) if norm in norms else None
        self.activation = activations.get(activation)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H', W']."""
        if self.activation_first and self.activation:
            x = self.activation(x)
        x = self.conv(self.pad(x))
        if self.norm:
            x = self.norm(x)
        if not self.activation_first and self.activation:
            x = self.activation(x)
        return x


class ResBlock(nn.Module):
    """FUNIT's residual block."""

    def __init__(self, dim: int, norm: str, activation_first: bool = False) -> None:
        super().__init__()
        last = "relu" if activation_first else "none"
        self.model = nn.Sequential(
            Conv2dBlock(dim, dim, 3, 1, 1, norm, "relu", activation_first),
            Conv2dBlock(dim, dim, 3, 1, 1, norm, last, activation_first),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim, H, W], kept."""
        residual = x
        out = self.model(x)
        out += residual
        return out


class FewShotGenerator(nn.Module):
    """The generator of FUNIT: the content of one picture in the class of another.

    Args:
        width: channels of the first layer.
        blocks: residual blocks of the content encoder and of the decoder.
        latent: length of a class code.
        activation_first: whether the content encoder's residual blocks begin with their activations.
    """

    def __init__(self, width: int = 64, blocks: int = 2, latent: int = 64, activation_first: bool = False) -> None:
        super().__init__()
        content: list[nn.Module] = [Conv2dBlock(3, width, 7, 1, 3, "in")]
        style: list[nn.Module] = [Conv2dBlock(3, width, 7, 1, 3)]
        for c in (width, 2 * width, 4 * width):
            content.append(Conv2dBlock(c, 2 * c, 4, 2, 1, "in"))
            style.append(Conv2dBlock(c, min(2 * c, 4 * width), 4, 2, 1))
        deep = 8 * width
        content += [ResBlock(deep, "in", activation_first) for _ in range(blocks)]
        self.enc_content = nn.Sequential(*content)
        self.enc_class_model = nn.Sequential(*style, nn.AdaptiveAvgPool2d(1), nn.Conv2d(4 * width, latent, 1))
        decoder: list[nn.Module] = [ResBlock(deep, "adain") for _ in range(blocks)]
        for c in (deep, deep // 2, deep // 4):
            decoder += [nn.Upsample(scale_factor=2), Conv2dBlock(c, c // 2, 5, 1, 2, "in")]
        self.dec = nn.Sequential(*decoder, Conv2dBlock(width, 3, 7, 1, 3, "none", "tanh"))
        self.mlp = nn.Sequential(nn.Linear(latent, 256), nn.ReLU(), nn.Linear(256, 4 * blocks * deep))

    def forward(self, x: Tensor, of_class: Tensor) -> Tensor:
        """[N, 3, H, W] and [N, 3, H', W'] to [N, 3, H, W]."""
        style = self.mlp(self.enc_class_model(of_class).flatten(1))
        module: Any
        for module in self.dec.modules():
            if module.__class__.__name__ == "AdaptiveInstanceNorm2d":
                c = module.num_features
                module.bias, module.weight = style[:, :c].reshape(-1), style[:, c : 2 * c].reshape(-1)
                style = style[:, 2 * c :]
        return self.dec(self.enc_content(x))


class EdgeGenerator(nn.Module):
    """The generators of EdgeConnect (Nazeri et al., ICCVW 2019): that of edges has spectral norms, the other none.

    Args:
        inputs: channels of the input: edges 3 (grey, edges, mask), colours 4.
        outputs: channels of the output.
        width: channels of the first layer.
        blocks: residual blocks.
        spectral: whether the convolutions have spectral norms.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 64, blocks: int = 8, spectral: bool = True) -> None:
        super().__init__()

        def normed(c: int) -> list[nn.Module]:
            return [nn.InstanceNorm2d(c, track_running_stats=False), nn.ReLU(True)]

        layers: list[nn.Module] = [nn.ReflectionPad2d(3), _spectral(nn.Conv2d(inputs, width, 7), spectral)]
        layers += normed(width)
        for c in (width, 2 * width):
            layers += [_spectral(nn.Conv2d(c, 2 * c, 4, 2, 1), spectral), *normed(2 * c)]
        self.encoder = nn.Sequential(*layers)
        self.middle = nn.Sequential(*(ResnetBlock(4 * width, 2, spectral) for _ in range(blocks)))
        layers = []
        for c in (4 * width, 2 * width):
            layers += [_spectral(nn.ConvTranspose2d(c, c // 2, 4, 2, 1), spectral), *normed(c // 2)]
        self.decoder = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, outputs, 7))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W], between 0 and 1."""
        return torch.sigmoid(self.decoder(self.middle(self.encoder(x))))


class EdgeDiscriminator(nn.Module):
    """The discriminator of EdgeConnect, with spectral norms in every convolution; also gives its features."""

    def __init__(self, inputs: int, width: int = 64) -> None:
        super().__init__()

        def layer(c: int, outputs: int, stride: int) -> nn.Sequential:
            conv = _spectral(nn.Conv2d(c, outputs, 4, stride, 1, bias=False))
            return nn.Sequential(conv, nn.LeakyReLU(0.2, inplace=True))

        self.conv1 = layer(inputs, width, 2)
        self.conv2, self.conv3 = layer(width, 2 * width, 2), layer(2 * width, 4 * width, 2)
        self.conv4 = layer(4 * width, 8 * width, 1)
        self.conv5 = nn.Sequential(_spectral(nn.Conv2d(8 * width, 1, 4, 1, 1, bias=False)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The scores of patches [N, 1, H', W'], then the features of each layer."""
        found = []
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            x = layer(x)
            found.append(x)
        return [torch.sigmoid(x), *found]

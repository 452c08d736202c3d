"""Layers with the class names, attributes and calling conventions of the published MUNIT code, and small networks of
CycleGAN and pix2pix. Written for the tests from what those networks compute; none of it is their code."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptiveInstanceNorm2d(nn.Module):
    """Style as flat [N·C] tensors, assigned from outside before each forward."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None and self.bias is not None, "no style yet"
        n, c = x.shape[:2]
        stats = self.running_mean.repeat(n), self.running_var.repeat(n)
        flat = x.reshape(1, n * c, *x.shape[2:])
        y = F.batch_norm(flat, *stats, self.weight, self.bias, True, self.momentum, self.eps)
        return y.view_as(x)


class LayerNorm(nn.Module):
    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        if affine:
            self.gamma = nn.Parameter(torch.rand(num_features))
            self.beta = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.contiguous().view(x.shape[0], -1)
        ones = [1] * (x.dim() - 1)
        x = (x - rows.mean(1).view(-1, *ones)) / (rows.std(1).view(-1, *ones) + self.eps)
        if self.affine:
            x = x * self.gamma.view(1, -1, *ones[1:]) + self.beta.view(1, -1, *ones[1:])
        return x


NORMS: dict[str, Any] = {
    "in": nn.InstanceNorm2d,
    "adain": AdaptiveInstanceNorm2d,
    "ln": LayerNorm,
    "bn": nn.BatchNorm2d,
    "none": lambda c: None,
}
ACTIVATIONS: dict[str, Any] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "lrelu": lambda: nn.LeakyReLU(0.2, inplace=True),
    "prelu": nn.PReLU,
    "selu": lambda: nn.SELU(inplace=True),
    "tanh": nn.Tanh,
    "none": lambda: None,
}


class Conv2dBlock(nn.Module):
    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        stride: int,
        padding: int = 0,
        norm: str = "none",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(padding)
        self.norm = NORMS[norm](cout)
        self.activation = ACTIVATIONS[activation]()
        self.conv = nn.Conv2d(cin, cout, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pad(x))
        if self.norm:
            x = self.norm(x)
        if self.activation:
            x = self.activation(x)
        return x


class ResBlock(nn.Module):
    def __init__(self, dim: int, norm: str = "in", activation: str = "relu") -> None:
        super().__init__()
        self.model = nn.Sequential(
            Conv2dBlock(dim, dim, 3, 1, 1, norm, activation), Conv2dBlock(dim, dim, 3, 1, 1, norm, "none")
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        out += x
        return out


class Generator(nn.Module):
    """MUNIT in small, the style parameters assigned by class name as the published code does."""

    def __init__(self, activation: str = "relu", dim: int = 4) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            Conv2dBlock(3, dim, 7, 1, 3, "in", activation),
            Conv2dBlock(dim, 2 * dim, 4, 2, 1, "in", activation),
            ResBlock(2 * dim, "in", activation),
        )
        self.decode = nn.Sequential(
            ResBlock(2 * dim, "adain", activation),
            nn.Upsample(scale_factor=2),
            Conv2dBlock(2 * dim, dim, 5, 1, 2, "ln", activation),
            Conv2dBlock(dim, 3, 7, 1, 3, "none", "tanh"),
        )
        self.style = nn.Parameter(torch.randn(2, 8 * dim))

    def forward(self, x: Tensor) -> Tensor:
        style = self.style[: len(x)]
        for m in self.decode.modules():
            if m.__class__.__name__ == "AdaptiveInstanceNorm2d":
                c = m.num_features
                m.bias, m.weight = style[:, :c].reshape(-1), style[:, c : 2 * c].reshape(-1)
                style = style[:, 2 * c :]
        return self.decode(self.encode(x))


class ResnetBlock(nn.Module):
    """CycleGAN's."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(dim, dim, 3),
            nn.InstanceNorm2d(dim),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(dim, dim, 3),
            nn.InstanceNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def cyclegan(dim: int = 4) -> nn.Sequential:
    """The ResNet generator, with every kind of thing that can follow a norm in it."""
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, dim, 7),
        nn.InstanceNorm2d(dim),
        nn.ReLU(True),
        nn.Conv2d(dim, 2 * dim, 3, 2, 1),
        nn.InstanceNorm2d(2 * dim, affine=True),
        nn.ReLU(True),
        ResnetBlock(2 * dim),
        nn.ConvTranspose2d(2 * dim, dim, 3, 2, 1, 1),
        nn.InstanceNorm2d(dim),
        nn.PReLU(),
        nn.ReflectionPad2d(3),
        nn.Conv2d(dim, 3, 7),
        nn.Tanh(),
    )


class UnetBlock(nn.Module):
    """pix2pix's: the in-place activation before the first convolution also changes the skip connection."""

    def __init__(self, outer: int, inner: int, within: nn.Module | None, outermost: bool = False) -> None:
        super().__init__()
        down = nn.Conv2d(3 if outermost else outer, inner, 4, 2, 1)
        up = nn.ConvTranspose2d(inner if within is None else 2 * inner, outer, 4, 2, 1)
        layers: list[nn.Module] = [] if outermost else [nn.LeakyReLU(0.2, True)]
        layers.append(down)
        if within is not None:
            layers += [within] if outermost else [nn.InstanceNorm2d(inner), within]
        layers += [nn.ReLU(True), up, *([nn.Tanh()] if outermost else [nn.InstanceNorm2d(outer)])]
        self.model, self.outermost = nn.Sequential(*layers), outermost

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


def unet(dim: int = 4) -> nn.Module:
    block = UnetBlock(2 * dim, 4 * dim, None)
    return UnetBlock(3, dim, UnetBlock(dim, 2 * dim, block), outermost=True)


def patchgan(dim: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, dim, 4, 2, 1),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(dim, 2 * dim, 4, 2, 1),
        nn.InstanceNorm2d(2 * dim),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(2 * dim, 1, 4, 1, 1),
    )

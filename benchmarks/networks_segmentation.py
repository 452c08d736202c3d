"""nnU-Net's networks, written for `networks_of_others` from the papers (Isensee et al., Nature Methods 2021; 2024).

None of it is the code of `dynamic-network-architectures`, which brings timm and torchvision. What decides whether
`munit_fast.accelerate` finds a norm is as there: class names, and a block whose layers are attributes and, in the
order in which they run, in a `Sequential` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_POOL: dict[int, Any] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class ConvDropoutNormReLU(nn.Module):
    """Convolution, affine instance norm, LeakyReLU; the name says dropout, which nnU-Net leaves out."""

    def __init__(self, dims: int, inputs: int, outputs: int, kernel: int, stride: int, nonlin: bool = True) -> None:
        super().__init__()
        self.conv = _CONV[dims](inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=kernel > 1)
        self.norm = _NORM[dims](outputs, eps=1e-5, affine=True)
        layers = [self.conv, self.norm]
        if nonlin:
            self.nonlin = nn.LeakyReLU(inplace=True)
            layers.append(self.nonlin)
        self.all_modules = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, *spatial] to [N, outputs, *spatial / stride]."""
        return self.all_modules(x)


class StackedConvBlocks(nn.Module):
    """Blocks one after another, the first with a stride."""

    def __init__(self, number: int, dims: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = ConvDropoutNormReLU(dims, inputs, outputs, 3, stride)
        rest = [ConvDropoutNormReLU(dims, outputs, outputs, 3, 1) for _ in range(number - 1)]
        self.convs = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, *spatial] to [N, outputs, *spatial / stride]."""
        return self.convs(x)


class BasicBlockD(nn.Module):
    """The residual block of ResNet-D: a shortcut with pooling and a 1×1 convolution, an activation after the sum."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvDropoutNormReLU(dims, inputs, outputs, 3, stride)
        self.conv2 = ConvDropoutNormReLU(dims, outputs, outputs, 3, 1, nonlin=False)
        self.nonlin2 = nn.LeakyReLU(inplace=True)
        shortcut = [_POOL[dims](stride, stride)] if stride > 1 else []
        if inputs != outputs:
            shortcut.append(ConvDropoutNormReLU(dims, inputs, outputs, 1, 1, nonlin=False))
        self.skip = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, *spatial] to [N, outputs, *spatial / stride]."""
        residual = self.skip(x)
        out = self.conv2(self.conv1(x))
        out += residual
        return self.nonlin2(out)


class StackedResidualBlocks(nn.Module):
    """Residual blocks one after another, the first with a stride."""

    def __init__(self, number: int, dims: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = BasicBlockD(dims, inputs, outputs, stride)
        self.blocks = nn.Sequential(first, *(BasicBlockD(dims, outputs, outputs, 1) for _ in range(number - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, *spatial] to [N, outputs, *spatial / stride]."""
        return self.blocks(x)


class UNetDecoder(nn.Module):
    """The way up of both networks; it holds the encoder too, as the original does."""

    def __init__(self, encoder: nn.Module, dims: int, features: Sequence[int], classes: int, blocks: int) -> None:
        super().__init__()
        self.encoder = encoder
        pairs = list(zip(reversed(features[1:]), reversed(features[:-1])))  # channels below, and of the skip
        self.stages = nn.ModuleList(StackedConvBlocks(blocks, dims, 2 * skip, skip, 1) for _, skip in pairs)
        self.transpconvs = nn.ModuleList(_TRANSPOSED[dims](below, skip, 2, 2) for below, skip in pairs)
        self.seg_layers = nn.ModuleList(_CONV[dims](skip, classes, 1) for _, skip in pairs)

    def forward(self, skips: Sequence[Tensor]) -> list[Tensor]:
        """The scores of every resolution, the finest first."""
        x, found = skips[-1], []
        for up, stage, head, skip in zip(self.transpconvs, self.stages, self.seg_layers, reversed(skips[:-1])):
            x = stage(torch.cat((up(x), skip), 1))
            found.append(head(x))
        return found[::-1]


class _Encoder(nn.Module):
    def __init__(self, dims: int, inputs: int, features: Sequence[int], blocks: int, residual: bool) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        self.stem = StackedConvBlocks(1, dims, inputs, features[0], 1) if residual else None
        c = features[0] if residual else inputs
        for i, outputs in enumerate(features):
            stride = 1 if i == 0 else 2
            if residual:
                stages.append(StackedResidualBlocks(blocks, dims, c, outputs, stride))
            else:
                stages.append(nn.Sequential(StackedConvBlocks(blocks, dims, c, outputs, stride)))
            c = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.stem is not None:
            x = self.stem(x)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class PlainConvUNet(nn.Module):
    """nnU-Net's plain U-Net, with deep supervision.

    Args:
        dims: 2 or 3.
        inputs: channels of the image.
        features: channels of each resolution, the finest first.
        classes: channels of the result.
        blocks: convolutions of a stage.
    """

    _residual = False

    def __init__(
        self,
        dims: int,
        inputs: int = 1,
        features: Sequence[int] = (32, 64, 128, 256),
        classes: int = 3,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(dims, inputs, features, blocks, self._residual)
        self.decoder = UNetDecoder(self.encoder, dims, features, classes, 1 if self._residual else blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, inputs, *spatial] to the scores of every resolution but the coarsest, the finest first."""
        return self.decoder(self.encoder(x))


class ResidualEncoderUNet(PlainConvUNet):
    """nnU-Net's U-Net with residual blocks on the way down; see `PlainConvUNet`."""

    _residual = True

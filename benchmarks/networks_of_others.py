"""Networks that `munit_fast.accelerate` meets, by name, for the benchmark and for the tests.

Those of `networks_translation` and `networks_segmentation`, and MONAI's own, which needs the package monai.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast.benchmarks import networks_segmentation as segmentation
from munit_fast.benchmarks import networks_translation as translation
from munit_fast.benchmarks.contenders import Unavailable
from munit_fast.utils.optional import require


@dataclass(frozen=True)
class Network:
    """How to build a network and what it takes.

    Attributes:
        make: Builds it; its argument is the channels of its first layer.
        inputs: Channels of its images.
        dims: Their spatial dimensions.
        least: The smallest side that it takes.
        further: What its forward takes besides images, from their number and a generator of random numbers.
    """

    make: Callable[[int], nn.Module]
    inputs: int
    dims: int
    least: int
    further: Callable[[int, torch.Generator], tuple[Tensor, ...]] = lambda n, random: ()

    def arguments(self, batch: int, side: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, ...]:
        """Random arguments of its forward: images [batch, inputs, side, …] first."""
        random = torch.Generator().manual_seed(seed)
        size = (batch, self.inputs, *[side] * self.dims)
        found = (torch.randn(size, generator=random), *self.further(batch, random))
        return tuple(t.to(dtype) if t.is_floating_point() else t for t in found)


def outputs(y: Any) -> list[Tensor]:
    """The tensors that a forward returned, alone or in a list or tuple."""
    return [y] if isinstance(y, Tensor) else list(y)


def _style(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(n, 64, generator=random),)


def _domains(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randint(2, (n,), generator=random),)


def _picture(n: int, random: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(n, 3, 64, 64, generator=random),)


def _monai(name: str, **arguments: Any) -> nn.Module:
    return getattr(require("monai.networks.nets", "bench", error=Unavailable), name)(**arguments)


def _monai_unet(dims: int, width: int) -> nn.Module:
    """With residual units, as MONAI's spleen tutorial has it, and its default activation, PReLU."""
    channels, strides = tuple(width * 2**i for i in range(4)), (2, 2, 2)
    return _monai(
        "UNet", spatial_dims=dims, in_channels=1, out_channels=2, channels=channels, strides=strides, num_res_units=2
    )


def _dynunet(residual: bool, width: int) -> nn.Module:
    return _monai(
        "DynUNet",
        spatial_dims=3,
        in_channels=1,
        out_channels=3,
        kernel_size=[3] * 4,
        strides=[1, 2, 2, 2],
        upsample_kernel_size=[2] * 3,
        filters=[width * 2**i for i in range(4)],
        norm_name=("INSTANCE", {"affine": True}),
        res_block=residual,
    )


def _segresnet(width: int) -> nn.Module:
    norm = ("GROUP", {"num_groups": min(8, width)})
    return _monai("SegResNet", spatial_dims=3, init_filters=width, in_channels=1, out_channels=2, norm=norm)


def _autoencoder(width: int) -> nn.Module:
    return _monai(
        "AutoencoderKL",
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(width, 2 * width, 2 * width),
        num_res_blocks=1,
        norm_num_groups=min(32, width),
        latent_channels=3,
        attention_levels=(False, False, False),
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def _nnunet(kind: Callable[..., nn.Module], dims: int, width: int) -> nn.Module:
    return kind(dims, features=[min(width * 2**i, 16 * width) for i in range(4)])


def _unet_256(width: int) -> nn.Module:
    """Eight halvings make 256² one pixel, as published; narrower ones, for tests, take small images."""
    return translation.UnetGenerator(width, 8 if width >= 64 else 5)


NETWORKS: dict[str, Network] = {
    "CycleGAN generator": Network(translation.ResnetGenerator, 3, 2, 16),
    "pix2pix U-Net": Network(_unet_256, 3, 2, 32),
    "PatchGAN": Network(translation.NLayerDiscriminator, 3, 2, 32),
    "CUT generator": Network(partial(translation.ResnetGenerator, antialias=True), 3, 2, 16),
    "StarGAN v2 generator": Network(translation.StarGenerator, 3, 2, 32, _style),
    "StarGAN v2 discriminator": Network(partial(translation.StarDiscriminator, levels=3), 3, 2, 32, _domains),
    "FUNIT generator": Network(translation.FewShotGenerator, 3, 2, 16, _picture),
    "EdgeConnect edges": Network(partial(translation.EdgeGenerator, 3, 1), 3, 2, 16),
    "EdgeConnect colours": Network(partial(translation.EdgeGenerator, 4, 3, spectral=False), 4, 2, 16),
    "EdgeConnect discriminator": Network(partial(translation.EdgeDiscriminator, 3), 3, 2, 32),
    "nnU-Net plain 2d": Network(partial(_nnunet, segmentation.PlainConvUNet, 2), 1, 2, 16),
    "nnU-Net plain 3d": Network(partial(_nnunet, segmentation.PlainConvUNet, 3), 1, 3, 16),
    "nnU-Net residual 2d": Network(partial(_nnunet, segmentation.ResidualEncoderUNet, 2), 1, 2, 16),
    "nnU-Net residual 3d": Network(partial(_nnunet, segmentation.ResidualEncoderUNet, 3), 1, 3, 16),
    "MONAI UNet 2d": Network(partial(_monai_unet, 2), 1, 2, 16),
    "MONAI UNet 3d": Network(partial(_monai_unet, 3), 1, 3, 16),
    "MONAI DynUNet 3d": Network(partial(_dynunet, False), 1, 3, 16),
    "MONAI DynUNet residual 3d": Network(partial(_dynunet, True), 1, 3, 16),
    "MONAI SegResNet 3d": Network(_segresnet, 1, 3, 16),
    "MONAI AutoencoderKL 2d": Network(_autoencoder, 1, 2, 16),
}

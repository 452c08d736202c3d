"""The keys of the networks, and the smallest images that they take."""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated, Literal

from pydantic import Field, model_validator

from munit_fast.config.values import Activation, Count, Padding, Section


class GeneratorConfig(Section):
    """`gen:`, the generator (auto-encoder) of each domain.

    Attributes:
        dim: Channels of the first convolution; doubled by each downsampling.
        mlp_dim: Width of the MLP that gives the AdaIN parameters.
        style_dim: Length of a style code.
        activ: Activation.
        n_downsample: Convolutions of stride 2 in the content encoder; sides must be multiples of 2^n_downsample.
        n_res: Residual blocks of the content encoder, and as many of the decoder.
        pad_type: Padding of the convolutions.
        weight_norm: "spectral": spectral normalization of all convolutions and linear layers. Not published.
    """

    dim: Count = 64
    mlp_dim: Count = 256
    style_dim: Count = 8
    activ: Activation = "relu"
    n_downsample: Annotated[int, Field(ge=0, le=8)] = 2
    n_res: Annotated[int, Field(ge=0)] = 4
    pad_type: Padding = "reflect"
    weight_norm: Literal["none", "spectral"] = "none"


class DiscriminatorConfig(Section):
    """`dis:`, the discriminator of each domain.

    Attributes:
        dim: Channels of the first convolution; doubled by each layer.
        norm: Normalization after the convolutions, all but the first; "sn" is spectral normalization as published.
        activ: Activation.
        n_layer: Convolutions of stride 2 at each scale; of "residual" the blocks, each of which halves the side.
        gan_type: "lsgan" (least squares), "nsgan" (non-saturating, cross-entropy), or "hinge", which is not published.
        num_scales: Scales; each sees the image at half the size of the one before. "residual" has one, and does not
            read this.
        pad_type: Padding of the convolutions.
        arch: "multiscale", or "residual": residual blocks and one score for the whole image. Not published.
        weight_norm: "spectral": spectral normalization of all convolutions and linear layers, by torch; for the norms
            "none", "in" and "ln". Not published.
    """

    dim: Count = 64
    norm: Literal["none", "bn", "in", "ln", "sn"] = "none"
    activ: Activation = "lrelu"
    n_layer: Annotated[int, Field(ge=1, le=10)] = 4
    gan_type: Literal["lsgan", "nsgan", "hinge"] = "lsgan"
    num_scales: Annotated[int, Field(ge=1, le=10)] = 3
    pad_type: Padding = "reflect"
    arch: Literal["multiscale", "residual"] = "multiscale"
    weight_norm: Literal["none", "spectral"] = "none"

    @model_validator(mode="after")
    def _fits_together(self) -> DiscriminatorConfig:
        if self.norm == "sn" and (self.arch == "residual" or self.weight_norm == "spectral"):
            other = "arch: residual" if self.arch == "residual" else "weight_norm: spectral"
            raise ValueError(f"norm: sn with {other}; use norm: none and weight_norm: spectral")
        if self.norm == "bn" and self.weight_norm == "spectral":
            raise ValueError("norm: bn with weight_norm: spectral; use norm: none, in or ln")
        return self


def smallest_generator_size(gen: GeneratorConfig) -> int:
    """The smallest image side that the generator takes.

    The style encoder halves the side four times, and the norms need code planes larger than 1×1.
    """
    return max(16, 2 * 2**gen.n_downsample)


def smallest_discriminator_size(dis: DiscriminatorConfig, batch_size: int = 1) -> int:
    """The smallest image side that every scale of the discriminator takes."""
    # What takes a side takes every larger one, and the largest smallest side is 2^20 (ten layers, ten scales): one by
    # one that took half a minute.
    return bisect_left(range(2**21), True, lo=1, key=lambda side: _discriminator_takes(side, dis, batch_size))


def _discriminator_takes(side: int, dis: DiscriminatorConfig, batch_size: int) -> bool:
    if dis.arch == "residual":
        return bool(side >> dis.n_layer)  # norms see planes that are not halved yet
    needs_planes = dis.norm == "in" or (dis.norm == "bn" and batch_size == 1)
    for _ in range(dis.num_scales):
        s = side
        for layer in range(dis.n_layer):
            if s < 2:
                return False
            s //= 2
            if layer > 0 and needs_planes and s < 2:  # the variance of a 1×1 plane is zero
                return False
        side = (side + 1) // 2  # the average pool between scales
    return True

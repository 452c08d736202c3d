"""The discriminators, from convolutions and fused epilogues as the generators of `networks.py` are.

A discriminator judges images (`judge`), and turns what it said into the losses of the two updates (`dis_loss`,
`gen_loss`): what a training needs of its outputs and features is computed once.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from munit_fast import reference
from munit_fast.models.blocks import (
    Fused,
    apply_epilogue,
    autocast_off,
    check_planes,
    compute_dtype,
    conv_chain,
    epilogue_args,
    norm_of,
    pad_input,
    padding,
)
from munit_fast.models.gan_losses import GAN_LOSSES, sum_of_scales
from munit_fast.models.weights import computed_once, weight_of
from munit_fast.ops import formulas
from munit_fast.reference.networks import Params

__all__ = ["Judgement", "MsImageDis"]


def check_gan_type(gan_type: str, impl: str) -> None:
    """Raise ValueError where a backend does not have an adversarial loss."""
    if impl == "reference" and gan_type not in reference.MsImageDis.gan_types:
        raise ValueError(
            f"dis.gan_type: {gan_type}: impl='reference' has {' and '.join(reference.MsImageDis.gan_types)} "
            "only; use another impl"
        )


class Judgement(NamedTuple):
    """What a discriminator says of images, for each of its scales, finest first."""

    outputs: tuple[Tensor, ...]  # patch maps [N, 1, h_i, w_i]
    features: tuple[Tensor, ...]  # [N, C_i, h_i, w_i], of which the last layer makes the maps


class MsImageDis(reference.MsImageDis, Fused):
    """The multi-scale discriminator; see `reference.MsImageDis`, whose state_dict it shares.

    With norm "bn" or "sn", which no epilogue has, the reference's forward runs. Outputs are float32 under autocast.

    Args:
        input_dim: Channels C of the images.
        params: The `dis:` section of a configuration: dim, norm, activ, n_layer, gan_type, num_scales, pad_type; not
            published: weight_norm, for norm "none", "in" and "ln".
        impl: The backend, as in `munit_fast.functional`; "reference": the reference's own forward.

    Raises:
        ValueError: gan_type, norm, activ, pad_type or impl is unknown, or the reference has no such gan_type.
    """

    gan_types: ClassVar[tuple[str, ...]] = tuple(GAN_LOSSES)

    def __init__(self, input_dim: int, params: Params, impl: str = "auto") -> None:
        super().__init__(input_dim, params)
        # With these, one call for real and fake images together is not the same as two.
        self.fused_norm = params["norm"] not in ("bn", "sn")
        self.set_impl(impl)

    def set_impl(self, impl: str) -> None:
        """As `Fused.set_impl`; with "reference" gan_type must be one that the reference has."""
        check_gan_type(self.gan_type, impl)
        super().set_impl(impl)

    @property
    def uses_reference(self) -> bool:
        """Whether the reference's own forward runs, also for norms that no epilogue has."""
        # Not through super(): torch.compile would take the property itself for its value.
        return self.impl == "reference" or not self.fused_norm or formulas.are_needed()

    def forward(self, x: Tensor) -> list[Tensor]:
        """The patch maps of images.

        Args:
            x: Images [N, C, H, W] in [-1, 1].

        Returns:
            One map [N, 1, h_i, w_i] for each scale, finest first, in the dtype of the parameters (autocast's where the
            reference's forward runs under it).

        Raises:
            ValueError: With norm "in": the image is so small that a plane of 1×1 would be normalised.
        """
        return list(self.judge(x).outputs)

    def judge(self, x: Tensor) -> Judgement:
        """The patch maps of images, and what they were computed from.

        Args:
            x: Images [N, C, H, W] in [-1, 1].

        Raises:
            ValueError: As `forward`.
        """
        if self.uses_reference:
            return self._judge_by_reference(x)
        dtype = compute_dtype(x, next(self.parameters()).dtype)
        judged = []
        with autocast_off(x), computed_once(self):
            x = x.to(dtype).contiguous(memory_format=torch.channels_last)
            for net in self.cnns:
                judged.append(self._net(net, x))
                x = self.downsample(x)
        return Judgement(*zip(*judged))

    def _judge_by_reference(self, x: Tensor) -> Judgement:
        judged = []
        nets: Any = self.cnns
        for net in nets:
            features = x
            *blocks, last = net
            for block in blocks:
                features = block(features)
            judged.append((last(features), features))
            x = self.downsample(x)
        return Judgement(*zip(*judged))

    def _net(self, net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        *blocks, last = net
        p = pad_input(x, *padding(blocks[0]), x.dtype, self.impl)
        output = conv_chain(p, blocks, self.impl)
        if norm_of(blocks[-1]) == "instance":
            check_planes(output.z, "the image")
        y = apply_epilogue(output, epilogue_args(blocks[-1], 0, "zero", self.impl))
        # A matrix product of the pixels: of small maps, forward and backward took 0.03 ms instead of oneDNN's 0.25.
        maps = F.linear(y.to(last.bias.dtype).permute(0, 2, 3, 1), weight_of(last).flatten(1), last.bias)
        return maps.permute(0, 3, 1, 2), y

    def judge_both(self, input_fake: Tensor, input_real: Tensor) -> tuple[Judgement, Judgement]:
        """What `judge` says of fake and of real images, as one batch where that is the same.

        Args:
            input_fake: Images [N, C, H, W] in [-1, 1].
            input_real: Images [M, C, H', W'] in [-1, 1].
        """
        if self.uses_reference or input_fake.shape[1:] != input_real.shape[1:]:
            return self.judge(input_fake), self.judge(input_real)
        n = input_fake.shape[0]
        both = self.judge(torch.cat([input_fake.to(input_real.dtype), input_real]))
        halves = [[y.split([n, y.shape[0] - n]) for y in maps] for maps in both]
        fake, real = (Judgement(*(tuple(pair[i] for pair in maps) for maps in halves)) for i in (0, 1))
        return fake, real

    def calc_dis_loss(self, input_fake: Tensor, input_real: Tensor) -> Tensor:
        """The discriminator's loss, summed over the scales: real images are told from fake ones.

        Args:
            input_fake: Images [N, C, H, W] in [-1, 1].
            input_real: Images [M, C, H', W'] in [-1, 1]; one batch with the fake ones where the sizes are the same.

        Returns:
            A scalar.
        """
        return self.dis_loss(*self.judge_both(input_fake, input_real))

    def calc_gen_loss(self, input_fake: Tensor) -> Tensor:
        """The generator's adversarial loss, summed over the scales: fake images pass for real ones.

        Args:
            input_fake: Images [N, C, H, W] in [-1, 1].

        Returns:
            A scalar.
        """
        return self.gen_loss(self.judge(input_fake))

    def dis_loss(self, fake: Judgement, real: Judgement) -> Tensor:
        """`calc_dis_loss` of what `judge_both` said."""
        if self.uses_reference:
            loss, pairs = GAN_LOSSES[self.gan_type], zip(fake.outputs, real.outputs)
            return torch.stack([loss.fake(f) + loss.real(r) for f, r in pairs]).sum()
        of_fake, of_real = (
            sum_of_scales(self.gan_type, side, judged.outputs, self.impl)
            for side, judged in (("fake", fake), ("real", real))
        )
        return of_fake + of_real

    def gen_loss(self, fake: Judgement) -> Tensor:
        """`calc_gen_loss` of what `judge` said."""
        if self.uses_reference:
            return torch.stack([GAN_LOSSES[self.gan_type].gen(f) for f in fake.outputs]).sum()
        return sum_of_scales(self.gan_type, "gen", fake.outputs, self.impl)

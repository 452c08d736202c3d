"""Augmentation of what the discriminators see: DiffAugment, and ADA's probability of it.

A small data set is learnt by heart by its discriminators. Augmented images, real ones and translations alike, hinder
them, and since the transformations are differentiable the generators learn from what is left (Zhao et al.,
"Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020). ADA (Karras et al., "Training Generative
Adversarial Networks with Limited Data", NeurIPS 2020) applies each with a probability that rises while they overfit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from munit_fast.io.checkpoints import is_plain
from munit_fast.models.discriminators import Judgement

TRANSFORMATIONS = ("color", "translation", "cutout")
UNIFORMS = 12  # of an image: 3 + 2 + 2 amounts of the transformations, and 5 that say which are applied
_DOMAINS = ("a", "b")
_SCALES = 10  # the most that a discriminator has


def augment(x: Tensor, uniform: Tensor, transformations: Collection[str], p: Tensor | None = None) -> Tensor:
    """Images as a discriminator sees them, transformed in the order below; each image in a way of its own.

    "color": brightness, x + U(-0.5, 0.5); saturation, the deviation from the mean over the channels times U(0, 2);
    contrast, the deviation from the image's mean times U(0.5, 1.5). "translation": by up to 1/8 of each side, filled
    with zeros. "cutout": a rectangle of half of each side is zero; its centre is anywhere, so that a part of it may be
    outside. The ranges and the fill are DiffAugment's; zero is the middle of the range.

    Args:
        x: Images [N, C, H, W] in [-1, 1], any number of channels.
        uniform: [N, UNIFORMS] in [0, 1): all that is random.
        transformations: Some of TRANSFORMATIONS.
        p: [], the probability with which brightness, saturation, contrast, translation and cutout are applied to an
            image, each by itself; None: all are. At 0 the images stay as they are, to the bit.

    Returns:
        [N, C, H, W] in the dtype of `x`, differentiable to `x`; computed in float32 at least.
    """
    dtype, (height, width) = x.dtype, x.shape[2:]
    wide = x.to(torch.promote_types(dtype, torch.float32))
    uniform = uniform.to(wide)
    amounts, gates = uniform[:, :7], uniform[:, 7:]
    on = (torch.ones_like(gates) if p is None else gates < p).to(wide)
    if "color" in transformations:
        brightness, saturation, contrast = ((amounts[:, :3] - 0.5) * on[:, :3]).view(-1, 3, 1, 1, 1).unbind(1)
        # What is added to the image is exactly zero where a transformation is not applied.
        wide = wide + brightness
        wide = wide + (wide - wide.mean(1, keepdim=True)) * (2 * saturation)
        wide = wide + (wide - wide.mean((1, 2, 3), keepdim=True)) * contrast
    if "translation" in transformations:
        by = [_shift(amounts[:, i], side) * on[:, 3:4] for i, side in ((3, height), (4, width))]
        wide = _translate(wide, *by)
    if "cutout" in transformations:
        rows, columns = (_cut(amounts[:, i], side) for i, side in ((5, height), (6, width)))
        cut = rows[:, :, None] & columns[:, None, :] & (on[:, 4] > 0)[:, None, None]
        wide = wide.masked_fill(cut[:, None], 0)
    return wide.to(dtype)


class Views(Mapping[str, Tensor]):
    """Images as they are seen, by domain; each is computed when it is asked for, and once.

    Args:
        images: By domain.
        see: see(domain, x) is what a discriminator sees of images x in the place of the domain's, differentiable to x:
            the same images give the same. Without it images are seen as they are.
    """

    def __init__(
        self, images: Mapping[str, Tensor], see: Callable[[str, Tensor], Tensor] = lambda domain, x: x
    ) -> None:
        self.see = see
        self._images = images
        self._seen: dict[str, Tensor] = {}

    def __getitem__(self, domain: str) -> Tensor:
        if domain not in self._seen:
            self._seen[domain] = self.see(domain, self._images[domain])
        return self._seen[domain]

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)


def _shift(uniform: Tensor, side: int) -> Tensor:
    """[N, 1] whole numbers of pixels, up to an eighth of a side in either direction, from uniform [N]."""
    most = int(side / 8 + 0.5)
    return (uniform * (2 * most + 1)).floor()[:, None] - most


def _translate(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images [N, C, H, W] moved by down [N, 1] and right [N, 1], filled with zeros."""
    (channels, height, width) = x.shape[1:]
    rows, columns = (
        torch.arange(side, device=x.device) - by.long() for side, by in ((height, down), (width, right))
    )  # where each row and column comes from, [N, H] and [N, W]
    # Around the border: each pixel is read once, so the sums of a gather's backward have one summand, in any order.
    index = (rows.remainder(height) * width)[:, :, None] + columns.remainder(width)[:, None, :]
    moved = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).view_as(x)
    inside = (rows == rows.remainder(height))[:, :, None] & (columns == columns.remainder(width))[:, None, :]
    return moved.masked_fill(~inside[:, None], 0)


def _cut(uniform: Tensor, side: int) -> Tensor:
    """[N, side], whether a row or column is cut out, from uniform [N]."""
    length = int(side / 2 + 0.5)
    begin = (uniform * (side + 1 - length % 2)).floor()[:, None] - length // 2
    place = torch.arange(side, device=uniform.device)
    return (place >= begin) & (place < begin + length)


class AdaptiveProbability:
    """ADA's controller: the probability of each discriminator's augmentation, from r_t = E[sign(D(real))].

    r_t is 0 for a discriminator that knows no training image from others, and 1 for one that knows each. It is taken
    over the discriminator's outputs for the real images as they are seen, augmented: the mean of each scale, then of
    the scales. The sign is that of the output's distance from the middle of the two targets: D - 0.5 for "lsgan", whose
    targets are 0 and 1, and D for others. Every `ada_iter` iterations p moves by (images since) / `ada_images`, up
    where r_t is above `ada_target` and down where it is below, and stays in [0, 1]. Each of the two discriminators has
    a probability of its own, for one data set may be small and the other one not.

    Of the paper this has the controller; the transformations are those of `augment`, not its geometric pipeline.

    All is computed with tensors on the trainer's device, none of which is read back: a CUDA graph holds it.

    Attributes:
        p: [2], float32, of the discriminators of A and B.
        seen: [2, 21], int64, since p moved the last time, of all processes: for each scale the sum of the signs, then
            for each the number of outputs, then the images. Whole numbers, so that every division of a batch is alike.
    """

    def __init__(self) -> None:
        self.p = torch.zeros(2)
        self.seen = torch.zeros(2, 2 * _SCALES + 1, dtype=torch.int64)
        self._fresh = torch.zeros_like(self.seen)  # of this iteration, of this process

    def of(self, domain: str) -> Tensor:
        """The probability [] of domain "a" or "b"."""
        return self.p[_DOMAINS.index(domain)]

    def begin(self) -> None:
        """Enter the next iteration."""
        self._fresh.zero_()

    def observe(self, discriminators: Mapping[str, Any], real: Mapping[str, Judgement]) -> None:
        """Count what discriminators say of real images; an output that is not finite counts as on the middle.

        Args:
            discriminators: By domain, with their `gan_type`.
            real: By domain, what they said.
        """
        for fresh, domain in zip(self._fresh, _DOMAINS):
            middle = 0.5 if discriminators[domain].gan_type == "lsgan" else 0.0
            outputs = [output.detach() for output in real[domain].outputs]
            fresh[: len(outputs)] += torch.stack([(o > middle).sum() - (o < middle).sum() for o in outputs])
            for i, output in enumerate(outputs, _SCALES):
                fresh[i] += output.numel()
            fresh[-1] += outputs[0].shape[0]

    def end(self, processes: int, due: bool, target: float, images: int) -> None:
        """Take what was counted in this iteration, of all processes.

        Args:
            processes: That share a batch.
            due: Whether p moves after this iteration.
            target: `ada_target`.
            images: `ada_images`.
        """
        if processes > 1:
            dist.all_reduce(self._fresh)
        self.seen += self._fresh
        if not due:
            return
        signs, outputs, count = self.seen.split([_SCALES, _SCALES, 1], dim=1)
        scales = (outputs > 0).sum(1).clamp(min=1)
        r = (signs.float() / outputs.clamp(min=1)).sum(1) / scales
        self.p.add_((r - target).sign() * count.squeeze(1) / images).clamp_(0, 1)
        self.seen.zero_()

    def to(self, device: torch.device) -> None:
        """Move to `device`."""
        self.p, self.seen, self._fresh = (t.to(device) for t in (self.p, self.seen, self._fresh))

    def state(self) -> dict[str, Tensor]:
        """What `load` takes."""
        return {"p": self.p, "seen": self.seen}

    def checked(self, state: Any) -> dict[str, Tensor]:
        """A state as `load` takes it, from anything that a file may hold.

        Raises:
            ValueError: It is no such state.
        """
        own = self.state()
        if not isinstance(state, Mapping) or any(
            not is_plain(state.get(name)) or (state[name].shape, state[name].dtype) != (t.shape, t.dtype)
            for name, t in own.items()
        ):
            raise ValueError("the state of ada_target is of another kind")
        found = {name: state[name] for name in own}
        if not bool(((found["p"] >= 0) & (found["p"] <= 1)).all()):
            raise ValueError("a probability of ada_target is not in [0, 1]")
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load what `checked` returned, into the tensors that a CUDA graph holds."""
        for name, t in self.state().items():
            t.copy_(state[name])

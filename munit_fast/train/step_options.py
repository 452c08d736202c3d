"""What a configuration adds to the published updates: optional terms, and what the discriminators see of the images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from munit_fast.models.discriminators import Judgement
from munit_fast.reference.trainers import Hyperparameters, Losses
from munit_fast.train.augment import TRANSFORMATIONS, UNIFORMS, AdaptiveProbability, Views, augment
from munit_fast.train.terms import TERMS, Terms
from munit_fast.train.terms.base import is_due

Images = Mapping[str, Tensor]  # by domain, "a" and "b", [N, C, H, W]
_OTHER = {"a": "b", "b": "a"}


class UpdateNoise(NamedTuple):
    """The random tensors of an update, each with one row an image."""

    published: list[Tensor]
    views: list[Tensor]  # of the augmentation: for A and for B [N, 2, UNIFORMS], of each image and of its translation
    terms: list[Tensor]


class StepOptions:
    """The optional parts of a trainer's updates; without options it adds nothing.

    Random tensors of an update come after the published ones: those of the augmentation, then those of its terms.

    Args:
        hp: The configuration's keys.
        trainer: "MUNIT" or "UNIT".

    Attributes:
        terms: The optional terms of the losses.
        augmentation: The transformations of what the discriminators see.
        ada: Their probability, where `ada_target` is on; else each is always applied.

    Raises:
        ValueError: A term is on that this trainer does not have, or a transformation is unknown.
    """

    def __init__(self, hp: Hyperparameters, trainer: str) -> None:
        found = [term for term in TERMS if float(hp.get(term.key) or 0) > 0]
        for term in found:
            if trainer not in term.trainers:
                raise ValueError(
                    f"{term.key}: only {', '.join(term.trainers)} has this term; set it to 0 for {trainer}"
                )
        self.terms = Terms(found)
        asked = tuple(hp.get("diffaugment") or ())
        if unknown := set(asked) - set(TRANSFORMATIONS):
            raise ValueError(f"diffaugment: use a list of {', '.join(TRANSFORMATIONS)}; got {min(unknown)!r}")
        self.ada = AdaptiveProbability() if float(hp.get("ada_target") or 0) > 0 else None
        self.augmentation = asked or (TRANSFORMATIONS if self.ada is not None else ())
        self._of_augmentation = {"diffaugment": asked, "ada_target": self.ada}

    @property
    def named(self) -> tuple[str, ...]:
        """The keys of what is on."""
        on = [key for key, value in self._of_augmentation.items() if value]
        return (*on, *(term.key for term in self.terms.found))

    # ---- random tensors ----

    def draw(self, update: str, nets: Any, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """The random tensors of an update beside the published ones, each with one row an image.

        Args:
            update: "dis" or "gen".
            nets: The trainer.
            x_a: Images of domain A, [N, C, H, W]; only the shape matters.
            x_b: Images of domain B, likewise.
            generator: Draws them; None: torch's CPU generator.
        """
        device = torch.device("cpu") if generator is None else generator.device
        sizes = [(x.shape[0], 2, UNIFORMS) for x in (x_a, x_b)] if self.augmentation else []
        views = [torch.rand(size, generator=generator, device=device) for size in sizes]
        return views + self.terms.draw(update, nets, x_a, x_b, generator)

    def _count(self, update: str) -> int:
        return (2 if self.augmentation else 0) + self.terms.count(update)

    def complete(
        self, noise: Sequence[Tensor], published: int, update: str, nets: Any, x_a: Tensor, x_b: Tensor
    ) -> list[Tensor]:
        """The noise of an update with what is missing of it, where only the published part was given."""
        missing = self._count(update) if len(noise) == published else 0
        return [*noise, *(self.draw(update, nets, x_a, x_b, None) if missing else ())]

    def split(self, published: int, update: str, noise: Sequence[Tensor]) -> UpdateNoise:
        """The noise of an update by whom it is for.

        Raises:
            ValueError: There is another number of tensors.
        """
        wanted = published + self._count(update)
        if len(noise) != wanted:
            raise ValueError(f"noise must hold {wanted} tensors, the published ones first; got {len(noise)}")
        terms = len(noise) - self.terms.count(update)
        return UpdateNoise(list(noise[:published]), list(noise[published:terms]), list(noise[terms:]))

    # ---- what the discriminators see ----

    def views(self, real: Images, fake: Images, noise: Sequence[Tensor]) -> tuple[Views, Views]:
        """What the discriminators see of real images and of translations; what nobody asks for is not computed.

        Args:
            real: The images of each domain.
            fake: The translations into each domain.
            noise: `UpdateNoise.views`.
        """
        if not self.augmentation:
            return Views(real), Views(fake)
        uniform = dict(zip("ab", noise, strict=True))

        def see(domain: str, x: Tensor, rows: Tensor) -> Tensor:
            return augment(x, rows, self.augmentation, None if self.ada is None else self.ada.of(domain))

        return (
            Views(real, lambda domain, x: see(domain, x, uniform[domain][:, 0])),
            Views(fake, lambda domain, x: see(domain, x, uniform[_OTHER[domain]][:, 1])),
        )

    def observe(self, nets: Any, real: Mapping[str, Judgement]) -> Losses:
        """Take notice of what the discriminators say of real images, in their update.

        Returns:
            What is logged beside the losses: the probabilities that this iteration has, "ada_p_a" and "ada_p_b".
        """
        if self.ada is None:
            return {}
        self.ada.observe(nets.discriminators, real)
        return {f"ada_p_{domain}": self.ada.of(domain).clone() for domain in "ab"}

    @contextmanager
    def discriminator_step(self, nets: Any, hp: Hyperparameters) -> Iterator[None]:
        """Around the discriminators' step of an iteration, all parts of its batch: what they say moves `ada`."""
        if self.ada is None:
            yield
            return
        self.ada.begin()
        yield
        due = self._ada_due(hp, nets.iterations)
        self.ada.end(nets._processes, due, float(hp["ada_target"]), int(hp.get("ada_images", 500_000)))

    def _ada_due(self, hp: Hyperparameters, iteration: int) -> bool:
        return self.ada is not None and is_due(iteration, self._ada_interval(hp))

    @staticmethod
    def _ada_interval(hp: Hyperparameters) -> int:
        return int(hp.get("ada_iter", 4))

    def due(self, hp: Hyperparameters, iteration: int) -> tuple[str, ...]:
        """What an iteration computes that others do not; equal for iterations that one CUDA graph serves."""
        return (*(["ada_target"] if self._ada_due(hp, iteration) else []), *self.terms.due(hp, iteration))

    def kinds(self, hp: Hyperparameters) -> dict[int, tuple[str, ...]]:
        """The first iteration of each kind, 1 among them, and what it computes that others do not, as `due`."""
        intervals = {term.iterations(hp) for term in self.terms.found}
        if self.ada is not None:
            intervals.add(self._ada_interval(hp))
        first = {1}  # the least common multiples of some of the intervals: what is due together is so there first
        for interval in intervals:
            first |= {math.lcm(i, interval) for i in first}
        return {i: self.due(hp, i) for i in sorted(first)}

    def to(self, device: torch.device) -> None:
        """Move to `device`."""
        if self.ada is not None:
            self.ada.to(device)

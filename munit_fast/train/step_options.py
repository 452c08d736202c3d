"""What a configuration adds to the published updates: optional terms, and what the discriminators see of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from munit_fast.reference.trainers import Hyperparameters
from munit_fast.train.terms import TERMS, Terms

Images = Mapping[str, Tensor]  # by domain, "a" and "b", [N, C, H, W]


class StepOptions:
    """The optional parts of a trainer's updates; without options it adds nothing.

    Random tensors of an update come after the published ones: those of its terms.

    Args:
        hp: The configuration's keys.
        trainer: "MUNIT" or "UNIT".

    Raises:
        ValueError: A term is on that this trainer does not have.
    """

    def __init__(self, hp: Hyperparameters, trainer: str) -> None:
        found = [term for term in TERMS if float(hp.get(term.key) or 0) > 0]
        for term in found:
            if trainer not in term.trainers:
                raise ValueError(
                    f"{term.key}: only {', '.join(term.trainers)} has this term; set it to 0 for {trainer}"
                )
        self.terms = Terms(found)

    @property
    def named(self) -> tuple[str, ...]:
        """The keys of what is on."""
        return tuple(term.key for term in self.terms.found)

    def draw(self, update: str, nets: Any, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """The random tensors of an update beside the published ones, each with one row an image.

        Args:
            update: "dis" or "gen".
            nets: The trainer.
            x_a: Images of domain A, [N, C, H, W]; only the shape matters.
            x_b: Images of domain B, likewise.
            generator: Draws them; None: torch's CPU generator.
        """
        return self.terms.draw(update, nets, x_a, x_b, generator)

    def complete(
        self, noise: Sequence[Tensor], published: int, update: str, nets: Any, x_a: Tensor, x_b: Tensor
    ) -> list[Tensor]:
        """The noise of an update with what is missing of it, where only the published part was given."""
        missing = self.terms.count(update) if len(noise) == published else 0
        return [*noise, *(self.draw(update, nets, x_a, x_b, None) if missing else ())]

    def split(self, published: int, update: str, noise: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The noise of the published update, and that of the terms.

        Raises:
            ValueError: There is another number of tensors.
        """
        wanted = published + self.terms.count(update)
        if len(noise) != wanted:
            raise ValueError(f"noise must hold {wanted} tensors, the published ones first; got {len(noise)}")
        return list(noise[:published]), list(noise[published:])

    def views(self, real: Images, fake: Images) -> tuple[Images, Images]:
        """What the discriminators see of real images and of translations."""
        return real, fake

    def due(self, hp: Hyperparameters, iteration: int) -> tuple[str, ...]:
        """What an iteration computes that others do not; equal for iterations that one CUDA graph serves."""
        return self.terms.due(hp, iteration)

"""What a term is, and what an update gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from munit_fast.models.discriminators import Judgement
from munit_fast.reference.trainers import Hyperparameters, Losses

Update = Literal["dis", "gen"]


class Step(NamedTuple):
    """What an update has computed when its terms are, by domain, "a" and "b"."""

    nets: Any  # the trainer, for its networks
    codes: Any  # `losses.Codes` of the images
    noise: Sequence[Tensor]  # of the published update
    real: Mapping[str, Tensor]  # the images [N, C, H, W], as they are
    fake: Mapping[str, Tensor]  # the translations into the domain; without a graph in the discriminator update
    seen_real: Mapping[str, Tensor]  # the images as the discriminator of the domain sees them: augmented, if at all
    seen_fake: Mapping[str, Tensor]
    judged_real: Mapping[str, Judgement]  # what it says of them; {} in the generator update, which asks for fakes only
    judged_fake: Mapping[str, Judgement]


def _no_noise(nets: Any, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
    return []


@dataclass(frozen=True)
class Term:
    """An optional term of an update's loss.

    Attributes:
        key: The configuration's key of its weight; 0 is off.
        name: What the losses call it: loss_<update>_<name>_a and _b.
        update: The update that it is minimised in.
        compute: compute(step, domain, noise) is the term of domain "a" or "b", a scalar.
        draw: draw(nets, x_a, x_b, generator) are the term's own random tensors, each with one row an image.
        count: How many tensors `draw` gives.
        interval: The key of the iterations from one time that it is computed to the next, whose weight is then as many
            times as large (lazy regularisation, Karras et al., CVPR 2020, appendix B); "": every iteration.
        trainers: The trainers that have it.
    """

    key: str
    name: str
    update: Update
    compute: Callable[[Step, str, Sequence[Tensor]], Tensor]
    draw: Callable[[Any, Tensor, Tensor, torch.Generator | None], list[Tensor]] = _no_noise
    count: int = 0
    interval: str = ""
    trainers: tuple[str, ...] = ("MUNIT", "UNIT")

    def due(self, hp: Hyperparameters, iteration: int) -> bool:
        """Whether the term is computed in this iteration; the first is 1."""
        return not self.interval or iteration % int(hp[self.interval]) == 0

    def weight(self, hp: Hyperparameters) -> float:
        """The factor of the term in an iteration that computes it."""
        return float(hp[self.key]) * (int(hp[self.interval]) if self.interval else 1)


class Terms:
    """The terms that a trainer has.

    Args:
        found: The terms.
    """

    def __init__(self, found: Sequence[Term] = ()) -> None:
        self.found = tuple(found)

    def of(self, update: str) -> tuple[Term, ...]:
        """The terms of an update."""
        return tuple(term for term in self.found if term.update == update)

    def due(self, hp: Hyperparameters, iteration: int) -> tuple[str, ...]:
        """The keys of the terms that this iteration computes."""
        return tuple(term.key for term in self.found if term.due(hp, iteration))

    def count(self, update: str) -> int:
        """How many random tensors the terms of an update take."""
        return sum(term.count for term in self.of(update))

    def draw(self, update: str, nets: Any, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """The random tensors of an update's terms, one after the other."""
        return [noise for term in self.of(update) for noise in term.draw(nets, x_a, x_b, generator)]

    def losses(self, update: str, step: Step, noise: Sequence[Tensor], hp: Hyperparameters, iteration: int) -> Losses:
        """The terms that this iteration computes by their names; loss_<update>_terms is their weighted sum.

        Args:
            update: "dis" or "gen".
            step: What the update has computed.
            noise: As `draw` gives it.
            hp: The configuration's keys.
            iteration: Its number; the first is 1.

        Returns:
            {} where there is none.
        """
        losses: Losses = {}
        total: Any = 0.0
        for term in self.of(update):
            own, noise = noise[: term.count], noise[term.count :]
            if not term.due(hp, iteration):
                continue
            for domain in ("a", "b"):
                loss = term.compute(step, domain, own)
                losses[f"loss_{update}_{term.name}_{domain}"] = loss
                total = total + term.weight(hp) * loss
        return losses | {f"loss_{update}_terms": total} if losses else {}

"""What a term is, and what an update gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from munit_fast.models.discriminators import Judgement
from munit_fast.reference.trainers import Hyperparameters, Losses
from munit_fast.train.augment import Views

Update = Literal["dis", "gen"]


class Step(NamedTuple):
    """What an update has computed when its terms are, by domain, "a" and "b"."""

    nets: Any  # the trainer, for its networks
    codes: Any  # `losses.Codes` of the images
    noise: Sequence[Tensor]  # of the published update
    real: Mapping[str, Tensor]  # the images [N, C, H, W], as they are
    fake: Mapping[str, Tensor]  # the translations into the domain; without a graph in the discriminator update
    seen_real: Views  # the images as the discriminator of the domain sees them: augmented, if at all
    seen_fake: Views
    judged_real: Mapping[str, Judgement]  # what it says of them; {} in the generator update, which asks for fakes only
    judged_fake: Mapping[str, Judgement]
    kept: dict[Any, Any]  # what terms of this update compute for one another; empty at first


def _no_noise(nets: Any, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
    return []


def is_due(iteration: int, interval: int) -> bool:
    """Whether what is done every `interval` iterations is done in this one; the first is 1.

    A loop that never counts, and so stays at 0, gets what every iteration does and nothing else.
    """
    return iteration % interval == 0 and (iteration > 0 or interval == 1)


@dataclass(frozen=True)
class Term:
    """An optional term of an update's loss.

    Attributes:
        key: The configuration's key of its weight; 0 is off.
        name: What the losses call it: loss_<update>_<name>_a and _b.
        update: The update that it is minimised in.
        compute: compute(step, domain, noise) is the term of domain "a" or "b", a scalar.
        draw: draw(nets, x_a, x_b, generator) are the term's own random tensors, each with one row an image. Terms of an
            update with the same function get the same tensors.
        count: How many tensors `draw` gives.
        interval: The key of the iterations from one time that it is computed to the next, whose weight is then as many
            times as large (lazy regularisation, Karras et al., CVPR 2020, appendix B); "": every iteration.
        every: The interval where a configuration does not say.
        trainers: The trainers that have it.
    """

    key: str
    name: str
    update: Update
    compute: Callable[[Step, str, Sequence[Tensor]], Tensor]
    draw: Callable[[Any, Tensor, Tensor, torch.Generator | None], list[Tensor]] = _no_noise
    count: int = 0
    interval: str = ""
    every: int = 1
    trainers: tuple[str, ...] = ("MUNIT", "UNIT")

    def iterations(self, hp: Hyperparameters) -> int:
        """The iterations from one time that the term is computed to the next."""
        return int(hp.get(self.interval, self.every)) if self.interval else 1

    def due(self, hp: Hyperparameters, iteration: int) -> bool:
        """Whether the term is computed in this iteration; the first is 1."""
        return is_due(iteration, self.iterations(hp))

    def weight(self, hp: Hyperparameters) -> float:
        """The factor of the term in an iteration that computes it."""
        return float(hp.get(self.key, 0)) * self.iterations(hp)

    def loss_names(self) -> tuple[str, str]:
        """What the losses of the two domains are called."""
        return f"loss_{self.update}_{self.name}_a", f"loss_{self.update}_{self.name}_b"


class Terms:
    """The terms that a trainer has.

    Args:
        found: The terms.

    Attributes:
        last: The newest losses of the terms that only some iterations compute, by their names.
    """

    def __init__(self, found: Sequence[Term] = ()) -> None:
        self.found = tuple(found)
        self.last: dict[str, Tensor] = {}

    def of(self, update: str) -> tuple[Term, ...]:
        """The terms of an update."""
        return tuple(term for term in self.found if term.update == update)

    @property
    def lazy(self) -> tuple[str, ...]:
        """The names of the losses that only some iterations compute."""
        return tuple(name for term in self.found if term.interval for name in term.loss_names())

    def due(self, hp: Hyperparameters, iteration: int) -> tuple[str, ...]:
        """The keys of the terms that this iteration computes."""
        return tuple(term.key for term in self.found if term.due(hp, iteration))

    def period(self, hp: Hyperparameters) -> int:
        """The iterations after which all terms are computed in one; 1 where every iteration computes all."""
        return math.lcm(*(term.iterations(hp) for term in self.found))

    def _drawn(self, update: str) -> dict[Any, int]:
        """The functions that draw for an update, in the order of the terms, and how many tensors each gives."""
        return {term.draw: term.count for term in self.of(update)}

    def count(self, update: str) -> int:
        """How many random tensors the terms of an update take."""
        return sum(self._drawn(update).values())

    def draw(self, update: str, nets: Any, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """The random tensors of an update's terms, one after the other."""
        return [noise for draw in self._drawn(update) for noise in draw(nets, x_a, x_b, generator)]

    def losses(
        self, update: str, step: Step, noise: Sequence[Tensor], hp: Hyperparameters, iteration: int
    ) -> tuple[Losses, Tensor | None]:
        """The terms that this iteration computes, by their names, and their weighted sum.

        Args:
            update: "dis" or "gen".
            step: What the update has computed.
            noise: As `draw` gives it.
            hp: The configuration's keys.
            iteration: Its number; the first is 1.

        Returns:
            {} and None where there is none.
        """
        own: dict[Any, Sequence[Tensor]] = {}
        for draw, count in self._drawn(update).items():
            own[draw], noise = noise[:count], noise[count:]
        losses: Losses = {}
        total: Tensor | None = None
        for term in self.of(update):
            if not term.due(hp, iteration):
                continue
            for domain, name in zip("ab", term.loss_names()):
                losses[name] = term.compute(step, domain, own[term.draw])
                weighted = term.weight(hp) * losses[name]
                total = weighted if total is None else total + weighted
        return losses, total

    def with_last(self, losses: Losses, processes: int) -> Losses:
        """The losses of an iteration, and the newest ones of the terms that it did not compute.

        Args:
            losses: Without a graph. They are left as they are: a CUDA graph writes to them again.
            processes: That share a batch; they keep the mean of theirs, as a state that one of them saves is for all.
        """
        if not self.lazy:
            return losses
        if new := [name for name in self.lazy if name in losses]:
            values = torch.stack([losses[name] for name in new])  # no memory of a graph
            if processes > 1:
                dist.all_reduce(values.div_(processes))
            self.last |= dict(zip(new, values.unbind()))
        return losses | self.last

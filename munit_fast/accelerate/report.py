"""What `accelerate` did: a report to read, and the way back."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from munit_fast.accelerate.swaps import Swapped, is_swapped, unswap


@dataclass(frozen=True)
class Fused:
    """One norm or convolution that now runs fused.

    Attributes:
        name: its qualified name in the network.
        what: the modules that became one call: "InstanceNorm2d + ReLU".
        into: the call: "instance_norm(act=relu)". That of a convolution, "norm_act_conv2d(padding=1)", is made where
            it has a plan for the tensors at hand.
    """

    name: str
    what: str
    into: str


@dataclass(frozen=True)
class Skipped:
    """A module that stays as it was.

    Attributes:
        name: its qualified name in the network.
        reason: why it has no fused form.
    """

    name: str
    reason: str


class Report:
    """What one call of `accelerate` did; str() of it is made to be read.

    Attributes:
        replaced: the norms and convolutions that run fused.
        skipped: the modules that were left as they are, with the reasons.
    """

    def __init__(self) -> None:
        self.replaced: list[Fused] = []
        self.skipped: list[Skipped] = []
        self._swapped: list[nn.Module] = []

    def restore(self) -> None:
        """Undo this call, exactly: every module that it changed has its own class and forward again.

        What an earlier call did stays, and so does everything that happened since: weights, hooks, modes.

        Raises:
            RuntimeError: a module has got yet another class since (a parametrization, for example), which has to be
                taken off first. The others are restored, and a second restore() does the rest.
        """
        self._swapped = _unswap(self._swapped)
        if self._swapped:
            names = ", ".join(sorted({type(m).__name__ for m in self._swapped}))
            raise RuntimeError(
                f"{len(self._swapped)} modules ({names}) were given another class after accelerate(), by a "
                "parametrization for example: take that off, then call restore() again"
            )

    def __str__(self) -> str:
        convolutions = sum(f.into.startswith("norm_act_conv2d") for f in self.replaced)
        norms, left = len(self.replaced) - convolutions, len(self.skipped)
        fused = _counted(norms, "norm") + (f" and {_counted(convolutions, 'convolution')}" if convolutions else "")
        lines = [f"{fused} fused, {_counted(left, 'module')} left as {'it is' if left == 1 else 'they are'}"]
        for what, into in dict.fromkeys((f.what, f.into) for f in self.replaced):
            names = [f.name for f in self.replaced if (f.what, f.into) == (what, into)]
            lines += _paragraph(f"fused  {what} → {into}", names)
        for reason in dict.fromkeys(s.reason for s in self.skipped):
            lines += _paragraph(f"left   {reason}", [s.name for s in self.skipped if s.reason == reason])
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<accelerate.Report: {len(self.replaced)} fused, {len(self.skipped)} left>"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _paragraph(title: str, names: list[str]) -> list[str]:
    indent = " " * 9
    return [title, *textwrap.wrap(", ".join(names), 100, initial_indent=indent, subsequent_indent=indent)]


def restore(module: nn.Module) -> None:
    """Undo every `accelerate` inside `module`: for a copy or a file of an accelerated network, which has no report.

    Args:
        module: the network; modules that are not accelerated stay as they are.
    """
    _unswap(module.modules())


def _unswap(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Give the modules their own classes; returns those that cannot have them because of a class on top."""
    left: list[nn.Module] = []
    for module in modules:
        if is_swapped(module):
            unswap(module)
        elif isinstance(module, Swapped):
            left.append(module)
    return left

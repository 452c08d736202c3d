"""The table of results: each value beside its floor, its ceiling and simple baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Better = Literal["lower", "higher"]
COPY = "copy the input"


@dataclass(frozen=True)
class EvaluationRow:
    """One measured quantity.

    The names floor and ceiling fit a distance; where higher is better, the floor is the larger number. Either is None
    where it has no meaning.

    Attributes:
        key: Stable name for programs, "lines_to_colour.kid_e3" for example.
        name: Name for readers.
        direction: "colour → lines" for example.
        value: The measurement.
        better: Whether lower or higher is better.
        measured: How it was measured, a phrase for readers.
        floor: The value that real data reach, the best to hope for.
        ceiling: The value of the input left untranslated, which any translation should beat.
        stderr: Standard error over the test inputs; of KID over the real pictures too.
        baselines: Values of simple alternatives, by name.
    """

    key: str
    name: str
    direction: str
    value: float
    better: Better
    measured: str
    floor: float | None = None
    ceiling: float | None = None
    stderr: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)

    def progress(self) -> float | None:
        """The share of the way from ceiling (0) to floor (1); negative: worse than the untranslated input.

        None where floor or ceiling has no meaning, or the untranslated input is as good as real data.
        """
        if self.floor is None or self.ceiling is None:
            return None
        if self.floor == self.ceiling or (self.floor < self.ceiling) != (self.better == "lower"):
            return None
        return (self.ceiling - self.value) / (self.ceiling - self.floor)

    def reading(self) -> str:
        """One sentence about where the value stands between ceiling and floor, or beside its baselines."""
        progress = self.progress()
        if progress is None:
            return f"{self.better.capitalize()} is better. {_compare(self.value, self.baselines)}".rstrip()
        if progress < 0:
            return "Worse than leaving the input untranslated."
        if progress >= 1:
            return "As good as real data by this measure."
        # Rounded down: 99.6 % of the way must not read as having arrived.
        return f"{int(progress * 100)} % of the way from the untranslated input to real data."


@dataclass(frozen=True)
class Evaluation:
    """All rows of one evaluation and the sizes they rest on.

    Attributes:
        entries: The rows.
        test_images: Number of test inputs, N.
        samples_per_input: Translations of each input, k.
        train_images: Real pictures that KID compares with.
        missing: Metrics that were not measured, and why.
        about: What was measured: files, seed, versions, notes.
    """

    entries: tuple[EvaluationRow, ...]
    test_images: int
    samples_per_input: int
    train_images: int
    missing: Mapping[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> EvaluationRow:
        """The row with this key; KeyError names the keys there are."""
        for entry in self.entries:
            if entry.key == key:
                return entry
        raise KeyError(f"no row {key!r}; there are {[entry.key for entry in self.entries]}")

    def to_json(self) -> dict[str, Any]:
        """A dict of plain numbers and strings, for json.dump."""
        return asdict(self)


def _compare(value: float, baselines: Mapping[str, float]) -> str:
    named = ((name, base) for name, base in baselines.items() if base)
    return " ".join(f"{100 * value / base:.0f} % of the value for {name} ({base:.3g})." for name, base in named)

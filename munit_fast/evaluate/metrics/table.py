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

    `floor` is the value that real data reach, the best to hope for; `ceiling` the value of the input left
    untranslated, which any translation should beat. The names fit a distance; where higher is better, the
    floor is the larger number. None: it has no meaning here.
    """

    key: str  # stable name for programs, e.g. "lines_to_colour.kid_e3"
    name: str  # name for readers
    direction: str  # "colour → lines" or "lines → colour"
    value: float
    better: Better
    measured: str  # how, in words
    floor: float | None = None
    ceiling: float | None = None
    stderr: float | None = None  # standard error of the mean over the test inputs
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
        """The value in one plain sentence."""
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
    """All rows of one evaluation and the sizes they rest on."""

    entries: tuple[EvaluationRow, ...]
    test_images: int  # N
    samples_per_input: int  # k
    train_images: int  # M, real pictures that KID compares with
    missing: Mapping[str, str] = field(default_factory=dict)  # what was not measured, and why
    about: dict[str, Any] = field(default_factory=dict)  # what was measured: files, seed, versions

    def __getitem__(self, key: str) -> EvaluationRow:
        """The row with this key; KeyError names the keys there are."""
        for entry in self.entries:
            if entry.key == key:
                return entry
        raise KeyError(f"no row {key!r}; there are {[entry.key for entry in self.entries]}")

    def to_json(self) -> dict[str, Any]:
        """A dict of plain numbers and strings, for json.dump; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Rebuild what `to_json` gave. Raises TypeError or KeyError on missing or unknown fields."""
        return cls(**{**data, "entries": tuple(EvaluationRow(**entry) for entry in data["entries"])})

    def rows(self) -> list[tuple[str, ...]]:
        """The table as text, one tuple a row, the header first."""
        header = (
            "direction",
            "measure",
            "value",
            "floor (real data)",
            "ceiling (untranslated)",
            "baselines",
            "better",
            "reading",
        )
        return [header, *(_cells(entry) for entry in self.entries)]


def _compare(value: float, baselines: Mapping[str, float]) -> str:
    named = ((name, base) for name, base in baselines.items() if base)
    return " ".join(f"{100 * value / base:.0f} % of the value for {name} ({base:.3g})." for name, base in named)


def _cells(entry: EvaluationRow) -> tuple[str, ...]:
    value = f"{entry.value:.4g}" + (f" ± {entry.stderr:.2g}" if entry.stderr is not None else "")
    floor, ceiling = ("–" if bound is None else f"{bound:.4g}" for bound in (entry.floor, entry.ceiling))
    # The copied input stands in the column of the ceiling already.
    baselines = ", ".join(f"{name} {base:.4g}" for name, base in entry.baselines.items() if name != COPY)
    return entry.direction, entry.name, value, floor, ceiling, baselines or "–", entry.better, entry.reading()

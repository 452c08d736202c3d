"""The table of results: each value beside its floor, its ceiling and simple baselines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from munit_fast.metrics.features import (
    FeatureExtractor,
    Features,
    best_of_k,
    diversity,
    kid,
    mean_of_k,
    perceptual_distance,
)
from munit_fast.metrics.images import check_images, l1, line_f1, ssim

TO_LINES, TO_COLOUR = "colour → lines", "lines → colour"
COPY, WHITE, UNRELATED = "copy the input", "all white", "unrelated real pictures"
# Pairwise distances hold k·E floats per input, about 3.5 MB at k = 6; eight inputs a step keep that small
# beside the network.
INPUTS_PER_STEP = 8

Extractor = Callable[[Tensor], Features]
Better = Literal["lower", "higher"]

_LINE_MEASURES: tuple[tuple[str, str, Callable[[Tensor, Tensor], Tensor], Better, str], ...] = (
    ("l1", "L1", l1, "lower", "mean absolute difference to the true drawing, values in [0, 1]"),
    ("ssim", "SSIM", ssim, "higher", "structural similarity to the true drawing, 11×11 Gaussian window"),
    (
        "line_f1",
        "Line F1",
        line_f1,
        "higher",
        "agreement of ink with the true ink within 1.5 px at 128 px, precision and recall joined",
    ),
)


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
            return f"{self.better.capitalize()} is better. " + _compare(self.value, self.baselines)
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
    test_images: int  # N, pairs of drawing and true colouring
    samples_per_input: int  # k
    train_images: int  # M, real colour pictures that KID compares with

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


def evaluate(
    *,
    a_test: Tensor,  # [N, 3, h, w] drawings
    b_test: Tensor,  # [N, 3, h, w] their true colourings
    fake_a: Tensor,  # [N, 3, h, w] drawings made from b_test
    fake_b: Tensor,  # [N, k, 3, h, w] colourings made from a_test with k styles each
    b_train: Tensor,  # [M, 3, h, w] real colour pictures, none of them in the test set
    extractor: Extractor | None = None,
) -> Evaluation:
    """Measure both directions of a lines ↔ colour translation on a paired test set.

    All images are float in [-1, 1] on any device; N and M at least 2, k at least 1. With k = 1 there is no
    diversity row. `extractor` gives the features (default: a `FeatureExtractor` on the device of `fake_b`);
    about 0.1 s an image on one CPU core. KID compares with b_train on both sides: translations share their
    content with b_test, which would flatter them below the floor. Raises ValueError when sizes disagree or
    values leave [-1, 1]; ImportError, naming the extra, when a wheel is missing.
    """
    _check(a_test, b_test, fake_a, fake_b, b_train)
    extract = extractor if extractor is not None else FeatureExtractor().to(fake_b.device)
    entries = (*_to_lines(fake_a, a_test, b_test), *_to_colour(fake_b, a_test, b_test, b_train, extract))
    return Evaluation(entries, test_images=len(a_test), samples_per_input=fake_b.shape[1], train_images=len(b_train))


def _to_lines(fake: Tensor, truth: Tensor, source: Tensor) -> Iterator[EvaluationRow]:
    """Rows of colour → lines. The floor is the truth against itself: a drawing has one right answer here."""
    white = torch.ones_like(truth)
    for key, name, measure, better, how in _LINE_MEASURES:
        value, stderr = _mean(measure(fake, truth))
        baselines = {COPY: _mean(measure(source, truth))[0], WHITE: _mean(measure(white, truth))[0]}
        yield EvaluationRow(
            key=f"colour_to_lines.{key}",
            name=name,
            direction=TO_LINES,
            value=value,
            better=better,
            measured=how,
            floor=0.0 if better == "lower" else 1.0,
            ceiling=baselines[COPY],
            stderr=stderr,
            baselines=baselines,
        )


def _to_colour(
    fake: Tensor, a_test: Tensor, b_test: Tensor, b_train: Tensor, extract: Extractor
) -> Iterator[EvaluationRow]:
    """Rows of lines → colour: the set as a whole (KID), the spread of styles, the distance to the truth."""
    pooled, distances = _look(fake, a_test, b_test, b_train, extract)
    yield _kid_row(pooled)
    if fake.shape[1] > 1:
        yield _diversity_row(distances, fake.shape[1])
    yield from _distance_rows(distances, fake.shape[1])
    value, stderr = _mean(torch.stack([l1(style, b_test) for style in fake.unbind(1)]).mean(0))
    copied, white = (_mean(l1(images, b_test))[0] for images in (a_test, torch.ones_like(b_test)))
    yield EvaluationRow(
        key="lines_to_colour.l1",
        name="L1",
        direction=TO_COLOUR,
        value=value,
        better="lower",
        measured="mean absolute difference to the true colouring, values in [0, 1]; "
        "punishes every colour but the true one",
        floor=0.0,
        ceiling=copied,
        stderr=stderr,
        baselines={COPY: copied, WHITE: white},
    )


def _kid_row(pooled: Mapping[str, Tensor]) -> EvaluationRow:
    n, k = pooled["fake"].shape[:2]
    train = pooled["train"]
    # One style draw at a time: the k translations of one input are not independent, which KID's estimator
    # needs.
    values = [kid(style, train) for style in pooled["fake"].unbind(1)]
    return EvaluationRow(
        key="lines_to_colour.kid_e3",
        name="KID × 10³",
        direction=TO_COLOUR,
        value=1e3 * sum(values) / k,
        better="lower",
        measured=f"unbiased MMD² of features of {n} translations and {len(train)} real training pictures, "
        f"mean over the style draws ({k}); floor: the real test pictures in place of the translations",
        floor=1e3 * kid(pooled["truth"], train),
        ceiling=1e3 * kid(pooled["input"], train),
    )


def _diversity_row(distances: Mapping[str, Tensor], k: int) -> EvaluationRow:
    value, stderr = _mean(distances["diversity"])
    return EvaluationRow(
        key="lines_to_colour.diversity",
        name="Diversity",
        direction=TO_COLOUR,
        value=value,
        better="higher",
        measured=f"mean feature distance among the {k} translations of one drawing; unrelated real pictures "
        "differ in content too, so their distance is more than styles alone should reach",
        # No floor: a drawing has one known true colouring, so real data do not say how much styles should
        # differ.
        ceiling=0.0,
        stderr=stderr,
        baselines={UNRELATED: _mean(distances["unrelated_mean"])[0]},
    )


def _distance_rows(distances: Mapping[str, Tensor], k: int) -> Iterator[EvaluationRow]:
    for kind, which in (("best", "nearest"), ("mean", "mean")):
        value, stderr = _mean(distances[kind])
        yield EvaluationRow(
            key=f"lines_to_colour.{kind}_distance",
            name=f"Distance, {kind} of {k}",
            direction=TO_COLOUR,
            value=value,
            better="lower",
            measured=f"{which} feature distance of the {k} translations to the true colouring, one of many "
            f"right answers; baseline: {k} real training pictures, the same for every drawing",
            floor=0.0,
            ceiling=_mean(distances["untranslated"])[0],
            stderr=stderr,
            baselines={UNRELATED: _mean(distances[f"unrelated_{kind}"])[0]},
        )


def _look(
    fake: Tensor, a_test: Tensor, b_test: Tensor, b_train: Tensor, extract: Extractor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Pooled features (fake [N, k, D], input and truth [N, D], train [M, D]) and distances (each [N]).

    A few inputs at a time: kept whole, the embeddings of 1,440 translations would fill 830 MB.
    """
    k = fake.shape[1]
    pooled: defaultdict[str, list[Tensor]] = defaultdict(list)
    distances: defaultdict[str, list[Tensor]] = defaultdict(list)
    unrelated = extract(b_train[torch.linspace(0, len(b_train) - 1, k).long().to(b_train.device)]).embedding
    for start in range(0, len(fake), INPUTS_PER_STEP):
        rows = slice(start, start + INPUTS_PER_STEP)
        samples, drawn, true = extract(fake[rows].flatten(0, 1)), extract(a_test[rows]), extract(b_test[rows])
        n = len(true.pooled)
        grouped = samples.embedding.reshape(n, k, -1)
        others = unrelated.expand(n, -1, -1)
        distances["best"].append(best_of_k(grouped, true.embedding))
        distances["mean"].append(mean_of_k(grouped, true.embedding))
        distances["untranslated"].append(perceptual_distance(drawn.embedding, true.embedding))
        distances["unrelated_best"].append(best_of_k(others, true.embedding))
        distances["unrelated_mean"].append(mean_of_k(others, true.embedding))
        if k > 1:
            distances["diversity"].append(diversity(grouped))
        pooled["fake"].append(samples.pooled.reshape(n, k, -1))
        pooled["input"].append(drawn.pooled)
        pooled["truth"].append(true.pooled)
    pooled["train"] = [extract(part).pooled for part in torch.split(b_train, 4 * INPUTS_PER_STEP)]
    return _joined(pooled), _joined(distances)


def _joined(table: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat(parts) for key, parts in table.items()}


def _mean(values: Tensor) -> tuple[float, float | None]:
    """Mean of [N] and its standard error (None for a single value)."""
    spread = values.double()
    return spread.mean().item(), (spread.std().item() / len(spread) ** 0.5 if len(spread) > 1 else None)


def _check(a_test: Tensor, b_test: Tensor, fake_a: Tensor, fake_b: Tensor, b_train: Tensor) -> None:
    if fake_b.ndim != 5 or fake_b.shape[1] < 1:
        raise ValueError(f"evaluate: fake_b is {list(fake_b.shape)}; give [N, k, 3, h, w] with k at least 1")
    shape = list(b_test.shape)
    for name, images in (("a_test", a_test), ("fake_a", fake_a), ("fake_b[:, 0]", fake_b[:, 0])):
        if list(images.shape) != shape:
            raise ValueError(f"evaluate: {name} is {list(images.shape)} but b_test is {shape}; pairs must agree")
    if len(b_test) < 2 or len(b_train) < 2 or b_train.shape[1:] != b_test.shape[1:]:
        raise ValueError(f"evaluate: b_test is {shape}, b_train {list(b_train.shape)}; give at least 2 of one size")
    named = {
        "a_test": a_test,
        "b_test": b_test,
        "fake_a": fake_a,
        "fake_b": fake_b.flatten(0, 1),
        "b_train": b_train,
    }
    for name, images in named.items():
        check_images(images, f"evaluate: {name}")


def _compare(value: float, baselines: Mapping[str, float]) -> str:
    parts = (f"{100 * value / base:.0f} % of the value for {name} ({base:.3g})." for name, base in baselines.items())
    return " ".join(parts)


def _cells(entry: EvaluationRow) -> tuple[str, ...]:
    value = f"{entry.value:.4g}" + (f" ± {entry.stderr:.2g}" if entry.stderr is not None else "")
    floor, ceiling = ("–" if bound is None else f"{bound:.4g}" for bound in (entry.floor, entry.ceiling))
    # The copied input stands in the column of the ceiling already.
    baselines = ", ".join(f"{name} {base:.4g}" for name, base in entry.baselines.items() if name != COPY)
    return entry.direction, entry.name, value, floor, ceiling, baselines or "–", entry.better, entry.reading()

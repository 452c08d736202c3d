"""What is measured of a translation, one direction at a time, a few pictures at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from munit_fast.evaluate.metrics.features import (
    FeatureExtractor,
    Features,
    best_of_k,
    coverage,
    diversity,
    kid,
    mean_of_k,
    missed_distance,
    perceptual_distance,
)
from munit_fast.evaluate.metrics.images import check_images, l1, line_f1, ssim, with_channels
from munit_fast.evaluate.metrics.table import COPY, Better, Evaluation, EvaluationRow

WHITE, UNRELATED, TRUE_ANSWERS = "all white", "unrelated real pictures", "an input's own true answers"
# Pairwise distances hold k·E floats per input, about 3.5 MB at k = 6; eight inputs a step keep that small
# beside the network.
INPUTS_PER_STEP = 8

Extractor = Callable[[Tensor], Features]

_PIXELS: Mapping[str, tuple[str, Callable[[Tensor, Tensor], Tensor], Better, str]] = {
    "l1": ("L1", l1, "lower", "mean absolute difference to the true {}, values in [0, 1]"),
    "ssim": ("SSIM", ssim, "higher", "structural similarity to the true {}, 11×11 Gaussian window"),
    "line_f1": (
        "Line F1",
        line_f1,
        "higher",
        "agreement of ink with the true ink within 1.5 px at 128 px, precision and recall joined",
    ),
}


class Pictures(Protocol):
    """Pictures [C, h, w] in [-1, 1] by number, all of one size: a tensor [N, C, h, w], or files read when needed."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class Batch(NamedTuple):
    """A few inputs and what was made of them; all float in [-1, 1]."""

    fake: Tensor  # [n, k, C, h, w]: k translations of each input
    source: Tensor | None = None  # [n, C', h, w]: the inputs
    truth: Tensor | None = None  # [n, C, h, w]: their true translations
    others: Sequence[
        Tensor | None
    ] = ()  # for each input all its true translations [m, C, h, w], where several are known


class Judge(Protocol):
    """Something else that looks at every batch and has rows to add; see `munit_fast.evaluate.metrics.outside`."""

    def look(self, batch: Batch) -> None: ...
    def rows(self, direction: Direction, real: Pictures) -> Iterator[EvaluationRow]: ...


@dataclass(frozen=True)
class Direction:
    """One way of a translation: what its rows are called and which there are."""

    key: str  # "a_to_b": the first part of its rows' keys
    name: str  # "A → B", for readers
    answer: str = "picture"  # what a true translation is called
    pixels: tuple[str, ...] = ("l1", "ssim")  # of l1, ssim, line_f1; for pairs only
    features: bool = True  # whether KID, diversity and the feature distances are measured
    real: str = "test"  # what the real pictures are; "training" where there are no others


def measure(
    direction: Direction,
    batches: Iterable[Batch],
    *,
    train: Pictures | None,
    real: Pictures,
    extractor: Extractor,
    judges: Sequence[Judge] = (),
) -> Iterator[EvaluationRow]:
    """The rows of one direction; pairs (batches with `truth`) give more of them than pictures alone.

    train: real pictures of the target domain, none of them in the test set. KID compares with them, because
    translations share their content with the test pictures, which would flatter them below the floor; where there are
    none, it compares with `real` after all and has no floor. real: the test pictures of the target domain.
    """
    seen = _Seen(direction, extractor, _spread(train if train is not None else real))
    for batch in batches:
        seen.take(batch)
        for judge in judges:
            judge.look(batch)
    if direction.features:
        yield from seen.feature_rows(train, real)
    yield from seen.pixel_rows()
    for judge in judges:
        yield from judge.rows(direction, real)


def evaluate(
    *,
    a_test: Tensor,  # [N, 3, h, w] drawings
    b_test: Tensor,  # [N, 3, h, w] their true colourings
    fake_a: Tensor,  # [N, 3, h, w] drawings made from b_test
    fake_b: Tensor,  # [N, k, 3, h, w] colourings made from a_test with k styles each
    b_train: Tensor,  # [M, 3, h, w] real colour pictures, none of them in the test set
    extractor: Extractor | None = None,
) -> Evaluation:
    """Measure both directions of a lines ↔ colour translation on a paired test set held in memory.

    All images are float in [-1, 1] on any device; N and M at least 2, k at least 1. With k = 1 there is no
    diversity row. `extractor` gives the features (default: a `FeatureExtractor` on the device of `fake_b`);
    about 0.1 s an image on one CPU core. `munit_fast.evaluate.run` measures checkpoints and folders through the same
    `measure`. Raises ValueError when sizes disagree or values leave [-1, 1]; ImportError, naming the extra, when a
    wheel is missing.
    """
    _check(a_test, b_test, fake_a, fake_b, b_train)
    extract = extractor if extractor is not None else FeatureExtractor().to(fake_b.device)
    steps = [slice(i, i + INPUTS_PER_STEP) for i in range(0, len(b_test), INPUTS_PER_STEP)]
    lines = (Batch(fake_a[s, None], b_test[s], a_test[s]) for s in steps)
    colours = (Batch(fake_b[s], a_test[s], b_test[s]) for s in steps)
    entries = (
        *measure(TO_LINES, lines, train=None, real=a_test, extractor=extract),
        *measure(TO_COLOUR, colours, train=b_train, real=b_test, extractor=extract),
    )
    return Evaluation(entries, test_images=len(a_test), samples_per_input=fake_b.shape[1], train_images=len(b_train))


# The directions of line drawings and their colourings. A drawing has one right answer: no feature rows there.
TO_LINES = Direction("colour_to_lines", "colour → lines", "drawing", ("l1", "ssim", "line_f1"), features=False)
TO_COLOUR = Direction("lines_to_colour", "lines → colour", "colouring", ("l1",))


def in_steps(pictures: Pictures) -> Iterator[Tensor]:
    """All pictures, a few at a time, [n, C, h, w]."""
    for start in range(0, len(pictures), INPUTS_PER_STEP):
        yield torch.stack([pictures[i] for i in range(start, min(len(pictures), start + INPUTS_PER_STEP))])


def _spread(pictures: Pictures) -> Callable[[int], Tensor]:
    """k pictures evenly spaced through all."""
    return lambda k: torch.stack([pictures[int(i)] for i in torch.linspace(0, len(pictures) - 1, k)])


@dataclass
class _Seen:
    """What is kept of the pictures seen: kept whole, the embeddings of 1,440 translations would fill 830 MB."""

    direction: Direction
    extract: Extractor
    some_real: Callable[[int], Tensor]
    values: defaultdict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    k: int = 0
    unrelated: Tensor | None = None  # [k, E]: embeddings of real pictures that have nothing to do with any input

    def take(self, batch: Batch) -> None:
        check_images(batch.fake.flatten(0, 1), f"the translations {self.direction.name}")
        self.k = batch.fake.shape[1]
        if batch.truth is not None:
            self._take_pixels(batch, batch.truth)
        if self.direction.features:
            self._take_features(batch)

    def _take_pixels(self, batch: Batch, truth: Tensor) -> None:
        white = torch.ones_like(truth)
        for key in self.direction.pixels:
            compare = _PIXELS[key][1]
            self.values[key].append(torch.stack([compare(fake, truth) for fake in batch.fake.unbind(1)]).mean(0))
            self.values[f"{key} white"].append(compare(white, truth))
            if batch.source is not None:
                self.values[f"{key} copy"].append(compare(with_channels(batch.source, truth.shape[1]), truth))

    def _take_features(self, batch: Batch) -> None:
        n, k = batch.fake.shape[:2]
        samples = self.extract(batch.fake.flatten(0, 1))
        grouped = samples.embedding.reshape(n, k, -1)
        self.values["fake"].append(samples.pooled.reshape(n, k, -1))
        source = None if batch.source is None else self.extract(batch.source)
        if source is not None:
            self.values["input"].append(source.pooled)
        if self.unrelated is None:
            self.unrelated = self.extract(self.some_real(k).to(batch.fake.device)).embedding
        others = self.unrelated.expand(n, -1, -1)
        if k > 1:
            self.values["diversity"].append(diversity(grouped))
            if batch.truth is None:
                self.values["unrelated diversity"].append(diversity(self.unrelated[None]).expand(n))
        if batch.truth is not None:
            true = self.extract(batch.truth)
            self.values["truth"].append(true.pooled)
            for name, points in (("", grouped), ("unrelated ", others)):
                self.values[f"{name}best_distance"].append(best_of_k(points, true.embedding))
                self.values[f"{name}mean_distance"].append(mean_of_k(points, true.embedding))
            if source is not None:
                self.values["copy distance"].append(perceptual_distance(source.embedding, true.embedding))
        for i, colourings in enumerate(batch.others):
            if colourings is not None:
                known = self.extract(colourings).embedding
                if len(known) > 1:
                    self.values["true diversity"].append(diversity(known[None]))
                self._take_coverage("", grouped[i], known)
                self._take_coverage("unrelated ", self.unrelated, known)
                if source is not None:
                    self._take_coverage("copy ", source.embedding[i : i + 1], known)

    def _take_coverage(self, name: str, samples: Tensor, known: Tensor) -> None:
        self.values[f"{name}coverage"].append(coverage(samples, known)[None])
        self.values[f"{name}missed_distance"].append(missed_distance(samples, known)[None])

    def _all(self, key: str) -> Tensor:
        return torch.cat(self.values[key])

    def _mean_of(self, key: str) -> float | None:
        return _mean(self._all(key))[0] if self.values[key] else None

    def _row(self, key: str, name: str, better: Better, measured: str, **more: object) -> EvaluationRow:
        value, stderr = _mean(self._all(key))
        fields = {"key": f"{self.direction.key}.{key}", "value": value, "stderr": stderr} | more
        return EvaluationRow(name=name, direction=self.direction.name, better=better, measured=measured, **fields)  # type: ignore[arg-type]

    def pixel_rows(self) -> Iterator[EvaluationRow]:
        for key in self.direction.pixels:
            if not self.values[key]:
                continue
            name, _, better, how = _PIXELS[key]
            how = how.format(self.direction.answer)
            if self.direction.features:
                how += f"; punishes every answer but the true one (mean over {self.k} translations)"
            copied, white = self._mean_of(f"{key} copy"), self._mean_of(f"{key} white")
            baselines = {COPY: copied, WHITE: white}
            yield self._row(
                key,
                name,
                better,
                how,
                floor=0.0 if better == "lower" else 1.0,
                ceiling=copied,
                baselines={name: value for name, value in baselines.items() if value is not None},
            )

    def feature_rows(self, train: Pictures | None, real: Pictures) -> Iterator[EvaluationRow]:
        yield self._kid_row(train, real)
        if self.k > 1:
            unrelated = "unrelated mean_distance" if self.values["truth"] else "unrelated diversity"
            baselines = {UNRELATED: self._mean_of(unrelated), TRUE_ANSWERS: self._mean_of("true diversity")}
            yield self._row(
                "diversity",
                "Diversity",
                "higher",
                f"mean feature distance among the {self.k} translations of one input; unrelated real pictures "
                "differ in content too, so their distance is more than styles alone should reach",
                # No floor: where an input has several known true translations they are a part of the right ones.
                ceiling=0.0,
                baselines={name: value for name, value in baselines.items() if value is not None},
            )
        if self.values["best_distance"]:
            yield from self._distance_rows()
        if self.values["coverage"]:
            yield from self._coverage_rows()

    def _kid_row(self, train: Pictures | None, real: Pictures) -> EvaluationRow:
        fake, device = self._all("fake"), self.values["fake"][0].device
        compared = real if train is None else train
        against = torch.cat([self.extract(part.to(device)).pooled for part in in_steps(compared)])
        # One style draw at a time: the k translations of one input are not independent, which KID's estimator
        # needs.
        values = [kid(style, against) for style in fake.unbind(1)]
        floor = None
        if train is not None:
            test = self.values["truth"] or [self.extract(part.to(device)).pooled for part in in_steps(real)]
            floor = 1e3 * kid(torch.cat(test), against)
        what = "training" if train is not None else self.direction.real
        how = (
            f"unbiased MMD² of features of {len(fake)} translations and {len(against)} real {what} pictures, mean over "
            f"the style draws ({self.k})"
        )
        return EvaluationRow(
            key=f"{self.direction.key}.kid_e3",
            name="KID × 10³",
            direction=self.direction.name,
            value=1e3 * sum(values) / self.k,
            better="lower",
            measured=how
            + ("; floor: the real test pictures in place of the translations" if floor is not None else ""),
            floor=floor,
            ceiling=1e3 * kid(self._all("input"), against) if self.values["input"] else None,
        )

    def _distance_rows(self) -> Iterator[EvaluationRow]:
        for kind, which in (("best", "nearest"), ("mean", "mean")):
            yield self._row(
                f"{kind}_distance",
                f"Distance, {kind} of {self.k}",
                "lower",
                f"{which} feature distance of the {self.k} translations to the true {self.direction.answer}, one of "
                f"many right answers; baseline: {self.k} real pictures, the same for every input",
                floor=0.0,
                ceiling=self._mean_of("copy distance"),
                baselines={UNRELATED: self._mean_of(f"unrelated {kind}_distance")},
            )

    def _coverage_rows(self) -> Iterator[EvaluationRow]:
        answers, count = f"true {self.direction.answer}s", len(self.values["coverage"])
        yield self._row(
            "coverage",
            f"Coverage by {self.k}",
            "higher",
            f"share of an input's {answers} that a translation comes nearer than any other of them does; {count} "
            "inputs with several",
            floor=1.0,
            ceiling=self._mean_of("copy coverage"),
            baselines={UNRELATED: self._mean_of("unrelated coverage")},
        )
        yield self._row(
            "missed_distance",
            f"Distance, every {self.direction.answer}",
            "lower",
            f"feature distance from each of an input's {answers} to the nearest translation: what no style comes near "
            f"counts in full; {count} inputs with several",
            floor=0.0,
            ceiling=self._mean_of("copy missed_distance"),
            baselines={UNRELATED: self._mean_of("unrelated missed_distance")},
        )


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

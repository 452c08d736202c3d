"""The rows of an evaluation, measured one direction at a time, a few pictures at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from munit_fast.evaluate.metrics.base import Batch, Direction, Metric, Pictures, in_steps
from munit_fast.evaluate.metrics.colouring import ColouringMetric
from munit_fast.evaluate.metrics.features import (
    Features,
    best_of_k,
    coverage,
    diversity,
    kid,
    kid_error,
    mean_of_k,
    missed_distance,
    perceptual_distance,
)
from munit_fast.evaluate.metrics.images import check_images, l1, line_f1, ssim, with_channels
from munit_fast.evaluate.metrics.table import COPY, Better, EvaluationRow

WHITE, UNRELATED, TRUE_ANSWERS = "all white", "unrelated real pictures", "an input's own true answers"

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

# The directions of line drawings and their colourings. A drawing has one right answer: no feature rows there.
TO_LINES = Direction("colour_to_lines", "colour → lines", "drawing", ("l1", "ssim", "line_f1"), features=False)
TO_COLOUR = Direction("lines_to_colour", "lines → colour", "colouring", ("l1",), colouring=True)


def measure(
    direction: Direction,
    batches: Iterable[Batch],
    *,
    train: Pictures | None,
    real: Pictures,
    extractor: Extractor,
    others: Sequence[Metric] = (),
) -> Iterator[EvaluationRow]:
    """The rows of one direction; pairs (batches with `truth`) give more of them than pictures alone.

    Args:
        direction: What the rows are called and which there are.
        batches: The translations; any number of inputs at a time.
        train: Real pictures of the target domain, none of them in the test set. KID compares with them, because
            translations share their content with the test pictures, which would flatter them below the floor. None:
            KID compares with `real` after all and has no floor.
        real: The test pictures of the target domain.
        extractor: float images [N, 1 or 3, H, W] in [-1, 1] to `Features`.
        others: More metrics, whose rows come last.

    Raises:
        ValueError: Images of another shape or range.
    """
    metrics: list[Metric] = [FeatureMetric(extractor, train, real)] if direction.features else []
    metrics += [PixelMetric(direction), *([ColouringMetric()] if direction.colouring else []), *others]
    for batch in batches:
        check_images(batch.fake.flatten(0, 1), f"the translations {direction.name}")
        for metric in metrics:
            metric.update(batch)
    for metric in metrics:
        yield from metric.compute(direction, real)


class _Accumulator:
    """Values by name, [n] for each batch: the embeddings of 1,440 translations, kept whole, would fill 830 MB."""

    def __init__(self) -> None:
        self.values: defaultdict[str, list[Tensor]] = defaultdict(list)
        self.k = 0

    def _all(self, key: str) -> Tensor:
        return torch.cat(self.values[key])

    def _mean_of(self, key: str) -> float | None:
        return _mean(self._all(key))[0] if self.values[key] else None

    def _row(
        self, direction: Direction, key: str, name: str, better: Better, measured: str, **more: object
    ) -> EvaluationRow:
        value, stderr = _mean(self._all(key))
        fields = {"key": f"{direction.key}.{key}", "value": value, "stderr": stderr} | more
        return EvaluationRow(name=name, direction=direction.name, better=better, measured=measured, **fields)  # type: ignore[arg-type]


class PixelMetric(_Accumulator):
    """L1, SSIM and line F1 of pairs, beside a white picture and the input; see `images`."""

    def __init__(self, direction: Direction) -> None:
        super().__init__()
        self.keys = direction.pixels

    def update(self, batch: Batch) -> None:
        """Add a batch; without `truth` it adds nothing."""
        self.k = batch.fake.shape[1]
        if (truth := batch.truth) is None:
            return
        white = torch.ones_like(truth)
        for key in self.keys:
            compare = _PIXELS[key][1]
            self.values[key].append(torch.stack([compare(fake, truth) for fake in batch.fake.unbind(1)]).mean(0))
            self.values[f"{key} white"].append(compare(white, truth))
            if batch.source is not None:
                self.values[f"{key} copy"].append(compare(with_channels(batch.source, truth.shape[1]), truth))

    def compute(self, direction: Direction, real: Pictures) -> Iterator[EvaluationRow]:
        """One row for each pixel measure of the direction, over all batches so far."""
        del real
        for key in self.keys:
            if not self.values[key]:
                continue
            name, _, better, how = _PIXELS[key]
            how = how.format(direction.answer)
            if direction.features:
                how += f"; punishes every answer but the true one (mean over {self.k} translations)"
            copied, white = self._mean_of(f"{key} copy"), self._mean_of(f"{key} white")
            baselines = {COPY: copied, WHITE: white}
            yield self._row(
                direction,
                key,
                name,
                better,
                how,
                floor=0.0 if better == "lower" else 1.0,
                ceiling=copied,
                baselines={name: value for name, value in baselines.items() if value is not None},
            )


class FeatureMetric(_Accumulator):
    """KID, diversity, distances to the truth and coverage in the features of a network; see `features`.

    Args:
        extractor: float images [N, 1 or 3, H, W] in [-1, 1] to `Features`.
        train: Real pictures that KID compares with; None: the real ones of the test set.
        real: The test pictures of the target domain.
    """

    def __init__(self, extractor: Extractor, train: Pictures | None, real: Pictures) -> None:
        super().__init__()
        self.extract, self.train = extractor, train
        self.some_real = train if train is not None else real
        self.unrelated: Tensor | None = None  # [k, E]: embeddings of real pictures that no input is related to

    def update(self, batch: Batch) -> None:
        """Add a batch: its features are extracted at once."""
        n, k = batch.fake.shape[:2]
        self.k = k
        samples = self.extract(batch.fake.flatten(0, 1))
        grouped = samples.embedding.reshape(n, k, -1)
        self.values["fake"].append(samples.pooled.reshape(n, k, -1))
        source = None if batch.source is None else self.extract(batch.source)
        if source is not None:
            self.values["input"].append(source.pooled)
        if self.unrelated is None:
            self.unrelated = self.extract(_evenly_spaced(self.some_real, k).to(batch.fake.device)).embedding
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
                self._update_coverage("", grouped[i], known)
                self._update_coverage("unrelated ", self.unrelated, known)
                if source is not None:
                    self._update_coverage("copy ", source.embedding[i : i + 1], known)

    def _update_coverage(self, name: str, samples: Tensor, known: Tensor) -> None:
        self.values[f"{name}coverage"].append(coverage(samples, known)[None])
        self.values[f"{name}missed_distance"].append(missed_distance(samples, known)[None])

    def compute(self, direction: Direction, real: Pictures) -> Iterator[EvaluationRow]:
        """The rows over all batches so far.

        Args:
            direction: what they are called.
            real: the test pictures of the target domain.
        """
        yield self._kid_row(direction, real)
        if self.k > 1:
            unrelated = "unrelated mean_distance" if self.values["truth"] else "unrelated diversity"
            baselines = {UNRELATED: self._mean_of(unrelated), TRUE_ANSWERS: self._mean_of("true diversity")}
            yield self._row(
                direction,
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
            yield from self._distance_rows(direction)
        if self.values["coverage"]:
            yield from self._coverage_rows(direction)

    def _kid_row(self, direction: Direction, real: Pictures) -> EvaluationRow:
        fake, device = self._all("fake"), self.values["fake"][0].device
        compared = real if self.train is None else self.train
        against = torch.cat([self.extract(part.to(device)).pooled for part in in_steps(compared)])
        # One style draw at a time: the k translations of one input are not independent, which KID's estimator
        # needs.
        values = [kid(style, against) for style in fake.unbind(1)]
        error = kid_error(fake.transpose(0, 1), against)
        floor = None
        if self.train is not None:
            test = self.values["truth"] or [self.extract(part.to(device)).pooled for part in in_steps(real)]
            floor = 1e3 * kid(torch.cat(test), against)
        what = "training" if self.train is not None else direction.real
        how = (
            f"unbiased MMD² of features of {len(fake)} translations and {len(against)} real {what} pictures, mean over "
            f"the style draws ({self.k})"
        )
        return EvaluationRow(
            key=f"{direction.key}.kid_e3",
            name="KID × 10³",
            direction=direction.name,
            value=1e3 * sum(values) / self.k,
            stderr=None if error is None else 1e3 * error,
            better="lower",
            measured=how
            + ("; floor: the real test pictures in place of the translations" if floor is not None else ""),
            floor=floor,
            ceiling=1e3 * kid(self._all("input"), against) if self.values["input"] else None,
        )

    def _distance_rows(self, direction: Direction) -> Iterator[EvaluationRow]:
        for kind, which in (("best", "nearest"), ("mean", "mean")):
            yield self._row(
                direction,
                f"{kind}_distance",
                f"Distance, {kind} of {self.k}",
                "lower",
                f"{which} feature distance of the {self.k} translations to the true {direction.answer}, one of "
                f"many right answers; baseline: {self.k} real pictures, the same for every input",
                floor=0.0,
                ceiling=self._mean_of("copy distance"),
                baselines={UNRELATED: self._mean_of(f"unrelated {kind}_distance")},
            )

    def _coverage_rows(self, direction: Direction) -> Iterator[EvaluationRow]:
        answers, count = f"true {direction.answer}s", len(self.values["coverage"])
        yield self._row(
            direction,
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
            direction,
            "missed_distance",
            f"Distance, every {direction.answer}",
            "lower",
            f"feature distance from each of an input's {answers} to the nearest translation: what no style comes near "
            f"counts in full; {count} inputs with several",
            floor=0.0,
            ceiling=self._mean_of("copy missed_distance"),
            baselines={UNRELATED: self._mean_of("unrelated missed_distance")},
        )


def _evenly_spaced(pictures: Pictures, k: int) -> Tensor:
    """k pictures evenly spaced through all, [k, C, H, W]."""
    return torch.stack([pictures[int(i)] for i in torch.linspace(0, len(pictures) - 1, k)])


def _mean(values: Tensor) -> tuple[float, float | None]:
    """Mean of [N] and its standard error (None for a single value)."""
    spread = values.double()
    return spread.mean().item(), (spread.std().item() / len(spread) ** 0.5 if len(spread) > 1 else None)

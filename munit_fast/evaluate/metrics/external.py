"""The literature's metrics from the libraries that define them: FID, KID, IS and CIS (torch-fidelity), LPIPS.

Neither the libraries nor their weights come with munit-fast, and these libraries download weights when they find none.
Here they never do: an error names the missing file and the folder it belongs in, and weight files are read as tensors
only (torch-fidelity itself would run any code that a file holds).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor

from munit_fast.evaluate.metrics.base import Batch, Direction, Metric, Pictures, in_steps
from munit_fast.evaluate.metrics.table import EvaluationRow

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
EXTERNAL = ("fid", "kid", "is", "cis", "lpips")
_KID_SUBSET = 1000  # torch-fidelity's own default; smaller sets are taken whole

MetricFactory = Callable[[], Metric]


class MissingMetric(ValueError):
    """A metric needs a library or a weight file that is not here; the message says which and where it belongs."""


def external_metrics(wanted: Sequence[str] | None, device: torch.device) -> tuple[list[MetricFactory], dict[str, str]]:
    """The metrics of other libraries that can be measured here.

    Args:
        wanted: Some of `EXTERNAL`; None: all that are available.
        device: Where their networks run.

    Returns:
        Factories, to be called once for each direction, and why each other metric is not available.

    Raises:
        MissingMetric: A wanted one is not available.
        ValueError: An unknown name.
    """
    for name in wanted or ():
        if name not in EXTERNAL:
            raise ValueError(f"{name!r} is not one of {', '.join(EXTERNAL)}")
    names = EXTERNAL if wanted is None else tuple(wanted)
    factories: list[MetricFactory] = []
    missing: dict[str, str] = {}
    inception = [name for name in names if name != "lpips"]
    for group, load in ((inception, _load_inception), (["lpips"] if "lpips" in names else [], _load_lpips)):
        if not group:
            continue
        try:
            factories.append(load(group, device))
        except MissingMetric as reason:
            if wanted is not None:
                raise
            missing |= dict.fromkeys(group, str(reason))
    return factories, missing


# ---- FID, KID, IS, CIS


def _load_inception(names: Sequence[str], device: torch.device) -> MetricFactory:
    module = _library("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity", names)
    _weights(INCEPTION_FILE, names, "torch-fidelity's release v0.2.0")
    with _no_download_no_code(names):
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    return lambda: _InceptionMetric(network.to(device), device, names)


class _InceptionMetric:
    """FID, KID, IS and CIS from Inception features, of which 12 kB a picture are kept."""

    def __init__(self, network: Any, device: torch.device, names: Sequence[str]) -> None:
        self.network, self.device, self.names = network, device, names
        self.features: list[Tensor] = []  # [n, k, 2048]
        self.logits: list[Tensor] = []  # [n, k, 1008]
        self.source_logits: list[Tensor] = []

    def update(self, batch: Batch) -> None:
        n, k = batch.fake.shape[:2]
        features, logits = self._features(batch.fake.flatten(0, 1))
        self.features.append(features.reshape(n, k, -1))
        self.logits.append(logits.reshape(n, k, -1))
        if batch.source is not None and "is" in self.names:
            self.source_logits.append(self._features(batch.source)[1])

    @torch.no_grad()
    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        bytes_ = ((images.to(self.device) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        features, logits = self.network(bytes_.expand(-1, 3, -1, -1).contiguous())
        return features.cpu(), logits.cpu()

    def compute(self, direction: Direction, real: Pictures) -> Iterator[EvaluationRow]:
        features, logits = torch.cat(self.features), torch.cat(self.logits)
        seen = [self._features(part) for part in in_steps(real)]
        real_features, real_logits = (torch.cat(part) for part in zip(*seen))
        n, k = features.shape[:2]
        counts = f"{n} × {k} translations and {len(real)} real test pictures"

        def row(key: str, name: str, value: float, better: Any, measured: str, **more: Any) -> EvaluationRow:
            return EvaluationRow(f"{direction.key}.{key}", name, direction.name, value, better, measured, **more)

        if "fid" in self.names:
            value = _fid(features.flatten(0, 1), real_features)
            how = f"torch-fidelity, Inception features of {counts}; biased upwards by small sets"
            yield row("fid", "FID", value, "lower", how)
        if "kid" in self.names:
            values = [_kid(style, real_features) for style in features.unbind(1)]
            how = f"torch-fidelity, Inception features of {counts}, mean over the style draws"
            yield row("kid_inception_e3", "KID × 10³ (Inception)", 1e3 * sum(values) / k, "lower", how)
        if "is" in self.names:
            score = _inception_score(logits.flatten(0, 1))
            copied = {"ceiling": _inception_score(torch.cat(self.source_logits))} if self.source_logits else {}
            how = (
                f"torch-fidelity, Inception's ImageNet classes of {n} × {k} translations; floor: the real test pictures"
            )
            yield row("is", "Inception score", score, "higher", how, floor=_inception_score(real_logits), **copied)
        if "cis" in self.names and k > 1:
            how = (
                f"exp of the mean divergence of one translation's classes from those of all {k} of its input, "
                "Inception's ImageNet classes (the paper trains a classifier on the domains); 1: style changes nothing"
            )
            yield row(
                "cis", "Conditional inception score", conditional_inception_score(logits), "higher", how, ceiling=1.0
            )


def conditional_inception_score(logits: Tensor) -> float:
    """exp E_x E_s KL(p(y|x, s) ‖ E_s p(y|x, s)) of class logits [N, k, classes], for k styles s of N inputs x.

    Source: Huang et al. 2018 (MUNIT), section 5.2, "(Conditional) Inception Score".
    """
    log_p = logits.double().log_softmax(-1)
    p = log_p.exp()
    divergence = (p * (log_p - p.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny).log())).sum(-1)
    return math.exp(divergence.mean().item())


def _fid(x: Tensor, y: Tensor) -> float:
    library = importlib.import_module("torch_fidelity.metric_fid")
    statistics = [library.fid_features_to_statistics(f.double()) for f in (x, y)]
    return float(library.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def _kid(x: Tensor, y: Tensor) -> float:
    library = importlib.import_module("torch_fidelity.metric_kid")
    size = min(_KID_SUBSET, len(x), len(y))
    found = library.kid_features_to_metric(
        x, y, kid_subsets=100 if size == _KID_SUBSET else 1, kid_subset_size=size, verbose=False, rng_seed=2020
    )
    return float(found["kernel_inception_distance_mean"])


def _inception_score(logits: Tensor) -> float:
    library = importlib.import_module("torch_fidelity.metric_isc")
    splits = 10 if len(logits) >= 1000 else 1  # ten splits of a small set would each see too few classes
    return float(library.isc_features_to_metric(logits, splits=splits)["inception_score_mean"])


# ---- LPIPS


def _load_lpips(names: Sequence[str], device: torch.device) -> MetricFactory:
    """Through lpips, or where that is missing through torchmetrics: the same network."""
    try:
        library, own = _library("lpips", "lpips", names), True
    except MissingMetric as reason:
        try:
            library, own = _library("torchmetrics.image.lpip", "torchmetrics", names), False
        except MissingMetric:
            raise reason from None
    _weights(ALEXNET_FILE, names, "torchvision's AlexNet (IMAGENET1K_V1)")
    with _no_download_no_code(names):
        if own:
            network = library.LPIPS(net="alex", verbose=False).to(device)
        else:
            network = library.LearnedPerceptualImagePatchSimilarity(net_type="alex").to(device)

    @torch.no_grad()
    def compare(x: Tensor, y: Tensor) -> Tensor:
        x, y = (images.to(device, torch.float32).expand(-1, 3, -1, -1).clamp(-1, 1) for images in (x, y))
        if own:
            return network(x, y).flatten().double().cpu()
        # torchmetrics gives the mean of what it is handed: one pair at a time
        return torch.stack([network(a[None], b[None]) for a, b in zip(x, y)]).flatten().double().cpu()

    return lambda: _LpipsMetric(compare)


class _LpipsMetric:
    def __init__(self, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.compare = compare
        self.spread: list[Tensor] = []
        self.distances: list[Tensor] = []  # [n, k]
        self.copied: list[Tensor] = []
        self.k = 0

    def update(self, batch: Batch) -> None:
        styles = batch.fake.unbind(1)
        self.k = len(styles)
        if self.k > 1:
            pairs = torch.combinations(torch.arange(self.k)).tolist()
            self.spread.append(torch.stack([self.compare(styles[i], styles[j]) for i, j in pairs]).mean(0))
        if batch.truth is not None:
            self.distances.append(torch.stack([self.compare(style, batch.truth) for style in styles], dim=1))
            if batch.source is not None:
                self.copied.append(self.compare(batch.source, batch.truth))

    def compute(self, direction: Direction, real: Pictures) -> Iterator[EvaluationRow]:
        del real

        def row(key: str, name: str, values: Tensor, better: Any, how: str, **more: Any) -> EvaluationRow:
            error = (values.std() / len(values) ** 0.5).item() if len(values) > 1 else None
            key, mean = f"{direction.key}.lpips_{key}", values.mean().item()
            return EvaluationRow(
                key, name, direction.name, mean, better, f"LPIPS (AlexNet, v0.1) {how}", stderr=error, **more
            )

        if self.spread:
            how = f"among the {self.k} translations of one input, all pairs"
            yield row("diversity", "LPIPS diversity", torch.cat(self.spread), "higher", how, ceiling=0.0)
        if self.distances:
            distances = torch.cat(self.distances)
            bounds = {"floor": 0.0, "ceiling": torch.cat(self.copied).mean().item() if self.copied else None}
            true = f"the {self.k} translations to the true {direction.answer}"
            yield row(
                "best", f"LPIPS, best of {self.k}", distances.amin(1), "lower", f"of the nearest of {true}", **bounds
            )
            yield row("mean", f"LPIPS, mean of {self.k}", distances.mean(1), "lower", f"of {true}, mean", **bounds)


# ---- libraries and weights


def _library(module: str, package: str, names: Sequence[str]) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchvision beside another torch raises RuntimeError, for one
        reason = str(error).strip().splitlines()[-1]
        raise MissingMetric(
            f"{_upper(names)}: {package} cannot be imported ({reason}): pip install {package}, "
            "with the torchvision made for the installed torch"
        ) from None


def _weights(name: str, names: Sequence[str], source: str) -> Path:
    folder = Path(torch.hub.get_dir(), "checkpoints")
    if not (folder / name).is_file():
        raise MissingMetric(
            f"{_upper(names)}: the weights are missing, and nothing is downloaded: put {name} (from {source}) into "
            f"{folder}, or set TORCH_HOME to the folder that holds hub/checkpoints/{name}"
        )
    return folder / name


@contextmanager
def _no_download_no_code(names: Sequence[str]) -> Iterator[None]:
    """While a library builds its network: nothing is downloaded, and no file is unpickled as code."""
    load = torch.load

    def refuse(url: str, *_: Any, **__: Any) -> NoReturn:
        raise MissingMetric(
            f"{_upper(names)}: the library wants to download {url}; put that file where it looks for it"
        )

    def load_tensors(file: Any, *arguments: Any, **options: Any) -> Any:
        return load(file, *arguments, **options | {"weights_only": True})

    with mock.patch.object(torch.hub, "download_url_to_file", refuse), mock.patch.object(torch, "load", load_tensors):
        try:
            yield
        except MissingMetric:
            raise
        except Exception as error:  # a foreign or damaged file
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if "weights only load failed" in reason.lower():
                reason = "it holds Python objects, which could run code; only tensors are loaded"
            raise MissingMetric(f"{_upper(names)}: the weight file cannot be used: {reason}") from None


def _upper(names: Sequence[str]) -> str:
    return ", ".join(name.upper() for name in names)

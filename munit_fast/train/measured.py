"""What a run's evaluations measure, opened and checked before the run begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from munit_fast.config import Config, ConfigError
from munit_fast.data.configured import Sources
from munit_fast.evaluate import TestSet
from munit_fast.evaluate.metrics import FeatureExtractor
from munit_fast.evaluate.metrics.evaluation import Extractor
from munit_fast.evaluate.pictures import pair
from munit_fast.evaluate.run import direction_of
from munit_fast.evaluate.subset import subset
from munit_fast.train.options import TrainOptions
from munit_fast.utils.optional import require


@dataclass
class Measured:
    """The pictures of a run's evaluations and the network whose features they compare.

    Attributes:
        tests: The pictures, in memory where they fit.
        extractor: The network, on the run's device.
        digest: Tells pictures and styles from others.
        unreadable: A line for each picture that cannot be read.
    """

    tests: TestSet
    extractor: Extractor
    digest: str
    unreadable: list[str]


def open_measured(cfg: Config, options: TrainOptions, sources: Sources, algorithm: str) -> Measured | None:
    """What evaluations need; None where there are none.

    Args:
        cfg: Of the run, with measured ranges.
        options: Of the run.
        sources: The opened images.
        algorithm: "MUNIT" or "UNIT".

    Raises:
        ConfigError: There are no test images, a package is missing, or `eval_metric` cannot be measured.
        ImageError: Fewer than two pictures of a domain can be read.
        ValueError: `patience_evals` is given without evaluations.
    """
    if not cfg.eval_iter:
        if options.patience_evals is not None:
            raise ValueError(
                "--patience_evals counts evaluations: give eval_iter in the configuration, or leave it out"
            )
        return None
    if sources.test_a is None or sources.test_b is None:
        missing = "".join(d for d in "AB" if getattr(sources, f"test_{d.lower()}") is None)
        raise ConfigError(
            f"eval_iter: there are no test images of domain {' and '.join(missing)}: set data_root to a folder with "
            "testA and testB, or data_folder_test_a and data_folder_test_b, or remove eval_iter"
        )
    extractor = _open_extractor(options)
    train = {"a": sources.train_a.source, "b": sources.train_b.source}
    tests, unreadable = subset(
        pair(cfg, {"a": sources.test_a.source, "b": sources.test_b.source}, train), cfg.eval_images
    )
    styles = cfg.eval_styles if algorithm == "MUNIT" else 1
    names = list(dict.fromkeys(_names(tests, styles)))
    if cfg.eval_metric not in names:
        raise ConfigError(
            f"eval_metric: {cfg.eval_metric} is not measured here, by {algorithm} with these images and "
            f"{styles} {'style' if styles == 1 else 'styles'} of each; use {', '.join(names)}"
        )
    listed = [
        [files.source.name(i) for i in range(len(files))] for files in (*tests.pictures.values(), *tests.train.values())
    ]
    digest = hashlib.sha256(json.dumps([styles, listed]).encode(errors="surrogateescape")).hexdigest()[:12]
    return Measured(tests, extractor, digest, list(dict.fromkeys(unreadable)))


def _open_extractor(options: TrainOptions) -> Extractor:
    try:
        require("skimage.metrics", "metrics", package="scikit-image")
        require("scipy.ndimage", "metrics", package="scipy")
        return FeatureExtractor().to(options.device)
    except ImportError as error:
        raise ConfigError(f"eval_iter: {error}, or remove eval_iter") from None


def _names(tests: TestSet, styles: int) -> Iterator[str]:
    """The metrics that are measured, of a direction and of both."""
    for way in ("a2b", "b2a"):
        direction = direction_of(way, tests)
        keys = [
            "kid",
            *(["diversity"] if styles > 1 else []),
            *(["distinct_hues", "fill"] if direction.colouring else []),
        ]
        if tests.paired:
            keys += ["best_distance", "mean_distance", *direction.pixels]
            keys += ["coverage", "missed_distance"] if way == "a2b" and any(tests.colourings) else []
        for key in keys:
            yield key
            yield f"{key}_{way}"

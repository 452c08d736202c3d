"""How good a model is on real test pictures: what `munit-fast evaluate` runs.

`run` evaluates a model or a folder of translations and prints the results; `pictures` reads the test set of a
configuration, `folders` tells which files are translations of one input; `metrics` holds the metrics.
"""

from munit_fast.evaluate.metrics import Evaluation, EvaluationRow
from munit_fast.evaluate.pictures import Files, TestSet, open_test_set
from munit_fast.evaluate.run import (
    EvaluateOptions,
    as_json,
    evaluate_folders,
    evaluate_model,
    show,
    write_json,
)

__all__ = [
    "EvaluateOptions",
    "Evaluation",
    "EvaluationRow",
    "Files",
    "TestSet",
    "as_json",
    "evaluate_folders",
    "evaluate_model",
    "open_test_set",
    "show",
    "write_json",
]

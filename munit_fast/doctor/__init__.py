"""`munit-fast doctor`: what this machine has, which backend serves which operator and why, and whether it is right.

`report` gathers the facts (`examine`) and prints them; `trials` compares every operator with the reference
(`selftest`).
"""

from munit_fast.doctor.report import Examination, Service, as_json, cpu_model, examine, gpu_driver, show
from munit_fast.doctor.trials import (
    BORDER,
    CONVOLUTION,
    DTYPES,
    OPS,
    Trial,
    complaint,
    describe,
    selftest,
    show_trials,
    tolerance,
)

__all__ = [
    "BORDER",
    "CONVOLUTION",
    "DTYPES",
    "OPS",
    "Examination",
    "Service",
    "Trial",
    "as_json",
    "complaint",
    "cpu_model",
    "describe",
    "examine",
    "gpu_driver",
    "selftest",
    "show",
    "show_trials",
    "tolerance",
]

"""Optional terms of the losses: one function and one key of the configuration each.

`TERMS` is the table. A term is on where its key, a weight, is above 0 when the trainer is made; `Terms` is what a
trainer holds of those that are. The updates ask it for their noise and for their losses, and know none of them by name.
"""

from munit_fast.train.terms.base import Step, Term, Terms
from munit_fast.train.terms.feature_matching import FEATURE_MATCHING
from munit_fast.train.terms.gradient_penalty import R1
from munit_fast.train.terms.styles import DIVERSITY, MODE_SEEKING

TERMS: tuple[Term, ...] = (R1, MODE_SEEKING, DIVERSITY, FEATURE_MATCHING)

__all__ = ["TERMS", "Step", "Term", "Terms"]

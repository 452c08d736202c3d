"""Optional terms of the losses: one function and one key of the configuration each.

`TERMS` is the table. A term is on where its key, a weight, is above 0 when the trainer is made; `Terms` is what a
trainer holds of those that are. The updates ask it for their noise and for their losses, and know none of them by name.
"""

from munit_fast.train.terms.base import Step, Term, Terms

TERMS: tuple[Term, ...] = ()

__all__ = ["TERMS", "Step", "Term", "Terms"]

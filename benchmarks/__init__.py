"""`munit-fast bench`: the only place that a speed may be claimed from.

`cases` says what is timed, as data; `ops`, `blocks` and `models` build the contenders of a case; `runner` checks their
numbers and lets `measure` time them in turns, in one process; `rows` keeps what was seen; `report` makes the README's
tables and plots from committed rows, and `compare` says what changed.
"""

from munit_fast.benchmarks.cases import LEVELS, SETS, Case, select
from munit_fast.benchmarks.runner import BenchOptions, run

__all__ = ["LEVELS", "SETS", "BenchOptions", "Case", "run", "select"]

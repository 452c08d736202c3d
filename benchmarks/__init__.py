"""`munit-fast bench`: the only place that a speed may be claimed from.

`cases` lists what is timed, as data. `contenders_ops`, `contenders_convs`, `contenders_networks`,
`contenders_training`, `contenders_translation`, `contenders_accelerated` (with `networks_of_others`) and
`contenders_exported` (ONNX Runtime, OpenVINO) build the contenders of a case from the parts in `contenders`.
`runner` checks their results, has `timing` time them in turns in one process,
and appends `rows`, which also say on which `machine`. `summary` relates ours to the baselines, `compare` two sets of
rows; `report` prints both and writes the README's rows and the pages, with `tables` and `plots`. `goals` holds the rows
of a GPU to what was asked of it, and `backend_choice` says what `impl="auto"` takes there. `results/` holds the
committed rows; `scripts/` holds programs of their own, which `munit-fast bench` does not need.
"""

from munit_fast.benchmarks.cases import LEVELS, SETS, Case, select
from munit_fast.benchmarks.runner import BenchOptions, run

__all__ = ["LEVELS", "SETS", "BenchOptions", "Case", "run", "select"]

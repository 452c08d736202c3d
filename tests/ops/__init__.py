"""The proof of the fused operators: `oracle` has the grid of cases and the comparison in float64, each other file one
promise of `munit_fast.functional` (formulas, numbers, layouts, memory, errors, the dispatcher, modules, backends)."""

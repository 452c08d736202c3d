"""The cases, and choosing among them."""

from __future__ import annotations

import pytest

from munit_fast.benchmarks import SETS, select


def test_selection() -> None:
    found = select(SETS["cpu"], levels=["op"], names=["adain"], batches=[1], dtypes=["bf16"], sides=[64])
    assert found and all(c.level == "op" and "adain" in c.name and c.side == 64 for c in found)
    with pytest.raises(ValueError, match=r"dtype .*fp32, bf16, fp16; .*'int8'"):
        select(SETS["cpu"], dtypes=["int8"])
    with pytest.raises(ValueError, match="no case matches"):
        select(SETS["cpu"], sides=[7])


def test_exported_files_are_timed_at_the_sizes_of_both_models() -> None:
    found = {(c.channels, c.side, c.name) for c in select(SETS["exported"], levels=["exported"], dtypes=["fp32"])}
    large = {(64, side, name) for side in (128, 256) for name in ("in 1 style", "in 10 styles")}
    assert found == large | {(24, 64, "in 6 styles")} and len(SETS["exported"]) == len(found)

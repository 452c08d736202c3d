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

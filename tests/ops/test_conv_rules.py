"""Rows of the convolutions' table that hold on some processors only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from munit_fast.ops import conv_plans, native, winograd


@pytest.fixture(autouse=True)
def _fresh_features() -> Iterator[None]:
    caches = (conv_plans._lacks, conv_plans._search_once)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.skipif(not winograd.available(), reason="the instruction set in use has no such convolutions")
@pytest.mark.parametrize(("known", "holds"), [({"amx_tile": False}, True), ({"amx_tile": True}, False), ({}, False)])
def test_a_row_for_processors_that_lack_something(
    known: dict[str, Any], holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is there, or is not known to be lacking, the row does not hold."""
    isa = native.module.isa()
    row = conv_plans.ConvRule((isa,), (torch.bfloat16,), 3, 1, 8, 1, 1, 1, "f43", "", lacking="amx_tile")
    monkeypatch.setattr(conv_plans, "TABLE", [row, row._replace(lacking="", dtypes=(torch.float32,))])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    shape = conv_plans.ConvShape(3, 1, 8, 8, 1, 8, 8, torch.bfloat16, False)
    assert len(conv_plans.rules()) == 1 + holds
    assert conv_plans.choose(shape) == (("f43", "f43") if holds else conv_plans.DIRECT)
    assert conv_plans.choose(shape._replace(dtype=torch.float32)).result == "f43"


def test_a_torch_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not conv_plans._lacks("amx_tile")


def test_more_tiles_are_needed_where_the_weight_is_not_kept() -> None:
    for row in conv_plans.TABLE:
        assert row.tiles_kept <= row.tiles and row.because

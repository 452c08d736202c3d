"""What the commands set for their whole process."""

from __future__ import annotations

import os

import pytest

from munit_fast.utils.env import set_process_defaults


def test_process_defaults_leave_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    set_process_defaults()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"

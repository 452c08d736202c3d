"""Files that are translated, beside the network alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.bench import QUICK, quiet
from munit_fast.benchmarks import SETS, contenders_folders, run, select, tables
from munit_fast.benchmarks.contenders import NETWORK_ALONE, OURS


def test_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    [case] = select(SETS["smoke"], levels=["folder"])
    translated: list[int] = []
    translate = contenders_folders.translate_files

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = translate(*args, **kwargs)
        translated.append(len(result.written))
        assert result.done_before == 0 and all(isinstance(path, Path) and path.is_file() for path in result.written)
        return result

    monkeypatch.setattr(contenders_folders, "translate_files", watched)
    found, failures = run([case], QUICK, quiet())
    assert failures == []
    assert {row.implementation for row in found} == {OURS, NETWORK_ALONE}
    assert len(translated) >= 3 and set(translated) == {case.batch}
    page = tables.page(found[0].machine, found)
    assert "Whole folders" in page and "20 files of 32²" in page
    assert "No case of 0 is slower" in page  # the network alone is no baseline to lose against


def test_files_that_are_wrong_have_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    [case] = select(SETS["smoke"], levels=["folder"])
    monkeypatch.setattr(contenders_folders, "random_styles", lambda *args: contenders_folders.torch.zeros(1, 8) + 3)
    _, failures = run([case], QUICK, quiet())
    assert len(failures) == 1 and "off by" in failures[0]


def test_the_command_offers_every_set_and_level() -> None:
    from munit_fast.benchmarks.cases import LEVELS, SETS
    from munit_fast.cli.machine import CaseSet, Level

    assert [one.value for one in Level] == list(LEVELS)
    assert {one.value for one in CaseSet} == set(SETS)

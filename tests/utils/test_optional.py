"""Optional packages."""

from __future__ import annotations

import pytest

from munit_fast.utils.optional import require


def test_a_module_that_is_there() -> None:
    assert require("json.decoder", "edges").JSONDecoder


@pytest.mark.parametrize("error", [ImportError, ValueError])
def test_a_package_that_is_missing(error: type[Exception]) -> None:
    with pytest.raises(error, match=r'no-such.*No module named.*munit-fast\[edges\]"'):
        require("no_such.part", "edges", package="no-such", error=error)
    with pytest.raises(ImportError, match=r"\bno_such\b"):
        require("no_such.part", "edges")

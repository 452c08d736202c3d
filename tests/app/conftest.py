"""The page of the bundled model, served in a thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from munit_fast.app import Limits, serve
from munit_fast.models.munit import MUNIT

pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def model() -> MUNIT:
    return MUNIT.from_pretrained("openmoji-lines2color")


@pytest.fixture(scope="module")
def address(model: MUNIT) -> Iterator[str]:
    with serve(model, port=None, limits=Limits(upload_bytes=10**6)) as address:
        yield address

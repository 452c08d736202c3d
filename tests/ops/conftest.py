"""Backends as fixtures: each test with `backend` runs once for the reference and once for each instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from helpers.backends import BACKENDS, ISAS, WINOGRAD_ISAS
from munit_fast.ops import native


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The value of `impl`; for "cpu" with each instruction set in turn."""
    name, _, isa = request.param.partition("-")
    if isa:
        chosen = native.module.isa()
        native.module.set_isa(isa)
    yield name
    if isa:
        native.module.set_isa(chosen)


@pytest.fixture(params=["reference", *(["cpu"] if ISAS else [])])
def impl(request: pytest.FixtureRequest) -> str:
    """The value of `impl`, for what does not depend on the instruction set: autograd, the dispatcher, modules."""
    return request.param


@pytest.fixture
def cpu() -> str:
    """The "cpu" backend, where it is built."""
    if not ISAS:
        pytest.skip(f"the compiled part is missing: {native.native_error}")
    return "cpu"


@pytest.fixture(params=WINOGRAD_ISAS or [None])
def winograd_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set with Winograd's convolutions in turn."""
    if request.param is None:
        pytest.skip("no instruction set here has Winograd's convolutions")
    chosen = native.module.isa()
    native.module.set_isa(request.param)
    yield request.param
    native.module.set_isa(chosen)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """torch.empty gives NaN: a value that was not written is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)

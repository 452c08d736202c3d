"""What the epilogues of MUNIT's networks launch, recorded on tensors without memory. Needs no GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from helpers import kernel_cases as cases
from helpers.compile_kernels import TILE, record
from helpers.kernel_cases import KernelCase
from helpers.kernel_checks import run_backward
from munit_fast.kernels import launch

BATCHES = (1, 4, 8)
STATISTICS, FORWARD, BACKWARD = "statistics_fwd_kernel", "epilogue_fwd_kernel", "epilogue_bwd_kernel"
UNITED, TERMS, COMBINE = "united_statistics_fwd_kernel", "group_terms_bwd_kernel", "sums_combine_bwd_kernel"
OF_MUNIT = [case for case in cases.NETWORK_CASES if case.norm in ("instance", "layer")]


def of_batch(case: KernelCase, batch: int) -> KernelCase:
    return replace(case, shape=(batch, *case.shape[1:]), dtype=torch.bfloat16)


def launched(case: KernelCase) -> list[tuple[str, int, dict[str, Any]]]:
    """Name, programs and arguments of each launch of the forward and the backward."""
    found = []
    for kernel, grid, args, meta in record(case):
        found.append((kernel.__name__, torch.Size(grid).numel(), dict(zip(kernel.arg_names, args)) | meta))
    return found


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("case", OF_MUNIT, ids=str)
def test_no_launch_adds_up_partial_results(case: KernelCase, batch: int, channels_last: bool) -> None:
    """Forward and backward behind a norm are two launches each: whoever needs partial results adds them up."""
    case = replace(of_batch(case, batch), channels_last=channels_last)
    assert [name for name, *_ in launched(case)] == [STATISTICS, FORWARD, BACKWARD, BACKWARD]


@pytest.mark.parametrize(
    ("case", "names"),
    [
        (KernelCase((1, 256, 64, 64), norm="none", bias="shared"), [FORWARD, BACKWARD, COMBINE]),
        (KernelCase((1, 256, 64, 64), norm="none"), [FORWARD, BACKWARD]),
        (KernelCase((1, 256, 64, 64), norm="group"), [STATISTICS, UNITED, FORWARD, BACKWARD, TERMS, BACKWARD]),
        (KernelCase((1, 256, 64, 64), norm="instance", block=2), [STATISTICS, UNITED, FORWARD, BACKWARD, BACKWARD]),
        (KernelCase((1, 256, 4, 4), norm="instance"), [STATISTICS, FORWARD, BACKWARD, BACKWARD]),
    ],
    ids=str,
)
def test_launches_of_other_cases(case: KernelCase, names: list[str]) -> None:
    assert [name for name, *_ in launched(case)] == names


def test_sums_alone_are_added_up_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    monkeypatch.setattr(launch, "run", lambda kernel, *args, **meta: names.append(kernel.__name__))
    x = torch.empty(1, 64, 32, 32, device="meta").to(memory_format=torch.channels_last)
    grad = torch.empty(1, 64, 34, 34, device="meta").to(memory_format=torch.channels_last)
    inputs = cases.KernelInputs(x, None, None, None, 0.2, grad)
    run_backward(KernelCase(), inputs, torch.empty(2, 64, device="meta"), (False, False, True))
    assert names == [BACKWARD, COMBINE]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("case", OF_MUNIT, ids=str)
def test_a_prologue_reads_less_than_its_program_works_on(case: KernelCase, batch: int) -> None:
    """Numbers of partial results, by the elements of a program's tiles; and programs, by multiprocessors of an H100."""
    for name, programs, a in launched(of_batch(case, batch)):
        pixels, channels = (a.get(names[0]) or a[names[1]] for names in TILE)
        elements, numbers, most = pixels * channels * a["tiles"], 0, 1.0
        if name == FORWARD:
            numbers, most = 2 * a["splits"] * (channels if case.norm == "instance" else 1), 0.55
        elif name == BACKWARD and a["p_grad_x"] is not None:
            numbers = 2 * (a["terms"] if case.norm == "layer" else a["splits"] * channels)
        assert numbers <= most * elements, (name, numbers, elements)
        assert programs >= 128, (name, programs)

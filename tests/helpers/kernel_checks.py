"""The comparison of the epilogue's kernels with `munit_fast.reference` in float64.

The oracle gets the values that the kernel really gets, rounded to its dtype. Bounds are those of `tolerances.py`.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from triton import knobs

from helpers.kernel_cases import KernelCase, KernelInputs, lay_out
from helpers.tolerances import tolerance, unit_roundoff
from munit_fast.ops.backends import triton as backend
from munit_fast.ops.epilogue import empty_gradients, empty_result, empty_stats
from munit_fast.ops.spec import EpilogueGradients, EpilogueInputs, EpilogueSpec
from munit_fast.reference import epilogue as reference


def bound(
    dtype: torch.dtype,  # of the inputs
    kind: str,
    size: int,
    length: int = 1,
    condition: float = 0.0,
    stored: torch.dtype | None = None,
) -> float:
    """The tolerance. Triton's interpreter cuts fp32 to bf16 where every GPU rounds: one more unit there."""
    cut = knobs.runtime.interpret and (stored or dtype) == torch.bfloat16
    return tolerance(dtype, kind, size, length, condition, stored) + cut * unit_roundoff(torch.bfloat16)


def _arguments(case: KernelCase, i: KernelInputs) -> tuple[EpilogueSpec, EpilogueInputs]:
    slopes = i.slope if isinstance(i.slope, Tensor) else None
    slope = 0.0 if isinstance(i.slope, Tensor) else i.slope
    return EpilogueSpec(**case.options, slope=slope), EpilogueInputs(i.x, i.weight, i.bias, i.residual, slopes)


def run_forward(case: KernelCase, i: KernelInputs) -> tuple[Tensor, Tensor]:
    """The kernels' result and statistics."""
    spec, inputs = _arguments(case, i)
    y, stats = empty_result(i.x, spec), empty_stats(i.x, spec)
    backend.epilogue_forward(spec, inputs, y, stats, has_stats=False)
    return y, stats


def run_backward(
    case: KernelCase, i: KernelInputs, stats: Tensor, need: tuple[bool, bool, bool] = (True, True, True)
) -> EpilogueGradients:
    """What is needed of the kernels' gradients of x and of the residual, and their sums."""
    spec, inputs = _arguments(case, i)
    results = empty_gradients(i.x, spec, need)
    out = EpilogueGradients(*(result if needed else None for result, needed in zip(results, need)))
    backend.epilogue_backward(spec, inputs, i.grad, stats, out)
    return out


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative norm of the difference; the norm itself where nothing is expected. NaN where anything is NaN."""
    expected = expected.detach()
    norm = expected.norm()
    return ((actual.detach().double() - expected).norm() / (norm if norm > 0 else 1)).item()


def _within(name: str, actual: Tensor, expected: Tensor, allowed: float) -> None:
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    found = error(actual, expected)
    assert found <= allowed, f"{name}: relative error {found:.2e}, allowed {allowed:.2e}"


def _length_and_condition(case: KernelCase, x: Tensor) -> tuple[int, float]:
    """Terms of a statistic, and the largest |mean| / spread."""
    if case.norm == "none":
        return 1, 0.0
    mean, spread = reference.statistics(x.detach(), case.norm, case.groups)
    spread = spread + case.eps if case.norm == "layer" else (spread + case.eps).sqrt()
    _, c, h, w = case.shape
    planes = {"instance": 1, "group": c // case.groups, "layer": c}[case.norm]
    return planes * h * w, (mean.abs() / spread).max().item()


def check_forward(case: KernelCase, inputs: KernelInputs) -> Tensor:
    """Run the forward and hold it to the oracle. Returns the statistics."""
    i, wide = inputs, inputs.wide()
    y, stats = run_forward(case, i)
    expected = reference.epilogue(wide.x, wide.weight, wide.bias, wide.residual, slope=wide.slope, **case.options)
    assert y.dtype == case.dtype and y.stride() == lay_out(y, case.channels_last).stride()
    assert stats.dtype == torch.float32
    length, condition = _length_and_condition(case, wide.x)
    _within("y", y, expected, bound(case.dtype, "result", i.x.numel(), length, condition))
    expected_stats = reference.statistics(wide.x, case.norm, case.groups)
    assert stats.shape == expected_stats.shape
    if case.norm != "none":
        _within("mean", stats[0], expected_stats[0], 1.5e-7)  # a unit in fp32's last place
        allowed = bound(case.dtype, "result", stats[1].numel(), length, condition, torch.float32)
        _within("spread", stats[1], expected_stats[1], allowed)
    return stats


def check_backward(case: KernelCase, inputs: KernelInputs, stats: Tensor) -> None:
    """Run the backward and hold it to autograd through the oracle, and its sums to the oracle's."""
    i, wide = inputs, inputs.wide()
    y = reference.epilogue(wide.x, wide.weight, wide.bias, wide.residual, slope=wide.slope, **case.options)
    y.backward(wide.grad)
    with torch.no_grad():
        arguments = (wide.grad, wide.x, reference.statistics(wide.x, case.norm, case.groups), wide.weight, wide.bias)
        _, expected_residual, expected_sums = reference.epilogue_backward(*arguments, slope=wide.slope, **case.options)

    grad_x, grad_residual, sums = run_backward(case, i, stats)
    assert grad_x.dtype == grad_residual.dtype == case.dtype and sums.dtype == torch.float32
    assert grad_x.stride() == grad_residual.stride() == i.x.stride()
    length, condition = _length_and_condition(case, wide.x)
    _within("grad_x", grad_x, wide.x.grad, bound(case.dtype, "grad", i.x.numel(), length, condition))
    _within("grad_residual", grad_residual, expected_residual, bound(case.dtype, "grad", i.x.numel()))
    if case.residual:
        _within("grad_residual", grad_residual, wide.residual.grad, bound(case.dtype, "grad", i.x.numel()))
    pixels = math.prod(case.shape[2:])
    allowed = bound(case.dtype, "grad_parameter", sums[0].numel(), pixels, condition, torch.float32)
    for name, row, expected_row in zip(("Σ gz", "Σ gz·x̂", "Σ g·z"), sums, expected_sums):
        _within(name, row, expected_row, allowed)
    if case.act == "prelu":
        # By autograd; against the size of the terms, which a sum over everything may cancel.
        found = sums[2].sum(0) if case.slope == "channel" else sums[2].sum().view(1)
        size = max(wide.slope.grad.norm().item(), sums[2].norm().item())
        assert (found - wide.slope.grad).norm().item() <= allowed * size


def check_needs(case: KernelCase, inputs: KernelInputs, stats: Tensor) -> None:
    """What is asked for does not depend on the rest."""
    everything = run_backward(case, inputs, stats)
    for need in itertools.product([False, True], repeat=3):
        for result, full in zip(run_backward(case, inputs, stats, need), everything):
            assert result is None or error(result, full.double()) <= 1e-6, (need, case)

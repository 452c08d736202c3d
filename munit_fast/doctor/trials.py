"""The self-test: every operator on every backend, compared with the reference in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from munit_fast import functional
from munit_fast.ops import native, phase_border, winograd
from munit_fast.ops.backends import BACKENDS
from munit_fast.ops.cases import CaseTensors, EpilogueCase, make_tensors, selftest_cases
from munit_fast.ops.fused_conv import Conv, ConvOutput, EpilogueArgs, epilogue_conv
from munit_fast.ops.spec import EpilogueSpec
from munit_fast.reference import epilogue as formulas
from munit_fast.reference import losses

OPS = (
    "instance_norm",
    "adain",
    "layer_norm2d",
    "group_norm",
    "bias_act",
    "scale_bias_act",
    "l1_loss",
    "l1_losses",
    "lsgan_loss",
)
CONVOLUTION = "convolution"  # by Winograd's plans, on CPUs: no function of munit_fast.functional
BORDER = "phase border"  # of an upsampling convolution, on every device but CPUs, and by the formulas
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Trial:
    """The comparison of one operator on one backend in one dtype with the reference.

    Attributes:
        op: A function of `munit_fast.functional`, CONVOLUTION or BORDER.
        device: As torch prints it.
        backend: Its name; for "cpu" with the instruction set: "cpu avx2".
        dtype: Name without "torch.".
        error: The worst relative error, ‖got - expected‖ / ‖expected‖, of results and gradients; None: see `problem`.
        tolerance: The largest error that passes.
        worst: Which result or gradient has the worst error, and in which layout.
        problem: Why there is no error: an exception, or a value that is not finite.
    """

    op: str
    device: str
    backend: str
    dtype: str
    error: float | None
    tolerance: float
    worst: str
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the backend ran and its error is within the tolerance."""
        return self.error is not None and self.error <= self.tolerance


def tolerance(dtype: torch.dtype) -> float:
    """64 roundings of the accumulator (float32; float64 for float64), and one of the stored type if that is narrower.

    Right kernels stay below a tenth of the first and half of the second on the sizes that are tried.
    """
    accumulator = torch.promote_types(dtype, torch.float32)
    return 64 * torch.finfo(accumulator).eps + (torch.finfo(dtype).eps / 2 if dtype != accumulator else 0)


_LOSS_SIZES = ((2, 3, 11, 7), (1, 1, 5, 3), (2, 8))
_KINK = 1e-3  # an activation's input this close to zero may fall on either side of it after rounding

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class _Comparison:
    """An operator, the reference formula, and the float64 tensors that both are called with, by keyword."""

    op: str
    run: Call  # also takes impl
    expected: Call
    tensors: dict[str, Tensor]


def _epilogues() -> Iterator[_Comparison]:
    for case in selftest_cases():
        tensors = next(filter(None, (_away_from_kinks(replace(case, seed=seed)) for seed in itertools.count())))
        run, expected = partial(getattr(functional, case.function), **case.arguments), partial(_expected, case)
        yield _Comparison(case.function, run, expected, tensors)


def _expected(case: EpilogueCase, **tensors: Tensor) -> Tensor:
    return case.specification(CaseTensors._make(tensors.get(name) for name in CaseTensors._fields))


def _away_from_kinks(case: EpilogueCase) -> dict[str, Tensor] | None:
    """The tensors in float64, if no input of the activation is close to zero."""
    tensors = CaseTensors._make(t if t is None else t.detach().double() for t in make_tensors(case))
    before = replace(case, act="none", pad=0).specification(tensors._replace(residual=None, slope=None))
    return tensors.given() if before.abs().min() > _KINK else None


def _draw(random: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=random, dtype=torch.float64)


def _losses() -> Iterator[_Comparison]:
    random = torch.Generator().manual_seed(0)
    tensors = {
        f"{side}_{i}": (_draw(random, *size) + 1).bfloat16().double()
        for i, size in enumerate(_LOSS_SIZES)
        for side in ("first", "second")
    }
    pair = {name: value for name, value in tensors.items() if name.endswith("_0")}
    outputs = {name: value for name, value in tensors.items() if name.startswith("first")}

    def run_l1_loss(impl: str, first_0: Tensor, second_0: Tensor) -> Tensor:
        return functional.l1_loss(first_0, second_0, impl=impl)

    def run_l1_losses(impl: str, **tensors: Tensor) -> Tensor:
        return functional.l1_losses(list(zip(*_sides(tensors))), impl=impl)

    def run_lsgan_loss(impl: str, **outputs: Tensor) -> Tensor:
        return functional.lsgan_loss(list(outputs.values()), 1.0, impl=impl)

    yield _Comparison("l1_loss", run_l1_loss, lambda **t: losses.l1_losses(*_sides(t))[0], pair)
    yield _Comparison("l1_losses", run_l1_losses, lambda **t: losses.l1_losses(*_sides(t)), tensors)
    yield _Comparison("lsgan_loss", run_lsgan_loss, lambda **t: losses.lsgan_loss(list(t.values()), 1.0), outputs)


def _sides(tensors: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    values = list(tensors.values())
    return values[::2], values[1::2]


def _convolutions() -> Iterator[_Comparison]:
    """Instance norm, relu, reflection and a convolution by each plan that MUNIT's networks take."""
    for plan in ("f43", "f42"):
        of_plan = winograd.PLANS[plan]
        kernel = 20, 3, of_plan.side, of_plan.side
        tensors = next(filter(None, (_conv_tensors(seed, kernel) for seed in itertools.count())))
        run, expected = partial(_run_conv, plan), partial(_expected_conv, of_plan.stride)
        yield _Comparison(CONVOLUTION, run, expected, tensors)


def _conv_tensors(seed: int, kernel: tuple[int, ...]) -> dict[str, Tensor] | None:
    random = torch.Generator().manual_seed(seed)
    x, weight = _draw(random, 2, 3, 11, 8) + 1, _draw(random, *kernel)
    return {"x": x, "weight": weight} if F.instance_norm(x).abs().min() > _KINK else None


def _run_conv(plan: str, x: Tensor, weight: Tensor, impl: str) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    epilogue = EpilogueArgs(None, None, None, EpilogueSpec("instance", 1e-5, "relu", 0.0, 1, 0, "zero"), impl)
    stride = winograd.PLANS[plan].stride
    conv = Conv(weight, None, stride, plan=plan, pad=1, pad_mode="reflect", weight_plan=plan)
    return epilogue_conv(ConvOutput(x), epilogue, conv).z


def _expected_conv(stride: int, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.pad(F.relu(F.instance_norm(x)), (1,) * 4, mode="reflect"), weight, None, stride)


class _Border(torch.autograd.Function):
    """What the operators add to a result of zeros, and to a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, impl: str) -> Tensor:
        n, _, h, w = a.shape
        y = a.new_zeros(n, 4 * weight.shape[0], h - 2, w - 2).contiguous(memory_format=torch.channels_last)
        phase_border.phase_border(y, a, weight, impl)
        ctx.save_for_backward(a, weight)
        ctx.impl = impl
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, weight = ctx.saved_tensors
        grad, grad_a = grad.contiguous(memory_format=torch.channels_last), torch.zeros_like(a)
        return grad_a, phase_border.phase_border_backward(grad, a, weight, grad_a, True, ctx.impl), None


def _borders() -> Iterator[_Comparison]:
    random = torch.Generator().manual_seed(0)
    # In quarters, so that the differences of pixels are not rounded.
    x, weight = ((4 * _draw(random, *size)).round() / 4 for size in ((2, 5, 4, 19), (3, 5, 5, 5)))
    yield _Comparison(BORDER, _run_border, _expected_border, {"x": x, "weight": weight})


def _run_border(impl: str, x: Tensor, weight: Tensor) -> Tensor:
    padded = formulas.pad2d(x, 1, "replicate").contiguous(memory_format=torch.channels_last)
    found: Tensor = _Border.apply(padded, weight, impl)
    return found


def _expected_border(x: Tensor, weight: Tensor) -> Tensor:
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    reflected, replicated = (F.conv2d(formulas.pad2d(large, 2, mode), weight) for mode in ("reflect", "replicate"))
    return formulas.space_to_depth(reflected - replicated, 2)


def selftest() -> list[Trial]:
    """Compare every operator with the formulas of `munit_fast.reference`, which run in float64 on the CPU.

    Returns:
        A trial for each operator, backend, instruction set, device and dtype, over the layouts that the backend serves,
        forward and backward; one of Winograd's convolutions, in float32, for each instruction set that has them; and
        one of a phase convolution's border for the other backends.
        A kernel that raises is a failed trial.
    """
    comparisons = [*_epilogues(), *_losses(), *_borders()]
    trials = []
    for device, (name, backend) in itertools.product(devices(), BACKENDS.items()):
        for isa in _instruction_sets(name, device):
            with _forced(isa):
                shown = f"{name} {isa}" if isa else name
                for op, dtype in itertools.product(OPS if name == "cpu" else (*OPS, BORDER), DTYPES):
                    if backend.unsupported_reason(device, dtype) is None:
                        of_op = [comparison for comparison in comparisons if comparison.op == op]
                        trials.append(_trial(of_op, op, name, shown, device, dtype))
                if isa is not None and winograd.available():
                    trials.append(_trial(list(_convolutions()), CONVOLUTION, name, shown, device, torch.float32))
    return trials


def _instruction_sets(backend: str, device: torch.device) -> list[str | None]:
    if backend != "cpu" or device.type != "cpu" or native.module is None:
        return [None]
    return list(native.module.available_isas())


@contextmanager
def _forced(isa: str | None) -> Iterator[None]:
    if isa is None or native.module is None:
        yield
        return
    before = native.module.isa()
    native.module.set_isa(isa)
    try:
        yield
    finally:
        native.module.set_isa(before)


def _trial(
    comparisons: list[_Comparison], op: str, impl: str, shown: str, device: torch.device, dtype: torch.dtype
) -> Trial:
    errors: dict[str, float] = {}
    bound = tolerance(dtype)
    for comparison, layout in itertools.product(comparisons, layouts_of(impl)):
        try:
            got = _outcome(partial(comparison.run, impl=impl), comparison.tensors, device, dtype, layout)
            expected = _outcome(comparison.expected, comparison.tensors, torch.device("cpu"), torch.float64, layout)
        except Exception as error:  # whatever a kernel raises is a finding, and the other operators are tried too
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            return Trial(op, str(device), shown, dtype_name(dtype), None, bound, "", reason)
        for what, value in expected.items():
            size = float(torch.linalg.vector_norm(value))
            off = float(torch.linalg.vector_norm(got[what].cpu().double() - value)) / size
            name = f"{what}, {'channels_last' if layout == torch.channels_last else 'NCHW'}"
            if not off < float("inf"):
                return Trial(op, str(device), shown, dtype_name(dtype), None, bound, name, f"{name} is not finite")
            errors[name] = max(off, errors.get(name, 0.0))
    worst = max(errors, key=lambda name: errors[name])
    return Trial(op, str(device), shown, dtype_name(dtype), errors[worst], bound, worst)


def _outcome(
    call: Call, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> dict[str, Tensor]:
    """The result, and the gradient of every tensor for a random gradient of the result."""
    wide = torch.promote_types(dtype, torch.float32)
    inputs = {}
    for name, value in tensors.items():
        value = value.to(device, wide if name in ("weight", "bias", "slope") else dtype, copy=True)
        inputs[name] = (value.contiguous(memory_format=layout) if value.dim() == 4 else value).requires_grad_()
    y = call(**inputs)
    upstream = _draw(torch.Generator().manual_seed(1), *y.shape).bfloat16().to(y.device, y.dtype)
    gradients = torch.autograd.grad(y, list(inputs.values()), upstream)
    named = {f"gradient of {name}": value for name, value in zip(inputs, gradients)}
    return {"result": y.detach(), **named}


def show_trials(trials: list[Trial], console: Console) -> None:
    """Print a row for each operator and backend with the worst error for each dtype, then the failures."""
    console.print(
        "Self-test: worst ‖got - expected‖ / ‖expected‖ of results and gradients, in every layout served, against the "
        "reference in float64."
    )
    names = [dtype_name(dtype) for dtype in DTYPES]
    table = Table("operator", "device", "backend", *names, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_row("allowed", "", "", *(f"{tolerance(dtype):.0e}" for dtype in DTYPES), end_section=True)
    rows: dict[tuple[str, str, str], dict[str, Trial]] = {}
    for trial in trials:
        rows.setdefault((trial.op, trial.device, trial.backend), {})[trial.dtype] = trial
    for key, of_dtype in rows.items():
        table.add_row(*key, *(_cell(of_dtype.get(name)) for name in names))
    console.print(table)
    for trial in trials:
        if not trial.passed:
            console.print(describe(trial), style="bold red", markup=False, soft_wrap=True)


def _cell(trial: Trial | None) -> str:
    if trial is None:
        return "-"
    if trial.passed:
        return f"{trial.error:.0e}" if trial.error else "0"
    return "[bold red]FAIL[/bold red]" if trial.error is None else f"[bold red]{trial.error:.0e} FAIL[/bold red]"


def describe(trial: Trial) -> str:
    """One line about a failed trial."""
    where = f"{trial.op} on {trial.device}, backend {trial.backend}, {trial.dtype}"
    if trial.error is None:
        return f"{where}: {trial.problem}"
    return f"{where}: relative error {trial.error:.1e} of {trial.worst}; allowed is {trial.tolerance:.1e}"


def complaint(trials: list[Trial]) -> str | None:
    """One line about the trials that failed; None if none did."""
    failed = [trial for trial in trials if not trial.passed]
    if not failed:
        return None
    return f"the self-test failed {len(failed)} of {len(trials)} times, first: {describe(failed[0])}"


def devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(count))]


def layouts_of(backend: str) -> tuple[torch.memory_format, ...]:
    """The memory formats that a backend serves."""
    return getattr(BACKENDS[backend], "LAYOUTS", (torch.contiguous_format, torch.channels_last))


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype without "torch."."""
    return str(dtype).removeprefix("torch.")

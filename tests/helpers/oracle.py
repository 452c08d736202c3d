"""The comparison of an epilogue with the specification in float64, forward and backward.

`check(case, impl, device)` is the whole proof of one case of `munit_fast.ops.cases`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from helpers.tolerances import tolerance
from munit_fast import functional as mf
from munit_fast.ops.cases import CaseTensors, EpilogueCase, lay_out, make_tensors
from munit_fast.reference import epilogue as formulas

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Beyond every constant of the kernels: chunks of 16384 and groups of 65536 values, pieces of 512, tasks of 32768.
LARGE = (
    ((1, 2, 270, 259), "nchw"),
    ((1, 3, 190, 181), "channels_last"),
    ((2, 70, 40, 33), "channels_last"),
    ((1, 300, 19, 21), "channels_last"),
    ((1, 520, 13, 12), "channels_last"),
    ((2, 9, 5, 1030), "nchw"),
)
# Where an activation has a kink, rounding decides on which side a value this close is.
KINK = 2e-3


def run(case: EpilogueCase, tensors: CaseTensors, impl: str) -> Tensor:
    """The case through the public function."""
    return getattr(mf, case.function)(**tensors.given(), **case.arguments, impl=impl)


def in_double(inputs: CaseTensors) -> CaseTensors:
    return CaseTensors(*(t if t is None else t.detach().double().contiguous().requires_grad_() for t in inputs))


def gradients(y: Tensor, inputs: CaseTensors, upstream: Tensor) -> CaseTensors:
    given = [t for t in inputs if t is not None]
    found = iter(torch.autograd.grad(y, given, upstream))
    return CaseTensors(*(t if t is None else next(found) for t in inputs))


def frozen(case: EpilogueCase, inputs: CaseTensors) -> CaseTensors:
    """The same epilogue with its statistics as constants, folded into a weight and a bias for each plane."""
    x, weight, bias, residual, slope = (t if t is None else t.detach() for t in inputs)
    n, c = x.shape[:2]
    mean, scale = x.new_zeros(n, c), x.new_ones(n, c)
    if case.norm == "instance":
        mean, scale = x.mean((2, 3)), (x.var((2, 3), correction=0) + case.eps).rsqrt()
    elif case.norm == "layer":
        mean, scale = x.mean((1, 2, 3)), 1 / (x.std((1, 2, 3)) + case.eps)
        mean, scale = mean[:, None].expand(n, c), scale[:, None].expand(n, c)
    elif case.norm == "group":
        rows = x.reshape(n, case.groups, -1)
        mean, scale = rows.mean(2), (rows.var(2, correction=0) + case.eps).rsqrt()
        mean, scale = (value.repeat_interleave(c // case.groups, 1) for value in (mean, scale))

    def planes(value: Tensor | None, otherwise: float) -> Tensor:
        value = x.new_tensor([otherwise]) if value is None else value
        value = value.reshape(-1, value.shape[-1])
        return value.repeat(1, c // value.shape[1]).expand(n, c)

    scale = scale * planes(weight, 1.0)
    folded = CaseTensors(x, scale, planes(bias, 0.0) - mean * scale, residual, slope)
    return CaseTensors(*(t if t is None else t.clone().requires_grad_() for t in folded))


def exact_activation(z: Tensor, act: str, slope: float | Tensor = 0.2) -> Tensor:
    """The activation of a float64 z, small and infinite values included; differentiable.

    PyTorch's gelu adds 1 to erf or tanh, which leaves no digits far below zero, and what it gives at infinity depends
    on dtype and processor.
    """
    if act == "gelu":
        return z / 2 * torch.erfc(z * -math.sqrt(0.5))
    if act == "gelu_tanh":
        return z * torch.sigmoid(math.sqrt(8 / math.pi) * (z + 0.044715 * z**3))
    return formulas.activate(z, act, slope)


def away_from_kinks(case: EpilogueCase, fixed: CaseTensors) -> Tensor:
    """1 where the result does not depend on a z near an activation's kink, else 0."""
    z = fixed.x * fixed.weight[:, :, None, None] + fixed.bias[:, :, None, None]
    far = (z.abs() > KINK).double()
    return formulas.pad2d(formulas.depth_to_space(far, case.block), case.pad, case.pad_mode).detach()


def condition(case: EpilogueCase, inputs: CaseTensors) -> float:
    """The largest |mean| / sqrt(var + eps) of a plane (or sample)."""
    if case.norm == "none":
        return 0.0
    mean, spread = formulas.statistics(inputs.x.detach(), case.norm, case.groups)
    return float((mean.abs() / (spread + case.eps if case.norm == "layer" else (spread + case.eps).sqrt())).max())


def errors(case: EpilogueCase, impl: str, device: str = "cpu") -> dict[str, tuple[float, float]]:
    """For each tensor, its error and its tolerance."""
    inputs = make_tensors(case, device)
    double = in_double(inputs)
    y, expected = run(case, inputs, impl), case.specification(double)
    fixed = frozen(case, double)
    # Differences too, whose terms are of the size of 1: 1 - tanh², and the derivatives that change their sign.
    smooth = case.act in ("tanh", "silu", "gelu", "gelu_tanh")
    direct = (replace(case, act="none") if smooth else case).specification(fixed, norm="none")

    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(case.seed + 1), dtype=torch.float64)
    upstream = upstream.to(device=device, dtype=case.dtype)
    if case.act in ("relu", "lrelu", "prelu", "selu"):
        upstream = upstream * away_from_kinks(case, fixed).to(case.dtype)
    order = {"channels_last": "channels_last", "sliced": "sliced"}.get(case.layout, "nchw")
    got = gradients(y, inputs, lay_out(upstream, order))
    wanted = gradients(expected, double, upstream.double())
    terms = gradients(direct, fixed, upstream.double())

    n, c, h, w = case.shape
    planes = {"instance": 1, "group": c // case.groups, "layer": c}
    length = planes[case.norm] * h * w if case.norm != "none" else 1
    off = condition(case, double)

    def compare(kind: str, value: Tensor, reference: Tensor, scale: float, length: int) -> tuple[float, float]:
        assert value.shape == reference.shape
        norm = max(float(reference.norm()), scale) or 1.0
        error = float((value.double() - reference).norm()) / norm
        size = value.numel() if kind == "grad_parameter" else n * c * h * w
        return error, tolerance(case.dtype, kind, size, length, off, stored=value.dtype)

    assert y.dtype == case.dtype
    found = {"y": compare("result", y.detach(), expected.detach(), 0.0, length)}
    for name, value, reference, term in zip(CaseTensors._fields, got, wanted, terms):
        if value is None:
            continue
        leaf = getattr(inputs, name)
        assert value.dtype == leaf.dtype, name
        if name in ("x", "residual"):
            found[name] = compare("grad", value, reference, float(term.norm()), length)
        else:
            found[name] = compare("grad_parameter", value, reference, float(upstream.double().norm()), n * h * w * c)
    return found


def check(case: EpilogueCase, impl: str, device: str = "cpu") -> None:
    for name, (error, bound) in errors(case, impl, device).items():
        assert error <= bound, f"{name}: relative error {error:.3g}, allowed {bound:.3g}, in {case} with impl={impl!r}"

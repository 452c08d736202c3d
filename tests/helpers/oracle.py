"""The grid of epilogues, and the comparison of one with the specification in float64, forward and backward.

`check(case, impl, device)` is the whole proof of one case; any backend can be put through `grid`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from helpers.tolerances import tolerance
from munit_fast import functional as mf
from munit_fast.ops.spec import ACTIVATIONS
from munit_fast.reference import epilogue as formulas

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Which function with which parameters; "mend" is a parameter shared by the phases of a depth-to-space.
OPS = ("instance", "instance_affine", "adain", "layer", "layer_affine", "layer_shuffled", "layer_mend", "bias_act")
LAYOUTS = ("nchw", "channels_last", "sliced", "mixed")
NORMS = {"instance": "instance", "adain": "instance", "layer": "layer", "bias": "none"}
PADS = ((0, "reflect"), (1, "reflect"), (3, "reflect"), (1, "replicate"), (4, "replicate"), (2, "zero"))
# Odd, narrow, one channel, one row, lanes that do not divide the channels (33, 70) and planes of two pixels. Channels
# are multiplied by block² where depth moves to space.
SHAPES = (
    (2, 3, 7, 9),
    (1, 1, 5, 4),
    (3, 8, 4, 6),
    (1, 33, 5, 5),
    (2, 5, 1, 13),
    (1, 70, 4, 7),
    (2, 2, 11, 1),
    (1, 17, 2, 1),
    (1, 4, 16, 37),
)
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


@dataclass(frozen=True)
class Case:
    op: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    act: str = "none"
    pad: int = 0
    pad_mode: str = "reflect"
    residual: bool = False
    mean: float = 0.5
    std: float = 1.5
    eps: float = 1e-5
    shared_slope: bool = False
    parameter_dtype: torch.dtype | None = None  # None: as a module under autocast has them
    seed: int = 0

    @property
    def norm(self) -> str:
        return NORMS[self.op.split("_")[0]]

    @property
    def block(self) -> int:
        return 2 if self.op in ("layer_shuffled", "layer_mend") else 1


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    slope: Tensor | None


def grid(op: str, dtype: torch.dtype, layout: str) -> Iterator[Case]:
    """Every activation with every padding, the shapes and the residual in turn."""
    block = 2 if op in ("layer_shuffled", "layer_mend") else 1
    turns = itertools.count(OPS.index(op) + LAYOUTS.index(layout))
    for act, (pad, mode) in itertools.product(ACTIVATIONS, PADS):
        for _ in range(len(SHAPES)):
            turn = next(turns)
            n, c, h, w = SHAPES[turn % len(SHAPES)]
            if mode != "reflect" or pad < block * min(h, w):
                break
        yield Case(
            op,
            (n, c * block**2, h, w),
            dtype,
            layout,
            act,
            pad,
            mode,
            residual=turn % 2 == 0,
            shared_slope=turn % 3 == 0,
            seed=turn,
        )


def lay_out(values: Tensor, layout: str) -> Tensor:
    """A copy of [N, C, H, W] values in a memory layout; "sliced" is every other column of a larger tensor."""
    if layout == "sliced":
        n, c, h, w = values.shape
        room = values.new_full((n, c + 2, h + 1, 2 * w), math.nan)
        view = room[:, 1:-1, 1:, ::2]
        return view.copy_(values)
    order = torch.channels_last if layout in ("channels_last", "mixed") else torch.contiguous_format
    return values.clone(memory_format=torch.contiguous_format).contiguous(memory_format=order)


def make_inputs(case: Case, device: str = "cpu") -> Inputs:
    """Leaves that require a gradient, rounded to the case's dtype."""
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape: int, dtype: torch.dtype, mean: float = 0.0, std: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * std + mean
        return values.to(device=device, dtype=dtype)

    n, c, _, _ = case.shape
    # As parameters are kept; float64 holds float32 exactly.
    wide = case.parameter_dtype or torch.promote_types(case.dtype, torch.float32)
    entries = c // 4 if case.op == "layer_mend" else c
    size = (n, c) if case.op == "adain" else (entries,)
    weight = bias = residual = slope = None
    if case.op not in ("instance", "layer", "bias_act"):
        weight = draw(*size, dtype=wide, mean=1.0, std=0.5)
    if case.op not in ("instance", "layer"):
        bias = draw(*size, dtype=wide, std=0.5)
    if case.residual:
        other = "nchw" if case.layout == "mixed" else case.layout
        residual = lay_out(draw(*case.shape, dtype=case.dtype), other).requires_grad_()
    if case.act == "prelu":
        slope = draw(1 if case.shared_slope else c, dtype=wide, mean=0.25, std=0.1)
    x = lay_out(draw(*case.shape, dtype=case.dtype, mean=case.mean, std=case.std), case.layout)
    leaves = (t if t is None else t.requires_grad_() for t in (x, weight, bias, residual, slope))
    return Inputs(*leaves)


def run(case: Case, inputs: Inputs, impl: str) -> Tensor:
    """The case through the public function."""
    x, weight, bias, residual, slope = inputs
    common = {
        "act": case.act,
        "slope": slope if case.act == "prelu" else 0.2,
        "residual": residual,
        "pad": case.pad,
        "pad_mode": case.pad_mode,
        "impl": impl,
    }
    if case.op == "bias_act":
        return mf.bias_act(x, bias, **common)
    if case.op == "adain":
        return mf.adain(x, weight, bias, eps=case.eps, **common)
    if case.norm == "instance":
        return mf.instance_norm(x, weight, bias, eps=case.eps, **common)
    return mf.layer_norm2d(x, weight, bias, eps=case.eps, depth_to_space=case.block, **common)


def specification(case: Case, inputs: Inputs, norm: str | None = None) -> Tensor:
    """The case as `munit_fast.reference.epilogue.epilogue`, in the dtype of the inputs."""
    x, weight, bias, residual, slope = inputs
    return formulas.epilogue(
        x,
        weight,
        bias,
        residual,
        norm=case.norm if norm is None else norm,
        eps=case.eps,
        act=case.act,
        slope=0.2 if slope is None else slope,
        block=case.block,
        pad=case.pad,
        pad_mode=case.pad_mode,
    )


def in_double(inputs: Inputs) -> Inputs:
    return Inputs(*(t if t is None else t.detach().double().contiguous().requires_grad_() for t in inputs))


def gradients(y: Tensor, inputs: Inputs, upstream: Tensor) -> Inputs:
    given = [t for t in inputs if t is not None]
    found = iter(torch.autograd.grad(y, given, upstream))
    return Inputs(*(t if t is None else next(found) for t in inputs))


def frozen(case: Case, inputs: Inputs) -> Inputs:
    """The same epilogue with its statistics as constants, folded into a weight and a bias for each plane."""
    x, weight, bias, residual, slope = (t if t is None else t.detach() for t in inputs)
    n, c = x.shape[:2]
    mean, scale = x.new_zeros(n, c), x.new_ones(n, c)
    if case.norm == "instance":
        mean, scale = x.mean((2, 3)), (x.var((2, 3), correction=0) + case.eps).rsqrt()
    elif case.norm == "layer":
        mean, scale = x.mean((1, 2, 3)), 1 / (x.std((1, 2, 3)) + case.eps)
        mean, scale = mean[:, None].expand(n, c), scale[:, None].expand(n, c)

    def planes(value: Tensor | None, otherwise: float) -> Tensor:
        value = x.new_tensor([otherwise]) if value is None else value
        value = value.reshape(-1, value.shape[-1])
        return value.repeat(1, c // value.shape[1]).expand(n, c)

    scale = scale * planes(weight, 1.0)
    folded = Inputs(x, scale, planes(bias, 0.0) - mean * scale, residual, slope)
    return Inputs(*(t if t is None else t.clone().requires_grad_() for t in folded))


def away_from_kinks(case: Case, fixed: Inputs) -> Tensor:
    """1 where the result does not depend on a z near an activation's kink, else 0."""
    z = fixed.x * fixed.weight[:, :, None, None] + fixed.bias[:, :, None, None]
    far = (z.abs() > KINK).double()
    return formulas.pad2d(formulas.depth_to_space(far, case.block), case.pad, case.pad_mode).detach()


def condition(case: Case, inputs: Inputs) -> float:
    """The largest |mean| / sqrt(var + eps) of a plane (or sample)."""
    if case.norm == "none":
        return 0.0
    mean, spread = formulas.statistics(inputs.x.detach(), case.norm)
    return float((mean.abs() / ((spread + case.eps).sqrt() if case.norm == "instance" else spread + case.eps)).max())


def errors(case: Case, impl: str, device: str = "cpu") -> dict[str, tuple[float, float]]:
    """For each tensor, its error and its tolerance."""
    inputs = make_inputs(case, device)
    double = in_double(inputs)
    y, expected = run(case, inputs, impl), specification(case, double)
    fixed = frozen(case, double)
    # Differences too, whose terms are of the size of 1: 1 - tanh², and silu's derivative where it changes its sign.
    smooth = case.act in ("tanh", "silu")
    direct = specification(replace(case, act="none") if smooth else case, fixed, norm="none")

    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(case.seed + 1), dtype=torch.float64)
    upstream = upstream.to(device=device, dtype=case.dtype)
    if case.act in ("relu", "lrelu", "prelu", "selu"):
        upstream = upstream * away_from_kinks(case, fixed).to(case.dtype)
    order = {"channels_last": "channels_last", "sliced": "sliced"}.get(case.layout, "nchw")
    got = gradients(y, inputs, lay_out(upstream, order))
    wanted = gradients(expected, double, upstream.double())
    terms = gradients(direct, fixed, upstream.double())

    n, c, h, w = case.shape
    length = {"none": 1, "instance": h * w, "layer": c * h * w}[case.norm]
    off = condition(case, double)

    def compare(kind: str, value: Tensor, reference: Tensor, scale: float, length: int) -> tuple[float, float]:
        assert value.shape == reference.shape
        norm = max(float(reference.norm()), scale) or 1.0
        error = float((value.double() - reference).norm()) / norm
        size = value.numel() if kind == "grad_parameter" else n * c * h * w
        return error, tolerance(case.dtype, kind, size, length, off, stored=value.dtype)

    assert y.dtype == case.dtype
    found = {"y": compare("result", y.detach(), expected.detach(), 0.0, length)}
    for name, value, reference, term in zip(Inputs._fields, got, wanted, terms):
        if value is None:
            continue
        leaf = getattr(inputs, name)
        assert value.dtype == leaf.dtype, name
        if name in ("x", "residual"):
            found[name] = compare("grad", value, reference, float(term.norm()), length)
        else:
            found[name] = compare("grad_parameter", value, reference, float(upstream.double().norm()), n * h * w * c)
    return found


def check(case: Case, impl: str, device: str = "cpu") -> None:
    for name, (error, bound) in errors(case, impl, device).items():
        assert error <= bound, f"{name}: relative error {error:.3g}, allowed {bound:.3g}, in {case} with impl={impl!r}"

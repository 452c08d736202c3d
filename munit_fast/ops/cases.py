"""Epilogues to try a backend with: the one grid of the tests and of `munit-fast doctor --selftest`.

It lies beside the specification of an epilogue, because a new norm, activation or way to pad joins the grid with its
name. A case says which public function is called on which tensors; what calls it, and how far a result may be off, is
left to those who try.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from munit_fast.ops.spec import ACTIVATIONS
from munit_fast.reference import epilogue as formulas

LAYOUTS = ("nchw", "channels_last", "sliced", "mixed")
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


class _Op(NamedTuple):
    function: str  # of munit_fast.functional
    norm: str
    block: int = 1
    weight: bool = True
    bias: bool = True


_OPS = {
    "instance": _Op("instance_norm", "instance", weight=False, bias=False),
    "instance_affine": _Op("instance_norm", "instance"),
    "group": _Op("group_norm", "group", weight=False, bias=False),
    "group_affine": _Op("group_norm", "group"),
    "adain": _Op("adain", "instance"),
    "layer": _Op("layer_norm2d", "layer", weight=False, bias=False),
    "layer_affine": _Op("layer_norm2d", "layer"),
    "layer_shuffled": _Op("layer_norm2d", "layer", block=2),
    "layer_shared": _Op("layer_norm2d", "layer", block=2),  # weight and bias shared by the phases
    "bias_act": _Op("bias_act", "none", weight=False),
    "scale_bias_act": _Op("scale_bias_act", "none"),
}
OPS = tuple(_OPS)


def block_of(op: str) -> int:
    """The side of the blocks of depth-to-space of an operation in OPS."""
    return _OPS[op].block


def groups_of(channels: int) -> int:
    """A number of groups that is one only where it must be, and has no fewer channels a group than groups."""
    return max(groups for groups in range(1, math.isqrt(channels) + 1) if channels % groups == 0)


class CaseTensors(NamedTuple):
    """The tensors of a case, named as the arguments of the public functions and of the formulas."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    slope: Tensor | None  # of prelu

    def given(self) -> dict[str, Tensor]:
        """Those that are there, as keywords."""
        return {name: t for name, t in self._asdict().items() if t is not None}


@dataclass(frozen=True)
class EpilogueCase:
    """A call of a public function.

    Attributes:
        op: one of OPS: the function, and which parameters it is given.
        shape: of x, [N, C, H, W].
        dtype: of x, residual and result.
        layout: one of LAYOUTS, see `lay_out`; "mixed": x channels_last, the residual NCHW.
        act: as the function's.
        pad: as the function's.
        pad_mode: as the function's.
        eps: as the function's.
        residual: whether there is one.
        mean: of the values of x.
        std: of the values of x.
        plane_std: spread of the planes' own means about `mean`.
        shared_slope: prelu's slope is [1] instead of [C].
        parameter_dtype: of weight, bias and slope; None: as a module under autocast has them.
        seed: of the values.
    """

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
    parameter_dtype: torch.dtype | None = None
    seed: int = 0
    plane_std: float = 0.0

    @property
    def function(self) -> str:
        """The name of the public function in `munit_fast.functional`."""
        return _OPS[self.op].function

    @property
    def norm(self) -> str:
        """The norm, one of `spec.NORMS`."""
        return _OPS[self.op].norm

    @property
    def block(self) -> int:
        """Side of the blocks of depth-to-space; 1 for none."""
        return _OPS[self.op].block

    @property
    def groups(self) -> int:
        """Of channels, of the norm "group"; else 1."""
        return groups_of(self.shape[1]) if self.norm == "group" else 1

    @property
    def arguments(self) -> dict[str, Any]:
        """The keywords of the public function besides tensors and impl."""
        keywords: dict[str, Any] = {"act": self.act, "pad": self.pad, "pad_mode": self.pad_mode}
        if self.norm != "none":
            keywords["eps"] = self.eps
        if self.norm == "group":
            keywords["num_groups"] = self.groups
        if self.block > 1:
            keywords["depth_to_space"] = self.block
        return keywords

    def specification(self, tensors: CaseTensors, norm: str | None = None) -> Tensor:
        """The result by `munit_fast.reference.epilogue.epilogue`, computed in the dtype of the tensors."""
        return formulas.epilogue(
            **tensors.given(),
            norm=self.norm if norm is None else norm,
            eps=self.eps,
            act=self.act,
            block=self.block,
            pad=self.pad,
            pad_mode=self.pad_mode,
            groups=self.groups,
        )


def grid(op: str, dtype: torch.dtype, layout: str) -> Iterator[EpilogueCase]:
    """Every activation with every padding, the shapes and the residual in turn.

    Args:
        op: one of OPS.
        dtype: of x.
        layout: one of LAYOUTS.
    """
    block = block_of(op)
    turns = itertools.count(OPS.index(op) + LAYOUTS.index(layout))
    for act, (pad, mode) in itertools.product(ACTIVATIONS, PADS):
        for _ in range(len(SHAPES)):
            turn = next(turns)
            n, c, h, w = SHAPES[turn % len(SHAPES)]
            if mode != "reflect" or pad < block * min(h, w):
                break
        yield EpilogueCase(
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


def selftest_cases() -> list[EpilogueCase]:
    """A few cases with every function, activation, padding mode and shape of parameters.

    No vector or tile divides the sizes, but for those of 16 and 32 channels, which have kernels of their own on GPUs.
    eps is large where nothing else would tell that it is used. Planes are off centre, each by another amount:
    statistics that lose digits there are seen. The values are representable in every dtype, so that only the
    arithmetic differs.
    """
    size, shuffled = (2, 5, 7, 9), (2, 12, 5, 7)
    cases = [
        EpilogueCase("instance", size, act="relu", pad=3),
        EpilogueCase("instance_affine", size, act="prelu", pad=2, pad_mode="zero", residual=True),
        EpilogueCase("instance_affine", size, eps=0.1, residual=True),
        EpilogueCase("adain", size, act="lrelu", pad=1, pad_mode="replicate"),
        EpilogueCase("adain", size, act="tanh", eps=0.1, residual=True),
        EpilogueCase("layer_affine", size, act="relu", pad=2),
        EpilogueCase("group", (2, 6, 7, 9), act="silu", pad=1),
        EpilogueCase("group_affine", (2, 70, 3, 5), act="relu", pad=1, residual=True),
        EpilogueCase("group_affine", (2, 16, 5, 7), eps=0.1, pad=2, pad_mode="replicate"),
        EpilogueCase("layer_shuffled", shuffled, act="selu", pad=1),
        EpilogueCase("layer_shared", shuffled, eps=0.1, residual=True),
        EpilogueCase("adain", (2, 16, 5, 7), act="relu", pad=2, residual=True),
        EpilogueCase("layer_shared", (2, 32, 5, 3), pad=1, pad_mode="replicate"),
        EpilogueCase("bias_act", size, act="selu", pad=1),
        EpilogueCase("bias_act", size, act="prelu", residual=True),
        EpilogueCase("scale_bias_act", size, act="lrelu", pad=1, pad_mode="replicate", residual=True),
    ]
    seen = {case.act for case in cases}
    cases += [EpilogueCase("bias_act", size, act=act, pad=1, pad_mode="zero") for act in ACTIVATIONS if act not in seen]
    bf16 = torch.bfloat16
    return [replace(case, dtype=bf16, parameter_dtype=bf16, mean=5.0, std=2.0, plane_std=3.0) for case in cases]


def lay_out(values: Tensor, layout: str) -> Tensor:
    """A copy of [N, C, H, W] values in a memory layout; "sliced" is every other column of a larger tensor."""
    if layout == "sliced":
        n, c, h, w = values.shape
        room = values.new_full((n, c + 2, h + 1, 2 * w), math.nan)
        view = room[:, 1:-1, 1:, ::2]
        return view.copy_(values)
    order = torch.channels_last if layout in ("channels_last", "mixed") else torch.contiguous_format
    return values.clone(memory_format=torch.contiguous_format).contiguous(memory_format=order)


def make_tensors(case: EpilogueCase, device: str = "cpu") -> CaseTensors:
    """The tensors of a case, rounded to its dtypes; leaves that require a gradient."""
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape: int, dtype: torch.dtype, mean: float = 0.0, std: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * std + mean
        return values.to(device=device, dtype=dtype)

    n, c, _, _ = case.shape
    op = _OPS[case.op]
    # As parameters are kept; float64 holds float32 exactly.
    wide = case.parameter_dtype or torch.promote_types(case.dtype, torch.float32)
    entries = c // 4 if case.op == "layer_shared" else c
    size = (n, c) if case.op == "adain" else (entries,)
    weight = draw(*size, dtype=wide, mean=1.0, std=0.5) if op.weight else None
    bias = draw(*size, dtype=wide, std=0.5) if op.bias else None
    residual = slope = None
    if case.residual:
        other = "nchw" if case.layout == "mixed" else case.layout
        residual = lay_out(draw(*case.shape, dtype=case.dtype), other)
    if case.act == "prelu":
        slope = draw(1 if case.shared_slope else c, dtype=wide, mean=0.25, std=0.1)
    x = draw(*case.shape, dtype=torch.float64, mean=case.mean, std=case.std)
    if case.plane_std:
        x = x + draw(n, c, 1, 1, dtype=torch.float64, std=case.plane_std)
    leaves = (lay_out(x.to(case.dtype), case.layout), weight, bias, residual, slope)
    return CaseTensors._make(t if t is None else t.requires_grad_() for t in leaves)

"""Cases for the epilogue's kernels: for the interpreter, the compiler and a GPU alike. `kernel_checks` judges them."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from munit_fast.ops.cases import groups_of
from munit_fast.ops.spec import ACTIVATIONS, NORMS
from munit_fast.reference import epilogue as reference

KINKED = ("relu", "lrelu", "prelu", "selu")


@dataclass(frozen=True)
class KernelCase:
    shape: tuple[int, int, int, int] = (2, 8, 5, 7)
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    norm: str = "instance"
    act: str = "relu"
    block: int = 1
    pad: int = 1
    pad_mode: str = "reflect"
    weight: str = "none"  # none, shared ([P]) or sample ([N, P])
    bias: str = "none"
    affine_dtype: torch.dtype | None = None  # None: as x
    residual: bool = False
    window: bool = False  # the residual is a window of a larger tensor
    slope: str = "one"  # for prelu: one or channel
    strides: str = "dense"  # of weight, bias and slopes along their last axis: dense, stepped, transposed or expanded
    mean: float = 100.0
    eps: float = 1e-2  # large enough that leaving it out, or putting it elsewhere, shows
    tile: tuple[int, int, int, int] | None = None  # pixels, channels, tiles, programs; None: the real tables

    def __str__(self) -> str:
        words = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        words += ["nhwc" if self.channels_last else "nchw", self.norm, self.act, f"block{self.block}"]
        words += [f"{self.pad_mode}{self.pad}", f"w-{self.weight}", f"b-{self.bias}"]
        words += ["window" if self.window else "residual"] if self.residual else []
        words += [self.strides] if self.strides != "dense" else []
        words += [f"tile{'.'.join(map(str, self.tile))}"] if self.tile else []
        return "-".join(words)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that the reference and the kernels share."""
        return {
            "norm": self.norm,
            "eps": self.eps,
            "act": self.act,
            "block": self.block,
            "pad": self.pad,
            "pad_mode": self.pad_mode,
            "groups": self.groups,
        }

    @property
    def groups(self) -> int:
        """Of channels, of the norm "group"; else 1."""
        return groups_of(self.shape[1]) if self.norm == "group" else 1


# Each row: the values of one factor. Every pair of values of two factors meets in some case.
FACTORS: dict[str, list[Any]] = {
    "shape": [(2, 8, 3, 5), (1, 4, 4, 4), (3, 4, 2, 9), (1, 17, 3, 4), (2, 3, 5, 2)],
    "dtype": [torch.float32, torch.bfloat16, torch.float16],
    "channels_last": [True, False],
    "norm": list(NORMS),
    "act": list(ACTIVATIONS),
    "block": [1, 2],
    "padding": [(0, "zero"), (1, "reflect"), (1, "replicate"), (1, "zero"), (2, "replicate"), (3, "reflect")],
    "affine": ["none none", "shared shared", "sample sample", "none shared", "sample none", "shared sample"],
    "affine_dtype": [None, torch.float32, torch.bfloat16],
    "residual": [False, True],
    "window": [False, True],
    "slope": ["one", "channel"],
    "strides": ["dense", "stepped", "transposed", "expanded"],
    "tile": [(16, 4, 1, 64), (4, 16, 2, 64), (8, 8, 1, 2)],
}


def _possible(values: dict[str, Any]) -> bool:
    shape, block, (pad, mode) = values.get("shape"), values.get("block"), values.get("padding", (0, "zero"))
    if shape is None:
        return True
    if block == 2 and shape[1] % 4:
        return False
    return mode != "reflect" or pad < min(shape[2:]) * (block or 2)


def covering_cases(seed: int = 0) -> list[KernelCase]:
    """Cases in which every possible pair of factor values occurs (greedily, from random candidates)."""
    draw = random.Random(seed)
    names = list(FACTORS)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(FACTORS[a])), range(len(FACTORS[b])))
        if _possible({a: FACTORS[a][i], b: FACTORS[b][j]})
    }
    cases = []
    while missing:
        best, covered = None, set()
        start = min(missing)
        for _ in range(60):
            index = {name: draw.randrange(len(FACTORS[name])) for name in names}
            index.update({start[0]: start[1], start[2]: start[3]})
            if _possible({name: FACTORS[name][i] for name, i in index.items()}):
                pairs = {(a, index[a], b, index[b]) for a, b in itertools.combinations(names, 2)} & missing
                if len(pairs) > len(covered):
                    best, covered = index, pairs
        if best is None:  # three factors exclude each other: no case can have this pair
            missing.discard(start)
            continue
        missing -= covered
        values = {name: FACTORS[name][i] for name, i in best.items()}
        (pad, mode), affine = values.pop("padding"), values.pop("affine").split()
        cases.append(KernelCase(**values, pad=pad, pad_mode=mode, weight=affine[0], bias=affine[1]))
    return cases


@dataclass
class KernelInputs:
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    slope: float | Tensor
    grad: Tensor

    def wide(self) -> KernelInputs:
        """The same values in float64, differentiable."""

        def widen(value: Any) -> Any:
            return value.detach().double().requires_grad_() if isinstance(value, Tensor) else value

        return KernelInputs(*(widen(value) for value in vars(self).values()))


def lay_out(x: Tensor, channels_last: bool) -> Tensor:
    """A copy in the layout; unlike .contiguous() also where the sizes allow both readings."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout).copy_(x)


def spread_out(values: Tensor, strides: str) -> Tensor:
    """The values of a parameter [P] or [N, P] with other strides; what lies between and behind them is NaN.

    "expanded" keeps the first value of each row only, for all of it.
    """
    if strides == "dense":
        return values
    wide = values.new_full((*values.shape, 3), float("nan"))
    if strides == "transposed" and values.dim() == 2:
        wide = values.new_full((3, *values.T.shape), float("nan")).permute(2, 1, 0)
    wide[..., 1] = values
    return wide[..., :1, 1].expand(values.shape) if strides == "expanded" else wide[..., 1]


def make_inputs(case: KernelCase, device: str = "cpu", seed: int = 0) -> KernelInputs:
    generator = torch.Generator(device).manual_seed(seed)
    n, c, h, w = case.shape
    p = c // case.block**2

    def normal(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        value = torch.randn(shape, generator=generator, device=device).to(dtype)
        return lay_out(value, case.channels_last) if value.dim() == 4 else value

    def parameter(kind: str) -> Tensor | None:
        shapes = {"none": None, "shared": (p,), "sample": (n, p)}
        if shapes[kind] is None:
            return None
        return spread_out(normal(*shapes[kind], dtype=case.affine_dtype or case.dtype), case.strides)

    x = (normal(*case.shape, dtype=torch.float32) + (case.mean if case.norm != "none" else 0)).to(case.dtype)
    weight, bias = parameter(case.weight), parameter(case.bias)
    residual = None
    if case.residual:
        residual = normal(n, c, h + 2, w + 2)[:, :, 1:-1, 1:-1] if case.window else normal(*case.shape)
    slope: float | Tensor = 0.2
    if case.act == "prelu":
        slope = spread_out(normal(1 if case.slope == "one" else c, dtype=torch.float32), case.strides)
    grad = normal(n, p, case.block * h + 2 * case.pad, case.block * w + 2 * case.pad)
    if case.act in KINKED:
        # A kernel may see z on the other side of zero than the oracle does; there the gradients truly differ.
        plain = {**case.options, "act": "none", "block": 1, "pad": 0}
        z = reference.epilogue(x.double(), *(None if t is None else t.double() for t in (weight, bias)), **plain)
        kink = reference.depth_to_space((z.abs() < 1e-3).double(), case.block)
        grad = lay_out(torch.where(reference.pad2d(kink, case.pad, case.pad_mode) > 0, 0, grad), case.channels_last)
    return KernelInputs(lay_out(x, case.channels_last), weight, bias, residual, slope, grad)


def use_tile(case: KernelCase, monkeypatch: Any) -> None:
    """Replace the configuration tables by the case's small tile, so that small tensors have splits and odd tails."""
    if case.tile is None:
        return
    from munit_fast.kernels import configs

    pixels, channels, tiles, programs = case.tile
    small = configs.TileConfig(pixels, channels, 4, tiles)
    rows = configs.TileConfig(pixels, 1, 4, tiles)
    monkeypatch.setattr(configs, "tile", lambda table, *_: rows if table == "statistics, rows" else small)
    monkeypatch.setattr(configs, "SPLIT_PROGRAMS", programs)
    monkeypatch.setattr(configs, "COMBINE_ELEMENTS", 64)
    monkeypatch.setattr(configs, "PARTIAL_ELEMENTS", 8)
    monkeypatch.setattr(configs, "TERMS", 4)
    monkeypatch.setattr(configs, "GROUP_ELEMENTS", 4)


def _network_cases() -> list[KernelCase]:
    """The epilogues of MUNIT's networks at 256×256, and a few group norms; one sample."""
    adain = {"weight": "sample", "bias": "sample"}
    layer = {"norm": "layer", "weight": "shared", "bias": "shared"}
    group = {"norm": "group", "weight": "shared", "bias": "shared"}
    bias = {"norm": "none", "bias": "shared"}
    return [
        KernelCase((1, 64, 256, 256), norm="instance", act="relu", pad=1),
        KernelCase((1, 128, 128, 128), norm="instance", act="relu", pad=1),
        KernelCase((1, 256, 64, 64), norm="instance", act="relu", pad=1),
        KernelCase((1, 256, 64, 64), norm="instance", act="none", pad=1, residual=True),
        KernelCase((1, 256, 64, 64), norm="instance", act="none", pad=1, residual=True, window=True),
        KernelCase((1, 256, 64, 64), norm="instance", act="none", pad=0, residual=True, window=True),
        KernelCase((1, 256, 64, 64), act="relu", pad=1, **adain),
        KernelCase((1, 256, 64, 64), act="none", pad=1, residual=True, **adain),
        KernelCase((1, 256, 64, 64), act="none", pad=1, residual=True, window=True, **adain),
        KernelCase((1, 256, 64, 64), act="none", pad=3, residual=True, window=True, **adain),
        KernelCase((1, 256, 64, 64), act="none", pad=1, pad_mode="replicate", residual=True, window=True, **adain),
        KernelCase((1, 128, 128, 128), act="relu", pad=2, **layer),
        KernelCase((1, 64, 256, 256), act="relu", pad=3, **layer),
        KernelCase((1, 512, 64, 64), act="relu", block=2, pad=1, pad_mode="replicate", **layer),
        KernelCase((1, 512, 64, 64), act="relu", block=2, pad=1, **layer),
        KernelCase((1, 256, 128, 128), act="relu", block=2, pad=3, **layer),
        KernelCase((1, 64, 128, 128), act="lrelu", pad=1, pad_mode="zero", **bias),
        KernelCase((1, 256, 32, 32), act="lrelu", pad=1, **bias),
        KernelCase((1, 512, 16, 16), act="lrelu", pad=0, **bias),
        KernelCase((1, 64, 256, 256), act="relu", pad=1, **bias),
        KernelCase((1, 3, 256, 256), act="tanh", pad=0, **bias),
        # Of other people's networks.
        KernelCase((1, 128, 256, 256), act="silu", pad=0, **group),
        KernelCase((1, 512, 32, 32), act="silu", pad=0, **group),
        KernelCase((1, 256, 64, 64), act="none", pad=0, residual=True, **group),
    ]


NETWORK_CASES = _network_cases()
LONGEST_CASE = KernelCase((1, 256, 64, 64), norm="instance", act="gelu", pad=1)


def variants(case: KernelCase, dtypes: tuple[torch.dtype, ...], channels_last: tuple[bool, ...]) -> list[KernelCase]:
    return [replace(case, dtype=d, channels_last=c) for d in dtypes for c in channels_last]

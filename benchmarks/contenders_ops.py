"""Contenders at the level of operators: one epilogue, or one loss, by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from munit_fast import functional as MF
from munit_fast.benchmarks.cases import DTYPES, EPILOGUES, GROUP, LOSSES, Case
from munit_fast.benchmarks.contenders import (
    BATCH_NORM,
    COMPILED,
    GROUP_NORM,
    LAYOUTS,
    OURS,
    PUBLISHED,
    Contender,
    Work,
    compiled,
    differentiable,
)

# Timed beside what "auto" takes, to see whether it chooses well (munit_fast/ops/backends/registry.py).
BACKENDS_OF = {"cuda": ("triton", "cuda")}

Function = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


class Spec(NamedTuple):
    """The flags of an epilogue."""

    norm: str
    act: str
    pad: int
    residual: bool = False


SPECS = dict(
    zip(
        EPILOGUES,
        (
            Spec("instance", "relu", 1),
            Spec("adain", "relu", 1),
            Spec("adain", "none", 1, residual=True),
            Spec("layer", "relu", 2),
            Spec("none", "lrelu", 1),
        ),
    )
) | {GROUP: Spec("group", "silu", 0)}


def _instance(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x)


def _adain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As published: one batch norm over N·C channels."""
    n, c, h, w = x.shape
    flat = x.reshape(1, n * c, h, w)
    return F.batch_norm(flat, None, None, weight.reshape(-1), bias.reshape(-1), training=True).view(n, c, h, w)


def _layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As published: over a whole sample, eps outside the root."""
    rows = x.reshape(x.shape[0], -1)
    mean, std = rows.mean(1).view(-1, 1, 1, 1), rows.std(1).view(-1, 1, 1, 1)
    return (x - mean) / (std + 1e-5) * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def _biased(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x + bias.view(1, -1, 1, 1)


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """With one sample, instance norm is batch norm, which has channels_last kernels."""
    return F.batch_norm(x, None, None, training=True)


def _batch_norm_adain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight[0], bias[0], training=True)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A group for each channel is instance norm."""
    return F.group_norm(x, x.shape[1])


def _group_norm_adain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.shape[0] == 1:
        return F.group_norm(x, x.shape[1], weight[0], bias[0])
    return F.group_norm(x, x.shape[1]) * weight[:, :, None, None] + bias[:, :, None, None]


def _groups(x: Tensor) -> int:
    return math.gcd(32, x.shape[1])


def _grouped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, _groups(x), weight, bias)


NORMS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "instance": {PUBLISHED: _instance, BATCH_NORM: _batch_norm, GROUP_NORM: _group_norm},
    "adain": {PUBLISHED: _adain, BATCH_NORM: _batch_norm_adain, GROUP_NORM: _group_norm_adain},
    "layer": {PUBLISHED: _layer},
    "group": {PUBLISHED: _grouped},
    "none": {PUBLISHED: _biased},
}


def eager(spec: Spec, norm: Callable[..., Tensor]) -> Function:
    """The epilogue operation by operation."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        x = norm(x, weight, bias)
        if spec.act == "relu":
            x = F.relu(x)
        elif spec.act == "lrelu":
            x = F.leaky_relu(x, 0.2)
        elif spec.act == "silu":
            x = F.silu(x)
        if residual is not None:
            x = x + residual
        return F.pad(x, (spec.pad,) * 4, mode="reflect") if spec.pad else x

    return run


def fused(spec: Spec, impl: str = "auto") -> Function:
    """The epilogue of `spec` as one operation of munit_fast."""
    options: dict[str, Any] = {"act": spec.act, "pad": spec.pad, "impl": impl}

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        if spec.norm == "instance":
            return MF.instance_norm(x, residual=residual, **options)
        if spec.norm == "adain":
            return MF.adain(x, weight, bias, residual=residual, **options)
        if spec.norm == "layer":
            return MF.layer_norm2d(x, weight, bias, residual=residual, **options)
        if spec.norm == "group":
            return MF.group_norm(x, _groups(x), weight, bias, residual=residual, **options)
        return MF.bias_act(x, bias, residual=residual, **options)

    return run


@lru_cache(1)  # large ones take a processor longer than all else takes a GPU; the cases of one size follow each other
def _drawn(size: tuple[int, ...], vector: tuple[int, ...], residual: bool) -> list[Tensor | None]:
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=random) for s in (size, vector, vector))
    return [x + 0.5, weight, bias, torch.randn(size, generator=random) if residual else None]


def tensors(case: Case, layout: str, device: torch.device) -> list[Tensor | None]:
    """x, weight, bias and residual of an epilogue: the same numbers for every layout; the mean is not zero."""
    spec, (n, c, side) = SPECS[case.name], (case.batch, case.channels, case.side)

    def placed(drawn: Tensor) -> Tensor:
        t = drawn.to(device, DTYPES[case.dtype], copy=True)
        return t.contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t

    drawn = _drawn((n, c, side, side), (n, c) if spec.norm == "adain" else (c,), spec.residual)
    return [t if t is None else placed(t).requires_grad_() for t in drawn]


def _work(function: Function, case: Case, layout: str, device: torch.device) -> Work:
    arguments = tensors(case, layout, device)
    used = [t for t in arguments if t is not None]
    return differentiable(lambda: function(*arguments), used, case.mode)  # type: ignore[arg-type]


def epilogue_contenders(case: Case, device: torch.device) -> list[Contender]:
    """Every way to compute the epilogue of a case."""
    spec = SPECS[case.name]
    found = []
    for layout in LAYOUTS:
        ways: dict[str, Callable[[], Function]] = {OURS: lambda: fused(spec)}
        for impl in BACKENDS_OF.get(device.type, ()):
            if not (impl == "cuda" and layout == "NCHW"):
                ways[f"{OURS} {impl}"] = lambda impl=impl: fused(spec, impl)  # type: ignore[misc]
        for name, norm in NORMS[spec.norm].items():
            if name != BATCH_NORM or case.batch == 1:
                ways[name] = lambda norm=norm: eager(spec, norm)  # type: ignore[misc]
        for name in COMPILED:
            ways[name] = lambda name=name: compiled(eager(spec, NORMS[spec.norm][PUBLISHED]), name)  # type: ignore[misc]
        for name, way in ways.items():
            found.append(Contender(name, layout, lambda way=way, layout=layout: _work(way(), case, layout, device)))  # type: ignore[misc]
    return found


def expected(case: Case, device: torch.device) -> Sequence[Tensor]:
    """An epilogue's numbers in float64, as the published formula gives them."""
    spec = SPECS[case.name]
    arguments = [None if t is None else t.detach().double().requires_grad_() for t in tensors(case, "NCHW", device)]
    function = eager(spec, NORMS[spec.norm][PUBLISHED])
    used = [t for t in arguments if t is not None]
    return differentiable(lambda: function(*arguments), used, case.mode).step()  # type: ignore[arg-type]


def minimal_bytes(case: Case) -> int:
    """What must be moved, every tensor once: inputs in and results out; for the backward, dy and x in and dx out."""
    item = DTYPES[case.dtype].itemsize
    if case.name in LOSSES:
        cpu = torch.device("cpu")
        read = (
            [*_pairs(case, "NCHW", cpu)[0], *_pairs(case, "NCHW", cpu)[1]] if "l1" in case.name else _scales(case, cpu)
        )
        written = [t for t in read if t.requires_grad]
        return item * sum(t.numel() for t in [*read, *written])  # value and gradient can be had in one pass
    spec = SPECS[case.name]
    x = case.batch * case.channels * case.side**2
    y = case.batch * case.channels * (case.side + 2 * spec.pad) ** 2
    forward = x * (2 if spec.residual else 1) + y
    backward = y + 2 * x + (x if spec.residual else 0)
    return item * {"forward": forward, "backward": backward, "training": forward + backward}[case.mode]


def _pairs(case: Case, layout: str, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """The ten pairs of an iteration: four of images, four of styles, two of contents (dim 64)."""
    random = torch.Generator().manual_seed(0)
    n, px = case.batch, case.side
    shapes = [(n, 3, px, px)] * 4 + [(n, 8, 1, 1)] * 4 + [(n, 256, px // 4, px // 4)] * 2

    def draw(size: tuple[int, ...]) -> Tensor:
        t = torch.randn(size, generator=random).to(device, DTYPES[case.dtype])
        return t.contiguous(memory_format=LAYOUTS[layout])

    return [draw(size).requires_grad_() for size in shapes], [draw(size) for size in shapes]


def _scales(case: Case, device: torch.device) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    sides = [max(case.side // 16 // 2**scale, 1) for scale in range(3)]
    sizes = [(case.batch, 1, side, side) for side in sides]
    return [torch.randn(s, generator=random).to(device, DTYPES[case.dtype]).requires_grad_() for s in sizes]


def _eager_l1(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in zip(first, second)])


def _eager_lsgan(*outputs: Tensor) -> Tensor:
    return torch.stack([(y.float() - 1).square().mean() for y in outputs]).sum()


def loss_contenders(case: Case, device: torch.device) -> list[Contender]:
    """The losses of an iteration: published, compiled and in one launch."""
    l1 = case.name.startswith("l1")

    def make(function: Callable[..., Tensor], layout: str) -> Work:
        if l1:
            first, second = _pairs(case, layout, device)
            return differentiable(lambda: function(first, second), first, case.mode)
        scales = _scales(case, device)
        return differentiable(lambda: function(*scales), scales, case.mode)

    plain: Callable[..., Tensor] = _eager_l1 if l1 else _eager_lsgan
    ours: Callable[..., Tensor] = (
        (lambda first, second: MF.l1_losses(list(zip(first, second))))
        if l1
        else (lambda *outputs: MF.lsgan_loss(list(outputs), 1.0))
    )
    found = []
    for layout in ("NCHW", "channels_last") if l1 else ("NCHW",):
        found += [
            Contender(OURS, layout, lambda layout=layout: make(ours, layout)),  # type: ignore[misc]
            Contender(PUBLISHED, layout, lambda layout=layout: make(plain, layout)),  # type: ignore[misc]
            *(
                Contender(name, layout, lambda name=name, layout=layout: make(compiled(plain, name), layout))  # type: ignore[misc]
                for name in COMPILED
            ),
        ]
    return found

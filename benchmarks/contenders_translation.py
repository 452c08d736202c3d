"""Contenders at the level of translation: images in one or ten styles each, without gradients."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor

from munit_fast.benchmarks import contenders_exported
from munit_fast.benchmarks.cases import STYLES, Case
from munit_fast.benchmarks.contenders import (
    COMPILED,
    FROZEN,
    LAYOUTS,
    ONNX_RUNTIME,
    OPENVINO,
    OURS,
    Contender,
    Variant,
    Work,
    autocast,
    compile_parts,
    frozen,
    hyperparameters,
    placed,
    published_variants,
)
from munit_fast.benchmarks.contenders_exported import PACKAGES
from munit_fast.models.munit import MUNIT


def translation_contenders(case: Case, device: torch.device) -> list[Contender]:
    """The fast model, the published one, and on a CPU the published one frozen and in other runtimes."""
    variants = [Variant(OURS, "channels_last", case.dtype), *published_variants(case)]
    if device.type == "cpu":
        # Where bfloat16 is slower than float32, these must not look slow for it.
        either = tuple(dict.fromkeys((case.dtype, "fp32")))
        variants += [Variant(FROZEN, "channels_last", precision) for precision in either]
        variants += [Variant(ONNX_RUNTIME, "NCHW", "fp32"), *(Variant(OPENVINO, "NCHW", dtype) for dtype in either)]
    program = cache(lambda: contenders_exported.export(*_inputs(case, device, "reference")))  # shared by the runtimes

    def make(variant: Variant) -> Work:
        if variant.implementation in PACKAGES:
            contenders_exported.require(variant.implementation)
            return _exported(case, device, variant, program())
        return _in_torch(case, device, variant)

    return [variant.contender(case, partial(make, variant)) for variant in variants]


def _inputs(case: Case, device: torch.device, impl: str) -> tuple[MUNIT, Tensor, Tensor]:
    """The model, images [N, 3, H, W] and style codes [S, style_dim]: the same for every contender."""
    hp = hyperparameters(case)
    torch.manual_seed(0)
    model = MUNIT(hp, impl=impl).eval().to(device)
    random = torch.Generator().manual_seed(2)
    x = (torch.rand(case.batch, 3, case.side, case.side, generator=random) * 2 - 1).to(device)
    codes = torch.randn(STYLES[case.name], hp["gen"]["style_dim"], generator=torch.Generator().manual_seed(1))
    return model, x, codes.to(device)


def _in_torch(case: Case, device: torch.device, variant: Variant) -> Work:
    implementation, layout, precision = variant
    model, x, codes = _inputs(case, device, "auto" if implementation == OURS else "reference")
    if implementation != OURS:
        model = placed(model, layout, device)
        x = x.contiguous(memory_format=LAYOUTS[layout])
    if implementation in (*COMPILED, FROZEN):
        compile_parts(model, implementation)

    @torch.no_grad()
    def step() -> list[Tensor]:
        with autocast(precision, device):
            return [model.translate(x, style=codes)]

    if implementation == FROZEN:
        frozen(step)
    return Work(step)


def _exported(case: Case, device: torch.device, variant: Variant, program: bytes) -> Work:
    _, x, codes = _inputs(case, device, "reference")
    run = contenders_exported.load(variant.implementation, variant.precision, program, torch.get_num_threads())
    repeated = codes.repeat(case.batch, 1)
    return Work(lambda: [run(x, repeated).unflatten(0, (case.batch, -1))])

"""Contenders at the level of translation: images in one or ten styles each, without gradients."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from munit_fast.benchmarks import contenders_exported
from munit_fast.benchmarks.cases import STYLES, Case
from munit_fast.benchmarks.contenders import (
    COMPILED,
    EXPORTED,
    FROZEN,
    LAYOUTS,
    ONNX_RUNTIME,
    OPENVINO,
    OURS,
    PUBLISHED,
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
from munit_fast.export.graphs import Precision
from munit_fast.models.munit import MUNIT

CPU = torch.device("cpu")


def translation_contenders(case: Case, device: torch.device) -> list[Contender]:
    """The fast model, the published one, and on a CPU the published one frozen and in other runtimes."""
    variants = [Variant(OURS, "channels_last", case.dtype), *published_variants(case)]
    if device.type == "cpu":
        # Where bfloat16 is slower than float32, these must not look slow for it.
        either = tuple(dict.fromkeys((case.dtype, "fp32")))
        variants += [Variant(FROZEN, "channels_last", precision) for precision in either]
        variants += [Variant(ONNX_RUNTIME, "NCHW", "fp32"), *(Variant(OPENVINO, "NCHW", dtype) for dtype in either)]
    return _contenders(case, device, variants)


def exported_contenders(case: Case, device: torch.device) -> list[Contender]:
    """The fast model, the published one, and on a CPU what `munit-fast export` and torch.onnx.export make of them."""
    variants = [Variant(OURS, "channels_last", case.dtype), *(Variant(PUBLISHED, name, case.dtype) for name in LAYOUTS)]
    if device.type == "cpu":
        variants += [Variant(runtime, "NCHW", "fp32") for runtime in (ONNX_RUNTIME, OPENVINO)]
        variants += [Variant(name, "NCHW", precision) for name in EXPORTED for precision in ("fp32", "fp16")]
    return _contenders(case, device, variants)


def _contenders(case: Case, device: torch.device, variants: list[Variant]) -> list[Contender]:
    program = cache(lambda: contenders_exported.export(*_inputs(case, device, "reference")))  # shared by the runtimes

    def make(variant: Variant) -> Work:
        implementation, _, precision = variant
        if implementation in EXPORTED:
            assert precision == "fp32" or precision == "fp16"
            contenders_exported.require(implementation, precision)
            return _exported(case, variant, _file(implementation, precision, case.channels))
        if implementation in (ONNX_RUNTIME, OPENVINO):
            contenders_exported.require(implementation)
            return _exported(case, variant, program())
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


def _exported(case: Case, variant: Variant, source: bytes | Path) -> Work:
    implementation, _, precision = variant
    _, x, codes = _inputs(case, CPU, "reference")
    run = contenders_exported.load(implementation, precision, source, torch.get_num_threads())
    if implementation in EXPORTED:
        each = codes.expand(case.batch, *codes.shape).contiguous()
        return Work(lambda: [run(x, each)])
    repeated = codes.repeat(case.batch, 1)
    return Work(lambda: [run(x, repeated).unflatten(0, (case.batch, -1))])


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="munit-fast-bench-")


@cache  # to make one takes longer than to time it
def _file(implementation: str, precision: Precision, channels: int) -> Path:
    """A file of munit-fast. Neither it nor the weights depend on a case's sides, batch and styles."""
    model, _, _ = _inputs(Case("exported", "in 1 style", "forward", "fp32", 1, channels, 64), CPU, "reference")
    folder = Path(_folder().name, str(channels))
    folder.mkdir(exist_ok=True)
    return contenders_exported.write(model, implementation, precision, folder)

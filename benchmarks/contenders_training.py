"""Contenders at the level of whole models: a training iteration, and images in one or ten styles."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast import reference
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
    compiled,
    frozen,
    placed,
    published_variants,
)
from munit_fast.benchmarks.contenders_exported import PACKAGES
from munit_fast.config import make_config
from munit_fast.models.munit import MUNIT
from munit_fast.train.cuda_graph import WARM_UP, StepGraph
from munit_fast.train.trainer import MUNIT_Trainer

_PARTS = ("enc_content", "enc_style", "dec", "dis_a", "dis_b")


class _Published(reference.MUNIT_Trainer):
    """The published updates without the guard against steps that are not finite, which the published code lacks.

    On a GPU the guard waits for the device, and a CUDA graph could not hold it.
    """

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()


def hyperparameters(case: Case) -> dict[str, Any]:
    """The published configuration at the case's size; small images get fewer scales."""
    small = case.side < 128
    dis = {"dim": case.channels, "n_layer": 2 if small else 4, "num_scales": 2 if small else 3}
    return make_config(
        {
            "gen": {"dim": case.channels},
            "dis": dis,
            "crop_image_height": case.side,
            "crop_image_width": case.side,
            "display_size": 1,
            "ema_half_life": 0,  # the published iteration has no average
        }
    ).hyperparameters()


def _compile_parts(module: nn.Module, implementation: str) -> None:
    """Compile each part of the networks that runs as one call; their `forward`, which the losses call by itself."""
    for name, part in module.named_modules():
        if name.rpartition(".")[2] in _PARTS:
            part.forward = compiled(part.forward, implementation)


def _losses(trainer: Any) -> list[Tensor]:
    terms = [f"recon_{what}_{domain}" for what in "xsc" for domain in "ab"] + ["adv_a", "adv_b", "total"]
    found = [getattr(trainer, f"loss_gen_{term}") for term in terms] + [trainer.loss_dis_total]
    return [value.detach().float().clone() for value in found]


_NETWORKS = ("gen_a", "gen_b", "dis_a", "dis_b")


def _weights(trainer: Any) -> list[Tensor]:
    """The weights of each network as one vector; biases before an instance norm get rounding noise for a gradient."""
    return [
        torch.cat([p.detach().flatten().cpu() for p in getattr(trainer, name).parameters() if p.dim() > 1])
        for name in _NETWORKS
    ]


def _checked_iterations(trainer: Any, step: Callable[[], object], device: torch.device) -> Callable[[], list[Tensor]]:
    """Every loss of the first iteration, then how far each network's weights moved in all of them.

    On a GPU enough of them that the last ones are replayed, where there is a graph.
    """

    def numbers() -> list[Tensor]:
        before = _weights(trainer)
        step()
        first = _losses(trainer)
        for _ in range(WARM_UP + 2 if device.type == "cuda" else 1):
            step()
        return [*first, *(b - a for a, b in zip(before, _weights(trainer)))]

    return numbers


def _state_bytes(trainer: Any) -> int:
    """Weights and Adam's two moments."""
    return 3 * sum(p.numel() * p.element_size() for p in trainer.parameters())


def _capturable(trainer: Any) -> None:
    for optimizer in (trainer.dis_opt, trainer.gen_opt):
        for group in optimizer.param_groups:
            group["capturable"], group["fused"], group["foreach"] = True, True, None


def training_contenders(case: Case, device: torch.device) -> list[Contender]:
    """A whole iteration: learning rate, discriminator update, generator update."""
    hp = hyperparameters(case)

    def images(layout: str) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(2)
        x = (torch.rand(2, case.batch, 3, case.side, case.side, generator=draw) * 2 - 1).to(device)
        a, b = (t.contiguous(memory_format=LAYOUTS[layout]) for t in x)
        return a, b

    def noise() -> list[Tensor]:
        draw = torch.Generator().manual_seed(3)
        return [torch.randn(case.batch, hp["gen"]["style_dim"], 1, 1, generator=draw).to(device) for _ in range(4)]

    def work(trainer: Any, step: Callable[[], object], close: Callable[[], None] = lambda: None) -> Work:
        def timed() -> list[Tensor]:
            step()
            return []

        return Work(timed, _checked_iterations(trainer, step, device), _state_bytes(trainer), close)

    def published(variant: Variant, graph: bool) -> Work:
        implementation, layout, precision = variant
        torch.manual_seed(0)
        trainer: Any = placed(_Published(hp), layout, device)
        if implementation in COMPILED:
            _compile_parts(trainer, implementation)
        x_a, x_b = images(layout)
        styles = noise()

        def iterate(x_a: Tensor, x_b: Tensor, styles: Any) -> None:
            with autocast(precision, device):
                trainer.dis_update(x_a, x_b, hp, styles[:2])
                trainer.gen_update(x_a, x_b, hp, styles[2:])

        def step() -> None:
            trainer.update_learning_rate()
            iterate(x_a, x_b, styles)

        if not graph:
            return work(trainer, step)
        _capturable(trainer)
        captured = StepGraph(iterate, x_a, x_b, styles)

        def replay() -> None:
            trainer.iterations += 1
            captured.run(x_a, x_b, styles)

        return work(trainer, replay, lambda: _assert_captured(captured.graph is not None, ""))

    def ours(graph: bool) -> Work:
        torch.manual_seed(0)
        trainer = MUNIT_Trainer(hp, amp="off" if case.dtype == "fp32" else case.dtype).to(device)
        x_a, x_b = images("NCHW")
        styles = noise()
        if graph:

            def captured() -> None:
                _assert_captured(trainer._graphs.failure is None, f": {trainer._graphs.failure}")

            return work(trainer, lambda: trainer.update(x_a, x_b, hp, (styles[:2], styles[2:])), captured)

        def step() -> None:
            trainer.update_learning_rate()
            trainer.dis_update(x_a, x_b, hp, styles[:2])
            trainer.gen_update(x_a, x_b, hp, styles[2:])

        return work(trainer, step)

    found = [
        Contender(OURS, "channels_last", lambda graph=graph: ours(graph), graph)  # type: ignore[misc]
        for graph in _graphs(device)
    ]
    for variant in published_variants(case):
        for graph in _graphs(device) if variant.precision == case.dtype else (False,):
            make = partial(published, variant, graph)
            found.append(variant.contender(case, make, graph))
    return found


def _assert_captured(captured: bool, why: str) -> None:
    if not captured:
        raise RuntimeError(f"it ran without its CUDA graph{why}")


def _graphs(device: torch.device) -> tuple[bool, ...]:
    return (False, True) if device.type == "cuda" else (False,)


def translation_contenders(case: Case, device: torch.device) -> list[Contender]:
    """Images in one or ten styles each, without gradients."""
    hp = hyperparameters(case)

    def inputs(impl: str) -> tuple[MUNIT, Tensor, Tensor]:
        torch.manual_seed(0)
        model = MUNIT(hp, impl=impl).eval().to(device)
        draw = torch.Generator().manual_seed(2)
        x = (torch.rand(case.batch, 3, case.side, case.side, generator=draw) * 2 - 1).to(device)
        codes = torch.randn(STYLES[case.name], hp["gen"]["style_dim"], generator=torch.Generator().manual_seed(1))
        return model, x, codes.to(device)

    def work(variant: Variant) -> Work:
        implementation, layout, precision = variant
        model, x, codes = inputs("auto" if implementation == OURS else "reference")
        if implementation != OURS:
            model = placed(model, layout, device)
            x = x.contiguous(memory_format=LAYOUTS[layout])
        if implementation in (*COMPILED, FROZEN):
            _compile_parts(model, implementation)

        @torch.no_grad()
        def step() -> list[Tensor]:
            with autocast(precision, device):
                return [model.translate(x, style=codes)]

        if implementation == FROZEN:
            frozen(step)
        return Work(step)

    @cache
    def program() -> bytes:
        return contenders_exported.export(*inputs("reference"))

    def external(variant: Variant) -> Work:
        contenders_exported.require(variant.implementation)
        _, x, codes = inputs("reference")
        threads = torch.get_num_threads()
        run = contenders_exported.load(variant.implementation, variant.precision, program(), threads)
        repeated = codes.repeat(case.batch, 1)
        return Work(lambda: [run(x, repeated).unflatten(0, (case.batch, -1))])

    variants = [Variant(OURS, "channels_last", case.dtype), *published_variants(case)]
    if device.type == "cpu":
        # Where bfloat16 is slower than float32, these must not look slow for it.
        either = tuple(dict.fromkeys((case.dtype, "fp32")))
        variants += [Variant(FROZEN, "channels_last", precision) for precision in either]
        variants += [Variant(ONNX_RUNTIME, "NCHW", "fp32"), *(Variant(OPENVINO, "NCHW", dtype) for dtype in either)]
    return [v.contender(case, partial(external if v.implementation in PACKAGES else work, v)) for v in variants]

"""Contenders at the level of a training iteration: learning rate, discriminator update, generator update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from munit_fast import reference
from munit_fast.benchmarks.cases import Case
from munit_fast.benchmarks.contenders import (
    COMPILED,
    LAYOUTS,
    OURS,
    Contender,
    Variant,
    Work,
    autocast,
    compile_parts,
    hyperparameters,
    placed,
    published_variants,
)
from munit_fast.train.cuda_graph import WARM_UP, StepGraph
from munit_fast.train.trainer import MUNIT_Trainer


class _Published(reference.MUNIT_Trainer):
    """The published updates without the guard against steps that are not finite, which the published code lacks.

    On a GPU the guard waits for the device, and a CUDA graph could not hold it.
    """

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()


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


def _make_capturable(trainer: Any) -> None:
    for optimizer in (trainer.dis_opt, trainer.gen_opt):
        for group in optimizer.param_groups:
            group["capturable"], group["fused"], group["foreach"] = True, True, None


def training_contenders(case: Case, device: torch.device) -> list[Contender]:
    """The fast trainer and the published one, on a GPU each of them in a CUDA graph too."""
    found = [Contender(OURS, "channels_last", partial(_ours, case, device, graph), graph) for graph in _graphs(device)]
    for variant in published_variants(case):
        for graph in _graphs(device) if variant.precision == case.dtype else (False,):
            found.append(variant.contender(case, partial(_published, case, device, variant, graph), graph))
    return found


def _graphs(device: torch.device) -> tuple[bool, ...]:
    return (False, True) if device.type == "cuda" else (False,)


def _ours(case: Case, device: torch.device, graph: bool) -> Work:
    hp = hyperparameters(case)
    torch.manual_seed(0)
    trainer = MUNIT_Trainer(hp, amp="off" if case.dtype == "fp32" else case.dtype).to(device)
    x_a, x_b = _images(case, device, "NCHW")
    styles = _styles(case, device, hp)
    if graph:

        def verify() -> None:
            _assert_captured(trainer._graphs.failure is None, f": {trainer._graphs.failure}")

        return _work(trainer, lambda: trainer.update(x_a, x_b, hp, (styles[:2], styles[2:])), device, verify)

    def step() -> None:
        trainer.update_learning_rate()
        trainer.dis_update(x_a, x_b, hp, styles[:2])
        trainer.gen_update(x_a, x_b, hp, styles[2:])

    return _work(trainer, step, device)


def _published(case: Case, device: torch.device, variant: Variant, graph: bool) -> Work:
    hp = hyperparameters(case)
    torch.manual_seed(0)
    trainer: Any = placed(_Published(hp), variant.layout, device)
    if variant.implementation in COMPILED:
        compile_parts(trainer, variant.implementation)
    x_a, x_b = _images(case, device, variant.layout)
    styles = _styles(case, device, hp)

    def iterate(x_a: Tensor, x_b: Tensor, styles: Any) -> None:
        with autocast(variant.precision, device):
            trainer.dis_update(x_a, x_b, hp, styles[:2])
            trainer.gen_update(x_a, x_b, hp, styles[2:])

    def step() -> None:
        trainer.update_learning_rate()
        iterate(x_a, x_b, styles)

    if not graph:
        return _work(trainer, step, device)
    _make_capturable(trainer)
    captured = StepGraph(iterate, x_a, x_b, styles)

    def replay() -> None:
        trainer.iterations += 1
        captured.run(x_a, x_b, styles)

    return _work(trainer, replay, device, lambda: _assert_captured(captured.graph is not None, ""))


def _images(case: Case, device: torch.device, layout: str) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    x = (torch.rand(2, case.batch, 3, case.side, case.side, generator=random) * 2 - 1).to(device)
    a, b = (t.contiguous(memory_format=LAYOUTS[layout]) for t in x)
    return a, b


def _styles(case: Case, device: torch.device, hp: dict[str, Any]) -> list[Tensor]:
    """Two styles for the discriminator update, two for the generator update."""
    random = torch.Generator().manual_seed(3)
    return [torch.randn(case.batch, hp["gen"]["style_dim"], 1, 1, generator=random).to(device) for _ in range(4)]


def _work(
    trainer: Any, step: Callable[[], object], device: torch.device, verify: Callable[[], None] = lambda: None
) -> Work:
    def timed() -> list[Tensor]:
        step()
        return []

    return Work(timed, _checked_iterations(trainer, step, device), _state_bytes(trainer), verify)


def _assert_captured(captured: bool, why: str) -> None:
    if not captured:
        raise RuntimeError(f"it ran without its CUDA graph{why}")

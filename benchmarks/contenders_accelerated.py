"""Contenders at the level of other people's networks: as PyTorch runs them, and after `munit_fast.accelerate`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from munit_fast.accelerate import accelerate
from munit_fast.benchmarks.cases import Case
from munit_fast.benchmarks.contenders import OURS, PUBLISHED, Contender, Work, autocast
from munit_fast.benchmarks.networks_of_others import NETWORKS, outputs


def accelerated_contenders(case: Case, device: torch.device) -> list[Contender]:
    """The network before and after, with the same weights.

    A training step is forward, the mean of squares of every result, backward and Adam's step; it is checked by the
    results and gradients before the first one. A forward is one in evaluation, without autograd's graph.
    """
    return [Contender(name, "NCHW", partial(_work, case, device, name == OURS)) for name in (OURS, PUBLISHED)]


def _work(case: Case, device: torch.device, fused: bool) -> Work:
    network = NETWORKS[case.name]
    torch.manual_seed(0)
    net: nn.Module = network.make(case.channels).to(device).train(case.mode == "training")
    if fused:
        accelerate(net)
    arguments = tuple(t.to(device) for t in network.arguments(case.batch, case.side))

    def forward() -> list[Tensor]:
        torch.manual_seed(1)  # dropout, and the noise of an autoencoder
        with autocast(case.dtype, device):
            return outputs(net(*arguments))

    if case.mode == "forward":
        return Work(torch.no_grad()(forward))
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-4)

    def backward() -> list[Tensor]:
        results = forward()
        torch.stack([y.float().square().mean() for y in results]).sum().backward()
        return results

    def step() -> list[Tensor]:
        optimizer.zero_grad()
        backward()
        optimizer.step()
        return []

    def numbers() -> list[Tensor]:
        results = backward()
        return [*(y.detach() for y in results), *(p.grad.clone() for p in parameters if p.grad is not None)]

    return Work(step, numbers, 3 * sum(p.numel() * p.element_size() for p in parameters))

"""torch.compile of the networks and their losses: one graph, forward and backward, and one program for every size."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from munit_fast import functional as mf
from munit_fast.models.networks import AdaINGen, Decoder, MsImageDis

GEN = {
    "dim": 16,
    "style_dim": 8,
    "n_downsample": 2,
    "n_res": 2,
    "activ": "relu",
    "pad_type": "reflect",
    "mlp_dim": 16,
}
DIS = {
    "dim": 16,
    "norm": "none",
    "activ": "lrelu",
    "n_layer": 2,
    "gan_type": "lsgan",
    "num_scales": 2,
    "pad_type": "reflect",
}


class Losses(nn.Module):
    """What an iteration's generator step computes for one domain, by two of its networks."""

    def __init__(self) -> None:
        super().__init__()
        self.gen, self.dis = AdaINGen(3, GEN), MsImageDis(3, DIS)

    def forward(self, x: Tensor) -> Tensor:
        content, style = self.gen.encode(x)
        y = self.gen.decode(content, style)
        again, _ = self.gen.encode(y)
        reconstructions = mf.l1_losses([(y, x), (again, content)])
        return reconstructions.sum() + self.dis.calc_gen_loss(y) + self.dis.calc_dis_loss(y, x)


def encode(net: AdaINGen) -> Callable[[Tensor], Any]:
    return lambda x: net.encode(x)


def decode(net: AdaINGen) -> Callable[[Tensor], Any]:
    return lambda x: net.decode(
        x.mean(1, keepdim=True).repeat(1, 64, 1, 1), x.mean((2, 3)).repeat(1, 3)[:, :8, None, None]
    )


PARTS: dict[str, Callable[[], tuple[nn.Module, Callable[[Tensor], Any]]]] = {
    "encode": lambda: (net := AdaINGen(3, GEN), encode(net)),
    "decode": lambda: (net := AdaINGen(3, GEN), decode(net)),
    "discriminate": lambda: (net := MsImageDis(3, DIS), net),
    "losses": lambda: (net := Losses(), net),
}


def results(net: nn.Module, function: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    """What the function gives, and the gradients of the parameters."""
    found = function(x)
    outputs = list(found) if isinstance(found, (list, tuple)) else [found]
    parameters = [p for p in net.parameters() if p.requires_grad]
    total = torch.stack([y.square().sum() for y in outputs]).sum()
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    return [*outputs, *(g for g in grads if g is not None)]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_compiled_program_has_the_fused_operators(part: str) -> None:
    torch._dynamo.reset()
    found: set[str] = set()

    def backend(program: torch.fx.GraphModule, _: Any) -> Any:
        modules = [m for m in program.modules() if isinstance(m, torch.fx.GraphModule)]
        found.update(str(node.target) for m in modules for node in m.graph.nodes)
        return program

    _, function = PARTS[part]()
    torch.compile(function, fullgraph=True, dynamic=True, backend=backend)(torch.randn(2, 3, 32, 48))
    assert [name for name in found if name.startswith("munit_fast.")]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_one_graph_for_every_size(part: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    net, function = PARTS[part]()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for sides in ((32, 48), (64, 40), (48, 48)):  # torch.compile takes two sides that are equal at first for one
        x = torch.randn(2, 3, *sides)
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = results(net, compiled, x)
        for got, want in zip(found, results(net, function, x), strict=True):
            # Rounding flips signs in the gradient of L1, and slopes in that of the discriminator.
            assert (got - want).norm() <= (0.03 if part == "losses" else 2e-4) * want.norm() + 1e-5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_compiles_a_backward_for_every_size() -> None:
    """What reflection changes at the border must not become a view that is kept for the backward."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = Decoder(1, 0, 8, 3, "in", "relu", "reflect")
    # Without optimisation: the C++ compiler takes most of the time.
    with torch._inductor.config.patch({"aot_inductor.debug_compile": True}):
        compiled = torch.compile(net, fullgraph=True, dynamic=True)
        for sides in ((12, 20), (10, 6)):  # no side is the number of channels, which is constant
            x = torch.randn(2, 8, *sides)
            with torch._dynamo.config.patch(error_on_recompile=True):
                found = results(net, compiled, x)
            for got, want in zip(found, results(net, net, x), strict=True):
                assert (got - want).norm() <= 1e-4 * want.norm() + 1e-5

"""Norms of weights: which layers have one, and how the vectors of a spectral norm follow the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

WEIGHT_NORMS = ("none", "spectral")
_SETTLED = 15  # power iterations, as torch makes them for a new layer


def norm_weights(network: nn.Module, name: str) -> None:
    """Give every convolution and linear layer of a network a norm of its weight.

    "spectral" divides a weight by its largest singular value (Miyato et al., ICLR 2018), as an estimate that two
    vectors u and v keep: `torch.nn.utils.parametrizations.spectral_norm`. In training mode each reading of a weight
    takes them one power iteration further.

    Args:
        network: The network, changed in place: `weight` becomes `parametrizations.weight.original`, `.0._u` and `.0._v`
            in its state_dict.
        name: One of WEIGHT_NORMS.

    Raises:
        ValueError: `name` is unknown.
    """
    if name not in WEIGHT_NORMS:
        raise ValueError(f"weight_norm must be one of {', '.join(WEIGHT_NORMS)}; got {name!r}")
    if name == "spectral":
        for module in [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and not is_normed(m)]:
            spectral_norm(module)


def is_normed(module: nn.Module) -> bool:
    """Whether the weight of a layer is computed from another tensor."""
    return "parametrizations" in module._modules


def normed_modules(network: nn.Module) -> list[Any]:
    """The layers of a network whose weights are computed, in an order that depends on the network alone."""
    found: list[nn.Module] = []
    modules: list[nn.Module | None] = [network]
    while modules:  # nn.Module.modules takes several times as long
        module = modules.pop()
        if module is not None and is_normed(module):
            found.append(module)
        elif module is not None:
            modules.extend(module._modules.values())
    return found


def source_of(module: Any) -> Tensor:
    """The parameter that the weight of a layer is computed from: without a norm the weight itself."""
    source: Tensor = module.parametrizations.weight.original if is_normed(module) else module.weight
    return source


@torch.no_grad()
def advance_vectors(network: nn.Module, times: int = 1) -> None:
    """Take the vectors of every spectral norm some power iterations further, in place, in any mode.

    Args:
        network: The network.
        times: How many iterations.
    """
    for module in normed_modules(network):
        computed = module.parametrizations.weight
        training = computed.training
        computed.train()
        for _ in range(times):
            computed()
        computed.train(training)


def settle_vectors(network: nn.Module) -> None:
    """Let the vectors find the weights that someone has filled anew."""
    advance_vectors(network, _SETTLED)


def hold_vectors(network: nn.Module) -> None:
    """Let no reading of a weight advance the vectors, until the next call of `network.train()`."""
    for module in normed_modules(network):
        module.parametrizations.weight.eval()

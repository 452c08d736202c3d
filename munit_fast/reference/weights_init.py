"""How the published trainer fills its weights."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from .weight_norms import source_of

INITS = ("gaussian", "xavier", "kaiming", "orthogonal", "default")


def weights_init(init_type: str = "gaussian") -> Callable[[nn.Module], None]:
    """A function for `nn.Module.apply` that fills weights by `init_type` and sets biases to 0.

    It touches modules whose class name starts with Conv or Linear and that own a `weight`; convolutions of norm "sn"
    own none, so they keep PyTorch's default. "default" keeps the weights and still zeroes the biases. Where a weight
    norm computes the weight, it fills what that is computed from.

    Args:
        init_type: one of INITS.

    Raises:
        ValueError: init_type is unknown.
    """
    if init_type not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}; got {init_type!r}")

    def fill(module: nn.Module) -> None:
        name = type(module).__name__.removeprefix("Parametrized")
        if not name.startswith(("Conv", "Linear")) or not hasattr(module, "weight"):
            return
        weight = source_of(module)
        assert isinstance(weight, nn.Parameter)
        weight = weight.data
        if init_type == "gaussian":
            nn.init.normal_(weight, 0.0, 0.02)
        elif init_type == "xavier":
            nn.init.xavier_normal_(weight, gain=math.sqrt(2))
        elif init_type == "kaiming":
            nn.init.kaiming_normal_(weight, a=0, mode="fan_in")
        elif init_type == "orthogonal":
            nn.init.orthogonal_(weight, gain=math.sqrt(2))
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias.data)

    return fill

"""The flags of an epilogue."""

from __future__ import annotations

from typing import NamedTuple

NORMS = ("none", "instance", "layer")
ACTIVATIONS = ("none", "relu", "lrelu", "prelu", "selu", "tanh")
PAD_MODES = ("reflect", "replicate", "zero")


class Options(NamedTuple):
    """What an epilogue does; `slope` is lrelu's (prelu's slopes are a tensor)."""

    norm: str
    eps: float
    act: str
    slope: float
    block: int
    pad: int
    pad_mode: str

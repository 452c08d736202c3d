"""Weights that a norm of torch computes, worked into the plain weights that they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ORIGINAL = ".parametrizations.weight.original"
_VECTORS = (".parametrizations.weight.0._u", ".parametrizations.weight.0._v")
_WEIGHT = ".weight"


def plain_name(name: str) -> str:
    """The name of a tensor in a network without weight norms: "….weight" of what that is computed from."""
    return name.removesuffix(ORIGINAL) + _WEIGHT if name.endswith(ORIGINAL) else name


def fold_weight_norms(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """A state_dict with weights in place of what spectral norms compute them from, where a network has those.

    The weight is that of the network in evaluation mode: original / (uᵀ · original · v), in its dtype.

    Args:
        state: The tensors by name, of `torch.nn.utils.parametrizations.spectral_norm`.
        own: The state_dict of the network that they are for.

    Returns:
        The tensors by the network's names. What does not fit together is left as it is.
    """
    folded: OrderedDict[str, Tensor] = OrderedDict(state)
    for name in [name for name in state if name.endswith(ORIGINAL)]:
        layer = name.removesuffix(ORIGINAL)
        parts = [state.get(key) for key in (name, *(layer + end for end in _VECTORS))]
        if layer + _WEIGHT not in own or name in own or not _belong_together(parts):
            continue
        weight, u, v = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts if part is not None)
        sigma = torch.vdot(u, torch.mv(weight.flatten(1), v))
        for key in (name, *(layer + end for end in _VECTORS)):
            del folded[key]
        folded[layer + _WEIGHT] = (weight / sigma).to(state[name].dtype)
    return folded


def _belong_together(parts: Sequence[object]) -> bool:
    """Whether these are an original and its two vectors, by dtypes and shapes."""
    weight, u, v = parts
    return (
        isinstance(weight, Tensor)
        and isinstance(u, Tensor)
        and isinstance(v, Tensor)
        and weight.dtype.is_floating_point
        and weight.dtype == u.dtype == v.dtype
        and weight.dim() >= 2
        and weight.numel() > 0
        and u.shape == weight.shape[:1]
        and v.shape == (weight.numel() // weight.shape[0],)
    )

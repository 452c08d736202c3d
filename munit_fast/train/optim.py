"""Adam as the trainers use it: one pass over memory, the published files, a rate that a CUDA graph reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def _like(p: Tensor, moment: Tensor) -> Tensor:
    """A moment where its parameter is, in its dtype and strides: the fused step pairs them by their place in memory."""
    if (moment.device, moment.dtype, moment.stride()) == (p.device, p.dtype, p.stride()):
        return moment
    return torch.empty_like(p, requires_grad=False).copy_(moment)


class FusedAdam(torch.optim.Adam):
    """Adam in one pass over memory. Its files are those of the published optimizer, which say nothing of that."""

    loads = 0  # how often a state was loaded: a graph from before holds the old moments

    def __init__(self, groups: Any) -> None:
        super().__init__(groups)
        self._step_supports_amp_scaling = True  # torch sets it for a flag that comes with the constructor only
        self.rates: list[float] = []  # what the tensors stand for, to all digits
        for group in self.param_groups:
            group["fused"], group["foreach"] = True, None

    def make_capturable(self) -> None:
        """Let a CUDA graph hold the step: the learning rate becomes a tensor, which `set_rates` writes to."""
        for group in self.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["capturable"] = True
                self.rates.append(group["lr"])
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)

    def follow(self, moved: Mapping[Any, Tensor]) -> None:
        """Move what belongs to each parameter to where that is now, in its dtype and layout.

        moved: the parameters now by those before; the same ones where they were changed in place. Others stay.
        """
        for group in self.param_groups:
            group["params"] = [moved.get(p, p) for p in group["params"]]
            if isinstance(group["lr"], Tensor) and group["params"]:
                group["lr"] = group["lr"].to(group["params"][0].device)
        before = list(self.state.items())
        self.state.clear()
        for old, state in before:
            p = moved.get(old, old)
            # Step counts are float32 whatever the parameters are.
            self.state[p] = {
                name: value.to(p.device) if name == "step" else _like(p, value) for name, value in state.items()
            }

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        plain = {"fused": None, "capturable": False}
        rates = self.rates or [group["lr"] for group in self.param_groups]
        groups = [group | plain | {"lr": rate} for group, rate in zip(state["param_groups"], rates)]
        return state | {"param_groups": groups}

    def set_rates(self, tensors: list[Tensor]) -> None:
        """Write the groups' rates, which were just set as numbers, into their tensors."""
        self.rates = [group["lr"] for group in self.param_groups]
        for group, tensor in zip(self.param_groups, tensors):
            group["lr"] = tensor.fill_(group["lr"])

    def load_state_dict(self, state_dict: Any) -> None:
        # Said before loading: it decides where the step counts go.
        flags = {"fused": True, "foreach": None}
        groups = [group | flags for group in state_dict["param_groups"]]
        super().load_state_dict(state_dict | {"param_groups": groups})
        for p, state in self.state.items():
            state.update({name: _like(p, value) for name, value in state.items() if name != "step"})
        self.loads += 1
        self.rates = []

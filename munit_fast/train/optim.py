"""Adam as the trainers use it, fp16's loss scaling, and a step that is skipped on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from munit_fast.reference.trainers import Hyperparameters, learning_rate
from munit_fast.train.nonfinite import SkipRecord


def initial_rate(hp: Hyperparameters, update: str) -> float:
    """The rate that the schedule of the "dis" or "gen" update starts from: `lr_dis` or `lr_gen`, else `lr`.

    Two rates are those of TTUR (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule …", NeurIPS 2017).
    """
    rate = hp.get(f"lr_{update}")
    return float(hp["lr"] if rate is None else rate)


def scheduled_rates(hp: Hyperparameters, iteration: int) -> dict[str, float]:
    """The rates of an iteration by the update, "gen" and "dis"."""
    return {update: learning_rate(hp, initial_rate(hp, update), iteration) for update in ("gen", "dis")}


def logged_rates(trainer: Any) -> dict[str, float]:
    """The rates that an iteration trained with: the generators', and the discriminators' where that is another one."""
    gen, dis = (float(optimizer.param_groups[0]["lr"]) for optimizer in (trainer.gen_opt, trainer.dis_opt))
    return {"learning_rate": gen} | ({} if dis == gen else {"learning_rate_dis": dis})


def _like(p: Tensor, moment: Tensor) -> Tensor:
    """A moment on its parameter's device, in its dtype and strides: the fused step pairs elements by their offset."""
    if (moment.device, moment.dtype, moment.stride()) == (p.device, p.dtype, p.stride()):
        return moment
    return torch.empty_like(p, requires_grad=False).copy_(moment)


class FusedAdam(torch.optim.Adam):
    """torch.optim.Adam (Kingma & Ba, ICLR 2015) in one pass over memory.

    Its state_dict is that of the published optimizer: it does not say that the step is fused.

    Args:
        groups: parameter groups with all of Adam's options.

    Attributes:
        loads: how often a state was loaded; a CUDA graph from before holds the old moments.
        rates: the groups' learning rates to all digits, where tensors hold them for a CUDA graph.
    """

    loads = 0

    def __init__(self, groups: Any) -> None:
        super().__init__(groups)
        self._step_supports_amp_scaling = True  # torch sets it for a flag that comes with the constructor only
        self.rates: list[float] = []
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
        """Move each parameter's state to its device, dtype and layout, after a module was moved.

        Args:
            moved: new parameters by old ones; the same where they were changed in place. Others stay.
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
        """The state as a plain torch.optim.Adam has it: rates are numbers, and nothing is fused or capturable."""
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
        """Load the state of a torch.optim.Adam; the moments take the dtype and memory layout of their parameters."""
        # Said before loading: it decides where the step counts go.
        flags = {"fused": True, "foreach": None}
        groups = [group | flags for group in state_dict["param_groups"]]
        super().load_state_dict(state_dict | {"param_groups": groups})
        for p, state in self.state.items():
            state.update({name: _like(p, value) for name, value in state.items() if name != "step"})
        self.loads += 1
        self.rates = []


class LossScaling:
    """fp16's loss scaling: a torch.amp.GradScaler for each optimizer ("dis", "gen"), made when it is first needed."""

    def __init__(self) -> None:
        self.scalers: dict[str, torch.amp.GradScaler] = {}

    def scaler(self, name: str, device: torch.device) -> torch.amp.GradScaler:
        """The scaler of one optimizer."""
        if name not in self.scalers:
            self.scalers[name] = torch.amp.GradScaler(device.type)
        return self.scalers[name]

    def states(self) -> dict[str, dict[str, Any]]:
        """The state of each scaler, as plain values."""
        return {name: scaler.state_dict() for name, scaler in self.scalers.items()}

    def renew(self, device: torch.device) -> None:
        """New scalers with the old ones' state, on `device` and at the beginning of a step."""
        for name, state in self.states().items():
            self.scalers[name] = torch.amp.GradScaler(device.type)
            self.scalers[name].load_state_dict(state)


def step_async(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    skips: SkipRecord,
    gradients: Sequence[Tensor] | None = None,
) -> None:
    """One step, skipped if the gradient is not finite, without reading anything back from a GPU.

    Args:
        optimizer: fused, so that it looks at `found_inf` itself.
        scaler: of the loss that the gradient is of; None: the loss was not scaled.
        skips: counts the step if it is skipped.
        gradients: all of the optimizer's, where fewer tensors hold them; None: the parameters' own.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    if gradients is None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # A scaler looks at the elements; without one, squares that overflow inside Adam count too.
    norm = torch.nn.utils.get_total_norm(gradients, norm_type=2.0 if scaler is None else torch.inf)
    found = 1 - torch.isfinite(norm).float()
    skips.add(found)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
        return
    step: Any = optimizer
    step.found_inf, step.grad_scale = found, None
    optimizer.step()
    del step.found_inf, step.grad_scale

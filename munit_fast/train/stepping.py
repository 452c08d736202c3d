"""How a trainer takes a step: the gradient of a loss over parts and processes, scaling, and the guard against NaN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast import reference
from munit_fast.amp import AMP, Workload, amp_dtype, autocast
from munit_fast.reference.trainers import Hyperparameters, Noise
from munit_fast.train.data_parallel import distributed
from munit_fast.train.nonfinite import SkipRecord, poisoned_if_not_finite
from munit_fast.train.optim import FusedAdam


class Stepping(reference.trainers._Trainer):
    """Fused Adam, mixed precision, batches in parts, processes; the losses are `_dis_loss` and `_gen_loss`."""

    dis_opt: FusedAdam
    gen_opt: FusedAdam

    def _set_up_steps(self, impl: str, amp: str) -> None:
        if amp not in AMP:
            raise ValueError(f"amp must be one of {', '.join(AMP)}; got {amp!r}")
        if impl == "reference" and amp == "fp16":
            raise ValueError("amp='fp16' needs loss scaling, which impl='reference' does not have; use 'bf16' or 'off'")
        self.impl, self.amp = impl, amp
        self._scalers: dict[str, torch.amp.GradScaler] = {}
        self._parallel: dict[str, Any] = {}
        self._processes = 1

    def _dis_loss(self, x_a: Tensor, x_b: Tensor, noise: Noise, hp: Hyperparameters) -> Tensor:
        raise NotImplementedError

    def _gen_loss(self, x_a: Tensor, x_b: Tensor, noise: Noise, hp: Hyperparameters) -> Tensor:
        raise NotImplementedError

    def _noise(self, kind: str, x_a: Tensor, x_b: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """The noise of one update ("dis" or "gen") in the published order; generator: None is the CPU's."""
        raise NotImplementedError

    @property
    def noise_device(self) -> torch.device:
        """Where the noise of `update` and of training runs is drawn."""
        return torch.device("cpu")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def plain(self) -> bool:
        return self.impl == "reference"

    def _amp_dtype(self) -> torch.dtype | None:
        hp = self.hyperparameters
        return amp_dtype(self.amp, self.device, Workload.of(hp, hp.get("batch_size", 1), training=True))

    def _autocast(self) -> Any:
        return autocast(self._amp_dtype(), self.device)

    def distribute(self) -> None:
        """Average gradients over the processes of torch.distributed, each with its part of the batch (`Objective`).

        The networks take the first process's parameters. Raises RuntimeError without a process group, ValueError for
        impl="reference", which trains in one process.
        """
        if self.plain:
            raise ValueError("impl='reference' trains in one process; use another impl for several")
        self._parallel = {
            "dis": distributed(self._dis_loss, self.dis_a, self.dis_b),
            "gen": distributed(self._gen_loss, self.gen_a, self.gen_b),
        }
        self._processes = torch.distributed.get_world_size()

    @property
    def skipped_steps(self) -> int:
        """Steps that were not taken because their gradient was not finite. Reading it waits for a GPU."""
        return self._skips.total

    @skipped_steps.setter
    def skipped_steps(self, value: int) -> None:
        if "_skips" not in vars(self):
            self._skips = SkipRecord()
        self._skips.values[0] = value  # a graph adds to this one

    @property
    def skips(self) -> SkipRecord:
        """Which of the last iterations had such a step."""
        return self._skips

    def _adam(self, modules: Iterable[nn.Module]) -> FusedAdam:
        return FusedAdam(super()._adam(modules).param_groups)

    def scaler_states(self) -> dict[str, dict[str, Any]]:
        """The state of fp16's loss scaling, as plain values; {} without."""
        return {name: scaler.state_dict() for name, scaler in self._scalers.items()}

    def load_scalers(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Take up what `scaler_states` gave."""
        for optimizer, name in ((self.gen_opt, "gen"), (self.dis_opt, "dis")):
            scaler = self._scaler(optimizer)
            if scaler is not None and states.get(name):
                scaler.load_state_dict(states[name])

    def _scaler(self, optimizer: torch.optim.Optimizer) -> torch.amp.GradScaler | None:
        if self._amp_dtype() != torch.float16:
            return None
        name = "gen" if optimizer is self.gen_opt else "dis"
        if name not in self._scalers:
            self._scalers[name] = torch.amp.GradScaler(self.device.type)
        return self._scalers[name]

    def _renew_scalers(self) -> None:
        """New scalers with the old ones' state, on this device and at the beginning of a step."""
        for name, scaler in list(self._scalers.items()):
            self._scalers[name] = torch.amp.GradScaler(self.device.type)
            self._scalers[name].load_state_dict(scaler.state_dict())

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        before = self.skipped_steps
        super()._step(optimizer)
        if self.skipped_steps != before:
            self._skips.values[-1] = 1

    def _step_unread(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
        """`_step` without reading anything back from a GPU: the optimizer itself looks at `found_inf`."""
        if scaler is not None:
            scaler.unscale_(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # A scaler looks at the elements; without one, squares that overflow inside Adam count too.
        norm = torch.nn.utils.get_total_norm(gradients, norm_type=2.0 if scaler is None else torch.inf)
        found = 1 - torch.isfinite(norm).float()
        self._skips.add(found)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
            return
        step: Any = optimizer
        step.found_inf, step.grad_scale = found, None
        optimizer.step()
        del step.found_inf, step.grad_scale

    def _refuse_accumulation(self, hp: Hyperparameters) -> None:
        if hp.get("accumulation", 1) != 1:
            raise ValueError("accumulation needs the fast trainers; impl='reference' takes a batch at once")

    def _descend(
        self, kind: str, optimizer: FusedAdam, x_a: Tensor, x_b: Tensor, hp: Hyperparameters, noise: Noise
    ) -> None:
        """The gradient of one loss, its mean over the parts of the batch, and one step if it is finite."""
        optimizer.zero_grad()
        scaler, count = self._scaler(optimizer), hp.get("accumulation", 1)
        objective = self._parallel.get(kind) or (self._dis_loss if kind == "dis" else self._gen_loss)
        parts: list[dict[str, Any]] = []
        for i, part in enumerate(self._parts(kind, x_a, x_b, noise, count)):
            try:
                with nullcontext() if i + 1 == count else _unsynchronised(objective):
                    loss = objective(*part, hp)
                    scaled = loss / count if count > 1 else loss
                    (scaled if scaler is None else scaler.scale(scaled)).backward(poisoned_if_not_finite(loss))
            finally:
                parts.append(self._detach_losses(kind))
        if count > 1:
            vars(self).update({name: sum(part[name] for part in parts) / count for name in parts[0]})
        if scaler is None and x_a.device.type == "cpu":
            self._step(optimizer)
        else:
            self._step_unread(optimizer, scaler)

    def _detach_losses(self, kind: str) -> dict[str, Any]:
        """The losses of an update by name, without the graph that they came with.

        A graph holds the nodes that sum the gradients, and these stay on the stream on which it was made: a CUDA graph,
        which is captured on another one, could not use them.
        """
        found = {k: v for k, v in vars(self).items() if k.startswith(f"loss_{kind}_")}
        found = {k: v.detach() if isinstance(v, Tensor) else v for k, v in found.items()}
        vars(self).update(found)
        return found

    def _parts(
        self, kind: str, x_a: Tensor, x_b: Tensor, noise: Noise, count: int
    ) -> Iterator[tuple[Tensor, Tensor, Noise]]:
        """The batch in `count` equal parts, each with its noise. Raises ValueError where it cannot be divided."""
        if count == 1:
            yield x_a, x_b, noise
            return
        if x_a.shape[0] % count or x_b.shape[0] % count:
            sizes = f"{x_a.shape[0]} and {x_b.shape[0]}"
            raise ValueError(f"accumulation: {count} parts need a batch that they divide; got {sizes} images")
        tensors = [x_a, x_b, *(noise or self._noise(kind, x_a, x_b, None))]
        for a, b, *n in zip(*(t.chunk(count) for t in tensors), strict=True):
            yield a, b, n


def _unsynchronised(objective: Any) -> AbstractContextManager[Any]:
    """Inside, processes keep their gradients to themselves: they are exchanged with the last part's."""
    no_sync = getattr(objective, "no_sync", nullcontext)
    return no_sync()

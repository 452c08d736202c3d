"""The gradients of an optimizer's parameters in one buffer: one exchange between processes, one look at all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_ALIGNED = 32  # elements: each gradient starts on a boundary of 128 bytes


class FlatGradients:
    """One buffer; each parameter's `.grad` becomes a view of it, in the parameter's layout.

    Args:
        parameters: each dense in its layout. Those of another device or dtype than the first keep gradients of their
            own.
        unused: those among them that stay out of the graph with a gradient of zero.

    Attributes:
        parameters: as given.
        buffer: all gradients; what lies between them is zero.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], unused: Iterable[nn.Parameter] = ()) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        self._gathered = [p for p in self.parameters if (p.device, p.dtype) == (first.device, first.dtype)]
        gathered = {id(p) for p in self._gathered}
        self._apart = [p for p in self.parameters if id(p) not in gathered]
        offsets, end = [], 0
        for p in self._gathered:
            offsets.append(end)
            end += -(-p.numel() // _ALIGNED) * _ALIGNED
        self.buffer = torch.zeros(end, dtype=first.dtype, device=first.device)
        self._views = {
            id(p): self.buffer[start : start + p.numel()].as_strided(p.size(), p.stride(), start)
            for p, start in zip(self._gathered, offsets)
        }
        self._unused = {id(p) for p in unused}
        self._found: set[int] = set()  # reached by this update's backwards
        self._written: set[int] = set()  # by the last one's

    def begin(self) -> None:
        """Forget the gradients of the last update."""
        for p in self.parameters:
            p.grad = None
        self._found.clear()

    def add(self, collected: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        """Take over what a backward left in the parameters' `.grad`, and what was collected elsewhere.

        Args:
            collected: further gradients, each with its parameter; any floating dtype.
        """
        own = [(p, p.grad) for p in self._gathered if p.grad is not None]
        rounds: list[list[tuple[nn.Parameter, Tensor]]] = []  # each has a parameter once
        times: dict[int, int] = {}
        for p, grad in (*own, *collected):
            p.grad = None
            time = times[id(p)] = times.get(id(p), -1) + 1
            rounds += [[]] if time == len(rounds) else []
            rounds[time].append((p, grad))
        for pairs in rounds:
            self._take([pair for pair in pairs if id(pair[0]) not in self._found], torch._foreach_copy_)
            self._take([pair for pair in pairs if id(pair[0]) in self._found], torch._foreach_add_)
            self._found.update(id(p) for p, _ in pairs)

    @torch.no_grad()
    def _take(self, pairs: Sequence[tuple[nn.Parameter, Tensor]], operation: Any) -> None:
        """One multi-tensor operation for each dtype: of several dtypes at once torch would make one for each tensor."""
        for dtype in dict.fromkeys(grad.dtype for _, grad in pairs):
            alike = [(self._views[id(p)], grad) for p, grad in pairs if grad.dtype == dtype]
            views, grads = [view for view, _ in alike], [grad for _, grad in alike]
            if operation is torch._foreach_add_ and dtype != self.buffer.dtype:  # which copies alone convert
                wide = [torch.empty_like(view) for view in views]
                torch._foreach_copy_(wide, grads)
                grads = wide
            operation(views, grads)

    @property
    def tensors(self) -> list[Tensor]:
        """Every gradient, in as few tensors as hold them."""
        return [self.buffer, *(p.grad for p in self._apart if p.grad is not None)]

    def finish(self, processes: int = 1) -> None:
        """Give the parameters their gradients, averaged over processes in one exchange.

        A parameter that no backward reached has none.

        Args:
            processes: that share a batch.
        """
        self._clear_stale()
        if processes > 1:
            for grads in self.tensors:
                grads.div_(processes)
                dist.all_reduce(grads)
        for p in self._gathered:
            view = self._views[id(p)]
            p.grad = view if id(p) in self._found or (id(p) in self._unused and p.requires_grad) else None

    def _clear_stale(self) -> None:
        """Zero what an earlier update left for parameters that this one's backward did not reach."""
        for p in self._gathered:
            if id(p) in self._written and id(p) not in self._found:
                self._views[id(p)].zero_()
        self._written = set(self._found)

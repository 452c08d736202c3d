"""What a training step computes with in place of the networks' parameters.

Mixed precision reads every weight in another dtype. `StepWeights` keeps such a copy of all of them, written by one
multi-tensor operation an update instead of a cast for each parameter. The copies are leaves of the graph: the gradients
stay in their dtype until the backward is done, and are then collected together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from munit_fast.ops.upsample_conv import phase_taps, phase_weight
from munit_fast.reference.layers import AdaptiveInstanceNorm2d, Conv2dBlock, InstanceNorm2d
from munit_fast.reference.weight_norms import is_normed, source_of

_INSTANCE_NORMS = (InstanceNorm2d, AdaptiveInstanceNorm2d)


class _Copy(NamedTuple):
    """A parameter in the dtype of the step.

    Attributes:
        parameter: a weight [O, C, k, k] or a bias [O].
        leaf: takes the gradient; [4·O, C, 3, 3] for a weight that is summed for the four phases.
        constant: the same memory, for whoever needs no gradient.
        is_phases: whether the weight is summed.
        norm: computes the weight from the parameter, where it has a weight norm; else None.
    """

    parameter: nn.Parameter
    leaf: Tensor
    constant: Tensor
    is_phases: bool = False
    norm: Callable[[Tensor], Tensor] | None = None

    @property
    def is_computed(self) -> bool:
        """Whether it is more than a cast of the parameter."""
        return self.is_phases or self.norm is not None

    def compute(self, source: Tensor, taps: Tensor | None) -> Tensor:
        """What is copied, from the parameter's values; taps: of `phase_taps`."""
        weight = source if self.norm is None else self.norm(source)
        weight = phase_weight(weight, taps) if self.is_phases else weight
        return weight.contiguous(memory_format=torch.channels_last)


_active: ContextVar[StepWeights | None] = ContextVar("munit_fast_step_weights", default=None)


def active() -> StepWeights | None:
    """The weights of the training step that is being computed, or None outside of one."""
    # torch.compile knows no context variables.
    return None if torch.compiler.is_compiling() else _active.get()


@contextmanager
def use(weights: StepWeights | None) -> Iterator[None]:
    """Inside, the fused networks take their weights from `weights`; None: from their parameters."""
    token = _active.set(weights)
    try:
        yield
    finally:
        _active.reset(token)


class StepWeights:
    """The convolutions' parameters in the dtype that a training step computes in.

    Args:
        blocks: for each update, by name, the blocks whose fused convolutions are used, and whether each is computed as
            phases.
        dtype: of the copies; None: the networks compute with their parameters.

    Attributes:
        dtype: as given.
        unused: for each update the biases that have no influence, since an instance norm follows. They stay out of the
            graph; the gradient of each is zero.
    """

    def __init__(self, blocks: Mapping[str, Sequence[tuple[Conv2dBlock, bool]]], dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.unused: dict[str, list[nn.Parameter]] = {}
        self._copies: dict[str, list[_Copy]] = {}
        # By parameter: it, and what is computed of it, with its graph.
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        for update, its_blocks in blocks.items():
            copies, unused = self._copies.setdefault(update, []), self.unused.setdefault(update, [])
            for block, phases in its_blocks:
                conv: Any = block.conv
                weight, bias = source_of(conv), conv.bias
                assert isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter)
                is_unused = isinstance(block.norm, _INSTANCE_NORMS) and not phases
                if is_unused:
                    unused.append(bias)
                if dtype is not None:
                    norm = conv.parametrizations.weight[0] if is_normed(conv) else None
                    copies += [_copy(weight, dtype, phases, norm), *([] if is_unused else [_copy(bias, dtype)])]
        self._by_parameter = {id(c.parameter): c for copies in self._copies.values() for c in copies}

    def get(self, parameter: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The copy of a parameter in `dtype`, which takes its gradient where one is needed; None without a copy."""
        found = self._by_parameter.get(id(parameter))
        if found is None or dtype != self.dtype:
            return None
        return found.leaf if torch.is_grad_enabled() and parameter.requires_grad else found.constant

    def holds(self, parameter: Tensor) -> bool:
        """Whether there is a copy of a parameter."""
        return id(parameter) in self._by_parameter

    def refresh(self, update: str) -> None:
        """Write the copies of an update's parameters anew. Nothing of an earlier step may still be differentiated.

        Args:
            update: its name.
        """
        copies = self._copies[update]
        if not copies:
            return
        summed_one = next((copy.parameter for copy in copies if copy.is_phases), None)
        taps = None if summed_one is None else phase_taps(summed_one.device, summed_one.dtype)
        sources = []
        for copy in copies:
            source: Tensor = copy.parameter.detach()
            if copy.is_computed:
                # Not the parameter itself: what sums its gradient would live as long as this graph.
                with torch.enable_grad():
                    source.requires_grad_()
                    made = copy.compute(source, taps)
                self._made[id(copy.parameter)] = source, made
                source = made.detach()
            sources.append(source)
        with torch.no_grad():
            torch._foreach_copy_([copy.constant for copy in copies], sources)

    def forget(self, update: str) -> None:
        """Drop the gradients that a backward left in the copies: one that was interrupted, or captured and undone."""
        for copy in self._copies[update]:
            copy.leaf.grad = None

    def collect(self, update: str) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The gradients that the copies got, each with its parameter, in the copies' dtype or the parameter's.

        The copies are left without.

        Args:
            update: whose parameters.
        """
        for copy in self._copies[update]:
            grad, copy.leaf.grad = copy.leaf.grad, None
            if grad is None:
                continue
            if copy.is_computed:
                source, made = self._made[id(copy.parameter)]
                [grad] = torch.autograd.grad(made, source, grad.to(made.dtype), retain_graph=True)
            yield copy.parameter, grad


def _copy(
    parameter: nn.Parameter, dtype: torch.dtype, phases: bool = False, norm: Callable[[Tensor], Tensor] | None = None
) -> _Copy:
    o, c = parameter.shape[0], parameter.shape[1] if parameter.dim() == 4 else 0
    size = (4 * o, c, 3, 3) if phases else parameter.shape
    layout = torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
    leaf = torch.empty(size, dtype=dtype, device=parameter.device, memory_format=layout)
    return _Copy(parameter, leaf.requires_grad_(), leaf.detach(), phases, norm)

"""The weights that the networks compute with, each made once: by a weight norm, cast, summed for the phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast.models import step_weights
from munit_fast.ops import winograd
from munit_fast.ops.epilogue import is_plain_cpu
from munit_fast.ops.upsample_conv import phase_weight
from munit_fast.reference.weight_norms import is_normed, normed_modules, source_of

# The weights as they are used. Kept for the calls of one context only.
_cache: ContextVar[dict[Any, tuple[Any, Any]] | None] = ContextVar("munit_fast_weights", default=None)
_Computed = Mapping[tuple[int, bool], Tensor]  # by layer and whether gradients are on
_computed: ContextVar[_Computed] = ContextVar("munit_fast_computed_weights", default={})  # noqa: B039 (never changed)


def _shared() -> dict[Any, tuple[Any, Any]] | None:
    # torch.compile knows no context variables, and puts equal expressions together itself.
    return None if torch.compiler.is_compiling() else _cache.get()


@contextmanager
def shared_weights() -> Iterator[None]:
    """Inside, each weight is computed, cast and rearranged once for all the calls.

    Nobody may change a parameter meanwhile.
    """
    if torch.compiler.is_compiling():
        yield
        return
    token = _cache.set({})
    try:
        yield
    finally:
        _cache.reset(token)


# ---- weights that a norm computes ----


@contextmanager
def computed_once(network: nn.Module) -> Iterator[None]:
    """Inside, the weights that a norm computes are those of the beginning, however often they are read.

    Each is computed here once; not under autocast, which would round. What checkpointing runs again reads the same.
    """
    modules = [] if torch.compiler.is_compiling() else normed_modules(network)
    if not modules:
        yield
        return
    of_step, grad = step_weights.active(), torch.is_grad_enabled()
    outer = _computed.get()
    own = {
        (id(module), grad): _compute(module)
        for module in modules
        if (id(module), grad) not in outer and (of_step is None or not of_step.holds(source_of(module)))
    }
    token = _computed.set({**outer, **own})
    try:
        yield
    finally:
        _computed.reset(token)


def _compute(module: Any) -> Tensor:
    source, cache = source_of(module), _shared()
    key = ("computed", id(module), torch.is_grad_enabled(), source.requires_grad)
    if cache is not None and key in cache:
        found: Tensor = cache[key][1]
        return found
    weight: Tensor = module.weight
    if cache is not None:
        cache[key] = (module, weight)  # held, so that no other module takes its id
    return weight


def weight_of(module: Any) -> Tensor:
    """The weight of a convolution or linear layer: inside `computed_once` as that computed it."""
    if not is_normed(module) or torch.compiler.is_compiling():
        weight: Tensor = module.weight
        return weight
    found = _computed.get().get((id(module), torch.is_grad_enabled()))
    return _compute(module) if found is None else found


@contextmanager
def alone(computed: _Computed) -> Iterator[None]:
    """A context without the weights of other calls, but with computed ones: they must be there a second time, too.

    Args:
        computed: of `computed_weights`.
    """
    tokens = _cache.set(None), _computed.set(computed)
    try:
        yield
    finally:
        _cache.reset(tokens[0])
        _computed.reset(tokens[1])


def computed_weights() -> _Computed:
    """What `computed_once` has computed, for `alone`."""
    return _computed.get()


# ---- weights as the convolutions take them ----


def in_dtype(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter in `dtype`: the copy of a training step, or a cast."""
    of_step = step_weights.active()
    copy = None if of_step is None else of_step.get(parameter, dtype)
    return parameter.to(dtype) if copy is None else copy


def prepared_weight(conv: Any, dtype: torch.dtype, phases: bool = False) -> Tensor:
    """The weight in `dtype` and channels_last, summed for the four phases if asked; once in `shared_weights`."""
    source, of_step = source_of(conv), step_weights.active()
    if of_step is not None and (copy := of_step.get(source, dtype)) is not None:
        return copy
    cache, key = _shared(), (id(source), dtype, phases, torch.is_grad_enabled(), source.requires_grad)
    if cache is not None and key in cache:
        found: Tensor = cache[key][1]
        return found
    weight = weight_of(conv)
    weight = phase_weight(weight) if phases else weight
    weight = weight.to(dtype=dtype, memory_format=torch.channels_last)
    if cache is not None:
        cache[key] = (source, weight)  # held, so that no other tensor takes its id
    return weight


def planned_weight(conv: Any, plan: str, phases: bool = False) -> tuple[Tensor, Tensor | None]:
    """The weight of a convolution with a plan, in the parameter's dtype, and its transform where that is at hand."""
    source = source_of(conv)

    def weight() -> Tensor:
        return prepared_weight(conv, source.dtype, phases) if phases else weight_of(conv)

    # What a norm computes is another tensor each time: there is nothing to keep.
    if torch.is_grad_enabled() or not is_plain_cpu(source) or is_normed(conv):
        return weight(), None
    cache, key = _shared(), (id(source), plan, phases)
    if cache is not None and key in cache:  # nobody has changed the parameter since it was compared
        found: tuple[Tensor, Tensor | None] = cache[key][1]
        return found
    found = winograd.kept_weight(source, plan, phases, weight)
    if cache is not None and found[1] is not None:
        cache[key] = (source, found)
    return found

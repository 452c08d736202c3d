"""Does a module, known by its name and attributes, compute what the fused forward computes? Asked of copies of it.

The copies are small, on the CPU and in float64, with their own random parameters, so the module itself, its buffers and
hooks are not touched, it may be on any device (the meta device too), and the random state is put back.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast.accelerate.swaps import (
    MARK,
    AssignedAdaIN,
    PassedAdaIN,
    ResBlock,
    Swapped,
    channels_of,
    is_swapped,
    kind_of,
    original_class,
    spatial_dimensions,
    swap,
)

SIDES = {1: (9,), 2: (9, 8), 3: (3, 5, 4)}  # by dimensions; the published networks pad by up to 3
TOLERANCE = 1e-9


def difference(module: nn.Module, kind: type[Swapped], channels: int) -> str | None:
    """None if module.forward and that of `kind` agree in values, gradients and what they leave in the buffers.

    Otherwise what differs. Asked with one and two images, in training and in evaluation, on the CPU.

    Args:
        module: the module; left as it was.
        kind: the class whose forward it would get.
        channels: of its input.
    """
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu"),
        ):
            for count in (1, 2):
                for training in (True, False):
                    before = _outcome(module, None, kind, channels, count, training)
                    after = _outcome(module, kind, kind, channels, count, training)
                    if differing := _compare(before, after):
                        how = "training" if training else "evaluation"
                        return f"computes something else: {differing} differs on a batch of {count} in {how}"
    except Exception as error:  # a third-party forward may raise anything
        return f"could not be tried out: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None


def _outcome(
    module: nn.Module, fused: type[Swapped] | None, kind: type[Swapped], channels: int, count: int, training: bool
) -> dict[str, Tensor]:
    """What a copy gives: the result, the gradients and the buffers afterwards. `fused`: the forward it is to have."""
    random = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=random, dtype=torch.float64)

    torch.manual_seed(0)  # dropout must drop the same values both times
    twin = _copy(module, random, fused is not None)
    if fused is not None:
        swap(twin, fused, "reference")
    twin.train(training)
    buffers = {f"the buffer {name}": value for name, value in twin.named_buffers()}
    buffers_before = {name: value.clone() for name, value in buffers.items()}
    # Far from zero mean and unit variance, where wrong statistics would be nearly right.
    x = (2 * draw(count, channels, *SIDES[spatial_dimensions(module)]) + 3).requires_grad_()
    inputs = {"the gradient of x": x}
    norms = _adains(module, kind)
    styles = [tuple(draw(count, channels).requires_grad_() for _ in range(2)) for _ in norms]
    inputs |= {f"the gradient of AdaIN's {what}": value for what, value in zip(("weight", "bias") * 2, sum(styles, ()))}
    arguments: tuple[Any, ...] = ()
    if kind is PassedAdaIN:
        arguments = styles[0]
    elif any(is_passed for _, is_passed in norms):
        arguments = (list(styles),) if kind is ResBlock else (styles[0],)
    else:
        for (name, _), style in zip(norms, styles):
            adain: Any = twin.get_submodule(name)
            adain.weight, adain.bias = (value.reshape(-1) for value in style)
    y = twin(x, *arguments)
    inputs |= {f"the gradient of {name}": value for name, value in twin.named_parameters()}
    gradients = torch.autograd.grad(y, list(inputs.values()), draw(*y.shape), allow_unused=True)
    changes = {name: value - buffers_before[name] for name, value in buffers.items()}
    return {
        "the result": y.detach(),
        **{name: torch.zeros(()) if g is None else g for name, g in zip(inputs, gradients)},
        **changes,
    }


def _adains(module: nn.Module, kind: type[Swapped]) -> list[tuple[str, bool]]:
    """The AdaINs that the probe has to give a style: their names, and whether it is passed as an argument."""
    if kind in (AssignedAdaIN, PassedAdaIN):
        return [("", kind is PassedAdaIN)]
    found = [(name, kind_of(m)) for name, m in module.named_modules() if is_swapped(m)]
    return [(name, k is PassedAdaIN) for name, k in found if k in (AssignedAdaIN, PassedAdaIN)]


def _compare(before: dict[str, Tensor], after: dict[str, Tensor]) -> str | None:
    for name, expected in before.items():
        got = after[name]
        if got.shape != expected.shape and expected.dim() and got.dim():
            return f"the shape of {name}"
        if not (got - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max())):
            return name
    return None


def _copy(module: nn.Module, random: torch.Generator, swapped: bool) -> nn.Module:
    """A copy with random parameters and buffers and no hooks; `swapped`: with the fused forwards that it has inside."""
    twin = nn.Module.__new__(original_class(module))
    fresh = vars(nn.Module())
    vars(twin).update(fresh)

    def drawn(value: Tensor | None) -> Tensor | None:
        if value is None or not value.is_floating_point():
            return value if value is None else value.detach().clone()
        return torch.rand(value.shape, generator=random, dtype=torch.float64) + 0.5

    for name, value in vars(module).items():
        if name not in fresh and name != MARK:
            vars(twin)[name] = drawn(value) if _is_computed(module, name) else _copied(value)

    for name, parameter in module._parameters.items():
        value = drawn(parameter)
        twin._parameters[name] = None if value is None else nn.Parameter(value)
    for name, buffer in module._buffers.items():
        twin._buffers[name] = drawn(buffer)
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _child(module, name, child, random, swapped)
    if swapped and is_swapped(module):
        swap(twin, kind_of(module), "reference")
    return twin


def _is_computed(module: nn.Module, name: str) -> bool:
    """Whether a hook computes this tensor from a parameter: `torch.nn.utils.spectral_norm`, weight_norm, pruning.

    The trial is not about what the hook computes, so in a copy, which has no hooks, any value does.
    """
    found = isinstance(vars(module)[name], Tensor)
    return found and any(f"{name}{end}" in module._parameters for end in ("_orig", "_g"))


def _child(module: nn.Module, name: str, child: nn.Module, random: torch.Generator, swapped: bool) -> nn.Module:
    if original_class(module).__name__ != "Conv2dBlock" or name != "conv":
        return _copy(child, random, swapped)
    # A stand-in that keeps channels and size and costs nothing: the convolution may be of any kind, and large.
    channels = channels_of(module.get_submodule("norm"))
    padding: Any = getattr(module.get_submodule("pad"), "padding", (0,))
    conv = nn.Conv2d(channels, channels, 2 * padding[0] + 1, groups=channels, dtype=torch.float64)
    for parameter in conv.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
    return conv


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):  # such as AdaIN's assigned weight, which may be part of a graph
        return None
    try:
        return copy.deepcopy(value)
    except Exception:  # an open file, a lock: the forwards that are tried out do not need them
        return value

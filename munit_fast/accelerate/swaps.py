"""What an accelerated module becomes: the same object, its class exchanged for a subclass with a fused forward.

Only `module.__class__` changes, and one plain attribute appears. So parameters, buffers, hooks, the training flag, the
state_dict, references held elsewhere and `isinstance` stay as they are; the subclass carries the name of the original,
because code for MUNIT compares class names. Replacing the module objects instead would lose hooks and references, and
an assigned `module.forward` breaks pickling.

Two modules become one call in the forward of their *container*, and only while that runs: the activation after a norm,
or the padding before a convolution, is itself never changed. So a child that is called alone, indexed, sliced off,
shared, exchanged later or observed by a hook computes what it always did.
"""

from __future__ import annotations

import copyreg
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

MARK = "_munit_fast_impl"

Keywords = dict[str, Any]  # keywords of the functions in munit_fast.functional
Style = tuple[Tensor, ...]  # what AdaIN's forward takes besides x


class Swapped(nn.Module):
    """Base of the fused forwards. The names of its members start so that they meet none of the original's."""

    _munit_fast_original: ClassVar[type[nn.Module]]
    _munit_fast_impl: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        # This class is found under no import path; the original one is.
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_new, (kind_of(self), original_class(self), *reduced[1][1:]), *reduced[2:])
        return reduced


def is_swapped(module: object) -> bool:
    """Whether the module's own class, not only one that this was derived from, is one of ours."""
    return "_munit_fast_original" in vars(type(module))


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class of the module when it is not accelerated."""
    return vars(type(module)).get("_munit_fast_original", type(module))


def kind_of(module: nn.Module) -> type[Swapped]:
    """Which fused forward a swapped module has."""
    return next(kind for kind in type(module).__bases__ if issubclass(kind, Swapped))


_subclasses: dict[tuple[type[Swapped], type[nn.Module]], type[nn.Module]] = {}


def _subclass(kind: type[Swapped], original: type[nn.Module]) -> type[nn.Module]:
    if (kind, original) not in _subclasses:
        members = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
        members["_munit_fast_original"] = original
        _subclasses[kind, original] = type(original.__name__, (kind, original), members)
    return _subclasses[kind, original]


def _new(kind: type[Swapped], original: type[nn.Module], *arguments: Any) -> nn.Module:
    subclass = _subclass(kind, original)
    return subclass.__new__(subclass, *arguments)


def swap(module: nn.Module, kind: type[Swapped], impl: str) -> None:
    """Give `module` the forward of `kind`.

    Args:
        module: changed in place: its class becomes one derived from its own and `kind`.
        kind: the class with the forward.
        impl: the backend, as in `munit_fast.functional`.

    Raises:
        TypeError: the class of `module` cannot be derived from.
    """
    object.__setattr__(module, "__class__", _subclass(kind, type(module)))
    vars(module)[MARK] = impl


def unswap(module: nn.Module) -> None:
    """Undo `swap`."""
    object.__setattr__(module, "__class__", original_class(module))
    vars(module).pop(MARK, None)


def is_plain(module: nn.Module) -> bool:
    """Whether calling the module runs its forward and nothing else: a hook would not run if the call is fused away."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
        or "forward" in vars(module)
    )

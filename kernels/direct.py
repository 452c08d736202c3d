"""Launches of kernels that were launched before with such arguments, without what Triton works out at each launch.

At its first launch Triton compiles a kernel for what it specialises on: the types of the arguments, whether a pointer
is aligned to 16 bytes, which arguments are None or 1, and the constants. Here the compiled kernel is kept under the
same properties, and the next launch with them calls its launcher. Whatever is not as `_describe` knows it is left to
Triton: its interpreter, hooks, other arguments, and releases whose launcher nobody has looked at.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

RELEASES = ("3.6", "3.7", "3.8")
"""Of Triton: those whose specialisation and launcher are as `_describe` and `launch` assume."""

_CONSTANTS = (int, bool, float, str, type(None))  # types of the constants and options that a key may hold


class _Signature(NamedTuple):
    """What the properties of a kernel's arguments depend on."""

    kernel: Any  # held, so that its id stays its own
    served: bool  # whether it may be launched directly
    specialized: tuple[bool, ...]  # of each argument: whether Triton looks at an int's value
    constants: tuple[Any, ...]  # the parameters behind the arguments


class _Launcher(NamedTuple):
    """A compiled kernel's launcher and what it is called with."""

    run: Any
    function: int
    packed_metadata: Any
    constants: tuple[Any, ...]  # of the parameters behind the arguments


_signatures: dict[int, _Signature] = {}  # by the id of a kernel
_launchers: dict[tuple[Any, ...], _Launcher] = {}
_triton: Any = None  # imported by the first launch


def launch(kernel: Any, grid: tuple[int, ...], device: int, args: tuple[Any, ...], meta: dict[str, Any]) -> None:
    """Launch a kernel on the current stream of the current device.

    Args:
        kernel: a triton.jit function.
        grid: its programs; up to three axes, none of them 0.
        device: index of the current device.
        args: its arguments; the parameters behind them are constants.
        meta: its constants and launch options, by name.
    """
    signature = _signatures.get(id(kernel)) or _signature(kernel)
    if not signature.served or len(args) != len(signature.specialized) or _is_watched(kernel):
        kernel[grid](*args, **meta)
        return
    try:
        key = (device, *properties(kernel, args, meta, signature.specialized))
        launcher = _launchers.get(key)
    except TypeError:  # an argument of another type, or a constant that has no hash
        kernel[grid](*args, **meta)
        return
    if launcher is None:
        compiled = kernel[grid](*args, **meta)
        constants = _constants(signature, compiled, meta)
        if constants is not None:
            run, function, packed = compiled.run, compiled.function, compiled.packed_metadata
            _launchers[key] = _Launcher(run, function, packed, constants)
        return
    x, y, z = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
    stream = _triton.runtime.driver.active.get_current_stream(device)
    run, function, packed, constants = launcher
    run(x, y, z, stream, function, packed, None, None, None, *args, *constants)


def properties(
    kernel: Any, args: tuple[Any, ...], meta: dict[str, Any], specialized: tuple[bool, ...] | None = None
) -> tuple[Any, ...]:
    """What a compiled kernel depends on, as a key: Triton compiles the same for launches with the same properties.

    Args:
        kernel: a triton.jit function.
        args: its arguments; the tensors may be on the meta device.
        meta: its constants and launch options, by name.
        specialized: of each argument, whether Triton looks at an int's value; None: as the kernel says.

    Raises:
        TypeError: an argument of a type that no kernel of this package takes.
    """
    if specialized is None:
        specialized = (_signatures.get(id(kernel)) or _signature(kernel)).specialized
    key: list[Any] = [id(kernel), tuple(meta), tuple(meta.values())]
    _describe(key, args, specialized)
    return tuple(key)


def _describe(key: list[Any], args: tuple[Any, ...], specialized: tuple[bool, ...]) -> None:
    """Append what Triton specialises on, one entry for each argument."""
    append = key.append
    for arg, look in zip(args, specialized):
        kind = type(arg)
        if kind is Tensor or kind is Parameter:
            append((arg.dtype, "unaligned") if arg.data_ptr() & 15 else arg.dtype)
        elif kind is int:
            if -0x80000000 <= arg <= 0x7FFFFFFF:
                append(32 if not look else 1 if arg == 1 else 16 if not arg & 15 else 32)
            elif -(2**63) <= arg < 2**63:
                append(65 if look and not arg & 15 else 64)
            else:
                raise TypeError
        elif arg is None or kind is float:
            append(kind)
        elif kind is tuple:
            inner: list[Any] = []
            _describe(inner, arg, (True,) * len(arg))  # do_not_specialize does not reach into a tuple
            append(tuple(inner))
        else:
            raise TypeError


def _is_watched(kernel: Any) -> bool:
    """Whether somebody is to see Triton's launches, or has turned on what changes what is compiled."""
    runtime = _triton.knobs.runtime
    return bool(
        kernel.pre_run_hooks
        or getattr(runtime.launch_enter_hook, "calls", True)
        or getattr(runtime.launch_exit_hook, "calls", True)
        or runtime.add_stages_inspection_hook
        or runtime.debug
        or _triton.knobs.compilation.instrumentation_mode
    )


def _signature(kernel: Any) -> _Signature:
    """Look at a kernel once."""
    global _triton
    import triton

    _triton = triton
    found = _Signature(kernel, False, (), ())
    if type(kernel) is triton.runtime.JITFunction:
        count = next((p.num for p in kernel.params if p.is_constexpr), len(kernel.params))
        front, constants = kernel.params[:count], tuple(kernel.params[count:])
        known = torch.version.hip is None and triton.__version__.startswith(tuple(f"{r}." for r in RELEASES))
        served = known and not kernel.debug and all(p.is_constexpr for p in constants)
        found = _Signature(kernel, served, tuple(not p.do_not_specialize for p in front), constants)
    _signatures[id(kernel)] = found
    return found


def _constants(signature: _Signature, compiled: Any, meta: dict[str, Any]) -> tuple[Any, ...] | None:
    """The values of the parameters behind the arguments; None where a launch is Triton's own to repeat."""
    plain = (
        type(compiled) is _triton.compiler.CompiledKernel
        and compiled.metadata.target.backend == "cuda"
        # Triton refuses a launch after one of these has changed; constants do not.
        and all(isinstance(v, _triton.language.constexpr) for v, _ in signature.kernel.used_global_vals.values())
        and all(type(value) in _CONSTANTS for value in meta.values())
    )
    return tuple(meta.get(p.name, p.default) for p in signature.constants) if plain else None

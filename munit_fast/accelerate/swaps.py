"""What an accelerated module becomes: the same object, its class exchanged for a subclass with a fused forward.

Only `module.__class__` changes, and one plain attribute appears. So parameters, buffers, hooks, the training flag, the
state_dict, references held elsewhere and `isinstance` stay as they are; the subclass carries the name of the original,
because code for MUNIT compares class names. Replacing the module objects instead would lose hooks and references, and
an assigned `module.forward` breaks pickling.

Two modules become one call in the forward of their *container*, and only while that runs: the activation after a norm
is itself never changed. So a child that is called alone, indexed, sliced off, shared, exchanged later or observed by a
hook computes what it always did.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from munit_fast import functional
from munit_fast.ops.backends import BACKENDS, choose

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


ACTIVATIONS: dict[type, Callable[[Any], Keywords]] = {
    nn.ReLU: lambda m: {"act": "relu"},
    nn.LeakyReLU: lambda m: {"act": "lrelu", "slope": m.negative_slope},
    nn.PReLU: lambda m: {"act": "prelu", "slope": m.weight},
    nn.SELU: lambda m: {"act": "selu"},
    nn.Tanh: lambda m: {"act": "tanh"},
    nn.SiLU: lambda m: {"act": "silu"},
}
_PADDINGS: dict[type, str] = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zero",
}


def activation(module: Any) -> Keywords | None:
    """The activation as keywords, or None if it has no fused form; a subclass may do anything, so the class counts."""
    keywords = ACTIVATIONS.get(type(module))
    return None if keywords is None else keywords(module)


def padding(module: Any) -> Keywords | None:
    """Equal padding of all four sides as keywords, or None."""
    mode = _PADDINGS.get(type(module))
    if mode is None or (mode == "zero" and module.value != 0):
        return None
    left, *others = module.padding
    return None if left < 0 or any(side != left for side in others) else {"pad": left, "pad_mode": mode}


def followers(modules: Sequence[nn.Module]) -> tuple[Keywords, int]:
    """What the modules after a norm ask of it, as keywords (activation, then padding), and how many they are."""
    keywords: Keywords = {}
    used = 0
    for asked in (activation, padding):
        if used < len(modules) and is_plain(modules[used]) and (found := asked(modules[used])) is not None:
            keywords |= found
            used += 1
    return keywords, used


@cache
def _is_fast(device: torch.device, dtype: torch.dtype) -> bool:
    return choose("auto", device, dtype) is not BACKENDS["reference"]


# torch.compile calls it once instead of tracing into the backends.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a backend other than the formulas serves these tensors; if not, the log says once why."""
    return _is_fast(device, dtype)


class Norm(Swapped):
    """A norm; `_munit_fast_fused` also does what follows it."""

    num_features: int
    eps: float

    def _munit_fast_call(self, x: Tensor, style: Style, keywords: Keywords) -> Tensor | None:
        raise NotImplementedError

    def _munit_fast_fused(self, x: Any, style: Style, keywords: Keywords) -> Tensor | None:
        """norm(x, *style), activation, residual, padding: [N, C, H, W] -> [N, C, H + 2·pad, W + 2·pad].

        None if the fused function is not for these tensors (no batch, empty, complex, another number of channels, ...):
        then the modules run one by one, and compute or fail as they always did. They also do where only the formulas
        of the reference would serve, which are slower than PyTorch's own operators.
        """
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
            return None
        n, c, h, w = x.shape
        residual = keywords.get("residual")
        if n == 0 or h == 0 or w == 0 or c != self.num_features:
            return None
        if keywords.get("pad_mode") == "reflect" and keywords["pad"] >= min(h, w):
            return None
        if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
            return None
        if self._munit_fast_impl == "auto" and not is_fast(x.device, x.dtype):
            return None
        return self._munit_fast_call(x, style, {"eps": self.eps, "impl": self._munit_fast_impl, **keywords})

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """The norm as one fused operation, or the module's own forward where that cannot be."""
        y = None if keywords or not arguments else self._munit_fast_fused(arguments[0], arguments[1:], {})
        return super().forward(*arguments, **keywords) if y is None else y


class InstanceNorm(Norm):
    """`torch.nn.InstanceNorm2d` without running statistics."""

    weight: Tensor | None
    bias: Tensor | None

    def _munit_fast_call(self, x: Tensor, style: Style, keywords: Keywords) -> Tensor | None:
        if style or x.shape[2] * x.shape[3] == 1:
            return None
        return functional.instance_norm(x, self.weight, self.bias, **keywords)


class LayerNorm(Norm):
    """MUNIT's layer norm."""

    affine: bool
    gamma: Tensor
    beta: Tensor

    def _munit_fast_call(self, x: Tensor, style: Style, keywords: Keywords) -> Tensor | None:
        if style or x.shape[1] * x.shape[2] * x.shape[3] == 1:
            return None
        weight, bias = (self.gamma, self.beta) if self.affine else (None, None)
        return functional.layer_norm2d(x, weight, bias, **keywords)


def _adain(x: Tensor, weight: Any, bias: Any, keywords: Keywords) -> Tensor | None:
    n, c, h, w = x.shape
    for value in (weight, bias):
        if not isinstance(value, Tensor) or value.numel() != n * c or not value.is_floating_point():
            return None
    return None if h * w == 1 else functional.adain(x, weight.reshape(n, c), bias.reshape(n, c), **keywords)


class AssignedAdaIN(Norm):
    """AdaIN in the published manner: flat weight and bias [N·C], assigned to the module before it is called."""

    weight: Tensor | None
    bias: Tensor | None

    def _munit_fast_call(self, x: Tensor, style: Style, keywords: Keywords) -> Tensor | None:
        return None if style else _adain(x, self.weight, self.bias, keywords)


class PassedAdaIN(Norm):
    """AdaIN with weight and bias [N, C] as arguments."""

    def _munit_fast_call(self, x: Tensor, style: Style, keywords: Keywords) -> Tensor | None:
        if len(style) != 2 or any(value.shape != x.shape[:2] for value in style):
            return None
        return _adain(x, *style, keywords)


def _run(modules: Sequence[Any], x: Any) -> Any:
    i = 0
    while i < len(modules):
        norm, y = modules[i], None
        i += 1
        if isinstance(norm, Norm) and is_plain(norm):
            keywords, used = followers(modules[i : i + 2])
            if used and (y := norm._munit_fast_fused(x, (), keywords)) is not None:
                i += used
        x = norm(x) if y is None else y
    return x


class Sequential(Swapped):
    """`torch.nn.Sequential` that runs a norm, the activation after it and the padding after that as one."""

    def forward(self, input: Any) -> Any:
        """The modules in order, with those fused that can be."""
        return _run(list(self._modules.values()), input)


class Block(Swapped):
    """MUNIT's Conv2dBlock: pad, convolution, then norm and activation as one."""

    pad: nn.Module
    conv: nn.Module
    norm: nn.Module | None
    activation: nn.Module | None

    def _munit_fast_fused(self, x: Tensor, adain: Any, residual: Tensor | None = None) -> Tensor | None:
        """block(x, adain) + residual; None if there is nothing to fuse."""
        norm, act = self.norm, self.activation
        if not isinstance(norm, Norm) or not is_plain(norm) or (act is None and residual is None):
            return None
        asked: Keywords | None = {}
        if act is not None:
            asked = activation(act) if is_plain(act) else None
        if asked is None or isinstance(norm, PassedAdaIN) != (adain is not None):
            return None
        style = () if adain is None else tuple(adain)
        x = self.conv(self.pad(x))
        y = norm._munit_fast_fused(x, style, asked if residual is None else {**asked, "residual": residual})
        if y is not None:
            return y
        y = norm(x, *style)
        y = y if act is None else act(y)
        return y if residual is None else y + residual

    def forward(self, x: Tensor, *rest: Any, **keywords: Any) -> Tensor:
        """The block with its norm and activation fused, or the module's own forward where that cannot be."""
        adain = keywords.get("adain", rest[0] if rest else None)
        y = self._munit_fast_fused(x, adain) if len(rest) + len(keywords) <= 1 else None
        return super().forward(x, *rest, **keywords) if y is None else y


# Those of `torch.amp.is_autocast_available`, which torch.compile cannot trace in torch 2.11.
_AUTOCAST_DEVICES = tuple(
    name for name in ("cpu", "cuda", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(name)
)


def _may_join(x: Any, chain: nn.Module, last: nn.Module) -> bool:
    """Whether the sum with x can move into `last`, the end of `chain`.

    Where autocast makes the convolutions' dtype another than x's, an original that adds in place and one that does not
    give different dtypes: only its own forward knows.
    """
    if not isinstance(x, Tensor) or not (is_plain(chain) and is_plain(last)):
        return False
    device = x.device.type
    casts = device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
    return not casts or x.dtype == torch.get_autocast_dtype(device)


class ResBlock(Swapped):
    """MUNIT's residual block, two Conv2dBlocks: the sum joins the norm of the second."""

    model: nn.Sequential

    def forward(self, x: Tensor, *rest: Any, **keywords: Any) -> Tensor:
        """The block with its sum fused into the last norm, or the module's own forward where that cannot be."""
        blocks = list(self.model._modules.values())
        last = blocks[-1] if len(blocks) == 2 else None
        if not isinstance(last, Block) or not _may_join(x, self.model, last):
            return super().forward(x, *rest, **keywords)
        first: Any = blocks[0]
        style_1, style_2 = keywords.get("adain", rest[0] if rest else None) or (None, None)
        y = first(x) if style_1 is None else first(x, style_1)
        joined = last._munit_fast_fused(y, style_2, residual=x)
        if joined is not None:
            return joined
        return (last(y) if style_2 is None else last(y, style_2)) + x


class ResnetBlock(Swapped):
    """CycleGAN's residual block, x + conv_block(x): the sum joins the last norm of `conv_block`."""

    conv_block: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        """The block with its sum fused into the last norm, or the module's own forward where that cannot be."""
        *modules, last = self.conv_block._modules.values()
        if not isinstance(last, Norm) or not _may_join(x, self.conv_block, last):
            return super().forward(x)
        y = _run(modules, x)
        joined = last._munit_fast_fused(y, (), {"residual": x})
        return x + last(y) if joined is None else joined

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
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from munit_fast import ops
from munit_fast.ops import formulas, winograd
from munit_fast.ops.backends import BACKENDS, choose
from munit_fast.ops.fused_conv import ConvOutput, EpilogueArgs
from munit_fast.ops.planned_conv import planned_conv, plans_of
from munit_fast.ops.spatial import as_image, from_image
from munit_fast.ops.spec import EpilogueSpec

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
    nn.GELU: lambda m: {"act": "gelu_tanh" if m.approximate == "tanh" else "gelu"},
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


def channels_of(norm: Any) -> int:
    """The channels of a norm's input."""
    channels: int = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    return channels


def spatial_dimensions(module: nn.Module) -> int:
    """How many spatial dimensions the input of a norm has; of a group norm, which takes any number, those of images."""
    if isinstance(module, nn.InstanceNorm1d):
        return 1
    return 3 if isinstance(module, nn.InstanceNorm3d) else 2


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def is_idle(module: Any) -> bool:
    """Whether the module returns its input, now: an Identity, or a dropout that drops nothing or is in evaluation."""
    return type(module) is nn.Identity or (type(module) in _DROPOUTS and (module.p == 0 or not module.training))


def followers(norm: nn.Module, modules: Sequence[nn.Module]) -> tuple[Keywords, int]:
    """What the modules after a norm ask of it, as keywords (activation, then padding), and how many they are.

    What is idle between them is counted too: MONAI has a dropout of nothing before each activation.
    """
    keywords: Keywords = {}
    used = 0
    for asked in (activation, padding) if spatial_dimensions(norm) == 2 else (activation,):
        at = used
        while at < len(modules) and is_idle(modules[at]) and is_plain(modules[at]):
            at += 1
        if at < len(modules) and is_plain(modules[at]) and (found := asked(modules[at])) is not None:
            keywords |= found
            used = at + 1
    return keywords, used


@cache
def _is_served(impl: str, device: torch.device, dtype: torch.dtype) -> bool:
    try:
        return choose(impl, device, dtype) is not BACKENDS["reference"] or impl != "auto"
    except RuntimeError as error:
        raise RuntimeError(f"{error}; report.restore() gives the network its own operators again") from None


# torch.compile calls it once instead of tracing into the backends.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_served(impl: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether to run these tensors fused: with "auto" not where only the formulas would serve; the log says once why.

    Raises:
        RuntimeError: another `impl` does not serve them.
    """
    return _is_served(impl, device, dtype)


# Those of `torch.amp.is_autocast_available`, which torch.compile cannot trace in torch 2.11.
_AUTOCAST_DEVICES = tuple(
    name for name in ("cpu", "cuda", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(name)
)


def _cast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast, where it is on, casts x to for a convolution."""
    device = x.device.type
    casts = device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if casts else None


def _is_widened(y: Tensor, keywords: Keywords) -> bool:
    """Whether autocast runs the padding among these keywords in float32: on CPUs, unless it pads with zeros."""
    return keywords.get("pad_mode", "zero") != "zero" and y.device.type == "cpu" and _cast_dtype(y) == y.dtype


def _narrows(following: Sequence[nn.Module]) -> bool:
    """Whether a convolution follows, which autocast gives the lower precision again."""
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    return any(is_plain(m) and original_class(m) in convolutions for m in following)


class Norm(Swapped):
    """A norm; `_munit_fast_fused` also does what follows it."""

    eps: float

    def _munit_fast_takes(self, x: Tensor) -> bool:
        """Whether the norm is one of tensors with x's dimensions and channels."""
        return x.dim() == spatial_dimensions(self) + 2 and x.shape[1] == channels_of(self)

    def _munit_fast_groups(self) -> int:
        """Of channels, of a group norm; else 1."""
        return 1

    def _munit_fast_input(self, x: Tensor) -> Tensor:
        """x in the dtype in which autocast would have the norm."""
        return x

    def _munit_fast_parameters(self, x: Tensor, style: Style) -> tuple[str, Tensor | None, Tensor | None] | None:
        """The norm as `munit_fast.ops` names it, its weight and bias; None if x or the style is not for it."""
        raise NotImplementedError

    def _munit_fast_args(self, x: Any, style: Style, keywords: Keywords) -> EpilogueArgs | None:
        """The norm and what follows it as one epilogue, or None if that is not for these tensors.

        It is not without a batch, for empty or complex tensors, parameters of another size, and so on: then the modules
        run one by one, and compute or fail as they always did. They also do where only the formulas of the reference
        would serve, which are slower than PyTorch's own operators.
        """
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point() or x.layout != torch.strided:
            return None
        n, _, h, w = x.shape
        if n == 0 or h == 0 or w == 0:
            return None
        if keywords.get("pad_mode") == "reflect" and keywords["pad"] >= min(h, w):
            return None
        if not isinstance(self.eps, (int, float)) or not 0 <= self.eps < math.inf:
            return None
        if keywords.get("act") == "prelu":  # refuses to mix dtypes; and under autocast it casts, alone of these
            cast = _cast_dtype(x)
            if x.dtype != (keywords["slope"].dtype if cast is None else cast):
                return None
        if not is_served(self._munit_fast_impl, x.device, x.dtype):
            return None
        parameters = self._munit_fast_parameters(x, style)
        if parameters is None:
            return None
        norm, weight, bias = parameters
        slope = keywords.get("slope", 0.0)
        slopes = slope if isinstance(slope, Tensor) else None
        spec = EpilogueSpec(
            norm,
            self.eps,
            keywords.get("act", "none"),
            0.0 if slopes is not None else slope,
            1,
            keywords.get("pad", 0),
            keywords.get("pad_mode", "zero"),
            self._munit_fast_groups(),
        )
        args = EpilogueArgs(weight, bias, slopes, spec, self._munit_fast_impl)
        return args if _fits(args, x) else None

    def _munit_fast_fused(self, output: ConvOutput, style: Style, keywords: Keywords) -> Tensor | None:
        """norm(z, *style), activation, residual, padding: [N, C, H, W] -> [N, C, H + 2·pad, W + 2·pad]; or None."""
        x, stats = output
        if not isinstance(x, Tensor) or x.dim() < 2 or not self._munit_fast_takes(x):
            return None
        if x.dim() != 4 and "pad" in keywords:
            return None
        if formulas.are_needed():  # PyTorch's own operators are these
            return None
        residual = keywords.get("residual")
        if residual is not None and (residual.shape, residual.dtype, residual.device) != (x.shape, x.dtype, x.device):
            return None
        image = as_image(x)
        args = self._munit_fast_args(image, style, keywords)
        if args is None:
            return None
        if not (image.is_contiguous() or image.is_contiguous(memory_format=torch.channels_last)):
            image = image.contiguous()
        residual = None if residual is None else as_image(residual)
        y = ops.epilogue(image, args.weight, args.bias, residual, args.slopes, args.spec, args.impl, stats)
        return from_image(y, x)

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """The norm as one fused operation, or the module's own forward where that cannot be."""
        y = None
        if arguments and not keywords and isinstance(arguments[0], Tensor):
            y = self._munit_fast_fused(ConvOutput(self._munit_fast_input(arguments[0])), arguments[1:], {})
        return super().forward(*arguments, **keywords) if y is None else y


def _fits(args: EpilogueArgs, x: Tensor) -> bool:
    n, c = x.shape[:2]
    tensors = [(args.weight, ((c,), (n, c))), (args.bias, ((c,), (n, c))), (args.slopes, ((1,), (c,)))]
    return all(
        t is None or (t.shape in shapes and t.device == x.device and t.is_floating_point()) for t, shapes in tensors
    )


def _suits(parameter: Tensor, x: Tensor) -> bool:
    """Whether PyTorch's instance or group norm takes this weight or bias for x."""
    mixed = parameter.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)
    return parameter.shape == x.shape[1:2] and (parameter.dtype == x.dtype or mixed)


class InstanceNorm(Norm):
    """`torch.nn.InstanceNorm1d`, 2d or 3d without running statistics."""

    weight: Tensor | None
    bias: Tensor | None
    track_running_stats: bool
    running_mean: Tensor | None
    running_var: Tensor | None

    def _munit_fast_parameters(self, x: Tensor, style: Style) -> tuple[str, Tensor | None, Tensor | None] | None:
        if style or x.shape[2] * x.shape[3] == 1:
            return None
        if self.track_running_stats or self.running_mean is not None or self.running_var is not None:
            return None  # switched on since
        if any(t is not None and not _suits(t, x) for t in (self.weight, self.bias)):
            return None
        return "instance", self.weight, self.bias


# Where autocast computes group norms in float32, whatever it is given.
_WIDE_GROUP_NORMS = ("cuda",)


class GroupNorm(Norm):
    """`torch.nn.GroupNorm`."""

    num_groups: int
    weight: Tensor | None
    bias: Tensor | None

    def _munit_fast_takes(self, x: Tensor) -> bool:
        return x.dim() <= 5 and x.shape[1] % self.num_groups == 0

    def _munit_fast_groups(self) -> int:
        return self.num_groups

    def _munit_fast_input(self, x: Tensor) -> Tensor:
        return x.float() if x.device.type in _WIDE_GROUP_NORMS and _cast_dtype(x) == x.dtype else x

    def _munit_fast_parameters(self, x: Tensor, style: Style) -> tuple[str, Tensor | None, Tensor | None] | None:
        if style or x.numel() == self.num_groups:
            return None
        if any(t is not None and not _suits(t, x) for t in (self.weight, self.bias)):
            return None
        return "group", self.weight, self.bias


class LayerNorm(Norm):
    """MUNIT's layer norm."""

    affine: bool
    gamma: Tensor
    beta: Tensor

    def _munit_fast_parameters(self, x: Tensor, style: Style) -> tuple[str, Tensor | None, Tensor | None] | None:
        if style or x.shape[1] * x.shape[2] * x.shape[3] == 1:
            return None
        return ("layer", self.gamma, self.beta) if self.affine else ("layer", None, None)


def _adain(x: Tensor, weight: Any, bias: Any) -> tuple[str, Tensor | None, Tensor | None] | None:
    n, c, h, w = x.shape
    for value in (weight, bias):
        if not isinstance(value, Tensor) or value.numel() != n * c or not value.is_floating_point():
            return None
    return None if h * w == 1 else ("instance", weight.reshape(n, c), bias.reshape(n, c))


class AssignedAdaIN(Norm):
    """AdaIN in the published manner: flat weight and bias [N·C], assigned to the module before it is called."""

    weight: Tensor | None
    bias: Tensor | None

    def _munit_fast_parameters(self, x: Tensor, style: Style) -> tuple[str, Tensor | None, Tensor | None] | None:
        return None if style else _adain(x, self.weight, self.bias)


class PassedAdaIN(Norm):
    """AdaIN with weight and bias [N, C] as arguments."""

    def _munit_fast_parameters(self, x: Tensor, style: Style) -> tuple[str, Tensor | None, Tensor | None] | None:
        if len(style) != 2 or any(value.shape != x.shape[:2] for value in style):
            return None
        return _adain(x, *style)


_PADDING_MODES = {"zeros": "zero", "reflect": "reflect", "replicate": "replicate"}
_PLANNED = {(plan.side, plan.stride) for plan in winograd.PLANS.values()}  # kernel and stride


class Geometry(NamedTuple):
    """A convolution that can have a plan: its stride, pixels of padding and their mode."""

    stride: int
    pad: int
    pad_mode: str


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, int) else tuple(value)


def geometry(conv: Any) -> Geometry | str:
    """The geometry of a `torch.nn.Conv2d`, or why Winograd's algorithms cannot compute it."""
    (rows, columns), (stride, stride_x), mode = _pair(conv.kernel_size), _pair(conv.stride), conv.padding_mode
    if rows != columns or stride != stride_x or (rows, stride) not in _PLANNED:
        return f"{rows}×{columns}, stride {stride}: only 3×3 with stride 1 and 4×4 with stride 2 are planned"
    if conv.groups != 1:
        return f"has groups={conv.groups}"
    if _pair(conv.dilation) != (1, 1):
        return f"has dilation={conv.dilation}"
    if mode not in _PADDING_MODES:
        return f"has padding_mode={mode!r}"
    if mode != "zeros":
        sides = tuple(conv._reversed_padding_repeated_twice)  # what its forward reads
    elif isinstance(conv.padding, str):
        sides = ((rows - 1) // 2, rows // 2) if conv.padding == "same" else (0, 0)
    else:
        sides = _pair(conv.padding)
    if any(side != sides[0] for side in sides):
        return f"has padding={conv.padding}, not equal on all sides"
    return Geometry(stride, sides[0], _PADDING_MODES[mode])


def _is_plain_tensor(t: Any) -> bool:
    """Whether it is a tensor and nothing derived from it, which may give operators another meaning."""
    return type(t) in (Tensor, nn.Parameter)


def _is_channels_last(t: Tensor) -> bool:
    return t.stride(1) == 1 and t.shape[1] > 1


class Conv2d(Swapped):
    """`torch.nn.Conv2d` with kernel 3×3 and stride 1, or 4×4 and stride 2: by Winograd's algorithms on CPUs."""

    weight: Tensor
    bias: Tensor | None

    def _munit_fast_convolved(
        self, output: ConvOutput, epilogue: EpilogueArgs | None, outer: Keywords, y_norm: str
    ) -> ConvOutput | None:
        """conv(pad(epilogue(z))), channels_last, with the statistics that a norm after it needs.

        None where there is no plan for these tensors, and wherever PyTorch would raise.

        Args:
            output: z, with its statistics where they are at hand.
            epilogue: what stands before the convolution, without padding.
            outer: padding before the convolution, as keywords, where it has none itself.
            y_norm: the norm that follows: "instance", "layer" or "none".
        """
        x, weight, bias = output.z, self.weight, self.bias
        if not (_is_plain_tensor(x) and _is_plain_tensor(weight)) or x.dim() != 4 or x.numel() == 0:
            return None
        if bias is not None and not (_is_plain_tensor(bias) and bias.dtype == torch.float32):
            return None
        found = geometry(self)
        if isinstance(found, str) or x.shape[1] != weight.shape[1] or formulas.are_needed():
            return None
        pad, mode = (outer["pad"], outer["pad_mode"]) if outer else (found.pad, found.pad_mode)
        smallest = min(x.shape[2:])
        if (mode == "reflect" and pad >= smallest) or smallest + 2 * pad < weight.shape[2]:
            return None
        plans = plans_of(x, weight, found.stride, pad, self._munit_fast_impl)
        if plans.result is None:
            return None
        return planned_conv(output, epilogue, weight, bias, plans, pad, mode, y_norm)

    def forward(self, input: Any) -> Any:
        """The convolution by its plan, or the module's own forward where there is none."""
        y = self._munit_fast_convolved(ConvOutput(input), None, {}, "none") if isinstance(input, Tensor) else None
        if y is None:
            return super().forward(input)
        return y.z if _is_channels_last(input) or _is_channels_last(self.weight) else y.z.contiguous()


def _norm_name(module: Any) -> str:
    """The statistics that a module wants of its input, if a convolution can give them."""
    if not isinstance(module, Norm) or isinstance(module, GroupNorm) or not is_plain(module):
        return "none"
    return "layer" if isinstance(module, LayerNorm) else "instance"


class Lead(NamedTuple):
    """What stands before a convolution and becomes one call with it.

    Attributes:
        length: how many modules that are.
        inner: the activation of a norm, as keywords; None where there is no norm.
        outer: the padding, as keywords.
    """

    length: int
    inner: Keywords | None
    outer: Keywords


def lead(modules: Sequence[Any]) -> Lead | None:
    """[norm, activation,] [padding,] before the convolution that they lead to; None if they do not, or are watched."""
    inner, outer, length = None, {}, 0
    if isinstance(modules[0], Norm):
        if spatial_dimensions(modules[0]) != 2:
            return None
        keywords, used = followers(modules[0], modules[1:])
        outer = {name: value for name, value in keywords.items() if name.startswith("pad")}
        inner, length = {name: value for name, value in keywords.items() if name not in outer}, 1 + used
    elif (found := padding(modules[0])) is not None:
        outer, length = found, 1
    conv = modules[length] if length < len(modules) else None
    if not isinstance(conv, Conv2d) or not all(is_plain(module) for module in modules[: length + 1]):
        return None
    own = geometry(conv)
    return None if isinstance(own, str) or (outer and own.pad) else Lead(length, inner, outer)


def _convolved(modules: Sequence[Any], after: Any, output: ConvOutput) -> tuple[ConvOutput, int] | None:
    """A convolution with what leads to it at the head of `modules` as one call, and how many modules these are.

    None if that is not what stands there, or if the convolution has no plan for these tensors.
    """
    found = lead(modules) if isinstance(output.z, Tensor) else None
    if found is None:
        return None
    conv, args = modules[found.length], None
    if found.inner is not None:
        norm = modules[0]
        args = norm._munit_fast_args(output.z, (), found.inner) if norm._munit_fast_takes(output.z) else None
        if args is None or args.impl != conv._munit_fast_impl:
            return None
    following = [*modules[found.length + 1 :], after]
    result = conv._munit_fast_convolved(output, args, found.outer, _norm_name(following[0]))
    return None if result is None else (result, found.length + 1)


def _run(modules: Sequence[Any], x: Any, after: Any = None) -> ConvOutput:
    """The modules in order, with those fused that can be, and the statistics that `after`, the next one, may need."""
    i, output = 0, ConvOutput(x)
    moved = False  # whether the tensor is channels_last though PyTorch's would not be: between fused calls only
    while i < len(modules):
        if (joined := _convolved(modules[i:], after, output)) is not None:
            weight = modules[i + joined[1] - 1].weight
            moved = not (_is_channels_last(weight) or (_is_channels_last(output.z) and not moved))
            output, used = joined
            i += used
            continue
        module, y = modules[i], None
        i += 1
        if isinstance(module, Norm) and is_plain(module):
            keywords, used = followers(module, modules[i:])
            if isinstance(output.z, Tensor) and not _narrows(modules[i + used : i + used + 1]):
                output = output._replace(z=module._munit_fast_input(output.z))
            if (used or output.stats is not None) and (y := module._munit_fast_fused(output, (), keywords)) is not None:
                i += used
                if _is_widened(y, keywords) and not _narrows(modules[i : i + 1]):
                    y = y.float()
        if y is None:
            y, moved = module(output.z.contiguous() if moved else output.z), False
        output = ConvOutput(y)
    return output._replace(z=output.z.contiguous()) if moved else output


class Sequential(Swapped):
    """`torch.nn.Sequential` that runs a norm, the activation after it and the padding after that as one.

    With the convolution after that too, where it has a plan.
    """

    def forward(self, input: Any) -> Any:
        """The modules in order, with those fused that can be."""
        return _run(list(self._modules.values()), input).z


class Block(Swapped):
    """MUNIT's Conv2dBlock: pad and convolution, then norm and activation as one."""

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
        output = _run([self.pad, self.conv], x, norm)
        output = output._replace(z=norm._munit_fast_input(output.z))
        y = norm._munit_fast_fused(output, style, asked if residual is None else {**asked, "residual": residual})
        if y is not None:
            return y
        y = norm(output.z, *style)
        y = y if act is None else act(y)
        return y if residual is None else y + residual

    def forward(self, x: Tensor, *rest: Any, **keywords: Any) -> Tensor:
        """The block with its norm and activation fused, or the module's own forward where that cannot be."""
        adain = keywords.get("adain", rest[0] if rest else None)
        y = self._munit_fast_fused(x, adain) if len(rest) + len(keywords) <= 1 else None
        return super().forward(x, *rest, **keywords) if y is None else y


def _may_join(x: Any, chain: nn.Module, last: nn.Module) -> bool:
    """Whether the sum with x can move into `last`, the end of `chain`.

    Where autocast makes the convolutions' dtype another than x's, an original that adds in place and one that does not
    give different dtypes: only its own forward knows.
    """
    if not isinstance(x, Tensor) or not (is_plain(chain) and is_plain(last)):
        return False
    return _cast_dtype(x) in (None, x.dtype)


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
        y = _run(modules, x, last)
        y = y._replace(z=last._munit_fast_input(y.z))
        joined = last._munit_fast_fused(y, (), {"residual": x})
        return x + last(y.z) if joined is None else joined

"""The fused forwards of norms, and what a norm does besides: the activation after it, and the padding after that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast import ops
from munit_fast.accelerate.swaps import Keywords, Style, Swapped, is_plain, original_class
from munit_fast.ops import formulas
from munit_fast.ops.backends import BACKENDS, choose
from munit_fast.ops.fused_conv import ConvOutput, EpilogueArgs
from munit_fast.ops.spatial import as_image, from_image
from munit_fast.ops.spec import EpilogueSpec

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


def cast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast, where it is on, casts x to for a convolution."""
    device = x.device.type
    casts = device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if casts else None


def is_widened(y: Tensor, keywords: Keywords) -> bool:
    """Whether autocast runs the padding among these keywords in float32: on CPUs, unless it pads with zeros."""
    return keywords.get("pad_mode", "zero") != "zero" and y.device.type == "cpu" and cast_dtype(y) == y.dtype


_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def narrows(following: Sequence[nn.Module]) -> bool:
    """Whether a convolution follows, which autocast gives the lower precision again."""
    return any(is_plain(m) and original_class(m) in _CONVOLUTIONS for m in following)


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
            cast = cast_dtype(x)
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
        if formulas.are_needed():  # PyTorch's own operators are these
            return None
        if not isinstance(x, Tensor) or not self._munit_fast_takes(x):
            return None
        if x.dim() != 4 and "pad" in keywords:
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
        groups = self.num_groups
        return 2 <= x.dim() <= 5 and type(groups) is int and groups > 0 and x.shape[1] % groups == 0

    def _munit_fast_groups(self) -> int:
        return self.num_groups

    def _munit_fast_input(self, x: Tensor) -> Tensor:
        return x.float() if x.device.type in _WIDE_GROUP_NORMS and cast_dtype(x) == x.dtype else x

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

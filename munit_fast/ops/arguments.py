"""Checks of what users pass to `munit_fast.functional`: each error names the argument, what was seen, what would do."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from munit_fast.ops.backends import IMPLEMENTATIONS
from munit_fast.ops.spec import ACTIVATIONS, PAD_MODES, EpilogueSpec

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


_SHAPES = {2: "[N, C]", 3: "[N, C, L]", 4: "[N, C, H, W]", 5: "[N, C, D, H, W]"}


def epilogue_spec(
    norm: str,
    x: Tensor,
    act: str,
    slope: float | Tensor,
    residual: Tensor | None,
    pad: int,
    pad_mode: str,
    impl: str,
    *,
    eps: float = 0.0,
    block: int = 1,
    groups: int = 1,
    dimensions: tuple[int, ...] = (4,),
) -> EpilogueSpec:
    """The options of an epilogue of x, checked together with x, the residual and the slope.

    Args:
        norm: one of NORMS.
        x: as the public function has it.
        act: as the public function has it.
        slope: as the public function has it.
        residual: as the public function has it.
        pad: as the public function has it.
        pad_mode: as the public function has it.
        impl: as the public function has it.
        eps: as the public function has it.
        block: side of the blocks of depth-to-space.
        groups: of channels, of the norm "group".
        dimensions: the numbers of dimensions that x may have.

    Raises:
        ValueError: an option, or the shape of a tensor, does not fit.
        TypeError: the type or dtype of one does not fit.
    """
    check_floating("x", x)
    if x.dim() not in dimensions:
        raise ValueError(
            f"x must be {' or '.join(_SHAPES[d] for d in dimensions)}; got {x.dim()} dimensions, {list(x.shape)}"
        )
    c = x.shape[1]
    if any(size == 0 for size in x.shape):
        raise ValueError(f"x must not be empty (a batch needs at least one image); got {list(x.shape)}")
    check_names(act, pad_mode, impl)
    eps = real_number("eps", eps)
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be a finite number, not negative; got {eps}")
    pad = whole_number("pad", pad, 0)
    if pad and x.dim() != 4:
        raise ValueError(f"pad must be 0 where x is not [N, C, H, W]; got pad={pad} for {list(x.shape)}")
    if c % block**2:
        raise ValueError(f"depth_to_space={block} needs channels divisible by {block**2}; x has {c}")
    if pad and pad_mode == "reflect" and pad >= block * min(h := x.shape[2], w := x.shape[3]):
        raise ValueError(
            f"pad must be smaller than each side to reflect; got pad={pad} for {block * h}×{block * w} "
            "(use a larger image, or pad_mode 'replicate' or 'zero')"
        )
    if residual is not None:
        check_floating("residual", residual)
        _check_residual(residual, x)
    if act == "prelu":
        if not isinstance(slope, Tensor):
            raise TypeError("slope must be a tensor [1] or [C] for act='prelu' (a number is act='lrelu')")
        check_floating("slope", slope)
        check_device("slope", slope, x.device, "x")
        if slope.shape not in ((1,), (c,)):
            raise ValueError(f"slope must have shape [1] or [{c}]; got {list(slope.shape)}")
    elif isinstance(slope, Tensor):
        raise TypeError(f"slope must be a number for act={act!r} (a learned slope is act='prelu')")
    constant = 0.0 if isinstance(slope, Tensor) else real_number("slope", slope)
    return EpilogueSpec(norm, eps, act, constant, block, pad, pad_mode, groups)


def _check_residual(residual: Tensor, x: Tensor) -> None:
    check_device("residual", residual, x.device, "x")
    if residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {list(x.shape)}; got {list(residual.shape)}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual must have x's dtype {x.dtype}; got {residual.dtype}")


def pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    """`value`, a whole number or a pair of them, as a pair; else TypeError or ValueError."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be a whole number or a pair of them; got {value}")
        return whole_number(name, value[0], least), whole_number(name, value[1], least)
    value = whole_number(name, value, least)
    return value, value


def padding_of_all_sides(padding: int | tuple[int, int]) -> int:
    """The one padding of all four sides of an image; ValueError if they differ."""
    rows, columns = pair("padding", padding, 0)
    if rows != columns:
        raise ValueError(f"padding must be equal on all sides; got {padding} (pad with torch.nn.functional.pad first)")
    return rows


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> None:
    """Raise if a convolution of x, padded, cannot have this weight and bias."""
    check_floating("conv_weight", weight)
    check_device("conv_weight", weight, x.device, "x")
    channels, (h, w) = x.shape[1], x.shape[2:]
    if weight.dim() != 4 or weight.numel() == 0 or weight.shape[1] != channels:
        raise ValueError(
            f"conv_weight must be [O, {channels}, kh, kw] for x {list(x.shape)} (groups are not supported); "
            f"got {list(weight.shape)}"
        )
    kh, kw = weight.shape[2:]
    if kh > h + 2 * pad or kw > w + 2 * pad:
        raise ValueError(
            f"conv_weight must not be larger than the padded x, {h + 2 * pad}×{w + 2 * pad}; got {kh}×{kw} "
            "(use a larger image, or more padding)"
        )
    autocast = torch.is_autocast_enabled(x.device.type)
    _check_dtype("conv_weight", weight, x, autocast)
    if bias is not None:
        check_floating("conv_bias", bias)
        check_device("conv_bias", bias, x.device, "x")
        _check_dtype("conv_bias", bias, x, autocast)
        if bias.shape != (weight.shape[0],):
            raise ValueError(
                f"conv_bias must have shape [{weight.shape[0]}] for conv_weight {list(weight.shape)}; "
                f"got {list(bias.shape)}"
            )


def _check_dtype(name: str, value: Tensor, x: Tensor, autocast: bool) -> None:
    """Autocast gives convolutions one dtype, except that it leaves float64 as it is."""
    if value.dtype != x.dtype and not (autocast and torch.float64 not in (value.dtype, x.dtype)):
        raise TypeError(f"{name} must have x's dtype {x.dtype}; got {value.dtype}")


def check_norm(norm: str, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise if a norm, named as in `norm_act_conv2d`, cannot have x, this weight and this bias."""
    n, c = x.shape[:2]
    if norm == "none" and weight is not None:
        raise ValueError("weight must be None for norm='none' (the other norms have one)")
    if norm == "group":
        check_groups(x, groups)
    elif groups != 1:
        raise ValueError(f"num_groups is of norm='group'; got num_groups={groups} for norm={norm!r}")
    if norm == "instance":
        check_planes(x)
    if norm == "layer":
        check_samples(x)
    for name, value in (("weight", weight), ("bias", bias)):
        each = norm == "instance" and isinstance(value, Tensor) and value.dim() == 2
        check_parameter(name, value, x, (n, c) if each else (c,))


def whole_number(name: str, value: int, least: int) -> int:
    """`value` as an integer that is not below `least`; else TypeError or ValueError."""
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be a whole number; got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")
    return value


def real_number(name: str, value: float) -> float:
    """`value` as a float; else TypeError."""
    if isinstance(value, (np.integer, np.floating)):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    return float(value)


def check_names(act: str, pad_mode: str, impl: str) -> None:
    """Raise ValueError for a name that no option has.

    Args:
        act: the activation.
        pad_mode: the padding's mode.
        impl: the backend.

    Raises:
        ValueError: one of them is unknown; the message lists the known ones.
    """
    check_impl(impl)
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}; got {act!r}")
    if pad_mode not in PAD_MODES:
        raise ValueError(f"pad_mode must be one of {', '.join(PAD_MODES)}; got {pad_mode!r}")


def check_impl(impl: str) -> None:
    """Raise ValueError for a backend that does not exist."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")


def check_floating(name: str, value: Tensor) -> None:
    """Raise TypeError unless `value` is a dense tensor of floating-point numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}")
    if value.dtype not in _DTYPES:
        raise TypeError(f"{name} must be floating-point (float32, bfloat16, float16, float64); got {value.dtype}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got layout {value.layout}")


def check_device(name: str, value: Tensor, device: torch.device, other: str) -> None:
    """Raise ValueError unless `value` is on the device of `other`."""
    if value.device != device:
        raise ValueError(f"{name} must be on the device of {other}, {device}; got {value.device}")


def check_planes(x: Tensor) -> None:
    """Raise ValueError where the planes of x hold one number each, whose variance is zero by definition."""
    if math.prod(x.shape[2:]) == 1:
        raise ValueError(f"x must have planes larger than 1×1 to be normalised; got {list(x.shape)}")


def check_groups(x: Tensor, groups: int) -> None:
    """Raise ValueError where the channels of x do not come out even, or all of x is one number."""
    if x.shape[1] % groups:
        raise ValueError(f"num_groups must divide the channels of x, {x.shape[1]}; got {groups}")
    if x.numel() == groups:  # where torch.nn.functional.group_norm refuses as well
        raise ValueError(f"x must have more than one number a group to be normalised; got {list(x.shape)}")


def check_samples(x: Tensor) -> None:
    """Raise ValueError where the samples of x hold one number each, which has no standard deviation."""
    if x.shape[1] * x.shape[2] * x.shape[3] == 1:
        raise ValueError("x must have more than one number a sample: one has no standard deviation; got [N, 1, 1, 1]")


def present(name: str, value: Tensor | None) -> Tensor:
    """`value`; TypeError if it is None."""
    if value is None:
        raise TypeError(f"{name} must be a tensor; got None")
    return value


def check_parameter(name: str, value: Tensor | None, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless `value` is None, or floating-point numbers of this shape beside x."""
    if value is None:
        return
    check_floating(name, value)
    check_device(name, value, x.device, "x")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)} for x {list(x.shape)}; got {list(value.shape)}")

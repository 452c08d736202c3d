"""The fused functions: everything that stands between two convolutions, the convolution after it, and the losses.

Each function normalises, activates, adds the residual, moves depth to space and pads, in that order, with one backend
call forward and one backward::

    z = normalise(x)                                  weight · (x - mean) · r + bias
    y = pad(depth_to_space(act(z) + residual))

Common to all of them:

- Layout: x NCHW-contiguous or channels_last; the result has x's layout and dtype. A tensor with other strides, and a
  residual or upstream gradient in the other layout, is copied once into x's.
- Dtypes: float32, bfloat16, float16 (float64 on the "reference" and "cpu" backends). Arithmetic and statistics are
  float32 (float64 for float64), with one rounding at the end; parameters may have any floating dtype.
- Gradients: for every tensor argument, of any order. With create_graph=True a backward runs the formulas of
  `munit_fast.reference` in plain PyTorch, at their cost.
- torch.func, forward-mode differentiation, torch.jit.trace and exports see the formulas too, whatever `impl` is.
- act: "none", "relu", "lrelu" (slope: a number), "prelu" (slope: a tensor [1] or [C]), "selu", "tanh", "silu",
  "gelu" and "gelu_tanh" (`torch.nn.GELU` with approximate="none" and "tanh").
- pad_mode: "reflect" (pad must be smaller than each side), "replicate", "zero".
- impl: "auto" takes the fastest backend that can serve the tensors and logs once when that is not the fastest of the
  device; "triton", "cuda" (channels_last on NVIDIA GPUs), "cpu" or "reference" must serve or raise RuntimeError with
  the reason. `munit-fast doctor` lists which backend serves what, `munit_fast.ops.backends.registry` has auto's table.
- Bytes: with E bytes an element of x and P the padded size over the size, a call moves about (1 + P)·E a value forward
  (+ E for a residual, + E to read x for statistics, which mostly sits in a cache) and 2·(1 + P)·E + E backward.
- Errors: ValueError or TypeError that names the argument, what was seen and what would work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from munit_fast import ops
from munit_fast.ops import formulas
from munit_fast.ops.backends import IMPLEMENTATIONS
from munit_fast.ops.conv_plans import DIRECT
from munit_fast.ops.fused_conv import ConvOutput, EpilogueArgs
from munit_fast.ops.planned_conv import planned_conv, plans_of
from munit_fast.ops.spatial import as_image, from_image
from munit_fast.ops.spec import ACTIVATIONS, NORMS, PAD_MODES, EpilogueSpec, is_channels_last

__all__ = [
    "adain",
    "bias_act",
    "instance_norm",
    "l1_loss",
    "l1_losses",
    "layer_norm2d",
    "lsgan_loss",
    "norm_act_conv2d",
    "scale_bias_act",
]


def instance_norm(
    x: Tensor,  # [N, C, *spatial]
    weight: Tensor | None = None,  # [C]
    bias: Tensor | None = None,  # [C]
    *,
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,  # [N, C, *spatial]
    pad: int = 0,
    pad_mode: str = "reflect",
    impl: str = "auto",
) -> Tensor:  # [N, C, *spatial], or [N, C, H + 2·pad, W + 2·pad]
    """Instance norm (Ulyanov et al., 2016, eq. 3), activation, residual and padding as one operation.

        y = pad(act(weight · (x - mean) / sqrt(var + eps) + bias) + residual)

    Mean and biased variance are those of each plane x[n, c], in training and in evaluation alike. A volume or a line is
    an image with one long side to the kernels; only images are padded. Layouts, dtypes, activations, padding, `impl`
    and bytes moved: see `munit_fast.functional`.

    Args:
        x: [N, C, L], [N, C, H, W] or [N, C, D, H, W]; contiguous, channels_last or channels_last_3d; any floating dtype
            that the backend serves.
        weight: [C], any floating dtype; None: one.
        bias: [C], any floating dtype; None: zero.
        eps: added to the variance, inside the root.
        act: the activation: see `munit_fast.functional`.
        slope: of "lrelu" a number; of "prelu" a tensor [1] or [C].
        residual: like x, added after the activation; x's dtype.
        pad: pixels of padding on each side of an image.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend: see `munit_fast.functional`.

    Returns:
        [N, C, H + 2·pad, W + 2·pad], or x's shape, in x's dtype and layout.

    Raises:
        ValueError: x has not one to three spatial dimensions, is empty or has planes of one number (their variance is
            zero by definition); weight or bias is not [C]; residual is not like x; pad does not fit; an option has an
            unknown name.
        TypeError: a tensor is not floating-point, or residual has another dtype than x.
        RuntimeError: `impl` cannot serve these tensors.
    """
    spec = _spec("instance", x, act, slope, residual, pad, pad_mode, impl, eps=eps, dimensions=(3, 4, 5))
    _check_planes(x)
    _check_parameter("weight", weight, x, (x.shape[1],))
    _check_parameter("bias", bias, x, (x.shape[1],))
    return _run(x, weight, bias, residual, slope, spec, impl)


def adain(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [N, C]
    bias: Tensor,  # [N, C]
    *,
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,  # [N, C, H, W]
    pad: int = 0,
    pad_mode: str = "reflect",
    impl: str = "auto",
) -> Tensor:  # [N, C, H + 2·pad, W + 2·pad]
    """Adaptive instance norm (MUNIT, section 5.1; Huang & Belongie, ICCV 2017, eq. 8): parameters for each sample.

        y = pad(act(weight · (x - mean) / sqrt(var + eps) + bias) + residual)

    Mean and biased variance are those of each plane x[n, c]; weight[n, c] and bias[n, c] come from the style. Layouts,
    dtypes, activations, padding, `impl` and bytes moved: see `munit_fast.functional`.

    Args:
        x: [N, C, H, W], NCHW or channels_last; any floating dtype that the backend serves.
        weight: [N, C], any floating dtype.
        bias: [N, C], any floating dtype.
        eps: added to the variance, inside the root.
        act: the activation: see `munit_fast.functional`.
        slope: of "lrelu" a number; of "prelu" a tensor [1] or [C].
        residual: [N, C, H, W], added after the activation; x's dtype.
        pad: pixels of padding on each side.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend: see `munit_fast.functional`.

    Returns:
        [N, C, H + 2·pad, W + 2·pad] in x's dtype and layout.

    Raises:
        ValueError: as `instance_norm`; weight and bias must be [N, C].
        TypeError: as `instance_norm`; also if weight or bias is None.
        RuntimeError: `impl` cannot serve these tensors.
    """
    spec = _spec("instance", x, act, slope, residual, pad, pad_mode, impl, eps=eps)
    _check_planes(x)
    for name, value in (("weight", weight), ("bias", bias)):
        _check_parameter(name, _present(name, value), x, tuple(x.shape[:2]))
    return _run(x, weight, bias, residual, slope, spec, impl)


def layer_norm2d(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor | None = None,  # [C], or [C / depth_to_space²] shared by the phases
    bias: Tensor | None = None,  # like weight
    *,
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,  # [N, C, H, W]
    depth_to_space: int = 1,
    pad: int = 0,
    pad_mode: str = "reflect",
    impl: str = "auto",
) -> Tensor:  # [N, C / depth_to_space², depth_to_space·H + 2·pad, depth_to_space·W + 2·pad]
    """MUNIT's layer norm (decoder; Ba et al., 2016, over a whole sample), activation, depth-to-space and padding.

        y = pad(depth_to_space(act(weight · (x - mean) / (std + eps) + bias) + residual))

    Mean and *unbiased* standard deviation (divided by C·H·W - 1) are those of each sample, and eps stands outside the
    root: not `torch.nn.GroupNorm(1)`. With depth_to_space = r, channel (r·i + j)·P + p of x, P = C / r², becomes
    channel p at row i, column j of each r×r block (ONNX DepthToSpace, mode DCR): the phases of a convolution that
    computes all r² outputs of an upsampled pixel. Layouts, dtypes, activations, padding, `impl` and bytes moved: see
    `munit_fast.functional`.

    Args:
        x: [N, C, H, W], NCHW or channels_last; any floating dtype that the backend serves.
        weight: [C]; or [C / depth_to_space²], shared by the phases; any floating dtype. None: one.
        bias: like weight. None: zero.
        eps: added to the standard deviation, outside the root.
        depth_to_space: side r of the blocks; 1 for none.
        act: the activation: see `munit_fast.functional`.
        slope: of "lrelu" a number; of "prelu" a tensor [1] or [C].
        residual: [N, C, H, W], added after the activation; x's dtype.
        pad: pixels of padding on each side.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend: see `munit_fast.functional`.

    Returns:
        [N, C / r², r·H + 2·pad, r·W + 2·pad] in x's dtype and layout.

    Raises:
        ValueError: as `instance_norm`, except that 1×1 planes are welcome; also if depth_to_space² does not divide C,
            or a sample has one number only.
        TypeError: as `instance_norm`.
        RuntimeError: `impl` cannot serve these tensors.
    """
    block = _whole("depth_to_space", depth_to_space, 1)
    spec = _spec("layer", x, act, slope, residual, pad, pad_mode, impl, eps=eps, block=block)
    c = x.shape[1]
    _check_samples(x)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and block > 1 and value.shape == (c // block**2,):
            _check_parameter(name, value, x, (c // block**2,))
        else:
            _check_parameter(name, value, x, (c,))
    return _run(x, weight, bias, residual, slope, spec, impl)


def bias_act(
    x: Tensor,  # [N, C, *spatial]
    bias: Tensor | None = None,  # [C]
    *,
    act: str = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,  # [N, C, *spatial]
    pad: int = 0,
    pad_mode: str = "reflect",
    impl: str = "auto",
) -> Tensor:  # [N, C, *spatial], or [N, C, H + 2·pad, W + 2·pad]
    """Bias, activation, residual and padding as one operation: y = pad(act(x + bias) + residual).

    `scale_bias_act` without a scale. Layouts, dtypes, activations, padding, `impl` and bytes moved: see
    `munit_fast.functional`.

    Args:
        x: as in `instance_norm`.
        bias: [C], any floating dtype; None: zero.
        act: the activation: see `munit_fast.functional`.
        slope: of "lrelu" a number; of "prelu" a tensor [1] or [C].
        residual: like x, added after the activation; x's dtype.
        pad: pixels of padding on each side of an image.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend: see `munit_fast.functional`.

    Returns:
        [N, C, H + 2·pad, W + 2·pad], or x's shape, in x's dtype and layout.

    Raises:
        ValueError: as `instance_norm`, except that planes of one number are welcome.
        TypeError: as `instance_norm`.
        RuntimeError: `impl` cannot serve these tensors.
    """
    return scale_bias_act(x, None, bias, act=act, slope=slope, residual=residual, pad=pad, pad_mode=pad_mode, impl=impl)


def scale_bias_act(
    x: Tensor,  # [N, C, *spatial]
    weight: Tensor | None = None,  # [C]
    bias: Tensor | None = None,  # [C]
    *,
    act: str = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,  # [N, C, *spatial]
    pad: int = 0,
    pad_mode: str = "reflect",
    impl: str = "auto",
) -> Tensor:  # [N, C, *spatial], or [N, C, H + 2·pad, W + 2·pad]
    """Scale, bias, activation, residual and padding as one operation: y = pad(act(weight · x + bias) + residual).

    What a norm with stored statistics is. Layouts, dtypes, activations, padding, `impl` and bytes moved: see
    `munit_fast.functional`.

    Args:
        x: as in `instance_norm`.
        weight: [C], any floating dtype; None: one.
        bias: [C], any floating dtype; None: zero.
        act: the activation: see `munit_fast.functional`.
        slope: of "lrelu" a number; of "prelu" a tensor [1] or [C].
        residual: like x, added after the activation; x's dtype.
        pad: pixels of padding on each side of an image.
        pad_mode: "reflect", "replicate" or "zero".
        impl: the backend: see `munit_fast.functional`.

    Returns:
        [N, C, H + 2·pad, W + 2·pad], or x's shape, in x's dtype and layout.

    Raises:
        ValueError: as `instance_norm`, except that planes of one number are welcome.
        TypeError: as `instance_norm`.
        RuntimeError: `impl` cannot serve these tensors.
    """
    spec = _spec("none", x, act, slope, residual, pad, pad_mode, impl, dimensions=(3, 4, 5))
    _check_parameter("weight", weight, x, (x.shape[1],))
    _check_parameter("bias", bias, x, (x.shape[1],))
    return _run(x, weight, bias, residual, slope, spec, impl)


def norm_act_conv2d(
    x: Tensor,  # [N, C, H, W]
    conv_weight: Tensor,  # [O, C, kh, kw]
    conv_bias: Tensor | None = None,  # [O]
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    padding_mode: str = "zeros",
    norm: str = "none",
    weight: Tensor | None = None,  # [C], or [N, C] for norm "instance"
    bias: Tensor | None = None,  # like weight
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    impl: str = "auto",
) -> Tensor:  # [N, O, (H + 2·padding - kh) // stride + 1, (W + 2·padding - kw) // stride + 1]
    """A convolution, joined to the norm, the activation and the padding before it.

        y = conv2d(pad(act(normalise(x))), conv_weight, conv_bias, stride)

    The norm is that of `instance_norm` (weight and bias [C]), of `adain` ([N, C]) or of `layer_norm2d`; with norm
    "none" only the bias is added. On CPUs, 3×3 kernels with stride 1 and 4×4 ones with stride 2 are computed by
    Winograd's algorithms (Lavin & Gray, CVPR 2016, section 4) where those are faster (`munit_fast.ops.conv_plans`;
    ``MUNIT_FAST_CONV`` overrides): with 2.25 to 4 times fewer multiplications. What stands before the convolution is
    applied while x is read, and the activation is neither written nor kept for the backward. Results differ from a
    direct convolution by rounding, a few 1e-6 by relative norm. Elsewhere this is `instance_norm` or its like, then
    `torch.nn.functional.conv2d`.

    Layout: the result has that of x, as in all of `munit_fast.functional`; Winograd's algorithms need channels_last, so
    for an NCHW x they copy it and the result. Dtypes: x and the convolution's parameters have one; weight and bias may
    have any. Under autocast the convolution is in the dtype of autocast, which the result then has. Without gradients,
    transformed convolution weights are kept, from their second use on, until they change. Activations, `impl`, errors:
    see `munit_fast.functional`.

    Args:
        x: [N, C, H, W], NCHW or channels_last; any floating dtype that the backend serves.
        conv_weight: [O, C, kh, kw], x's dtype; groups are not supported.
        conv_bias: [O], x's dtype; None: zero.
        stride: of the convolution, a number or a pair.
        padding: pixels on each side, a number or a pair of equal ones.
        padding_mode: "zeros", "reflect" or "replicate", as in `torch.nn.Conv2d`.
        norm: "none", "instance" or "layer".
        weight: of the norm, [C], or [N, C] for "instance"; any floating dtype. None: one.
        bias: like weight; for norm "none" [C]. None: zero.
        eps: of the norm: see `instance_norm` and `layer_norm2d`.
        act: the activation: see `munit_fast.functional`.
        slope: of "lrelu" a number; of "prelu" a tensor [1] or [C].
        impl: the backend: see `munit_fast.functional`; any but "auto" and "cpu" convolves with PyTorch.

    Returns:
        [N, O, (H + 2·padding - kh) // stride + 1, (W + 2·padding - kw) // stride + 1].

    Raises:
        ValueError: x is not [N, C, H, W], is empty, or has planes that the norm cannot normalise; another tensor does
            not fit x in shape or device; the padding does not fit, or leaves less than the kernel's size; an option has
            an unknown name; norm "none" is given a weight.
        TypeError: a tensor is not floating-point; conv_weight or conv_bias has not x's dtype, outside of autocast.
        RuntimeError: `impl` cannot serve these tensors.
    """
    pad, mode, steps = _padding(padding), _PADDING_MODES.get(padding_mode), _pair("stride", stride, 1)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
    if mode is None:
        raise ValueError(f"padding_mode must be one of {', '.join(_PADDING_MODES)}; got {padding_mode!r}")
    spec = _spec(norm, x, act, slope, None, 0, "zero", impl, eps=eps if norm != "none" else 0.0)
    _, c, h, w = x.shape
    if mode == "reflect" and pad > 0 and (pad >= h or pad >= w):
        raise ValueError(
            f"padding must be smaller than each side to reflect; got padding={pad} for {h}×{w} "
            "(use a larger image, or padding_mode 'replicate' or 'zeros')"
        )
    _check_convolution(x, conv_weight, conv_bias, pad)
    _check_norm(norm, x, weight, bias)
    slopes = slope if isinstance(slope, Tensor) else None
    plain = norm == act == "none" and bias is None
    plans = plans_of(x, conv_weight, steps[0], pad, impl) if steps[0] == steps[1] else DIRECT
    if plans.result is not None:
        epilogue = None if plain else EpilogueArgs(weight, bias, slopes, spec, impl)
        y = planned_conv(ConvOutput(x), epilogue, conv_weight, conv_bias, plans, pad, mode).z
    else:
        if mode != "zero":
            spec, pad = spec._replace(pad=pad, pad_mode=mode), 0
        if not plain or spec.pad or impl != "auto":
            x = ops.epilogue(_dense(x), weight, bias, None, slopes, spec, impl)
        y = torch.conv2d(x, conv_weight, conv_bias, steps, pad)
    if formulas.are_needed():
        return y
    # A single channel lies the same either way, and its strides say which is meant.
    channels_last = is_channels_last(x) or (c == 1 and x.stride(1) == 1)
    return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def l1_loss(a: Tensor, b: Tensor, *, impl: str = "auto") -> Tensor:
    """`mean(|a - b|)`, MUNIT eq. 1 to 3, with a gradient to both sides: sign(a - b) / numel, where sign(0) = 0.

    Bytes: reads both once forward and once backward; the backward writes the gradients that are needed.

    Args:
        a: any shape, floating-point.
        b: a's shape; where the dtypes differ, both are promoted to the wider one.
        impl: the backend: see `munit_fast.functional`.

    Returns:
        A scalar in float32 (float64 for float64).

    Raises:
        ValueError, TypeError, RuntimeError: as `l1_losses`.
    """
    return _l1([(a, b)], [("a", "b")], impl)[0]


def l1_losses(pairs: Iterable[tuple[Tensor, Tensor]], *, impl: str = "auto") -> Tensor:
    """`mean(|a - b|)` of each of P pairs in one operation, as [P] in float32 (float64 for float64).

    The pairs may differ in size. Where the dtypes of a pair, or of the pairs, differ they are promoted to the widest,
    as PyTorch would. Bytes: reads each tensor once forward and once backward; the backward writes what is needed.

    Args:
        pairs: of (a, b), each of one shape, on one device, floating-point.
        impl: the backend: see `munit_fast.functional`.

    Returns:
        [P] in float32 (float64 for float64).

    Raises:
        ValueError: no pairs; the two tensors of a pair differ in shape or device, or are empty; an unknown impl.
        TypeError: pairs is not made of pairs, or a tensor is not floating-point.
        RuntimeError: `impl` cannot serve these tensors.
    """
    pairs = [] if isinstance(pairs, Tensor) else list(pairs)
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise TypeError("pairs must be a list of (a, b), two tensors each")
    if not pairs:
        raise ValueError("pairs must hold at least one (a, b)")
    return _l1(pairs, [(f"pairs[{i}][0]", f"pairs[{i}][1]") for i in range(len(pairs))], impl)


def _l1(pairs: list[tuple[Tensor, Tensor]], names: list[tuple[str, str]], impl: str) -> Tensor:
    _check_impl(impl)
    first: list[Tensor] = []
    second: list[Tensor] = []
    for (a, b), (name_a, name_b) in zip(pairs, names):
        for name, t in ((name_a, a), (name_b, b)):
            _check_floating(name, t)
            _check_device(name, t, pairs[0][0].device, names[0][0])
        if a.shape != b.shape:
            raise ValueError(f"{name_a} and {name_b} must have one shape; got {list(a.shape)} and {list(b.shape)}")
        if a.numel() == 0:
            raise ValueError(f"{name_a} and {name_b} must not be empty; got shape {list(a.shape)}")
        first.append(a)
        second.append(b)
    dtype = _widest([*first, *second])
    first = [_dense(a.to(dtype)) for a in first]
    return ops.l1_losses(first, [_like(b.to(dtype), a) for a, b in zip(first, second)], impl)


def lsgan_loss(outputs: Tensor | Sequence[Tensor], target: float, *, impl: str = "auto") -> Tensor:
    """The least-squares GAN loss (Mao et al., ICCV 2017, eq. 2 and 9) over all scales of a discriminator.

        Σ over outputs of mean((output - target)²)

    The arithmetic is in float32 (float64 for float64): on bfloat16 outputs near the target a bfloat16 square loses most
    of its digits. Bytes: reads each output once forward and once backward.

    Args:
        outputs: of each scale, any shapes, on one device, floating-point; a tensor stands for one scale.
        target: what the outputs are to be: 1 for real, 0 for fake.
        impl: the backend: see `munit_fast.functional`.

    Returns:
        A scalar in float32 (float64 for float64).

    Raises:
        ValueError: no outputs; an output is empty, or on another device; an unknown impl.
        TypeError: an output is not floating-point, or target is not a number.
        RuntimeError: `impl` cannot serve these tensors.
    """
    if isinstance(outputs, Tensor):
        outputs = [outputs]
    if not isinstance(outputs, (list, tuple)):
        raise TypeError(f"outputs must be a tensor or a list of tensors; got {type(outputs).__name__}")
    _check_impl(impl)
    if not outputs:
        raise ValueError("outputs must hold at least one tensor")
    target = _number("target", target)
    for i, output in enumerate(outputs):
        _check_floating(f"outputs[{i}]", output)
        _check_device(f"outputs[{i}]", output, outputs[0].device, "outputs[0]")
        if output.numel() == 0:
            raise ValueError(f"outputs[{i}] must not be empty; got shape {list(output.shape)}")
    dtype = _widest(outputs)
    return ops.lsgan_loss([_dense(output.to(dtype)) for output in outputs], target, impl)


_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _spec(
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
    dimensions: tuple[int, ...] = (4,),
) -> EpilogueSpec:
    _check_floating("x", x)
    if x.dim() not in dimensions:
        shapes = "[N, C, H, W]" if len(dimensions) == 1 else "[N, C, L], [N, C, H, W] or [N, C, D, H, W]"
        raise ValueError(f"x must be {shapes}; got {x.dim()} dimensions, {list(x.shape)}")
    c, (h, w) = x.shape[1], x.shape[-2:]
    if any(size == 0 for size in x.shape):
        raise ValueError(f"x must not be empty (a batch needs at least one image); got {list(x.shape)}")
    check_names(act, pad_mode, impl)
    eps = _number("eps", eps)
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be a finite number, not negative; got {eps}")
    pad = _whole("pad", pad, 0)
    if pad and x.dim() != 4:
        raise ValueError(f"pad must be 0 where x is not [N, C, H, W]; got pad={pad} for {list(x.shape)}")
    if c % block**2:
        raise ValueError(f"depth_to_space={block} needs channels divisible by {block**2}; x has {c}")
    if pad_mode == "reflect" and pad > 0 and (pad >= block * h or pad >= block * w):
        raise ValueError(
            f"pad must be smaller than each side to reflect; got pad={pad} for {block * h}×{block * w} "
            "(use a larger image, or pad_mode 'replicate' or 'zero')"
        )
    if residual is not None:
        _check_floating("residual", residual)
        _check_residual(residual, x)
    if act == "prelu":
        if not isinstance(slope, Tensor):
            raise TypeError("slope must be a tensor [1] or [C] for act='prelu' (a number is act='lrelu')")
        _check_floating("slope", slope)
        _check_device("slope", slope, x.device, "x")
        if slope.shape not in ((1,), (c,)):
            raise ValueError(f"slope must have shape [1] or [{c}]; got {list(slope.shape)}")
    elif isinstance(slope, Tensor):
        raise TypeError(f"slope must be a number for act={act!r} (a learned slope is act='prelu')")
    number = 0.0 if isinstance(slope, Tensor) else _number("slope", slope)
    return EpilogueSpec(norm, eps, act, number, block, pad, pad_mode)


def _check_residual(residual: Tensor, x: Tensor) -> None:
    _check_device("residual", residual, x.device, "x")
    if residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {list(x.shape)}; got {list(residual.shape)}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual must have x's dtype {x.dtype}; got {residual.dtype}")


def _run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slope: float | Tensor,
    spec: EpilogueSpec,
    impl: str,
) -> Tensor:
    slopes = slope if isinstance(slope, Tensor) else None
    residual = None if residual is None else as_image(residual)
    y = ops.epilogue(_dense(as_image(x)), weight, bias, residual, slopes, spec, impl)
    return from_image(y, x)


_PADDING_MODES = {"zeros": "zero", "reflect": "reflect", "replicate": "replicate"}  # as PyTorch names them


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be a whole number or a pair of them; got {value}")
        return _whole(name, value[0], least), _whole(name, value[1], least)
    value = _whole(name, value, least)
    return value, value


def _padding(padding: int | tuple[int, int]) -> int:
    rows, columns = _pair("padding", padding, 0)
    if rows != columns:
        raise ValueError(f"padding must be equal on all sides; got {padding} (pad with torch.nn.functional.pad first)")
    return rows


def _check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> None:
    _check_floating("conv_weight", weight)
    _check_device("conv_weight", weight, x.device, "x")
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
        _check_floating("conv_bias", bias)
        _check_device("conv_bias", bias, x.device, "x")
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


def _check_norm(norm: str, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    n, c = x.shape[:2]
    if norm == "none" and weight is not None:
        raise ValueError("weight must be None for norm='none' (norm 'instance' and 'layer' have one)")
    if norm == "instance":
        _check_planes(x)
    if norm == "layer":
        _check_samples(x)
    for name, value in (("weight", weight), ("bias", bias)):
        each = norm == "instance" and isinstance(value, Tensor) and value.dim() == 2
        _check_parameter(name, value, x, (n, c) if each else (c,))


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be a whole number; got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")
    return value


def _number(name: str, value: float) -> float:
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
    _check_impl(impl)
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}; got {act!r}")
    if pad_mode not in PAD_MODES:
        raise ValueError(f"pad_mode must be one of {', '.join(PAD_MODES)}; got {pad_mode!r}")


def _check_impl(impl: str) -> None:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")


def _check_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}")
    if value.dtype not in _DTYPES:
        raise TypeError(f"{name} must be floating-point (float32, bfloat16, float16, float64); got {value.dtype}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got layout {value.layout}")


def _check_device(name: str, value: Tensor, device: torch.device, other: str) -> None:
    if value.device != device:
        raise ValueError(f"{name} must be on the device of {other}, {device}; got {value.device}")


def _check_planes(x: Tensor) -> None:
    if math.prod(x.shape[2:]) == 1:
        raise ValueError(f"x must have planes larger than 1×1 to be normalised; got {list(x.shape)}")


def _check_samples(x: Tensor) -> None:
    if x.shape[1] * x.shape[2] * x.shape[3] == 1:
        raise ValueError("x must have more than one number a sample: one has no standard deviation; got [N, 1, 1, 1]")


def _present(name: str, value: Tensor | None) -> Tensor:
    if value is None:
        raise TypeError(f"{name} must be a tensor; got None")
    return value


def _check_parameter(name: str, value: Tensor | None, x: Tensor, shape: tuple[int, ...]) -> None:
    if value is None:
        return
    _check_floating(name, value)
    _check_device(name, value, x.device, "x")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)} for x {list(x.shape)}; got {list(value.shape)}")


def _dense(x: Tensor) -> Tensor:
    """x itself if it is dense in memory, NCHW-contiguous or channels_last; else a contiguous copy."""
    if formulas.are_needed():  # which take any layout, and vmap knows none
        return x
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def _like(b: Tensor, a: Tensor) -> Tensor:
    """b in a's memory order."""
    if formulas.are_needed():
        return b
    if b.stride() == a.stride():
        return b
    return b.contiguous() if a.is_contiguous() else b.contiguous(memory_format=torch.channels_last)


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype

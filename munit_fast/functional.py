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

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from munit_fast import ops
from munit_fast.ops import formulas
from munit_fast.ops.arguments import (
    check_convolution,
    check_device,
    check_floating,
    check_groups,
    check_impl,
    check_norm,
    check_parameter,
    check_planes,
    check_samples,
    epilogue_spec,
    padding_of_all_sides,
    pair,
    present,
    real_number,
    whole_number,
)
from munit_fast.ops.conv_plans import DIRECT
from munit_fast.ops.fused_conv import ConvOutput, EpilogueArgs
from munit_fast.ops.planned_conv import planned_conv, plans_of
from munit_fast.ops.spatial import as_image, from_image
from munit_fast.ops.spec import NORMS, EpilogueSpec, is_channels_last

__all__ = [
    "adain",
    "bias_act",
    "group_norm",
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
    spec = epilogue_spec("instance", x, act, slope, residual, pad, pad_mode, impl, eps=eps, dimensions=(3, 4, 5))
    check_planes(x)
    check_parameter("weight", weight, x, (x.shape[1],))
    check_parameter("bias", bias, x, (x.shape[1],))
    return _run(x, weight, bias, residual, slope, spec, impl)


def group_norm(
    x: Tensor,  # [N, C, *spatial]
    num_groups: int,
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
    """Group norm (Wu & He, ECCV 2018, eq. 7), activation, residual and padding as one operation.

        y = pad(act(weight · (x - mean) / sqrt(var + eps) + bias) + residual)

    Mean and biased variance are those of C / num_groups neighbouring channels of a sample: with num_groups = C it is
    `instance_norm`, with 1 a layer norm over whole samples (not MUNIT's, see `layer_norm2d`). Layouts, dtypes,
    activations, padding, `impl` and bytes moved: see `munit_fast.functional`.

    Args:
        x: [N, C], [N, C, L], [N, C, H, W] or [N, C, D, H, W]; contiguous, channels_last or channels_last_3d; any
            floating dtype that the backend serves.
        num_groups: a divisor of C.
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
        ValueError: x has more than three spatial dimensions, is empty, or is one number a group and sample; num_groups
            does not divide C; weight or bias is not [C]; residual is not like x; pad does not fit; an option has an
            unknown name.
        TypeError: a tensor is not floating-point, residual has another dtype than x, or num_groups is no whole number.
        RuntimeError: `impl` cannot serve these tensors.
    """
    groups = whole_number("num_groups", num_groups, 1)
    given = (x, act, slope, residual, pad, pad_mode, impl)
    spec = epilogue_spec("group", *given, eps=eps, groups=groups, dimensions=(2, 3, 4, 5))
    check_groups(x, groups)
    check_parameter("weight", weight, x, (x.shape[1],))
    check_parameter("bias", bias, x, (x.shape[1],))
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
    spec = epilogue_spec("instance", x, act, slope, residual, pad, pad_mode, impl, eps=eps)
    check_planes(x)
    for name, value in (("weight", weight), ("bias", bias)):
        check_parameter(name, present(name, value), x, tuple(x.shape[:2]))
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
    block = whole_number("depth_to_space", depth_to_space, 1)
    spec = epilogue_spec("layer", x, act, slope, residual, pad, pad_mode, impl, eps=eps, block=block)
    c = x.shape[1]
    check_samples(x)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and block > 1 and value.shape == (c // block**2,):
            check_parameter(name, value, x, (c // block**2,))
        else:
            check_parameter(name, value, x, (c,))
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
    spec = epilogue_spec("none", x, act, slope, residual, pad, pad_mode, impl, dimensions=(3, 4, 5))
    check_parameter("weight", weight, x, (x.shape[1],))
    check_parameter("bias", bias, x, (x.shape[1],))
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
    num_groups: int = 1,
    act: str = "none",
    slope: float | Tensor = 0.2,
    impl: str = "auto",
) -> Tensor:  # [N, O, (H + 2·padding - kh) // stride + 1, (W + 2·padding - kw) // stride + 1]
    """A convolution, joined to the norm, the activation and the padding before it.

        y = conv2d(pad(act(normalise(x))), conv_weight, conv_bias, stride)

    The norm is that of `instance_norm` (weight and bias [C]), of `adain` ([N, C]), of `group_norm` or of
    `layer_norm2d`; with norm "none" only the bias is added. On CPUs, 3×3 kernels with stride 1 and 4×4 ones with stride
    2 are computed by Winograd's algorithms (Lavin & Gray, CVPR 2016, section 4) where those are faster
    (`munit_fast.ops.conv_plans`; ``MUNIT_FAST_CONV`` overrides): with 2.25 to 4 times fewer multiplications. What
    stands before the convolution is applied while x is read, and the activation is neither written nor kept for the
    backward. Results differ from a direct convolution by rounding, a few 1e-6 by relative norm. Elsewhere this is
    `instance_norm` or its like, then `torch.nn.functional.conv2d`.

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
        norm: "none", "instance", "group" or "layer".
        weight: of the norm, [C], or [N, C] for "instance"; any floating dtype. None: one.
        bias: like weight; for norm "none" [C]. None: zero.
        eps: of the norm: see `instance_norm`, `group_norm` and `layer_norm2d`.
        num_groups: of channels, for norm "group"; else 1.
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
    pad, mode, steps = padding_of_all_sides(padding), _PADDING_MODES.get(padding_mode), pair("stride", stride, 1)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
    if mode is None:
        raise ValueError(f"padding_mode must be one of {', '.join(_PADDING_MODES)}; got {padding_mode!r}")
    groups = whole_number("num_groups", num_groups, 1)
    eps = eps if norm != "none" else 0.0
    spec = epilogue_spec(norm, x, act, slope, None, 0, "zero", impl, eps=eps, groups=groups)
    _, c, h, w = x.shape
    if mode == "reflect" and pad > 0 and (pad >= h or pad >= w):
        raise ValueError(
            f"padding must be smaller than each side to reflect; got padding={pad} for {h}×{w} "
            "(use a larger image, or padding_mode 'replicate' or 'zeros')"
        )
    check_convolution(x, conv_weight, conv_bias, pad)
    check_norm(norm, x, groups, weight, bias)
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
    check_impl(impl)
    first: list[Tensor] = []
    second: list[Tensor] = []
    for (a, b), (name_a, name_b) in zip(pairs, names):
        for name, t in ((name_a, a), (name_b, b)):
            check_floating(name, t)
            check_device(name, t, pairs[0][0].device, names[0][0])
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
    check_impl(impl)
    if not outputs:
        raise ValueError("outputs must hold at least one tensor")
    target = real_number("target", target)
    for i, output in enumerate(outputs):
        check_floating(f"outputs[{i}]", output)
        check_device(f"outputs[{i}]", output, outputs[0].device, "outputs[0]")
        if output.numel() == 0:
            raise ValueError(f"outputs[{i}] must not be empty; got shape {list(output.shape)}")
    dtype = _widest(outputs)
    return ops.lsgan_loss([_dense(output.to(dtype)) for output in outputs], target, impl)


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

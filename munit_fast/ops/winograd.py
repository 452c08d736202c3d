"""Winograd's convolutions joined to the epilogue before them, on CPUs (csrc/cpu/winograd.inl).

A plan is one of `WINOGRAD_PLANS`: "f43", F(4×4, 3×3), and "f23", F(2×2, 3×3), serve 3×3 kernels of stride 1; "f42",
F(4×4, 2×2), serves 4×4 kernels of stride 2 as four 2×2 ones. The input is what an epilogue makes of x: it is applied
while pixels are loaded, with the padding of the convolution, and never stored. Tensors are channels_last and float32,
bfloat16 or float16; weights, and all arithmetic, are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from munit_fast.ops import native
from munit_fast.ops.epilogue import empty_stats, gradients, is_plain_cpu
from munit_fast.ops.library import LIBRARY
from munit_fast.ops.memory import reused
from munit_fast.ops.spec import NORMS, PAD_MODES, WINOGRAD_PLANS, EpilogueInputs, EpilogueSpec


class Plan(NamedTuple):
    """What a plan F(m×m, r×r) is.

    Attributes:
        results: m.
        taps: r.
        stride: of the convolution; its kernel has stride · r taps a side.
    """

    results: int
    taps: int
    stride: int

    @property
    def side(self) -> int:
        """Rows and columns of the convolution's kernel."""
        return self.stride * self.taps


PLANS = {"f43": Plan(4, 3, 1), "f23": Plan(2, 3, 1), "f42": Plan(4, 2, 2)}
NO_EPILOGUE = EpilogueSpec("none", 0.0, "none", 0.0, 1, 0, "zero")

_EPILOGUE = (
    "Tensor x, Tensor? stats, Tensor? weight, Tensor? bias, Tensor? slopes, "
    "str norm, float eps, str act, float slope, int block, int pad, str pad_mode, int groups"
)
_SOURCE = 5 + len(EpilogueSpec._fields)  # arguments
LIBRARY.define("winograd_weights(Tensor weight, str plan) -> Tensor")
# transformed: what winograd_weights gives for conv_weight; y_norm: the norm whose statistics of y are wanted.
LIBRARY.define(
    f"winograd_conv({_EPILOGUE}, Tensor conv_weight, Tensor? transformed, Tensor? conv_bias, str plan, str y_norm) "
    "-> (Tensor y, Tensor y_stats)"
)
LIBRARY.define(
    "winograd_input_gradient(Tensor grad, Tensor conv_weight, Tensor? add, SymInt height, SymInt width, int pad, "
    "str pad_mode, str plan) -> Tensor"
)
LIBRARY.define(f"winograd_weight_gradient(Tensor grad, {_EPILOGUE}, Tensor conv_weight, str plan) -> Tensor")
LIBRARY.define("statistics(Tensor x, str norm, int groups) -> Tensor")


class Source(NamedTuple):
    """The input of a convolution: an epilogue of x that is not stored, or x itself.

    Attributes:
        x: [N, C, H, W], channels_last.
        stats: the statistics of x for the norm; None without one.
        weight: of the norm, [P] or [N, P]; or None.
        bias: like weight; or None.
        slopes: [1] or [C] for act "prelu"; else None.
        spec: the epilogue, whose padding is the convolution's.
    """

    x: Tensor
    stats: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    slopes: Tensor | None
    spec: EpilogueSpec

    @property
    def is_plain(self) -> bool:
        """Whether it is x itself, but for padding."""
        _, _, weight, bias, _, spec = self
        return weight is None and bias is None and spec.norm == spec.act == "none" and spec.block == 1


@native.constant_when_compiled
def available() -> bool:
    """Whether the instruction set in use has these convolutions."""
    return native.module is not None and native.module.vector_floats() > 0


def output_size(size: Sequence[int], channels: int, plan: str) -> tuple[int, int, int, int]:
    """The size of the result for a padded input [N, C, H, W]."""
    n, _, h, w = size
    p = PLANS[plan]
    return n, channels, (h - p.side) // p.stride + 1, (w - p.side) // p.stride + 1


def _empty(size: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _raw(source: Source) -> tuple[Any, ...]:
    """The source as the compiled operators take it."""
    x, stats, weight, bias, slopes, spec = source
    stats = x.new_empty(2, 0, dtype=torch.float32) if stats is None else stats
    return _channels_last(x), _contiguous(weight), _contiguous(bias), _contiguous(slopes), stats, *spec.codes()


def _parse(arguments: Sequence[Any]) -> Source:
    x, stats, weight, bias, slopes, *fields = arguments[:_SOURCE]
    return Source(x, stats, weight, bias, slopes, EpilogueSpec._make(fields))


_RAW = torch.ops.munit_fast_cpu


@torch.library.impl(LIBRARY, "winograd_weights", "CPU")
def _weights(weight: Tensor, plan: str) -> Tensor:
    u = _weights_fake(weight, plan)
    _RAW.winograd_weights.default(weight, WINOGRAD_PLANS.index(plan), u)
    return u


@torch.library.register_fake("munit_fast::winograd_weights", lib=LIBRARY)
def _weights_fake(weight: Tensor, plan: str) -> Tensor:
    if not available():
        raise RuntimeError("the instruction set in use has no Winograd convolutions")
    p, width = PLANS[plan], native.module.vector_floats()  # type: ignore[union-attr]
    k, c = weight.shape[:2]
    rows = c if p.stride == 1 else p.stride**2 * _whole(c, width)
    frequencies = (p.results + p.taps - 1) ** 2
    return weight.new_empty((frequencies + 1) * (rows * _whole(k, width) + 5 * width), dtype=torch.float32)


def _whole(entries: int, width: int) -> int:
    return (entries + width - 1) // width * width


@torch.library.impl(LIBRARY, "winograd_conv", "CPU")
def _conv(*arguments: Any) -> tuple[Tensor, Tensor]:
    y, y_stats = _conv_fake(*arguments)
    return _conv_into(y, y_stats, arguments)


def _conv_into(y: Tensor, y_stats: Tensor, arguments: Sequence[Any]) -> tuple[Tensor, Tensor]:
    source = _parse(arguments)
    conv_weight, transformed, conv_bias, plan, y_norm = arguments[_SOURCE:]
    _RAW.winograd_conv.default(
        *_raw(source),
        WINOGRAD_PLANS.index(plan),
        False,
        conv_weight,
        transformed,
        None if conv_bias is None else conv_bias.to(torch.float32).contiguous(),
        0,
        0,
        None,
        y,
        NORMS.index(y_norm),
        y_stats if y_norm != "none" else None,
    )
    return y, y_stats


@torch.library.register_fake("munit_fast::winograd_conv", lib=LIBRARY)
def _conv_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _conv_results(arguments, _empty)


def _conv_results(arguments: Sequence[Any], empty: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    source = _parse(arguments)
    conv_weight, _, _, plan, y_norm = arguments[_SOURCE:]
    y = empty(output_size(source.spec.output_size(source.x), conv_weight.shape[0], plan), source.x)
    return y, empty_stats(y, NO_EPILOGUE._replace(norm=y_norm))


def _folds(size: Sequence[int], pad: int, pad_mode: str, plan: str) -> bool:
    """Whether the compiled operator gives the gradient of the input before its padding."""
    if pad == 0:
        return True
    p = PLANS[plan]
    least = 7 * p.stride - 2  # so that a tile holds a padding's pixel and the one that it was read from
    if pad != 1 or plan == "f23" or min(size[2:]) < least:
        return False
    return plan == "f43" or pad_mode != "replicate"


@torch.library.impl(LIBRARY, "winograd_input_gradient", "CPU")
def _input_gradient(
    grad: Tensor,
    conv_weight: Tensor,
    add: Tensor | None,
    height: int,
    width: int,
    pad: int,
    pad_mode: str,
    plan: str,
) -> Tensor:
    result = _input_gradient_fake(grad, conv_weight, add, height, width)
    if add is not None and add.shape != result.shape:
        raise RuntimeError(f"what is added must have the size {list(result.shape)}; got {list(add.shape)}")
    fold = _folds(result.shape, pad, pad_mode, plan)
    y = result if fold else _empty((*result.shape[:2], height + 2 * pad, width + 2 * pad), grad)
    zeros = NO_EPILOGUE._replace(pad=PLANS[plan].taps - 1)
    _RAW.winograd_conv.default(
        *_raw(Source(grad, None, None, None, None, zeros)),
        WINOGRAD_PLANS.index(plan),
        True,
        conv_weight,
        None,
        None,
        pad if fold else 0,
        PAD_MODES.index(pad_mode),
        None if add is None or not fold else _channels_last(add),
        y,
        0,
        None,
    )
    if fold:
        return y
    flags = (*NO_EPILOGUE._replace(pad=pad, pad_mode=pad_mode), "auto")
    folded = gradients(
        y, EpilogueInputs(result, None, None, None, None), y.new_empty(2, 0, dtype=torch.float32), flags,
        (True, False, False, False, False),
    )[0]  # fmt: skip
    assert folded is not None
    return folded if add is None else folded.add_(add)


@torch.library.register_fake("munit_fast::winograd_input_gradient", lib=LIBRARY)
def _input_gradient_fake(
    grad: Tensor, conv_weight: Tensor, add: Tensor | None, height: int, width: int, *_: Any
) -> Tensor:
    return _empty((grad.shape[0], conv_weight.shape[1], height, width), grad)


@torch.library.impl(LIBRARY, "winograd_weight_gradient", "CPU")
def _weight_gradient(grad: Tensor, *arguments: Any) -> Tensor:
    conv_weight, plan = arguments[_SOURCE:]
    result = torch.empty_like(conv_weight)
    _RAW.winograd_weight_gradient.default(
        _channels_last(grad), *_raw(_parse(arguments)), WINOGRAD_PLANS.index(plan), result
    )
    return result


@torch.library.register_fake("munit_fast::winograd_weight_gradient", lib=LIBRARY)
def _weight_gradient_fake(grad: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(arguments[_SOURCE])


@torch.library.impl(LIBRARY, "statistics", "CPU")
def _statistics(x: Tensor, norm: str, groups: int) -> Tensor:
    stats = _statistics_fake(x, norm, groups)
    _RAW.statistics.default(_channels_last(x), stats, NORMS.index(norm), groups)
    return stats


@torch.library.register_fake("munit_fast::statistics", lib=LIBRARY)
def _statistics_fake(x: Tensor, norm: str, groups: int) -> Tensor:
    return empty_stats(x, NO_EPILOGUE._replace(norm=norm))


_OPS = torch.ops.munit_fast


def transform_weight(weight: Tensor, plan: str) -> Tensor:
    """How `plan` takes a weight [K, C, side, side]: float32, in an order of the instruction set's own."""
    return _OPS.winograd_weights.default(weight, plan)


def statistics(x: Tensor, norm: str, groups: int = 1) -> Tensor:
    """The statistics [2, R] of x [N, C, H, W] for the norm "instance", "layer" or "group", float32."""
    return (_statistics if is_plain_cpu(x) else _OPS.statistics.default)(x, norm, groups)


def conv(
    source: Source,
    weight: Tensor,
    transformed: Tensor | None,
    bias: Tensor | None,
    plan: str,
    y_norm: str,
    reuse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The convolution of a source, and the statistics of the result.

    Args:
        source: the input, as `Source`.
        weight: [K, C, side, side], float32, in any layout.
        transformed: what `transform_weight` gives for it; None: it is transformed for this call.
        bias: [K], float32; or None.
        plan: of PLANS.
        y_norm: the norm whose statistics of the result are wanted: "instance", "layer" or "none".
        reuse: whether the result takes memory of earlier ones, as fits one that is soon forgotten.

    Returns:
        [N, K, …] in the dtype of the source, channels_last, and statistics [2, R] in float32, or None.
    """
    x, stats, norm_weight, norm_bias, slopes, spec = source
    arguments = (x, stats, norm_weight, norm_bias, slopes, *spec, weight, transformed, bias, plan, y_norm)
    if is_plain_cpu(x):
        y, y_stats = _conv_results(arguments, reused if reuse else _empty)
        _conv_into(y, y_stats, arguments)
    else:
        y, y_stats = _OPS.winograd_conv.default(*arguments)
    return y, y_stats if y_norm != "none" else None


def input_gradient(grad: Tensor, weight: Tensor, source: Source, plan: str, add: Tensor | None = None) -> Tensor:
    """The gradient of what the source's epilogue gives before its padding, plus `add`, which is like it.

    Args:
        grad: [N, K, …], like the result.
        weight: [K, C, side, side], float32.
        source: the input.
        plan: of PLANS.
        add: [N, C, H, W], like the result of this function; or None.

    Returns:
        [N, C, H, W] in the dtype of grad, channels_last.
    """
    spec = source.spec
    _, _, h, w = spec._replace(pad=0).output_size(source.x)
    call = _input_gradient if is_plain_cpu(grad) else _OPS.winograd_input_gradient.default
    return call(grad, weight, add, h, w, spec.pad, spec.pad_mode, plan)


def weight_gradient(grad: Tensor, source: Source, weight: Tensor, plan: str) -> Tensor:
    """The gradient of the weight, like it.

    Args:
        grad: [N, K, …], like the result.
        source: the input.
        weight: [K, C, side, side], float32.
        plan: of PLANS.
    """
    x, stats, norm_weight, norm_bias, slopes, spec = source
    call = _weight_gradient if is_plain_cpu(grad) else _OPS.winograd_weight_gradient.default
    return call(grad, x, stats, norm_weight, norm_bias, slopes, *spec, weight, plan)


def phase_border(source: Source, border_weight: Tensor, y: Tensor) -> None:
    """`upsample_conv.correct_reflect_border` of what the source's epilogue gives, where `is_real_cpu`.

    Args:
        source: the input; its padding is not read.
        border_weight: [O, C, 5, 5], float32.
        y: [N, 4·O, H, W], channels_last, in the dtype of the source; changed in place.
    """
    _RAW.phase_border.default(*_raw(_without_padding(source)), border_weight, y)


def phase_border_gradients(
    grad: Tensor, source: Source, border_weight: Tensor, grad_x: Tensor | None, need_weight: bool
) -> Tensor | None:
    """The backward of `phase_border`.

    Args:
        grad: [N, 4·O, H, W], channels_last.
        source: the input; its padding is not read.
        border_weight: [O, C, 5, 5], float32.
        grad_x: the gradient of what the source's epilogue gives, [N, C, H, W], channels_last, added to; or None.
        need_weight: whether the gradient of `border_weight` is needed.

    Returns:
        That gradient, like it; None where it is not needed.
    """
    grad_weight = torch.empty_like(border_weight) if need_weight else None
    _RAW.phase_border_backward.default(grad, *_raw(_without_padding(source)), border_weight, grad_x, grad_weight)
    return grad_weight


def _without_padding(source: Source) -> Source:
    return source._replace(spec=source.spec._replace(pad=0, pad_mode="zero"))


class _Entry:
    """What is known of a weight that was used without a graph."""

    def __init__(self, content: tuple[int, int, int]) -> None:
        self.content = content
        self.value: tuple[Tensor, Tensor] | None = None


_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _fingerprint(t: Tensor) -> int:
    return _RAW.fingerprint.default((t if t.is_contiguous() else t.permute(0, 2, 3, 1)).contiguous())


def kept_weight(source: Tensor, plan: str, phases: bool, weight: Callable[[], Tensor]) -> tuple[Tensor, Tensor | None]:
    """A weight for inference, and how the plan takes it: kept from its second use on, while `source` does not change.

    Its content is compared: a change through ``.data`` leaves no other trace, nor does a step of a fused optimizer. In
    training, whose discriminator step uses each weight once without a graph, nothing is kept.

    Args:
        source: the parameter.
        plan: of PLANS.
        phases: tells two weights of one parameter apart.
        weight: makes the weight of the convolution from it.

    Returns:
        The weight and its transform; None in place of that at the first use.
    """
    entries = _kept.setdefault(source, {})
    key = (plan, phases, native.module.isa())  # type: ignore[union-attr]
    version = -1 if source.is_inference() else source._version  # a tensor of inference mode counts none
    content = _fingerprint(source), source.data_ptr(), version
    entry = entries.get(key)
    if entry is None or entry.content != content:
        entries[key] = _Entry(content)
        return weight(), None
    if entry.value is None:
        made = weight().detach()
        entry.value = made, transform_weight(made, plan)
    return entry.value

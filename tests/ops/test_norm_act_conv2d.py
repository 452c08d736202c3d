"""`functional.norm_act_conv2d` against its formula in float64, by Winograd's algorithms and by PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from munit_fast import functional as mf
from munit_fast.ops import conv_plans, planned_conv, winograd

needs_plans = pytest.mark.skipif(not winograd.available(), reason="no Winograd convolutions on this processor")
MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}
KERNELS = {"3×3": (3, 1), "4×4, stride 2": (4, 2)}


@pytest.fixture
def conv(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets what MUNIT_FAST_CONV says, which is read once."""

    def choose(value: str) -> None:
        monkeypatch.setenv("MUNIT_FAST_CONV", value)
        conv_plans._override.cache_clear()

    yield choose
    monkeypatch.undo()
    conv_plans._override.cache_clear()


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The plans that were used."""
    seen: list[str] = []

    def watched(z: Any, e: Any, w: Any, b: Any, plans: Any, *rest: Any) -> Any:
        seen.append(plans.result)
        return planned_conv.planned_conv(z, e, w, b, plans, *rest)

    monkeypatch.setattr(mf, "planned_conv", watched)
    return seen


def formula(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    norm: str = "none",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    slope: Any = 0.2,
    impl: str = "",
) -> Tensor:
    """In PyTorch's own operators."""
    if norm == "instance":
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
        x = (x - mean) / (var + eps).sqrt()
    elif norm == "layer":
        x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + eps)
    if weight is not None:
        x = x * weight.reshape(-1, x.shape[1], 1, 1)
    if bias is not None:
        x = x + bias.reshape(-1, x.shape[1], 1, 1)
    acts: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda t: t,
        "relu": torch.relu,
        "lrelu": lambda t: F.leaky_relu(t, slope),
        "prelu": lambda t: F.prelu(t, slope),
        "selu": F.selu,
        "tanh": torch.tanh,
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    }
    x = acts[act](x)
    if padding:
        x = F.pad(x, (padding,) * 4, MODES[padding_mode])
    return F.conv2d(x, conv_weight, conv_bias, stride)


def tensors(kernel: int = 3, channels: int = 18, out: int = 20, n: int = 2, norm: str = "none") -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(7)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw)

    found = {
        "x": 2 * normal(n, channels, 17, 22) + 1,
        "conv_weight": normal(out, channels, kernel, kernel) / kernel / channels**0.5,
        "conv_bias": normal(out),
    }
    if norm != "none":
        found |= {"weight": normal(channels) + 2, "bias": normal(channels)}
    return found


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm())


def check(given: dict[str, Tensor], tolerance: float, **options: Any) -> Tensor:
    """The result and the gradients of all tensors are those of the formula in float64."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in given.items()}
    exact = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    y, expected = mf.norm_act_conv2d(**leaves, **options), formula(**exact, **options)
    assert y.shape == expected.shape and y.dtype == given["x"].dtype
    assert error(y, expected) < tolerance
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(8))
    got = torch.autograd.grad(y, list(leaves.values()), upstream.to(y.dtype))
    wanted = torch.autograd.grad(expected, list(exact.values()), upstream.double())
    for name, grad, want in zip(leaves, got, wanted):
        assert grad.dtype == leaves[name].dtype and grad.shape == want.shape
        assert error(grad, want) < 4 * tolerance, name
    return y


@pytest.mark.parametrize("choice", ["direct", "winograd", "winograd2", "auto"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), KERNELS.values(), ids=KERNELS)
def test_values_and_gradients(conv: Any, choice: str, layout: Any, kernel: int, stride: int) -> None:
    conv(choice)
    for (mode, padding), (norm, act) in zip(
        [("reflect", 1), ("zeros", 1), ("replicate", 2), ("zeros", 0), ("reflect", 3), ("reflect", 2), ("zeros", 2)],
        [
            ("instance", "relu"),
            ("layer", "lrelu"),
            ("none", "tanh"),
            ("none", "none"),
            ("instance", "silu"),
            ("layer", "gelu"),
            ("none", "gelu_tanh"),
        ],
        strict=True,
    ):
        given = tensors(kernel, norm=norm)
        given["x"] = given["x"].contiguous(memory_format=layout)
        options = {"stride": stride, "padding": padding, "padding_mode": mode, "norm": norm, "act": act}
        y = check(given, 1e-5, **options)
        assert y.is_contiguous(memory_format=layout)


@needs_plans
def test_which_way_a_convolution_goes(conv: Any, plans: list[str]) -> None:
    def went(**options: Any) -> list[str]:
        plans.clear()
        given = tensors(options.pop("kernel", 3))
        given |= {name: options.pop(name) for name in list(options) if name in given}
        mf.norm_act_conv2d(**given, **options)
        return list(plans)

    x = tensors()["x"]
    conv("direct")
    assert went() == went(kernel=4, stride=2) == []
    conv("winograd2")
    assert (went(), went(kernel=4, stride=2)) == (["f23"], [])
    conv("winograd")
    assert (went(), went(kernel=4, stride=2), went(padding=2)) == (["f43"], ["f42"], ["f43"])
    assert went(stride=2) == went(stride=(1, 2)) == went(kernel=5) == went(kernel=4) == went(impl="reference") == []
    assert went(conv_weight=torch.randn(20, 18, 3, 1)) == []
    doubles = {name: t.double() for name, t in tensors().items()}
    assert went(**doubles) == went(**{name: t.bfloat16() for name, t in tensors().items()}) == []
    with torch.autocast("cpu", torch.bfloat16):
        assert went() == [] and went(x=x.bfloat16()) == ["f43"]
    conv("auto")
    assert went() == ["f43"] and went(x=x[:1, :, :4, :4]) == []


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("kernel", [(1, 1), (5, 5), (2, 3), (9, 8)], ids=str)
def test_any_kernel_stride_and_parameters(impl: str, kernel: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    given = {"x": normal(2, 6, 9, 8), "conv_weight": normal(4, 6, *kernel), "slope": normal(6).abs()}
    given |= {"weight": normal(2, 6), "bias": normal(2, 6)}
    options = {"norm": "instance", "act": "prelu", "padding_mode": "reflect"}
    for stride, padding in itertools.product((1, 2), (0, 1)):
        check(given, 1e-11, impl=impl, stride=stride, padding=padding, **options)
    x, conv_weight = given["x"], given["conv_weight"]
    y = mf.norm_act_conv2d(x, conv_weight, stride=(2, 3), padding=(1, 1), impl=impl)
    torch.testing.assert_close(y, F.conv2d(x, conv_weight, None, (2, 3), 1))


def test_weights_are_those_of_now(conv: Any) -> None:
    """However a weight is changed, and whatever was kept of it."""
    conv("winograd")
    given = tensors()
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = torch.nn.Parameter(given["conv_weight"].clone(memory_format=layout))

        def right(weight: Tensor = weight) -> bool:
            with torch.no_grad():
                y = mf.norm_act_conv2d(given["x"], weight)
                return error(y, F.conv2d(given["x"].double(), weight.double())) < 1e-5

        def in_place(weight: Tensor = weight) -> None:
            with torch.no_grad():
                weight.mul_(2)

        def behind_its_back(weight: Tensor = weight) -> None:
            weight.data.add_(1)

        def replaced(weight: Tensor = weight) -> None:
            weight.data = torch.randn_like(weight)

        assert right() and right() and right()
        for change in (in_place, behind_its_back, replaced):
            change()
            assert right() and right() and right()
    strided = torch.randn(20, 36, 3, 3)[:, ::2]
    assert right(strided) and right(strided)
    with torch.inference_mode():
        made = torch.randn(20, 18, 3, 3)
        assert right(made) and right(made) and right(made)


@needs_plans
def test_a_kept_weight_is_used(conv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conv("winograd")
    given, seen = tensors(), []
    real = winograd.conv
    monkeypatch.setattr(winograd, "conv", lambda *a: (seen.append(a[2] is not None), real(*a))[1])
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = given["conv_weight"].clone(memory_format=layout)
        with torch.no_grad():
            for _ in range(3):
                mf.norm_act_conv2d(given["x"], weight)
    mf.norm_act_conv2d(given["x"], weight)
    assert seen == [False, True, True] * 2 + [False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choice", ["auto", "winograd"])
def test_autocast(conv: Any, choice: str, dtype: torch.dtype) -> None:
    conv(choice)
    given, options = tensors(norm="instance"), {"norm": "instance", "act": "relu", "padding": 1}
    expected = formula(**{name: t.double() for name, t in given.items()}, **options)
    for x in (given["x"], given["x"].to(dtype)):
        leaves = {name: t.clone().requires_grad_() for name, t in (given | {"x": x}).items()}
        with torch.autocast("cpu", dtype):
            y = mf.norm_act_conv2d(**leaves, **options)
        assert y.dtype == dtype
        assert error(y.detach(), expected) < 4 * torch.finfo(dtype).eps
        y.float().square().mean().backward()
        assert all(t.grad is not None and t.grad.dtype == t.dtype for t in leaves.values())


def test_half_precision_and_one_channel() -> None:
    given = {name: t.bfloat16() for name, t in tensors(channels=1).items()}
    y = mf.norm_act_conv2d(**given, act="relu")
    assert y.dtype == torch.bfloat16 and error(y, formula(**given, act="relu").double()) < 0.02
    x = torch.randn(2, 1, 9, 9).to(memory_format=torch.channels_last)
    for layout in (torch.channels_last, torch.contiguous_format):
        x = x.to(memory_format=layout) if layout == torch.channels_last else torch.randn(2, 1, 9, 9)
        assert mf.norm_act_conv2d(x, torch.randn(4, 1, 3, 3)).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("choice", ["direct", "winograd"])
def test_a_bias_counts_whatever_the_slope_is(conv: Any, choice: str) -> None:
    conv(choice)
    for slope in (0.0, 0.2):
        check(
            {"x": torch.randn(1, 16, 12, 12), "conv_weight": torch.randn(16, 16, 3, 3), "bias": torch.randn(16)},
            1e-5,
            padding=1,
            slope=slope,
        )


def test_one_tensor_in_two_places(conv: Any) -> None:
    conv("winograd")
    x = torch.randn(18, 18, 3, 3)
    check({"x": x, "conv_weight": torch.randn_like(x)}, 1e-5, padding=1)
    both = x.clone().requires_grad_()
    y = mf.norm_act_conv2d(both, both, padding=1, act="relu")
    [grad] = torch.autograd.grad(y.sum(), both, create_graph=True)
    exact = x.double().requires_grad_()
    [expected] = torch.autograd.grad(formula(exact, exact, padding=1, act="relu").sum(), exact, create_graph=True)
    assert error(grad.detach(), expected.detach()) < 1e-5
    [second] = torch.autograd.grad(grad.square().sum(), both)
    assert error(second, torch.autograd.grad(expected.square().sum(), exact)[0]) < 1e-5


@pytest.mark.parametrize("choice", ["direct", "winograd"])
def test_compiles_in_one_graph(conv: Any, choice: str) -> None:
    conv(choice)
    torch._dynamo.reset()
    given = {name: t.requires_grad_() for name, t in tensors(norm="instance").items()}
    options: dict[str, Any] = {"norm": "instance", "act": "lrelu", "padding": 1, "padding_mode": "reflect"}
    compiled = torch.compile(mf.norm_act_conv2d, backend="aot_eager", fullgraph=True)
    y, expected = compiled(**given, **options), mf.norm_act_conv2d(**given, **options)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    leaves = list(given.values())
    for got, want in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_compiles_for_any_size(conv: Any) -> None:
    conv("winograd")
    torch._dynamo.reset()
    weight = torch.randn(5, 4, 3, 3)
    compiled = torch.compile(mf.norm_act_conv2d, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (9, 12, 14):
        x = torch.randn(2, 4, size, size + 1)
        got, want = (call(x, weight, padding=1, norm="instance") for call in (compiled, mf.norm_act_conv2d))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_trace_keeps_nothing(conv: Any) -> None:
    conv("winograd")
    weight, x = torch.randn(5, 4, 3, 3), torch.randn(2, 4, 9, 10)
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: mf.norm_act_conv2d(x, weight, padding=1), x)
        torch.testing.assert_close(traced(x), mf.norm_act_conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_of_autocasts_dtype(conv: Any, dtype: torch.dtype) -> None:
    conv("winograd")
    x, weight, bias = torch.randn(1, 4, 9, 10).to(dtype), torch.randn(5, 4, 3, 3), torch.randn(5).to(dtype)
    bias.requires_grad_()
    with torch.autocast("cpu", dtype):
        y = mf.norm_act_conv2d(x, weight, bias, padding=1)
    y.float().sum().backward()
    assert y.dtype == dtype and bias.grad is not None and bias.grad.dtype == dtype
    expected = torch.conv2d(x.float(), weight, bias.detach().float(), padding=1)
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.1)


def test_a_weight_whose_rows_lie_far_apart(conv: Any) -> None:
    conv("winograd")
    try:
        memory = torch.empty(16 * 150_000_000)  # of which a few pages are touched
    except RuntimeError:
        pytest.skip("no address space")
    weight = memory.as_strided((16, 4, 3, 3), (150_000_000, 9, 3, 1))
    weight.copy_(torch.randn(16, 4, 3, 3))
    x = torch.randn(1, 4, 9, 10)
    with torch.no_grad():
        got, want = mf.norm_act_conv2d(x, weight, padding=1), torch.conv2d(x, weight.contiguous(), padding=1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


X, W = torch.randn(2, 4, 5, 6), torch.randn(3, 4, 3, 3)
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": X[0]}, ValueError, r"^x .*\[N, C, H, W\].*\b3 "),
    ({"x": X[:0]}, ValueError, r"^x .*empty .*\[0, 4, 5, 6\]"),
    ({"x": X.int()}, TypeError, r"^x .*floating-point .*torch\.int32"),
    ({"x": None}, TypeError, "^x .*tensor.* NoneType"),
    ({"conv_weight": W[:, :2]}, ValueError, r"^conv_weight .*\[O, 4, kh, kw\].*\[2, 4, 5, 6\].*groups.*\[3, 2, 3, 3\]"),
    ({"conv_weight": W[0]}, ValueError, r"^conv_weight .*\[O, 4, kh, kw\].*\[4, 3, 3\]"),
    ({"conv_weight": W[:0]}, ValueError, r"^conv_weight .*\[0, 4, 3, 3\]"),
    ({"conv_weight": torch.randn(3, 4, 6, 3)}, ValueError, "^conv_weight .*5×6.*6×3.*padding"),
    ({"conv_weight": torch.randn(3, 4, 8, 3), "padding": 1}, ValueError, "^conv_weight .*7×8.*8×3"),
    ({"conv_weight": W.double()}, TypeError, r"^conv_weight .*torch\.float32.*torch\.float64"),
    ({"conv_weight": W.int()}, TypeError, "^conv_weight .*floating-point"),
    ({"conv_weight": W.to("meta")}, ValueError, "^conv_weight .*device of x.*cpu.*meta"),
    ({"conv_weight": None}, TypeError, "^conv_weight .*tensor.* NoneType"),
    ({"conv_bias": torch.ones(4)}, ValueError, r"^conv_bias .*\[3\].*\[4\]"),
    ({"conv_bias": torch.ones(3).half()}, TypeError, r"^conv_bias .*torch\.float32.*torch\.float16"),
    ({"conv_bias": torch.ones(3).to("meta")}, ValueError, "^conv_bias .*device of x.*meta"),
    ({"conv_bias": 1.0}, TypeError, "^conv_bias .*tensor.*float"),
    ({"stride": 0}, ValueError, "^stride .*1.* 0"),
    ({"stride": 1.5}, TypeError, "^stride .*whole .*float"),
    ({"stride": (1, 1, 1)}, ValueError, r"^stride .*pair.*\(1, 1, 1\)"),
    ({"padding": -1}, ValueError, "^padding .*0.* -1"),
    ({"padding": (0, 1)}, ValueError, r"^padding .*equal.*\(0, 1\).*pad"),
    ({"padding": "same"}, TypeError, "^padding .*whole .*str"),
    ({"padding": 5, "padding_mode": "reflect"}, ValueError, "^padding .*reflect.*padding=5 .*5×6"),
    ({"padding_mode": "circular"}, ValueError, "^padding_mode .*zeros, reflect, replicate.*'circular'"),
    ({"padding_mode": "zero"}, ValueError, "^padding_mode .*zeros.*'zero'"),
    ({"norm": "batch"}, ValueError, "^norm .*none, instance, layer.*'batch'"),
    ({"weight": torch.ones(4)}, ValueError, "^weight .*None .*norm='none'"),
    ({"bias": torch.ones(2, 4)}, ValueError, r"^bias .*\[4\].*\[2, 4\]"),
    ({"norm": "layer", "weight": torch.ones(2, 4)}, ValueError, r"^weight .*\[4\].*\[2, 4\]"),
    ({"norm": "instance", "weight": torch.ones(3)}, ValueError, r"^weight .*\[4\].*\[3\]"),
    ({"norm": "instance", "weight": torch.ones(3, 4)}, ValueError, r"^weight .*\[2, 4\].*\[3, 4\]"),
    ({"norm": "instance", "x": X[:, :, :1, :1], "padding": 1}, ValueError, "^x .*1×1"),
    (
        {"norm": "layer", "x": X[:, :1, :1, :1], "conv_weight": W[:, :1], "padding": 1},
        ValueError,
        r"^x .*\[N, 1, 1, 1\]",
    ),
    ({"norm": "instance", "eps": -1.0}, ValueError, "^eps "),
    ({"act": "mish"}, ValueError, "^act .*'mish'"),
    ({"act": "prelu"}, TypeError, "^slope .*tensor"),
    ({"act": "prelu", "slope": torch.ones(3)}, ValueError, r"^slope .*\[1\] or \[4\].*\[3\]"),
    ({"impl": "gpu"}, ValueError, "^impl .*'gpu'"),
    ({"impl": "triton"}, RuntimeError, "^impl='triton' .*cpu"),
]


@pytest.mark.parametrize(("changed", "expected", "match"), REFUSED, ids=lambda value: None)
def test_what_is_refused(changed: dict[str, Any], expected: type[Exception], match: str) -> None:
    with pytest.raises(expected, match=match) as caught:
        mf.norm_act_conv2d(**{"x": X, "conv_weight": W, **changed})
    assert "\n" not in str(caught.value)


def test_autocast_does_not_excuse_float64() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"^conv_weight .*torch\.float64"):
        mf.norm_act_conv2d(X, W.double())

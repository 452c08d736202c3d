"""Every bad argument is refused with ValueError or TypeError on one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from munit_fast import functional as mf

X = torch.randn(2, 4, 5, 6)
NORMS = (mf.instance_norm, mf.layer_norm2d, mf.bias_act)


def adain(x: Any, **options: Any) -> Tensor:
    given = {"weight": torch.ones(2, 4), "bias": torch.zeros(2, 4)} | options
    return mf.adain(x, given.pop("weight"), given.pop("bias"), **given)


def raises(error: Any, match: str, function: Callable[..., object], *arguments: Any, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)


ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": X[0, 0]}, ValueError, r"^x .*\[N, C, H, W\].*\b2 .*\[5, 6\]"),
    ({"x": X[None, None]}, ValueError, r"^x .*\[N, C, H, W\].*\b6 "),
    ({"x": X.int()}, TypeError, r"^x .*floating-point .*torch\.int32"),
    ({"x": X.to(torch.complex64)}, TypeError, "^x .*floating-point"),
    ({"x": X.bool()}, TypeError, "^x .*floating-point"),
    ({"x": None}, TypeError, "^x .*tensor.* NoneType"),
    ({"x": X.numpy()}, TypeError, "^x .*tensor.* ndarray"),
    ({"x": X[:0]}, ValueError, r"^x .*empty .*\[0, 4, 5, 6\]"),
    ({"x": X[:, :, :0]}, ValueError, r"^x .*empty .*\[2, 4, 0, 6\]"),
    ({"act": "mish"}, ValueError, r"act .*'mish'"),
    ({"act": None}, ValueError, "^act .*relu.* None"),
    ({"pad_mode": "circular"}, ValueError, "^pad_mode .*reflect, replicate, zero.*'circular'"),
    ({"impl": "cuda12"}, ValueError, "^impl .*auto, triton, cuda, cpu, reference.*'cuda12'"),
    ({"pad": -1}, ValueError, "^pad .*0.* -1"),
    ({"pad": True}, TypeError, "^pad .*whole .*bool"),
    ({"pad": 1.0}, TypeError, "^pad .*whole .*float"),
    ({"pad": (1, 1)}, TypeError, "^pad .*whole .*tuple"),
    ({"pad": 5}, ValueError, "^pad .*reflect.*pad=5 .*5×6"),
    ({"pad": 9}, ValueError, "^pad .*reflect.*pad=9"),
    ({"residual": X[:1]}, ValueError, r"^residual .*\[2, 4, 5, 6\].*\[1, 4, 5, 6\]"),
    ({"residual": X.bfloat16()}, TypeError, r"^residual .*torch\.float32.*torch\.bfloat16"),
    ({"residual": X.int()}, TypeError, r"^residual .*floating-point .*torch\.int32"),
    ({"residual": X.to("meta")}, ValueError, "^residual .*device of x.*cpu.*meta"),
    ({"residual": 1.0}, TypeError, "^residual .*tensor.*float"),
    ({"act": "prelu"}, TypeError, r"^slope .*\[1\] or \[C\] .*'prelu'"),
    ({"act": "prelu", "slope": torch.rand(3)}, ValueError, r"^slope .*\[1\] or \[4\].*\[3\]"),
    ({"act": "prelu", "slope": torch.tensor(0.2)}, ValueError, r"^slope .*\[1\] or \[4\].*\[\]"),
    ({"act": "prelu", "slope": torch.rand(4).to("meta")}, ValueError, "^slope .*device of x.*meta"),
    ({"act": "prelu", "slope": torch.ones(4).int()}, TypeError, "^slope .*floating-point"),
    ({"act": "lrelu", "slope": torch.rand(1)}, TypeError, "^slope .*number.*'lrelu'"),
    ({"act": "relu", "slope": torch.rand(1)}, TypeError, "^slope .*number.*'relu'"),
    ({"act": "lrelu", "slope": "steep"}, TypeError, "^slope .*number.*str"),
    ({"act": "lrelu", "slope": None}, TypeError, "^slope .*number.*NoneType"),
]


@pytest.mark.parametrize(("changed", "error", "match"), ARGUMENTS, ids=lambda value: None)
@pytest.mark.parametrize("function", [*NORMS, adain])
def test_arguments_of_every_epilogue(
    function: Callable[..., Tensor], changed: dict[str, Any], error: type[Exception], match: str
) -> None:
    arguments = {"x": X} | changed
    raises(error, match, function, arguments.pop("x"), **arguments)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameters(name: str) -> None:
    of_channels = [mf.instance_norm, mf.layer_norm2d] + ([mf.bias_act] if name == "bias" else [])
    for function in of_channels:
        for wrong in (torch.ones(5), torch.ones(1), torch.ones(2, 4), torch.ones(())):
            raises(ValueError, rf"^{name} .*\[4\] for x", function, X, **{name: wrong})
    for wrong in (torch.ones(4), torch.ones(8), torch.ones(1, 4), torch.ones(2, 4, 1, 1)):
        raises(ValueError, rf"^{name} .*\[2, 4\] for x", adain, X, **{name: wrong})
    raises(TypeError, f"^{name} .*tensor.* None", adain, X, **{name: None})
    for function, shape in ((mf.layer_norm2d, (4,)), (adain, (2, 4))):
        raises(TypeError, f"^{name} .*floating-point", function, X, **{name: torch.ones(shape).int()})
        raises(
            ValueError,
            f"^{name} .*device of x.*meta",
            function,
            X,
            **{name: torch.ones(shape, device="meta")},
        )
        raises(TypeError, f"^{name} .*tensor.*float", function, X, **{name: 1.0})


@pytest.mark.parametrize("eps", [-1e-5, float("nan"), "small", None])
def test_eps(eps: Any) -> None:
    for function in (mf.instance_norm, mf.layer_norm2d, adain):
        raises((ValueError, TypeError), "^eps ", function, X, eps=eps)


def test_planes_of_one_pixel() -> None:
    one = torch.randn(2, 4, 1, 1)
    raises(
        ValueError,
        r"^x .*1×1 .*\[2, 4, 1, 1\]",
        mf.instance_norm,
        one,
    )
    raises(ValueError, "^x .*1×1 ", adain, one)
    raises(ValueError, r"^x .*\[N, 1, 1, 1\]", mf.layer_norm2d, one[:, :1])
    assert mf.layer_norm2d(one).shape == one.shape
    assert torch.equal(mf.bias_act(one, pad=2, pad_mode="replicate"), one.expand(2, 4, 5, 5))
    raises(ValueError, "^pad .*reflect.*pad=1 .*1×1", mf.bias_act, one, pad=1)


def test_depth_to_space() -> None:
    raises(
        ValueError,
        r"^depth_to_space=3 .*\b9\b.*\b4\b",
        mf.layer_norm2d,
        X,
        depth_to_space=3,
    )
    raises(ValueError, "^depth_to_space .*1.* 0", mf.layer_norm2d, X, depth_to_space=0)
    raises(TypeError, "^depth_to_space .*whole .*float", mf.layer_norm2d, X, depth_to_space=2.0)
    raises(TypeError, "^depth_to_space .*whole .*bool", mf.layer_norm2d, X, depth_to_space=True)
    raises(ValueError, r"^weight .*\[4\]", mf.layer_norm2d, X, torch.ones(2), depth_to_space=2)
    # The side that is reflected is the one after depth-to-space.
    assert mf.layer_norm2d(X, depth_to_space=2, pad=9).shape == (2, 1, 28, 30)
    raises(ValueError, "pad=10 .*10×12", mf.layer_norm2d, X, depth_to_space=2, pad=10)


def test_a_pad_as_large_as_the_side_is_welcome_unless_it_reflects(backend: str) -> None:
    for mode in ("replicate", "zero"):
        assert mf.bias_act(X, pad=7, pad_mode=mode, impl=backend).shape == (2, 4, 19, 20)
    assert mf.bias_act(X, pad=4, impl=backend).shape == (2, 4, 13, 14)


@pytest.mark.parametrize("function", [*NORMS, adain])
def test_an_explicit_backend_serves_or_gives_a_reason(function: Callable[..., Tensor]) -> None:
    raises(RuntimeError, "^impl='triton' .*cpu", function, X, impl="triton")
    raises(RuntimeError, "^impl='triton' .*cpu", function, X.clone().requires_grad_(), impl="triton")


def test_an_explicit_backend_of_the_losses() -> None:
    raises(RuntimeError, "^impl='triton' .*cpu", mf.l1_loss, X, X, impl="triton")
    raises(RuntimeError, "^impl='triton' .*cpu", mf.lsgan_loss, X, 1.0, impl="triton")


def test_l1() -> None:
    raises(ValueError, r"^pairs .*one \(a, b\)", mf.l1_losses, [])
    raises(ValueError, r"^a and b .*\[2, 4, 5, 6\] and \[4, 5, 6\]", mf.l1_loss, X, X[0])
    raises(
        ValueError,
        r"^pairs\[1\]\[0\] and pairs\[1\]\[1\] .*\[2, 4, 5, 6\] and \[1, 4, 5, 6\]",
        mf.l1_losses,
        [(X, X), (X, X[:1])],
    )
    raises(ValueError, r"^a and b .*empty.*\[0, 4, 5, 6\]", mf.l1_loss, X[:0], X[:0])
    raises(ValueError, "^b .*device of a", mf.l1_loss, X, X.to("meta"))
    raises(ValueError, r"^pairs\[1\]\[0\] .*device of", mf.l1_losses, [(X, X), (X.to("meta"),) * 2])
    raises(TypeError, "^b .*floating-point", mf.l1_loss, X, X.int())
    raises(TypeError, "^b .*tensor.*float", mf.l1_loss, X, 1.0)
    raises(ValueError, "^impl .*auto.*'fast'", mf.l1_loss, X, X, impl="fast")


def test_l1_of_a_first_argument_that_is_a_number() -> None:
    raises(TypeError, "^a .*tensor.*float", mf.l1_loss, 1.0, X)


def test_l1_of_something_else_than_pairs() -> None:
    raises((TypeError, ValueError), "pairs", mf.l1_losses, [(X, X, X)])
    a = torch.randn(2, 3)
    raises(TypeError, "^pairs .*list", mf.l1_losses, (a, a))  # not [(a[0], a[1]), …]
    raises((TypeError, ValueError), "pairs", mf.l1_losses, torch.randn(2, 2, 3))


def test_lsgan() -> None:
    raises(ValueError, "^outputs .*one tensor", mf.lsgan_loss, [], 1.0)
    raises(ValueError, r"^outputs\[1\] .*empty.*\[0, 4, 5, 6\]", mf.lsgan_loss, [X, X[:0]], 1.0)
    raises(ValueError, r"^outputs\[1\] .*device of outputs\[0\]", mf.lsgan_loss, [X, X.to("meta")], 1.0)
    raises(TypeError, r"^outputs\[0\] .*floating-point", mf.lsgan_loss, X.int(), 1.0)
    raises(TypeError, r"^outputs\[0\] .*tensor.*float", mf.lsgan_loss, [1.0], 1.0)
    for target in (True, "real", torch.ones(1), None):
        raises(TypeError, "^target .*number", mf.lsgan_loss, X, target)
    raises(ValueError, "^impl .*auto.*'fast'", mf.lsgan_loss, X, 1.0, impl="fast")


def test_lsgan_of_nothing() -> None:
    raises(TypeError, "outputs", mf.lsgan_loss, None, 1.0)

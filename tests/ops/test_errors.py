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
    ({"x": X[0]}, ValueError, r"x must be \[N, C, H, W\]; got 3 dimensions, \[4, 5, 6\]"),
    ({"x": X[None]}, ValueError, r"x must be \[N, C, H, W\]; got 5 dimensions"),
    ({"x": X.int()}, TypeError, r"x must be floating-point .*; got torch.int32"),
    ({"x": X.to(torch.complex64)}, TypeError, "x must be floating-point"),
    ({"x": X.bool()}, TypeError, "x must be floating-point"),
    ({"x": None}, TypeError, "x must be a tensor; got NoneType"),
    ({"x": X.numpy()}, TypeError, "x must be a tensor; got ndarray"),
    ({"x": X[:0]}, ValueError, r"x must not be empty .*\[0, 4, 5, 6\]"),
    ({"x": X[:, :, :0]}, ValueError, "x must not be empty"),
    ({"act": "gelu"}, ValueError, r"act .*'gelu'"),
    ({"act": None}, ValueError, "act must be one of"),
    ({"pad_mode": "circular"}, ValueError, "pad_mode must be one of reflect, replicate, zero; got 'circular'"),
    ({"impl": "cuda12"}, ValueError, "impl must be one of auto, triton, cuda, cpu, reference; got 'cuda12'"),
    ({"pad": -1}, ValueError, "pad must be at least 0; got -1"),
    ({"pad": True}, TypeError, "pad must be a whole number; got bool"),
    ({"pad": 1.0}, TypeError, "pad must be a whole number; got float"),
    ({"pad": (1, 1)}, TypeError, "pad must be a whole number; got tuple"),
    ({"pad": 5}, ValueError, "pad must be smaller than each side to reflect; got pad=5 for 5×6"),
    ({"pad": 9}, ValueError, "pad must be smaller than each side to reflect; got pad=9"),
    ({"residual": X[:1]}, ValueError, r"residual must have x's shape \[2, 4, 5, 6\]; got \[1, 4, 5, 6\]"),
    ({"residual": X.bfloat16()}, TypeError, "residual must have x's dtype torch.float32; got torch.bfloat16"),
    ({"residual": X.int()}, TypeError, "residual must be floating-point"),
    ({"residual": X.to("meta")}, ValueError, "residual must be on the device of x, cpu; got meta"),
    ({"residual": 1.0}, TypeError, "residual must be a tensor; got float"),
    ({"act": "prelu"}, TypeError, r"slope must be a tensor \[1\] or \[C\]"),
    ({"act": "prelu", "slope": torch.rand(3)}, ValueError, r"slope must have shape \[1\] or \[4\]; got \[3\]"),
    ({"act": "prelu", "slope": torch.tensor(0.2)}, ValueError, "slope must have shape"),
    ({"act": "prelu", "slope": torch.rand(4).to("meta")}, ValueError, "slope must be on the device of x"),
    ({"act": "prelu", "slope": torch.ones(4).int()}, TypeError, "slope must be floating-point"),
    ({"act": "lrelu", "slope": torch.rand(1)}, TypeError, "slope must be a number for act='lrelu'"),
    ({"act": "relu", "slope": torch.rand(1)}, TypeError, "slope must be a number for act='relu'"),
    ({"act": "lrelu", "slope": "steep"}, TypeError, "slope must be a number"),
    ({"act": "lrelu", "slope": None}, TypeError, "slope must be a number"),
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
            raises(ValueError, rf"{name} must have shape \[4\] for x", function, X, **{name: wrong})
    for wrong in (torch.ones(4), torch.ones(8), torch.ones(1, 4), torch.ones(2, 4, 1, 1)):
        raises(ValueError, rf"{name} must have shape \[2, 4\] for x", adain, X, **{name: wrong})
    raises(TypeError, f"{name} must be a tensor; got None", adain, X, **{name: None})
    for function, shape in ((mf.layer_norm2d, (4,)), (adain, (2, 4))):
        raises(TypeError, f"{name} must be floating-point", function, X, **{name: torch.ones(shape).int()})
        raises(
            ValueError,
            f"{name} must be on the device of x",
            function,
            X,
            **{name: torch.ones(shape, device="meta")},
        )
        raises(TypeError, f"{name} must be a tensor", function, X, **{name: 1.0})


@pytest.mark.parametrize("eps", [-1e-5, float("nan"), "small", None])
def test_eps(eps: Any) -> None:
    for function in (mf.instance_norm, mf.layer_norm2d, adain):
        raises((ValueError, TypeError), "eps must", function, X, eps=eps)


def test_planes_of_one_pixel() -> None:
    one = torch.randn(2, 4, 1, 1)
    raises(
        ValueError,
        r"x must have planes larger than 1×1 to be normalised; got \[2, 4, 1, 1\]",
        mf.instance_norm,
        one,
    )
    raises(ValueError, "x must have planes larger than 1×1", adain, one)
    raises(ValueError, "x must have more than one number a sample", mf.layer_norm2d, one[:, :1])
    assert mf.layer_norm2d(one).shape == one.shape
    assert torch.equal(mf.bias_act(one, pad=2, pad_mode="replicate"), one.expand(2, 4, 5, 5))
    raises(ValueError, "pad must be smaller than each side to reflect", mf.bias_act, one, pad=1)


def test_depth_to_space() -> None:
    raises(
        ValueError,
        "depth_to_space=3 needs channels divisible by 9; x has 4",
        mf.layer_norm2d,
        X,
        depth_to_space=3,
    )
    raises(ValueError, "depth_to_space must be at least 1; got 0", mf.layer_norm2d, X, depth_to_space=0)
    raises(TypeError, "depth_to_space must be a whole number; got float", mf.layer_norm2d, X, depth_to_space=2.0)
    raises(TypeError, "depth_to_space must be a whole number; got bool", mf.layer_norm2d, X, depth_to_space=True)
    raises(ValueError, r"weight must have shape \[4\]", mf.layer_norm2d, X, torch.ones(2), depth_to_space=2)
    # The side that is reflected is the one after depth-to-space.
    assert mf.layer_norm2d(X, depth_to_space=2, pad=9).shape == (2, 1, 28, 30)
    raises(ValueError, "got pad=10 for 10×12", mf.layer_norm2d, X, depth_to_space=2, pad=10)


def test_a_pad_as_large_as_the_side_is_welcome_unless_it_reflects(backend: str) -> None:
    for mode in ("replicate", "zero"):
        assert mf.bias_act(X, pad=7, pad_mode=mode, impl=backend).shape == (2, 4, 19, 20)
    assert mf.bias_act(X, pad=4, impl=backend).shape == (2, 4, 13, 14)


@pytest.mark.parametrize("function", [*NORMS, adain])
def test_an_explicit_backend_serves_or_gives_a_reason(function: Callable[..., Tensor]) -> None:
    raises(RuntimeError, "impl='triton' cannot be used here: .*cpu", function, X, impl="triton")
    raises(RuntimeError, "impl='triton' cannot be used here", function, X.clone().requires_grad_(), impl="triton")


def test_an_explicit_backend_of_the_losses() -> None:
    raises(RuntimeError, "impl='triton' cannot be used here: .*cpu", mf.l1_loss, X, X, impl="triton")
    raises(RuntimeError, "impl='triton' cannot be used here: .*cpu", mf.lsgan_loss, X, 1.0, impl="triton")


def test_l1() -> None:
    raises(ValueError, "pairs must hold at least one", mf.l1_losses, [])
    raises(ValueError, r"^a and b must have one shape; got \[2, 4, 5, 6\] and \[4, 5, 6\]", mf.l1_loss, X, X[0])
    raises(ValueError, r"pairs\[1\]\[0\] and pairs\[1\]\[1\] must have one shape", mf.l1_losses, [(X, X), (X, X[:1])])
    raises(ValueError, "^a and b must not be empty", mf.l1_loss, X[:0], X[:0])
    raises(ValueError, "^b must be on the device of a", mf.l1_loss, X, X.to("meta"))
    raises(ValueError, r"pairs\[1\]\[0\] must be on the device of", mf.l1_losses, [(X, X), (X.to("meta"),) * 2])
    raises(TypeError, "^b must be floating-point", mf.l1_loss, X, X.int())
    raises(TypeError, "^b must be a tensor; got float", mf.l1_loss, X, 1.0)
    raises(ValueError, "impl must be one of", mf.l1_loss, X, X, impl="fast")


def test_l1_of_a_first_argument_that_is_a_number() -> None:
    raises(TypeError, "^a must be a tensor; got float", mf.l1_loss, 1.0, X)


def test_l1_of_something_else_than_pairs() -> None:
    raises((TypeError, ValueError), "pairs", mf.l1_losses, [(X, X, X)])
    a = torch.randn(2, 3)
    raises(TypeError, "pairs must be a list", mf.l1_losses, (a, a))  # not [(a[0], a[1]), …]
    raises((TypeError, ValueError), "pairs", mf.l1_losses, torch.randn(2, 2, 3))


def test_lsgan() -> None:
    raises(ValueError, "outputs must hold at least one tensor", mf.lsgan_loss, [], 1.0)
    raises(ValueError, r"outputs\[1\] must not be empty; got shape \[0, 4, 5, 6\]", mf.lsgan_loss, [X, X[:0]], 1.0)
    raises(ValueError, r"outputs\[1\] must be on the device of outputs\[0\]", mf.lsgan_loss, [X, X.to("meta")], 1.0)
    raises(TypeError, r"outputs\[0\] must be floating-point", mf.lsgan_loss, X.int(), 1.0)
    raises(TypeError, r"outputs\[0\] must be a tensor; got float", mf.lsgan_loss, [1.0], 1.0)
    for target in (True, "real", torch.ones(1), None):
        raises(TypeError, "target must be a number", mf.lsgan_loss, X, target)
    raises(ValueError, "impl must be one of", mf.lsgan_loss, X, 1.0, impl="fast")


def test_lsgan_of_nothing() -> None:
    raises(TypeError, "outputs", mf.lsgan_loss, None, 1.0)

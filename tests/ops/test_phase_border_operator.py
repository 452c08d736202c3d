"""The operators of a phase convolution's border: schema, choice, what they refuse, and where networks call them."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import border_cases as cases
from munit_fast.models import networks
from munit_fast.models.networks import Decoder
from munit_fast.ops import backends, fused_conv, phase_border
from munit_fast.ops.backends import Problem, cuda, reference, triton

UTILS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
FORWARD, BACKWARD = torch.ops.munit_fast.phase_border, torch.ops.munit_fast.phase_border_backward


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)], ids=str)
def test_opcheck(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    a, weight, y, grad, grad_a = cases.make_case((2, 3, 4, 5), 2, *dtypes)
    torch.library.opcheck(FORWARD, (y, a, weight, "reference"), test_utils=UTILS)
    for given, need in itertools.product((grad_a, None), (True, False)):
        torch.library.opcheck(BACKWARD, (grad, a, weight, given, need, "reference"), test_utils=UTILS)


@pytest.mark.parametrize("dtype", [torch.float64, *cases.DTYPES], ids=str)
@pytest.mark.parametrize(("shape", "out"), cases.SHAPES, ids=str)
def test_the_formula_against_float64(shape: tuple[int, int, int, int], out: int, dtype: torch.dtype) -> None:
    case = cases.make_case(shape, out, dtype, dtype if dtype == torch.float64 else torch.float32)
    cases.check(reference, case, rounds_factors=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(2, 3, 3, 7).contiguous(memory_format=torch.channels_last)}, "two pixels"),
        ({"y": torch.zeros(2, 8, 4, 6).contiguous(memory_format=torch.channels_last)}, "needed"),
        ({"weight": torch.zeros(2, 4, 5, 5)}, "needed"),
        ({"weight": torch.zeros(2, 3, 3, 3)}, "needed"),
        ({"weight": torch.zeros(2, 3, 5, 5, dtype=torch.float64)}, "float64"),
        ({"a": torch.zeros(2, 3, 6, 7).bfloat16().contiguous(memory_format=torch.channels_last)}, "bfloat16"),
        ({"y": torch.zeros(2, 8, 4, 5)}, "channels_last"),
    ],
)
def test_what_it_refuses(change: dict[str, Tensor], message: str) -> None:
    a, weight, y, _, _ = cases.make_case((2, 3, 4, 5), 2, torch.float32, torch.float32)._replace(**change)
    with pytest.raises(ValueError, match=message):
        phase_border.phase_border(y, a, weight, "reference")
    with pytest.raises(ValueError, match=message):
        phase_border.phase_border_backward(y, a, weight, None, True, "reference")


def test_a_gradient_unlike_its_tensor_is_refused() -> None:
    a, weight, _, grad, grad_a = cases.make_case((2, 3, 4, 5), 2, torch.float32, torch.float32)
    for other in (torch.zeros(2, 3, 6, 8), grad_a.bfloat16(), grad_a.contiguous()):
        with pytest.raises(ValueError, match=r"grad_a|channels_last"):
            phase_border.phase_border_backward(grad, a, weight, other, True, "reference")


def test_who_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, here = torch.device("cuda", 0), torch.device("cpu")
    problem = Problem("phase_border", samples=2, sample=1000, itemsize=2, channels=8)
    assert backends.choose("auto", here, torch.float32, problem) is reference
    with pytest.raises(RuntimeError, match="border"):
        backends.choose("cpu", here, torch.float32, problem)
    for name in ("cuda", "triton"):
        monkeypatch.setattr(backends.BACKENDS[name], "unsupported_reason", lambda device, dtype: None)
    assert backends.automatic(gpu, torch.bfloat16, problem) == "triton"
    for large in (problem._replace(sample=2**31), problem._replace(samples=70000), problem._replace(channels=70000)):
        assert triton.unsupported_problem_reason(large) and cuda.unsupported_problem_reason(large)
        assert backends.automatic(gpu, torch.bfloat16, large) == "reference"


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks on the CPU call the operators, as on every other device."""
    monkeypatch.setattr(fused_conv, "_on_device", lambda x: True)
    torch._dynamo.reset()


def decoder(device: str = "cpu") -> Decoder:
    torch.manual_seed(0)
    with torch.device(device):
        return Decoder(2, 0, 16, 3, "in", "relu", "reflect")


def results(net: Decoder, function: Any, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    parameters = list(net.parameters())
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters], allow_unused=True)]


class Names(TorchDispatchMode):
    """Counts the operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func._schema.name] = self.found.get(func._schema.name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_operator_each_way_for_each_upsampling(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing besides: neither products, nor windows, nor casts of the 5×5 weights or of their gradients."""
    # Autocast does not know "meta".
    monkeypatch.setattr(networks, "compute_dtype", lambda x, of_parameters: dtype)
    monkeypatch.setattr(networks, "autocast_off", lambda x: nullcontext())
    net = decoder("meta")
    x = torch.empty(1, 16, 8, 12, device="meta").to(dtype)
    with Names() as names:
        results(net, net, x)
    assert names.found["munit_fast::phase_border"] == names.found["munit_fast::phase_border_backward"] == 2
    assert not {"aten::bmm", "aten::unfold", "aten::flip", "aten::repeat_interleave"} & set(names.found)


@pytest.mark.parametrize("size", [(2, 2), (2, 9), (7, 6)])
def test_a_network_on_a_gpu_computes_what_it_computes_on_the_cpu(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_conv, "is_real_cpu", lambda x: False)
    net, x = decoder().double(), torch.randn(2, 16, *size, dtype=torch.float64)
    want = results(net, net, x)
    monkeypatch.setattr(fused_conv, "_on_device", lambda x: True)
    for got, wanted in zip(results(net, net, x), want, strict=True):
        assert (got is None and wanted is None) or (got - wanted).abs().max() <= 1e-12 * wanted.abs().max()


@pytest.mark.slow
def test_a_network_on_a_gpu_compiles_in_one_graph(as_on_a_gpu: None) -> None:
    net = decoder()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((12, 20), (10, 6)):
        x = torch.randn(2, 16, *size)
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = results(net, compiled, x)
        for got, want in zip(found, results(net, net, x), strict=True):
            assert got is want or (got - want).norm() <= 1e-4 * want.norm() + 1e-5

"""The kernels on a GPU: the interpreter's cases again, real sizes, another stream, and a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers import kernel_cases as cases
from helpers import kernel_checks as checks
from helpers import loss_cases
from helpers.kernel_cases import KernelCase

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or HIP device"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REAL = [variant for case in cases.NETWORK_CASES for variant in cases.variants(case, DTYPES, (True,))]
REAL += [variant for case in cases.NETWORK_CASES for variant in cases.variants(case, (torch.bfloat16,), (False,))]
ODD = [
    KernelCase((3, 63, 37, 101), weight="shared", bias="shared", act="prelu", slope="channel", pad=2),
    KernelCase((3, 72, 33, 65), norm="layer", weight="sample", act="selu", block=2, pad=3, residual=True),
    KernelCase((2, 1000, 9, 7), norm="instance", act="tanh", pad=1, pad_mode="replicate"),
    KernelCase((1, 1, 255, 257), norm="instance", act="relu", pad=3),
    KernelCase((65, 24, 5, 6), norm="layer", act="lrelu", pad=1, pad_mode="zero"),
]


def _check(case: KernelCase) -> None:
    inputs = cases.make_inputs(case, "cuda")
    checks.check_backward(case, inputs, checks.check_forward(case, inputs))


@pytest.mark.parametrize("case", cases.covering_cases(), ids=str)
def test_small(case: KernelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.use_tile(case, monkeypatch)
    _check(case)


@pytest.mark.parametrize(
    "case", [*REAL, *(v for case in ODD for v in cases.variants(case, DTYPES, (True, False)))], ids=str
)
def test_real_sizes(case: KernelCase) -> None:
    _check(case)


def _step(case: KernelCase, inputs: cases.KernelInputs) -> Callable[[], list[Tensor]]:
    """A function that launches everything once, and returns all results."""
    from munit_fast.kernels import losses

    i = inputs
    first, second = loss_cases.make_pairs([(1, 3, 256, 256), (1, 8, 1, 1)], case.dtype, device="cuda")
    upstream = torch.ones(2, device="cuda")

    def step() -> list[Tensor]:
        y, stats = checks.run_forward(case, i)
        back = checks.run_backward(case, i, stats)
        loss = losses.l1_losses_forward(first, second)
        grads = loss_cases.l1_gradients(upstream, first, second, (True, True, False, False))[:2]
        adversarial = losses.lsgan_loss_forward(first, 1.0)
        return [y, stats, *back, loss, *grads, adversarial, *loss_cases.lsgan_gradients(adversarial, first, 1.0)]

    return step


WHOLE = KernelCase((2, 256, 64, 64), torch.bfloat16, weight="sample", bias="sample", act="prelu", pad=1, residual=True)


def test_the_same_bits_every_time() -> None:
    step = _step(WHOLE, cases.make_inputs(WHOLE, "cuda"))
    expected = step()
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(step(), expected))


def test_another_stream() -> None:
    step = _step(WHOLE, cases.make_inputs(WHOLE, "cuda"))
    expected = step()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        results = step()
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_graph_capture_and_replay() -> None:
    inputs = cases.make_inputs(WHOLE, "cuda")
    step = _step(WHOLE, inputs)
    step()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in (1, 2):
        inputs.x.copy_(cases.make_inputs(WHOLE, "cuda", seed).x)
        for result in results:
            result.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(results, step()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses(dtype: torch.dtype) -> None:
    shapes = [(1, 3, 256, 256), (1, 256, 64, 64), (1, 8, 1, 1), (7, 1001)] * 3
    loss_cases.check_l1(shapes, dtype, device="cuda")
    loss_cases.check_lsgan([(1, 1, 64, 64), (1, 1, 32, 32), (1, 1, 15, 17)], dtype, device="cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_another_device() -> None:
    case = KernelCase((1, 64, 32, 32), torch.bfloat16)
    inputs = cases.make_inputs(case, "cuda:1")
    checks.check_backward(case, inputs, checks.check_forward(case, inputs))

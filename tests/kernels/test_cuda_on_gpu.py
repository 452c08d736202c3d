"""The CUDA kernels on a GPU: real sizes, every way, streams, graphs, the sanitizer's tools, and the bandwidth."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import oracle
from helpers.gpu_timing import microseconds, times_of
from munit_fast import functional as mf
from munit_fast.ops import cases
from munit_fast.ops.backends import cuda, triton
from munit_fast.ops.cases import EpilogueCase
from munit_fast.train.cuda_graph import capture, capture_stream

HERE = torch.device("cuda", 0)
WHY_NOT = cuda.unsupported_reason(HERE, torch.float32) if torch.cuda.is_available() else "there is no CUDA device"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=f"impl='cuda': {WHY_NOT}")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The epilogues of MUNIT's networks at 256×256, and sizes at which clusters of 8 and 16 blocks are just large enough.
REAL = (
    EpilogueCase("instance", (1, 64, 256, 256), act="relu", pad=1),
    EpilogueCase("instance", (1, 128, 128, 128), act="relu", pad=1),
    EpilogueCase("instance", (4, 256, 64, 64), act="relu", pad=1),
    EpilogueCase("adain", (1, 256, 64, 64), act="relu", pad=1),
    EpilogueCase("adain", (4, 256, 64, 64), pad=1, residual=True),
    EpilogueCase("layer_affine", (1, 128, 128, 128), act="relu", pad=2),
    EpilogueCase("layer_affine", (1, 64, 256, 256), act="relu", pad=3),
    EpilogueCase("layer_shared", (1, 512, 64, 64), act="relu", pad=1, pad_mode="replicate"),
    EpilogueCase("layer_affine", (8, 64, 32, 32), act="selu", pad=1),
    EpilogueCase("bias_act", (1, 64, 128, 128), act="lrelu", pad=1, pad_mode="zero"),
    EpilogueCase("bias_act", (1, 3, 256, 256), act="tanh"),
    EpilogueCase("instance", (1, 1000, 37, 41), act="prelu", pad=3),
    EpilogueCase("layer_shuffled", (3, 72, 33, 65), act="selu", pad=3, residual=True),
)


def _last(case: EpilogueCase, dtype: torch.dtype) -> EpilogueCase:
    return replace(case, dtype=dtype, layout="channels_last")


@pytest.fixture(params=cuda.WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(cuda, "_way", request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", REAL, ids=lambda case: f"{case.op}-{'x'.join(map(str, case.shape))}")
def test_real_sizes(case: EpilogueCase, dtype: torch.dtype, way: str) -> None:
    oracle.check(_last(case, dtype), "cuda", "cuda")


@pytest.mark.parametrize("op", cases.OPS)
def test_the_grid(op: str, way: str) -> None:
    """A third of it for each way: all of it would take minutes, and what a case asks for does not depend on the way."""
    for dtype in DTYPES:
        for i, case in enumerate(cases.grid(op, dtype, "channels_last")):
            if i % len(cuda.WAYS) != cuda.WAYS.index(way):
                continue
            oracle.check(case, "cuda", "cuda")
            if case.pad_mode != "reflect" or case.pad < 4:
                n, c, _, _ = case.shape
                oracle.check(replace(case, shape=(n, c * 8, 9 + i % 3, 8 + i % 5)), "cuda", "cuda")


def test_far_from_the_centre(way: str) -> None:
    for op, shape in itertools.product(("instance", "layer_affine"), ((1, 64, 128, 128), (4, 256, 32, 32))):
        case = EpilogueCase(op, shape, torch.float32, "channels_last", "relu", 1, mean=1000, std=1)
        oracle.check(case, "cuda", "cuda")


def _step() -> tuple[Tensor, Callable[[], list[Tensor]]]:
    """What the results depend on, and a function that launches everything once."""
    case = _last(EpilogueCase("adain", (2, 256, 64, 64), act="prelu", pad=1, residual=True), DTYPES[1])
    inputs = cases.make_tensors(case, "cuda")
    leaves = [t for t in inputs if t is not None]
    other = torch.randn_like(inputs.x)
    upstream: list[Tensor] = []

    def step() -> list[Tensor]:
        y = oracle.run(case, inputs, "cuda")
        if not upstream:
            upstream.append(torch.randn_like(y))
        x = inputs.x
        loss = mf.l1_losses([(x, other)], impl="cuda").sum() + mf.lsgan_loss([x], 1.0, impl="cuda")
        return [
            y.detach(),
            *torch.autograd.grad(y, leaves, upstream[0]),
            loss.detach(),
            *torch.autograd.grad(loss, [x]),
        ]

    return inputs.x, step


def test_the_same_bits_every_time(way: str) -> None:
    _, step = _step()
    expected = step()
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(step(), expected))


def test_another_stream(way: str) -> None:
    _, step = _step()
    expected = step()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        results = step()
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_graph_capture_and_replay(way: str) -> None:
    x, step = _step()
    stream = capture_stream(HERE)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph, results = capture(step, HERE)
    for seed in (1, 2):
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.no_grad():
            x.copy_(torch.randn(x.shape, generator=generator, device="cuda"))
        for result in results:
            result.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(results, step()))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_another_device(way: str) -> None:
    current = torch.cuda.current_device()
    oracle.check(_last(EpilogueCase("adain", (1, 64, 32, 32), act="relu", pad=1), DTYPES[1]), "cuda", "cuda:1")
    assert torch.cuda.current_device() == current


def test_clusters_at_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of nearly all shared memory, in clusters as large as they get; beyond that the passes take over."""
    monkeypatch.setattr(cuda, "_way", "slab")
    for side in (64, 96, 128, 160, 192, 224, 256, 320):
        oracle.check(
            EpilogueCase("instance", (1, 16, side, side), DTYPES[1], "channels_last", "relu", 1), "cuda", "cuda"
        )
        oracle.check(
            EpilogueCase("layer_affine", (1, 64, side // 2, side // 2), DTYPES[1], "channels_last"), "cuda", "cuda"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses(dtype: torch.dtype) -> None:
    """Below and beyond what a cluster takes on by itself."""
    shapes = [(1, 3, 256, 256), (1, 256, 64, 64), (1, 8, 1, 1), (7, 1001), (8, 256, 64, 64)] * 2
    first, second = ([torch.randn(s, device="cuda").to(dtype).requires_grad_() for s in shapes] for _ in range(2))
    grad = 1000 * torch.randn(len(shapes), device="cuda")
    results = {}
    for impl in ("cuda", "reference"):
        loss = mf.l1_losses(list(zip(first, second)), impl=impl)
        results[impl] = [loss.detach(), *torch.autograd.grad(loss, [*first, *second], grad)]
    for got, wanted in zip(results["cuda"], results["reference"]):
        torch.testing.assert_close(got, wanted)
    for target in (0.0, 1.0):
        values = [mf.lsgan_loss(first, target, impl=impl) for impl in ("cuda", "reference")]
        torch.testing.assert_close(*values)
        for got, wanted in zip(*(torch.autograd.grad(value, first) for value in values)):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("channels", [5, 8])
def test_results_are_rounded_to_nearest_even(channels: int) -> None:
    """Many sums of two short numbers lie half way between two others."""
    for dtype in DTYPES[1:]:
        x, residual = (torch.randn(2, channels, 310, 330, device="cuda").to(dtype) for _ in range(2))
        x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
        got = mf.bias_act(x, residual=residual, impl="cuda")
        assert torch.equal(got, (x.float() + residual.float()).to(dtype))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_the_sanitizer(tool: str) -> None:
    homes = (os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda")
    found = [shutil.which("compute-sanitizer"), *(shutil.which(f"{home}/bin/compute-sanitizer") for home in homes)]
    if not any(found):
        pytest.skip("compute-sanitizer is not installed")
    script = Path(__file__).parents[1] / "helpers" / "cuda_small_cases.py"
    ours = ["--kernel-name", "kernel_substring=munit_fast"]  # torch's own kernels would take most of the time
    command = [next(filter(None, found)), "--tool", tool, *ours, "--error-exitcode", "9", sys.executable, str(script)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        # Every allocation is the driver's then: the tool sees its bounds.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    assert done.returncode == 0 and "PASSED" in done.stdout, (done.stdout + done.stderr)[-8000:]


def test_bandwidth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what the table of munit_fast/ops/backends/registry.py is to be made from; asserts no times."""
    monkeypatch.undo()  # poisoning every result would be timed, too
    lines = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}: µs forward / backward (× the time of a copy)"]
    shapes = ((1, 256, 64), (4, 256, 64), (1, 128, 128), (4, 128, 128), (1, 64, 256))
    ways = [("triton", "best")] if triton.unsupported_reason(HERE, torch.float32) is None else []
    ways += [("cuda", "slab"), ("cuda", "passes")]
    for op, (n, c, side), dtype in itertools.product(("instance", "layer"), shapes, DTYPES[:2]):
        x = torch.randn(n, c, side, side, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)
        target = torch.empty_like(x)
        copy = microseconds(lambda x=x, target=target: target.copy_(x))
        cells = [f"copy {copy:.1f}"]
        for impl, how in ways:
            monkeypatch.setattr(cuda, "_way", how)
            forward, backward = times_of(impl, op, x)
            cells.append(f"{impl} {how} {forward:.1f} / {backward:.1f} ({forward / copy:.2f} / {backward / copy:.2f})")
        lines.append(f"{op} {n}x{c}x{side}² {str(dtype).removeprefix('torch.')}: " + "; ".join(cells))
    with capsys.disabled():
        print("\n" + "\n".join(lines))

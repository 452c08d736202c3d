"""What the levels share: a contender, its work, and the wrappers that make others of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from munit_fast.benchmarks.cases import DTYPES
from munit_fast.train.cuda_graph import WARM_UP, capture, capture_stream

OURS = "munit_fast"
PUBLISHED = "published"
BATCH_NORM = "F.batch_norm, N = 1"
GROUP_NORM = "group_norm(C)"
MAX_AUTOTUNE = "torch.compile max-autotune"
COMPILED = {"torch.compile": "default", MAX_AUTOTUNE: "max-autotune-no-cudagraphs"}
FROZEN = "torch.compile freezing"  # in the default mode, weights constant: folded and laid out when it is compiled
ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


class Unavailable(RuntimeError):
    """This contender cannot run on this machine: something is not installed, or the processor lacks it."""


@dataclass
class Work:
    """step: what is timed; it returns its results, which are what is checked.

    numbers: for an iteration, whose step returns nothing: what to check, after running it. state_bytes: weights and
    moments, which are there before and after a step. close: raises if the step is not what it is called.
    """

    step: Callable[[], Sequence[Tensor]]
    numbers: Callable[[], Sequence[Tensor]] | None = None
    state_bytes: int | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Contender:
    """One way to do a case's work.

    graph: its step is replayed from a CUDA graph. `make` builds the work and can be expensive.
    """

    implementation: str
    layout: str
    make: Callable[[], Work]
    graph: bool = False
    precision: str | None = None  # of its autocast, where that is not the case's dtype

    @property
    def ours(self) -> bool:
        return self.implementation.partition(" ")[0] == OURS

    @property
    def compiled(self) -> bool:
        return self.implementation in (*COMPILED, FROZEN)

    @property
    def foreign(self) -> bool:
        """Whether another program than torch computes it: torch sees neither its memory nor its operations."""
        return self.implementation in (ONNX_RUNTIME, OPENVINO)

    def __str__(self) -> str:
        words = [self.implementation, self.layout]
        words += [self.precision] if self.precision else []
        return " ".join(words) + (" in a CUDA graph" if self.graph else "")


def placed(module: Any, layout: str, device: torch.device) -> Any:
    """A module on a device, its weights in a layout."""
    return module.to(device).to(memory_format=LAYOUTS[layout])


def compiled(function: Callable[..., Any], implementation: str) -> Callable[..., Any]:
    """torch.compile of `function` as the contender of that name says."""
    if implementation == FROZEN:  # see `frozen`; the option keeps what COMPILED made of the same code from being reused
        return torch.compile(function, options={"freezing": True}, dynamic=False)
    return torch.compile(function, mode=COMPILED[implementation], dynamic=False)


def frozen(step: Callable[[], Any]) -> None:
    """Run `step`, which compiles its functions here and without gradients, with their weights as constants.

    dynamo and inductor read this setting from inductor's configuration while they compile; as an option of
    torch.compile alone it has no effect. Raises RuntimeError where the weights of the convolutions stayed inputs.
    """
    from torch._dynamo.utils import counters
    from torch._inductor import config

    packed = "mkldnn_conv_weight_pack_matcher_count"
    before = counters["inductor"][packed]
    with config.patch(freezing=True):
        step()
    if torch.backends.mkldnn.is_available() and counters["inductor"][packed] == before:
        raise RuntimeError("torch.compile did not freeze the weights")


def autocast(dtype: str, device: torch.device) -> Any:
    """torch.autocast for a case's dtype; nothing for fp32."""
    if dtype == "fp32":
        return nullcontext()
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return torch.autocast(device.type, DTYPES[dtype], cache_enabled=not capturing)


def in_graph(work: Work) -> Work:
    """The same work with its step captured in a CUDA graph; what it reads must stay where it is.

    The work must have been made on the current stream, `munit_fast.train.cuda_graph.capture_stream`. Its
    results are poisoned before the first replay, so that a check sees what the replay writes.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.current_stream() != capture_stream(device):
        raise RuntimeError("what is captured must be made on munit_fast.train.cuda_graph.capture_stream")
    for _ in range(WARM_UP):
        work.step()
    graph, results = capture(work.step, device)
    for result in results:
        result.fill_(float("nan"))

    def step() -> Sequence[Tensor]:
        graph.replay()
        return results

    return Work(step)


def differentiable(
    run: Callable[[], Tensor | Sequence[Tensor]], inputs: Sequence[Tensor], mode: str, seed: int = 7
) -> Work:
    """Work of a differentiable function in a case's mode.

    forward: its results, without a graph. training: results and gradients of `inputs` for a random upstream gradient.
    backward: the gradients alone, from a graph that is kept, made on the current stream.
    """

    def flat() -> list[Tensor]:
        y = run()
        return [y] if isinstance(y, Tensor) else list(y)

    @torch.no_grad()
    def infer() -> list[Tensor]:
        return flat()

    random = torch.Generator().manual_seed(seed)
    upstream = []
    for y in infer():
        given = torch.randn(y.shape, generator=random).to(y)
        last = y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
        upstream.append(given.contiguous(memory_format=torch.channels_last) if last else given)

    def gradients(results: Sequence[Tensor], keep: bool) -> list[Tensor]:
        found = torch.autograd.grad(results, list(inputs), upstream, allow_unused=True, retain_graph=keep)
        return [g for g in found if g is not None]

    def train() -> list[Tensor]:
        results = flat()
        return [*(y.detach() for y in results), *gradients(results, False)]

    if mode == "forward":
        return Work(infer)
    if mode == "training":
        return Work(train)
    kept = flat()
    return Work(lambda: gradients(kept, True))

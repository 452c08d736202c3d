"""What the levels share: a contender, its work, and the wrappers that make others of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from munit_fast.bench.cases import DTYPES
from munit_fast.bench.measure import Step

OURS = "munit_fast"
PUBLISHED = "published"
BATCH_NORM = "F.batch_norm, N = 1"
GROUP_NORM = "group_norm(C)"
MAX_AUTOTUNE = "torch.compile max-autotune"
COMPILED = {"torch.compile": "default", MAX_AUTOTUNE: "max-autotune-no-cudagraphs"}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Work:
    """step: what is timed. outputs: the numbers that every contender of a case must agree on, computed anew."""

    step: Step
    outputs: Callable[[], list[Tensor]]


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
        return self.implementation == OURS

    @property
    def compiled(self) -> bool:
        return self.implementation in COMPILED

    def __str__(self) -> str:
        words = [self.implementation, self.layout]
        words += [self.precision] if self.precision else []
        return " ".join(words) + (" in a CUDA graph" if self.graph else "")


def placed(module: Any, layout: str, device: torch.device) -> Any:
    """A module on a device, its weights in a layout."""
    return module.to(device).to(memory_format=LAYOUTS[layout])


def compiled(function: Callable[..., Any], implementation: str) -> Callable[..., Any]:
    """torch.compile of `function` as the contender of that name says."""
    return torch.compile(function, mode=COMPILED[implementation], dynamic=False)


def autocast(dtype: str, device: torch.device) -> Any:
    """torch.autocast for a case's dtype; nothing for fp32."""
    if dtype == "fp32":
        return nullcontext()
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return torch.autocast(device.type, DTYPES[dtype], cache_enabled=not capturing)


def in_graph(work: Work) -> Work:
    """The same work with its step captured in a CUDA graph; what it reads must stay where it is."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work.step()
    return Work(graph.replay, work.outputs)


def forward_and_backward(
    run: Callable[[], Tensor | Sequence[Tensor]], inputs: Sequence[Tensor], training: bool, seed: int = 7
) -> Work:
    """Work of a differentiable function: its result alone, or with the gradients of `inputs` for a random upstream."""

    def flat() -> list[Tensor]:
        y = run()
        return [y] if isinstance(y, Tensor) else list(y)

    with torch.no_grad():
        like = flat()
    random = torch.Generator().manual_seed(seed)
    upstream = []
    for y in like:
        given = torch.randn(y.shape, generator=random).to(y)
        form = torch.channels_last if y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last) else None
        upstream.append(given if form is None else given.contiguous(memory_format=form))

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(flat(), list(inputs), upstream, allow_unused=True)

    @torch.no_grad()
    def infer() -> list[Tensor]:
        return flat()

    def outputs() -> list[Tensor]:
        found = [y.detach() for y in flat()]
        return found + [g for g in train() if g is not None] if training else found

    return Work(train if training else infer, outputs)

"""A whole training iteration as one CUDA graph: thousands of launches become one.

Everything that changes from one iteration to the next goes through buffers that the graph reads: the images, the noise
(drawn with the CPU generator, in the published order) and the learning rates, which are tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger("munit_fast")
WARM_UP = 3  # eager iterations on a side stream before the capture: they make cuDNN choose and allocate


@cache
def warn_once(message: str) -> None:
    _log.warning(message)


class CaptureError(RuntimeError):
    """The iteration cannot be captured; the message says why."""


class StepGraph:
    """One iteration, captured for one set of sizes. `iterate(x_a, x_b, noise)` runs it without reading anything back.

    The first calls of `run` are eager iterations on a side stream, then one captures, and from there on each replays.
    A capture that fails raises CaptureError, and leaves the iteration undone: what is captured does not run.
    """

    def __init__(
        self,
        iterate: Callable[[Tensor, Tensor, Sequence[Tensor]], None],
        x_a: Tensor,
        x_b: Tensor,
        noise: Sequence[Tensor],
    ) -> None:
        self.iterate = iterate
        self.inputs = [torch.empty_like(t, device=x_a.device) for t in (x_a, x_b, *noise)]
        self.stream = torch.cuda.Stream(x_a.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.losses: dict[str, Tensor | float] = {}  # the graph's own, once it is captured
        self.done = 0

    def run(self, x_a: Tensor, x_b: Tensor, noise: Sequence[Tensor]) -> None:
        """One iteration on images [N, C, H, W] and noise of the sizes of the first call; they may lie on the CPU.

        Raises CaptureError; what an eager iteration raises goes through.
        """
        for buffer, value in zip(self.inputs, (x_a, x_b, *noise), strict=True):
            buffer.copy_(value, non_blocking=True)
        x_a, x_b, *noise = self.inputs
        if self.done < WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream(x_a.device))
            with torch.cuda.stream(self.stream):
                self.iterate(x_a, x_b, noise)
            torch.cuda.current_stream(x_a.device).wait_stream(self.stream)
            self.done += 1
            return
        if self.graph is None:
            torch.cuda.synchronize(x_a.device)
            graph = torch.cuda.CUDAGraph()
            try:
                # thread_local: a loader's thread may pin memory meanwhile.
                with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                    self.iterate(x_a, x_b, noise)
            except RuntimeError as error:
                raise CaptureError(str(error).partition("\n")[0]) from error
            self.graph = graph
        self.graph.replay()


def why_not(trainer: Any, device: torch.device) -> str | None:
    """None if the trainer's iterations can be captured, or the reason in words."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device; the trainer is on {device}"
    if trainer.plain:
        return "impl='reference' runs the published updates"
    if trainer._parallel:
        return "several processes: the exchange of DistributedDataParallel is not captured"
    if any(type(m).__name__ == "SpectralNorm" for m in trainer.modules()):
        return "spectral norm (dis.norm: sn) replaces its vectors in each forward, which a graph cannot follow"
    return None

"""A whole training iteration as one CUDA graph: thousands of launches become one.

Everything that changes from one iteration to the next goes through buffers that the graph reads: the images, the noise
and the learning rates, which are tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

_log = logging.getLogger("munit_fast")
_MOST_GRAPHS = 8  # of one trainer: lazy terms and the controller of ada make four of one size
WARM_UP = 3  # eager iterations on the capture stream before the capture: they make cuDNN choose and allocate

Result = TypeVar("Result")


@cache
def warn_once(message: str) -> None:
    """Log a warning, each message once a process."""
    _log.warning(message)


class CaptureError(RuntimeError):
    """The iteration cannot be captured; the message is the reason."""


@cache
def _stream(index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(torch.device("cuda", index))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a CUDA device on which everything is warmed up and captured.

    Autograd runs a backward operation on the stream of its forward, and sums a parameter's gradient on the stream on
    which the parameter first entered a graph that is still alive. A capture sees its own stream only, so there is one
    for all graphs of a device.
    """
    return _stream(_index(device))


def capture(work: Callable[[], Result], device: torch.device, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture `work`, which does not run, as a CUDA graph.

    What `work` differentiates must have been computed inside it or on `capture_stream(device)`.

    Args:
        work: what each replay does.
        device: the GPU.
        pool: `CUDAGraph.pool()` of a graph whose memory this one may use too, because the two never replay at once.

    Returns:
        The graph, and the result of `work`, whose tensors are what each replay writes to.

    Raises:
        CaptureError: It cannot be captured; the current stream and the memory are as they were before.
    """
    stream, captured = capture_stream(device), torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    failure: BaseException | None = None
    try:
        # torch.cuda.graph does not leave the stream if ending the capture raises; the context around it does.
        # thread_local: a loader's thread may pin memory meanwhile.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(captured, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            try:
                result = work()
            except BaseException as error:  # ending an invalid capture raises another one in its place
                failure = error
                raise
    except RuntimeError as error:
        _release(captured, pool, _index(device))
        if failure is not None and not isinstance(failure, RuntimeError):
            raise failure from None
        raise CaptureError(str(failure or error).partition("\n")[0]) from error
    return captured, result


def _release(captured: torch.cuda.CUDAGraph, pool: Any, index: int) -> None:
    """Give back the memory of a capture that could not be ended; CUDAGraph does so only for those that were."""
    with suppress(RuntimeError):
        captured.pool()  # raises for a capture that was not ended
        return
    with suppress(RuntimeError):  # the capture may have failed before it took memory
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)


class StepGraph(Generic[Result]):
    """One iteration, captured for one set of sizes.

    The first calls of `run` are eager iterations on the capture stream, then one captures, and from there on each
    replays. A capture that fails raises CaptureError, and leaves the iteration undone: what is captured does not run.

    Args:
        iterate: iterate(x_a, x_b, noise) runs the iteration without reading anything back.
        x_a: like the images of domain A, [N, C, H, W], on the CUDA device.
        x_b: like the images of domain B, likewise.
        noise: like the noise, on any device.
    """

    def __init__(
        self,
        iterate: Callable[[Tensor, Tensor, Sequence[Tensor]], Result],
        x_a: Tensor,
        x_b: Tensor,
        noise: Sequence[Tensor],
    ) -> None:
        self.iterate = iterate
        self.inputs = [torch.empty_like(t, device=x_a.device) for t in (x_a, x_b, *noise)]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Result | None = None  # the graph's own, once it is captured: each replay writes to its tensors
        self.done = 0

    def run(self, x_a: Tensor, x_b: Tensor, noise: Sequence[Tensor], pool: Any = None) -> Result:
        """One iteration; eager at first, then from the graph.

        Args:
            x_a: images [N, C, H, W] of the size of the first call; they may lie on the CPU.
            x_b: likewise.
            noise: tensors of the sizes of the first call.
            pool: as in `capture`.

        Returns:
            What the iteration returns; a graph's tensors are overwritten by the next call.

        Raises:
            CaptureError: It cannot be captured. What an eager iteration raises goes through.
        """
        for buffer, value in zip(self.inputs, (x_a, x_b, *noise), strict=True):
            buffer.copy_(value, non_blocking=True)
        x_a, x_b, *noise = self.inputs
        if self.done < WARM_UP:
            stream = capture_stream(x_a.device)
            stream.wait_stream(torch.cuda.current_stream(x_a.device))
            with torch.cuda.stream(stream):
                result = self.iterate(x_a, x_b, noise)
            torch.cuda.current_stream(x_a.device).wait_stream(stream)
            self.done += 1
            return result
        if self.graph is None:
            self.graph, self.result = capture(lambda: self.iterate(x_a, x_b, noise), x_a.device, pool)
        self.graph.replay()
        return cast(Result, self.result)


class StepGraphs(Generic[Result]):
    """The graphs of one trainer, one for each set of sizes and settings; they share their memory."""

    def __init__(self, failure: str | None = None) -> None:
        self.by_key: dict[Any, StepGraph[Result]] = {}
        self.failure = failure  # why no more captures are tried

    def run(
        self,
        key: Any,
        iterate: Callable[[Tensor, Tensor, Sequence[Tensor]], Result],
        device: torch.device,
        x_a: Tensor,
        x_b: Tensor,
        noise: Sequence[Tensor],
    ) -> Result:
        """One iteration through the graph of `key`, as `StepGraph.run`.

        Args:
            key: equal for iterations that one graph serves.
            iterate: the iteration, for a key that has no graph yet.
            device: the GPU.
            x_a: images [N, C, H, W].
            x_b: images [N, C, H, W].
            noise: the iteration's noise.

        Raises:
            CaptureError: It cannot be captured.
        """
        if key not in self.by_key:
            if len(self.by_key) >= _MOST_GRAPHS:
                self.by_key.clear()
            self.by_key[key] = StepGraph(iterate, x_a.to(device), x_b.to(device), noise)
        # Replays never overlap, and nothing that one writes is read after the next: all use the first one's memory.
        pool = next((step.graph.pool() for step in self.by_key.values() if step.graph is not None), None)
        return self.by_key[key].run(x_a, x_b, noise, pool)


def unsupported_reason(trainer: Any, device: torch.device) -> str | None:
    """None if the trainer's iterations can be captured, else why not."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device; the trainer is on {device}"
    if (reason := trainer.objective.unsupported.get("CUDA graph")) is not None:
        return str(reason)
    if trainer._processes > 1 and (backend := torch.distributed.get_backend()) != "nccl":
        return f"several processes: a graph holds the exchange of nccl, not that of {backend}, which runs on the CPU"
    return None

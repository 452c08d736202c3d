"""Device times of a GPU, without the launches' time on the host."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from munit_fast import functional as mf
from munit_fast.train.cuda_graph import capture, capture_stream

HERE = torch.device("cuda", 0)


def microseconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Of one run in a CUDA graph of many, without the launches' time on the host; the median of seven.

    What `run` differentiates must have been computed on the capture stream.
    """
    run()

    def runs() -> None:
        for _ in range(repeats):
            run()

    graph, _ = capture(runs, HERE)
    times = []
    for _ in range(7):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * begin.elapsed_time(end) / repeats)
    return statistics.median(times)


def times_of(impl: str, op: str, x: Tensor) -> tuple[float, float]:
    """Microseconds of an epilogue's forward and backward."""
    function = mf.instance_norm if op == "instance" else mf.layer_norm2d
    stream = capture_stream(HERE)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward = microseconds(lambda: function(x, act="relu", pad=1, impl=impl))
        leaf = x.detach().requires_grad_()
        y = function(leaf, act="relu", pad=1, impl=impl)
        upstream = torch.randn_like(y)
        return forward, microseconds(lambda: torch.autograd.grad(y, leaf, upstream, retain_graph=True))

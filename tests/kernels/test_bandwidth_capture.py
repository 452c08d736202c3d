"""The bandwidth test of a GPU, played on a fake one: what it captures can be captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import fake_cuda, gpu_timing
from munit_fast.train.cuda_graph import capture_stream


def test_the_backward_is_captured_where_its_forward_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda.install(monkeypatch)
    streams: list[Any] = []
    made = gpu_timing.mf.instance_norm

    def watched(x: torch.Tensor, **options: Any) -> torch.Tensor:
        if x.requires_grad:
            streams.append(cuda.current)
        return made(x, **options)

    monkeypatch.setattr(gpu_timing.mf, "instance_norm", watched)
    x = torch.randn(1, 4, 6, 6)
    assert gpu_timing.times_of("reference", "instance", x) == (50, 50)
    assert streams == [capture_stream(gpu_timing.HERE)]
    assert cuda.current is cuda.default and len(cuda.pools) == 2

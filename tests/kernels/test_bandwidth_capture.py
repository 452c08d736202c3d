"""The bandwidth test of a GPU, played on a fake one: what it captures can be captured."""

from __future__ import annotations

from typing import Any

import fake_cuda
import pytest
import test_cuda_on_gpu
import torch

from munit_fast.train.cuda_graph import capture_stream


def test_the_backward_is_captured_where_its_forward_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda.install(monkeypatch)
    streams: list[Any] = []
    made = test_cuda_on_gpu.mf.instance_norm

    def watched(x: torch.Tensor, **options: Any) -> torch.Tensor:
        if x.requires_grad:
            streams.append(cuda.current)
        return made(x, **options)

    monkeypatch.setattr(test_cuda_on_gpu.mf, "instance_norm", watched)
    x = torch.randn(1, 4, 6, 6)
    assert test_cuda_on_gpu._times("reference", "instance", x) == (50, 50)
    assert streams == [capture_stream(test_cuda_on_gpu.HERE)]
    assert cuda.current is cuda.default and len(cuda.pools) == 2

"""Memory of large results is taken again only when nobody can see it any more."""

from __future__ import annotations

import threading

import torch
from torch import nn

from munit_fast import accelerate, functional
from munit_fast.ops import memory

SIZE = (1, 16, 300, 300)


def test_memory_is_taken_again_once_it_is_free() -> None:
    like = torch.empty(())
    memory._results.buffers.clear()
    first, second = memory.reused(SIZE, like), memory.reused(SIZE, like)
    third = memory.reused(SIZE, like)  # more than are kept
    places = {first.data_ptr(), second.data_ptr(), third.data_ptr()}
    assert len(places) == 3 and first.shape == SIZE and first.is_contiguous(memory_format=torch.channels_last)
    place, view = first.data_ptr(), first[:, :3]
    del first
    assert memory.reused(SIZE, like).data_ptr() != place  # a view still sees it
    array = view.numpy()
    del view
    assert memory.reused(SIZE, like).data_ptr() != place  # and so does an array
    del array
    assert memory.reused(SIZE, like).data_ptr() == place
    half = memory.reused((2, *SIZE[1:]), torch.empty((), dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.data_ptr() == place


def test_small_and_growing_results() -> None:
    memory._results.buffers.clear()
    memory.reused((1, 3, 8, 8), torch.empty(()))
    assert not memory._results.buffers
    for side in (300, 400, 500, 600, 700):
        memory.reused((1, 16, side, side), torch.empty(()))
    assert len(memory._results.buffers) <= memory._BUFFERS


def test_each_thread_has_memory_of_its_own() -> None:
    place = memory.reused(SIZE, torch.empty(())).data_ptr()
    found: list[int] = []
    held: list[torch.Tensor] = []

    def other() -> None:
        held.append(memory.reused(SIZE, torch.empty(())))
        found.append(held[0].data_ptr())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found[0] != place


@torch.no_grad()
def test_results_that_users_keep_stay_as_they_are() -> None:
    weight = torch.randn(16, 16, 3, 3)
    results, copies = [], []
    for _ in range(5):
        results.append(functional.norm_act_conv2d(torch.randn(1, 16, 300, 300), weight, padding=1))
        copies.append(results[-1].clone())
    assert all(torch.equal(a, b) for a, b in zip(results, copies))
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    x = torch.randn(1, 16, 300, 300)
    expected = net(x)
    accelerate(net)
    kept = [net(x) for _ in range(4)]
    for y in kept:
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)

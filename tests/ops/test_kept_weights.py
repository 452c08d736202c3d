"""Transformed weights are kept for inference, and never used for a parameter that has changed."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from munit_fast.ops import native, winograd
from munit_fast.ops.winograd import NO_EPILOGUE, Source, kept_weight

pytestmark = pytest.mark.skipif(not winograd.available(), reason="no instruction set with these convolutions")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    winograd._kept.clear()
    yield
    winograd._kept.clear()


def use(parameter: Tensor, plan: str = "f43") -> Tensor | None:
    """The transform of a parameter, without a graph; checked against one made for it now."""
    with torch.no_grad():
        weight, transformed = kept_weight(parameter, plan, False, lambda: parameter)
        assert torch.equal(weight, parameter)
        if transformed is not None:
            x = torch.randn(1, parameter.shape[1], 6, 7).contiguous(memory_format=torch.channels_last)
            source = Source(x, None, None, None, None, NO_EPILOGUE)
            found, _ = winograd.conv(source, parameter, transformed, None, plan, "none")
            expected, _ = winograd.conv(source, parameter, None, None, plan, "none")
            assert torch.equal(found, expected)
    return transformed


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.randn(20, 12, 3, 3))


def kept_bytes() -> int:
    entries = (entry for of_one in winograd._kept.values() for entry in of_one.values())
    return sum(entry.value[1].nbytes for entry in entries if entry.value is not None)


def test_kept_from_the_second_use_on() -> None:
    p = parameter()
    assert use(p) is None
    assert kept_bytes() == 0
    second = use(p)
    assert second is not None
    assert use(p) is second


def test_two_plans_and_two_weights_of_one_parameter() -> None:
    p = parameter()
    for plan in ("f43", "f23"):
        assert use(p, plan) is None
    first, second = use(p, "f43"), use(p, "f23")
    assert first is not None and second is not None and first.numel() != second.numel()
    with torch.no_grad():
        doubled = [kept_weight(p, "f43", True, lambda: p * 2) for _ in range(3)]
    assert doubled[0][1] is None and doubled[1][1] is doubled[2][1]
    assert torch.equal(doubled[2][0], p * 2)
    assert use(p) is first


def step(p: nn.Parameter) -> None:
    p.grad = torch.randn_like(p)
    torch.optim.SGD([p], lr=0.1).step()


def adam(p: nn.Parameter) -> None:
    p.grad = torch.randn_like(p)
    torch.optim.Adam([p], lr=0.1, fused=True).step()


def through_data(p: nn.Parameter) -> None:
    p.data.mul_(2)


def one_value_through_data(p: nn.Parameter) -> None:
    p.data.view(-1)[-1] += 1


def two_values_change_places(p: nn.Parameter) -> None:
    flat = p.data.view(-1)
    flat[3], flat[19] = flat[19].clone(), flat[3].clone()


def other_memory(p: nn.Parameter) -> None:
    p.data = torch.randn_like(p)


def through_numpy(p: nn.Parameter) -> None:
    p.detach().numpy()[2, 3, 1, 1] = 7


def copied(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.copy_(torch.randn_like(p))


def swapped(p: nn.Parameter) -> None:
    """As an average of the weights changes places with them."""
    average = torch.randn_like(p)
    p.data, average = average, p.data


CHANGES = (
    step,
    adam,
    through_data,
    one_value_through_data,
    two_values_change_places,
    other_memory,
    through_numpy,
    copied,
    swapped,
)


@pytest.mark.parametrize("change", CHANGES)
def test_never_stale(change: Callable[[nn.Parameter], None]) -> None:
    p = parameter()
    for uses in (1, 2, 3, 5):
        for _ in range(uses):
            use(p)
        change(p)
        use(p)  # compares with a transform made now


def test_swapped_there_and_back() -> None:
    """The same two memories in turn, with the same version."""
    p = parameter()
    average = torch.randn_like(p)
    for _ in range(6):
        use(p)
        use(p)
        p.data, average = average, p.data
        average.mul_(0.5)


def test_load_state_dict_and_back_from_another_dtype() -> None:
    net = nn.Conv2d(12, 20, 3)
    for _ in range(3):
        use(net.weight)
    net.load_state_dict(nn.Conv2d(12, 20, 3).state_dict())
    for _ in range(3):
        use(net.weight)
    net.load_state_dict(nn.Conv2d(12, 20, 3).state_dict(), assign=True)
    for _ in range(3):
        use(net.weight)
    net.double()
    with torch.no_grad():
        net.weight.add_(1)
    net.float()
    for _ in range(3):
        use(net.weight)


@pytest.mark.parametrize("make", [lambda p: p.to(memory_format=torch.channels_last), lambda p: p[::2, :, :, :]])
def test_weights_that_are_not_contiguous(make: Callable[[Tensor], Tensor]) -> None:
    p = nn.Parameter(make(torch.randn(20, 12, 3, 3)))
    assert not p.is_contiguous()
    found = [use(p) for _ in range(3)]
    assert found[1] is None or found[1] is found[2]
    through_data(p)
    use(p)
    use(p)


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        p = torch.randn(20, 12, 3, 3)
        for _ in range(3):
            use(p)
        p.mul_(2)
        for _ in range(3):
            use(p)


def test_kept_in_inference_mode_and_used_outside() -> None:
    p = parameter()
    with torch.inference_mode():
        for _ in range(3):
            use(p)
    for _ in range(3):
        use(p)
    x = torch.randn(1, 12, 8, 8, requires_grad=True)
    torch.conv2d(x, p).sum().backward()
    assert p.grad is not None


def test_training_keeps_nothing() -> None:
    """A step of the optimizer between any two uses without a graph, as in MUNIT's discriminator update."""
    p = parameter()
    for _ in range(5):
        assert use(p) is None
        step(p)
        assert kept_bytes() == 0


def test_collected_with_the_parameter() -> None:
    p = parameter()
    use(p)
    use(p)
    assert len(winograd._kept) == 1 and kept_bytes() > 0
    del p
    gc.collect()
    assert len(winograd._kept) == 0


def test_copies_keep_their_own() -> None:
    p = parameter()
    use(p)
    use(p)
    for twin in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert use(twin) is None
        through_data(twin)
        use(twin)
        use(twin)
        assert use(p) is not None


def test_each_instruction_set_has_its_own() -> None:
    p, chosen = parameter(), native.module.isa()
    try:
        for _ in range(2):
            for isa in native.module.available_isas():
                native.module.set_isa(isa)
                if winograd.available():
                    for _ in range(3):
                        use(p)
    finally:
        native.module.set_isa(chosen)


def negate_few(p: Tensor) -> None:
    p.data.view(-1)[:32:16].neg_()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.data.neg_(),
        lambda p: p.data[0].neg_(),
        negate_few,
        lambda p: p.data.mul_(2),
        lambda p: p.data.mul_(0.25),
        lambda p: p.data.copy_(p.data.flip(0)),
        lambda p: p.data[-1, -1, -1].add_(1e-7),
    ],
)
def test_a_large_weight_is_told_from_what_it_was(change: Callable[[Tensor], object]) -> None:
    """Changes that a sum of the numbers, or of their bits, would not see."""
    p = nn.Parameter(torch.randn(256, 64, 3, 3))
    for _ in range(3):
        kept = use(p)
    assert kept is not None
    change(p)
    assert use(p) is None

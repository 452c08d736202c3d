"""The noise of a training run: from which numbers it follows, and where it is drawn."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from munit_fast import make_config
from munit_fast.train import trainer as trainers
from munit_fast.train.noise import iteration_noise, iteration_seed

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_noise_is_the_same_however_a_batch_is_divided(small_config: dict[str, Any], kind: str, device: str) -> None:
    hp = make_config(small_config).hyperparameters()
    trainer: Any = getattr(trainers, kind)(hp).to(device)
    x_a, x_b = torch.rand(2, 4, 3, 32, 32)
    whole = iteration_noise(trainer, x_a, x_b, 7, 3, 0)
    parts = [iteration_noise(trainer, x_a[i : i + 2], x_b[i : i + 2], 7, 3, i) for i in (0, 2)]
    for k in (0, 1):
        for t, p, q in zip(whole[k], parts[0][k], parts[1][k], strict=True):
            assert torch.equal(t, torch.cat([p, q]))
    assert len({iteration_seed(s, i, p) for s in range(3) for i in range(5) for p in range(4)}) == 60
    if trainer.noise_device.type == "cuda":
        return
    torch.manual_seed(iteration_seed(7, 3))
    alone = trainer.draw_noise(x_a[:1], x_b[:1])  # what a batch of one drew from the global generator
    assert all(torch.equal(t[:1], a) for k in (0, 1) for t, a in zip(whole[k], alone[k], strict=True))


class _ElsewhereGenerator(torch.Generator):
    """Stands for a generator of another device: it draws nothing there, and remembers its seeds."""

    device = torch.device("meta")
    seeds: ClassVar[list[int]] = []

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls)

    def manual_seed(self, seed: int) -> Any:
        self.seeds.append(seed)
        return super().manual_seed(seed)


class _DrawnOnTheHost(TorchDispatchMode):
    """Counts the elements of random tensors that the CPU fills."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and result.device.type == "cpu":
            self.count += result.numel()
        return result


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_the_host_draws_little_noise_for_another_device(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """At the published size: codes of 256·64² for UNIT, which the device draws itself; 8 numbers for MUNIT."""
    with torch.device("meta"):
        trainer: Any = getattr(trainers, kind)(make_config({"display_size": 1, "init": "default"}).hyperparameters())
        x_a, x_b = torch.empty(2, 1, 3, 256, 256)
    assert trainer.noise_device.type == ("cpu" if kind == "MUNIT_Trainer" else "meta")
    monkeypatch.setattr(torch, "Generator", _ElsewhereGenerator)
    monkeypatch.setattr(_ElsewhereGenerator, "seeds", [])
    if kind == "MUNIT_Trainer":
        monkeypatch.setattr(_ElsewhereGenerator, "device", torch.device("cpu"))
    with _DrawnOnTheHost() as counter:
        noises = [iteration_noise(trainer, x_a, x_b, 0, 1, 0), trainer.draw_noise(x_a, x_b)]
    assert counter.count <= 2 * 4 * 8
    sizes = [(1, 256, 64, 64)] * 6 if kind == "UNIT_Trainer" else [(1, 8, 1, 1)] * 4
    for of_dis, of_gen in noises:
        assert [tuple(t.shape) for t in (*of_dis, *of_gen)] == sizes


def test_noise_of_another_device_follows_from_the_seed(
    small_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run from seed, iteration and place, whatever was drawn before; else from torch's CPU generator."""
    trainer: Any = trainers.UNIT_Trainer(make_config(small_config).hyperparameters())
    monkeypatch.setattr(trainers.UNIT_Trainer, "noise_device", torch.device("meta"))
    monkeypatch.setattr(torch, "Generator", _ElsewhereGenerator)
    x_a, x_b = torch.rand(2, 3, 3, 32, 32)
    found = []
    for draw in (
        lambda: iteration_noise(trainer, x_a, x_b, 7, 4, 2),
        lambda: (torch.manual_seed(5), trainer.draw_noise(x_a, x_b), trainer.draw_noise(x_a, x_b)),
    ):
        for _ in range(2):
            monkeypatch.setattr(_ElsewhereGenerator, "seeds", [])
            draw()
            found.append(_ElsewhereGenerator.seeds)
            torch.rand(1)
    assert found[0] == found[1] == [iteration_seed(7, 4, place) for place in (2, 3, 4)]
    assert found[2] == found[3] and len(set(found[2])) == 2

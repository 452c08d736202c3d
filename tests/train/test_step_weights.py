"""Weights copied and gradients gathered for all parameters at once, as on a GPU: the numbers of one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.trainers import hyperparameters, parameters
from munit_fast import reference
from munit_fast.models.networks import fused_blocks
from munit_fast.train import trainer as trainers
from munit_fast.train.gradients import FlatGradients

KINDS = ["MUNIT_Trainer", "UNIT_Trainer"]


def batch(seed: int, dtype: torch.dtype = torch.float32, count: int = 2) -> Any:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, 3, 32, 40, generator=draw, dtype=dtype) * 2 - 1


def trained(
    monkeypatch: pytest.MonkeyPatch, kind: str, on_gpu: bool, amp: str = "off", count: int = 3, **over: Any
) -> Any:
    """A trainer after some updates, in float64 unless there is an amp."""
    checkpointing = over.pop("checkpointing", False)
    hp = hyperparameters(recon_x_cyc_w=1, ema_half_life=20, **over)
    torch.manual_seed(0)
    trainer: Any = getattr(trainers, kind)(hp, amp=amp, checkpointing=checkpointing)
    dtype = torch.float64 if amp == "off" else torch.float32
    with monkeypatch.context() as patched:
        patched.setattr(trainers._Trainer, "_on_gpu", on_gpu)
        trainer.to(dtype)
        for i in range(count):
            torch.manual_seed(100 + i)
            trainer.update(*batch(i, dtype), hp)
    return trainer


def moments(trainer: Any) -> Tensor:
    states = [s for o in (trainer.gen_opt, trainer.dis_opt) for s in o.state.values()]
    return torch.cat([s[name].flatten() for s in states for name in ("exp_avg", "exp_avg_sq")])


CASES: list[dict[str, Any]] = [{}, {"accumulation": 2}, {"dis": {"norm": "sn"}}, {"dis": {"norm": "in"}}]


@pytest.mark.parametrize("over", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch, kind: str, over: dict[str, Any]) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(trainers._Trainer, "_lay_out", lambda *_: None)
        gathered = trained(monkeypatch, kind, True, **over)
    plain = trained(monkeypatch, kind, False, **over)
    assert gathered._gradients and not plain._gradients
    assert torch.equal(parameters(gathered), parameters(plain))
    assert torch.equal(moments(gathered), moments(plain))
    assert all(torch.equal(a, b) for a, b in zip(gathered.average.tensors, plain.average.tensors, strict=True))


@pytest.mark.parametrize("over", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_changes_no_gradient(monkeypatch: pytest.MonkeyPatch, kind: str, over: dict[str, Any]) -> None:
    """Adam's step on a CPU rounds by the place in memory, so what follows the first one is the same but for that."""
    gathered, plain = (trained(monkeypatch, kind, on_gpu, count=1, **over) for on_gpu in (True, False))
    assert any(not p.is_contiguous() for p in gathered.parameters())
    for optimizer, exact in (("dis_opt", True), ("gen_opt", False)):
        pairs = [getattr(t, optimizer).param_groups[0]["params"] for t in (gathered, plain)]
        for p, q in zip(*pairs, strict=True):
            assert torch.equal(p.grad, q.grad) if exact else torch.allclose(p.grad, q.grad, rtol=1e-10, atol=1e-10)
    gathered, plain = (trained(monkeypatch, kind, on_gpu, **over) for on_gpu in (True, False))
    assert torch.allclose(parameters(gathered), parameters(plain), rtol=0, atol=1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_mixed_precision(monkeypatch: pytest.MonkeyPatch, kind: str, checkpointing: bool) -> None:
    """Those of the copies reach the parameters: as near to float64's as those of casts."""
    exact = trained(monkeypatch, kind, False, count=1)
    errors = []
    for on_gpu in (True, False):
        trainer = trained(monkeypatch, kind, on_gpu, "bf16", count=1, checkpointing=checkpointing)
        pairs = [(p.grad.double(), q.grad) for p, q in zip(trainer.parameters(), exact.parameters(), strict=True)]
        errors.append([float((g - e).norm() / e.norm().clamp(min=1e-12)) for g, e in pairs if e.norm() > 1e-7])
    copied, cast = map(torch.tensor, errors)
    assert len(copied) > 30
    assert float(copied.median()) < 1.2 * float(cast.median()) and bool((copied < 1.5 * cast + 0.02).all())


def test_every_convolution_has_a_copy_and_keeps_its_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer = trained(monkeypatch, "MUNIT_Trainer", True, "bf16", count=2)
    blocks = [b for net in (trainer.gen_a, trainer.dis_b) for b in fused_blocks(net)]
    assert sum(phases for _, phases in blocks) == 2
    for block, phases in blocks:
        weight = block.conv.weight
        copy = trainer._weights[torch.bfloat16].get(weight, torch.bfloat16)
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert copy.is_contiguous(memory_format=torch.channels_last)
        assert copy.shape[0] == weight.shape[0] * (4 if phases else 1) and copy.requires_grad
        with torch.no_grad():
            assert not trainer._weights[torch.bfloat16].get(weight, torch.bfloat16).requires_grad
        assert trainer._weights[torch.bfloat16].get(weight, torch.float16) is None
    for optimizer, update in ((trainer.gen_opt, "gen"), (trainer.dis_opt, "dis")):
        buffer = trainer._gradients[update].buffer
        for p in optimizer.param_groups[0]["params"]:
            assert p.grad.untyped_storage().data_ptr() == buffer.data_ptr()
            assert p.grad.stride() == p.stride() == optimizer.state[p]["exp_avg"].stride()
    trainer.save(tmp_path, 1)
    for file in sorted(tmp_path.iterdir()):
        for value in tensors(torch.load(file, weights_only=True)):
            assert value.is_contiguous()
    again: Any = reference.MUNIT_Trainer(trainer.hyperparameters)
    again.resume(tmp_path, trainer.hyperparameters)
    assert torch.equal(parameters(again), parameters(trainer))
    states = zip(again.gen_opt.state.values(), trainer.gen_opt.state.values(), strict=True)
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in states)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for item in items for t in tensors(item)]


def test_biases_without_influence_stay_out_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight decay still moves them, as the published optimizer does."""
    trainer = trained(monkeypatch, "MUNIT_Trainer", True, count=1)
    unused = trainer._weights[None].unused["gen"]
    assert len(unused) > 8
    with monkeypatch.context() as patched:
        patched.setattr(trainers._Trainer, "_on_gpu", True)
        with torch.no_grad():
            unused[0].fill_(0.5)
        reached = []
        unused[0].register_hook(reached.append)
        trainer.update(*batch(7, torch.float64), trainer.hyperparameters)
    assert not reached and bool((unused[0] < 0.5).all()) and not unused[0].grad.any()


def test_parameters_that_are_changed_between_updates_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are written anew for each step, whoever has written to a parameter, and however."""
    found = []
    for halved in (False, True):
        trainer = trained(monkeypatch, "MUNIT_Trainer", True, "bf16", count=1)
        with monkeypatch.context() as patched:
            patched.setattr(trainers._Trainer, "_on_gpu", True)
            x_a, x_b = batch(3)
            noise = [torch.ones(2, 3, 1, 1)] * 2
            trainer.dis_update(x_a, x_b, trainer.hyperparameters, noise)
            if halved:
                trainer.gen_a.enc_content.model[0].conv.weight.data *= 0.5
                trainer._cached_codes = None  # what is written through .data goes unnoticed, as documented
            trainer.gen_update(x_a, x_b, trainer.hyperparameters, noise)
        found.append(float(trainer.loss_gen_recon_x_a))
    assert found[0] != found[1]


class _Interrupted(torch.autograd.Function):
    """Passes its argument on; its backward raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise MemoryError


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_backward_that_was_interrupted_leaves_no_gradient(monkeypatch: pytest.MonkeyPatch, amp: str) -> None:
    """When memory runs out, say, and the update is tried again."""
    found = []
    for interrupted in (False, True):
        trainer = trained(monkeypatch, "MUNIT_Trainer", True, amp, count=1)
        hp, dtype = trainer.hyperparameters, next(trainer.parameters()).dtype
        noise = [torch.ones(2, 3, 1, 1, dtype=dtype)] * 2
        with monkeypatch.context() as patched:
            patched.setattr(trainers._Trainer, "_on_gpu", True)
            if interrupted:
                x_a, x_b = batch(6, dtype)
                with pytest.raises(MemoryError):
                    trainer.gen_update(_Interrupted.apply(x_a.requires_grad_()), x_b, hp, noise)
                left = [c.leaf.grad is not None for c in trainer._step_weights()._copies["gen"]]
                assert any(left) == (amp == "bf16")  # what the next backward would add to
            trainer.gen_update(*batch(7, dtype), hp, noise)
        found.append([p.grad.clone() for p in trainer.gen_opt.param_groups[0]["params"]])
    assert all(torch.equal(g, h) for g, h in zip(*found, strict=True))


# ---- the buffer ----


def test_gradients_from_several_places_are_added() -> None:
    weight = nn.Parameter(torch.empty(2, 3, 3, 3).to(memory_format=torch.channels_last))
    bias, unused, apart = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    flat = FlatGradients([weight, bias, unused, apart], [unused])
    own, other = torch.randn(2, 2, 3, 3, 3).to(torch.bfloat16)
    for part in range(2):
        weight.grad, bias.grad = own.float(), torch.full((2,), 1.0 + part)
        flat.add([(weight, other)])
    flat.finish()
    assert torch.equal(weight.grad, 2 * (own.float() + other.float()))
    assert bias.grad.tolist() == [3.0, 3.0] and unused.grad.tolist() == [0.0, 0.0] and apart.grad is None
    assert float(flat.buffer.sum()) == pytest.approx(float(weight.grad.sum() + bias.grad.sum()), abs=1e-4)
    flat.begin()
    assert weight.grad is None
    apart.grad = torch.ones(2)
    flat.add([])
    flat.finish()
    assert weight.grad is None and apart.grad.tolist() == [1.0, 1.0] and float(flat.buffer.sum()) == 2


def test_a_frozen_bias_without_influence_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(monkeypatch, "MUNIT_Trainer", True, count=1)
    bias = trainer._weights[None].unused["gen"][0]
    bias.requires_grad_(False).fill_(0.5)
    with monkeypatch.context() as patched:
        patched.setattr(trainers._Trainer, "_on_gpu", True)
        trainer.update(*batch(8, torch.float64), trainer.hyperparameters)
    assert bias.grad is None and bias.tolist() == [0.5] * bias.numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parameters_that_join_later_are_trained(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Those of another dtype than the buffer's, too."""
    trainer = trained(monkeypatch, "MUNIT_Trainer", True, count=1)
    own = nn.Parameter(torch.ones((), dtype=dtype))
    trainer.gen_opt.add_param_group({"params": [own], "initial_lr": 0.001, "fused": True})
    total = trainers.MUNIT_Trainer.fused_objective._total
    monkeypatch.setattr(type(trainer.objective), "_total", lambda self, losses, hp: total(losses, hp) + 2 * own)
    with monkeypatch.context() as patched:
        patched.setattr(trainers._Trainer, "_on_gpu", True)
        for i in range(2):
            trainer.update(*batch(i, torch.float64), trainer.hyperparameters)
            assert float(own.grad) == pytest.approx(2.0)  # nothing of the update before
    assert float(own.detach()) < 1
    gathered = own.grad.untyped_storage().data_ptr() == trainer._gradients["gen"].buffer.data_ptr()
    assert gathered == (dtype == torch.float64)


def test_what_is_exchanged_is_of_this_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the last update reached a parameter that this one does not, as on one of two processes."""
    first, second = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    flat, exchanged = FlatGradients([first, second]), []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t: exchanged.append(t.clone()))
    for reached in ((first, second), (first,)):
        flat.begin()
        for p in reached:
            p.grad = torch.full((3,), 4.0)
        flat.add([])
        flat.finish(2)
    assert [float(t.sum()) for t in exchanged] == [12.0, 6.0]
    assert second.grad is None


def test_each_dtype_is_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several at once, torch makes an operation for each tensor on a GPU."""
    parameters = [nn.Parameter(torch.zeros(4, 3, 3, 3)) for _ in range(6)]
    flat, calls = FlatGradients(parameters), []
    for name in ("_foreach_copy_", "_foreach_add_"):
        plain = getattr(torch, name)

        def counted(a: Any, b: Any, plain: Any = plain, name: str = name) -> None:
            calls.append((name, len(a), {t.dtype for t in b}))
            plain(a, b)

        monkeypatch.setattr(torch, name, counted)
    half = [(p, torch.ones_like(p, dtype=torch.bfloat16)) for p in parameters[:4]]
    for _ in range(2):
        for p in parameters[2:]:
            p.grad = torch.ones_like(p)
        flat.add(half)
    flat.finish()
    assert all(len(dtypes) == 1 for _, _, dtypes in calls) and len(calls) == 9
    assert all(dtypes == {torch.float32} for name, _, dtypes in calls if name == "_foreach_add_")
    assert [float(p.grad.mean()) for p in parameters] == [2, 2, 4, 4, 2, 2]

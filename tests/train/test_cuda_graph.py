"""A whole iteration at once: on the CPU the three calls, on a GPU one CUDA graph."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.trainers import hyperparameters, parameters
from munit_fast import reference
from munit_fast.train import cuda_graph as graph
from munit_fast.train import optim
from munit_fast.train import trainer as trainers

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    return [tuple(torch.rand(2, 1, 3, 32, 40, generator=draw) * 2 - 1) for _ in range(count)]  # type: ignore[misc]


def trained(kind: str, hp: dict[str, Any], whole: bool, device: str = "cpu", amp: str = "off", count: int = 8) -> Any:
    torch.manual_seed(0)
    trainer: Any = getattr(trainers, kind)(hp, amp=amp).to(device)
    for i, (x_a, x_b) in enumerate(batches(count)):
        torch.manual_seed(100 + i)
        if whole:
            trainer.update(x_a, x_b, hp)
        else:
            trainer.update_learning_rate()
            of_dis, of_gen = trainer.draw_noise(x_a, x_b)
            x_a, x_b = x_a.to(device), x_b.to(device)
            trainer.dis_update(x_a, x_b, hp, of_dis)
            trainer.gen_update(x_a, x_b, hp, of_gen)
            trainer.update_average(x_a.shape[0])
    return trainer


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_update_is_the_three_calls(kind: str) -> None:
    hp = hyperparameters(recon_x_cyc_w=1)
    whole, parts = (trained(kind, hp, choice, count=4) for choice in (True, False))
    assert torch.equal(parameters(whole), parameters(parts))
    assert all(torch.equal(t, u) for t, u in zip(whole.average.tensors, parts.average.tensors, strict=True))
    assert whole.iterations == 4 and whole.gen_opt.param_groups[0]["lr"] == 0.0005


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_noise_for_a_graph_is_what_the_updates_draw(kind: str) -> None:
    """The same numbers in the same order, so that a run is the same with and without a graph."""
    hp = hyperparameters(recon_x_cyc_w=1)
    x_a, x_b = batches(1)[0]
    found = []
    for drawn in (True, False):
        torch.manual_seed(0)
        trainer: Any = getattr(trainers, kind)(hp)
        torch.manual_seed(1)
        of_dis, of_gen = trainer.draw_noise(x_a, x_b) if drawn else (None, None)
        trainer.dis_update(x_a, x_b, hp, of_dis)
        trainer.gen_update(x_a, x_b, hp, of_gen)
        found.append((parameters(trainer), torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_unsupported_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    hp = hyperparameters()
    assert "need a CUDA device" in str(graph.unsupported_reason(trainers.MUNIT_Trainer(hp), torch.device("cpu")))
    assert "published updates" in str(graph.unsupported_reason(trainers.MUNIT_Trainer(hp, impl="reference"), cuda))
    assert graph.unsupported_reason(trainers.MUNIT_Trainer(hyperparameters(dis={"norm": "sn"})), cuda) is None
    several = trainers.MUNIT_Trainer(hp)
    assert graph.unsupported_reason(several, cuda) is None
    several._processes = 2
    for backend, holds in (("nccl", True), ("gloo", False)):
        monkeypatch.setattr(torch.distributed, "get_backend", lambda backend=backend: backend)
        assert (graph.unsupported_reason(several, cuda) is None) == holds


def test_a_capture_that_fails_leaves_a_run_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The iteration is done once, with the same noise and learning rate, and the reason is logged once."""

    class Failing:
        graph = None

        def __init__(self, *_: Any) -> None:
            pass

        def run(self, *_: Any) -> None:
            raise graph.CaptureError("operation not permitted")

    hp = hyperparameters()
    plain = trained("MUNIT_Trainer", hp, True, count=3)
    monkeypatch.setattr(graph, "unsupported_reason", lambda trainer, device: None)
    monkeypatch.setattr(graph, "StepGraph", Failing)
    monkeypatch.setattr(optim.FusedAdam, "make_capturable", lambda self: None)
    with caplog.at_level(logging.WARNING):
        failed = trained("MUNIT_Trainer", hp, True, count=3)
    assert (failed._graphs.failure or "").endswith(": operation not permitted")
    assert failed.iterations == 3 and torch.equal(parameters(failed), parameters(plain))


def test_a_capturable_optimizer_writes_published_files(tmp_path: Path) -> None:
    hp = hyperparameters()
    trainer = trained("MUNIT_Trainer", hp, True, count=1)
    for each in (trainer.gen_opt, trainer.dis_opt):
        each.make_capturable()
    trainer.update_learning_rate()
    rate = trainer.gen_opt.param_groups[0]["lr"]
    assert isinstance(rate, Tensor)
    trainer.iterations = 3
    trainer.update_learning_rate()
    assert trainer.gen_opt.param_groups[0]["lr"] is rate and float(rate) == pytest.approx(0.0005)
    trainer.save(tmp_path, 3)
    state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    group = state["gen"]["param_groups"][0]
    assert type(group["lr"]) is float and group["fused"] is None and group["capturable"] is False
    plain = reference.MUNIT_Trainer(hp)
    plain.resume(tmp_path, hp)
    assert plain.gen_opt.param_groups[0]["lr"] == pytest.approx(0.0005)


@pytest.mark.parametrize("capturable", [False, True])
def test_optimizers_follow_a_trainer_that_moves(capturable: bool) -> None:
    """Parameters, moments, step counts and the learning rate's tensor."""
    trainer = trained("MUNIT_Trainer", hyperparameters(), True, count=1)
    optimizers = (trainer.gen_opt, trainer.dis_opt)
    for each in optimizers if capturable else ():
        each.make_capturable()
    counts = [len(each.state) for each in optimizers]
    trainer.to("meta")
    own = {id(p) for p in trainer.parameters()}
    for each, count in zip(optimizers, counts):
        group = each.param_groups[0]
        assert all(id(p) in own and p.device.type == "meta" for p in group["params"])
        assert {id(p) for p in each.state} == {id(p) for p in group["params"]} and len(each.state) == count > 0
        assert all(t.device.type == "meta" for state in each.state.values() for t in state.values())
        assert group["lr"].device.type == "meta" if capturable else isinstance(group["lr"], float)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_trainer_trains_on_in_another_dtype(capturable: bool) -> None:
    hp = hyperparameters()
    trainer = trained("MUNIT_Trainer", hp, True, count=2)
    for each in (trainer.gen_opt, trainer.dis_opt) if capturable else ():
        each.make_capturable()
    trainer.double()
    state = next(iter(trainer.gen_opt.state.values()))
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float64
    assert state["step"].dtype == torch.float32
    before = parameters(trainer)
    trainer.update(*(x.double() for x in batches(1)[0]), hp)
    assert not torch.equal(parameters(trainer), before) and trainer.skipped_steps == 0


@pytest.mark.parametrize("loaded", [False, True])
def test_moments_lie_in_memory_as_their_parameters_do(loaded: bool) -> None:
    """The fused step pairs them by their place in memory."""
    hp = hyperparameters()
    stayed, moved = (trained("MUNIT_Trainer", hp, True, count=2).double() for _ in range(2))
    moved.to(memory_format=torch.channels_last)
    if loaded:
        states = {"gen": stayed.gen_opt.state_dict(), "dis": stayed.dis_opt.state_dict()}
        moved.load_optimizers(copy.deepcopy(states))  # loading does not copy
    for p, state in moved.gen_opt.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == p.stride()
    for x_a, x_b in batches(2):
        noise = stayed.draw_noise(x_a, x_b)
        for trainer in (stayed, moved):
            trainer.update(x_a.double(), x_b.double(), hp, noise)
    # Beside lr 1e-4 an update; with moments of other elements they are 1e-4 apart.
    assert float((parameters(stayed) - parameters(moved)).abs().max()) < 1e-9


def test_a_parameter_that_is_not_the_trainers_stays_in_its_optimizer() -> None:
    trainer = trained("MUNIT_Trainer", hyperparameters(), True, count=1)
    own = torch.nn.Parameter(torch.zeros(3))
    trainer.gen_opt.add_param_group({"params": [own]})
    trainer.double()
    assert trainer.gen_opt.param_groups[1]["params"] == [own] and own.dtype == torch.float32
    assert trainer.gen_opt.param_groups[0]["params"][0].dtype == torch.float64


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_a_trainer_is_copied_after_an_update(impl: str) -> None:
    hp = hyperparameters()
    trainer = trainers.MUNIT_Trainer(hp, impl=impl)
    trainer.update(*batches(1)[0], hp)
    again = copy.deepcopy(trainer)
    assert torch.equal(parameters(trainer), parameters(again)) and not again.loss_gen_total.requires_grad


@pytest.mark.parametrize("other", ["meta", "cpu"])
def test_loss_scaling_follows_a_trainer_that_moves(other: str) -> None:
    """What the scalers have learned stays; what they hold on the old device does not."""
    trainer = trained("MUNIT_Trainer", hyperparameters(), True, amp="fp16", count=1)
    before, scalers = trainer.scaler_states(), dict(trainer._scaling.scalers)
    trainer.to(other)
    assert trainer.scaler_states() == before and len(before) == 2
    assert all((trainer._scaling.scalers[name] is scaler) == (other == "cpu") for name, scaler in scalers.items())


@pytest.mark.gpu
@needs_gpu
def test_a_trainer_that_moves_to_a_gpu_goes_on() -> None:
    hp = hyperparameters()
    stayed, moved = (trained("MUNIT_Trainer", hp, True, count=2) for _ in range(2))
    moved.to("cuda")
    for x_a, x_b in batches(6):
        noise = stayed.draw_noise(x_a, x_b)
        for trainer in (stayed, moved):
            trainer.update(x_a, x_b, hp, noise)
    assert moved._graphs.failure is None and len(moved._graphs.by_key) == 1
    assert float((parameters(stayed) - parameters(moved)).norm() / parameters(stayed).norm()) < 1e-3


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_replays_are_eager_iterations(kind: str, amp: str) -> None:
    """Other images, noise and learning rates in each: eight iterations, five of them replayed."""
    hp = hyperparameters(recon_x_cyc_w=1)
    whole, parts = (trained(kind, hp, choice, "cuda", amp) for choice in (True, False))
    assert whole._graphs.failure is None and len(whole._graphs.by_key) == 1
    difference = (parameters(whole) - parameters(parts)).norm() / parameters(parts).norm()
    assert float(difference) < {"off": 1e-4, "bf16": 1e-2, "fp16": 1e-2}[amp]
    averages = [torch.cat([t.flatten() for t in trainer.average.tensors]) for trainer in (whole, parts)]
    assert (
        float((averages[0] - averages[1]).norm() / averages[1].norm()) < {"off": 1e-4, "bf16": 1e-2, "fp16": 1e-2}[amp]
    )
    assert whole.iterations == 8
    assert float(whole.gen_opt.param_groups[0]["lr"]) == pytest.approx(0.00025)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_spectral_norm_in_a_graph(device: str) -> None:
    """Its vectors go on in every replay, as they do in eager iterations."""
    hp = hyperparameters(dis={"norm": "sn"})
    whole, parts = (trained("MUNIT_Trainer", hp, choice, device) for choice in (True, False))
    if device == "cuda":
        assert whole._graphs.failure is None and len(whole._graphs.by_key) == 1
    warm = trained("MUNIT_Trainer", hp, False, device, count=graph.WARM_UP)
    vectors = [
        torch.cat([p.detach().double().cpu() for name, p in trainer.named_parameters() if name.endswith(("_u", "_v"))])
        for trainer in (whole, parts, warm)
    ]
    assert float((vectors[1] - vectors[2]).norm() / vectors[1].norm()) > 1e-2  # they move in what is replayed
    assert float((vectors[0] - vectors[1]).norm() / vectors[1].norm()) < 1e-3
    assert float((parameters(whole) - parameters(parts)).norm() / parameters(parts).norm()) < 1e-4


@pytest.mark.gpu
@needs_gpu
def test_a_step_that_is_not_finite_is_skipped_inside_the_graph() -> None:
    hp = hyperparameters()
    trainer = trained("MUNIT_Trainer", hp, True, "cuda", count=6)
    before = parameters(trainer)
    nothing = torch.full((1, 3, 32, 40), float("nan"))
    trainer.update(nothing, nothing, hp)
    assert trainer.skipped_steps == 2 and torch.equal(parameters(trainer), before)
    trainer.update(*batches(1)[0], hp)
    assert trainer.skipped_steps == 2 and not torch.equal(parameters(trainer), before)

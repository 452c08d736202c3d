"""Training networks that are not published: spectral norms of weights, the residual discriminator."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import fake_cuda, runs
from helpers.trainers import hyperparameters, parameters
from munit_fast import MUNIT, UNIT, make_config, reference
from munit_fast.io.checkpoints import load_file
from munit_fast.models.networks import ResidualDis
from munit_fast.reference.weight_norms import hold_vectors, normed_modules
from munit_fast.train import cuda_graph
from munit_fast.train import trainer as trainers

KINDS = ["MUNIT_Trainer", "UNIT_Trainer"]
RESIDUAL = {"arch": "residual", "num_scales": 1}
SPECTRAL: dict[str, Any] = {"dis": {"weight_norm": "spectral"}}
BOTH: dict[str, Any] = {"dis": {"weight_norm": "spectral", **RESIDUAL}}
CASES = [SPECTRAL, {"dis": RESIDUAL}, {"dis": BOTH["dis"] | {"norm": "in"}}]


def settings(weight_norm: str = "spectral", **over: Any) -> dict[str, Any]:
    hp = hyperparameters(recon_x_cyc_w=1, ema_half_life=20, lr=2**-10, **copy.deepcopy(over))
    return hp | {"gen": hp["gen"] | {"weight_norm": weight_norm}}


def batch(seed: int, dtype: torch.dtype = torch.float64, count: int = 2) -> Any:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, 3, 32, 40, generator=draw, dtype=dtype) * 2 - 1


def trained(kind: str, hp: dict[str, Any], count: int = 3, amp: str = "off", **options: Any) -> Any:
    torch.manual_seed(0)
    dtype = torch.float64 if amp == "off" else torch.float32
    trainer: Any = getattr(trainers, kind)(hp, amp=amp, **options).to(dtype)
    for i in range(count):
        torch.manual_seed(100 + i)
        trainer.update(*batch(i, dtype), hp)
    return trainer


def everything(trainer: Any) -> Tensor:
    """Parameters and buffers, the vectors among them."""
    return torch.cat([parameters(trainer), *(b.detach().double().flatten() for b in trainer.buffers())])


def vectors(network: Any) -> list[Tensor]:
    return [b.clone() for name, b in network.named_buffers() if name.endswith(("_u", "_v"))]


def iterate(network: Any) -> None:
    """One power iteration of every norm, by its formula."""
    for module in normed_modules(network):
        rows = module.parametrizations.weight.original.detach().flatten(1)
        norm = module.parametrizations.weight[0]
        norm._u.copy_(rows @ norm._v / (rows @ norm._v).norm())
        norm._v.copy_(rows.T @ norm._u / (rows.T @ norm._u).norm())


@pytest.mark.parametrize("over", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_iteration_is_the_published_one_on_these_networks(kind: str, over: dict[str, Any]) -> None:
    """The plain losses, and a power iteration of the networks of an update behind its step."""
    hp = settings(**over)
    fast = trained(kind, hp)
    torch.manual_seed(0)
    plain: Any = getattr(reference, kind)(hp).double()
    networks = (plain.gen_a, plain.gen_b, plain.dis_a, plain.dis_b)
    for i in range(3):
        torch.manual_seed(100 + i)
        x_a, x_b = batch(i)
        of_dis, of_gen = fast.draw_noise(x_a, x_b)
        for network in networks:
            hold_vectors(network)
        plain.update_learning_rate()
        plain.dis_update(x_a, x_b, hp, of_dis)
        iterate(plain.dis_a), iterate(plain.dis_b)
        plain.gen_update(x_a, x_b, hp, of_gen)
        iterate(plain.gen_a), iterate(plain.gen_b)
    assert isinstance(fast.dis_a, ResidualDis) == ("arch" in over["dis"])
    assert torch.allclose(everything(fast), everything(plain), rtol=0, atol=1e-6)
    states = fast.dis_a.state_dict(), plain.dis_a.state_dict()
    assert list(states[0]) == list(states[1])


@pytest.mark.parametrize("over", [SPECTRAL, BOTH], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_how_an_iteration_is_computed_changes_nothing(kind: str, over: dict[str, Any]) -> None:
    """In parts of the batch, with checkpointing, by plain networks, by the published calls, with pictures between."""
    hp = settings(**over)
    whole = trained(kind, hp)
    others = {
        "accumulation": trained(kind, hp | {"accumulation": 2}),
        "checkpointing": trained(kind, hp, checkpointing=True),
        "reference": trained(kind, hp, impl="reference"),
    }
    torch.manual_seed(0)
    calls = getattr(trainers, kind)(hp).double()
    for i in range(3):
        torch.manual_seed(100 + i)
        x_a, x_b = batch(i)
        calls.update_learning_rate()
        of_dis, of_gen = calls.draw_noise(x_a, x_b)
        calls.dis_update(x_a, x_b, hp, of_dis)
        calls.gen_update(x_a, x_b, hp, of_gen)
        before = vectors(calls)
        calls.sample(x_a, x_b)
        calls.eval(), calls.train()
        calls.gen_a(x_a)  # in training mode
        calls.dis_a(x_a)
        assert all(map(torch.equal, vectors(calls), before))
    for name, other in (others | {"calls": calls}).items():
        assert torch.allclose(everything(other), everything(whole), rtol=0, atol=1e-6), name


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("over", [*CASES, BOTH], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_replays_are_eager_iterations(
    monkeypatch: pytest.MonkeyPatch, kind: str, over: dict[str, Any], amp: str
) -> None:
    """In a graph that the CPU plays, with the weights of a step and gradients gathered as on a GPU."""
    hp = settings(**over)
    cuda = fake_cuda.install(monkeypatch)
    count = cuda_graph.WARM_UP + 3
    torch.manual_seed(0)
    graphed, eager = (getattr(trainers, kind)(hp, amp=amp) for _ in range(2))
    eager.load_state_dict(graphed.state_dict())
    cuda.modules.append(graphed)
    for i in range(count):
        x_a, x_b = batch(i, torch.float32)
        noise = graphed.draw_noise(x_a, x_b, torch.Generator().manual_seed(i))
        before = vectors(graphed)
        graphed.update(x_a, x_b, hp, noise)
        assert not any(map(torch.equal, vectors(graphed)[:8], before[:8]))
        eager.update_learning_rate()
        eager.dis_update(x_a, x_b, hp, noise[0])
        eager.gen_update(x_a, x_b, hp, noise[1])
        eager.update_average(2)
    assert graphed._graphs.failure is None and cuda.replays == 3
    assert torch.equal(everything(graphed), everything(eager))
    if amp == "off":
        assert all(p.grad is not None for p in graphed.dis_a.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_the_copies_of_a_step(
    monkeypatch: pytest.MonkeyPatch, kind: str, checkpointing: bool
) -> None:
    """As near to float64's as those of casts."""
    exact = trained(kind, settings(**BOTH), 1)
    errors = []
    for on_gpu in (True, False):
        monkeypatch.setattr(trainers._Trainer, "_on_gpu", on_gpu)
        trainer = trained(kind, settings(**BOTH), 1, "bf16", checkpointing=checkpointing)
        pairs = [(p.grad.double(), q.grad) for p, q in zip(trainer.parameters(), exact.parameters(), strict=True)]
        errors.append([float((g - e).norm() / e.norm().clamp(min=1e-12)) for g, e in pairs if e.norm() > 1e-6])
    copied, cast = map(torch.tensor, errors)
    assert len(copied) > 30
    assert float(copied.median()) < 1.2 * float(cast.median()) and bool((copied < 1.5 * cast + 0.02).all())


@pytest.mark.parametrize("kind", ["MUNIT", "UNIT"])
def test_a_resumed_run_is_the_same_to_the_bit(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, kind: str
) -> None:
    gen, dis = ({"weight_norm": "spectral", **small_config[part]} for part in ("gen", "dis"))
    config = small_config | {
        "trainer": kind,
        "gen": gen,
        "dis": dis | RESIDUAL,
        "ema_half_life": 10,
        "snapshot_save_iter": 3,
    }
    runs.run(config | {"max_iter": 6}, picture_folders, tmp_path / "whole", trainer=kind)
    runs.run(config | {"max_iter": 3}, picture_folders, tmp_path / "parts", trainer=kind)
    runs.run(config | {"max_iter": 6}, picture_folders, tmp_path / "parts", trainer=kind, resume=True)
    folders = [runs.checkpoints(tmp_path / name) for name in ("whole", "parts")]
    for name in ("resume_00000006.pt", "gen_00000006.pt", "dis_00000006.pt", "ema_00000006.pt"):
        mine, theirs = (load_file(folder / name) for folder in folders)
        if "resume" in name:
            mine, theirs = ({k: state[k] for k in ("networks", "optimizers", "average")} for state in (mine, theirs))
        assert runs.equal(mine, theirs), name
    # What translates is the averaged generators with their norms worked into the weights.
    model = {"MUNIT": MUNIT, "UNIT": UNIT}[kind](make_config(config)).load(folders[0] / "gen_00000006.pt").eval()
    assert model.loaded == folders[0] / "ema_00000006.pt" and not normed_modules(model)
    trainer: Any = getattr(trainers, f"{kind}_Trainer")(make_config(config).hyperparameters())
    trainer.gen_a.load_state_dict(load_file(folders[0] / "ema_00000006.pt")["a"])
    x = batch(0, torch.float32)[0]
    with torch.no_grad():
        assert torch.equal(trainer.gen_a.eval()(x), model.gen_a(x))


def test_a_copied_and_a_moved_trainer_train_on() -> None:
    hp = settings(**BOTH)
    trainer = trained("MUNIT_Trainer", hp, 2)
    copied = copy.deepcopy(trainer).float().double()
    for each in (trainer, copied):
        torch.manual_seed(5)
        each.update(*batch(5), hp)
    assert torch.allclose(everything(trainer), everything(copied), rtol=0, atol=1e-4)
    assert all(map(torch.equal, vectors(trainer), vectors(trainer.train())))


def test_published_spectral_norm_stays_the_published_one() -> None:
    """Its files, too: torch's norm iterates u before v, leaves evaluation alone and norms other layers."""
    hp = settings("none", dis={"norm": "sn"})
    trainer = trained("MUNIT_Trainer", hp, 1)
    names = [name for name in trainer.dis_a.state_dict() if "weight" in name and name.startswith("cnns.0.1")]
    assert names == [f"cnns.0.1.conv.module.{name}" for name in ("weight_u", "weight_v", "weight_bar")]
    before = {k: v.clone() for k, v in trainer.dis_a.state_dict().items()}
    trainer.dis_a.eval()(batch(0)[0])
    assert not torch.equal(trainer.dis_a.state_dict()[names[0]], before[names[0]])

"""Spectral norm of weights: the plain formula, when its vectors advance, and the files that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from munit_fast import MUNIT, UNIT, CheckpointError, ConfigError, make_config, reference
from munit_fast.io.checkpoints import load_states, save_atomically, upgrade_state_dict
from munit_fast.io.safetensors_file import read_tensors, write_generators
from munit_fast.models import networks
from munit_fast.models.portable import config_text, read_portable
from munit_fast.reference.weight_norms import normed_modules

GEN = {"dim": 4, "mlp_dim": 8, "style_dim": 3, "n_res": 1, "weight_norm": "spectral"}
DIS = {"dim": 4, "n_layer": 2, "num_scales": 2, "weight_norm": "spectral"}
LAYER = ".parametrizations.weight."
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("AdaINGen", "gen", {}),
    ("VAEGen", "gen", {}),
    ("VAEGen", "gen", {"n_res": 0, "pad_type": "zero"}),
    *(("MsImageDis", "dis", {"norm": norm}) for norm in ("none", "in", "ln")),
    ("ResidualDis", "dis", {"num_scales": 1, "arch": "residual"}),
]


def sections(**over: Any) -> dict[str, Any]:
    return make_config({"gen": GEN, "dis": DIS} | over).hyperparameters()


def made(kind: str, part: str, over: dict[str, Any], impl: str = "auto") -> Any:
    torch.manual_seed(0)
    return getattr(networks, kind)(3, sections()[part] | over, impl).double()


def images(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(2, 3, 32, 40, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def outputs(network: Any, x: Tensor) -> Tensor:
    """One vector, whatever the network gives."""
    torch.manual_seed(7)  # of UNIT's noise
    found = network(x)
    return torch.cat([y.flatten() for y in (found if isinstance(found, list) else [found])])


def iterated(state: dict[str, Tensor], times: int = 1) -> dict[str, Tensor]:
    """The formula of Miyato et al. (2018, algorithm 1): the vectors, and the plain weights, after power iterations."""
    found = dict(state)
    for name in [name for name in state if name.endswith("original")]:
        layer = name.removesuffix(LAYER + "original")
        matrix, u, v = (found.pop(layer + LAYER + end) for end in ("original", "0._u", "0._v"))
        rows = matrix.reshape(len(matrix), -1)
        for _ in range(times):
            u = rows @ v / (rows @ v).norm()
            v = rows.T @ u / (rows.T @ u).norm()
        found |= {f"{layer}.weight": matrix / (u @ rows @ v), f"{layer} u": u, f"{layer} v": v}
    return found


def vectors(network: nn.Module) -> list[Tensor]:
    return [b.clone() for name, b in network.named_buffers() if name.endswith(("_u", "_v"))]


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(("kind", "part", "over"), CASES, ids=str)
def test_a_forward_is_the_formula(kind: str, part: str, over: dict[str, Any], impl: str) -> None:
    """One power iteration a forward in training mode, and none in evaluation."""
    network = made(kind, part, over, impl)
    plain = made(kind, part, over | {"weight_norm": "none"}, "reference")
    for mode, times in ((True, 1), (True, 1), (False, 0)):
        wanted = iterated(network.state_dict(), times)
        found = outputs(network.train(mode), images(1))
        plain.train(mode).load_state_dict({k: v for k, v in wanted.items() if " " not in k})
        assert torch.allclose(found, outputs(plain, images(1)), rtol=0, atol=1e-12)
        for name, buffer in network.named_buffers():
            if name.endswith(("_u", "_v")):
                layer, end = name.split(LAYER)
                assert torch.allclose(buffer, wanted[f"{layer} {end[-1]}"], atol=1e-12), name
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == len(normed_modules(network)) > 5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("kind", "part", "over"), CASES, ids=str)
def test_gradients_of_several_forwards(kind: str, part: str, over: dict[str, Any], checkpointing: bool) -> None:
    """Each is that of its own vectors, and what checkpointing runs again advances none."""
    fast, plain = made(kind, part, over), made(kind, part, over, "reference")
    plain.load_state_dict(fast.state_dict())
    fast.set_checkpointing(checkpointing)
    losses = [sum(outputs(net, images(seed)).square().sum() for seed in (1, 2)) for net in (fast, plain)]
    before = vectors(fast)
    for loss in losses:
        loss.backward()
    assert all(map(torch.equal, before, vectors(fast)))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(before, vectors(plain), strict=True))
    for (name, p), (_, q) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        size = float(q.grad.abs().max())
        assert float((p.grad - q.grad).abs().max()) <= 1e-9 * size + 1e-12, name


@pytest.mark.parametrize(("kind", "part", "over"), CASES, ids=str)
def test_evaluation_changes_nothing(kind: str, part: str, over: dict[str, Any]) -> None:
    network = made(kind, part, over).eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    outputs(network, images(1)).sum().backward()
    with torch.no_grad():
        outputs(network, images(2))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(("kind", "part", "over"), [case for case in CASES if case[1] == "dis"], ids=str)
def test_calls_that_share_weights(kind: str, part: str, over: dict[str, Any]) -> None:
    """One power iteration for those that need a graph, and one for the others."""
    network, other = made(kind, part, over), made(kind, part, over)
    other.load_state_dict(network.state_dict())
    with networks.shared_weights():
        with torch.no_grad():
            outputs(network, images(1))
        first = vectors(network)
        for seed in (2, 3):
            outputs(network, images(seed)).square().sum().backward(retain_graph=True)
        after = vectors(network)
    wanted = other.eval()
    wanted.load_state_dict(network.state_dict())
    for seed in (2, 3):
        outputs(wanted, images(seed)).square().sum().backward()
    for times, found in ((1, first), (2, after)):
        formula = iterated(made(kind, part, over).state_dict(), times)
        names = [name for name, _ in network.named_buffers() if name.endswith(("_u", "_v"))]
        for name, vector in zip(names, found, strict=True):
            assert torch.allclose(vector, formula[f"{name.split(LAYER)[0]} {name[-1]}"], atol=1e-12), (times, name)
    for (name, p), (_, q) in zip(network.named_parameters(), wanted.named_parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-9, atol=1e-9), name


def test_weights_are_computed_in_float32_under_autocast() -> None:
    network = made("AdaINGen", "gen", {}).float().eval()
    folded = made("AdaINGen", "gen", {"weight_norm": "none"}).float().eval()
    folded.load_state_dict(upgrade_state_dict(network.state_dict(), folded))
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = (outputs(net, images(1, torch.float32)) for net in (network, folded))
    assert torch.equal(mine, theirs)


def test_a_compiled_generator_gives_the_same() -> None:
    network = made("AdaINGen", "gen", {}).float().eval()
    x = images(1, torch.float32)
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager")
        assert torch.allclose(outputs(compiled, x), outputs(network, x), atol=1e-6)


@pytest.mark.parametrize("init", ["gaussian", "kaiming", "xavier", "orthogonal"])
def test_initialization_fills_what_the_norm_reads(init: str) -> None:
    trainer = reference.MUNIT_Trainer(sections(init=init, display_size=1))
    for net in (trainer.gen_a, trainer.dis_b):
        for module in normed_modules(net):
            assert not module.bias.any()
            rows = module.parametrizations.weight.original.flatten(1)
            found = module.eval().weight.flatten(1)
            exact = rows / torch.linalg.matrix_norm(rows, 2)
            assert float((found - exact).norm() / exact.norm()) < 0.1  # as far as 15 power iterations come
    std = float(trainer.dis_a.cnns[0][1].conv.parametrizations.weight.original.std())
    assert std == pytest.approx(0.02, rel=0.2)


# ---- files ----


@pytest.mark.parametrize("kind", [MUNIT, UNIT])
def test_translators_load_the_norm_worked_into_the_weights(tmp_path: Path, kind: Any) -> None:
    """From a checkpoint, a portable file of the model, and one that has the norm's own tensors."""
    config = make_config({"gen": GEN})
    generator = {MUNIT: "AdaINGen", UNIT: "VAEGen"}[kind]
    pair = {d: made(generator, "gen", {}).float().train() for d in "ab"}
    for net in pair.values():
        outputs(net, images(3, torch.float32))  # vectors that have moved
        net.eval()
    states = {d: net.state_dict() for d, net in pair.items()}
    save_atomically(states, tmp_path / "gen_00000001.pt")
    model = kind(config).load(tmp_path / "gen_00000001.pt").eval()
    assert not normed_modules(model) and len(list(model.buffers())) < len(list(pair["a"].buffers()))
    x = images(4, torch.float32)
    assert torch.equal(outputs(model.gen_a, x), outputs(pair["a"], x))
    model.save_pretrained(tmp_path / "folder")
    again = kind.from_pretrained(tmp_path / "folder")
    write_generators(
        tmp_path / "own.safetensors", states, trainer=kind.trainer, config=config_text(config), dtype="fp32"
    )
    assert any(name.endswith("original") for name in read_tensors(tmp_path / "own.safetensors").tensors)
    own = kind.from_pretrained(tmp_path / "own.safetensors")
    for other in (again, own, kind(config).load(tmp_path / "own.safetensors")):
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())
    about = read_portable(tmp_path / "folder/model.safetensors")
    assert about.config.gen.weight_norm == "none" and not any("original" in name for name in about.states["a"])


@pytest.mark.parametrize("damage", ["no vector", "vector of another length", "whole numbers"])
def test_what_does_not_belong_together_is_refused(damage: str) -> None:
    net, plain = made("VAEGen", "gen", {}), made("VAEGen", "gen", {"weight_norm": "none"})
    states: Any = {d: dict(net.state_dict()) for d in "ab"}
    name = next(name for name in states["b"] if name.endswith("_u"))
    if damage == "no vector":
        del states["b"][name]
    else:
        states["b"][name] = torch.ones(77) if damage == "vector of another length" else states["b"][name].long()
    with pytest.raises(CheckpointError, match=r"file\.pt.*gen\.weight_norm is spectral in the file and none here"):
        load_states("file.pt", states, plain, plain)


def test_a_plain_file_is_none_of_a_network_with_the_norm() -> None:
    net, plain = made("AdaINGen", "gen", {}), made("AdaINGen", "gen", {"weight_norm": "none"})
    with pytest.raises(CheckpointError, match=r"gen\.weight_norm is none in the file and spectral here"):
        load_states("file.pt", {d: plain.state_dict() for d in "ab"}, net, net)
    net, plain = made("MsImageDis", "dis", {}), made("MsImageDis", "dis", {"weight_norm": "none"})
    with pytest.raises(CheckpointError, match=r"dis\.weight_norm is none in the file and spectral here"):
        load_states("file.pt", {d: plain.state_dict() for d in "ab"}, net, net)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gen": {"weight_norm": "batch"}}, r"gen\.weight_norm.*'none' or 'spectral'"),
        ({"dis": {"weight_norm": "spectral", "norm": "sn"}}, "norm: sn with weight_norm: spectral; use norm: none"),
        ({"dis": {"weight_norm": "spectral", "norm": "bn"}}, "norm: bn with weight_norm: spectral; use norm: none, in"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(values)


def test_networks_that_are_refused() -> None:
    with pytest.raises(ValueError, match="arch must be multiscale for MsImageDis; got 'residual'"):
        made("MsImageDis", "dis", {"arch": "residual"})
    with pytest.raises(ValueError, match="weight_norm must be one of none, spectral; got 'batch'"):
        made("AdaINGen", "gen", {"weight_norm": "batch"})
    with pytest.raises(ValueError, match="weight_norm needs norm none, in or ln"):
        made("MsImageDis", "dis", {"norm": "sn"})

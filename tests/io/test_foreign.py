"""Generators in the files of other programs are found wherever they lie, or what lies there is said in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.optim.swa_utils import AveragedModel

from munit_fast import MUNIT, UNIT, CheckpointError, MUNIT_Trainer, make_config
from munit_fast.io import tensor_names
from munit_fast.train.run_state import run_state

GEN = {"dim": 2, "mlp_dim": 4, "style_dim": 2, "n_res": 1, "n_downsample": 1, "activ": "relu", "pad_type": "reflect"}
CONFIG = make_config(
    {"gen": GEN, "dis": {"dim": 2, "n_layer": 1, "num_scales": 1}, "display_size": 1, "ema_half_life": 2}
)
State = dict[str, Any]


@pytest.fixture(scope="module")
def trainer() -> MUNIT_Trainer:
    torch.manual_seed(3)
    return MUNIT_Trainer(CONFIG.hyperparameters())


def named(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: value for name, value in state.items()}


def moved(state: Mapping[str, Any]) -> State:
    """Other weights under the same names."""
    return {name: value + 1 if isinstance(value, Tensor) else value for name, value in state.items()}


def load(content: Any, tmp_path: Path, name: str = "file.pt", average: bool = True) -> MUNIT:
    torch.save(content, tmp_path / name)
    return MUNIT(CONFIG).load(tmp_path / name, average=average)


def refusal(content: Any, tmp_path: Path, kind: Any = MUNIT) -> str:
    torch.save(content, tmp_path / "file.pt")
    model = kind(CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        model.load(tmp_path / "file.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'file.pt'}: ") and text.isprintable()
    return text


def holds(model: Any, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    pairs = [(model.gen_a.state_dict(), a), (model.gen_b.state_dict(), b)]
    return all(torch.equal(own[name], state[name]) for own, state in pairs for name in own)


LAYOUTS: dict[str, tuple[Callable[[MUNIT_Trainer], Any], str]] = {
    "DataParallel": (
        lambda t: {"a": named("module.", t.gen_a.state_dict()), "b": named("module.", t.gen_b.state_dict())},
        "without the prefix module. (DataParallel",
    ),
    "compiled": (
        lambda t: {"a": named("_orig_mod.", t.gen_a.state_dict()), "b": named("_orig_mod.", t.gen_b.state_dict())},
        "_orig_mod. (torch.compile)",
    ),
    "compiled parts in DDP": (
        lambda t: {
            key: {
                f"module.{name.replace('dec.', 'dec._orig_mod.')}": value
                for name, value in getattr(t, f"gen_{key}").state_dict().items()
            }
            for key in ("a", "b")
        },
        "module. (DataParallel, DDP or AveragedModel) and _orig_mod.",
    ),
    "whole trainer": (lambda t: t.state_dict(), "gen_a (domain A) and gen_b (domain B)"),
    "average of a trainer": (lambda t: AveragedModel(t).state_dict(), "a moving average"),
    "averages": (
        lambda t: {key: AveragedModel(getattr(t, f"gen_{key}")).state_dict() for key in ("a", "b")},
        "a moving average",
    ),
    "compiled average": (
        lambda t: named("_orig_mod.", AveragedModel(t).state_dict()),
        "a moving average",
    ),
    "Lightning": (
        lambda t: {
            "epoch": 3,
            "pytorch-lightning_version": "2.5",
            "state_dict": named("model.", t.state_dict()) | {"loss.vgg.features.0.weight": torch.ones(1)},
            "optimizer_states": [t.gen_opt.state_dict()],
            "hyper_parameters": {"lr": 1e-4, "names": ["a", "b"]},
        },
        "state_dict.model.gen_a (domain A)",
    ),
    "net_G": (
        lambda t: {
            "net_G": {"a": t.gen_a.state_dict(), "b": t.gen_b.state_dict()},
            "net_D": {"a": t.dis_a.state_dict(), "b": t.dis_b.state_dict()},
            "opt_G": t.gen_opt.state_dict(),
        },
        "net_G.a (domain A) and net_G.b (domain B)",
    ),
    "netG_A, netG_B": (
        lambda t: {"netG_B": t.gen_b.state_dict(), "netG_A": t.gen_a.state_dict()},
        "netG_A (domain A) and netG_B (domain B)",
    ),
    "generatorA": (
        lambda t: {"model": {"generatorA": t.gen_a.state_dict(), "generatorB": t.gen_b.state_dict()}},
        "model.generatorA (domain A)",
    ),
    "by domains": (
        lambda t: {key: {"gen": getattr(t, f"gen_{key}").state_dict()} for key in ("a", "b")},
        "a.gen (domain A) and b.gen (domain B)",
    ),
    "own state": (lambda t: run_state(t, 1), "networks.gen_a (domain A)"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_found_in(trainer: MUNIT_Trainer, tmp_path: Path, name: str) -> None:
    make, note = LAYOUTS[name]
    model = load(make(trainer), tmp_path)
    assert holds(model, trainer.gen_a.state_dict(), trainer.gen_b.state_dict())
    assert len(model.notes) == 1 and note in model.notes[0] and str(tmp_path / "file.pt") in model.notes[0]
    assert "\n" not in model.notes[0]


def test_a_published_file_needs_no_note(trainer: MUNIT_Trainer, tmp_path: Path) -> None:
    model = load(trainer.state_dict(), tmp_path)
    assert model.notes
    trainer.save(tmp_path, 0)
    assert model.load(tmp_path / "gen_00000001.pt").notes == ()


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_found_in_safetensors(trainer: MUNIT_Trainer, tmp_path: Path, prefix: str) -> None:
    state = {name: value.clone() for name, value in named(prefix, trainer.state_dict()).items()}
    save_file(state, tmp_path / "x.safetensors")
    model = MUNIT(CONFIG).load(tmp_path / "x.safetensors")
    assert holds(model, trainer.gen_a.state_dict(), trainer.gen_b.state_dict())
    assert model.notes[0].startswith(str(tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match=r"--config and --checkpoint"):
        MUNIT.from_pretrained(tmp_path / "x.safetensors")


def side_by_side(t: MUNIT_Trainer, form: str) -> State:
    """The generators under names like "gen_%s", a moving average beside them."""
    live, average = form.split()
    states = {key: getattr(t, f"gen_{key}").state_dict() for key in ("a", "b")}
    return {live % key: state for key, state in states.items()} | {
        average % key: moved(state) for key, state in states.items()
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda t: {"model": t.state_dict(), "model_ema": moved(t.state_dict())},
        lambda t: {"state_dict": t.state_dict(), "ema_state_dict": named("module.", moved(t.state_dict()))},
        lambda t: side_by_side(t, "gen_%s gen_%s_ema"),
        lambda t: run_state(t, 1) | {"average": {k: moved(getattr(t, f"gen_{k}").state_dict()) for k in ("a", "b")}},
        lambda t: side_by_side(t, "g_%s g_ema_%s"),
        lambda t: {"net": t.state_dict(), "swa": moved(t.state_dict()) | {"n_averaged": torch.tensor(2)}},
    ],
)
def test_weights_and_their_average(trainer: MUNIT_Trainer, tmp_path: Path, make: Callable[..., State]) -> None:
    a, b = trainer.gen_a.state_dict(), trainer.gen_b.state_dict()
    model = load(make(trainer), tmp_path)
    assert holds(model, moved(a), moved(b))
    assert "their moving average (--no-ema takes" in model.notes[0]
    model = load(make(trainer), tmp_path, average=False)
    assert holds(model, a, b)
    assert "not their moving average" in model.notes[0]


def test_a_bare_generator_is_refused_and_two_of_them_are_loaded(trainer: MUNIT_Trainer, tmp_path: Path) -> None:
    a, b = trainer.gen_a.state_dict(), trainer.gen_b.state_dict()
    text = refusal(a, tmp_path)
    assert "one generator, of no named domain" in text and "--checkpoint A.pt --checkpoint B.pt" in text
    assert "gen_b, of domain B" in refusal({"gen_b": b}, tmp_path)
    torch.save(a, tmp_path / "a.pt")
    save_file({name: value.clone() for name, value in named("netG_B.module.", b).items()}, tmp_path / "b.safetensors")
    model = MUNIT(CONFIG).load([tmp_path / "a.pt", tmp_path / "b.safetensors"])
    assert holds(model, a, b)
    assert "a.pt for domain A" in model.notes[0] and "b.safetensors for domain B, without" in model.notes[0]
    with pytest.raises(CheckpointError, match=r"b\.safetensors: holds netG_B, of domain B, but was given for domain A"):
        model.load([tmp_path / "b.safetensors", tmp_path / "a.pt"])
    torch.save({"a": a, "b": b}, tmp_path / "both.pt")
    with pytest.raises(CheckpointError, match=r"both\.pt: holds the generators a and b"):
        model.load([tmp_path / "a.pt", tmp_path / "both.pt"])
    with pytest.raises(ValueError, match="or two"):
        model.load([tmp_path / "a.pt"] * 3)


def test_what_could_mean_more_than_one_thing_is_refused(trainer: MUNIT_Trainer, tmp_path: Path) -> None:
    a, b = trainer.gen_a.state_dict(), trainer.gen_b.state_dict()
    assert "x.a, x.b, y.a and y.b" in refusal({"x": {"a": a, "b": b}, "y": {"a": a, "b": b}}, tmp_path)
    assert "do not say which is domain A's" in refusal({"gen1": a, "gen2": b}, tmp_path)
    assert "do not say which is domain A's" in refusal({"genA2B": a, "genB2A": b}, tmp_path)
    assert "models.0 and models.1" in refusal({"models": [a, b]}, tmp_path)
    text = refusal(named("gen_a.", a) | named("module.gen_a.", moved(a)) | named("gen_b.", b), tmp_path)
    assert "twice, with and without a wrapper's prefix" in text
    assert "x is not expected" in refusal({"a": a | {"x": torch.ones(1)}, "b": b}, tmp_path)


def test_other_things_are_named(trainer: MUNIT_Trainer, tmp_path: Path) -> None:
    assert "discriminators (dis_a and dis_b)" in refusal(
        named("dis_a.", trainer.dis_a.state_dict()) | named("dis_b.", trainer.dis_b.state_dict()), tmp_path
    )
    optimizer = trainer.gen_opt.state_dict()
    for content in (optimizer, {"gen": optimizer, "dis": optimizer}):
        assert "the state of an optimizer" in refusal(content, tmp_path)
    assert "a VGG" in refusal({"features.0.weight": torch.ones(1)}, tmp_path)
    assert "FUNIT" in refusal(
        {"gen": trainer.gen_a.state_dict() | {"enc_class_model.model.0.w": torch.ones(1)}}, tmp_path
    )
    assert "but a.w; it must hold the two networks 'a' and 'b'" in refusal({"a": {"w": torch.ones(1)}}, tmp_path)
    assert "no tensors with names" in refusal(torch.ones(1), tmp_path)


def test_another_configuration_or_trainer_is_named_behind_any_wrapper(trainer: MUNIT_Trainer, tmp_path: Path) -> None:
    other = MUNIT(make_config({"gen": GEN | {"dim": 4, "style_dim": 3}}))
    text = refusal({"state_dict": named("module.", other.state_dict())}, tmp_path)
    assert "gen.dim is 4 in the file and 2 here" in text and "gen.style_dim is 3 in the file and 2 here" in text
    assert "use --trainer MUNIT" in refusal(trainer.state_dict(), tmp_path, UNIT)
    assert "use --trainer UNIT" in refusal(UNIT(CONFIG).state_dict(), tmp_path)
    grey = MUNIT(make_config({"gen": GEN, "input_dim_a": 1}))
    assert "input_dim_a is 1 in the file and 3 here" in refusal(grey.state_dict(), tmp_path)
    torch.save({"a": grey.gen_b.state_dict(), "b": grey.gen_a.state_dict()}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="fits with the domains exchanged"):
        grey.load(tmp_path / "file.pt")


def test_names_do_not_speak_to_the_terminal(trainer: MUNIT_Trainer, tmp_path: Path) -> None:
    model = load({"x\n\x1b]0;t\x07": trainer.state_dict()}, tmp_path)
    assert model.notes[0].isprintable() and "]0;t" in model.notes[0]
    assert "..." in refusal({"y\n\x1b" + "z" * 500: torch.ones(1)}, tmp_path)
    refusal({"a": trainer.gen_a.state_dict() | {"x\ny": torch.ones(1)}, "b": trainer.gen_b.state_dict()}, tmp_path)


def test_files_without_an_end_are_refused_soon(trainer: MUNIT_Trainer, tmp_path: Path) -> None:
    nest: Any = trainer.gen_a.state_dict()
    for _ in range(30):  # 4 ** 30 entries
        nest = {"a": nest, "b": nest, "c": nest, "d": nest}
    assert "than networks do" in refusal(nest, tmp_path)
    loop: State = {}
    loop["x"] = loop
    assert "than networks do" in refusal(loop, tmp_path)
    assert "than networks do" in refusal({f"k{i}": 0 for i in range(100_001)}, tmp_path)
    long = {("a." * 400) + str(i): torch.ones(1) for i in range(4)}
    assert "than networks do" in refusal(long, tmp_path)
    read = []

    class Numbers(list[int]):
        def __iter__(self) -> Iterator[int]:
            read.append(1)
            return super().__iter__()

    numbers = Numbers([1, 2])
    tensor_names.NamedValues("x.pt", {f"k{i}": {"n": numbers} for i in range(9)})
    assert len(read) == 1


# ---- imaginaire: modules that lay their names out as its generators do


class Layers(nn.Module):
    def __init__(self, *layers: tuple[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(dict(layers))


def adaptive(channels: int) -> nn.Module:
    norm = nn.Module()
    norm.fc = Layers(("conv", nn.Linear(4, 2 * channels)))
    return norm


def imaginary(pre_act: bool, spectral: bool, style: bool) -> nn.Module:
    wrap = spectral_norm if spectral else lambda module: module

    def block(norm: nn.Module, before: bool = False) -> Layers:
        layers = [("conv", wrap(nn.Conv2d(4, 4, 3))), ("norm", norm)]
        return Layers(*(reversed(layers) if before else layers))

    def affine() -> nn.Module:
        return nn.InstanceNorm2d(4, affine=True)

    def residual(norm: Callable[[], nn.Module]) -> nn.Module:
        module = nn.Module()
        module.conv_block_0, module.conv_block_1 = block(norm(), pre_act), block(norm(), pre_act)
        return module

    def encoder(*blocks: nn.Module) -> nn.Module:
        module = nn.Module()
        module.model = nn.Sequential(*blocks)
        return module

    whole = nn.Module()
    inner: Callable[[], nn.Module] = (lambda: adaptive(4)) if style else affine
    if style:
        whole.style_encoder = encoder(Layers(("conv", wrap(nn.Conv2d(3, 4, 7)))))
        whole.mlp = encoder(Layers(("conv", nn.Linear(2, 4))))
    whole.content_encoder = encoder(block(affine()), residual(affine))
    whole.decoder = nn.Module()
    whole.decoder.decoder = nn.ModuleList([residual(inner), nn.Upsample(scale_factor=2), block(inner())])
    return whole


def test_an_order_of_layers_that_a_file_does_not_have_is_not_claimed(tmp_path: Path) -> None:
    pair = nn.Module()
    pair.autoencoder_a, pair.autoencoder_b = imaginary(True, False, True), imaginary(True, False, True)
    save_file(pair.state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"\(pre_act\) or apply a ReLU before the sum"):
        MUNIT(CONFIG).load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("style", [True, False], ids=["MUNIT", "UNIT"])
@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("pre_act", [True, False])
@pytest.mark.parametrize("averaged", [True, False])
def test_imaginaires_networks_are_refused_with_what_differs(
    tmp_path: Path, style: bool, spectral: bool, pre_act: bool, averaged: bool
) -> None:
    pair = nn.Module()
    pair.autoencoder_a, pair.autoencoder_b = imaginary(pre_act, spectral, style), imaginary(pre_act, spectral, style)
    state = named("module.", pair.state_dict())
    if averaged:
        state = named("module.module.", pair.state_dict()) | named("module.averaged_model.", pair.state_dict())
        state["module.num_updates_tracked"] = torch.tensor(5)
    content = {"net_G": state, "net_D": {"module.x": torch.ones(1)}, "current_epoch": 3}
    text = refusal(content, tmp_path)
    assert f"a {'MUNIT' if style else 'UNIT'} of imaginaire" in text
    assert "(1) the norms of its content encoder have weights and biases" in text
    assert ("(pre_act);" if pre_act else "its residual blocks apply a ReLU before the sum") in text
    assert f"(3) it upsamples with {'AdaIN' if style else 'instance or batch norm'}, where layer norm is here" in text

"""What users import, call and type: it stays, with its parameters; `golden/public_names.json` has the list."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor

import munit_fast as mf

PUBLIC: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "public_names.json").read_text())
SMALL: dict[str, Any] = {
    "gen": {
        "dim": 4,
        "mlp_dim": 8,
        "style_dim": 3,
        "n_res": 1,
        "activ": "relu",
        "n_downsample": 1,
        "pad_type": "reflect",
    },
    "dis": {"dim": 4, "n_layer": 2, "num_scales": 2, "norm": "none", "activ": "lrelu", "gan_type": "lsgan"}
    | {"pad_type": "reflect"},
    "display_size": 2,
    "recon_x_cyc_w": 1,
    "crop_image_height": 16,
    "crop_image_width": 16,
}
FUNCTIONS = [(module, name) for module in ("functional", "nn", "networks", "reference") for name in PUBLIC[module]]


def kept(function: Callable[..., Any], expected: list[str]) -> None:
    """The parameters are there, in their order; others may have come after them or by keyword."""
    found = [name for name in inspect.signature(function).parameters if name != "self"]
    assert [name for name in found if name in expected] == expected


@pytest.mark.parametrize("name", PUBLIC["munit_fast"])
def test_names(name: str) -> None:
    assert getattr(mf, name, None) is not None or name == "native_error"
    assert name in mf.__all__ and name in dir(mf)


@pytest.mark.parametrize(("module", "name"), FUNCTIONS, ids=".".join)
def test_parameters(module: str, name: str) -> None:
    kept(getattr(getattr(mf, module), name), PUBLIC[module][name])


@pytest.mark.parametrize("name", PUBLIC["classes"])
def test_methods(name: str) -> None:
    found = getattr(mf, name)
    for method, parameters in PUBLIC["classes"][name].items():
        if parameters is None:
            assert hasattr(found, method)
        else:
            kept(found if method == "__init__" else getattr(found, method), parameters)


def test_accelerate() -> None:
    kept(mf.accelerate, PUBLIC["accelerate"])
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.InstanceNorm2d(4), torch.nn.ReLU())
    x = torch.randn(1, 3, 8, 8)
    expected = network(x)
    report = mf.accelerate(network)
    assert report.replaced and torch.allclose(network(x), expected, atol=1e-5)


def test_configuration_keys() -> None:
    config = mf.make_config({}).hyperparameters()
    for key, inner in PUBLIC["configuration"].items():
        assert key in config
        assert inner is None or set(inner) <= set(config[key])


def commands() -> Iterator[tuple[str, set[str]]]:
    from munit_fast.cli import app

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, set[str]]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))
        if path:
            yield " ".join(path), {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}

    return walk(typer.main.get_command(app), ())


def test_commands_and_flags() -> None:
    found = dict(commands())
    for command, flags in PUBLIC["commands"].items():
        assert set(flags) <= found[command]


@pytest.mark.parametrize("name", ["functional", "networks", "nn", "reference", "accelerate"])
def test_modules_are_imported_by_name(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import munit_fast.{name} as m; from munit_fast.{name} import *; print(m.__name__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    home = {"networks": "models.networks"}.get(name, name)
    assert done.stdout.strip() == f"munit_fast.{home}", done.stderr


def test_networks_are_the_same_by_both_names() -> None:
    from munit_fast.models import networks
    from munit_fast.networks import AdaINGen

    assert AdaINGen is networks.AdaINGen and mf.networks is networks


# ---- each public name is used once ----


def image(channels: int = 3, side: int = 16) -> Tensor:
    return torch.rand(2, channels, side, side) * 2 - 1


FUNCTIONAL: dict[str, Callable[[], Tensor]] = {
    "adain": lambda: mf.functional.adain(image(4), torch.rand(2, 4), torch.rand(2, 4)),
    "bias_act": lambda: mf.functional.bias_act(image(4), torch.rand(4), act="relu"),
    "instance_norm": lambda: mf.functional.instance_norm(image(4), act="relu", pad=1),
    "scale_bias_act": lambda: mf.functional.scale_bias_act(image(4), torch.rand(4), torch.rand(4), act="relu"),
    "l1_loss": lambda: mf.functional.l1_loss(image(), image()),
    "l1_losses": lambda: mf.functional.l1_losses([(image(), image())]),
    "layer_norm2d": lambda: mf.functional.layer_norm2d(image(4), torch.rand(4), torch.rand(4)),
    "lsgan_loss": lambda: mf.functional.lsgan_loss([image()], 1.0),
    "norm_act_conv2d": lambda: mf.functional.norm_act_conv2d(image(4), torch.rand(2, 4, 3, 3), padding=1, act="relu"),
}
MODULES: dict[str, Callable[[], Tensor]] = {
    "BiasAct": lambda: mf.nn.BiasAct(4, act="relu")(image(4)),
    "InstanceNorm1d": lambda: mf.nn.InstanceNorm1d(4, act="relu")(image(4).flatten(2)),
    "InstanceNorm2d": lambda: mf.nn.InstanceNorm2d(4, act="relu")(image(4)),
    "InstanceNorm3d": lambda: mf.nn.InstanceNorm3d(4, act="relu")(image(4)[:, :, None]),
    "L1Loss": lambda: mf.nn.L1Loss()(image(), image()),
    "LSGANLoss": lambda: mf.nn.LSGANLoss()([image()], 0.0),
    "LayerNorm2d": lambda: mf.nn.LayerNorm2d(4, act="relu")(image(4)),
}


def test_functional() -> None:
    assert set(FUNCTIONAL) == set(PUBLIC["functional"])
    for call in FUNCTIONAL.values():
        assert call().isfinite().all()


def test_modules() -> None:
    adain = mf.nn.AdaptiveInstanceNorm2d(4)
    adain.weight, adain.bias = torch.ones(8), torch.zeros(8)
    assert adain(image(4)).isfinite().all()
    assert set(MODULES) | {"AdaptiveInstanceNorm2d"} == set(PUBLIC["nn"])
    for call in MODULES.values():
        assert call().isfinite().all()


NETWORKS = (("AdaINGen", "gen"), ("VAEGen", "gen"), ("MsImageDis", "dis"), ("ResidualDis", "dis"))


@pytest.mark.parametrize("module", ["networks", "reference"])
def test_networks(module: str) -> None:
    """The fast networks and the reference's are built from the same arguments, and take each other's weights."""
    made, other = getattr(mf, module), mf.reference if module == "networks" else mf.networks
    config = mf.make_config(SMALL).hyperparameters()
    for name, part in NETWORKS:
        section = config[part] | ({"arch": "residual", "num_scales": 1} if name == "ResidualDis" else {})
        network = getattr(made, name)(3, section)
        getattr(other, name)(3, section).load_state_dict(network.state_dict())
        result = network(image())
        assert all(t.isfinite().all() for t in (result if isinstance(result, (list, tuple)) else [result]))
    assert made.ContentEncoder(1, 1, 3, 4, "relu", "reflect")(image()).shape == (2, 8, 8, 8)
    assert made.StyleEncoder(3, 4, 3, "relu", "reflect")(image()).shape == (2, 3, 1, 1)
    assert made.Decoder(1, 1, 8, 3, "in", "relu", "reflect")(image(8, 8)).shape == (2, 3, 16, 16)


def test_reference_pieces() -> None:
    reference = mf.reference
    assert reference.Conv2dBlock(3, 4, 3, 1, 1, "ln", "relu", "reflect")(image()).shape == (2, 4, 16, 16)
    assert reference.ResBlock(4, "in", "relu", "reflect")(image(4)).shape == (2, 4, 16, 16)
    assert reference.LayerNorm(4)(image(4)).isfinite().all()
    assert reference.LinearBlock(3, 4, "relu")(torch.rand(2, 3)).shape == (2, 4)
    assert reference.MLP(3, 4, 8)(torch.rand(2, 3)).shape == (2, 4)
    assert reference.SpectralNorm(torch.nn.Conv2d(3, 4, 3))(image()).shape == (2, 4, 14, 14)
    generator = reference.AdaINGen(3, mf.make_config(SMALL).hyperparameters()["gen"])
    norms = [m for m in generator.dec.modules() if isinstance(m, reference.AdaptiveInstanceNorm2d)]
    parameters = torch.rand(2, sum(2 * norm.num_features for norm in norms))
    assert len(reference.split_adain_params(parameters, generator.dec)) == len(norms)
    assert set(reference.upgrade_state_dict(generator.state_dict(), generator)) == set(generator.state_dict())
    generator.apply(reference.weights_init("kaiming"))
    assert reference.perceptual_loss(reference.Vgg16(), image(side=32), image(side=32)).isfinite()


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
@pytest.mark.parametrize("home", ["munit_fast", "reference"])
def test_trainers(kind: str, home: str, tmp_path: Path) -> None:
    hp = mf.make_config(SMALL).hyperparameters()
    trainer: Any = getattr(mf if home == "munit_fast" else mf.reference, kind)(hp)
    x_a, x_b = image(), image()
    trainer.update_learning_rate()
    trainer.dis_update(x_a, x_b, hp)
    trainer.gen_update(x_a, x_b, hp)
    if home == "munit_fast":
        trainer.update(x_a, x_b, hp, trainer.draw_noise(x_a, x_b))
        assert set(trainer.generators) == {"a", "b"} and trainer.scaler_states() == {}
        assert trainer.skipped_steps == trainer.skips.total == 0
    assert all(image.isfinite().all() for image in trainer.sample(x_a, x_b))
    trainer.save(tmp_path, 1)
    assert trainer.resume(tmp_path, hp) == 2


@pytest.mark.parametrize("kind", ["MUNIT", "UNIT"])
def test_translators(kind: str) -> None:
    model = getattr(mf, kind)(mf.make_config(SMALL))
    options = {"num_styles": 2} if kind == "MUNIT" else {}
    result = model.translate(image(), direction="a2b", **options)
    assert result.shape == (2, 2 if kind == "MUNIT" else 1, 3, 16, 16)

"""Images of any number of channels, through networks, trainers and models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from munit_fast import MUNIT, make_config, reference
from munit_fast.app.translation import Translator
from munit_fast.export import OnnxModel, export_model
from munit_fast.io.checkpoints import load_file, load_states
from munit_fast.models import networks
from munit_fast.models.munit import from_pretrained
from munit_fast.train import trainer as trainers
from tests.helpers.trainers import hyperparameters, parameters

CHANNELS = [1, 2, 4, 5, 7]  # below, at and above what the convolutions of few channels take
GEN = {"dim": 8, "mlp_dim": 8, "style_dim": 3, "n_res": 1, "n_downsample": 2, "activ": "relu", "pad_type": "reflect"}
DIS = {"dim": 8, "norm": "none", "activ": "lrelu", "n_layer": 2, "gan_type": "lsgan", "num_scales": 2}
DIS |= {"pad_type": "reflect"}


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def twins(name: str, channels: int, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """The reference in float64, in `dtype`, and the fast network."""
    torch.manual_seed(0)
    plain = getattr(reference, name)(channels, GEN if name != "MsImageDis" else DIS)
    fast = getattr(networks, name)(channels, GEN if name != "MsImageDis" else DIS)
    fast.load_state_dict(plain.state_dict())
    return copy.deepcopy(plain).double(), plain.to(dtype), fast.to(dtype)


def outputs(net: Any, x: torch.Tensor) -> list[torch.Tensor]:
    if isinstance(net, reference.MsImageDis):
        return list(net(x))
    if isinstance(net, reference.AdaINGen):
        content, style = net.encode(x)
        return [content, style, net.decode(content, style)]
    content = net.enc(x)
    return [content, net.decode(content)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["AdaINGen", "VAEGen", "MsImageDis"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_networks_are_the_reference(channels: int, name: str, dtype: torch.dtype) -> None:
    nets = twins(name, channels, dtype)
    x = torch.randn(2, channels, 36, 52, dtype=torch.float64)
    found, upstream = [], None
    for net in nets:
        image = x.to(next(net.parameters()).dtype, copy=True).requires_grad_()
        results = outputs(net, image)
        upstream = upstream or [torch.randn_like(y) for y in results]
        torch.autograd.backward(results, [u.to(y) for u, y in zip(upstream, results)])
        weights = [p.grad for p in net.parameters() if p.dim() == 4 and channels in p.shape[:2]]
        found.append([*[y.detach() for y in results], image.grad, *weights])
    assert upstream is not None and len(found[0]) > len(upstream) + 1
    for k, (wanted, plain, fast) in enumerate(zip(*found)):
        # A value within rounding of a ReLU's kink may fall on its other side.
        rounding = max(3 * relative(plain, wanted), 1e-5 if k < len(upstream) else 5e-3)
        assert relative(fast, wanted) < (1e-10 if dtype == torch.float64 else rounding), k


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
@pytest.mark.parametrize(("a", "b"), [(4, 7), (1, 5), (2, 3)])
def test_training_steps_are_the_reference(kind: str, a: int, b: int) -> None:
    hp = hyperparameters(input_dim_a=a, input_dim_b=b)
    found = []
    for module in (reference, trainers):
        torch.manual_seed(0)
        trainer = getattr(module, kind)(hp).double()
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            torch.manual_seed(2)
            x_a, x_b = (torch.rand(2, c, 32, 40, generator=generator, dtype=torch.float64) * 2 - 1 for c in (a, b))
            trainer.dis_update(x_a, x_b, hp)
            trainer.gen_update(x_a, x_b, hp)
        found.append(parameters(trainer))
    assert relative(found[1], found[0]) < 1e-8


def model(a: int, b: int, **over: Any) -> MUNIT:
    torch.manual_seed(0)
    config = {"input_dim_a": a, "input_dim_b": b, "gen": GEN, "dis": DIS, "new_size": 32}
    return MUNIT(make_config(config | {"crop_image_height": 32, "crop_image_width": 32} | over)).eval()


def test_arrays_of_many_channels_are_translated() -> None:
    translator, style = model(4, 7), torch.randn(2, 3)
    bytes_ = np.random.default_rng(0).integers(0, 256, (32, 36, 4), np.uint8)
    result = translator.translate(bytes_, "a2b", style=style)
    assert result.shape == (2, 32, 36, 7) and result.dtype == np.uint8
    values = (bytes_.astype(np.float32) / 255 - 0.5) / 0.5
    tensor = translator.translate(torch.from_numpy(values.transpose(2, 0, 1))[None], "a2b", style=style[None])
    wanted = ((tensor[0] + 1) / 2 * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(result, wanted)
    assert translator.translate(values, "a2b", style=style).dtype == np.float32
    assert translator.encode_style(bytes_, "a").shape[-1] == 3
    with pytest.raises(ValueError, match=r"an array \[H, W, 4\]"):
        translator.translate(bytes_[:, :, :3], "a2b")


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_pil_images_are_not_made_of_other_channels(channels: int) -> None:
    picture = Image.new("RGB", (32, 32))
    translator = model(3, channels)
    with pytest.raises(ValueError, match=f"there are no PIL images of {channels} channels"):
        translator.translate([picture, np.zeros((32, 32, 3), np.uint8)], "a2b", style=torch.zeros(2, 1, 3))
    assert translator.encode_style(picture, "a").shape[-1] == 3
    with pytest.raises(ValueError, match=r"a page shows pictures of 1 or 3 channels, .* input_dim_b"):
        Translator(translator)


def test_files_of_weights_keep_the_channels(tmp_path: Path) -> None:
    translator = model(4, 7)
    translator.save_pretrained(tmp_path / "saved")
    loaded = from_pretrained(tmp_path / "saved")
    x = torch.rand(1, 4, 32, 32) * 2 - 1
    style = torch.randn(1, 1, 3)
    assert torch.equal(loaded.translate(x, "a2b", style=style), translator.translate(x, "a2b", style=style))
    torch.save({"a": translator.gen_a.state_dict(), "b": translator.gen_b.state_dict()}, tmp_path / "gen_00000001.pt")
    path = tmp_path / "gen_00000001.pt"
    load_states(path, load_file(path), loaded.gen_a, loaded.gen_b)
    other = model(3, 7)
    with pytest.raises(Exception, match=r"input_dim|channels"):
        load_states(path, load_file(path), other.gen_a, other.gen_b)


def test_exported_graphs_have_the_channels(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    translator = model(4, 7)
    export_model(translator, tmp_path / "x.onnx", format="onnx", directions=("a2b",))  # which compares its outputs
    graph = OnnxModel(tmp_path / "x-a2b.onnx", threads=1)
    x, style = torch.rand(1, 4, 32, 36) * 2 - 1, torch.randn(1, 1, 3)
    wanted = translator.translate(x, "a2b", style=style)
    assert torch.allclose(graph.translate(x, "a2b", style=style), wanted, atol=1e-4) and wanted.shape[2] == 7

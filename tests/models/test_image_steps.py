"""Images of more than 8 bits keep their steps under bfloat16 autocast, which has fewer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import munit_fast as mf
from munit_fast.config import make_config
from munit_fast.models.networks import AdaINGen, VAEGen

SIZE = 32


def config(**more: Any) -> Any:
    gen = {"dim": 8, "mlp_dim": 16, "n_res": 1, "style_dim": 4, **more.pop("gen", {})}
    dis = {"dim": 8, "n_layer": 2, "num_scales": 1}
    sizes = {"crop_image_height": SIZE, "crop_image_width": SIZE, "new_size": SIZE}
    return make_config({"gen": gen, "dis": dis, "input_dim_a": 1, "input_dim_b": 1, **sizes, **more})


def counts(step: int) -> Tensor:
    """An image of infrared counts near white, all raised by `step` of 2,000."""
    torch.manual_seed(1)
    return ((torch.rand(1, 1, SIZE, SIZE) * 60 + 1900).round() + step) / 1000 - 1


@pytest.mark.parametrize("kind", [AdaINGen, VAEGen])
@pytest.mark.parametrize("n_downsample", [0, 2])
@pytest.mark.parametrize("on", [True, False])
def test_steps_that_bfloat16_does_not_have_reach_the_codes_and_the_image(
    kind: Any, n_downsample: int, on: bool
) -> None:
    torch.manual_seed(0)
    gen = kind(1, config(gen={"n_downsample": n_downsample, "activ": "lrelu"}).gen.model_dump())
    gen.set_float32_images(on)
    encode = gen.enc if kind is VAEGen else (lambda x: gen.enc_style(x))
    decode = gen.dec if kind is VAEGen else (lambda c: gen.decode(c, torch.ones(1, 4, 1, 1)))
    content = torch.randn(1, 8 * 2**n_downsample, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        few = counts(0).bfloat16().float()
        same = torch.equal(encode(counts(0)), encode(few))
        image = decode(content)
    assert same is not on
    assert image.dtype is (torch.float32 if on else torch.bfloat16)
    assert torch.equal(image, image.bfloat16().to(image.dtype)) is not on


@pytest.mark.parametrize("n_downsample", [0, 2])
def test_the_codes_and_images_are_nearer_to_float32(n_downsample: int) -> None:
    torch.manual_seed(0)
    gen = AdaINGen(1, config(gen={"n_downsample": n_downsample}).gen.model_dump())
    style = torch.randn(1, 4, 1, 1)

    def run(on: bool, amp: bool) -> tuple[Tensor, Tensor]:
        gen.set_float32_images(on)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            content, own = gen.encode(counts(0))
            return gen.decode(content, style).float(), own

    exact, kept, cast = run(False, False), run(True, True), run(False, True)
    for e, k, c, share in zip(exact, kept, cast, (0.3, 1)):
        assert (k - e).norm() < share * (c - e).norm()


def test_a_stated_range_asks_for_it_in_models_and_trainers() -> None:
    for cfg in (config(range_a=[0, 4095]), config(range_a="W400 L40")):
        for nets in (
            mf.MUNIT(cfg),
            mf.UNIT(cfg),
            mf.MUNIT_Trainer(cfg.hyperparameters()),
            mf.UNIT_Trainer(cfg.hyperparameters()),
        ):
            assert (nets.gen_a.float32_images, nets.gen_b.float32_images) == (True, False)
            assert all(m.float32_images for m in nets.gen_a.modules() if hasattr(m, "float32_images"))


@pytest.mark.parametrize("trainer", [mf.MUNIT_Trainer, mf.UNIT_Trainer])
@pytest.mark.parametrize("n_downsample", [0, 2])
def test_a_step_in_bfloat16_has_the_gradients_of_float32(trainer: Any, n_downsample: int) -> None:
    cfg = config(range_a=[0, 4095], range_b=[0, 4095], recon_x_cyc_w=10, gen={"n_downsample": n_downsample})
    grads = {}
    for amp in ("off", "bf16"):
        torch.manual_seed(0)
        nets = trainer(cfg.hyperparameters(), amp=amp)
        torch.manual_seed(3)
        losses = nets.update(counts(0), counts(5), cfg.hyperparameters())
        first = nets.gen_a.enc_content if trainer is mf.MUNIT_Trainer else nets.gen_a.enc
        last = nets.gen_b.dec
        grads[amp] = [first.layers[0].conv.weight.grad, last.layers[-1].conv.weight.grad]
        assert all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values())
    for a, b in zip(grads["off"], grads["bf16"]):
        assert a is not None and b is not None and b.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.95

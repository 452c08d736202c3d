"""The reference's own rules, where golden numbers do not reach."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from munit_fast import make_config
from munit_fast.reference import (
    AdaINGen,
    AdaptiveInstanceNorm2d,
    LayerNorm,
    MsImageDis,
    MUNIT_Trainer,
    UNIT_Trainer,
    Vgg16,
    perceptual_loss,
    split_adain_params,
    upgrade_state_dict,
)
from munit_fast.reference.trainers import learning_rate


def test_layer_norm_is_the_formula() -> None:
    norm = LayerNorm(5).double()
    x = torch.randn(3, 5, 4, 6).double() + 7
    expected = []
    for sample in x:  # the formula, sample by sample
        variance = ((sample - sample.mean()) ** 2).sum() / (sample.numel() - 1)
        expected.append((sample - sample.mean()) / (variance.sqrt() + 1e-5))
    y = torch.stack(expected) * norm.gamma[:, None, None] + norm.beta[:, None, None]
    torch.testing.assert_close(norm(x), y, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(norm(x), F.group_norm(x, 1, norm.gamma, norm.beta), rtol=1e-4)


def test_adain_is_the_formula_in_training_and_evaluation() -> None:
    norm = AdaptiveInstanceNorm2d(5).double()
    x, weight, bias = torch.randn(3, 5, 4, 6).double() + 7, torch.randn(3, 5).double(), torch.randn(3, 5).double()
    variance = x.var(dim=(2, 3), unbiased=False, keepdim=True)
    normed = (x - x.mean(dim=(2, 3), keepdim=True)) / (variance + 1e-5).sqrt()
    expected = normed * weight[:, :, None, None] + bias[:, :, None, None]
    for mode in (True, False):
        torch.testing.assert_close(norm.train(mode)(x, weight, bias), expected, rtol=1e-10, atol=1e-10)
    assert norm.running_mean.eq(0).all()
    assert norm.running_var.eq(1).all()


def test_adain_refuses_one_pixel_and_other_shapes() -> None:
    norm = AdaptiveInstanceNorm2d(4)
    with pytest.raises(ValueError, match="larger than 1×1"):
        norm(torch.rand(1, 4, 1, 1), torch.rand(1, 4), torch.rand(1, 4))
    with pytest.raises(ValueError, match=r"^weight .*\[2, 4\]"):
        norm(torch.rand(2, 4, 3, 3), torch.rand(4), torch.rand(2, 4))


def test_adain_parameters_are_bias_then_weight(small_config: dict[str, Any]) -> None:
    gen = AdaINGen(3, make_config(small_config).gen.model_dump())
    channels = [m.num_features for m in gen.dec.modules() if isinstance(m, AdaptiveInstanceNorm2d)]
    params = torch.arange(2 * sum(channels)).float()[None]
    pairs = split_adain_params(params, gen.dec)
    assert [w.shape[1] for w, _ in pairs] == channels
    rebuilt = torch.cat([torch.cat([bias, weight], dim=1) for weight, bias in pairs], dim=1)
    assert torch.equal(rebuilt, params)


def test_default_sizes() -> None:
    cfg = make_config({})
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    assert count(AdaINGen(3, cfg.gen.model_dump())) == 15_026_187
    assert count(MsImageDis(3, cfg.dis.model_dump())) == 8_271_171


def test_generator_survives_deepcopy_after_a_forward(small_config: dict[str, Any]) -> None:
    gen = AdaINGen(3, make_config(small_config).gen.model_dump())
    x = torch.rand(1, 3, 32, 32)
    y = gen(x)
    assert torch.equal(copy.deepcopy(gen)(x), y)


def test_schedule_decays_at_step_size() -> None:
    hp = {"lr_policy": "step", "gamma": 0.5, "step_size": 3}
    assert [learning_rate(hp, 1.0, i) for i in (1, 2, 3, 5, 6)] == [1, 1, 0.5, 0.5, 0.25]
    assert learning_rate({"lr_policy": "constant"}, 0.1, 99) == 0.1


def make_trainer(small_config: dict[str, Any], kind: str = "MUNIT", **changes: Any) -> Any:
    torch.manual_seed(0)
    hp = make_config(small_config | changes).hyperparameters()
    return {"MUNIT": MUNIT_Trainer, "UNIT": UNIT_Trainer}[kind](hp)


def iterate(trainer: Any, x_a: torch.Tensor, x_b: torch.Tensor) -> None:
    trainer.update_learning_rate()
    trainer.dis_update(x_a, x_b, trainer.hyperparameters)
    trainer.gen_update(x_a, x_b, trainer.hyperparameters)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["MUNIT", "UNIT"])
def test_every_float_type_trains(small_config: dict[str, Any], kind: str, dtype: torch.dtype) -> None:
    trainer = make_trainer(small_config, kind, recon_x_cyc_w=1).to(dtype)
    before = trainer.gen_a.dec.model[-1].conv.weight.detach().clone()
    iterate(trainer, *(torch.rand(2, 2, 3, 32, 32, dtype=dtype) * 2 - 1))
    assert trainer.loss_gen_total.dtype == dtype
    assert trainer.skipped_steps == 0
    assert not torch.equal(trainer.gen_a.dec.model[-1].conv.weight, before)


@pytest.mark.parametrize("norm", ["none", "bn", "in", "ln", "sn"])
@pytest.mark.parametrize("activ", ["relu", "lrelu", "prelu", "selu", "tanh"])
def test_every_norm_and_activation_trains(small_config: dict[str, Any], norm: str, activ: str) -> None:
    changes = {
        "dis": small_config["dis"] | {"norm": norm, "activ": activ},
        "gen": small_config["gen"] | {"activ": activ},
    }
    trainer = make_trainer(small_config, **changes)
    iterate(trainer, *(torch.rand(2, 2, 3, 32, 32) * 2 - 1))
    assert torch.isfinite(trainer.loss_gen_total)
    assert trainer.skipped_steps == 0


def test_nsgan_keeps_its_gradient_when_it_saturates() -> None:
    cfg = make_config({"dis": {"dim": 4, "n_layer": 2, "num_scales": 1, "gan_type": "nsgan"}})
    dis = MsImageDis(3, cfg.dis.model_dump())
    nn.init.constant_(dis.cnns[0][-1].bias, -200.0)  # surely fake: a sigmoid would be exactly 0
    loss = dis.calc_gen_loss(torch.rand(1, 3, 64, 64))
    loss.backward()
    assert float(loss) == pytest.approx(200, abs=5)
    assert float(dis.cnns[0][-1].bias.grad) == pytest.approx(-1, abs=1e-3)


def test_constant_images_do_not_poison_the_weights() -> None:
    torch.manual_seed(0)
    config = {"gen": {"dim": 8, "n_res": 4}, "dis": {"dim": 8}, "init": "kaiming", "crop_image_height": 64}
    trainer = MUNIT_Trainer(make_config(config | {"crop_image_width": 64}).hyperparameters())
    white, picture = torch.ones(1, 3, 64, 64), torch.rand(1, 3, 64, 64) * 2 - 1
    for _ in range(3):
        iterate(trainer, white, white)
    skipped = trainer.skipped_steps
    assert skipped >= 3
    assert all(torch.isfinite(p).all() for p in trainer.parameters())
    for state in trainer.gen_opt.state.values():
        assert torch.isfinite(state["exp_avg_sq"]).all()
    iterate(trainer, picture, picture.flip(0))
    assert trainer.skipped_steps == skipped


def test_files_are_written_as_published_and_load_back(small_config: dict[str, Any], tmp_path: Any) -> None:
    trainer = make_trainer(small_config)
    iterate(trainer, *(torch.rand(2, 1, 3, 32, 32) * 2 - 1))
    trainer.save(tmp_path, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dis_00000001.pt", "gen_00000001.pt", "optimizer.pt"]
    other = make_trainer(small_config, init="gaussian")
    assert other.resume(tmp_path, trainer.hyperparameters) == 1
    for mine, theirs in zip(trainer.state_dict().values(), other.state_dict().values()):
        assert torch.equal(mine, theirs)
    for t in (trainer, other):
        torch.manual_seed(5)
        iterate(t, torch.ones(1, 3, 32, 32).tril() * 0.5, torch.ones(1, 3, 32, 32).triu() * 0.3)
    for (name, mine), theirs in zip(trainer.named_parameters(), other.parameters()):
        assert torch.equal(mine, theirs), name


def test_schedule_continues_exactly_after_resume(small_config: dict[str, Any], tmp_path: Any) -> None:
    changes = {"lr_policy": "step", "step_size": 2, "gamma": 0.5, "lr": 1.0}

    def rates(trainer: Any, count: int) -> list[float]:
        found = []
        for _ in range(count):
            trainer.update_learning_rate()
            found.append(trainer.gen_opt.param_groups[0]["lr"])
        return found

    whole = rates(make_trainer(small_config, **changes), 6)
    for stop in (1, 2, 3, 4):
        first = make_trainer(small_config, **changes)
        begin = rates(first, stop)
        first.save(tmp_path, stop - 1)
        second = make_trainer(small_config, **changes)
        second.resume(tmp_path, second.hyperparameters)
        assert begin + rates(second, 6 - stop) == whole
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize("n_res", [1, 3])
@pytest.mark.parametrize("n_downsample", [1, 3])
def test_files_of_pytorch_03(small_config: dict[str, Any], n_res: int, n_downsample: int) -> None:
    gen = AdaINGen(3, make_config(small_config).gen.model_dump() | {"n_res": n_res, "n_downsample": n_downsample})
    state = gen.state_dict()
    old = {k: v for k, v in state.items() if "running" not in k}  # AdaIN had no buffers
    for key in list(old):
        if key.startswith("enc_content") and key.endswith("conv.bias"):  # instance norms had running statistics
            norm = key.replace("conv.bias", "norm.")
            old[norm + "running_mean"], old[norm + "running_var"] = old[key].clone(), old[key].clone()
    assert set(old) != set(state)
    upgraded = upgrade_state_dict(old, gen)
    assert set(upgraded) == set(state)
    gen.load_state_dict(upgraded)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*foreign"):
        gen.load_state_dict(upgrade_state_dict(old | {"foreign.weight": torch.ones(1)}, gen))
    with pytest.raises(RuntimeError, match=r"conv\.weight"):
        gen.load_state_dict(upgrade_state_dict({k: v for k, v in old.items() if "dec.model.0" not in k}, gen))


def test_perceptual_loss_sees_content_not_contrast() -> None:
    torch.manual_seed(0)
    vgg = Vgg16()
    image, other = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    assert float(perceptual_loss(vgg, image, image)) == 0
    assert float(perceptual_loss(vgg, image, other)) > 1e-3
    with pytest.raises(FileNotFoundError, match="vgg_w: 0"):
        Vgg16.from_file("nowhere/vgg16.weight")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_vgg_sees_is_caffes_picture(channels: int, dtype: torch.dtype) -> None:
    seen = []
    vgg = torch.nn.Conv2d(3, 3, 1).to(dtype)
    vgg.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = (torch.rand(2, channels, 4, 5) * 2 - 1).to(dtype)
    perceptual_loss(vgg, image, image)
    blue_green_red = image.expand(2, 3, 4, 5)[:, [2, 1, 0]]
    means = torch.tensor([103.939, 116.779, 123.680], dtype=dtype)
    assert torch.equal(seen[0], (blue_green_red + 1) * 127.5 - means.view(3, 1, 1))


def test_vgg_weights_of_the_published_file_are_used(small_config: dict[str, Any], tmp_path: Any) -> None:
    (tmp_path / "models").mkdir()
    torch.save(Vgg16().state_dict(), tmp_path / "models" / "vgg16.weight")
    hp = make_config(small_config | {"vgg_w": 1}).hyperparameters() | {"vgg_model_path": str(tmp_path)}
    trainer = MUNIT_Trainer(hp)
    iterate(trainer, *(torch.rand(2, 1, 3, 32, 32) * 2 - 1))
    assert float(trainer.loss_gen_vgg_a) > 0
    assert all(p.grad is None for p in trainer.vgg.parameters())


def test_noise_is_replayed(small_config: dict[str, Any]) -> None:
    x_a, x_b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    torch.manual_seed(3)
    noise = [torch.randn(1, 3, 1, 1) for _ in range(4)]
    drawn, replayed = make_trainer(small_config), make_trainer(small_config)
    torch.manual_seed(3)
    iterate(drawn, x_a, x_b)
    replayed.update_learning_rate()
    replayed.dis_update(x_a, x_b, replayed.hyperparameters, noise=noise[:2])
    replayed.gen_update(x_a, x_b, replayed.hyperparameters, noise=noise[2:])
    assert torch.equal(drawn.loss_gen_total, replayed.loss_gen_total)
    unit = make_trainer(small_config, "UNIT")
    with pytest.raises(ValueError, match="noise must hold 4"):
        unit.gen_update(x_a, x_b, unit.hyperparameters, noise=noise[:1])

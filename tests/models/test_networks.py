"""The fast networks and trainers against the reference in float64: outputs, losses, gradients, trained parameters."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from munit_fast import MUNIT, make_config, reference
from munit_fast.models import blocks, networks
from munit_fast.train import trainer as trainers

# What an instance norm takes away again: its gradient is zero, here exactly and there but for rounding.
IDLE_BIAS = re.compile(r"(enc_content|enc|dec\.model\.0)\..*conv\.bias$")
GENERATORS = [
    # activ, pad_type, n_downsample, n_res, size, batch
    ("relu", "reflect", 2, 2, (24, 40), 1),
    ("lrelu", "zero", 1, 1, (18, 23), 2),
    ("prelu", "replicate", 2, 1, (25, 31), 3),
    ("selu", "reflect", 3, 2, (48, 32), 1),
    ("tanh", "reflect", 0, 1, (16, 17), 2),
    ("none", "zero", 2, 0, (20, 24), 1),
    ("relu", "reflect", 2, 0, (28, 36), 2),
]
DISCRIMINATORS = [
    ("none", "lsgan", "reflect", "lrelu"),
    ("in", "nsgan", "zero", "relu"),
    ("ln", "lsgan", "replicate", "selu"),
    ("none", "nsgan", "reflect", "prelu"),
    ("bn", "lsgan", "reflect", "lrelu"),
    ("sn", "lsgan", "reflect", "lrelu"),
]


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-300))


def twins(name: str, params: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """The reference network and the fast one with its weights."""
    torch.manual_seed(0)
    plain = getattr(reference, name)(3, params).to(dtype)
    fast = getattr(networks, name)(3, params).to(dtype)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in plain.named_parameters()]
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def compare_gradients(fast: torch.nn.Module, plain: torch.nn.Module, idle: re.Pattern[str], limit: float) -> None:
    compared = 0
    for (name, q), (_, p) in zip(fast.named_parameters(), plain.named_parameters()):
        if idle.search(name):
            assert q.grad is not None and not q.grad.any(), name
        elif p.grad is None or not p.numel():
            assert q.grad is None or not q.grad.numel(), name
        else:
            assert relative(q.grad, p.grad) < limit, name
            compared += 1
    assert compared > 5


@pytest.mark.parametrize(("activ", "pad", "n_downsample", "n_res", "size", "batch"), GENERATORS)
@pytest.mark.parametrize("name", ["AdaINGen", "VAEGen"])
def test_generators(
    name: str, activ: str, pad: str, n_downsample: int, n_res: int, size: tuple[int, int], batch: int
) -> None:
    params = {"dim": 4, "style_dim": 3, "n_downsample": n_downsample, "n_res": n_res, "activ": activ}
    pair = twins(name, params | {"pad_type": pad, "mlp_dim": 8})
    x = torch.randn(batch, 3, *size, dtype=torch.float64)
    style = torch.randn(batch, 3, 1, 1, dtype=torch.float64)
    images = [x.clone().requires_grad_() for _ in pair]
    results = []
    for net, image in zip(pair, images):
        if name == "AdaINGen":
            content, own = net.encode(image)
            results.append((content, own, net.decode(content, style), net.decode(content, own)))
        else:
            content = net.enc(image)
            results.append((content, net.decode(content)))
    for got, wanted in zip(results[1], results[0]):
        assert relative(got, wanted) < 1e-10
    upstream = [torch.randn_like(y) for y in results[0]]
    for result in results:
        torch.autograd.backward(result, upstream)
    assert relative(images[1].grad, images[0].grad) < 1e-10
    compare_gradients(pair[1], pair[0], IDLE_BIAS, 1e-10)


@pytest.mark.parametrize(("norm", "gan_type", "pad", "activ"), DISCRIMINATORS)
def test_discriminators(norm: str, gan_type: str, pad: str, activ: str) -> None:
    params = {"dim": 4, "norm": norm, "activ": activ, "n_layer": 3, "gan_type": gan_type, "num_scales": 2}
    pair = twins("MsImageDis", params | {"pad_type": pad})
    real, fake = torch.randn(2, 2, 3, 40, 37, dtype=torch.float64)
    found = []
    for net in pair:
        image = fake.clone().requires_grad_()
        loss = net.calc_dis_loss(image, real) + 3 * net.calc_gen_loss(image)
        loss.backward()
        found.append((loss, image.grad))
    assert relative(found[1][0], found[0][0]) < 1e-10
    assert relative(found[1][1], found[0][1]) < 1e-10
    idle = re.compile(r"cnns\.\d\.[1-9]\.conv\.bias$" if norm == "in" else "^$")
    if norm == "bn":  # through the reference, rounding and all
        return
    compare_gradients(pair[1], pair[0], idle, 1e-10)


@pytest.mark.parametrize("size", [(3, 3), (6, 7), (8, 5), (2, 2), (2, 9)])
@pytest.mark.parametrize("pad", ["reflect", "replicate", "zero"])
def test_borders_of_the_phase_convolution(size: tuple[int, int], pad: str) -> None:
    """Every output pixel and every gradient, corners and edges too, of one upsampling block."""
    params = {"dim": 4, "style_dim": 3, "n_downsample": 1, "n_res": 0, "activ": "none", "pad_type": pad, "mlp_dim": 8}
    pair = twins("VAEGen", params)
    content = torch.randn(2, 8, *size, dtype=torch.float64)
    found = []
    for net in pair:
        code = content.clone().requires_grad_()
        block = net.dec.model[2]
        if net is pair[0]:
            y = block.conv(block.pad(net.dec.model[1](code)))
        else:
            x = blocks.ConvInput.of(code, "auto")
            padded = blocks.pad_input(code, *blocks.phase_input_padding(block, x, pad), code.dtype, "auto")
            y = reference_depth_to_space(blocks.convolution(padded, blocks.phase_conv_args(block, x, pad)).z)
        torch.manual_seed(1)
        y.backward(torch.randn(y.shape, dtype=y.dtype))
        found.append((y, code.grad, block.conv.weight.grad, block.conv.bias.grad))
    for got, wanted in zip(found[1], found[0]):
        assert float((got - wanted).abs().max()) < 1e-12


def reference_depth_to_space(z: Tensor) -> Tensor:
    from munit_fast.reference.epilogue import depth_to_space

    return depth_to_space(z, 2)


def small(**over: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "gen": {"dim": 4, "mlp_dim": 8, "style_dim": 3, "n_res": 1},
        "dis": {"dim": 4, "n_layer": 2, "num_scales": 2},
        "crop_image_height": 32,
        "crop_image_width": 40,
        "display_size": 2,
    }
    for key, value in over.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) else value
    return make_config(base).hyperparameters()


def trainer_pair(kind: str, hp: dict[str, Any]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = getattr(reference, kind)(hp).double()
    fast = getattr(trainers, kind)(hp).double()
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def train(trainer: Any, hp: dict[str, Any], iterations: int, batch: int) -> None:
    draw = torch.Generator().manual_seed(1)
    for i in range(iterations):
        x_a, x_b = torch.rand(2, batch, 3, 32, 40, generator=draw, dtype=torch.float64) * 2 - 1
        torch.manual_seed(100 + i)
        trainer.update_learning_rate()
        trainer.dis_update(x_a, x_b, hp)
        trainer.gen_update(x_a, x_b, hp)


def losses(trainer: Any) -> dict[str, float]:
    return {k: float(torch.as_tensor(v)) for k, v in vars(trainer).items() if k.startswith("loss_")}


TRAININGS: list[tuple[str, dict[str, Any], int, int]] = [
    ("MUNIT_Trainer", {}, 50, 1),
    ("UNIT_Trainer", {}, 50, 1),
    ("MUNIT_Trainer", {"recon_x_cyc_w": 10}, 3, 2),
    ("UNIT_Trainer", {"recon_x_cyc_w": 10, "recon_kl_w": 0.01, "recon_kl_cyc_w": 0.01}, 3, 2),
    ("MUNIT_Trainer", {"dis": {"norm": "bn"}}, 3, 2),
    ("MUNIT_Trainer", {"dis": {"norm": "sn", "gan_type": "nsgan"}, "gen": {"pad_type": "zero"}}, 3, 3),
    ("MUNIT_Trainer", {"dis": {"norm": "in"}, "gen": {"activ": "prelu"}}, 3, 1),
]


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize(("kind", "over", "iterations", "batch"), TRAININGS)
def test_training(kind: str, over: dict[str, Any], iterations: int, batch: int) -> None:
    hp = small(**over)
    plain, fast = trainer_pair(kind, hp)
    for trainer in (plain, fast):
        train(trainer, hp, 1, batch)
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-10)
    norm = hp["dis"]["norm"]
    idle = re.compile(IDLE_BIAS.pattern + (r"|dis.*\.[1-9]\.conv\.bias$" if norm == "in" else ""))
    for nets in ("gen_a", "gen_b"):
        compare_gradients(getattr(fast, nets), getattr(plain, nets), IDLE_BIAS, 1e-10)
    plain, fast = trainer_pair(kind, hp)
    for trainer in (plain, fast):
        train(trainer, hp, iterations, batch)
    for (name, q), (_, p) in zip(fast.named_parameters(), plain.named_parameters()):
        if not (idle.search(name) or (norm == "bn" and name.endswith("conv.bias"))):  # Adam makes steps of rounding
            assert relative(q, p) < 1e-8, name


def test_codes_are_made_again_when_something_changed() -> None:
    hp = small()
    x_a, x_b = torch.rand(2, 1, 3, 32, 40) * 2 - 1
    noise = [torch.randn(1, 3, 1, 1) for _ in range(2)]

    def loss(change: Any) -> float:
        torch.manual_seed(0)
        trainer = trainers.MUNIT_Trainer(hp)
        images = (x_a.clone(), x_b.clone())
        trainer.dis_update(*images, hp, noise)
        images = change(trainer, images)
        trainer.gen_update(*images, hp, noise)
        return float(trainer.loss_gen_recon_c_a.detach())

    def weights(trainer: Any, images: Any) -> Any:
        with torch.no_grad():
            trainer.gen_a.enc_content.model[0].conv.weight[0, 0, 0, 0] += 1
        return images

    def pixels(trainer: Any, images: Any) -> Any:
        images[0][..., :9] = 0.25
        return images

    def others(trainer: Any, images: Any) -> Any:
        return images[0].flip(2).abs(), images[1]

    same = loss(lambda trainer, images: images)
    # What a generator update alone, which keeps nothing, computes.
    for change in (weights, pixels, others):
        value = loss(change)
        torch.manual_seed(0)
        trainer = trainers.MUNIT_Trainer(hp)
        trainer.dis_update(x_a.clone(), x_b.clone(), hp, noise)
        trainer._cached_codes = None
        trainer.gen_update(*change(trainer, (x_a.clone(), x_b.clone())), hp, noise)
        assert value == pytest.approx(float(trainer.loss_gen_recon_c_a.detach()), rel=1e-6)
        assert value != pytest.approx(same, rel=1e-6)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_white_images_leave_no_nan(amp: str) -> None:
    hp = small()
    torch.manual_seed(0)
    trainer = trainers.MUNIT_Trainer(hp, amp=amp)
    white, other = torch.ones(1, 3, 32, 40), torch.rand(1, 3, 32, 40) * 2 - 1
    for x_a, x_b in ((white, white), (other, white), (white, other), (other, other)):
        trainer.update_learning_rate()
        trainer.dis_update(x_a, x_b, hp)
        trainer.gen_update(x_a, x_b, hp)
    assert all(bool(torch.isfinite(p).all()) for p in trainer.parameters())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_autocast_stays_close_and_losses_are_float32(amp: str) -> None:
    hp = small()
    found = {}
    for kind in ("off", amp):
        torch.manual_seed(0)
        trainer = trainers.MUNIT_Trainer(hp, amp=kind)
        x_a, x_b = torch.rand(2, 2, 3, 32, 40, generator=torch.Generator().manual_seed(3)) * 2 - 1
        trainer.dis_update(x_a, x_b, hp)
        trainer.gen_update(x_a, x_b, hp)
        values = {k: v for k, v in vars(trainer).items() if k.startswith("loss_") and isinstance(v, Tensor)}
        assert all(v.dtype == torch.float32 for v in values.values())
        found[kind] = {k: float(v.detach()) for k, v in values.items()}
    assert found[amp] == pytest.approx(found["off"], rel=0.03)
    assert found[amp]["loss_dis_total"] != 4.0  # what least squares of bfloat16 numbers close to zero collapse to


def test_a_users_own_autocast() -> None:
    pair = twins("AdaINGen", make_config({"gen": {"dim": 8}}).gen.model_dump(), torch.float32)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        content, style = pair[1].encode(x)
        image = pair[1].decode(content, style)
    assert content.dtype == image.dtype == torch.bfloat16 and style.dtype == torch.float32
    assert relative(image.float(), pair[0](x)) < 0.1
    image.float().square().mean().backward()
    assert pair[1].enc_content.model[0].conv.weight.grad.dtype == torch.float32


def test_many_styles_at_once() -> None:
    model = MUNIT(small(gen={"n_res": 2}) | {"display_size": 1}).double()
    content = torch.randn(2, 16, 8, 10, dtype=torch.float64)
    styles = torch.randn(2, 3, 3, dtype=torch.float64)
    together = model.gen_a.decode_styles(content, styles)
    for j in range(3):
        alone = model.gen_a.decode(content, styles[:, j, :, None, None])
        assert relative(together[:, j], alone) < 1e-12


def test_impl_reference_is_the_reference() -> None:
    hp = small()
    x_a, x_b = torch.rand(2, 1, 3, 32, 40) * 2 - 1
    found = []
    for make in (reference.MUNIT_Trainer, lambda hp: trainers.MUNIT_Trainer(hp, impl="reference")):
        torch.manual_seed(0)
        trainer: Any = make(hp)
        trainer.dis_update(x_a, x_b, hp)
        trainer.gen_update(x_a, x_b, hp)
        found.append(losses(trainer))
    assert found[0] == found[1]


def test_unknown_choices() -> None:
    with pytest.raises(ValueError, match=r"^impl .*'fastest'"):
        trainers.MUNIT_Trainer(small(), impl="fastest")
    with pytest.raises(ValueError, match=r"fp16.*loss scaling"):
        trainers.MUNIT_Trainer(small(), impl="reference", amp="fp16")
    with pytest.raises(ValueError, match=r"^amp .*'half'"):
        trainers.MUNIT_Trainer(small(), amp="half")


def test_copies_are_independent() -> None:
    net = twins("AdaINGen", make_config({"gen": {"dim": 4}}).gen.model_dump(), torch.float32)[1]
    twin = copy.deepcopy(net)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(net(x), twin(x))
    with torch.no_grad():
        twin.dec.model[-1].conv.weight.zero_()
    assert not torch.equal(net(x), twin(x))


def test_a_code_too_small_for_its_norm() -> None:
    net = twins("AdaINGen", make_config({"gen": {"dim": 4, "n_downsample": 4}}).gen.model_dump(), torch.float32)[1]
    with pytest.raises(ValueError, match="too small"):
        net.encode(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_files_go_from_fast_to_reference_and_back(kind: str, tmp_path: Any) -> None:
    """Two fast iterations, two of the reference, two fast ones, through the published files: as six of either."""
    hp = small(recon_x_cyc_w=1)
    trainer = trainer_pair(kind, hp)[0]
    expected = trainer_pair(kind, hp)[0]
    draw = torch.Generator().manual_seed(1)
    for i in range(6):
        x_a, x_b = torch.rand(2, 1, 3, 32, 40, generator=draw, dtype=torch.float64) * 2 - 1
        if i % 2 == 0:
            source = trainers if i != 2 else reference
            following = getattr(source, kind)(hp).double()
            if i:
                trainer.save(tmp_path, i - 1)
                assert following.resume(tmp_path, hp) == i
            else:
                following.load_state_dict(trainer.state_dict())
            trainer = following
        for each in (trainer, expected):
            torch.manual_seed(100 + i)
            each.update_learning_rate()
            each.dis_update(x_a, x_b, hp)
            each.gen_update(x_a, x_b, hp)
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-9)
    for (name, q), (_, p) in zip(trainer.named_parameters(), expected.named_parameters()):
        if not IDLE_BIAS.search(name):
            assert relative(q, p) < 1e-9, name


@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_float32(size: tuple[int, int]) -> None:
    """Outputs about as exact as the plain networks' are; gradients, which cross kinks, in norm."""
    pair = twins("AdaINGen", make_config({"gen": {"dim": 8, "n_res": 2}}).gen.model_dump(), torch.float32)
    exact = copy.deepcopy(pair[0]).double()
    x, style = torch.randn(2, 3, *size), torch.randn(2, 8, 1, 1)
    upstream: Tensor | None = None
    found = []
    for net, dtype in ((exact, torch.float64), (pair[0], torch.float32), (pair[1], torch.float32)):
        content, _ = net.encode(x.to(dtype))
        y = net.decode(content, style.to(dtype))
        upstream = torch.randn_like(y) if upstream is None else upstream
        y.backward(upstream.to(dtype))
        found.append((content, y, net.enc_content.model[1].conv.weight.grad, net.dec.model[-1].conv.weight.grad))
    for k, (wanted, plain, fast) in enumerate(zip(*found)):
        mine, theirs = relative(fast.double(), wanted), relative(plain.double(), wanted)
        # A value within rounding of a ReLU's kink may fall on its other side: seen, 3e-3 of a gradient's norm.
        assert mine < max(3 * theirs, 1e-5 if k < 2 else 5e-3), (mine, theirs)


def test_training_after_inference_mode() -> None:
    """What is kept between calls must not be an inference tensor."""
    hp = small()
    with torch.inference_mode():
        MUNIT(hp).translate(torch.rand(1, 3, 32, 40) * 2 - 1)
    trainer = trainers.MUNIT_Trainer(hp)
    x_a, x_b = torch.rand(2, 1, 3, 32, 40) * 2 - 1
    trainer.dis_update(x_a, x_b, hp)
    trainer.gen_update(x_a, x_b, hp)
    assert torch.isfinite(trainer.loss_gen_total)


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_images_of_two_sizes(kind: str) -> None:
    hp = small(recon_x_cyc_w=1)
    x_a = torch.rand(1, 3, 32, 40, dtype=torch.float64) * 2 - 1
    x_b = torch.rand(2 if kind == "UNIT_Trainer" else 1, 3, 48, 32, dtype=torch.float64) * 2 - 1
    pair = trainer_pair(kind, hp)
    for trainer in pair:
        torch.manual_seed(1)
        trainer.dis_update(x_a, x_b, hp)
        trainer.gen_update(x_a, x_b, hp)
    assert losses(pair[1]) == pytest.approx(losses(pair[0]), rel=1e-10)
    torch.manual_seed(1)
    of_dis, of_gen = pair[1].draw_noise(x_a, x_b)
    pair[1].dis_update(x_a, x_b, hp, of_dis)
    pair[1].gen_update(x_a, x_b, hp, of_gen)


def test_codes_made_while_frozen_are_not_kept() -> None:
    hp = small()
    x_a, x_b = torch.rand(2, 1, 3, 32, 40, dtype=torch.float64) * 2 - 1
    noise = [torch.randn(1, 3, 1, 1) for _ in range(2)]
    pair = trainer_pair("MUNIT_Trainer", hp)
    for trainer in pair:
        trainer.gen_a.requires_grad_(False)
        trainer.gen_b.requires_grad_(False)
        trainer.dis_update(x_a, x_b, hp, noise)
        trainer.gen_a.requires_grad_(True)
        trainer.gen_b.requires_grad_(True)
        trainer.gen_update(x_a, x_b, hp, noise)
    compare_gradients(pair[1].gen_a, pair[0].gen_a, IDLE_BIAS, 1e-10)


def test_a_trainer_is_copied_and_pickled_between_its_updates() -> None:
    import pickle

    hp = small()
    trainer = trainers.MUNIT_Trainer(hp, amp="fp16")
    x_a, x_b = torch.rand(2, 1, 3, 32, 40) * 2 - 1
    trainer.dis_update(x_a, x_b, hp)
    for name in [name for name in vars(trainer) if name.startswith("loss_")]:
        vars(trainer)[name] = 0.0  # a loss with a graph cannot be copied, the reference's neither
    for twin in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        twin.gen_update(x_a, x_b, hp)
        assert set(twin.scaler_states()) == {"dis", "gen"}


@pytest.mark.parametrize("kind", ["MUNIT_Trainer", "UNIT_Trainer"])
def test_showing_images_lets_kept_codes_go(kind: str) -> None:
    """They hold a graph as large as an iteration's; pictures of a run are made between two iterations."""
    hp = small()
    x_a, x_b = torch.rand(2, hp["display_size"], 3, 32, 40) * 2 - 1
    for show in ("forward", "sample"):
        trainer: Any = getattr(trainers, kind)(hp)
        trainer.dis_update(x_a, x_b, hp)
        assert trainer._cached_codes is not None
        getattr(trainer, show)(x_a, x_b)
        assert trainer._cached_codes is None

"""R1 against plain autograd of the reference's networks, in float64; its interval; its precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from helpers.trainers import hyperparameters
from munit_fast import reference
from munit_fast.models.discriminators import MsImageDis
from munit_fast.train import trainer as trainers
from munit_fast.train.trainer import _Trainer

KINDS = ["MUNIT_Trainer", "UNIT_Trainer"]


def batch(dtype: torch.dtype = torch.float64, count: int = 2, seed: int = 3) -> tuple[Tensor, Tensor]:
    x_a, x_b = torch.rand(2, count, 3, 32, 40, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1
    return x_a, x_b


def trained_for(kind: str = "MUNIT_Trainer", dtype: torch.dtype = torch.float64, amp: str = "off", **over: Any) -> Any:
    torch.manual_seed(0)
    hp = hyperparameters(**over)
    trainer: Any = getattr(trainers, kind)(hp, amp=amp).to(dtype)
    for net in trainer.discriminators.values():  # larger gradients than those of fresh weights
        for p in net.parameters():
            p.data.mul_(10)
    return trainer


def plain_r1(net: Any, x: Tensor) -> Tensor:
    """Image by image, each pixel's square."""
    penalties = []
    for image in x:
        image = image[None].detach().requires_grad_()
        score: Any = 0
        for output in net(image):
            for value in output.flatten():
                score = score + value
        (gradient,) = torch.autograd.grad(score, image, create_graph=True)
        penalties.append(0.5 * torch.einsum("ijkl,ijkl->", gradient, gradient))
    return sum(penalties) / len(penalties)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dis",
    [
        {"norm": "none"},
        {"norm": "in", "activ": "tanh"},
        {"norm": "ln", "activ": "selu", "pad_type": "zero"},
        {"norm": "none", "activ": "prelu", "pad_type": "replicate", "gan_type": "hinge"},
        {"norm": "sn"},
    ],
    ids=str,
)
def test_value_and_gradient_are_plain_autograds(kind: str, dis: dict[str, Any]) -> None:
    """The gradient of a total without another loss, behind an update, is that of the interval times the penalty."""
    trainer = trained_for(kind, r1_w=0.7, r1_iter=3, gan_w=0, dis=dis)
    hp, (x_a, x_b) = trainer.hyperparameters, batch()
    with torch.no_grad():
        for _ in range(500 if dis["norm"] == "sn" else 0):  # each forward moves its vectors, until they have converged
            for net in trainer.discriminators.values():
                net(x_a)
    parts = {d: reference.MsImageDis(3, hp["dis"] | {"gan_type": "lsgan"}).double().eval() for d in "ab"}
    for d, theirs in parts.items():
        theirs.load_state_dict(trainer.discriminators[d].state_dict())
    wanted = {d: plain_r1(theirs, x) for (d, theirs), x in zip(parts.items(), (x_a, x_b))}
    trained = {d: [p for p in theirs.parameters() if p.requires_grad] for d, theirs in parts.items()}
    gradients = {d: torch.autograd.grad(wanted[d], trained[d], allow_unused=True, materialize_grads=True) for d in "ab"}
    trainer.iterations = 6
    trainer.dis_update(x_a, x_b, hp)
    for d in "ab":
        assert float(wanted[d].detach()) > 1e-6
        assert float(getattr(trainer, f"loss_dis_r1_{d}")) == pytest.approx(float(wanted[d].detach()), rel=1e-8)
        mine = torch.cat([p.grad.flatten() for p in trainer.discriminators[d].parameters() if p.requires_grad])
        theirs = 0.7 * 3 * torch.cat([g.flatten() for g in gradients[d]])
        tolerance = 1e-6 if dis["norm"] == "sn" else 1e-10
        assert float(theirs.norm()) > 0 and float((mine - theirs).norm()) <= tolerance * float(theirs.norm())
    total = 0.7 * 3 * float((wanted["a"] + wanted["b"]).detach())
    assert float(trainer.loss_dis_total) == pytest.approx(total, rel=1e-8)


def seen_plainly(image: Tensor, uniform: Tensor) -> Tensor:
    """DiffAugment of one image [1, C, H, W] by its formulas: color, then translation, then cutout."""
    (height, width), u = image.shape[2:], uniform.double()
    x = image + (u[0] - 0.5)
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * (2 * u[1])
    x = x.mean() + (x - x.mean()) * (u[2] + 0.5)
    most = [int(side / 8 + 0.5) for side in (height, width)]
    down, right = (int(u[3 + i] * (2 * m + 1)) - m for i, m in enumerate(most))
    padded = torch.nn.functional.pad(x, (most[1], most[1], most[0], most[0]))
    x = padded[:, :, most[0] - down :, most[1] - right :][:, :, :height, :width]
    keep = torch.ones(height, width, dtype=torch.float64)
    top, left = (int(u[5 + i] * (side + 1)) - side // 4 for i, side in enumerate((height, width)))
    keep[max(top, 0) : top + height // 2, max(left, 0) : left + width // 2] = 0
    return x * keep


@pytest.mark.parametrize("parts", [1, 2])
def test_with_augmentation_it_is_of_the_images_as_they_are(parts: int) -> None:
    """Through the augmentation that the discriminators' losses have, in its value and in its gradient."""
    trainer = trained_for(r1_w=0.7, r1_iter=1, gan_w=0, diffaugment=["color", "translation", "cutout"])
    hp, images = trainer.hyperparameters | {"accumulation": parts}, batch()
    noise = trainer.draw_noise(*images, torch.Generator().manual_seed(4))[0]
    networks: dict[str, Any] = {d: reference.MsImageDis(3, hp["dis"]).double() for d in "ab"}
    for d, net in networks.items():
        net.load_state_dict(trainer.discriminators[d].state_dict())
    trainer.dis_update(*images, hp, noise)
    for d, x, uniform in zip("ab", images, noise[2:4]):
        theirs = networks[d]
        mine = torch.cat([p.grad.flatten() for p in trainer.discriminators[d].parameters()])
        penalties = []
        for image, u in zip(x, uniform[:, 0]):
            image = image[None].requires_grad_()
            score: Any = sum(output.sum() for output in theirs(seen_plainly(image, u)))
            (gradient,) = torch.autograd.grad(score, image, create_graph=True)
            penalties.append(0.5 * gradient.square().sum())
        wanted: Any = sum(penalties) / len(penalties)
        assert float(getattr(trainer, f"loss_dis_r1_{d}")) == pytest.approx(float(wanted.detach()), rel=1e-9)
        found = torch.autograd.grad(wanted, list(theirs.parameters()), allow_unused=True, materialize_grads=True)
        of_them = 0.7 * torch.cat([g.flatten() for g in found])
        assert float((mine - of_them).norm()) <= 1e-9 * float(of_them.norm())


@pytest.mark.parametrize("interval", [1, 3])
def test_a_loop_that_counts_no_iterations(interval: int) -> None:
    """It stays at 0: only what every iteration computes is computed."""
    trainer = trained_for(r1_w=1, r1_iter=interval, ada_target=0.6, ada_iter=interval)
    trainer.dis_update(*batch(), trainer.hyperparameters)
    assert trainer.iterations == 0 and hasattr(trainer, "loss_dis_r1_a") == (interval == 1)
    assert bool((trainer.options.ada.p != 0).any() or (trainer.options.ada.seen == 0).all()) == (interval == 1)


def test_the_kinds_of_iterations() -> None:
    hp = hyperparameters(r1_w=1, r1_iter=6, ada_target=0.6, ada_iter=4)
    options = trainers.MUNIT_Trainer(hp).options
    kinds = {1: (), 4: ("ada_target",), 6: ("r1_w",), 12: ("ada_target", "r1_w")}
    assert options.kinds(hp) == kinds and {options.due(hp, i) for i in range(1, 13)} == set(kinds.values())
    assert options.kinds(hp | {"r1_iter": 1, "ada_iter": 2}) == {1: ("r1_w",), 2: ("ada_target", "r1_w")}
    plain = trainers.MUNIT_Trainer(hyperparameters())
    assert plain.options.kinds(plain.hyperparameters) == {1: ()}


@pytest.mark.parametrize("norm", ["none", "in", "ln"])
def test_its_gradient_is_that_of_differences(norm: str) -> None:
    """gradcheck through the double backward of the fused discriminator."""
    torch.manual_seed(0)
    params = {"dim": 2, "norm": norm, "activ": "tanh", "n_layer": 2, "num_scales": 1, "pad_type": "reflect"}
    net = MsImageDis(2, params | {"gan_type": "lsgan"}).double()
    x = (torch.rand(1, 2, 12, 12, dtype=torch.float64) * 2 - 1).requires_grad_()
    names = [name for name, _ in net.named_parameters()]

    def penalty(*values: Tensor) -> Tensor:
        outputs = functional_call(net, dict(zip(names, values)), (x,))
        (gradient,) = torch.autograd.grad(sum(output.sum() for output in outputs), x, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(penalty, [p.detach().requires_grad_() for p in net.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_only_due_iterations_have_it_and_the_others_show_the_last(kind: str) -> None:
    trainer = trained_for(kind, r1_w=1, r1_iter=3)
    without = trained_for(kind)
    shown = []
    for i in range(7):
        x_a, x_b = batch(seed=i)
        noise = trainer.draw_noise(x_a, x_b)
        losses = trainer.update(x_a, x_b, trainer.hyperparameters, noise)
        shown.append(float(losses["loss_dis_r1_a"]) if "loss_dis_r1_a" in losses else None)
        without.update(x_a, x_b, without.hyperparameters, noise)
        same = torch.equal(*(torch.cat([p.flatten() for p in t.dis_a.parameters()]) for t in (trainer, without)))
        assert same == (i < 2)  # to the bit, until it is first computed
        own = losses["loss_dis_a"] + losses["loss_dis_b"]
        if i in (2, 5):
            own = own + 3 * (losses["loss_dis_r1_a"] + losses["loss_dis_r1_b"])
        assert float(losses["loss_dis_total"]) == pytest.approx(float(own), rel=1e-12)
        assert trainer.loss_dis_r1_a == losses["loss_dis_r1_a"] if i >= 2 else True
    assert shown[:2] == [None, None]
    assert shown[2] == shown[3] == shown[4] != shown[5] == shown[6]


def test_the_interval_is_16_where_nothing_is_said() -> None:
    hp = {key: value for key, value in hyperparameters(r1_w=1).items() if key != "r1_iter"}
    options = trainers.MUNIT_Trainer(hp).options
    assert [i for i in range(1, 40) if options.due(hp, i)] == [16, 32]
    assert hyperparameters()["r1_iter"] == 16 and options.terms.period(hp) == 16
    assert trainers.MUNIT_Trainer(hyperparameters()).options.terms.period(hp) == 1


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_it_is_float32_in_mixed_precision(monkeypatch: pytest.MonkeyPatch, amp: str, gathers: bool) -> None:
    """Value and gradient, with the parameters themselves and as on a GPU with copies of them in the other dtype."""
    found = []
    for each in ("off", amp):
        with monkeypatch.context() as patched:
            patched.setattr(_Trainer, "_on_gpu", gathers)
            trainer = trained_for(dtype=torch.float32, amp=each, r1_w=1, r1_iter=1, gan_w=0)
            x_a, x_b = batch(torch.float32)
            trainer.dis_update(x_a, x_b, trainer.hyperparameters)
        assert trainer.loss_dis_r1_a.dtype == torch.float32
        found.append((float(trainer.loss_dis_r1_a), torch.cat([p.grad.flatten() for p in trainer.dis_a.parameters()])))
    (value, grad), (of_amp, grad_of_amp) = found
    assert of_amp == pytest.approx(value, rel=1e-5)
    assert float((grad_of_amp - grad).norm()) <= 1e-4 * float(grad.norm())

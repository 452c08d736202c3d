"""What the discriminators see is augmented: DiffAugment by the formulas of its paper, ADA by its controller."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch import Tensor

from helpers import fake_cuda
from helpers.trainers import hyperparameters, parameters
from munit_fast import make_config
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.models.discriminators import Judgement
from munit_fast.train import TrainOptions, train
from munit_fast.train import trainer as trainers
from munit_fast.train.augment import TRANSFORMATIONS, UNIFORMS, AdaptiveProbability, augment
from munit_fast.train.cuda_graph import WARM_UP
from munit_fast.train.noise import iteration_noise
from munit_fast.train.run_state import apply_state, checksum, find_state, run_state, save_state
from munit_fast.train.step_options import StepOptions

KINDS = ["MUNIT_Trainer", "UNIT_Trainer"]
ADA = {"ada_target": 0.05, "ada_images": 20, "ada_iter": 2}  # soon at probabilities between 0 and 1


def plain(x: Tensor, uniform: Tensor, transformations: Any, p: float | None = None) -> Tensor:
    """The images one by one, pixel by pixel, as the papers say it."""
    seen = []
    for image, row in zip(x, uniform.tolist()):
        b, s, c, down, right, cut_y, cut_x, *gates = row
        on = [p is None or gate < p for gate in gates]
        (channels, height, width), image = image.shape, image.clone()
        if "color" in transformations:
            if on[0]:
                image = image + (b - 0.5)
            if on[1]:
                grey = image.mean(0)
                image = torch.stack([grey + (image[k] - grey) * 2 * s for k in range(channels)])
            if on[2]:
                image = image.mean() + (image - image.mean()) * (0.5 + c)
        if "translation" in transformations and on[3]:
            most = [int(side * 0.125 + 0.5) for side in (height, width)]
            dy, dx = (int(u * (2 * m + 1)) - m for u, m in zip((down, right), most))
            moved = torch.zeros_like(image)
            for y in range(height):
                for z in range(width):
                    if 0 <= y - dy < height and 0 <= z - dx < width:
                        moved[:, y, z] = image[:, y - dy, z - dx]
            image = moved
        if "cutout" in transformations and on[4]:
            sizes = [int(side * 0.5 + 0.5) for side in (height, width)]
            y, z = (
                int(u * (side + 1 - size % 2)) - size // 2
                for u, side, size in zip((cut_y, cut_x), (height, width), sizes)
            )
            image[:, max(y, 0) : y + sizes[0], max(z, 0) : z + sizes[1]] = 0
        seen.append(image)
    return torch.stack(seen)


def drawn(count: int, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(count, UNIFORMS, generator=generator)
    return torch.rand(count, *shape, generator=generator, dtype=dtype) * 2 - 1, uniform


@pytest.mark.parametrize("p", [None, 0.5])
@pytest.mark.parametrize("chosen", [("color",), ("translation",), ("cutout",), TRANSFORMATIONS])
@pytest.mark.parametrize("shape", [(3, 32, 40), (1, 20, 17), (5, 12, 13)])
def test_images_are_what_the_formulas_say(shape: tuple[int, ...], chosen: tuple[str, ...], p: float | None) -> None:
    x, uniform = drawn(12, *shape)
    found = augment(x, uniform, chosen, None if p is None else torch.tensor(p))
    assert torch.allclose(found, plain(x, uniform, chosen, p), rtol=0, atol=1e-6)  # amounts are float32 numbers
    last = augment(x.to(memory_format=torch.channels_last)[3:4], uniform[3:4], chosen, p and torch.tensor(p))
    assert torch.allclose(last, found[3:4], rtol=0, atol=1e-12)  # each image by itself


def test_amounts_have_the_published_ranges() -> None:
    """Of 4,000 images: every shift up to an eighth of the side, centres of the cutout up to the border and beyond."""
    _, uniform = drawn(4000, 1, 1, 1)
    x = torch.zeros(1, 1, 16, 24).expand(4000, -1, -1, -1).clone()
    x[:, :, 8, 12] = 1
    at = augment(x, uniform, ("translation",)).flatten(1).argmax(1)
    assert set((at // 24).tolist()) == set(range(6, 11)) and set((at % 24).tolist()) == set(range(9, 16))
    left = augment(torch.ones(4000, 1, 16, 24), uniform, ("cutout",)).mean((1, 2, 3))
    assert float(left.min()) == 0.75 and float(left.max()) == 1 - 0.25 * 0.25  # whole, or a corner
    flat = augment(torch.zeros(4000, 3, 4, 4), uniform, ("color",))
    assert -0.5 <= float(flat.min()) < -0.49 and 0.49 < float(flat.max()) <= 0.5


@pytest.mark.parametrize("p", [None, 0.5])
def test_the_gradient_reaches_the_images(p: float | None) -> None:
    x, uniform = drawn(3, 2, 8, 9)
    probability = None if p is None else torch.tensor(p)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, uniform, TRANSFORMATIONS, probability), x)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, uniform, TRANSFORMATIONS, probability).square(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_probability_images_stay_as_they_are(dtype: torch.dtype) -> None:
    x, uniform = drawn(4, 3, 16, 16, dtype=torch.float32)
    x = (3 * x).to(dtype)
    found = augment(x, uniform, TRANSFORMATIONS, torch.tensor(0.0))
    assert found.dtype == dtype and torch.equal(found, x)
    assert not torch.equal(augment(x, uniform, TRANSFORMATIONS, torch.tensor(1.0)), x)
    assert torch.equal(
        augment(x, uniform, TRANSFORMATIONS, torch.tensor(1.0)), augment(x, uniform, TRANSFORMATIONS, None)
    )


def images(i: int, count: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x_a, x_b = torch.rand(2, count, 3, 32, 40, generator=torch.Generator().manual_seed(i), dtype=dtype) * 2 - 1
    return x_a, x_b


def made(kind: str, hp: dict[str, Any], **options: Any) -> Any:
    """A trainer whose discriminators tell images apart from the start, on both sides of the middle."""
    torch.manual_seed(0)
    trainer: Any = getattr(trainers, kind)(hp, **options)
    with torch.no_grad():
        for net in (*trainer.dis_a.cnns, *trainer.dis_b.cnns):
            net[-1].weight.mul_(50)
            net[-1].bias.fill_(0.5)
    return trainer


def trained(
    kind: str, hp: dict[str, Any], iterations: int = 5, dtype: torch.dtype = torch.float64, **options: Any
) -> Any:
    trainer = made(kind, hp, **options).to(dtype)
    for i in range(iterations):
        torch.manual_seed(100 + i)
        trainer.update(*images(i, 4, dtype), hp)
    return trainer


def numbers(trainer: Any) -> dict[str, float]:
    return {k: float(torch.as_tensor(v).detach()) for k, v in vars(trainer).items() if k.startswith(("loss_", "ada_"))}


@pytest.mark.parametrize("impl", ["auto", "cpu"])
@pytest.mark.parametrize("gan_type", ["lsgan", "nsgan"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_updates_see_augmented_images(kind: str, gan_type: str, impl: str) -> None:
    """Their losses are those of the discriminators for images that were augmented one by one, each in its own way."""
    chosen = ["color", "cutout"] if kind == "UNIT_Trainer" else list(TRANSFORMATIONS)
    hp = hyperparameters(diffaugment=chosen, dis={"gan_type": gan_type})
    dtype = torch.float64 if impl == "auto" else torch.float32
    trainer = made(kind, hp, impl=impl).to(dtype)
    x_a, x_b = images(1, dtype=dtype)
    of_dis, of_gen = trainer.draw_noise(x_a, x_b)
    rows = [row for noise in (of_dis, of_gen) for view in noise[-2:] for row in view.flatten(0, 1).tolist()]
    assert len(rows) == 16 and len(set(map(tuple, rows))) == 16  # 2 updates, 4 images and their translations
    objective = trainer.fused_objective

    def seen(x: Tensor, rows: Tensor) -> Tensor:
        return plain(x.detach(), rows, chosen)

    codes = objective.encode(trainer, x_a, x_b)
    x_ab, x_ba = objective._translate(trainer, x_a, x_b, codes, of_dis[:2])
    (u_a, u_b), (v_a, v_b) = of_dis[-2:], of_gen[-2:]
    losses = trainer._losses("dis", x_a, x_b, None, of_dis, hp)
    expected = {
        "loss_dis_a": trainer.dis_a.calc_dis_loss(seen(x_ba, u_b[:, 1]), seen(x_a, u_a[:, 0])),
        "loss_dis_b": trainer.dis_b.calc_dis_loss(seen(x_ab, u_a[:, 1]), seen(x_b, u_b[:, 0])),
    }
    _, x_ab, x_ba = objective._generate(trainer, x_a, x_b, codes, of_gen[:-2], False)
    losses |= trainer._losses("gen", x_a, x_b, None, of_gen, hp)
    expected["loss_gen_adv_a"] = trainer.dis_a.calc_gen_loss(seen(x_ba, v_b[:, 1]))
    expected["loss_gen_adv_b"] = trainer.dis_b.calc_gen_loss(seen(x_ab, v_a[:, 1]))
    for name, value in expected.items():
        assert float(losses[name].detach()) == pytest.approx(
            float(value.detach()), rel=1e-6 if dtype == torch.float64 else 1e-4
        ), name
    assert float(losses["loss_gen_adv_a"]) != pytest.approx(float(trainer.dis_a.calc_gen_loss(x_ba)), rel=1e-3)
    grad = torch.autograd.grad(losses["loss_gen_adv_b"], list(trainer.gen_b.parameters()), allow_unused=True)
    assert any(g is not None and float(g.abs().max()) > 0 for g in grad)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_that_is_off_changes_no_bit(kind: str, amp: str) -> None:
    """Without keys, with keys that are off, and while the probability still is 0."""
    without = {k: v for k, v in hyperparameters().items() if not k.startswith(("ada_", "diffaugment"))}
    before = trained(kind, without, 2, torch.float32, amp=amp)
    off = trained(kind, hyperparameters(), 2, torch.float32, amp=amp)
    assert torch.equal(parameters(off), parameters(before)) and numbers(off) == numbers(before)
    assert len(off.draw_noise(*images(0))[0]) == 2 and "ada" not in run_state(off, 2) and off.options.named == ()
    at_zero = trained(kind, hyperparameters(ada_target=0.6), 2, torch.float32, amp=amp)
    assert torch.equal(parameters(at_zero), parameters(before))
    assert numbers(at_zero) == numbers(before) | {"ada_p_a": 0, "ada_p_b": 0}
    assert not torch.equal(
        parameters(trained(kind, hyperparameters(diffaugment=["color"]), 2, torch.float32, amp=amp)), parameters(off)
    )


def test_which_transformations_a_configuration_asks_for() -> None:
    assert StepOptions(hyperparameters(ada_target=0.6), "MUNIT").augmentation == TRANSFORMATIONS
    some = StepOptions(hyperparameters(ada_target=0.6, diffaugment=["cutout"]), "UNIT")
    assert set(some.augmentation) == {"cutout"} and some.named == ("diffaugment", "ada_target")
    with pytest.raises(ValueError, match=r"^diffaugment: use a list of color, translation, cutout; got 'colour'"):
        StepOptions({"diffaugment": ["colour"]}, "MUNIT")
    with pytest.raises(ValueError, match=r"^diffaugment, ada_target: impl='reference'"):
        trainers.MUNIT_Trainer(hyperparameters(ada_target=0.6, diffaugment=["cutout"]), impl="reference")


@pytest.mark.parametrize("kind", KINDS)
def test_noise_follows_from_the_place_of_an_image(kind: str) -> None:
    trainer: Any = getattr(trainers, kind)(hyperparameters(diffaugment=["color"]))
    x_a, x_b = images(0, 4)
    whole = iteration_noise(trainer, x_a, x_b, 7, 3, 0)
    parts = [iteration_noise(trainer, x_a[i : i + 2], x_b[i : i + 2], 7, 3, i) for i in (0, 2)]
    for k in (0, 1):
        assert whole[k][-1].shape == (4, 2, UNIFORMS) and len(whole[k]) == len(parts[0][k])
        for t, p, q in zip(whole[k], parts[0][k], parts[1][k], strict=True):
            assert torch.equal(t, torch.cat([p, q]))


# ---- ADA ----


class Of:
    def __init__(self, gan_type: str) -> None:
        self.gan_type = gan_type


def judged(signs: list[list[float]], middle: float) -> Judgement:
    """What a discriminator of several scales said: for each, its outputs' distances from the middle."""
    outputs = tuple(torch.tensor(values).reshape(1, 1, 1, -1) + middle for values in signs)
    return Judgement(outputs, ())


def test_the_probability_follows_the_sign_of_the_outputs() -> None:
    """A is an lsgan's, whose middle is 0.5. Both have r = (1/2 + 1) / 2 = 0.75 from two scales, then -1."""
    discriminators = {"a": Of("lsgan"), "b": Of("nsgan")}
    high, low = [[0.1, 0.1, 0.1, -0.1], [0.1]], [[-0.1, -0.1, -0.1, -0.1], [-0.1]]
    real = {d: {"a": judged(values, 0.5), "b": judged(values, 0.0)} for d, values in (("high", high), ("low", low))}

    def after(*steps: str, target: float, images: int = 10, iterations: int = 2) -> list[float]:
        ada = AdaptiveProbability()
        for i, step in enumerate(steps, 1):
            ada.begin()
            ada.observe(discriminators, real[step])
            ada.end(1, i % iterations == 0, target, images)
        return [round(value, 6) for value in ada.p.tolist()]

    assert after("high", target=0.6) == [0, 0]
    assert after("high", "high", target=0.6) == [0.2, 0.2]
    assert after(*["high"] * 4, "low", "low", target=0.6) == [0.2, 0.2]
    assert after("high", "high", target=0.7) == [0.2, 0.2] and after("high", "high", target=0.8) == [0, 0]
    assert after("high", "low", target=0.6) == [0, 0]  # the mean over both iterations decides
    assert after(*["high"] * 30, target=0.6) == [1, 1]
    assert after("high", "high", target=0.75) == [0, 0]  # exactly on the target
    ada = AdaptiveProbability()
    ada.observe(discriminators, {"a": judged([[float("nan"), 1.0]], 0.0), "b": judged([[1.0]], 0.0)})
    ada.end(1, False, 0.6, 10)
    assert ada.seen[0, 0] == 1 and ada.seen[0, 10] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_probability_of_a_training(kind: str) -> None:
    """It is that of the real images as they were seen, and goes with the losses into the logs."""
    hp = hyperparameters(**ADA)
    trainer = made(kind, hp).double()
    said: dict[str, list[Tensor]] = {"a": [], "b": []}
    expected = {"a": 0.0, "b": 0.0}
    for i in range(1, 7):
        x_a, x_b = images(i)
        noise = iteration_noise(trainer, x_a, x_b, 0, i, 0)
        for d, x, rows in (("a", x_a, noise[0][-2]), ("b", x_b, noise[0][-1])):
            p = trainer.options.ada.of(d)
            maps = trainer.discriminators[d](augment(x, rows[:, 0], TRANSFORMATIONS, p))
            said[d].append(torch.stack([(m - 0.5).sign().mean() for m in maps]).mean())
        losses = trainer.update(x_a, x_b, hp, noise)
        for d in "ab":
            assert float(losses[f"ada_p_{d}"]) == pytest.approx(expected[d])
            if i % 2 == 0:
                r, said[d] = torch.stack(said[d]).mean(), []
                expected[d] += (1 if r > 0.05 else -1) * 4 / 20
                expected[d] = min(max(expected[d], 0.0), 1.0)
    found = trainer.options.ada.p.tolist()
    assert found == pytest.approx(list(expected.values())) and max(found) > 0
    assert trainer.ada_p_a is losses["ada_p_a"]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_are_the_batch(kind: str) -> None:
    whole, parts = (trained(kind, hyperparameters(**ADA, accumulation=n)) for n in (1, 4))
    assert numbers(parts) == pytest.approx(numbers(whole), rel=1e-9) and max(whole.options.ada.p) > 0
    assert torch.equal(whole.options.ada.p, parts.options.ada.p)
    assert torch.equal(whole.options.ada.seen, parts.options.ada.seen) and bool(whole.options.ada.seen.any())
    assert float((parameters(parts) - parameters(whole)).norm() / parameters(whole).norm()) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("over", [{"diffaugment": list(TRANSFORMATIONS)}, ADA])
def test_in_a_graph(monkeypatch: pytest.MonkeyPatch, over: dict[str, Any], kind: str) -> None:
    """Nothing is read back or drawn inside, and a probability that moves is the one that replays read."""
    hp = hyperparameters(lr=2**-10, **over)  # a rate that float32 holds to the bit
    eager = trained(kind, hp, 12, torch.float32)
    cuda = fake_cuda.install(monkeypatch)
    graphed = made(kind, hp)
    cuda.modules.append(graphed)
    for i in range(12):
        torch.manual_seed(100 + i)
        graphed.update(*images(i, 4, torch.float32), hp)
    graphs = 2 if over is ADA else 1
    assert graphed._graphs.failure is None and cuda.replays == 12 - graphs * WARM_UP
    assert numbers(graphed) == pytest.approx(numbers(eager), rel=1e-4)
    assert float((parameters(graphed) - parameters(eager)).norm() / parameters(eager).norm()) < 1e-5
    if over is ADA:
        assert torch.equal(graphed.options.ada.p, eager.options.ada.p) and max(eager.options.ada.p) > 0


# ---- its state ----


def test_a_resumed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    """From the middle of an interval of the controller."""
    hp = hyperparameters(**ADA | {"ada_iter": 3})
    whole, before = trained("MUNIT_Trainer", hp, 8), trained("MUNIT_Trainer", hp, 5)
    assert max(before.options.ada.p) > 0 and bool(before.options.ada.seen.any())
    save_state(before, tmp_path, 5)
    torch.manual_seed(1)
    after: Any = trainers.MUNIT_Trainer(hp).double()
    loaded = find_state(tmp_path)
    apply_state(after, loaded.state, loaded.source)
    for i in range(5, 8):
        torch.manual_seed(100 + i)
        after.update(*images(i, 4), hp)
    assert torch.equal(parameters(after), parameters(whole)) and numbers(after) == numbers(whole)
    assert checksum(after.options.ada.state()) == checksum(whole.options.ada.state())


def test_states_without_it_and_bad_ones() -> None:
    hp = hyperparameters(**ADA)
    trainer = trained("MUNIT_Trainer", hp, 4)
    state, plain_trainer = run_state(trainer, 4), trained("MUNIT_Trainer", hyperparameters(), 1)
    apply_state(plain_trainer, state, Path("x"))  # of a run that has it, in one that does not
    fresh: Any = trainers.MUNIT_Trainer(hp).double()
    apply_state(fresh, {key: value for key, value in state.items() if key != "ada"}, Path("x"))
    assert fresh.options.ada.p.tolist() == [0, 0]
    good = state["ada"]
    for bad in (
        None,
        {},
        {"p": good["p"]},
        good | {"p": good["p"].double()},
        good | {"p": torch.tensor([0.5, 2.0])},
        good | {"p": torch.tensor([0.5, torch.nan])},
        good | {"seen": good["seen"][:1]},
        good | {"seen": good["seen"].to_sparse()},
    ):
        before = parameters(fresh)
        with pytest.raises(CheckpointError, match=r"^x: .*ada_target"):
            apply_state(fresh, state | {"ada": bad}, Path("x"))
        assert torch.equal(parameters(fresh), before)


def test_the_probability_follows_a_trainer_that_moves() -> None:
    trainer = trained("MUNIT_Trainer", hyperparameters(**ADA), 3)
    again = copy.deepcopy(trainer)
    assert torch.equal(again.options.ada.p, trainer.options.ada.p) and again.options.ada.p is not trainer.options.ada.p
    again.half()
    assert again.options.ada.p.dtype == torch.float32 and again.options.ada.seen.dtype == torch.int64
    again.to("meta")
    assert {t.device.type for t in (again.options.ada.p, again.options.ada.seen, again.options.ada._fresh)} == {"meta"}


def test_a_run_logs_it_and_says_where_it_begins_anew(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = small_config | {"data_root": str(picture_folders), "max_iter": 3, "log_iter": 1}

    def run(end: int, *overrides: str) -> str:
        config = values | {"max_iter": end}
        options = TrainOptions("small", tmp_path, "MUNIT", amp="off", overrides=overrides, resume=end > 2)
        train(make_config(config), options, config_text=yaml.safe_dump(config), console=Console(width=200))
        return capsys.readouterr().out

    said = "resume_00000002.pt knows nothing of ada_target: its probability starts at 0"
    assert "ada_target" not in run(2)
    assert said in run(4, "ada_target=0.6", "ada_images=4", "ada_iter=1", "dis.gan_type=nsgan")
    assert "starts at 0" not in run(6)
    rows = [json.loads(line) for line in (tmp_path / "logs/small/losses.jsonl").read_text().splitlines()]
    found = [[row.get(f"ada_p_{domain}") for row in rows] for domain in "ab"]
    state = find_state(tmp_path / "outputs/small/checkpoints").state["ada"]["p"].tolist()
    for of_domain, last in zip(found, state):
        assert of_domain[:3] == [None, None, 0] and len(of_domain) == 6
        assert all(p in (0, 0.25, 0.5, 0.75, 1) for p in [*of_domain[2:], last])

"""The networks with Winograd's convolutions: close to float64 whatever the images, and under all that torch offers.

``MUNIT_FAST_CONV=winograd`` makes all convolutions that a plan serves take it.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from munit_fast import make_config
from munit_fast.models.networks import AdaINGen, MsImageDis
from munit_fast.ops import conv_plans, native, winograd

pytestmark = pytest.mark.skipif(not winograd.available(), reason="no instruction set with these convolutions")

Way = Callable[[str], None]


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    """Chooses how networks convolve, as MUNIT_FAST_CONV does."""

    def choose(value: str) -> None:
        monkeypatch.setenv("MUNIT_FAST_CONV", value)
        conv_plans._override.cache_clear()

    choose("winograd")
    yield choose
    conv_plans._override.cache_clear()


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-300))


def generator(dim: int = 16, **more: Any) -> AdaINGen:
    torch.manual_seed(0)
    return AdaINGen(3, make_config({"gen": {"dim": dim, "n_res": 2, **more}}).gen.model_dump())


def discriminator(norm: str = "none") -> MsImageDis:
    torch.manual_seed(0)
    return MsImageDis(3, make_config({"dis": {"dim": 16, "n_layer": 3, "norm": norm}}).dis.model_dump())


def gradients(net: nn.Module, *losses: Tensor) -> list[Tensor]:
    net.zero_grad()
    torch.autograd.backward(losses)
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def translate(net: AdaINGen, x: Tensor) -> Tensor:
    content, style = net.encode(x)
    return net.decode(content, style)


def lines(size: int) -> Tensor:
    """Black lines on white."""
    draw = torch.Generator().manual_seed(5)
    image = torch.ones(1, 3, size, size)
    for _ in range(6):
        (y0, x0, y1, x1) = (torch.rand(4, generator=draw) * (size - 1)).tolist()
        for t in torch.linspace(0, 1, 4 * size).tolist():
            image[..., round(y0 + t * (y1 - y0)), round(x0 + t * (x1 - x0))] = -1
    return image


def noise(size: int, seed: int = 6) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def one_pixel(size: int) -> Tensor:
    image = torch.ones(1, 3, size, size)
    image[:, :, size // 3, size // 2] = -1
    return image


def half_white(size: int) -> Tensor:
    image = torch.ones(1, 3, size, size)
    image[..., : size // 2 + 1] = -1
    return image


IMAGES: dict[str, Callable[[int], Tensor]] = {
    "noise": noise,
    "white": lambda size: torch.ones(1, 3, size, size),
    "black": lambda size: -torch.ones(1, 3, size, size),
    "half_white": half_white,
    "one_pixel": one_pixel,
    "lines": lines,
    "low_contrast": lambda size: 0.5 + 1e-4 * noise(size),
    "high_contrast": lambda size: 1e4 * noise(size),
    "far_from_zero": lambda size: 100 + 1e-2 * noise(size),
}


def outputs_and_gradients(net: AdaINGen, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Content, style and image, and the gradients of all convolutions' weights, one after the other."""
    content, style = net.encode(x)
    image = net.decode(content, style)
    upstream = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    net.zero_grad()
    image.backward(upstream)
    of_weights = [p.grad.double().flatten() for p in net.parameters() if p.dim() == 4 and p.grad is not None]
    return content.detach(), style.detach(), image.detach(), torch.cat(of_weights)


@pytest.mark.parametrize("pad_type", ["reflect", "zero", "replicate"])
@pytest.mark.parametrize("kind", IMAGES)
def test_as_close_to_float64_as_direct_convolution(way: Way, kind: str, pad_type: str) -> None:
    """Of plain images too, whose rounding errors an instance norm multiplies by up to 1/√eps = 316 a layer.

    Both ways are judged by the same float64, next to each other: what an image costs (contrast of 1e-4: 5e-3 of the
    content for either) is in both. A layer of F(4×4) has 1.5 to 3 times the rounding error of a direct one, in the
    gradient of a weight 4.5 times; seen are 2.3 times in results and 3 times in gradients. A third part comes on top
    where direct convolution of a constant plane happens to be exact. "tanh", because a value within rounding of a
    ReLU's kink may fall on its other side, and the gradient then jumps.
    """
    size = 52 if pad_type == "replicate" else 64
    x = IMAGES[kind](size)
    for activ in ("relu", "tanh"):
        net = generator(pad_type=pad_type, activ=activ)
        exact = outputs_and_gradients(copy.deepcopy(net).double(), x.double())
        found = {}
        for value in ("direct", "winograd", "winograd2"):
            way(value)
            found[value] = [relative(a, b) for a, b in zip(outputs_and_gradients(net, x), exact)]
        for i, (plain, fast, accurate) in enumerate(zip(*found.values())):
            if i < 3:
                assert fast <= 3 * plain + 1e-6, (activ, i, plain, fast)
                assert accurate <= 2 * plain + 1e-6, (activ, i, plain, accurate)
            elif activ == "tanh":
                assert fast <= 5 * plain + 2e-6, (activ, plain, fast)
                assert accurate <= 3 * plain + 2e-6, (activ, plain, accurate)


@pytest.mark.parametrize("kind", ["white", "black"])
@pytest.mark.parametrize("pad_type", ["reflect", "replicate"])
def test_content_of_a_constant_image_is_exactly_zero(way: Way, kind: str, pad_type: str) -> None:
    """Each plane is constant before the norm, and zero behind it."""
    for size in (64, 52, 40):
        assert not generator(pad_type=pad_type).encode(IMAGES[kind](size))[0].any()


def test_a_discriminator_of_plain_images(way: Way) -> None:
    for norm in ("none", "ln"):
        net = discriminator(norm)
        for kind, make in IMAGES.items():
            x = make(64)
            with torch.no_grad():
                exact = copy.deepcopy(net).double()(x.double())
                found = {}
                for value in ("direct", "winograd"):
                    way(value)
                    found[value] = net(x)
            for plain, fast, want in zip(*found.values(), exact):
                assert relative(fast, want) <= 3 * relative(plain, want) + 1e-6, (norm, kind)


def same_bits(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("value", ["auto", "winograd", "winograd2"])
def test_checkpointing_gives_the_same_gradients(way: Way, value: str) -> None:
    way(value)
    net, x = generator(), noise(64)
    expected = gradients(net, translate(net, x).square().mean())
    net.set_checkpointing(True)
    assert same_bits(gradients(net, translate(net, x).square().mean()), expected)


@pytest.mark.parametrize("value", ["auto", "winograd", "winograd2"])
def test_autocast(way: Way, value: str) -> None:
    """Bfloat16 by Winograd is float32 inside: at least as close to float32 as direct convolution's bfloat16."""
    net, dis, x = generator(), discriminator(), noise(64)
    way("direct")
    want = [translate(net, x).detach(), *gradients(net, translate(net, x).square().mean())]
    of_dis = dis.calc_gen_loss(x)
    found = {}
    for way_of in ("direct", value):
        way(way_of)
        with torch.autocast("cpu", torch.bfloat16):
            image = translate(net, x)
            assert image.dtype == torch.bfloat16
            loss = image.float().square().mean()
            assert relative(dis.calc_gen_loss(x), of_dis) < 0.02
        found[way_of] = [image.detach(), *gradients(net, loss)]
    # Not for each weight: some gradients are small differences.
    lengths = [sum(relative(a, b) for a, b in zip(of_way, want)) for of_way in found.values()]
    assert lengths[1] < 1.5 * lengths[0]
    assert all(bool(g.isfinite().all()) for g in found[value])


def translator(net: AdaINGen, x: Tensor) -> list[tuple[nn.Module, tuple[Any, ...]]]:
    """The parts that are compiled and exported, with their inputs."""
    with torch.no_grad():
        content, style = net.encode(x)
        adain = net.adain_params(style)
    return [(net.enc_content, (x,)), (net.enc_style, (x,)), (net.dec, (content, adain)), (net, (x,))]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["enc_content", "dis"])
def test_compile(way: Way, part: str) -> None:
    """In several graphs, as these networks always are (docs/decisions/no-compile.md)."""
    torch._dynamo.reset()
    net = generator(n_res=1, n_downsample=1).enc_content if part == "enc_content" else discriminator()
    compiled, x = torch.compile(net, backend="aot_eager", dynamic=False), noise(32)
    found = []
    for function in (compiled, net):
        y = function(x)
        y = y if isinstance(y, list) else [y]
        found.append([*y, *gradients(net, sum(t.square().sum() for t in y))])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_export(way: Way, tmp_path: Any) -> None:
    net, x = generator().eval().requires_grad_(False), noise(48)
    for part, arguments in translator(net, x):
        with torch.no_grad():
            program = torch.export.export(part, arguments, strict=False)
            want = part(*arguments)
        names = {str(node.target) for module in program.graph_module.modules() for node in module.graph.nodes}
        assert not [name for name in names if "munit_fast" in name]
        found = program.module()(*arguments)
        assert relative(found, want) < 1e-5
        if part is net.dec:
            torch.export.save(program, tmp_path / "decoder.pt2")
            assert torch.equal(torch.export.load(tmp_path / "decoder.pt2").module()(*arguments), found)


def test_kept_weights_of_a_network_are_never_stale(way: Way) -> None:
    """Through every public way to change a network, with and without the sharing of weights in several styles."""
    net, x, styles = generator(), noise(64), torch.randn(1, 2, 8)

    def results(of: AdaINGen) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            content, style = of.encode(x)
            return content, of.decode(content, style), of.decode_styles(content, styles)

    def check() -> None:
        # A network that was never used, with these weights.
        fresh = generator()
        fresh.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
        expected = results(fresh)
        for _ in range(3):
            found = results(net)
            for got, want in zip(found, expected):
                assert relative(got, want) < 1e-6
        winograd._kept.clear()
        assert same_bits(results(fresh), results(net))
        for _ in range(2):
            results(net)

    check()
    for p in net.parameters():
        p.data.mul_(1.1)
    check()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    translate(net, x).square().mean().backward()
    optimizer.step()
    check()
    average = [torch.randn_like(p) * p.detach().std() for p in net.parameters()]
    for p, other in zip(net.parameters(), average):
        p.data = other
    check()
    net.load_state_dict(generator().state_dict())
    check()
    net.double()
    with torch.no_grad():
        net.dec.model[-1].conv.weight.add_(0.1)
        net.enc_content.model[1].conv.weight.add_(0.1)
    net.float()
    check()
    net.to(memory_format=torch.channels_last)
    check()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "torch.save"])
def test_copies_of_a_network_whose_weights_are_kept(way: Way, how: str) -> None:
    net, x = generator(), noise(64)
    with torch.no_grad():
        for _ in range(3):
            expected = translate(net, x)
        if how == "deepcopy":
            twin = copy.deepcopy(net)
        elif how == "pickle":
            twin = pickle.loads(pickle.dumps(net))
        elif how == "state_dict":
            twin = generator()
            assert set(net.state_dict()) == set(twin.state_dict())
            twin.load_state_dict(net.state_dict())
        else:
            buffer = io.BytesIO()
            torch.save(net.state_dict(), buffer)
            buffer.seek(0)
            twin = generator()
            twin.load_state_dict(torch.load(buffer, weights_only=True))
        for _ in range(3):
            assert torch.equal(translate(twin, x), expected)
        for p in twin.parameters():
            p.mul_(0.5)
        assert not torch.equal(translate(twin, x), expected)
        assert torch.equal(translate(net, x), expected)


def test_training_keeps_no_weights(way: Way) -> None:
    """An iteration uses each weight of the generator once without a graph, in the discriminator's update."""
    from munit_fast.train.trainer import MUNIT_Trainer

    hp = make_config({"gen": {"dim": 16, "n_res": 1}, "dis": {"dim": 16, "n_layer": 2, "num_scales": 2}}).model_dump()
    trainer = MUNIT_Trainer(hp)
    x_a, x_b = noise(64, 1), noise(64, 2)
    winograd._kept.clear()
    for _ in range(3):
        trainer.update_learning_rate()
        trainer.dis_update(x_a, x_b, hp)
        trainer.gen_update(x_a, x_b, hp)
        for of_one in winograd._kept.values():
            assert all(entry.value is None for entry in of_one.values())


def test_the_number_of_threads_changes_no_bit(way: Way) -> None:
    net, x, before = generator(), noise(72), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            # The sums over a batch in PyTorch's own operators depend on it; the convolutions' results do not.
            with torch.no_grad():
                found.append([net.enc_content(x), *(net.decode(net.enc_content(x), torch.ones(1, 8, 1, 1)),)])
    finally:
        torch.set_num_threads(before)
    for one in found[1:]:
        for got, want in zip(one, found[0]):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_each_instruction_set(way: Way) -> None:
    """One network used with all in turn: kept weights of one never reach another."""
    net, x, chosen = generator(), noise(64), native.module.isa()
    exact = translate(copy.deepcopy(net).double(), x.double())
    try:
        for _ in range(3):
            for isa in native.module.available_isas():
                native.module.set_isa(isa)
                with torch.no_grad():
                    assert relative(translate(net, x), exact) < 1e-5, isa
    finally:
        native.module.set_isa(chosen)

"""The CUDA kernels on a simulated GPU, through the public functions, against the formulas in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import border_cases, oracle, simulated
from helpers.simulated import A100, BACKWARDS, DEVICES, FORWARDS, H100, PARTLY, RTX50, T4, Margins, Simulator
from helpers.tolerances import tolerance
from munit_fast import functional as mf
from munit_fast.ops import backends, cases
from munit_fast.ops.backends import cuda
from munit_fast.ops.cases import EpilogueCase, block_of
from munit_fast.ops.spec import ACTIVATIONS
from munit_fast.reference import epilogue as formulas
from munit_fast.reference import losses as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Channels in whole 16-byte accesses; the oracle's own shapes are for single numbers. Several blocks of channels, one
# pixel more or less than what divides, rows and columns of one, blocks that come out uneven.
WIDE = (
    (2, 8, 7, 9),
    (1, 8, 5, 1),
    (1, 64, 12, 11),
    (3, 16, 4, 6),
    (1, 128, 5, 5),
    (2, 24, 1, 13),
    (1, 72, 9, 2),
    (1, 256, 16, 17),
)
# Sizes at which a thread has more than one pixel, and a device more than one split.
LARGE = ((1, 32, 40, 37), (2, 64, 33, 31), (1, 8, 70, 65))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Simulator:
    return simulated.build_operators(tmp_path_factory.mktemp("operators"))


@pytest.fixture
def margins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Margins]:
    """Every tensor that is made lies between NaNs; the memory that the kernels ask for is NaN too."""
    found, plain = Margins(), torch.empty

    def empty(*size: Any, dtype: Any = torch.float32, device: Any = "cpu", **kw: Any) -> Tensor:
        if torch.device(device).type == "meta":
            return plain(*size, dtype=dtype, device=device, **kw)
        shape = size[0] if isinstance(size[0], (tuple, torch.Size)) else size
        return found.empty(shape, dtype, kw.get("memory_format", torch.contiguous_format))

    lay_out = cases.lay_out
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", lambda t: found.copy(torch.full_like(t, float("nan"))))
    for module in (cases, oracle):
        monkeypatch.setattr(module, "lay_out", lambda values, layout: found.copy(lay_out(values, layout)))
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield found
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def simulator(built: Simulator, monkeypatch: pytest.MonkeyPatch, margins: Margins) -> Iterator[Simulator]:
    """impl="cuda" computes on the simulated GPU, for tensors on the CPU."""
    monkeypatch.setattr(cuda, "unsupported_reason", lambda device, dtype: None)
    monkeypatch.setattr(cuda, "_ops", lambda: torch.ops.munit_fast_simulated)
    backends.choose.cache_clear()
    built.set()
    yield built
    backends.choose.cache_clear()


def _cases(op: str, dtype: torch.dtype, turn: int, layout: str = "channels_last") -> Iterator[EpilogueCase]:
    """One in five of the oracle's grid, as `turn` chooses, and as many of the same epilogues at other sizes.

    The grid has six paddings in turn: a fifth has them all.
    """
    block = block_of(op)
    for i, case in itertools.islice(enumerate(cases.grid(op, dtype, layout)), turn % 5, None, 5):
        n, c, h, w = LARGE[i % len(LARGE)] if i // 5 == turn % 7 else WIDE[(i + turn) % len(WIDE)]
        if case.pad_mode != "reflect" or case.pad < block * min(h, w):
            yield replace(case, shape=(n, c * block**2, h, w))
        if i % 2:
            yield case


WAYS = (("passes", H100), ("slab", H100), ("slab", PARTLY), ("slab", A100), ("best", T4), ("best", RTX50))


@pytest.mark.parametrize(
    ("way", "device"), WAYS, ids=lambda value: value if isinstance(value, str) else list(DEVICES)[value]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_epilogues(
    way: str, device: int, dtype: torch.dtype, simulator: Simulator, margins: Margins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_way", way)
    first = list(WAYS).index((way, device)) + 2 * DTYPES.index(dtype)
    turn, clusters, shared = itertools.count(first), set(), set()
    for i, op in enumerate(cases.OPS):
        for case in _cases(op, dtype, first + i):
            simulator.set(device, next(turn) % 4)
            oracle.check(case, "cuda")
            assert simulator.problem == "", case
            margins.check()
            clusters.add(simulator.largest_cluster)
            shared.add(simulator.largest_shared)
    # Two blocks fit a multiprocessor of a T4, as their registers do.
    assert way != "passes" or max(shared) <= 32 << 10
    most = {H100: 16, PARTLY: 4, RTX50: 8}.get(device, 1)
    assert max(clusters) == (1 if way == "passes" else most)


@pytest.mark.parametrize("name", ["window", "mixed"])
def test_other_layouts(name: str, simulator: Simulator, margins: Margins) -> None:
    """A residual that is a window of a padded tensor is read where it lies; gradients of other layouts are copied."""
    if name != "window":
        for case in itertools.islice(_cases("adain", torch.bfloat16, 0, name), 12):
            oracle.check(case, "cuda")
        return
    for shape, dtype in itertools.product([*WIDE, (2, 5, 7, 9)], DTYPES):
        n, c, h, w = shape
        x = cases.lay_out(torch.randn(shape).to(dtype), "channels_last")
        large = cases.lay_out(torch.randn(n, c, h + 2, w + 2).to(dtype), "channels_last")
        window = large[:, :, 1:-1, 1:-1]
        simulator.set(H100, 2)
        got = mf.instance_norm(x, residual=window, act="relu", pad=1, pad_mode="replicate", impl="cuda")
        expected = mf.instance_norm(x.double(), residual=window.double(), act="relu", pad=1, pad_mode="replicate")
        off = float((got.double() - expected).norm() / expected.norm())
        assert off <= tolerance(dtype, "result", x.numel(), h * w, 1.0), (shape, dtype)
        margins.check()


def test_far_from_the_centre(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a mean of 1000 deviations the bounds leave no room for E[x²] - E[x]²."""
    for way, op in itertools.product(("passes", "slab"), ("instance", "layer_affine", "group")):
        monkeypatch.setattr(cuda, "_way", way)
        for shape in (*WIDE, *LARGE):
            oracle.check(
                EpilogueCase(op, shape, torch.float32, "channels_last", "relu", 1, "zero", mean=1000, std=1), "cuda"
            )


@pytest.mark.parametrize("way", ["passes", "slab"])
def test_the_mean_to_its_last_digit(way: str, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding alone is 1.8e-8 here; plain sums are 4e-8 to 8e-8 off. The spread: 3e-6, and 6e-2 by E[x²] - E[x]²."""
    torch.manual_seed(0)
    monkeypatch.setattr(cuda, "_way", way)
    for norm, shape in itertools.product(("instance", "layer", "group"), LARGE):
        x = (torch.randn(shape) + 1000).contiguous(memory_format=torch.channels_last)
        groups = 4 if norm == "group" else 1
        flags = (norm, 1e-5, "none", 0.0, 1, 0, "zero", groups, "cuda")
        _, stats = torch.ops.munit_fast.epilogue(x, *[None] * 4, *flags)
        expected = formulas.statistics(x.double(), norm, groups)
        assert float((stats[0] - expected[0]).norm() / expected[0].norm()) <= 3.5e-8, (norm, shape)
        assert float((stats[1] - expected[1]).norm() / expected[1].norm()) <= 1e-5, (norm, shape)


def _epilogue(case: EpilogueCase) -> Callable[[], list[Tensor]]:
    inputs = cases.make_tensors(case)
    leaves = [t for t in inputs if t is not None]
    upstream: list[Tensor] = []

    def run() -> list[Tensor]:
        y = oracle.run(case, inputs, "cuda")
        if not upstream:
            upstream.append(torch.randn(y.shape).to(y.dtype).contiguous(memory_format=torch.channels_last))
        return [y.detach(), *torch.autograd.grad(y, leaves, upstream[0])]

    return run


def _pairs(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Some elements are equal: sign(0) = 0."""
    pairs = [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for shape in shapes]
    for a, b in pairs:
        a.view(-1)[::5] = b.view(-1)[::5]
    return pairs


def _losses(size: int) -> Callable[[], list[Tensor]]:
    first, second = zip(*_pairs([(1, 3, size, size), (7,), (2, 33)], torch.bfloat16))
    grad = torch.tensor([1.0, -2.0, 3.0])

    def run() -> list[Tensor]:
        value, grads = torch.empty(3), [torch.empty_like(t) for t in (*first, *second)]
        cuda.run_l1(first, second, value, grad, grads)
        return [value, *grads, cuda.lsgan_loss(list(first), 1.0)]

    return run


def _border(shape: tuple[int, int, int, int], out: int) -> Callable[[], list[Tensor]]:
    a, weight, y, grad, grad_a = border_cases.make_case(shape, out, torch.bfloat16, torch.float32)

    def run() -> list[Tensor]:
        found = y.clone(), grad_a.clone(), torch.empty_like(weight)
        cuda.phase_border(found[0], a, weight)
        cuda.phase_border_backward(grad, a, weight, *found[1:])
        return list(found)

    return run


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(1e9), y.nan_to_num(1e9)) for x, y in zip(a, b, strict=True))


RUNS: dict[str, tuple[str, int, Callable[[], Callable[[], list[Tensor]]]]] = {
    "instance, passes": ("passes", H100, lambda: _epilogue(_case("instance_affine"))),
    "layer, passes": ("passes", H100, lambda: _epilogue(_case("layer_affine"))),
    "no norm": ("passes", H100, lambda: _epilogue(_case("bias_act"))),
    "instance, cluster": ("slab", H100, lambda: _epilogue(_case("adain"))),
    "layer, cluster": ("slab", H100, lambda: _epilogue(_case("layer_affine"))),
    "instance, one block": ("slab", A100, lambda: _epilogue(_case("instance"))),
    "losses, cluster": ("best", H100, lambda: _losses(90)),
    "losses, combined": ("best", T4, lambda: _losses(90)),
    "phase border": ("best", T4, lambda: _border((1, 3, 3, 4), 2)),
}


def _case(op: str) -> EpilogueCase:
    # Two blocks of 64 channels, the second not full.
    return EpilogueCase(
        op, (1, 96 if op != "layer_affine" else 128, 23, 19), torch.bfloat16, "channels_last", "prelu", 1
    )


@pytest.mark.parametrize("name", RUNS)
def test_the_same_bits_in_every_order_of_threads(
    name: str, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, device, make = RUNS[name]
    monkeypatch.setattr(cuda, "_way", way)
    run = make()
    simulator.set(device)
    expected = run()
    for schedule in range(1, 8):
        simulator.set(device, schedule)
        assert _same(run(), expected) and simulator.problem == ""


# Barriers (launch, number) whose removal no order of threads can show, with the reason.
SURVIVE: dict[str, dict[tuple[int, int], str]] = {
    "no norm": {
        (2, 1): "the third launch only adds up sums: what reads the table behind it has no pixels",
        (2, 2): "as before",
    },
    "phase border": {
        (0, 29): "behind the last product, whose factors nobody writes over",
        (1, 55): "as before",
    },
    "layer, cluster": {
        (
            0,
            6,
        ): "behind it lies an estimate of the mean, which is corrected by exact sums: a wrong one costs digits only"
    },
}


# A block of its own is the same code, with no other block to wait for.
@pytest.mark.parametrize("name", [name for name in RUNS if name != "instance, one block"])
def test_every_barrier_is_needed(name: str, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one of them some order of threads gives another result, or the device complains."""
    way, device, make = RUNS[name]
    monkeypatch.setattr(cuda, "_way", way)
    run = make()
    simulator.set(device)
    expected = run()
    barriers = simulator.barriers
    assert barriers and min(barriers) > 0
    survivors = []
    for launch, count in enumerate(barriers):
        for barrier in range(count):
            for schedule in (FORWARDS, BACKWARDS, 2, 3, 4, 5):
                simulator.set(device, schedule, launch, barrier)
                if not _same(run(), expected) or simulator.problem:
                    break
            else:
                survivors.append((launch, barrier))
    assert survivors == list(SURVIVE.get(name, {})), barriers


@pytest.mark.parametrize("device", [H100, T4], ids=["cluster", "combined"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_losses(dtype: torch.dtype, device: int, simulator: Simulator, margins: Margins) -> None:
    shapes = [(1, 3, 64, 64), (1, 8, 1, 1), (7, 101), (2, 33, 5), (1,), (4, 4096), (17,), (3, 5), (2, 9), (40, 4)]
    pairs = _pairs(shapes, dtype)
    # One that does not begin at a multiple of 16 bytes, and one whose tail is no whole access.
    pairs[2] = tuple(margins.empty((708,), dtype, torch.contiguous_format)[1:].copy_(t.view(-1)) for t in pairs[2])
    simulator.set(device, 2)
    first, second = ([t.detach().requires_grad_() for t in side] for side in zip(*pairs))
    loss = mf.l1_losses(list(zip(first, second)), impl="cuda")
    wide_first, wide_second = ([t.detach().double().requires_grad_() for t in side] for side in zip(*pairs))
    expected = reference.l1_losses(wide_first, wide_second)
    assert loss.dtype == torch.float32
    length = max(a.numel() for a in first)
    bound = tolerance(dtype, "loss", len(first), length, stored=torch.float32)
    assert float((loss.double() - expected).detach().norm() / expected.detach().norm()) <= bound
    grad = 1000 * torch.randn(len(first))
    got = torch.autograd.grad(loss, [*first, *second], grad)
    wanted = torch.autograd.grad(expected, [*wide_first, *wide_second], grad.double())
    for g, w in zip(got, wanted):
        # One size of numbers with either sign: few roundings, which do not average out.
        assert float((g.double() - w).norm()) <= tolerance(dtype, "grad", 1) * float(w.norm())

    for target in (0.0, 1.0):
        value = mf.lsgan_loss(first, target, impl="cuda")
        wide_value = reference.lsgan_loss(wide_first, target)
        assert float((value.double() - wide_value).detach().abs() / wide_value.detach()) <= bound
        got = torch.autograd.grad(value, first, torch.tensor(-1.7))
        wanted = torch.autograd.grad(wide_value, wide_first, torch.tensor(-1.7, dtype=torch.float64))
        for g, w in zip(got, wanted):
            assert float((g.double() - w).norm()) <= tolerance(dtype, "grad", g.numel()) * float(w.norm())
    margins.check()
    assert simulator.problem == ""


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_phase_border(dtype: torch.dtype, simulator: Simulator, margins: Margins) -> None:
    for i, (shape, out) in enumerate((*border_cases.SHAPES, *border_cases.LARGE)):
        weight_dtype = dtype if i % 2 else torch.float32
        case = border_cases.make_case(shape, out, dtype, weight_dtype, i % 3 == 0, margins.copy)
        simulator.set(T4 if i % 2 else H100, i % 4)
        border_cases.check(cuda, case, rounds_factors=False)
        assert len(simulator.barriers) == 2 and simulator.problem == ""
        margins.check()


def test_phase_border_of_what_is_needed(simulator: Simulator) -> None:
    make = border_cases.make_case
    border_cases.check_single_gradients(cuda, make((2, 5, 7, 20), 3, torch.float32, torch.float32))
    border_cases.check_not_a_number(cuda, make((2, 5, 7, 8), 3, torch.float32, torch.float32))
    none = make((0, 5, 4, 6), 3, torch.float32, torch.float32)
    grad_weight = torch.empty_like(none.weight)
    cuda.phase_border_backward(none.grad, none.a, none.weight, none.grad_a, grad_weight)
    assert not grad_weight.any()


def test_value_and_gradient_in_one_launch(simulator: Simulator) -> None:
    first, second = zip(*_pairs([(1, 3, 64, 64)] * 8, torch.float32))
    grad, value, grads = torch.randn(8), torch.empty(8), [torch.empty_like(t) for t in (*first, *second)]
    simulator.set(H100)
    cuda.run_l1(first, second, value, grad, grads)
    assert len(simulator.barriers) == 1
    torch.testing.assert_close(value, reference.l1_losses(first, second))
    for got, other, wanted in zip(grads, grads[8:], reference.l1_losses_backward(grad, first, second)):
        torch.testing.assert_close(got, wanted)
        assert torch.equal(other, -got)


@pytest.mark.parametrize(
    ("shape", "norm", "device", "launches", "cluster"),
    [
        ((1, 64, 32, 32), "instance", H100, 1, 8),  # a block for each of its 8 multiprocessors
        ((1, 64, 64, 64), "instance", A100, 1, 1),  # 32 bytes of 4096 pixels fit a block of 163 KB
        ((1, 64, 64, 64), "instance", T4, 2, 1),  # not one of 64 KB
        ((8, 64, 16, 16), "instance", A100, 1, 1),  # a plane of 16×16 by 64 channels fits a block
        ((1, 64, 32, 32), "layer", H100, 1, 8),
        ((1, 60, 32, 32), "instance", H100, 2, 1),  # 60 channels of bfloat16 are no whole accesses
    ],
)
def test_which_way(
    shape: tuple[int, int, int, int], norm: str, device: int, launches: int, cluster: int, simulator: Simulator
) -> None:
    function = mf.instance_norm if norm == "instance" else mf.layer_norm2d
    x = torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)
    simulator.set(device)
    function(x, impl="cuda")
    assert (len(simulator.barriers), simulator.largest_cluster) == (launches, cluster)


@pytest.mark.parametrize("channels", [5, 8])
def test_results_are_rounded_to_nearest_even(channels: int, simulator: Simulator) -> None:
    """Many sums of two short numbers lie half way between two others."""
    for dtype in DTYPES[1:]:
        x, residual = (torch.randn(2, channels, 31, 33).to(dtype) for _ in range(2))
        x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
        got = mf.bias_act(x, residual=residual, impl="cuda")
        assert torch.equal(got, (x.float() + residual.float()).to(dtype))


def test_special_values(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a number stays in its plane, or its sample; infinities act as in the formulas."""
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    x[0, 3, 2, 2] = float("nan")
    for way in ("passes", "slab"):
        monkeypatch.setattr(cuda, "_way", way)
        assert mf.instance_norm(x, act="relu", impl="cuda").isnan().flatten(2).any(2).nonzero().tolist() == [[0, 3]]
        bad = mf.layer_norm2d(x, act="lrelu", impl="cuda").isnan().flatten(1)
        assert bad[0].all() and not bad[1].any()
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1e30, 1e-30]).view(1, 1, 1, 8)
    for act in (act for act in ACTIVATIONS if act != "prelu"):
        got, wanted = mf.bias_act(values, act=act, impl="cuda"), oracle.exact_activation(values.double(), act).float()
        torch.testing.assert_close(got, wanted, equal_nan=True)
        leaf = values.clone().requires_grad_()
        (got,) = torch.autograd.grad(mf.bias_act(leaf, act=act, impl="cuda"), leaf, torch.ones_like(leaf))
        wanted, _, _ = formulas.epilogue_backward(torch.ones_like(leaf), values, torch.empty(2, 0), act=act)
        torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
def test_gelu_keeps_its_digits(act: str, simulator: Simulator) -> None:
    """Relative to each value; far below zero, a rounding of the exponent becomes one of the value."""
    x = torch.linspace(-9, 9, 4096).view(1, 8, 16, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    double = x.detach().double().requires_grad_()
    y, exact = mf.bias_act(x, act=act, impl="cuda"), oracle.exact_activation(double, act)
    (got,) = torch.autograd.grad(y, x, torch.ones_like(y))
    (wanted,) = torch.autograd.grad(exact, double, torch.ones_like(exact))
    assert ((y - exact) / exact / (1 + (double * wanted / exact).abs())).abs().max() < 12 * 2**-24
    assert (got - wanted).abs().max() < 8 * 2**-24

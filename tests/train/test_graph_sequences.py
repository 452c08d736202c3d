"""What else a run does while it trains in CUDA graphs, on a fake CUDA: the numbers stay those of eager updates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import fake_cuda
from helpers.fake_cuda import FakeCuda
from helpers.trainers import hyperparameters, parameters
from munit_fast import reference
from munit_fast.train import cuda_graph
from munit_fast.train import trainer as trainers
from munit_fast.train.noise import iteration_noise

KINDS = ["MUNIT_Trainer", "UNIT_Trainer"]
SMALL, LARGE = (32, 40), (48, 32)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch)


class Run:
    """A trainer and an eager one beside it, which do the same."""

    def __init__(
        self, cuda: FakeCuda, kind: str = "MUNIT_Trainer", vgg: bool = False, amp: str = "off", **over: Any
    ) -> None:
        # A learning rate that float32, in which a graph reads it, holds to the bit.
        self.cuda, self.hp, self.iteration = cuda, hyperparameters(recon_x_cyc_w=1, lr=2**-10, **over), 0
        self.trainers: list[Any] = []
        for _ in range(2):
            torch.manual_seed(0)
            self.trainers.append(getattr(trainers, kind)(self.hp, amp=amp))
        if vgg:
            self.hp = self.hp | {"vgg_w": 0.1}
            torch.manual_seed(1)
            network = reference.perceptual.Vgg16().requires_grad_(False)
            for trainer in self.trainers:
                trainer.vgg = network
        self.graphed, self.eager = self.trainers
        cuda.modules.append(self.graphed)

    def _inputs(self, size: tuple[int, int]) -> Any:
        self.iteration += 1
        x_a, x_b = torch.rand(2, 1, 3, *size, generator=torch.Generator().manual_seed(self.iteration)) * 2 - 1
        return x_a, x_b, iteration_noise(self.eager, x_a, x_b, 0, self.iteration, 0)

    def update(self, count: int = 1, size: tuple[int, int] = SMALL) -> None:
        for _ in range(count):
            x_a, x_b, noise = self._inputs(size)
            self.graphed.update(x_a, x_b, self.hp, noise)
            self.eager.update_learning_rate()
            self._published(self.eager, "dis gen", x_a, x_b, noise)
            self.eager.update_average(1)

    def eager_updates(self, which: str) -> None:
        x_a, x_b, noise = self._inputs(SMALL)
        for trainer in self.trainers:
            self._published(trainer, which, x_a, x_b, noise)
        self.cuda.mark()

    def _published(self, trainer: Any, which: str, x_a: Tensor, x_b: Tensor, noise: Any) -> None:
        for kind, drawn in zip(("dis", "gen"), noise):
            if kind in which:
                getattr(trainer, f"{kind}_update")(x_a, x_b, self.hp, drawn)

    def translate(self) -> None:
        x = torch.rand(1, 3, *SMALL)
        for trainer in self.trainers:
            trainer.sample(x, x)
            trainer.gen_a.train()(x)  # with a graph of its own, which nobody holds
        self.cuda.mark()

    def check(self, graphs: int = 1) -> None:
        assert self.graphed._graphs.failure is None
        captured = [step for step in self.graphed._graphs.by_key.values() if step.graph is not None]
        assert len(captured) == graphs and self.cuda.replays > 0
        self.compare()

    def compare(self) -> None:
        assert torch.equal(parameters(self.graphed), parameters(self.eager))
        for name, value in vars(self.eager).items():
            if name.startswith("loss_"):
                assert float(getattr(self.graphed, name)) == float(value), name


@pytest.mark.parametrize("kind", KINDS)
def test_replays_are_eager_iterations(cuda: FakeCuda, kind: str) -> None:
    run = Run(cuda, kind)
    run.update(cuda_graph.WARM_UP + 3)
    assert cuda.replays == 3
    run.check()


@pytest.mark.parametrize("which", ["dis gen", "dis", "gen"])
@pytest.mark.parametrize(("kind", "amp"), [*((kind, "off") for kind in KINDS), ("MUNIT_Trainer", "bf16")])
def test_after_eager_updates(cuda: FakeCuda, kind: str, amp: str, which: str) -> None:
    """What they leave on the trainer holds no node that sums gradients on the stream of theirs."""
    run = Run(cuda, kind, amp=amp)
    run.eager_updates(which)
    run.update(cuda_graph.WARM_UP + 2)
    run.check()
    run.eager_updates(which)
    run.update(2)
    run.check()
    assert cuda.replays == 4


def test_losses_hold_no_graph(cuda: FakeCuda) -> None:
    run = Run(cuda)
    run.eager_updates("dis gen")
    losses = {name: value for name, value in vars(run.graphed).items() if name.startswith("loss_")}
    assert len(losses) > 10
    assert not any(isinstance(value, Tensor) and value.requires_grad for value in losses.values())


def test_another_size_shares_stream_and_memory(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[Any] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams.append(device) or fake_cuda.Stream(device))
    run = Run(cuda)
    run.update(cuda_graph.WARM_UP + 1)
    run.update(cuda_graph.WARM_UP + 1, LARGE)
    run.update(2)
    run.update(2, LARGE)
    run.check(graphs=2)
    assert len(cuda.pools) == 2 and cuda.pools[0] is cuda.pools[1]
    assert len(streams) == 1


def test_a_translation_in_between(cuda: FakeCuda) -> None:
    run = Run(cuda)
    for _ in range(cuda_graph.WARM_UP + 3):
        run.translate()
        run.update()
    run.check()


def test_everything_in_one_run(cuda: FakeCuda) -> None:
    run = Run(cuda)
    run.eager_updates("dis gen")
    run.update(cuda_graph.WARM_UP + 1)
    run.translate()
    run.update(cuda_graph.WARM_UP + 2, LARGE)
    run.eager_updates("dis")
    run.update(2)
    run.check(graphs=2)


def test_a_perceptual_loss(cuda: FakeCuda) -> None:
    run = Run(cuda, vgg=True)
    run.update(cuda_graph.WARM_UP + 2)
    run.check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_capture_that_cannot_be_ended(cuda: FakeCuda, kind: str) -> None:
    """The current stream and the memory are as before, the reason is stated, and the run goes on eagerly."""
    run = Run(cuda, kind)
    run.update(cuda_graph.WARM_UP)
    cuda.fail = "operation failed due to a previous error during capture"
    run.update(2)
    assert cuda.current is cuda.default
    assert len(cuda.released) == 1 and cuda.released == cuda.pools
    assert run.graphed._graphs.failure.endswith(f": {cuda.fail}") and not run.graphed._graphs.by_key
    assert run.graphed.iterations == cuda_graph.WARM_UP + 2
    run.compare()


def test_a_kernel_that_does_not_compile_ends_in_a_stated_fallback(cuda: FakeCuda) -> None:
    """Some are launched for the first time by a capture, on a machine where they cannot be."""
    run = Run(cuda)
    run.eager_updates("dis gen")
    cuda.refused = {"l1_losses_backward": "Failed to find C compiler. Please specify via CC environment variable."}
    cuda.fail = "operation failed due to a previous error during capture"
    run.update(cuda_graph.WARM_UP + 2)
    assert run.graphed._graphs.failure.endswith(f": {cuda.refused['l1_losses_backward']}")
    assert cuda.current is cuda.default and cuda.released == cuda.pools
    run.compare()


def test_what_broke_a_capture_is_what_is_said(cuda: FakeCuda) -> None:
    """Not that it could not be ended afterwards; and what is no fault of the capture goes through."""
    cuda.fail = "operation failed due to a previous error during capture"

    def failing(error: BaseException) -> Callable[[], None]:
        def work() -> None:
            raise error

        return work

    device = torch.device("cuda", 0)
    with pytest.raises(cuda_graph.CaptureError, match=r"^Failed to find C compiler\.$"):
        cuda_graph.capture(failing(RuntimeError("Failed to find C compiler.\nMore")), device)
    with pytest.raises(KeyboardInterrupt):
        cuda_graph.capture(failing(KeyboardInterrupt()), device)
    with pytest.raises(ValueError, match="2×2"):
        cuda_graph.capture(failing(ValueError("content must be at least 2×2")), device)
    assert cuda.current is cuda.default and len(cuda.released) == 3


def test_a_capture_in_memory_of_another(cuda: FakeCuda) -> None:
    x = torch.ones(3)
    device = torch.device("cuda", 0)
    first, y = cuda_graph.capture(lambda: x + 1, device)
    second, z = cuda_graph.capture(lambda: x * 4, device, first.pool())
    assert cuda.pools[0] is cuda.pools[1]
    x.fill_(2)
    first.replay()
    second.replay()
    assert y.tolist() == [3] * 3 and z.tolist() == [8] * 3


def test_the_capture_stream_and_the_callers_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are copied before an iteration reads them, and its results are there before the caller reads them."""
    said: list[str] = []

    class Named(fake_cuda.Stream):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def wait_stream(self, other: Any) -> None:
            said.append(f"{self.name} waits for {other.name}")

    streams = {"graph": Named("graph"), "caller": Named("caller")}
    monkeypatch.setattr(cuda_graph, "capture_stream", lambda device: streams["graph"])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: streams["caller"])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    x = torch.zeros(1, 3, 4, 4)
    step = cuda_graph.StepGraph(lambda *_: said.append("iteration"), x, x, [])
    for _ in range(cuda_graph.WARM_UP):
        said.clear()
        step.run(x, x, [])
        assert said == ["graph waits for caller", "iteration", "caller waits for graph"]


def test_spectral_norm_trains_in_a_graph(cuda: FakeCuda) -> None:
    """Its vectors are written in place, where each replay finds them."""
    run = Run(cuda, dis={"norm": "sn"})
    run.update(7)
    run.check()
    vectors = [p for name, p in run.graphed.named_parameters() if name.endswith("weight_u")]
    before = [p.clone() for p in vectors]
    run.update()
    assert len(vectors) > 2 and not any(torch.equal(p, b) for p, b in zip(vectors, before) if p.numel() > 1)


def test_precision_changes_and_comes_back(cuda: FakeCuda) -> None:
    """A graph from before still has the copies and gradients that it was captured with."""
    run = Run(cuda, amp="bf16")
    for amp in ("bf16", "off", "bf16"):
        for trainer in run.trainers:
            trainer.amp = amp
        run.update(cuda_graph.WARM_UP + 2)
    run.check(graphs=2)
    before = [p.grad.clone() for p in run.graphed.gen_a.parameters()]
    run.update()
    assert any(not torch.equal(p.grad, b) for p, b in zip(run.graphed.gen_a.parameters(), before, strict=True))


@pytest.mark.parametrize(("operation", "count"), [("convolution_backward", 60), ("avg_pool2d_backward", 2)])
def test_a_capture_that_fails_in_the_backward(
    cuda: FakeCuda, operation: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some copies of the weights have their gradients."""
    run, seen = Run(cuda, amp="bf16"), []
    dispatch = fake_cuda._Recorder.__torch_dispatch__

    def failing(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen.append(func.overloadpacket.__name__)
        if seen.count(operation) == count:
            raise RuntimeError(fake_cuda.REFUSED)
        return dispatch(self, func, types, args, kwargs)

    monkeypatch.setattr(fake_cuda._Recorder, "__torch_dispatch__", failing)
    run.update(cuda_graph.WARM_UP + 2)
    assert run.graphed._graphs.failure is not None and seen.count(operation) == count
    run.compare()

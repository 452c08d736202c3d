"""What `--amp auto` and `--threads 0` decide, from measurements that these tests make up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from helpers.runs import run
from munit_fast import amp as precision
from munit_fast import make_config
from munit_fast.amp import Measured, Workload
from munit_fast.ops import conv_plans
from munit_fast.train import speed
from munit_fast.train import trainer as trainers
from munit_fast.train.setup import RunSetup

CPU = torch.device("cpu")
BF16_FASTER, FP32_FASTER = Measured(8.0, 4.0, 1.0, 0.5), Measured(4.0, 8.0, 0.5, 1.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Workload]:
    """A processor with bfloat16 on which it is faster; the workloads that are asked about."""
    asked: list[Workload] = []
    monkeypatch.setattr(precision, "bf16_hardware", lambda device: True)
    monkeypatch.setattr(precision, "measure", lambda load: asked.append(load) or BF16_FASTER)
    return asked


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.amp_dtype("bf16", CPU) == torch.bfloat16
    assert precision.amp_dtype("fp16", CPU) == torch.float16
    assert precision.amp_dtype("off", CPU) is None
    with pytest.raises(ValueError, match=r"^amp .*'half'"):
        precision.resolve("half", CPU)
    monkeypatch.setattr(precision, "bf16_hardware", lambda device: False)
    assert precision.resolve("auto", CPU) == "off"


@pytest.mark.parametrize(("found", "expected"), [(BF16_FASTER, "bf16"), (FP32_FASTER, "off")])
def test_auto_takes_the_faster_one(
    found: Measured, expected: str, measured: list[Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "measure", lambda load: found)
    assert precision.resolve("auto", CPU) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Measured(8.0, 4.0, 1.0, 9.0), "bf16"),  # the convolution decides
        (Measured(8.0, 4.0, 1.0, 9.0, True), "bf16"),
        (Measured(8.0, 7.9, 9.0, 1.0, True), "off"),  # a plan makes up for the product
        (Measured(4.0, 8.0, 9.0, 1.0), "off"),
        (Measured(4.0, 4.2, 9.0, 1.0), "bf16"),  # unless both are alike
        (Measured(4.2, 4.0, 1.0, 9.0), "off"),
    ],
)
def test_the_product_counts_where_convolutions_are_alike(found: Measured, expected: str) -> None:
    assert found.faster == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_timed_is_the_convolution_of_the_workload(dtype: torch.dtype) -> None:
    y = precision.convolution(Workload(2, 3, 5, 6, False), dtype)()
    assert isinstance(y, torch.Tensor) and y.shape == (2, 3, 5, 6) and y.dtype == dtype
    grad_x, grad_k, grad_b = precision.convolution(Workload(2, 3, 5, 6, True), dtype)()  # type: ignore[misc]
    assert grad_x.shape == (2, 3, 5, 6) and grad_k.shape == (3, 3, 3, 3) and grad_b is None
    assert grad_x.dtype == grad_k.dtype == dtype and float(grad_x.abs().sum()) > 0 < float(grad_k.abs().sum())
    for load in (Workload(), Workload(64, 16, 512, 512), Workload(1, 2048, 8, 8)):
        n, c, h, w = precision.convolution(load._replace(training=False), dtype)().shape  # type: ignore[attr-defined]
        assert 9 * c * c * n * h * w <= 2 * precision._MAX_MACS


@pytest.mark.parametrize("training", [False, True])
def test_what_is_timed_goes_the_way_that_the_networks_go(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Workload(1, 16, 8, 8, training)
    shape = conv_plans.ConvShape(3, 1, 16, 16, 1, 8, 8, torch.float32, not training)
    plan = conv_plans.serving_plan(shape)
    if plan is None:
        pytest.skip("no Winograd convolutions here")
    found = []
    for plans in (conv_plans.DIRECT, conv_plans.Plans(plan, plan)):
        monkeypatch.setattr(conv_plans, "choose", lambda shape, plans=plans: plans)
        found.append(precision.convolution(load, torch.float32)())
    direct, planned = ((one if training else (one,)) for one in found)
    for a, b in zip(direct, planned):
        if a is not None:
            assert not torch.equal(a, b)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_measuring_asks_nothing_of_the_default_device() -> None:
    with torch.device("meta"):
        found = precision.measure.__wrapped__(Workload(1, 4, 8, 8))
        assert min(found.conv_fp32, found.conv_bf16, found.product_fp32, found.product_bf16) > 0


def test_the_clock_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of several rounds counts, each with its own dtype."""
    seconds = {torch.float32: iter([9.0, 2.0, 9.0] * 99), torch.bfloat16: iter([3.0, 9.0, 9.0] * 99)}
    kinds: list[torch.dtype] = []

    def clocked(run: Any) -> float:
        result = run()
        assert torch.get_num_threads() == 1
        dtype = (result[0] if isinstance(result, tuple) else result).dtype
        kinds.append(dtype)
        return next(seconds[dtype]) / 1e6  # the budget is in real seconds

    monkeypatch.setattr(precision, "_seconds", clocked)
    torch.set_num_threads(2)
    try:
        found = precision.measure.__wrapped__(Workload(1, 4, 8, 8))
    finally:
        torch.set_num_threads(1)
    assert kinds[:4] == [torch.float32, torch.bfloat16] * 2
    assert (found.conv_fp32, found.conv_bf16) == pytest.approx((2e-3, 3e-3))
    assert found.faster == "off"


@pytest.mark.parametrize(
    "load", [Workload(1, 4, 8, 8), Workload(2, 6, 1, 1, False), Workload(1, 2048, 2, 4), Workload(64, 16, 512, 512)]
)
def test_measuring_leaves_everything_as_it_was(load: Workload) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            found = precision.measure(load)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert min(found.conv_fp32, found.conv_bf16, found.product_fp32, found.product_bf16) > 0
    assert precision.measure(load) is found  # once a process


def test_the_workload_is_the_configurations() -> None:
    hp = {"gen": {"dim": 8, "n_downsample": 3}, "crop_image_height": 128, "crop_image_width": 64}
    assert Workload.of(hp, 4, True) == Workload(4, 64, 16, 8, True)
    assert Workload.of(make_config(hp), 4, True) == Workload(4, 64, 16, 8, True)
    assert Workload.of({}, 1, True) == Workload()
    assert Workload.of(hp | {"crop_image_height": 8}, 1, False) == Workload(1, 64, 1, 8, False)


def test_trainers_measure_their_own_sizes(small_config: dict[str, Any], measured: list[Workload]) -> None:
    trainer = trainers.MUNIT_Trainer(make_config(small_config).hyperparameters(), amp="auto")
    assert trainer._amp_dtype() == torch.bfloat16
    assert measured == [Workload(1, 16, 8, 8, True)]


# ---- runs


def amp_of(result: Any) -> str:
    state = torch.load(sorted(result.folder.checkpoints.glob("resume_*.pt"))[-1], weights_only=True)
    return str(state["notes"]["amp"])


def test_a_resumed_run_computes_as_it_began(
    small_config: dict[str, Any],
    picture_folders: Path,
    tmp_path: Path,
    measured: list[Workload],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert amp_of(run(small_config, picture_folders, tmp_path, amp="auto")) == "bfloat16"
    assert measured == [Workload(1, 16, 8, 8, True)]
    monkeypatch.setattr(precision, "measure", lambda load: FP32_FASTER)
    longer = small_config | {"max_iter": 6}
    assert amp_of(run(longer, picture_folders, tmp_path, amp="auto", resume=True)) == "bfloat16"
    # What the command line says comes first, and a new run measures anew.
    assert amp_of(run(longer | {"max_iter": 8}, picture_folders, tmp_path, amp="off", resume=True)) == "off"
    assert amp_of(run(small_config, picture_folders, tmp_path / "new", amp="auto")) == "off"


class FakeRanks:
    """One rank of two, whose main rank found `found`; or the main rank itself."""

    def __init__(self, found: bytes | None = None) -> None:
        self.main, self.size, self.found = found is None, 1 if found is None else 2, found

    def broadcast(self, data: bytes) -> bytes:
        assert data == b"" or self.main
        return data if self.found is None else self.found


def chosen(config: dict[str, Any], ranks: FakeRanks, notes: dict[str, Any], **options: Any) -> tuple[str, str]:
    """The precision of a run that goes on from these notes, and of its trainer."""

    class Trainer:
        amp = "auto"

    started: Any = object.__new__(RunSetup)
    started.ranks, started.trainer, started.cfg, started.batch_size = ranks, Trainer(), make_config(config), 1
    started.options = replace(_options(), amp="auto", **options)
    started._choose_precision_and_threads(notes)
    return started.options.amp, started.trainer.amp


def test_every_rank_takes_what_the_main_rank_found(small_config: dict[str, Any], measured: list[Workload]) -> None:
    assert chosen(small_config, FakeRanks(b"off"), {}) == ("off", "off")
    assert measured == []


@pytest.mark.parametrize(
    ("notes", "options", "expected"),
    [
        ({"amp": "float16", "device": "cpu"}, {}, "fp16"),
        ({"amp": "off"}, {}, "off"),  # a state from before the device was kept
        ({"amp": "off", "device": "cuda"}, {}, "bf16"),  # what was fast there says nothing here
        ({"amp": "float16", "device": "cpu"}, {"impl": "reference"}, "bf16"),  # which has no loss scaling
        ({"amp": ["off"]}, {}, "bf16"),
    ],
)
def test_which_kept_precision_is_taken(
    small_config: dict[str, Any], measured: list[Workload], notes: Any, options: Any, expected: str
) -> None:
    assert chosen(small_config, FakeRanks(), notes, **options) == (expected, expected)


def _options() -> Any:
    from munit_fast.train import TrainOptions

    return TrainOptions("small")


# ---- threads


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("best", [4, 1])
def test_the_fastest_number_of_threads(
    best: int, small_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_speed", lambda iterate, seconds: 2.0 if torch.get_num_threads() == best else 1.0)
    cfg = make_config(small_config)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = speed.choose_threads(
        lambda: trainers.MUNIT_Trainer(cfg.hyperparameters()), cfg, CPU, Console(quiet=True), 0.0
    )
    assert (found, torch.get_num_threads()) == (2.0, best)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("four_threads")
def test_which_threads_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.threads_to_try(CPU) == [4, 1]
    assert speed.threads_to_try(torch.device("cuda")) == [4]
    torch.set_num_threads(16)
    assert speed.threads_to_try(CPU) == [16, 4, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert speed.threads_to_try(CPU) == [16]


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("alone", "best"), [(3.0, 1), (1.4, 4), (0.5, 4)])
def test_large_networks_time_a_convolution(alone: float, best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that passes must be worth giving threads up for days."""
    now = [0.0]

    def run() -> None:
        now[0] += 1 / alone if torch.get_num_threads() == 1 else 1.0

    monkeypatch.setattr(speed, "convolution", lambda load, dtype, macs: run)
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    found = speed.choose_threads(lambda: pytest.fail("made a trainer"), make_config({}), CPU, Console(quiet=True))
    assert (found, torch.get_num_threads()) == (None, best)


@pytest.mark.usefixtures("four_threads")
def test_a_resumed_run_keeps_its_threads(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_speed", lambda iterate, seconds: 1 / torch.get_num_threads())
    run(small_config, picture_folders, tmp_path, threads=0)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(4)
    monkeypatch.setattr(speed, "_speed", lambda iterate, seconds: pytest.fail("measured again"))
    run(small_config | {"max_iter": 6}, picture_folders, tmp_path, threads=0, resume=True)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)  # another machine: what was found for four says nothing
    monkeypatch.setattr(speed, "_speed", lambda iterate, seconds: float(torch.get_num_threads()))
    run(small_config | {"max_iter": 8}, picture_folders, tmp_path, threads=0, resume=True)
    assert torch.get_num_threads() == 2
    run(small_config | {"max_iter": 10}, picture_folders, tmp_path, threads=3, resume=True)
    assert torch.get_num_threads() == 3


def test_the_library_leaves_the_threads_alone(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_speed", lambda iterate, seconds: pytest.fail("measured"))
    run(small_config, picture_folders, tmp_path)
    assert torch.get_num_threads() == 1


def test_bfloat16_is_a_matter_of_the_gpu_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, which is the current one, has it; the second has not."""
    capabilities = {None: (9, 0), 0: (9, 0), 1: (7, 5)}
    properties = {index: SimpleNamespace(major=major, minor=minor) for index, (major, minor) in capabilities.items()}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties[_index(device)])
    for name, amp in (("cuda", "bf16"), ("cuda:0", "bf16"), ("cuda:1", "off")):
        assert precision.resolve("auto", torch.device(name)) == amp
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not precision.bf16_hardware(torch.device("cuda"))


def _index(device: torch.device | int | None) -> int | None:
    return device.index if isinstance(device, torch.device) else device

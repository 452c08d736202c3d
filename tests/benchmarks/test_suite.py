"""The benchmark suite: what it times is right before it is timed, and what is written of it is what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from helpers.bench import QUICK, quiet, row
from munit_fast.benchmarks import (
    SETS,
    Case,
    contenders_exported,
    contenders_ops,
    contenders_training,
    machine,
    report,
    rows,
    run,
    runner,
    select,
    timing,
)
from munit_fast.benchmarks.cases import HEADLINES, LEVELS
from munit_fast.benchmarks.compare import compare
from munit_fast.benchmarks.contenders import (
    FROZEN,
    ONNX_RUNTIME,
    OPENVINO,
    OURS,
    PUBLISHED,
    Contender,
    Unavailable,
    Work,
    frozen,
)
from munit_fast.benchmarks.rows import Machine, Row, RowsError
from munit_fast.benchmarks.summary import by_machine, summarize
from munit_fast.cli import app
from munit_fast.train import trainer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def baseline(p50: float, **changes: Any) -> Row:
    times = {"p20": 0.9 * p50, "p50": p50, "p80": 1.1 * p50}
    return row(**({"implementation": PUBLISHED, "layout": "NCHW", "peak_bytes": 200} | times | changes))


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_measured_and_complete(level: str) -> None:
    """One case of each name: every contender passes its check and gets a row with all of its figures."""
    cases = list({case.name: case for case in select(SETS["smoke"], levels=[level])}.values())
    found, failures = run(cases, QUICK, quiet())
    assert failures == []
    for case in cases:
        mine = [r for r in found if r.name == case.name]
        assert {r.implementation for r in mine} >= {OURS, PUBLISHED}
        assert len({r.contender for r in mine}) == len(mine) >= 2 and len({r.run for r in mine}) == 1
        if level == "translation":
            assert {r.implementation for r in mine} >= {ONNX_RUNTIME, OPENVINO}
        for r in mine:
            assert r.p20 and r.p50 and r.p80 and 0 < r.p20 <= r.p50 <= r.p80
            assert r.error is not None and r.error < 0.05
            assert r.peak_bytes or r.implementation in (ONNX_RUNTIME, OPENVINO)
            assert r.torch == torch.__version__ and r.threads == torch.get_num_threads()
            assert (r.flops or 0) > 0 if level != "op" else r.flops is None and (r.bytes or 0) > 0


# Two images in three styles each: that the codes reach their images is part of what is checked.
_FEW = Case("translation", "in 3 styles", "forward", "bf16", 2, 8, 32)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setitem(contenders_training.STYLES, _FEW.name, 3)
    return _FEW


def test_translation_outside_of_torch(few: Case) -> None:
    """ONNX Runtime and OpenVINO in each precision that they have, with as many threads as torch."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    found, failures = run([few], QUICK, quiet())
    assert failures == []
    timed = {(r.implementation, r.precision): r for r in found if r.failure is None}
    assert {(ONNX_RUNTIME, "fp32"), (OPENVINO, "fp32")} <= timed.keys()
    missing = [r for r in found if r.failure is not None]
    assert all(r.implementation == OPENVINO and r.precision == "bf16" for r in missing)  # a CPU without bfloat16
    for runtime in (ONNX_RUNTIME, OPENVINO):
        error = timed[runtime, "fp32"].error
        assert error is not None and error < 1e-4 and timed[runtime, "fp32"].flops == timed[PUBLISHED, "fp32"].flops
    if not missing:  # bfloat16 is computed in bfloat16
        error = timed[OPENVINO, "bf16"].error
        assert error is not None and 1e-3 < error < 0.1


@pytest.mark.parametrize("runtime", [ONNX_RUNTIME, OPENVINO])
def test_a_runtime_gets_torchs_threads(few: Case, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(contenders_exported.PACKAGES[runtime])
    seen = []
    load = contenders_exported.load
    monkeypatch.setattr(contenders_exported, "load", lambda *arguments: seen.append(arguments[-1]) or load(*arguments))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        next(c for c in contenders_training.translation_contenders(few, CPU) if c.implementation == runtime).make()
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


def test_the_threads_reach_the_runtimes() -> None:
    """One stream of that many threads, and no second pool."""
    runtime = MagicMock()
    runtime.InferenceSession().get_inputs.return_value = [MagicMock(), MagicMock()]
    contenders_exported._onnx_runtime(runtime, "fp32", b"", 3)
    assert (runtime.SessionOptions().intra_op_num_threads, runtime.SessionOptions().inter_op_num_threads) == (3, 1)
    runtime = MagicMock()
    runtime.Core().compile_model().get_property.return_value = runtime.Type.f32
    contenders_exported._openvino(runtime, "fp32", b"", 3)
    settings = runtime.Core().compile_model.call_args.args[-1]
    assert (settings["INFERENCE_NUM_THREADS"], settings["NUM_STREAMS"]) == (3, "1")
    with pytest.raises(Unavailable, match="instead of bf16"):  # a CPU without it gets float32
        contenders_exported._openvino(runtime, "bf16", b"", 3)


@pytest.mark.parametrize("runtime", [ONNX_RUNTIME, OPENVINO])
def test_a_wrong_exported_model_gets_no_time(few: Case, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of the exported weights is wrong."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(contenders_exported.PACKAGES[runtime])
    export = contenders_exported.export

    def spoiled(*arguments: Any) -> bytes:
        program = onnx.load_from_string(export(*arguments))
        last = next(node for node in reversed(program.graph.node) if node.op_type == "Conv")
        weight = next(value for value in program.graph.initializer if value.name == last.input[1])
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return program.SerializeToString()

    monkeypatch.setattr(contenders_exported, "export", spoiled)
    found, failures = run([few], QUICK, quiet())
    wrong = [r for r in found if r.implementation == runtime and r.precision == "fp32"]
    assert [r.p50 for r in wrong] == [None] and "no time is reported" in str(wrong[0].failure)
    assert any(f"{runtime} NCHW fp32: its numbers are off by" in line for line in failures)


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "onnxscript"])
def test_a_runtime_that_is_not_installed_is_named(few: Case, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs a row and a line, not the run."""
    find = contenders_exported.importlib.util.find_spec
    monkeypatch.setattr(
        contenders_exported.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    console = quiet()
    found, failures = run([few], QUICK, console)
    reason = f'{package} is not installed (pip install "munit-fast[bench]")'
    missing = {r.implementation for r in found if r.failure == reason}
    needed = {"onnxruntime": {ONNX_RUNTIME}, "openvino": {OPENVINO}, "onnxscript": {ONNX_RUNTIME, OPENVINO}}
    assert failures == [] and missing == needed[package]
    assert reason in console.file.getvalue()  # type: ignore[attr-defined]
    text = report.page(found[0].machine, found)
    assert reason in text and f"were not timed against {FROZEN}" in text


def test_freezing_freezes() -> None:
    """Also where the same code was compiled before without it; and that it did not is an error, not a time."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN, which is how freezing is seen")
    case = next(c for c in SETS["smoke"] if c.level == "translation")
    torch.compiler.reset()
    by_name = {c.implementation: c for c in contenders_training.translation_contenders(case, CPU)}
    plain = by_name["torch.compile"].make()
    expected = plain.step()
    work = by_name[FROZEN].make()
    torch.testing.assert_close(list(work.step()), list(expected), rtol=1e-3, atol=1e-4)
    with pytest.raises(RuntimeError, match="did not freeze"):
        frozen(plain.step)


def test_modes_of_an_operator() -> None:
    """The backward alone gives the gradients that forward and backward together give."""
    [backward], [training] = (
        [c for c in SETS["smoke"] if c.name == "adain + residual + pad" and c.mode == mode]
        for mode in ("backward", "training")
    )
    for contender in runner.contenders(backward, CPU):
        if not contender.compiled:
            same = next(c for c in runner.contenders(training, CPU) if str(c) == str(contender))
            alone, both = contender.make().step(), same.make().step()
            assert len(alone) == 4 and len(both) == 5  # x, weight, bias, residual; and the result
            assert all(torch.equal(a, b) for a, b in zip(alone, both[1:]))


def test_compiled_contenders_compile_every_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside and outside of the discriminators: none is left to eager."""
    seen: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            seen.extend(str(n.target) for n in module.graph.nodes if "conv2d" in str(n.target))
            return module(*arguments)

        return counted

    monkeypatch.setattr(
        contenders_training, "compiled", lambda function, name: torch.compile(function, backend=backend, dynamic=False)
    )
    called: list[int] = []
    conv2d = torch.conv2d

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        called.append(1)
        return conv2d(*args, **kwargs)

    [case] = select(SETS["smoke"], levels=["training"])
    contender = next(c for c in contenders_training.training_contenders(case, CPU) if c.compiled)
    work = contender.make()
    work.step()
    seen.clear()
    work.step()
    plain = next(c for c in contenders_training.training_contenders(case, CPU) if c.implementation == PUBLISHED).make()
    monkeypatch.setattr(torch.nn.functional, "conv2d", counting)
    plain.step()
    assert len(seen) == len(called) > 50


def _spoiled(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    """Let ours of the layout NCHW, or of an iteration, do its work through `spoil`."""
    made = runner.contenders

    def replaced(case: Case, device: torch.device) -> list[Contender]:
        def wrong(contender: Contender) -> Work:
            return spoil(contender.make())

        return [
            replace(c, make=lambda c=c: wrong(c)) if c.ours and (c.layout == "NCHW" or case.level != "op") else c
            for c in made(case, device)
        ]

    monkeypatch.setattr(runner, "contenders", replaced)


@pytest.mark.parametrize("mode", ["forward", "backward", "training"])
def test_a_contender_with_wrong_numbers_gets_no_time(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """What is checked is what the timed step itself gives."""
    _spoiled(monkeypatch, lambda work: Work(lambda: [*work.step()[:-1], 1.1 * work.step()[-1]]))
    case = next(c for c in SETS["smoke"] if c.mode == mode)
    console = quiet()
    found, failures = run([case], QUICK, console)
    assert len(failures) == 1 and "off by 1.0e-01" in failures[0] and "no time is reported" in failures[0]
    [bad] = [r for r in found if r.failure]
    assert bad.implementation == OURS and bad.layout == "NCHW" and bad.p50 is None
    assert [r for r in found if r.implementation == OURS and r.failure is None]
    assert "Without a time (1)" in report.page(found[0].machine, found)


def test_an_iteration_that_does_not_train_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of the first iteration are right, but the generators do not move."""
    step = _only_discriminators(trainer.MUNIT_Trainer._backward_and_step)
    monkeypatch.setattr(trainer.MUNIT_Trainer, "_backward_and_step", step)
    [case] = select(SETS["smoke"], levels=["training"])
    _, failures = run([case], QUICK, quiet())
    assert len(failures) == 1 and "off by 1.0e+00" in failures[0]


def _only_discriminators(step: Any) -> Any:
    def patched(self: Any, update: str, *rest: Any) -> Any:
        generators = [*self.gen_a.parameters(), *self.gen_b.parameters()]
        before = [p.detach().clone() for p in generators]
        losses = step(self, update, *rest)
        with torch.no_grad():
            for p, old in zip(generators, before):
                p.copy_(old)
        return losses

    return patched


def test_a_step_that_breaks_costs_its_own_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(work: Work) -> Work:
        def step() -> Any:
            raise RuntimeError("out of luck\nand more")

        return Work(step)

    _spoiled(monkeypatch, broken)
    found, failures = run([SETS["smoke"][0]], QUICK, quiet())
    assert len(failures) == 1 and failures[0].endswith("out of luck")
    assert len([r for r in found if r.failure is None]) >= 4


def _numbers(*scales: float) -> list[Tensor]:
    return [scale * torch.ones(2, 2, 2, 2) for scale in scales]


def test_each_number_is_held_to_its_limit() -> None:
    op = next(c for c in SETS["smoke"] if c.name == "adain + relu + pad")
    ours = next(c for c in runner.contenders(op, CPU) if c.ours)
    for level, limits in runner.LIMITS.items():
        if level == "moved":
            continue
        for dtype, limit in limits.items():
            case = replace(op, level=level, dtype=dtype)
            assert runner.check(case, ours, _numbers(1, 0.01 * (1 + 0.9 * limit)), _numbers(1, 0.01)) > 0.8 * limit
            with pytest.raises(runner.AccuracyError):  # a small one beside a large one, too
                runner.check(case, ours, _numbers(1, 0.01 * (1 + 1.1 * limit)), _numbers(1, 0.01))
    with pytest.raises(runner.AccuracyError, match="off by nan"):
        runner.check(op, ours, _numbers(float("nan")), _numbers(1))
    with pytest.raises(runner.AccuracyError, match="1 results instead of 2"):
        runner.check(op, ours, _numbers(1), _numbers(1, 1))
    # The gradient of a bias before an instance norm is rounding noise in one and zero in the other.
    block = replace(op, level="block")
    noise, nothing = torch.full((8,), 1e-6), torch.zeros(8)
    assert runner.check(block, ours, [*_numbers(1), nothing], [*_numbers(1), noise]) < 1e-4
    moved = [torch.zeros(9)], [torch.ones(9)]
    with pytest.raises(runner.AccuracyError, match=r"off by 1\.0e"):
        runner.check(replace(op, level="training", dtype="bf16"), ours, *moved)


def test_figures_by_hand() -> None:
    """Bytes, operations, memory and quantiles of things that can be counted on paper."""
    case = Case("op", "adain + residual + pad", "forward", "bf16", 2, 3, 4)
    x, y = 2 * 3 * 16, 2 * 3 * 36
    assert contenders_ops.minimal_bytes(case) == 2 * (2 * x + y)
    assert contenders_ops.minimal_bytes(replace(case, mode="backward")) == 2 * (y + 3 * x)
    assert contenders_ops.minimal_bytes(replace(case, mode="training")) == 2 * (5 * x + 2 * y)
    plain = replace(case, name="bias + lrelu + pad", dtype="fp32")
    assert contenders_ops.minimal_bytes(plain) == 4 * (x + y)
    scales = Case("op", "lsgan of three scales", "training", "fp32", 1, 3, 64)
    assert contenders_ops.minimal_bytes(scales) == 4 * 2 * (16 + 4 + 1)
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert timing.flops(lambda: [a @ b]) == 2 * 3 * 5 * 7
    image, kernel = torch.randn(1, 2, 6, 6), torch.randn(4, 2, 3, 3)
    assert timing.flops(lambda: [torch.conv2d(image, kernel)]) == 2 * 4 * 16 * 2 * 9
    assert timing.peak_bytes(lambda: [torch.empty(1000), torch.empty(500)], CPU) == pytest.approx(6000, abs=128)
    assert timing.Spread.of([float(i) for i in range(11)]) == timing.Spread(2, 5, 8)


def test_a_turn_repeats_short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []

    def step() -> Any:
        now[0] += 0.001
        calls.append(1)
        return []

    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    spread = timing.interleaved({"a": step}, CPU, rounds=3, least_s=0.01)["a"]
    assert spread.p50 == pytest.approx(0.001) and len(calls) == 2 + 3 * 10


def test_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    where = machine.describe(CPU)
    assert where["cpu"] and where["python"].count(".") == 2 and where["version"]
    monkeypatch.setenv("MUNIT_FAST_COMMIT", "abc1234")
    assert machine.describe(CPU)["commit"] == "abc1234"
    assert machine.copy_speed(CPU) > 0 < machine.matrix_rate(CPU, torch.float32)
    monkeypatch.setattr(machine, "seconds_per_call", lambda call, device, **_: call() is None or 2.0)
    assert machine.copy_speed.__wrapped__(CPU) == machine.COPY_BYTES  # read and written in two seconds


def test_time_that_is_up_leaves_cases_out_and_says_so() -> None:
    console = quiet()
    found, _ = run(SETS["smoke"][:3], replace(QUICK, seconds=0.0), console)
    assert found == [] and "the last 3 of 3 cases were not measured" in console.file.getvalue()  # type: ignore[attr-defined]


def test_interleaving() -> None:
    order: list[str] = []
    steps: dict[str, Any] = {name: (lambda name=name: order.append(name)) for name in "ab"}
    spreads = timing.interleaved(steps, CPU, rounds=3, least_s=0)
    assert order[-6:] == ["a", "b", "b", "a", "a", "b"] and set(spreads) == {"a", "b"}


def test_selection() -> None:
    found = select(SETS["cpu"], levels=["op"], names=["adain"], batches=[1], dtypes=["bf16"], sides=[64])
    assert found and all(c.level == "op" and "adain" in c.name and c.side == 64 for c in found)
    with pytest.raises(ValueError, match="dtype must be one of fp32, bf16, fp16; got 'int8'"):
        select(SETS["cpu"], dtypes=["int8"])
    with pytest.raises(ValueError, match="no case matches"):
        select(SETS["cpu"], sides=[7])


def test_rows_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    first, second = row(), baseline(2.0, bytes=None, flops=10)
    rows.append(path, [first])
    failed = replace(baseline(1.0), p20=None, p50=None, p80=None, failure="out of memory")
    rows.append(path, [second, failed])
    assert rows.load(path) == rows.load(tmp_path / "deep") == [first, second, failed]
    line = json.loads(path.read_text().splitlines()[0])
    assert line["bandwidth"] == 4e9 and line["share_of_copy"] == 0.5 and line["hours_per_million"] == 277.8


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.pop("p50"), "line 2 is not a row of `munit-fast bench`: 'p50' is missing"),
        (lambda d: d.update(p50=-1), "times must be positive"),
        (lambda d: d.update(p20=3), "p20 ≤ p50"),
        (lambda d: d.update(p50=None), "times must be positive"),
        (lambda d: d.update(p50="x"), "p50 must be float or NoneType, got 'x'"),
        (lambda d: d.update(side="a"), "side must be int, got 'a'"),
        (lambda d: d.update(threads=True), "threads must be int, got True"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, spoil: Any, message: str) -> None:
    values = asdict(row())
    spoil(values)
    (tmp_path / "x.jsonl").write_text(row().line() + "\n" + json.dumps(values) + "\n")
    with pytest.raises(RowsError, match=message):
        rows.load(tmp_path)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="no rows"):
        rows.load(tmp_path)
    with pytest.raises(RowsError, match="cannot read"):
        rows.load(tmp_path / "missing.jsonl")


def test_the_score_is_against_the_fastest_baseline() -> None:
    compiled = baseline(0.8, implementation="torch.compile", layout="channels_last", peak_bytes=None)
    [summary] = summarize([row(), row(layout="NCHW", p50=1.05), baseline(3.0), compiled])
    assert summary.speedup == pytest.approx(0.8) and summary.over_published == pytest.approx(3.0)
    assert summary.memory == pytest.approx(0.5)
    text = report.page(row().machine, [row(), baseline(3.0), compiled])
    assert "Slower than the fastest baseline in 1 of 1 cases" in text and "0.80× (torch.compile channels_last" in text
    assert "Nothing has been measured on a GPU" in report.summary([row(), baseline(3.0), compiled])


def test_runs_are_never_mixed() -> None:
    """Ours of one run and a baseline of another say nothing; the newest run that has both counts."""
    old = [row(p20=0.1, p50=0.2, p80=0.3, run="1"), baseline(2.0, run="1")]
    new = [row(run="2"), baseline(3.0, run="2")]
    [summary] = summarize(old + new)
    assert summary.speedup == pytest.approx(3.0) and len(summary.rows) == 2
    [summary] = summarize([*old, row(run="2")])  # the second run has no baseline
    assert summary.speedup == pytest.approx(10.0)
    stronger = [replace(r, run="0") for r in new] + [baseline(1.0, run="0", implementation=OPENVINO)]
    [summary] = summarize([*stronger, *new])  # a later run without the strongest baseline does not hide it
    assert summary.best_baseline is not None and summary.best_baseline.implementation == OPENVINO
    assert len(summarize([*old, *(replace(r, torch="2.11") for r in new)])) == 2


def test_machines_are_kept_apart() -> None:
    other = {"device": "B GPU", "cuda": "13.0"}
    text = report.summary([row(), baseline(2.0), row(**other), baseline(4.0, **other)])
    assert "| A CPU, 2 threads | B GPU |" in text and "| 2.00× (1 cases) | 4.00× (1 cases) |" in text
    assert "Nothing has been measured on a GPU" not in text


def test_processors_of_one_name_with_and_without_amx_are_two_machines() -> None:
    flags = {"without AMX": "avx2 avx512f avx512_bf16", "with AMX": "avx2 avx512f avx512_bf16 amx_bf16"}
    few = [[row(cpu_flags=f), baseline(p50, cpu_flags=f)] for f, p50 in zip(flags.values(), (2.0, 4.0))]
    assert len(by_machine(few[0] + few[1])) == 2 == len(summarize(few[0] + few[1]))
    text = report.summary(few[0] + few[1])
    assert (
        "| A CPU with AMX, 2 threads | A CPU without AMX, 2 threads |" in text and "| 4.00× (1 cases) | 2.00×" in text
    )
    for (words, _), mine in zip(flags.items(), few):
        page = report.page(mine[0].machine, mine)
        assert f"# A CPU {words}, 2 threads" in page and f"; CPU A CPU {words} (avx2)" in page
    with pytest.raises(ValueError, match="no case was measured on the same machine"):
        compare(*few)
    arm = Machine("Graviton", "Graviton", "asimd sve bf16", 2)
    assert (row().machine.amx, str(row().machine), arm.amx, str(arm)) == (
        None,
        "A CPU, 2 threads",
        False,
        "Graviton, 2 threads",
    )


def test_flags_of_a_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f amx_tile amx_bf16 avx512_bf16x\n")
    assert machine.cpu_flags(info) == "avx2 avx512f amx_bf16"
    info.write_text("Features\t: fp asimd bf16\n")
    assert machine.cpu_flags(info) == "asimd bf16"
    assert machine.cpu_flags(tmp_path / "none") is None
    assert machine.describe(CPU)["cpu_flags"] == machine.cpu_flags()


def test_rows_without_the_flags_are_read(tmp_path: Path) -> None:
    values = asdict(row(cpu_flags="avx2"))
    del values["cpu_flags"]
    (tmp_path / "old.jsonl").write_text(json.dumps(values) + "\n")
    [old] = rows.load(tmp_path)
    assert old == row() and old.cpu_flags is None


def test_the_summary_shows_the_headlines() -> None:
    iteration = asdict(HEADLINES[0])
    text = report.summary([row(**iteration), baseline(3.0, **iteration)], {row().machine: "pages/a.md"})
    assert "[A CPU, 2 threads](pages/a.md)" in text
    assert "| training iteration, fp32 | 1 s: 3.00× (3.00×) |" in text and "translation" not in text
    translation = asdict(HEADLINES[-1])
    found = [row(**translation), baseline(3.0, **translation)]
    assert f"on A CPU, 2 threads were not timed against {FROZEN}, {ONNX_RUNTIME}, {OPENVINO}" in report.summary(found)
    found += [baseline(2.0, **translation, implementation=name) for name in (FROZEN, ONNX_RUNTIME, OPENVINO)]
    assert "not timed against" not in report.summary(found)


def test_comparison_takes_a_busier_machine_out() -> None:
    """Everything twice as slow is no change; ours alone twice as slow is one, beyond the noise."""
    steady = {"p20": 0.99, "p50": 1.0, "p80": 1.01}
    before = [row(**steady), baseline(3.0, p20=2.97, p80=3.03)]
    slow = {"p20": 1.98, "p50": 2.0, "p80": 2.02}
    [same] = compare(before, [row(**slow), baseline(6.0, p20=5.94, p80=6.06)])
    assert same.ratio == pytest.approx(1) and same.verdict == "within the noise" and same.relative
    [worse] = compare(before, [row(**slow), baseline(3.0, p20=2.97, p80=3.03)])
    assert worse.ratio == pytest.approx(0.5) and worse.verdict == "slower" and worse.beyond_noise > 10
    [plain] = compare([row(**steady)], [row(**slow)])
    assert not plain.relative
    with pytest.raises(ValueError, match="no case was measured on the same machine"):
        compare(before, [replace(r, device="another") for r in before])


def test_the_command(tmp_path: Path) -> None:
    call = CliRunner().invoke
    listed = call(app, ["bench", "--list", "--set", "smoke", "--level", "block"], catch_exceptions=False)
    assert (
        listed.output.splitlines()[0] == "block residual block training 1×8×16² fp32"
        and len(listed.output.splitlines()) == 4
    )
    output = tmp_path / "rows.jsonl"
    quick = ["--rounds", "2", "--turn", "0", "--no-compile", "--device", "cpu"]
    done = call(app, ["bench", "--set", "smoke", "--level", "translation", *quick, "--output", str(output)])
    assert done.exit_code == 0 and "rows added" in done.output
    again = call(
        app, ["bench", "--set", "smoke", "--level", "translation", *quick, "--output", str(output), "--missing"]
    )
    assert again.exit_code == 0 and "0 rows added" in again.output
    nowhere = call(app, ["bench", "--set", "smoke", *quick, "--output", str(tmp_path)])
    assert nowhere.exit_code == 1 and "cannot write" in str(nowhere.exception)
    readme = tmp_path / "speed.md"
    written = ["--results", str(output), "--readme", str(readme), "--pages", str(tmp_path / "pages")]
    assert call(app, ["bench", "--report", *written, "--no-summary"], catch_exceptions=False).exit_code == 0
    assert not readme.exists()
    assert call(app, ["bench", "--report", *written], catch_exceptions=False).exit_code == 0
    [(_, link)] = re.findall(r"[^!]\[(.+?)\]\((.+?)\)", readme.read_text())
    text = (tmp_path / link).read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert pictures and all((tmp_path / "pages" / name).stat().st_size > 5000 for name in pictures)
    assert "**Translation in 10 styles**" in text and "**Translation in 1 style**" in text
    readme.write_text("no marks")
    failed = call(app, ["bench", "--report", *written])
    assert failed.exit_code == 1 and "needs one line" in str(failed.exception)
    compared = call(app, ["bench", "--compare", str(output), "--results", str(output)], catch_exceptions=False)
    assert "0 faster and 0 slower beyond the noise" in compared.output
    unknown = call(app, ["bench", "--compare", "no-such-revision", "--results", str(output)])
    assert "neither a file nor a revision" in str(unknown.exception)

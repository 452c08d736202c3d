"""The benchmark suite: what it times is right before it is timed, and what is written of it is what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from munit_fast.bench import SETS, BenchOptions, Case, measure, report, rows, run, runner, select
from munit_fast.bench.cases import LEVELS
from munit_fast.bench.compare import compare
from munit_fast.bench.contenders import OURS, PUBLISHED, Contender, Work
from munit_fast.bench.rows import Row, RowsError
from munit_fast.bench.summary import summarize
from munit_fast.cli import app

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
QUICK = BenchOptions(rounds=2, least_s=0, compile=False)


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def row(**changes: Any) -> Row:
    values: dict[str, Any] = {f.name: None for f in fields(Row)}
    values |= {"date": "2026-01-02", "commit": "abc", "device": "A CPU", "cpu": "A CPU", "isa": "avx2", "threads": 2}
    values |= {"torch": "2.13", "python": "3.11", "level": "op", "name": "layer + relu + pad", "mode": "training"}
    values |= {
        "dtype": "fp32",
        "batch": 1,
        "channels": 8,
        "side": 16,
        "implementation": OURS,
        "layout": "channels_last",
    }
    values |= {"precision": "fp32", "graph": False, "rounds": 9, "p20": 0.9, "p50": 1.0, "p80": 1.1, "bytes": 4 * 10**9}
    values |= {"copy_speed": 8e9, "matrix_rate": 1e11, "peak_bytes": 100, "error": 1e-7}
    return Row(**(values | changes))


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
        assert len({r.who for r in mine}) == len(mine) >= 2
        for r in mine:
            assert 0 < r.p20 <= r.p50 <= r.p80 and r.peak_bytes and r.error < 0.01
            assert r.commit and r.torch == torch.__version__ and r.threads == torch.get_num_threads()
            assert (r.flops or 0) > 0 if level != "op" else r.flops is None


def test_the_phase_convolution_multiplies_less() -> None:
    """25 products a pixel become 9: what a step computes is counted, not assumed."""
    case = next(c for c in SETS["smoke"] if c.name == "upsampling block")
    found, _ = run([case], QUICK, quiet())
    count = {r.implementation: r.flops for r in found}
    # The phase kernel's own summation and the border's strips cost a little.
    assert 0.3 < count[OURS] / count[PUBLISHED] < 0.75  # type: ignore[operator]


def test_a_contender_with_wrong_numbers_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner.contenders

    def spoiled(case: Case, device: torch.device) -> list[Contender]:
        def wrong(contender: Contender) -> Work:
            work = contender.make()
            return Work(work.step, lambda: [1.1 * t for t in work.outputs()])

        return [
            replace(c, make=lambda c=c: wrong(c)) if c.ours and c.layout == "NCHW" else c for c in made(case, device)
        ]

    monkeypatch.setattr(runner, "contenders", spoiled)
    case = SETS["smoke"][0]
    found, failures = run([case], QUICK, quiet())
    assert len(failures) == 1 and "off by 1.0e-01" in failures[0] and "no time is reported" in failures[0]
    assert not [r for r in found if r.implementation == OURS and r.layout == "NCHW"]
    assert [r for r in found if r.implementation == OURS]


def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in SETS["smoke"] if c.name.startswith("adain + relu") and c.mode == "training")
    contender = runner.contenders(case, CPU)[0]
    outputs = contender.make().outputs()
    assert len(outputs) == 4  # the result, and the gradients of x, weight and bias
    assert runner.check(case, contender, outputs, outputs) == 0
    for i in range(4):
        spoiled = [2 * t if j == i else t for j, t in enumerate(outputs)]
        with pytest.raises(runner.RedCheck):
            runner.check(case, contender, spoiled, outputs)
    with pytest.raises(runner.RedCheck, match="off by inf"):
        runner.check(case, contender, [outputs[0] * float("nan"), *outputs[1:]], outputs)


def test_time_that_is_up_leaves_cases_out_and_says_so() -> None:
    console = quiet()
    found, _ = run(SETS["smoke"][:3], replace(QUICK, seconds=0.0), console)
    assert found == [] and "the last 3 of 3 cases were not measured" in console.file.getvalue()  # type: ignore[attr-defined]


def test_interleaving() -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in "ab"}
    spreads = measure.interleaved(steps, CPU, rounds=3, least_s=0)
    assert order[-6:] == ["a", "b"] * 3 and set(spreads) == {"a", "b"}


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
    rows.append(path, [second, replace(first, p50=1.05)])
    assert rows.load(path) == rows.load(tmp_path / "deep") == [replace(first, p50=1.05), second]  # the later one counts
    line = json.loads(path.read_text().splitlines()[0])
    assert line["bandwidth"] == 4e9 and line["share_of_copy"] == 0.5 and line["hours_per_million"] == 277.8


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.pop("p50"), "line 2 is not a row of `munit-fast bench`: 'p50' is missing"),
        (lambda d: d.update(p50=-1), "times must be positive"),
        (lambda d: d.update(p20=3), "p20 ≤ p50"),
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
    text = report.report([row(), baseline(3.0), compiled])
    assert "Slower than the fastest baseline in 1 of 1 cases" in text and "0.80× (torch.compile channels_last" in text
    assert "Nothing has been measured on a GPU" in text


def test_machines_are_kept_apart() -> None:
    other = {"device": "B GPU", "cuda": "13.0"}
    text = report.report([row(), baseline(2.0), row(**other), baseline(4.0, **other)])
    assert text.count("### ") == 2 and "| 2.00 (2.00) |" in text and "| 4.00 (4.00) |" in text
    assert "Nothing has been measured on a GPU" not in text


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
    readme = tmp_path / "speed.md"
    written = ["--results", str(output), "--readme", str(readme), "--pictures", str(tmp_path / "plots")]
    assert call(app, ["bench", "--report", *written], catch_exceptions=False).exit_code == 0
    text = readme.read_text()
    for picture in re.findall(r"!\[.+?\]\((.+?)\)", text):
        assert (tmp_path / picture).stat().st_size > 5000
    assert "**Translation in 10 styles**" in text and "plots/" in text
    readme.write_text("no marks")
    failed = call(app, ["bench", "--report", *written])
    assert failed.exit_code == 1 and "needs one line" in str(failed.exception)
    compared = call(app, ["bench", "--compare", str(output), "--results", str(output)], catch_exceptions=False)
    assert "0 faster and 0 slower beyond the noise" in compared.output
    unknown = call(app, ["bench", "--compare", "no-such-revision", "--results", str(output)])
    assert "neither a file nor a revision" in str(unknown.exception)

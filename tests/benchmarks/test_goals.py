"""The goals, held to made-up rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers.bench import row
from munit_fast.benchmarks import goals
from munit_fast.benchmarks.cases import EPILOGUES, SETS
from munit_fast.benchmarks.goals import COPY_SHARES, ITERATION_MS, MEMORY, OVER_COMPILE, WORST_OVER_COMPILE, Verdict
from munit_fast.benchmarks.rows import Row

H200 = "NVIDIA H200"
COUNT = 10
PUBLISHED, COMPILED = "published", "torch.compile"


def timed(seconds: float, **changes: Any) -> Row:
    shared = {"device": H200, "cuda": "13.0", "dtype": "bf16", "precision": "bf16", "run": "2"}
    return row(**(shared | {"p20": seconds, "p50": seconds, "p80": seconds} | changes))


def iteration(milliseconds: float, batch: int = 1, **changes: Any) -> Row:
    shared = {"level": "training", "name": "MUNIT iteration", "batch": batch, "channels": 64, "side": 256, "l2": "warm"}
    return timed(milliseconds / 1e3, **(shared | {"graph": True, "bytes": None} | changes))


def epilogue(share: float = 1.0, mode: str = "forward", **changes: Any) -> Row:
    """In a second; the copy speed is one byte a second, so its bytes are its share."""
    shared = {"mode": mode, "l2": "cold", "batch": 8, "channels": 256, "side": 128, "graph": True, "bytes": share}
    return timed(1.0, **(shared | {"name": EPILOGUES[0], "copy_speed": 1.0} | changes))


def of(rows: list[Row], *words: str) -> Verdict:
    [found] = [v for v in goals.assess(rows) if all(word in v.goal for word in words)]
    return found


def test_nothing_is_said_without_rows() -> None:
    for rows in ([], [row()], [iteration(1.0, graph=False)]):
        verdicts = goals.assess(rows)
        assert len(verdicts) == COUNT and {v.verdict for v in verdicts} == {"not measured"}
        assert all(v.by is None and v.value is None and v.case is None for v in verdicts)


@pytest.mark.parametrize("batch", ITERATION_MS)
def test_iterations(batch: int) -> None:
    limit, goal = ITERATION_MS[batch], (f"batch {batch},", "in a CUDA graph")
    met, missed = of([iteration(0.8 * limit, batch)], *goal), of([iteration(1.5 * limit, batch)], *goal)
    assert (met.verdict, missed.verdict) == ("met", "missed")
    assert met.by == pytest.approx(0.2) and missed.by == pytest.approx(-0.5)
    assert met.value == pytest.approx(0.8 * limit)
    whole = [iteration(limit, batch), iteration(9 * limit, batch, layout="NCHW")]
    assert of(whole, *goal).verdict == "met"  # the faster layout
    for changes in (
        {"graph": False},
        {"dtype": "fp32"},
        {"side": 128},
        {"channels": 16},
        {"batch": 16},
        {"implementation": PUBLISHED},
        {"implementation": "munit_fast triton"},
        {"failure": "wrong", "p50": None},
    ):
        assert of([iteration(1.0, **({"batch": batch} | changes))], *goal).verdict == "not measured"


@pytest.mark.parametrize("mode", COPY_SHARES)
def test_shares_of_the_copy_speed(mode: str) -> None:
    """The worst case counts; of a case the best layout."""
    limit, goal = COPY_SHARES[mode], (f"epilogue {mode}", "the worst")
    good = epilogue(1.1 * limit, mode)
    bad = epilogue(0.5 * limit, mode, name=EPILOGUES[3])
    assert of([good], *goal).verdict == "met" and of([good], *goal).by == pytest.approx(0.1)
    worst = of([good, bad], *goal)
    assert worst.verdict == "missed" and worst.by == pytest.approx(-0.5) and EPILOGUES[3] in str(worst.case)
    assert of([good, replace(bad, name=good.name, layout="NCHW")], *goal).verdict == "met"
    for changes in (
        {"l2": "warm"},
        {"batch": 7},  # 59 MB
        {"graph": False},
        {"mode": "training"},
        {"name": "group + silu"},
        {"implementation": "munit_fast cuda"},
    ):
        assert of([epilogue(2.0, **({"mode": mode} | changes))], *goal).verdict == "not measured"


def compared(ratio: float, **changes: Any) -> list[Row]:
    """torch.compile's time over ours is `ratio`, each in the better of two layouts."""
    found = []
    for implementation, seconds in (("munit_fast", 1.0), (COMPILED, ratio)):
        for layout, factor in (("NCHW", 1.0), ("channels_last", 3.0)):
            mine = epilogue(implementation=implementation, layout=layout, **changes)
            found.append(replace(mine, p20=0.0, p50=factor * seconds, p80=9.0))
    return found


def test_the_lead_over_torch_compile() -> None:
    first, second = compared(OVER_COMPILE * 2), compared(OVER_COMPILE / 2 * 1.01, mode="backward", l2="warm", batch=1)
    mean = of([*first, *second], "torch.compile", "geometric mean")
    assert mean.verdict == "met" and mean.by == pytest.approx(1.01**0.5 - 1) and "2 cases" in str(mean.case)
    worst = of([*first, *second], "torch.compile", "the worst")
    assert worst.verdict == "missed" and worst.value == pytest.approx(0.606) and "backward" in str(worst.case)
    assert of(compared(WORST_OVER_COMPILE + 0.01), "torch.compile", "the worst").verdict == "met"
    assert of(compared(WORST_OVER_COMPILE + 0.01), "torch.compile", "mean").verdict == "missed"
    assert of(compared(9.0, name="lsgan of three scales"), "torch.compile", "mean").verdict == "not measured"
    ours_alone = [r for r in compared(9.0) if r.implementation == "munit_fast"]
    assert of(ours_alone, "torch.compile", "mean").verdict == "not measured"


@pytest.mark.parametrize("batch", ITERATION_MS)
def test_memory(batch: int) -> None:
    goal = ("peak memory", f"batch {batch},")
    ours = iteration(1.0, batch, graph=False, peak_bytes=40)
    eager = iteration(1.0, batch, graph=False, peak_bytes=100, implementation=PUBLISHED, layout="NCHW")
    found = of([ours, eager], *goal)
    assert found.verdict == "met" and found.value == pytest.approx(0.4) and found.limit == MEMORY
    leaner = replace(eager, layout="channels_last", peak_bytes=50)
    assert of([ours, eager, leaner], *goal).verdict == "missed"
    for other in (
        replace(eager, peak_bytes=50, precision="fp32"),
        replace(eager, peak_bytes=50, graph=True),
        replace(eager, peak_bytes=50, implementation=COMPILED),
        replace(eager, peak_bytes=None, layout="channels_last"),
        replace(ours, peak_bytes=10, graph=True),
    ):
        assert of([ours, eager, other], *goal).value == pytest.approx(0.4)
    assert of([ours], *goal).verdict == of([eager], *goal).verdict == "not measured"


def test_only_the_newest_run_of_this_gpu_counts() -> None:
    fast, slow = iteration(1.0, run="1"), iteration(99.0, run="3")
    goal = ("batch 1,", "in a CUDA graph")
    assert of([slow, fast], *goal).verdict == "missed"
    assert of([slow, replace(fast, graph=False, run="4")], *goal).verdict == "missed"  # a later run without it
    for changes in ({"commit": "old"}, {"torch": "2.11"}, {"device": "NVIDIA H200 NVL"}):
        later = replace(slow, batch=8, run="3")
        assert of([replace(fast, **changes), later], *goal).verdict == "not measured"
    apart = [replace(r, run=run) for r, run in zip(compared(9.0), ("1", "1", "2", "2"))]
    assert of(apart, "torch.compile", "mean").verdict == "not measured"  # not timed in turns


def test_another_gpu_is_not_held_to_them() -> None:
    rows = [replace(iteration(1.0), device="NVIDIA L4")]
    assert {v.verdict for v in goals.assess(rows)} == {"not measured"}
    text = goals.page("NVIDIA L4", goals.assess(rows), [], None)
    assert text.count("| not measured |") == COUNT and "NVIDIA H200" in text
    assert "NVIDIA L4, so" not in goals.page(H200, goals.assess([iteration(1.0)]), [], None).replace(H200, "")


def test_the_page_names_what_is_missing_and_what_is_chosen() -> None:
    choice = {"switched_on": ["clusters"], "against": ["a reason"]}
    text = goals.page(H200, goals.assess([iteration(99.0)]), ["op that", "training this"], choice)
    assert all(word in text for word in ("- op that", "- training this", "clusters", "a reason", "missed by"))
    assert f"≤ {ITERATION_MS[1]:g} ms" in text and "99 ms" in text


def test_the_gate_has_a_case_for_every_goal() -> None:
    """Rows of all its cases leave no goal without a value; those of large tensors come first, then iterations."""
    gate = SETS["gate"]
    rows = []
    for case in gate:
        for implementation in ("munit_fast", PUBLISHED, COMPILED):
            for graph in (False, True):
                values = {name: getattr(case, name) for name in case.__dataclass_fields__}
                values |= {"implementation": implementation, "graph": graph, "l2": "cold"}
                rows.append(timed(1.0, **values, peak_bytes=10))
    assert all(v.value is not None for v in goals.assess(rows))
    levels = [case.level for case in gate]
    assert levels[:10] == ["op"] * 10 and levels[10:13] == ["training"] * 3 and levels[13] == "translation"
    assert {(case.mode, case.dtype) for case in gate[:10]} == {("forward", "bf16"), ("backward", "bf16")}
    assert all(case.batch * case.channels * case.side**2 * 2 >= goals.LARGE for case in gate[:10])
    assert [case.batch for case in gate[10:13]] == [1, 4, 8]

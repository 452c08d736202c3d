"""The tables say what the rows say, rounded as they should be, losses and failures included."""

from __future__ import annotations

from dataclasses import asdict, replace

from helpers.bench import baseline, row
from munit_fast.benchmarks import tables
from munit_fast.benchmarks.cases import HEADLINES
from munit_fast.benchmarks.contenders import EXPORTED_ONNX, EXPORTED_PT2, FROZEN, ONNX_RUNTIME, OPENVINO
from munit_fast.benchmarks.rows import Row

ITERATION = {
    "level": "training",
    "name": "MUNIT iteration",
    "side": 256,
    "channels": 64,
    "bytes": None,
    "flops": 2 * 10**9,
    "state_bytes": 900_000_000,
    "peak_bytes": 123_456_789,
}
COMPILED = {"implementation": "torch.compile", "layout": "channels_last"}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]


def page(rows: list[Row]) -> str:
    return tables.page(rows[0].machine, rows)


def test_an_iteration_is_shown_with_every_contender_slowest_first() -> None:
    rows = [
        row(**ITERATION, p20=1.23456, p50=1.3, p80=1.4),
        baseline(2.0, **ITERATION),
        baseline(1.5555, **(ITERATION | COMPILED | {"peak_bytes": None})),
    ]
    assert lines(page(rows))[1:] == [
        "| published NCHW fp32 | 2 (1.8 – 2.2) | 1.00× | 0.5 | 556 | 0.001 | 123 (1023) |",
        "| torch.compile channels_last fp32 | 1.556 (1.4 – 1.711) | 1.29× | 0.643 | 432 | 0.00129 | – |",
        "| **munit_fast fp32** | 1.3 (1.235 – 1.4) | 1.54× | 0.769 | 361 | 0.00154 | 123 (1023) |",
    ]
    assert "1.20×" in page(rows)  # over the fastest baseline


def test_operations_are_geometric_means_with_the_worst() -> None:
    rows = [row(), baseline(2.0), row(side=32), baseline(0.5, side=32, **COMPILED)]
    rows += [row(mode="forward"), baseline(1.234, mode="forward")]
    assert lines(page(rows))[1:] == [
        "| layer + relu + pad | training | fp32 | 2 "
        "| 1.00 (0.50) | 2.00 (2.00) | 0.50 (0.50) | 0.50 (0.50) | 0.50 (0.50) |",
        "| layer + relu + pad | forward | fp32 | 1 | 1.23 (1.23) | 1.23 (1.23) | – | 0.50 (0.50) | 0.50 (0.50) |",
        "| all |  |  | 3 | 1.07 (0.50) | 1.57 (1.23) | 0.50 (0.50) | 0.50 (0.50) | 0.50 (0.50) |",
    ]
    # What is slower is named.
    assert "1 of 3" in page(rows)
    assert "layer + relu + pad training 1×8×32² fp32: 0.50× (torch.compile channels_last fp32)" in page(rows)


def test_networks_and_what_has_no_time() -> None:
    decoder = {"level": "network", "name": "decoder", "bytes": None, "flops": 5 * 10**8}
    failed = baseline(0.04, **decoder, layout="channels_last", failure="too large")
    rows = [row(**decoder, p20=0.01, p50=0.012345, p80=0.02), baseline(0.03, **decoder)]
    text = page([*rows, replace(failed, p20=None, p50=None, p80=None)])
    assert lines(text)[1:] == ["| decoder, 1×8×16² | fp32 | 12.35 | 2.43× | published NCHW fp32 | 0.41 | 0.50 |"]
    assert "(1): decoder training 1×8×16² fp32, published channels_last fp32: too large" in text


def test_the_summary_has_a_column_for_each_machine() -> None:
    other = {"device": "B GPU", "cuda": "13.0"}
    rows = [row(), baseline(2.0), row(**other), baseline(4.0, **other)]
    text = tables.summary(rows)
    assert lines(text) == [
        "| 256², batch 1, dim 64 | A CPU, 2 threads | B GPU |",
        "| operations, geometric mean | 2.00× (1 cases) | 4.00× (1 cases) |",
        "| cases slower than the fastest baseline | 0 of 1 | 0 of 1 |",
    ]
    assert "on a GPU" not in text and "on a GPU" in tables.summary(rows[:2])  # that none was measured is said


def test_processors_that_differ_in_amx_have_columns_and_pages_of_their_own() -> None:
    flags = {"without AMX": "avx2 avx512f avx512_bf16", "with AMX": "avx2 avx512f avx512_bf16 amx_bf16"}
    few = [[row(cpu_flags=f), baseline(p50, cpu_flags=f)] for f, p50 in zip(flags.values(), (2.0, 4.0))]
    text = lines(tables.summary(few[0] + few[1]))
    assert text[0] == "| 256², batch 1, dim 64 | A CPU with AMX, 2 threads | A CPU without AMX, 2 threads |"
    assert text[1] == "| operations, geometric mean | 4.00× (1 cases) | 2.00× (1 cases) |"
    for words, mine in zip(flags, few):
        assert f"# A CPU {words}, 2 threads" in page(mine) and f"CPU A CPU {words} (avx2)" in page(mine)


def test_the_summary_shows_the_headlines() -> None:
    iteration = asdict(HEADLINES[0])
    text = tables.summary([row(**iteration), baseline(3.0, **iteration)], {row().machine: "pages/a.md"})
    assert "[A CPU, 2 threads](pages/a.md)" in text
    assert lines(text)[1] == "| training iteration, fp32 | 1 s: 3.00× (3.00×) |" and "translation" not in text


def test_the_short_table_has_five_rows() -> None:
    rows = []
    for i, case in enumerate(HEADLINES, 1):
        rows += [row(**asdict(case)), baseline(i + 1.0, **asdict(case))]
    rows += [row(), baseline(1.234)]
    assert lines(tables.five_rows(rows, {row().machine: "pages/a.md"})) == [
        "| 256², batch 1, dim 64 | [A CPU, 2 threads](pages/a.md) |",
        "| training iteration, fp32 | 1 s: 2.00× (2.00×) |",
        "| training iteration, bf16 | 1 s: 3.00× (3.00×) |",
        "| translation in 10 styles, fp32 | 1 s: 4.00× (4.00×) |",
        "| translation in 10 styles, bf16 | 1 s: 6.00× (6.00×) |",
        "| operations, geometric mean | 1.23× (1 cases) |",
    ]


def test_baselines_that_were_not_timed_are_named() -> None:
    translation = asdict(HEADLINES[-1])
    rows = [row(**translation), baseline(3.0, **translation)]
    names = (FROZEN, ONNX_RUNTIME, OPENVINO)
    assert ", ".join(names) in tables.summary(rows) and ", ".join(names) in page(rows)
    rows += [baseline(2.0, **translation, implementation=name) for name in names]
    assert not any(name in tables.summary(rows) for name in names)


def test_networks_before_and_after_have_a_line_for_each_mode_and_columns_for_each_batch() -> None:
    case = {"level": "accelerated", "name": "MONAI UNet 3d", "channels": 16, "side": 64, "peak_bytes": 50_000_000}
    rows = []
    for mode, batch in (("forward", 1), ("training", 1), ("training", 4)):
        rows += [
            row(**case, mode=mode, batch=batch),
            baseline(2.0, **(case | {"peak_bytes": 60_000_000}), mode=mode, batch=batch),
        ]
    assert lines(page(rows))[1:] == [
        "| MONAI UNet 3d, 16×64³ | forward | 2 → 1 | 2.00× | 60 → 50 | – | – | – |",
        "| MONAI UNet 3d, 16×64³ | training step | 2 → 1 | 2.00× | 60 → 50 | 2 → 1 | 2.00× | 60 → 50 |",
    ]


def test_launches_are_shown_one_by_one_and_say_that_no_gpu_was_there() -> None:
    case = {"level": "launch", "name": "launches", "channels": 64, "side": 256, "bytes": None, "launches": 100}
    text = page([row(**case, p20=4e-4, p50=5e-4, p80=6e-4), baseline(1e-3, **case, implementation="another")])
    assert lines(text)[1:] == ["| launches, 256², batch 1, dim 64 | fp32 | 100 | 10 | 5 | 2.00× |"]
    assert "no GPU" in text


def test_exported_files_have_a_line_for_each_contender_and_a_column_for_each_case() -> None:
    small = {"level": "exported", "name": "in 6 styles", "mode": "forward", "channels": 24, "side": 64, "bytes": None}
    large = small | {"name": "in 1 style", "channels": 64, "side": 128}
    times = {"p20": 0.004, "p50": 0.005, "p80": 0.006}
    rows = [
        row(**small, **times),
        baseline(0.02, **small),
        baseline(0.0025, **small, implementation=ONNX_RUNTIME),
        row(**small, **times | {"layout": "NCHW"}, implementation=EXPORTED_PT2),
        row(**large, **times),
        baseline(0.01, **large),
        row(**large, p20=0.001, p50=0.00123, p80=0.002, implementation=EXPORTED_ONNX, layout="NCHW"),
    ]
    lacking = {"implementation": EXPORTED_PT2, "precision": "fp16", "p20": None, "p50": None, "p80": None}
    rows.append(replace(rows[3], **lacking, failure="no halves here"))
    expected = [
        "|  | 64², dim 24, in 6 styles | 128², dim 64, in 1 style |",
        "| published NCHW fp32 | 20 (1.00×) | 10 (1.00×) |",
        "| **munit_fast fp32** | 5 (4.00×) | 5 (2.00×) |",
        f"| **{EXPORTED_PT2} NCHW fp32** | 5 (4.00×) | – |",
        "| ONNX Runtime NCHW fp32 | 2.5 (8.00×) | – |",
        f"| **{EXPORTED_ONNX} NCHW fp32** | – | 1.23 (8.13×) |",
    ]
    text = page(rows)
    assert lines(text) == expected == lines(tables.exported(rows))
    assert "1 of 2 cases" in text and "in 6 styles forward 1×24×64² fp32: 0.50× (ONNX Runtime NCHW fp32)" in text
    assert "no halves here" in text and "in fp16" not in text  # a rate that was not measured is not shown
    newer = [replace(r, run="2", torch="3.0", p20=1.0, p50=1.0, p80=1.0) for r in rows[:2]]
    assert lines(page(rows + newer))[:2] == [expected[0], "| published NCHW fp32 | 1000 (1.00×) | 10 (1.00×) |"]
    assert lines(tables.exported([row(), baseline(2.0)])) == []

"""munit-fast doctor, bench, trace."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from munit_fast.cli.base import app
from munit_fast.cli.options import (
    Amp,
    DeviceOption,
    TrainerName,
    TrainerOption,
    find_device,
    new_console,
)


@app.command()
def doctor(
    selftest: Annotated[
        bool,
        typer.Option("--selftest", help="Compare every operator with the reference on this machine; takes seconds."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    warm: Annotated[
        Path | None,
        typer.Option(
            "--warm",
            metavar="CONFIG",
            help="Only compile the Triton kernels of a training iteration into Triton's cache, before a job starts.",
        ),
    ] = None,
    trainer: Annotated[
        TrainerName, typer.Option("--trainer", help="With --warm: the algorithm.", case_sensitive=False)
    ] = TrainerName.auto,
    device: Annotated[str, typer.Option("--device", help="With --warm: auto, cuda or cuda:N.")] = "auto",
    amp: Annotated[Amp, typer.Option("--amp", help="With --warm: the precision; auto is bf16.")] = Amp.auto,
) -> None:
    """Show what this machine has, and for each operator which backends can run it, or why not."""
    if warm is None and (trainer, device, amp) != (TrainerName.auto, "auto", Amp.auto):
        raise ValueError("--trainer, --device and --amp belong to --warm CONFIG")
    if warm is not None and (selftest or json):
        raise ValueError("--warm only compiles: give --selftest or --json in another call")
    if warm is not None:
        from munit_fast.config import load_config
        from munit_fast.models.algorithm import choose_algorithm
        from munit_fast.train.warm import warm_up

        cfg = load_config(warm)
        algorithm = choose_algorithm(cfg, trainer.value)
        warm_up(cfg, algorithm, amp.value, find_device(device), new_console())
        return
    from munit_fast.doctor import as_json, complaint, examine, show, show_trials
    from munit_fast.doctor import selftest as run_selftest

    found = examine()
    console = Console()
    if not json:
        show(found, console)
    trials = run_selftest() if selftest else None
    if json:
        typer.echo(as_json(found, trials))
    elif trials is not None:
        show_trials(trials, console)
    if failure := complaint(trials or []):
        raise RuntimeError(failure)


class Level(str, Enum):
    """What a benchmark times."""

    op = "op"
    block = "block"
    network = "network"
    training = "training"
    translation = "translation"
    accelerated = "accelerated"
    exported = "exported"
    folder = "folder"
    launch = "launch"


class CaseSet(str, Enum):
    """Sets of benchmark cases."""

    smoke = "smoke"
    gate = "gate"
    cpu = "cpu"
    others = "others"
    exported = "exported"
    folders = "folders"
    launch = "launch"
    full = "full"


@app.command()
def bench(
    cases: Annotated[CaseSet | None, typer.Option("--set", help="Which cases; default cpu, or gate on a GPU.")] = None,
    level: Annotated[list[Level] | None, typer.Option(help="Only these levels.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Only cases with this in their name.")] = None,
    side: Annotated[list[int] | None, typer.Option(help="Only images or feature maps of this side.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Only these batch sizes.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only fp32, bf16 or fp16.")] = None,
    device: DeviceOption = "auto",
    rounds: Annotated[
        int, typer.Option(min=2, help="Timed rounds for each contender; more give narrower spreads.")
    ] = 9,
    turn: Annotated[float, typer.Option(min=0, help="Minimum seconds of a round.")] = 0.02,
    compile: Annotated[bool, typer.Option(help="Also time torch.compile; takes most of the time.")] = True,
    max_autotune: Annotated[bool, typer.Option(help="Also time torch.compile in mode max-autotune.")] = True,
    compile_last: Annotated[
        bool, typer.Option("--compile-last", help="Time torch.compile of an iteration once, after all else.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Stop before the case that would exceed this time.")
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only cases without rows in --output.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append the rows to this file.")] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="Only print the cases.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Only write README, pages and plots from --results.")
    ] = False,
    compare: Annotated[
        str | None, typer.Option(help="Only compare --results with a file of rows, or with the rows of a git revision.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder or file of rows.")] = Path("benchmarks/results"),
    readme: Annotated[Path, typer.Option(help="Where --report writes its summary.")] = Path("README.md"),
    summary: Annotated[bool, typer.Option(help="Have --report write the summary too.")] = True,
    pages: Annotated[Path, typer.Option(help="Where --report writes a page and plots for each machine.")] = Path(
        "docs/benchmarks"
    ),
) -> None:
    """Benchmark munit-fast against its baselines; outputs are checked before anything is timed."""
    from munit_fast.benchmarks import SETS, BenchOptions, run, select
    from munit_fast.benchmarks.report import print_comparison, print_summary, write_report

    console = Console()
    if report and compare is not None:
        raise ValueError("give one of --report and --compare")
    if report:
        for path in write_report(results, readme if summary else None, pages):
            console.print(f"wrote {path}", markup=False, soft_wrap=True)
        return
    if compare is not None:
        return print_comparison(compare, results, console)
    where = find_device(device)
    chosen = select(
        SETS[cases.value if cases else ("gate" if where.type == "cuda" else "cpu")],
        [value.value for value in level or []],
        name or [],
        side or [],
        batch or [],
        dtype or [],
    )
    if list_cases:
        return typer.echo("\n".join(map(str, chosen)))
    seconds = None if minutes is None else minutes * 60
    options = BenchOptions(where, rounds, turn, compile, max_autotune, output, seconds, missing, compile_last)
    rows, failures = run(chosen, options, console)
    print_summary(rows, console)
    if output is not None:
        console.print(f"{len(rows)} rows added to {output}", markup=False)
    if failures:
        raise RuntimeError(f"{len(failures)} contenders have no time:\n" + "\n".join(failures))


@app.command()
def trace(
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with the published keys; default: the published defaults.")
    ] = None,
    trainer: TrainerOption = TrainerName.auto,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images of each domain; default: the configuration's.")
    ] = None,
    amp: Annotated[Amp, typer.Option("--amp", help="Mixed precision; auto is bf16.")] = Amp.auto,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Compute activations again.")] = False,
    top: Annotated[int, typer.Option(min=0, help="Operators and kernels to list.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count what a training iteration launches on an NVIDIA GPU, and what it moves; needs Triton, but no GPU."""
    from munit_fast.config import Config, load_config
    from munit_fast.models.algorithm import choose_algorithm
    from munit_fast.train.trace import trace_kinds
    from munit_fast.train.trace_report import as_json, show

    cfg = Config() if config is None else load_config(config)
    precision = "bf16" if amp is Amp.auto else amp.value
    algorithm = choose_algorithm(cfg, trainer.value)
    found, kinds = trace_kinds(cfg.hyperparameters(), algorithm, precision, batch, checkpointing)
    if json:
        typer.echo(as_json(found, kinds))
    else:
        show(found, Console(), top, kinds)

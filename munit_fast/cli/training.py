"""munit-fast demo, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from munit_fast.cli.base import app
from munit_fast.cli.options import (
    AllowOutsideOption,
    Amp,
    AmpOption,
    DeviceOption,
    Impl,
    ImplOption,
    OverrideOption,
    PresetName,
    TrainerName,
    TrainerOption,
    find_device,
    new_console,
)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--output_path", help="Where data, run and page go.")] = Path("demo"),
    minutes: Annotated[
        float, typer.Option(min=0, max=1e6, help="How long to train; 0: only show the bundled pretrained model.")
    ] = 10.0,
    size: Annotated[int, typer.Option(min=32, max=256, help="Side of the pictures in pixels; a multiple of 4.")] = 64,
    dim: Annotated[
        int, typer.Option(min=1, help="Channels of the first layer: fewer are faster, more learn more.")
    ] = 16,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    amp: AmpOption = Amp.auto,
    impl: ImplOption = Impl.auto,
    iterations: Annotated[int | None, typer.Option(min=10, help="Train this many instead of for --minutes.")] = None,
) -> None:
    """Show the bundled pretrained model on drawings, then train a small MUNIT; one HTML page shows both."""
    from munit_fast.demo import DemoOptions, run_demo

    console = new_console()
    options = DemoOptions(folder, minutes, size, dim, find_device(device), seed, amp.value, impl.value, iterations)
    page = run_demo(options, console)
    console.print(f"\nOpen {page} in a browser.", style="bold green", markup=False, soft_wrap=True)


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="A YAML file with the published keys.")],
    output_path: Annotated[Path, typer.Option("--output_path", help="Where logs/ and outputs/ go.")] = Path("."),
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    trainer: TrainerOption = TrainerName.auto,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, data order, crops and styles.")] = 0,
    amp: AmpOption = Amp.auto,
    impl: ImplOption = Impl.auto,
    auto_resume: Annotated[
        bool, typer.Option("--auto_resume", help="Resume if there is a run, else start one: for jobs that restart.")
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init_from",
            metavar="FILE|NAME",
            help="Begin from the networks of a model instead of random weights: a run's folder, a checkpoint, or what "
            "translate --pretrained takes. A resumed run goes on from its own state.",
        ),
    ] = None,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing", help="Recompute activations in the backward pass instead of storing them: less memory."
        ),
    ] = False,
    save_minutes: Annotated[
        float,
        typer.Option("--save_minutes", min=0, help="Save the state this often, in addition to snapshot_save_iter."),
    ] = 15.0,
    keep: Annotated[int, typer.Option(min=1, help="States to keep (resume_########.pt).")] = 3,
    patience: Annotated[
        int, typer.Option(min=1, max=256, help="Stop after this many iterations in a row without a finite gradient.")
    ] = 50,
    patience_evals: Annotated[
        int | None,
        typer.Option(
            "--patience_evals", min=1, help="End early after this many evaluations (eval_iter) without a better one."
        ),
    ] = None,
    peer_timeout: Annotated[
        float,
        typer.Option(
            "--peer_timeout", min=1, help="Under torchrun: seconds until a rank that does not answer counts as lost."
        ),
    ] = 300.0,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of torch on a CPU. 0: the fastest number, measured here.")
    ] = 0,
    allow_outside: AllowOutsideOption = False,
    wandb: Annotated[str | None, typer.Option(help="Also log to this Weights & Biases project.")] = None,
    preset: Annotated[
        PresetName | None,
        typer.Option(help="A set of values for the keys that the configuration does not give; see its key preset."),
    ] = None,
    override: OverrideOption = None,
) -> None:
    """Train. Ctrl-C or SIGTERM saves and stops; --resume continues. torchrun -m munit_fast train: on many devices."""
    from munit_fast.config import parse_config, read_config
    from munit_fast.train import PeerError, TrainOptions
    from munit_fast.train import train as run

    console = new_console()
    text = read_config(config)
    cfg = parse_config(text, source=str(config), preset=preset and preset.value)
    options = TrainOptions(
        config.stem,
        output_path,
        trainer.value,
        resume,
        find_device(device),
        seed,
        amp=amp.value,
        threads=threads,
        impl=impl.value,
        auto_resume=auto_resume,
        init_from=init_from,
        checkpointing=checkpointing,
        save_minutes=save_minutes,
        keep=keep,
        patience=patience,
        patience_evals=patience_evals,
        peer_timeout=peer_timeout,
        allow_outside=allow_outside,
        wandb=wandb,
        overrides=override or (),
    )
    try:
        result = run(cfg, options, config_text=text, console=console)
    except PeerError:  # the main rank has reported it
        raise typer.Exit(1) from None
    if not result.main:
        return
    how = "finished" if result.finished else "finished early" if result.early else "stopped"
    console.print(
        f"{how} after iteration {result.iterations}; checkpoints in {result.folder.checkpoints}",
        markup=False,
        soft_wrap=True,
    )
    if result.skipped_steps:
        console.print(f"{result.skipped_steps} steps were skipped because their gradient was not finite")

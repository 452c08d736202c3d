"""The model that the options of a command name: a pretrained one, or a run's configuration with a checkpoint of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from munit_fast.cli.options import Impl, TrainerName

if TYPE_CHECKING:
    from munit_fast.config import Config
    from munit_fast.models import MUNIT, UNIT

PretrainedOption = Annotated[
    str | None,
    typer.Option(
        "--pretrained",
        help="The bundled model openmoji-lines2color, a .safetensors file of `munit-fast export`, a folder of "
        "save_pretrained, or OWNER/NAME on the Hugging Face Hub.",
    ),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Instead: the configuration of a run, ...")]
CheckpointOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--checkpoint", help="... and a gen_########.pt file of it; or two, of one generator each, domain A's first."
    ),
]
EmaOption = Annotated[
    bool, typer.Option("--ema/--no-ema", help="Use the moving average of the weights where the run kept one.")
]


def load_model(
    pretrained: str | None,
    config: Path | None,
    checkpoint: list[Path] | None,
    *,
    trainer: TrainerName,
    impl: Impl,
    ema: bool,
    console: Console,
) -> MUNIT | UNIT:
    """The model that the options name, on the CPU, with its weights, in evaluation mode.

    Raises:
        ValueError: The options name no model, or more than one.
        CheckpointError: The file cannot be used.
    """
    from munit_fast.config import load_config
    from munit_fast.models.munit import from_pretrained

    if pretrained is not None:
        if config or checkpoint or trainer is not TrainerName.auto or not ema:
            raise ValueError(
                "--pretrained names a whole model: leave out --config, --checkpoint, --trainer and --no-ema"
            )
        model = from_pretrained(pretrained, impl.value)
        print_notes(model.about, console)
        return model
    if config is None or not checkpoint:
        raise ValueError("give --config and --checkpoint, or --pretrained openmoji-lines2color")
    return load_run(load_config(config), checkpoint, trainer=trainer, impl=impl, ema=ema, console=console).eval()


def load_run(
    config: Config, checkpoint: list[Path], *, trainer: TrainerName, impl: Impl, ema: bool, console: Console
) -> MUNIT | UNIT:
    """The model of a configuration with the weights of --checkpoint, and a line on what was taken where it needs one.

    Raises:
        ValueError: --checkpoint is given more than twice.
        CheckpointError: A file cannot be used.
    """
    from munit_fast.models.munit import MODELS

    config = with_measured_ranges(config, checkpoint[0])
    if len(checkpoint) > 2:
        raise ValueError(f"give --checkpoint once, or twice: domain A's, then B's; it is given {len(checkpoint)} times")
    model = MODELS[algorithm_of(config, checkpoint[0], trainer)](config, impl=impl.value).load(checkpoint, average=ema)
    if model.loaded != checkpoint[0]:
        console.print(f"weights: {model.loaded} (--no-ema: {checkpoint[0]})", markup=False, soft_wrap=True)
    for note in model.notes:
        console.print(note, markup=False, soft_wrap=True)
    return model


def with_measured_ranges(config: Config, checkpoint: Path) -> Config:
    """A configuration with `range_a: auto` as the run of a checkpoint has measured it.

    Raises:
        ConfigError: The run's config.yaml cannot be read.
    """
    from munit_fast.config import load_config

    kept = checkpoint.resolve().parent.parent / "config.yaml"
    keys = [key for key in ("range_a", "range_b") if getattr(config, key) == "auto"]
    if not keys or not kept.is_file():
        return config  # who needs a range says what would work
    run = load_config(kept)
    return config.model_copy(update={key: getattr(run, key) for key in keys})


def algorithm_of(config: Config, checkpoint: Path, trainer: TrainerName) -> str:
    """The algorithm of a checkpoint, by its tensors; where they do not tell, the configuration's.

    Raises:
        CheckpointError: The checkpoint cannot be read, or --trainer or the configuration names the other algorithm.
        ConfigError: The configuration is one for the other algorithm than --trainer.
    """
    from munit_fast.io.checkpoints import CheckpointError
    from munit_fast.io.foreign import read_content, trainer_of
    from munit_fast.models.algorithm import choose_algorithm

    found = trainer_of(checkpoint, read_content(checkpoint))
    if found is None:
        return choose_algorithm(config, trainer.value)
    if trainer.value not in ("auto", found):
        raise CheckpointError(
            f"{checkpoint}: holds networks of {found}; give --trainer {found}, or leave --trainer out"
        )
    if config.trainer not in (None, found):
        raise CheckpointError(
            f"{checkpoint}: holds networks of {found}, and the configuration has trainer: {config.trainer}; give the "
            "configuration of the same run"
        )
    return found


def print_notes(about: Mapping[str, str], console: Console) -> None:
    """Print the licence of weights, and whom to credit, where they are known."""
    from munit_fast.models.portable import licence_lines

    for line in licence_lines(about):
        console.print(line, markup=False, soft_wrap=True)

"""What several commands share: options, the console, the device."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

from munit_fast.utils.text import printable


class TrainerName(str, Enum):
    """The two published algorithms, or the one that the configuration or the checkpoint is of."""

    auto = "auto"
    MUNIT = "MUNIT"
    UNIT = "UNIT"


class PresetName(str, Enum):
    """The sets of values in munit_fast.config.presets."""

    published = "published"
    improved = "improved"
    small_data = "small_data"


DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]


class Amp(str, Enum):
    """Mixed precision."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    off = "off"


class Impl(str, Enum):
    """The backend; see munit_fast.functional."""

    auto = "auto"
    triton = "triton"
    cuda = "cuda"
    cpu = "cpu"
    reference = "reference"


AmpOption = Annotated[Amp, typer.Option("--amp", help="Mixed precision. auto: bf16 where it is faster, else off.")]
ImplOption = Annotated[
    Impl,
    typer.Option("--impl", help="Backend: the fastest here (auto), a given one, or the plain networks (reference)."),
]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        metavar="KEY=VALUE",
        help="Change a key of the configuration, of a resumed run too; may be given repeatedly.",
    ),
]
AllowOutsideOption = Annotated[
    bool, typer.Option("--allow_outside", help="Let list files name images outside their folder.")
]
TrainerOption = Annotated[
    TrainerName,
    typer.Option(
        "--trainer", help="The algorithm. auto: what the configuration or the checkpoint says.", case_sensitive=False
    ),
]


def new_console() -> Console:
    """A console on standard error: standard output is for results."""
    return Console(stderr=True)


def find_device(name: str):  # type: ignore[no-untyped-def]
    """The torch.device of --device. Raises ValueError where it cannot be used."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}; use cpu, or auto") from None
    return device


def print_error(message: str) -> None:
    """Print a message on standard error, each line after the program's name."""
    for line in printable(message).splitlines():
        print(f"munit-fast: {line}", file=sys.stderr)

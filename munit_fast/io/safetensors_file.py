"""Trained generators as one file to hand on: safetensors, with the configuration and the licence inside.

The tensors are those of gen_########.pt as "a.<name>" and "b.<name>", in half precision unless asked otherwise; the
header says which trainer and configuration they belong to, and under which terms they may be used. Such a file holds
numbers and text only: nothing in it can run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from munit_fast.config import Config, ConfigError, parse_config
from munit_fast.io.atomic import atomic_write_bytes, printable
from munit_fast.io.checkpoints import CheckpointError, describe_network

if TYPE_CHECKING:
    from munit_fast.models.munit import MUNIT, UNIT

SUFFIX = ".safetensors"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_FORMAT = "munit-fast generators 1"
_OURS = ("format", "trainer", "config")
_MOST_NOTES, _MOST_CHARACTERS = 20, 500  # of a file from elsewhere, and of each
# What says where images lie on the machine that trained is of no use elsewhere.
_PLACES = {name for name in Config.model_fields if name.startswith("data_")}


@dataclass(frozen=True)
class Portable:
    """What a portable file holds. `about`: its other notes, as licence and attribution."""

    trainer: str
    config: Config
    states: dict[str, dict[str, Tensor]] = field(repr=False)
    about: Mapping[str, str] = field(default_factory=dict)


def write_portable(
    path: str | Path, model: MUNIT | UNIT, *, dtype: str = "fp16", about: Mapping[str, str] | None = None
) -> None:
    """Write both generators of a model; the file appears whole or not at all.

    dtype: "fp16" (half the size; weights are rounded to 11 bits) or "fp32". about: notes to keep in the header, plain
    text by plain names. Raises ValueError for a wrong argument or weights that fp16 cannot hold, FileWriteError.
    """
    path = check_name(path)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    notes = {key: _one_line(value) for key, value in (about or {}).items()}
    if wrong := [key for key in _OURS if key in notes]:
        raise ValueError(f"about: {wrong[0]} is written by munit-fast itself; choose another name")
    tensors = {}
    for domain, network in (("a", model.gen_a), ("b", model.gen_b)):
        for name, value in network.state_dict().items():
            tensor = value.detach().cpu().to(DTYPES[dtype] if value.is_floating_point() else value.dtype)
            if not torch.isfinite(tensor).all():
                raise ValueError(
                    f"{domain}.{name} is not finite in {dtype}" + ("; use fp32" if dtype != "fp32" else "")
                )
            tensors[f"{domain}.{name}"] = tensor.contiguous()
    config = model.config.model_dump(exclude_none=True, exclude=_PLACES)
    metadata = {"format": _FORMAT, "trainer": model.trainer, "config": yaml.safe_dump(config, sort_keys=False)}
    atomic_write_bytes(path, save(tensors, metadata=metadata | notes))


def check_name(path: str | Path) -> Path:
    """The path of a file to write. Raises ValueError unless it ends in .safetensors and its folder exists."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: the name must end in {SUFFIX}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    return path


def read_portable(path: str | Path) -> Portable:
    """Read a file of `write_portable`, on the CPU. Raises CheckpointError for whatever is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            # Copies: what is mapped from a file would change with it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({str(error).splitlines()[0]})") from None
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not made by `munit-fast export`; its header has no format {_FORMAT!r}")
    trainer = metadata.get("trainer", "")
    if trainer not in ("MUNIT", "UNIT"):
        raise CheckpointError(f"{path}: the trainer must be MUNIT or UNIT; the header says {trainer!r}")
    try:
        config = parse_config(metadata.get("config", ""), source=f"{path}: configuration inside")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    states: dict[str, dict[str, Tensor]] = {"a": {}, "b": {}}
    for name, tensor in tensors.items():
        domain, _, rest = name.partition(".")
        if domain not in states:
            raise CheckpointError(f"{path}: tensor {name!r} belongs to neither generator a nor b")
        if tensor.dtype not in DTYPES.values() or not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: {name} must hold finite numbers in {' or '.join(DTYPES)}; it is {tensor.dtype}"
            )
        states[domain][rest] = tensor
    for domain, state in states.items():
        _check_described(path, trainer, config, domain, state)
    notes = [(key, _one_line(value)) for key, value in metadata.items() if key not in _OURS]
    return Portable(trainer, config, states, dict(notes[:_MOST_NOTES]))


def _one_line(note: str) -> str:
    """A note as it may be printed: one line of bounded length, without what a terminal obeys."""
    if not isinstance(note, str):
        raise ValueError(f"about: a note is text; got {type(note).__name__}")
    return printable(" ".join(note[: 2 * _MOST_CHARACTERS].split()))[:_MOST_CHARACTERS]


def _check_described(path: Path, trainer: str, config: Config, domain: str, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where the header asks for other networks than the tensors are of.

    Before anything is built: the header of a foreign file could ask for a billion layers.
    """
    wanted = {f"gen.{name}": value for name, value in config.gen.model_dump().items()}
    wanted |= {"trainer": trainer, "input channels": getattr(config, f"input_dim_{domain}")}
    found = describe_network(state)
    if "gen.dim" not in found:
        raise CheckpointError(f"{path}: the tensors {domain}.* are not those of a generator")
    for name, value in found.items():
        if value != wanted[name]:
            raise CheckpointError(
                f"{path}: {name} is {wanted[name]} in the header and {value} in the tensors {domain}.*"
            )

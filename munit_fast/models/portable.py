"""Trained generators as one .safetensors file, with their configuration and licence: `munit-fast export` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml
from torch import Tensor, nn

from munit_fast.config import Config, ConfigError, parse_config
from munit_fast.io.checkpoints import CheckpointError, describe_network
from munit_fast.io.safetensors_file import TensorFile, as_generators, read_tensors, write_generators

# What says where images lie on the machine that trained is of no use elsewhere, and the algorithm is named beside.
DATA_KEYS = {"trainer", *(name for name in Config.model_fields if name.startswith("data_"))}


@dataclass(frozen=True)
class PortableModel:
    """What such a file holds, checked: a model can be built of it.

    Attributes:
        trainer: "MUNIT" or "UNIT".
        config: The configuration of the networks.
        states: {"a": state_dict, "b": state_dict} of the generators, on the CPU, in float16 or float32.
        about: The file's notes: licence, attribution, how it was trained.
    """

    trainer: str
    config: Config
    states: dict[str, dict[str, Tensor]] = field(repr=False)
    about: Mapping[str, str] = field(default_factory=dict)


class Exportable(Protocol):
    """What `write_portable` reads of a model, which is `mf.MUNIT` or `mf.UNIT`."""

    @property
    def trainer(self) -> str:
        """ "MUNIT" or "UNIT"."""

    @property
    def config(self) -> Config:
        """The configuration of the networks."""

    @property
    def gen_a(self) -> nn.Module:
        """The generator of domain A."""

    @property
    def gen_b(self) -> nn.Module:
        """The generator of domain B."""


def write_portable(
    path: str | Path, model: Exportable, *, dtype: str = "fp16", about: Mapping[str, str] | None = None
) -> None:
    """Write both generators of a model; the file appears whole or not at all.

    Args:
        path: The file, which must end in .safetensors; its folder must exist.
        model: The model whose weights and configuration are written, without where its training images lay.
        dtype: "fp16" (half the size; weights are rounded to 11 bits) or "fp32".
        about: Notes for the header, plain text by plain names, such as "licence" and "attribution".

    Raises:
        ValueError: An argument is none of the above, or a weight is not finite in `dtype`.
        FileWriteError: The file cannot be written.
    """
    states = {"a": model.gen_a.state_dict(), "b": model.gen_b.state_dict()}
    write_generators(path, states, trainer=model.trainer, config=config_text(model.config), dtype=dtype, notes=about)


def config_text(config: Config) -> str:
    """The configuration of networks as YAML text, as `config_values`."""
    return yaml.safe_dump(config_values(config), sort_keys=False)


def config_values(config: Config) -> dict[str, Any]:
    """The configuration that goes with a model's weights, without where training images lay.

    Spectral norms are worked into the weights: the configuration is that of networks without them.
    """
    values = config.model_dump(exclude_none=True, exclude={*DATA_KEYS, "preset", "preset_keys"})
    values["gen"]["weight_norm"] = "none"
    return values


def licence_lines(about: Mapping[str, str]) -> list[str]:
    """The licence of weights, and whom to credit, where they are known: a line each, for whoever loads them."""
    return [f"{note}: {about[note]}" for note in ("licence", "attribution") if note in about]


def _with_background(config: Config, about: Mapping[str, str]) -> Config:
    """The configuration with the grey level that files of earlier versions name in a note, "matte"."""
    text = about.get("matte", "")
    named = text.isascii() and text.isdigit() and len(text) < 4 and int(text) < 256
    return config.model_copy(update={"background": int(text)}) if named else config


def read_portable(path: str | Path) -> PortableModel:
    """Read a file of `write_portable`. Raises CheckpointError where it is missing or damaged, and as `as_portable`."""
    return as_portable(path, read_tensors(path))


def as_portable(path: str | Path, file: TensorFile) -> PortableModel:
    """The model in what a file of `write_portable` holds.

    Args:
        path: Names the file in messages.
        file: Of `munit_fast.io.safetensors_file.read_tensors`.

    Raises:
        CheckpointError: The file is of another program, or its header describes other networks than its tensors are of.
    """
    path = Path(path)
    header, notes, states = as_generators(path, file)
    trainer = header["trainer"]
    if trainer not in ("MUNIT", "UNIT"):
        raise CheckpointError(f"{path}: the trainer must be MUNIT or UNIT; the header says {trainer!r}")
    try:
        config = parse_config(header["config"], source=f"{path}: configuration inside")
    except ConfigError as error:
        raise CheckpointError("; ".join(str(error).splitlines())) from None
    for domain, state in states.items():
        _check_header(path, trainer, config, domain, state)
    return PortableModel(trainer, _with_background(config, notes), states, notes)


def _check_header(path: Path, trainer: str, config: Config, domain: str, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where the header asks for other networks than the tensors are of.

    Before anything is built: the header of a third-party file could ask for a billion layers.
    """
    wanted = {f"gen.{name}": value for name, value in config.gen.model_dump().items()}
    wanted |= {"trainer": trainer, "input channels": getattr(config, f"input_dim_{domain}")}
    found = describe_network(state)
    found.pop("gen.weight_norm", None)  # worked into the weights, wherever they are from
    if "gen.dim" not in found:
        raise CheckpointError(f"{path}: the tensors {domain}.* are not those of a generator")
    for name, value in found.items():
        if value != wanted[name]:
            raise CheckpointError(
                f"{path}: {name} is {wanted[name]} in the header and {value} in the tensors {domain}.*"
            )

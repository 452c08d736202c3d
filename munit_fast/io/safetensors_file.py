"""Generators as one safetensors file: what the header and the tensors of such a file may hold.

The tensors are those of gen_########.pt as "a.<name>" and "b.<name>". The header holds the format, the trainer, the
configuration as YAML text, and notes. Such a file holds numbers and text only: nothing in it can run code.
`munit_fast.models.portable` makes a model of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.utils.text import one_line

SUFFIX = ".safetensors"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_FORMAT = "munit-fast generators 1"
_RESERVED = ("format", "trainer", "config")  # header entries that are no notes
MAX_NOTES, _MAX_NOTE_CHARACTERS, _MAX_NAME_CHARACTERS = 20, 2000, 64  # of a file, of each note, of its name
_NOTE_NAME = re.compile(rf"[A-Za-z0-9_ .-]{{1,{_MAX_NAME_CHARACTERS}}}")


def check_name(path: str | Path) -> Path:
    """The path of a file to write. Raises ValueError unless it ends in .safetensors and its folder exists."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: the name must end in {SUFFIX}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    return path


def write_generators(
    path: str | Path,
    states: Mapping[str, Mapping[str, Tensor]],
    *,
    trainer: str,
    config: str,
    dtype: str = "fp16",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the state_dicts of two generators; the file appears whole or not at all.

    Args:
        path: The file, which must end in .safetensors; its folder must exist.
        states: {"a": state_dict, "b": state_dict}.
        trainer: "MUNIT" or "UNIT".
        config: The configuration as YAML text.
        dtype: "fp16" (half the size; weights are rounded to 11 bits) or "fp32".
        notes: Plain text by plain names, for the header: at most 20, of at most 2,000 characters each.

    Raises:
        ValueError: An argument is none of the above, or a weight is not finite in `dtype`.
        FileWriteError: The file cannot be written.
    """
    path = check_name(path)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    header = checked_notes(notes or {}, _RESERVED)
    tensors = {}
    for domain, state in states.items():
        for name, value in state.items():
            tensor = value.detach().cpu().to(DTYPES[dtype] if value.is_floating_point() else value.dtype)
            if not torch.isfinite(tensor).all():
                remedy = "; use fp32" if dtype != "fp32" else ""
                raise ValueError(f"{domain}.{name} is not finite in {dtype}{remedy}")
            tensors[f"{domain}.{name}"] = tensor.contiguous()
    header = {"format": _FORMAT, "trainer": trainer, "config": config} | header
    atomic_write_bytes(path, save(tensors, metadata=header))


@dataclass(frozen=True)
class TensorFile:
    """What any .safetensors file holds.

    Attributes:
        metadata: The text of the header.
        tensors: The tensors by name, on the CPU.
    """

    metadata: dict[str, str]
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def is_portable(self) -> bool:
        """Whether it has the header of `write_generators`."""
        return self.metadata.get("format") == _FORMAT


def read_tensors(path: str | Path) -> TensorFile:
    """Read any .safetensors file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            # Copies: what is mapped from a file would change with it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return TensorFile(dict(file.metadata() or {}), tensors)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({str(error).splitlines()[0]})") from None


def as_generators(
    path: str | Path, file: TensorFile
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, Tensor]]]:
    """Check what a file of `write_generators` holds.

    Args:
        path: Names the file in messages.
        file: Of `read_tensors`.

    Returns:
        Three mappings: the header's "trainer" and "config"; its notes, each one printable line; the tensors on the CPU,
        {"a": state_dict, "b": state_dict}, finite and in float16 or float32.

    Raises:
        CheckpointError: The file is of another program, or holds other tensors.
    """
    metadata = file.metadata
    if not file.is_portable:
        raise CheckpointError(
            f"{path}: not made by `munit-fast export`; its header has no format {_FORMAT!r} (generators of other "
            "programs are loaded by --config and --checkpoint)"
        )
    states: dict[str, dict[str, Tensor]] = {"a": {}, "b": {}}
    for name, tensor in file.tensors.items():
        domain, _, rest = name.partition(".")
        if domain not in states:
            raise CheckpointError(f"{path}: tensor {name!r} belongs to neither generator a nor b")
        if tensor.dtype not in DTYPES.values() or not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: {name} must hold finite numbers in {' or '.join(DTYPES)}; it is {tensor.dtype}"
            )
        states[domain][rest] = tensor
    header = {key: metadata.get(key, "") for key in _RESERVED}
    notes = [(key, value) for key, value in metadata.items() if key not in _RESERVED][:MAX_NOTES]
    return header, {one_line(key, _MAX_NAME_CHARACTERS): note_line(value) for key, value in notes}, states


def checked_notes(notes: Mapping[str, str], reserved: Sequence[str] = ()) -> dict[str, str]:
    """Notes as lines that can be written whole: a licence may ask for every word of one.

    Args:
        notes: Text by plain names.
        reserved: Names that are no notes'.

    Raises:
        ValueError: There are too many, or one is too long, no text, or has no plain name.
    """
    if len(notes) > MAX_NOTES:
        raise ValueError(f"about: {len(notes)} notes; at most {MAX_NOTES} are written")
    lines = {}
    for name, note in notes.items():
        if not isinstance(name, str) or not _NOTE_NAME.fullmatch(name):
            raise ValueError(
                f"about: the name of a note is at most {_MAX_NAME_CHARACTERS} letters, digits, spaces and _ . -; "
                f"got {one_line(repr(name), 200)}"
            )
        if name in reserved:
            raise ValueError(f"about: {name} is written by munit-fast itself; choose another name")
        note_line(note)  # refuses what is no text
        lines[name] = one_line(note, len(note))
        if len(lines[name]) > _MAX_NOTE_CHARACTERS:
            raise ValueError(
                f"about: {name} has {len(lines[name])} characters; at most {_MAX_NOTE_CHARACTERS} are written"
            )
    return lines


def note_line(note: str) -> str:
    """A note as it may be printed: one line of bounded length, without what a terminal obeys.

    Args:
        note: The text.

    Raises:
        ValueError: It is no text.
    """
    if not isinstance(note, str):
        raise ValueError(f"about: a note is text; got {type(note).__name__}")
    return one_line(note, 2 * _MAX_NOTE_CHARACTERS)[:_MAX_NOTE_CHARACTERS]

"""What an exported graph says of itself: text by name, written into every format and checked when a file is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from munit_fast.config import Config, ConfigError, parse_config
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.io.safetensors_file import MAX_NOTES, checked_notes, note_line
from munit_fast.models.munit import MUNIT, UNIT
from munit_fast.models.portable import config_text
from munit_fast.utils.version import __version__

FORMAT = "munit-fast graph 1"
# What is not a note of the user's.
RESERVED = (
    *("format", "version", "trainer", "role", "direction", "domain", "dtype", "value_range"),
    *("size_multiple", "smallest_size", "config", "weights"),
)


@dataclass(frozen=True)
class Description:
    """The metadata of a graph, checked.

    Attributes:
        trainer: "MUNIT" or "UNIT".
        role: "translation" or "style".
        place: The direction of a translation, the domain of a style encoder.
        config: The configuration of the networks.
        weights: A checksum of the whole model's: graphs of one model have the same.
        about: The notes: licence, attribution, how the model was trained.
    """

    trainer: str
    role: str
    place: str
    config: Config
    weights: str
    about: Mapping[str, str]


def describe(
    model: MUNIT | UNIT, *, dtype: str, role: str, notes: Mapping[str, str] | None = None, **more: str
) -> dict[str, str]:
    """The metadata of a graph of a model.

    Args:
        model: The model.
        dtype: What its convolutions are computed in.
        role: "translation" or "style".
        notes: Notes beside those of the model.
        more: "direction" or "domain", "size_multiple", "smallest_size", "weights".

    Returns:
        Text by name. A note that is called like something else becomes "note_…".

    Raises:
        ValueError: There are too many notes, or one is too long, no text, or has no plain name.
    """
    own = {
        "format": FORMAT,
        "version": __version__,
        "trainer": model.trainer,
        "role": role,
        **more,
        "dtype": dtype,
        "value_range": "-1 to 1",
        "config": config_text(model.config),
    }
    about = checked_notes({**model.about, **(notes or {})})
    return own | {f"note_{name}" if name in RESERVED else name: text for name, text in about.items()}


def parse(source: str, metadata: Mapping[str, str]) -> Description:
    """Check the metadata of a file.

    Args:
        source: The file's name, for messages.
        metadata: Text by name.

    Raises:
        CheckpointError: The file is of another program, or its metadata is not what `describe` writes.
    """
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{source}: not made by `munit-fast export`; its metadata has no format {FORMAT!r}")
    trainer, role = metadata.get("trainer", ""), metadata.get("role", "")
    known = {"translation": ("direction", ("a2b", "b2a")), "style": ("domain", ("a", "b"))}
    if trainer not in ("MUNIT", "UNIT") or role not in known or (trainer, role) == ("UNIT", "style"):
        raise CheckpointError(f"{source}: the metadata names no graph of munit-fast ({trainer!r}, {role!r})")
    name, places = known[role]
    if metadata.get(name) not in places:
        raise CheckpointError(
            f"{source}: {name} must be {' or '.join(places)}; the metadata has {metadata.get(name)!r}"
        )
    if not metadata.get("weights"):  # without it any style encoder would fit
        raise CheckpointError(f"{source}: the metadata has no checksum of the weights; export it again")
    try:
        config = parse_config(metadata.get("config", ""), source=f"{source}: configuration inside")
    except ConfigError as error:
        raise CheckpointError("; ".join(str(error).splitlines())) from None
    notes = [(name, note_line(value)) for name, value in metadata.items() if name not in RESERVED]
    return Description(trainer, role, metadata[name], config, metadata["weights"], dict(notes[:MAX_NOTES]))

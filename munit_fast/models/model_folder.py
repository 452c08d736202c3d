"""A model as a folder: config.json, model.safetensors and README.md, as repositories of the Hugging Face Hub have it.

model.safetensors is a portable file (`munit_fast.models.portable`), whose header holds the configuration and counts.
config.json says the same where the Hub and its tools look for it, and is read before the weights are.
"""

from __future__ import annotations

import json
import re
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from munit_fast.config import Config, ConfigError, make_config
from munit_fast.io.atomic import atomic_directory, atomic_write_bytes, write_error
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.models.model_card import LIBRARY, is_own_card, read_metrics, write_card
from munit_fast.models.portable import Exportable, PortableModel, config_values, read_portable, write_portable
from munit_fast.utils.text import one_line, printable, read_bounded

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MAX_CONFIG_BYTES = 10**6
_MAX_DEPTH = 16
_MAX_DIGITS = 100
_MAX_CARD_BYTES = 2**22
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)  # or a string, in which they do not count


@dataclass(frozen=True)
class FolderConfig:
    """What config.json says: checked, but not yet compared with the weights.

    Attributes:
        trainer: "MUNIT" or "UNIT".
        config: The configuration of the networks.
    """

    trainer: str
    config: Config


def write_folder(
    folder: str | Path,
    model: Exportable,
    *,
    dtype: str = "fp32",
    about: Mapping[str, str] | None = None,
    metrics: str | Path | Mapping[str, Any] | None = None,
    title: str | None = None,
) -> None:
    """Write config.json, model.safetensors and README.md.

    A new folder appears whole or not at all. In an existing one, the current folder too, each file is replaced as a
    whole, the weights first: after an interruption it holds the old model, the new one, a configuration that disagrees
    with its weights, or weights alone, which `read_folder` refuses. A README.md that munit-fast did not write, or that
    was edited, is kept, with a warning.

    Args:
        folder: The folder; it is made where there is none.
        model: The model to write.
        dtype: "fp32", or "fp16" (half the size; weights are rounded to 11 bits).
        about: Notes for the header of the weights and for the card, plain text by plain names such as "licence".
        metrics: What `munit-fast evaluate --json` wrote, a file or its content, for the card.
        title: The model's name in the card; None: the folder's.

    Raises:
        ValueError: An argument is none of the above, or a weight is not finite in `dtype`.
        FileWriteError: The folder cannot be written.
    """
    folder = Path(folder)
    notes = dict(about or {})
    for key, value in notes.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"about: names and notes are text; got {key!r}: {value!r}")
    gen, generators = model.config.gen, (model.gen_a, model.gen_b)
    networks = {
        "networks": f"{model.trainer}, dim {gen.dim}, n_downsample {gen.n_downsample}, n_res {gen.n_res}"
        + (f", style_dim {gen.style_dim}" if model.trainer == "MUNIT" else ""),
        "images": f"short side {model.config.short_side('a')} (A) and {model.config.short_side('b')} (B) pixels, "
        f"{model.config.input_dim_a} and {model.config.input_dim_b} channels",
        "weights": f"{dtype}, {sum(p.numel() for g in generators for p in g.parameters()):,} parameters",
    }
    card = write_card(
        title or folder.resolve().name,
        trainer=model.trainer,
        about=notes,
        networks=networks,
        metrics=[] if metrics is None else read_metrics(metrics),
    )
    values = {
        "library_name": LIBRARY,
        "trainer": model.trainer,
        "config": config_values(model.config),
    }
    config = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    try:
        new = not folder.exists()
    except OSError as error:
        raise write_error(folder, error) from error
    if new:
        with atomic_directory(folder) as temporary:
            write_portable(temporary / WEIGHTS, model, dtype=dtype, about=notes)
            (temporary / CONFIG).write_text(config, encoding="utf-8")
            (temporary / CARD).write_text(card, encoding="utf-8")
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder")
    kept = _foreign_card(folder / CARD)
    write_portable(folder / WEIGHTS, model, dtype=dtype, about=notes)
    atomic_write_bytes(folder / CONFIG, config.encode())
    if kept:
        warnings.warn(
            f"{folder / CARD} was edited or is not of munit-fast, and was kept; remove it for a new card", stacklevel=3
        )
    else:
        atomic_write_bytes(folder / CARD, card.encode())


def read_folder(folder: Path) -> tuple[Path, PortableModel]:
    """Read a folder of `write_folder`; only config.json and model.safetensors are opened.

    Returns:
        The path of the weights, and what they hold.

    Raises:
        CheckpointError: A file is missing, damaged or of another program, or the two disagree.
    """
    config = read_config(folder / CONFIG)
    return folder / WEIGHTS, read_weights(folder / WEIGHTS, config)


def read_config(path: Path) -> FolderConfig:
    """Read config.json: strict JSON of at most 1 MB.

    Raises:
        CheckpointError: It is missing, damaged or of another library.
    """
    try:
        values = _strict_json(_read_text(path, MAX_CONFIG_BYTES))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: no {CONFIG}; a folder of munit-fast has it beside {WEIGHTS} (name a single .safetensors "
            "file by its own path)"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not plain JSON ({one_line(str(error) or type(error).__name__, 200)})") from None
    if not isinstance(values, dict) or values.get("library_name") != LIBRARY:
        raise CheckpointError(f"{path}: {_origin(values)}, not one of munit-fast")
    trainer, config = values.get("trainer"), values.get("config")
    if trainer not in ("MUNIT", "UNIT"):
        raise CheckpointError(f"{path}: trainer must be MUNIT or UNIT; it is {one_line(repr(trainer), 200)}")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: config must be an object of the configuration's keys")
    try:
        return FolderConfig(trainer, make_config(config, source=str(path)))
    except ConfigError as error:
        raise CheckpointError("; ".join(str(error).splitlines())) from None


def read_weights(path: Path, expected: FolderConfig) -> PortableModel:
    """Read model.safetensors, and compare what its header and config.json say of the networks and the sizes of images.

    How the model was trained may differ: nothing that is loaded depends on it.

    Raises:
        CheckpointError: It is missing, damaged or of another program, or says something else than config.json.
    """
    if not path.exists():
        others = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        found = f"; {printable(others[0])} is not read, since such files can run code" if others else ""
        raise CheckpointError(f"{path.parent}: no {WEIGHTS}{found}")
    file = read_portable(path)
    if file.trainer != expected.trainer:
        raise CheckpointError(
            f"{path}: trainer is {file.trainer} in the header and {expected.trainer} in {CONFIG}; save the model again"
        )
    said = _compared(expected.config)
    for key, value in _compared(file.config).items():
        if said[key] != value:
            raise CheckpointError(
                f"{path}: {key} is {value!r} in the header and {said[key]!r} in {CONFIG}; save the model again"
            )
    return file


def _compared(config: Config) -> dict[str, Any]:
    """What networks are built of, then the sizes of images: the first that differs is what a person must know of."""
    values = {f"gen.{key}": value for key, value in config.gen.model_dump().items()}
    sizes = ("input_dim_a", "input_dim_b", "new_size", "new_size_a", "new_size_b")
    return values | {key: getattr(config, key) for key in (*sizes, "crop_image_height", "crop_image_width")}


def _read_text(path: Path, max_bytes: int) -> str:
    """The text of a plain file: opening a named pipe would wait for ever. Raises OSError and ValueError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is a folder, a device or a pipe, not a plain file")
    return read_bounded(path, max_bytes).decode("utf-8")


def _strict_json(text: str) -> Any:
    """JSON as the standard has it: no NaN, no key twice, no deep nesting. Raises ValueError."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} levels")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(found)
        if len(values) != len(found):
            raise ValueError("a key stands there twice")
        return values

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def whole(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise ValueError(f"a number of more than {_MAX_DIGITS} digits")
        return int(digits)

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_int=whole)


def _origin(values: Any) -> str:
    """Whose configuration a foreign config.json seems to be."""
    keys = values if isinstance(values, dict) else {}
    if "_class_name" in keys or "_diffusers_version" in keys:
        return "the configuration of a diffusers model"
    if "architectures" in keys or "model_type" in keys or "transformers_version" in keys:
        return "the configuration of a transformers model"
    if isinstance(name := keys.get("library_name"), str):
        return f"the configuration of a model of {one_line(name, 200)}"
    return "the configuration of some other program"


def _foreign_card(path: Path) -> bool:
    """Whether there is a README.md that must not be lost."""
    try:
        return not is_own_card(_read_text(path, _MAX_CARD_BYTES))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True

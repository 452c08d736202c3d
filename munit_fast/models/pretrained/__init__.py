"""The bundled pretrained models: <name>.safetensors, with its model card <name>.md beside it."""

from __future__ import annotations

from pathlib import Path

from munit_fast.io.safetensors_file import SUFFIX

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names of the bundled models."""
    return sorted(path.stem for path in _FOLDER.glob(f"*{SUFFIX}"))


def locate(name: str | Path) -> Path:
    """The file of a bundled model, or the path of a .safetensors file as it is.

    Raises:
        ValueError: It is neither the name of a bundled model nor a path that ends in .safetensors.
    """
    path = Path(name)
    if path.suffix == SUFFIX:
        return path
    if str(name) not in names():
        raise ValueError(f"pretrained: there is no {str(name)!r}; use {', '.join(names())} or a {SUFFIX} file")
    return _FOLDER / f"{name}{SUFFIX}"

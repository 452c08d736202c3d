"""Trained models that come with munit-fast: <name>.safetensors, and <name>.md, its model card, beside it."""

from __future__ import annotations

from pathlib import Path

from munit_fast.io.safetensors_file import SUFFIX

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The models there are."""
    return sorted(path.stem for path in _FOLDER.glob(f"*{SUFFIX}"))


def locate(name: str | Path) -> Path:
    """The file of a model that comes along, or of any that is given by its path. Raises ValueError."""
    path = Path(name)
    if path.suffix == SUFFIX:
        return path
    if str(name) not in names():
        raise ValueError(f"pretrained: there is no {str(name)!r}; use {', '.join(names())} or a {SUFFIX} file")
    return _FOLDER / f"{name}{SUFFIX}"

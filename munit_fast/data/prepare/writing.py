"""Data set folders that appear whole or not at all, each with a ``manifest.json`` that says what it holds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SPLITS = ("trainA", "trainB", "testA", "testB")
VALIDATION = ("valA", "valB")  # of data sets that were asked for it


class DatasetError(ValueError):
    """A data set could not be prepared. The message is one line: what is wrong and what would work."""


def prepared_manifest(out: Path, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a data set already at ``out`` with these ``parameters``, marked ``"reused": True``.

    Returns None where ``out`` is free (missing or an empty folder).

    Raises:
        DatasetError: ``out`` holds something else, other parameters, or misses files that its manifest lists.
    """
    if not os.path.lexists(out):
        return None
    if not os.path.isdir(out):
        raise DatasetError(f"{out} exists and is not a folder; choose another output folder")
    if not any(out.iterdir()):
        return None
    manifest = _read_manifest(out)
    seen = manifest.get("parameters")
    if seen != dict(parameters):
        raise DatasetError(
            f"{out} holds a data set with other parameters ({seen}, wanted {dict(parameters)}); "
            "choose another output folder or delete this one"
        )
    missing = [name for name in manifest.get("files", {}) if not (out / name).is_file()]
    if missing:
        raise DatasetError(
            f"{out} misses {len(missing)} files, {missing[0]} among them; delete it and prepare it again"
        )
    return {**manifest, "reused": True}


def _read_manifest(out: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict):
        raise DatasetError(f"{out} is not empty and has no readable {MANIFEST}; choose another output folder")
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Add the hash of every file in ``folder`` to ``manifest``, write it there and return it.

    Keys are kept in the order given, so that equal data gives equal bytes. ``sha256`` covers the relative
    names and the contents of all files but the manifest.
    """
    complete = {**manifest, "sha256": tree_hash(folder)}
    text = json.dumps(complete, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
    return {**complete, "reused": False}


def tree_hash(folder: Path) -> str:
    """SHA-256 over the sorted relative names and the contents of all files but the manifest."""
    total = hashlib.sha256()
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    for name in names:
        if name != MANIFEST:
            total.update(f"{name}\0{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone, on every machine: the basis of the splits."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48

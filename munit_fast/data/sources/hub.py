"""Data sets of the Hugging Face Hub, or of this machine, by what a user names them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from munit_fast.data.picture import ImageError, one_line
from munit_fast.data.sources.base import Pages
from munit_fast.data.sources.huggingface import DatasetSource
from munit_fast.utils.optional import require
from munit_fast.utils.text import printable

PREFIX = "hf:"
_KEYS = ("split", "column", "label", "label_column", "config", "revision")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAVED = (("dataset_dict.json",), ("state.json", "dataset_info.json"))  # what save_to_disk writes


def is_saved(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `datasets.Dataset.save_to_disk` or `datasets.DatasetDict.save_to_disk`."""
    return any(all(os.path.isfile(os.path.join(folder, name)) for name in names) for names in _SAVED)


def open_dataset(
    spec: str, pages: Pages = "all", classes: Sequence[str] = (), allow_outside: bool = False, axis: int = 2
) -> DatasetSource:
    """Open one split of a data set.

    Args:
        spec: "hf:OWNER/NAME?split=train&column=image"; with a folder in place of OWNER/NAME nothing is downloaded.
            Other keys: label (may be repeated) and label_column, config, revision.
        pages: As in `ImageSource`.
        classes: Only rows of these classes, besides those that `spec` names as label.
        allow_outside: Whether the data set may name images outside its folder.
        axis: As in `ImageSource`.

    Raises:
        ImageError: The library is missing, the data set cannot be opened, or it has several splits and none is named.
    """
    place, values = parse(spec)
    found = _load(place, values)
    if hasattr(found, "keys"):
        if len(found) != 1:
            raise ImageError(f"{PREFIX}{place}: has the splits {', '.join(found)}; say ?split=NAME")
        found = next(iter(found.values()))
    roots = None if allow_outside else [place, *_caches()]
    label = f"{PREFIX}{spec.removeprefix(PREFIX)}"
    labels = [*values.get("label", ()), *classes]
    column, label_column = _first(values, "column"), _first(values, "label_column")
    return DatasetSource(found, label, column, labels, label_column, roots, pages, axis)


def split_names(spec: str) -> list[str]:
    """The splits of a data set; none where it is one itself, or `spec` names one. Raises ImageError."""
    found = _load(*parse(spec))
    return list(found) if hasattr(found, "keys") else []


def parse(spec: str) -> tuple[str, dict[str, list[str]]]:
    """The place and the values of "hf:PLACE?key=value&…", "~" expanded. Raises ImageError for an unknown key."""
    place, _, query = spec.removeprefix(PREFIX).partition("?")
    values = parse_qs(query, keep_blank_values=True)
    if "streaming" in values:
        raise ImageError(f"{spec}: a streamed data set has no random access, so a run could not be resumed exactly")
    for key, given in values.items():
        if key not in _KEYS or not all(given):
            raise ImageError(f"{spec}: {printable(key)} is no key with a value; use {', '.join(_KEYS)}")
        if key != "label" and len(given) > 1:
            raise ImageError(f"{spec}: {key} is given twice")
    return os.path.expanduser(place), values


def _first(values: dict[str, list[str]], key: str) -> str | None:
    return next(iter(values.get(key, ())), None)


def _load(place: str, values: dict[str, list[str]]) -> Any:
    datasets = require("datasets", "hub", error=ImageError)
    split, config, revision = (_first(values, key) for key in ("split", "config", "revision"))
    folder = Path(place)
    if not folder.is_dir() and (place.startswith(("/", ".", "~")) or not _REPOSITORY.fullmatch(place)):
        raise ImageError(f"{PREFIX}{place}: no such folder, and no OWNER/NAME of the Hub")
    saved = is_saved(folder)
    for key in ("config", "revision") if saved else ("revision",) if folder.is_dir() else ():
        if value := _first(values, key):
            what = "a folder that save_to_disk wrote" if saved else "a folder"
            raise ImageError(f"{PREFIX}{place}: {what} has no {key}; leave {key}={printable(value)} out")
    try:
        if not saved:
            return datasets.load_dataset(str(folder), config, split=split, revision=revision)
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # of the library, the network, the Hub
        raise ImageError(f"{PREFIX}{place}: cannot be opened ({printable(one_line(error))[:300]})") from error
    if split is None:
        return found
    if not hasattr(found, "keys"):
        if str(found.split) == split:
            return found
        if found.split is None:
            reason = f"is one data set that does not say its split; leave split={printable(split)} out"
        else:
            reason = f"no split {printable(split)}; it is {found.split} alone"
        raise ImageError(f"{PREFIX}{place}: {reason}")
    if split not in found:
        raise ImageError(f"{PREFIX}{place}: no split {split}; there are {', '.join(found)}")
    return found[split]


def _caches() -> list[str]:
    """Where `datasets` keeps what it downloads and unpacks."""
    config = require("datasets", "hub", error=ImageError).config
    names = ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH")
    return [str(getattr(config, name)) for name in names if getattr(config, name, None)]

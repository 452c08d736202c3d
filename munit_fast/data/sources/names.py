"""Names of files in sources, and why a file is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import PurePosixPath

from munit_fast.data.readers import IMAGE_EXTENSIONS
from munit_fast.utils.text import one_line

HIDDEN, NO_IMAGE = "hidden", "not an image"
_SHOWN_SUFFIXES = 6
_QUALIFIED = re.compile(r"(.*) \((\.?[^()]*)\)")


def is_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def left_out(name: str) -> str | None:
    """Why a file is left out by its name alone, None where it is not.

    Args:
        name: Relative to its source, with "/".
    """
    parts = name.split("/")
    if "__MACOSX" in parts or any(part.startswith(".") for part in parts):
        return HIDDEN  # thumbnails and resource forks of editors and operating systems
    if is_image(parts[-1]):
        return None
    suffix = one_line(PurePosixPath(parts[-1]).suffix.lower())[:12]
    return f"{NO_IMAGE} ({suffix or 'no extension'})"


def plain(name: str) -> str:
    """A name of an archive or table as a relative one with "/": it names an image here and leads nowhere."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join("_" if part == ".." else part for part in parts)


def below(name: str, folders: Sequence[str]) -> bool:
    """Whether a file lies in one of these folders."""
    return any(name.startswith(f"{folder.strip('/')}/") for folder in folders)


def without_shared_folder(names: Sequence[str]) -> list[str]:
    """The names relative to the folder that all share: archives are often made with it."""
    parts = [name.split("/") for name in names]
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*(part[:-1] for part in parts))))
    return ["/".join(part[shared:]) for part in parts]


def skipped_line(label: str, skipped: Counter[str]) -> str:
    """ "37 files skipped in trainA: 30 not an image (.txt, .json), 5 hidden, 2 in a loop of links"."""
    counts: Counter[str] = Counter()
    details: dict[str, list[str]] = {}
    for reason, count in skipped.most_common():
        match = _QUALIFIED.fullmatch(reason)
        general = match[1] if match else reason
        counts[general] += count
        details.setdefault(general, []).extend([match[2]] if match else [])
    words = []
    for reason, count in counts.most_common():
        shown = [*details[reason][:_SHOWN_SUFFIXES], *(["…"] if len(details[reason]) > _SHOWN_SUFFIXES else [])]
        words.append(f"{count} {reason}" + (f" ({', '.join(shown)})" if shown else ""))
    total = skipped.total()
    return f"{total} {'file' if total == 1 else 'files'} skipped in {label}: {', '.join(words)}"

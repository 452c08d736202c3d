"""Text from elsewhere: bounded when it is read, made safe for terminals and for file names."""

from __future__ import annotations

import os
import re

# Control characters and those that turn the direction of writing, what Windows refuses, and bytes that were no UTF-8.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, on Windows
MAX_NAME_BYTES = 200  # of 255: numbers and extensions follow


def printable(text: str) -> str:
    """Third-party text for a message: control characters, which a terminal obeys, as escapes."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def one_line(text: str, most: int = 1000) -> str:
    """Third-party text as one line for a message: at most the first `most` characters, made `printable`."""
    return printable(" ".join(text[:most].split()))


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 300 characters."""
    lines = [line for line in printable(str(error)).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def safe_name(text: str) -> str:
    """A plain file name out of any text: no separators, no "..", nothing that a terminal obeys, at most 200 bytes."""
    name = _UNSAFE.sub("_", text).encode()[:MAX_NAME_BYTES].decode(errors="ignore").rstrip(" .").lstrip(" ")
    if not name.strip("."):
        name = "_"
    return f"_{name}" if _RESERVED.fullmatch(name) else name


def read_bounded(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a file or pipe that should be small: /dev/zero, or a log in place of a list, is refused.

    Args:
        path: The file or pipe.
        max_bytes: The largest size.

    Raises:
        OSError: It cannot be read.
        ValueError: It has more bytes; the message does not name the path.
    """
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes")
    return data

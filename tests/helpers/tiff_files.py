"""TIFF files tag by tag, right or wrong."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any


def made(tags: dict[int, Any], data: bytes, order: str = "<", drop: tuple[int, ...] = ()) -> BytesIO:
    """A TIFF of 2x6 grey pixels of 8 bits in one strip, but for `tags`: a number, several, or (type, values)."""
    height, width = 2, 6
    base: dict[int, Any] = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: height}
    entries = {**base, 279: len(data), **tags}
    parts, after = [], 8 + 2 + 12 * len(entries.keys() - set(drop)) + 4
    extra = b""
    for tag in sorted(entries.keys() - set(drop)):
        value = entries[tag]
        kind, values = value if isinstance(value, tuple) and isinstance(value[0], str) else ("", value)
        values = values if isinstance(values, tuple) else (values,)
        kind = kind or ("H" if max(values) < 2**16 and tag not in (273, 279) else "I")
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            place, extra = after + len(extra), extra + packed + b"\0" * (len(packed) % 2)
            packed = struct.pack(f"{order}I", place)
        number = {"B": 1, "H": 3, "I": 4, "f": 11, "d": 12}[kind]
        parts.append((tag, struct.pack(f"{order}HHI", tag, number, len(values)), packed.ljust(4, b"\0")))
    start = struct.pack(f"{order}I", after + len(extra))
    body = b"".join(head + (start if tag == 273 and entries[273] == 0 else value) for tag, head, value in parts)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(parts))
    return BytesIO(head + body + bytes(4) + extra + data)

"""Damaged bytes and odd values, and what every target of the fuzzer checks."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

PIXELS = 2**16  # MUNIT_FAST_MAX_PIXELS of the loaders
ROOT = Path(__file__).parents[2]
GENERATOR = {
    "dim": 2,
    "mlp_dim": 4,
    "style_dim": 2,
    "n_res": 1,
    "n_downsample": 1,
    "activ": "relu",
    "pad_type": "reflect",
}
Target = Callable[[bytes], None]

_TOKENS = [
    b"\0",
    b"\xff" * 8,
    b"-1",
    b"\x80\x02",
    b"9" * 30,
    b"&a [*a]",
    b"<<: *a",
    b"!!python/name:os.system ",
    b"../",
    b"\n",
]
STEP = st.tuples(
    st.sampled_from(["flip", "set", "insert", "cut", "drop", "copy", "token", "grow"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
    st.integers(1, 64),
)


def mutate(data: bytes, steps: list[tuple[str, float, int, int]]) -> bytes:
    """Damage bytes a little: places are shares of the length, so that a step means the same for every input."""
    content = bytearray(data)
    for kind, place, value, length in steps:
        at = int(place * (len(content) + 1))
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << value % 8
        elif kind == "set" and at < len(content):
            content[at] = value
        elif kind == "insert":
            content[at:at] = bytes([value]) * length
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + length]
        elif kind == "copy":
            content[at:at] = content[at // 2 : at // 2 + length]
        elif kind == "token":
            content[at:at] = _TOKENS[value % len(_TOKENS)]
        elif kind == "grow":
            content[at : at + 4] = int(value << 24 | length).to_bytes(4, "big" if value % 2 else "little")
    return bytes(content)


def mutated(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(mutate, st.sampled_from(seeds), st.lists(STEP, max_size=6))


_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.binary(max_size=8)
    | st.text(max_size=12)
    | st.sampled_from([2**63, 10**400, -0.0, "1e400", "0x", "1:1:1", "relu", "sn", "nsgan", "step", "~", "=", "<<"])
)


VALUES = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def mended(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Damaged files, those of PNGs half of the time with the checksums of what they hold now."""
    return st.builds(lambda data, mend: with_checksums(data) if mend else data, mutated(seeds), st.booleans())


def with_checksums(data: bytes) -> bytes:
    """A PNG with right chunk checksums: damage behind them would never reach the decoder otherwise."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        out += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(out + data[at:])


def check_message(error: Exception, never: str = "\0") -> None:
    text = str(error)
    assert 0 < len(text) < 20_000, f"a message of {len(text)} characters"
    assert never not in text, text

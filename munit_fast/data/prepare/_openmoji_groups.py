"""Which emojis look or mean alike, which of them join the data set, and where in the split they stand."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from munit_fast.data.prepare._openmoji_art import SKIN_TONES, code_points, render_color, render_line
from munit_fast.data.prepare.writing import unit_hash

SURVEY_SIZE = 128  # for selection and grouping, whatever the output size: the members do not depend on it
COARSE_SIZE = 24  # drawings are compared at this size
# Two drawings that differ by less than this part of their ink are one group. Uniting only equal drawings left
# 23 of 219 test drawings this near to a training drawing (families that differ by one child, faces by an
# eyebrow). The largest group has 12 members: chains of small differences do not swallow all faces.
SAME_DRAWING = (15, 100)
MIN_INK = 0.01  # mean darkness of the line render
MIN_CHROMA = 0.03  # share of coloured pixels
COLORED = 25  # a pixel is coloured when its channels differ by more than this, of 255
TEST_FRACTION = 0.15
LINES_FRACTION = 0.425

_IGNORED = SKIN_TONES | {0xFE0F, 0x200D, 0x2640, 0x2642}  # joiners, gender signs
_PEOPLE = {0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1}  # man and woman are drawn as the person


@dataclass(frozen=True)
class Emoji:
    """What the survey keeps of one emoji; the renders are dropped (all of them would take 250 MB)."""

    name: str
    code_points: tuple[int, ...]
    line_hash: str
    color_hash: str
    coarse: bytes  # darkness of the line render, [COARSE_SIZE, COARSE_SIZE] uint8
    ink: float
    chroma: float

    @property
    def toned(self) -> bool:
        return not SKIN_TONES.isdisjoint(self.code_points)

    @property
    def drawable(self) -> bool:
        return self.ink >= MIN_INK and self.chroma >= MIN_CHROMA


def survey(name: str, svg: bytes) -> Emoji:
    """Render one emoji and measure what selection and grouping ask for."""
    line, color = render_line(svg, SURVEY_SIZE), render_color(svg, SURVEY_SIZE)
    pixels = np.asarray(color).astype(np.int16)
    return Emoji(
        name=name,
        code_points=code_points(name),
        line_hash=hashlib.sha256(line.tobytes()).hexdigest(),
        color_hash=hashlib.sha256(color.tobytes()).hexdigest(),
        coarse=(255 - np.asarray(line.resize((COARSE_SIZE, COARSE_SIZE), Image.Resampling.BOX))).tobytes(),
        ink=float(np.mean(255 - np.asarray(line)) / 255),
        chroma=float(np.mean(pixels.max(axis=2) - pixels.min(axis=2) > COLORED)),
    )


def group(emojis: Sequence[Emoji]) -> dict[str, str]:
    """Group key by emoji name: a chain of equal meanings or like drawings makes a group.

    Equal meaning: the same code points but for joiners, gender signs, skin tones, with man and woman read as
    person. Like drawing: the coarse line renders differ by less than ``SAME_DRAWING`` of the lesser ink.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    def unite(first: str, second: str) -> None:
        # The greater key becomes the root: a "meaning", which is legible and does not depend on the renderer.
        first, second = root(first), root(second)
        parent[min(first, second)] = max(first, second)

    for emoji in emojis:
        unite("meaning " + _meaning(emoji), "drawing " + emoji.coarse.hex())
    for one, other in _like_drawings(emojis):
        unite("drawing " + one.hex(), "drawing " + other.hex())
    return {emoji.name: root("meaning " + _meaning(emoji)).removeprefix("meaning ") for emoji in emojis}


def _meaning(emoji: Emoji) -> str:
    kept = [_PEOPLE.get(point, point) for point in emoji.code_points if point not in _IGNORED]
    return "-".join(f"{point:04X}" for point in kept)


def _like_drawings(emojis: Iterable[Emoji]) -> Iterable[tuple[bytes, bytes]]:
    """Pairs of coarse drawings that count as the same; in whole numbers, so that every machine agrees."""
    drawings = sorted({emoji.coarse for emoji in emojis})
    pixels = np.frombuffer(b"".join(drawings), np.uint8).reshape(len(drawings), -1).astype(np.int16)
    ink = pixels.sum(axis=1, dtype=np.int64)
    part, whole = SAME_DRAWING
    for i, drawing in enumerate(drawings):
        difference = np.abs(pixels[i + 1 :] - pixels[i]).sum(axis=1, dtype=np.int64)
        for j in np.nonzero(whole * difference < part * np.minimum(ink[i + 1 :], ink[i]))[0]:
            yield drawing, drawings[i + 1 + int(j)]


def choose(emojis: Iterable[Emoji], skipped: Counter[str]) -> list[Emoji]:
    """The members of the data set, by name: no skin tones, enough ink and colour, one emoji per line drawing.

    The reasons for the others are counted in ``skipped``.
    """
    chosen: dict[str, Emoji] = {}
    for emoji in sorted(emojis, key=lambda e: (len(e.code_points), e.name)):
        if emoji.toned:
            skipped["skin tone variant"] += 1
        elif emoji.ink < MIN_INK:
            skipped["too little ink"] += 1
        elif emoji.chroma < MIN_CHROMA:
            skipped["too little colour"] += 1
        elif emoji.line_hash in chosen:
            skipped["same line drawing"] += 1
        else:
            chosen[emoji.line_hash] = emoji
    return sorted(chosen.values(), key=lambda e: e.name)


def split_of(group_key: str, validation: float = 0.0) -> str:
    """``"test"``, ``"val"``, ``"trainA"`` or ``"trainB"``, decided by the group's key alone.

    The fraction ``validation`` of the groups for training is held out; the test is the same with and without it.
    """
    position = unit_hash(group_key)
    if position < TEST_FRACTION:
        return "test"
    if unit_hash(f"validation {group_key}") < validation:
        return "val"
    return "trainA" if position < TEST_FRACTION + LINES_FRACTION else "trainB"

"""Line drawings and colourings of the OpenMoji emojis: a real two-domain data set from one Python package.

Domain A holds line drawings and domain B coloured pictures. Every emoji belongs to one group of look-alikes,
and a group goes as a whole to the lines for training, to the colours for training or to the paired test
images, so that no drawing seen in training is met again in the test. Equal inputs give byte-equal folders.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from munit_fast.data.prepare._openmoji_art import (
    code_points,
    find_sources,
    is_flag,
    render_color,
    render_line,
    thin_out,
    versions,
)
from munit_fast.data.prepare._openmoji_groups import Emoji, choose, group, split_of, survey
from munit_fast.data.prepare.writing import SPLITS, VALIDATION, DatasetError, prepared_manifest, write_manifest
from munit_fast.io.atomic import atomic_directory

ATTRIBUTION = "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0"
REVISION = 2  # raise when the selection changes: a folder of another revision is not reused
Progress = Callable[[int, int], None]


def prepare_openmoji(
    out: Path,
    *,
    size: int = 128,
    progress: Progress | None = None,
    limit: int | None = None,
    validation: float = 0.0,
) -> dict[str, Any]:
    """Render the data set into ``out``: trainA and testA (lines, grey), trainB and testB (colour, RGB).

    All are PNG. testA and testB share file names. ``colourings/<test name>/`` holds the true colourings of
    the test drawings that have several (skin tones; they appear nowhere else). ``manifest.json`` lists files,
    groups and what was left out.

    Args:
        out: the folder to create; missing or empty. A complete data set with the same parameters is reused.
        size: side of the square images in pixels; which emojis are taken does not depend on it.
        progress: called as ``progress(done, total)`` now and then.
        limit: look at this many emojis only, evenly spread (for trials).
        validation: share of the training emojis that become pairs of their own, valA and valB, to choose a model by;
            the test pairs stay what they are.

    Returns:
        The manifest, with ``"reused"``: whether ``out`` had been prepared before.

    Raises:
        DatasetError: a package is missing, ``out`` holds something else, or a split came out empty.
        FileWriteError: ``out`` cannot be written. Nothing is left behind.
    """
    out = Path(out)
    if not 16 <= size <= 4096 or (limit is not None and limit < 1):
        raise DatasetError(f"size must lie in 16..4096 and limit be at least 1, not size={size}, limit={limit}")
    if not 0 <= validation <= 0.5:
        raise DatasetError(f"validation is a share of the training emojis, 0..0.5, not {validation}")
    parameters: dict[str, Any] = {"dataset": "openmoji", "revision": REVISION, "size": size, "limit": limit}
    if validation:
        parameters["validation"] = validation
    reused = prepared_manifest(out, parameters)
    if reused is not None:
        return reused
    sources = thin_out(find_sources(), limit)
    with atomic_directory(out) as stage:
        writer = _ImageWriter(stage, size, sources, validation)
        counts = _write_images(writer, progress or (lambda done, total: None))
        (stage / "ATTRIBUTION.txt").write_text(ATTRIBUTION + "\n", encoding="utf-8", newline="\n")
        manifest = {"parameters": parameters, "versions": versions(), "attribution": ATTRIBUTION, **counts}
        return write_manifest(stage, {**manifest, "files": dict(sorted(writer.files.items()))})


@dataclass
class _ImageWriter:
    """Renders emojis into a folder and records each file for the manifest."""

    folder: Path
    size: int
    sources: dict[str, bytes]
    validation: float = 0.0
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def line(self, where: str, emoji: Emoji, **notes: str) -> None:
        self._save(where, emoji, render_line(self.sources[emoji.name], self.size), notes)

    def color(self, where: str, emoji: Emoji, **notes: str) -> None:
        self._save(where, emoji, render_color(self.sources[emoji.name], self.size), notes)

    def _save(self, where: str, emoji: Emoji, image: Image.Image, notes: dict[str, str]) -> None:
        name = f"{where}/{emoji.name}.png"
        (self.folder / where).mkdir(parents=True, exist_ok=True)
        image.save(self.folder / name, format="PNG", optimize=True)
        self.files[name] = {"code_points": [f"{point:04X}" for point in emoji.code_points], **notes}


def _write_images(writer: _ImageWriter, progress: Progress) -> dict[str, Any]:
    """Survey, choose and write all images; the manifest's counts."""
    names = [name for name in writer.sources if not is_flag(code_points(name))]
    skipped = Counter({"flag": len(writer.sources) - len(names)})
    total = 2 * len(names)
    emojis = []
    for name in names:
        emojis.append(survey(name, writer.sources[name]))
        progress(len(emojis), total)
    groups = group(emojis)
    chosen = choose(emojis, skipped)
    splits = {emoji.name: split_of(groups[emoji.name], writer.validation) for emoji in chosen}
    _refuse_empty_splits(splits, 4 if writer.validation else 3)
    for done, emoji in enumerate(chosen):
        _write_emoji(writer, emoji, groups[emoji.name], splits[emoji.name])
        progress(len(names) + done * len(names) // len(chosen), total)
    tests = [emoji for emoji in chosen if splits[emoji.name] == "test"]
    colourings = _write_colourings(writer, tests, emojis)
    progress(total, total)
    return {
        "counts": {
            split: sum(name.startswith(f"{split}/") for name in writer.files)
            for split in SPLITS + (VALIDATION if writer.validation else ())
        },
        "skipped": dict(sorted(skipped.items())),
        "colourings": colourings,
    }


def _refuse_empty_splits(splits: dict[str, str], wanted: int) -> None:
    found = Counter(splits.values())
    if len(found) < wanted:
        raise DatasetError(f"too few emojis for all splits ({dict(found)}); raise limit or leave it out")


def _write_emoji(writer: _ImageWriter, emoji: Emoji, group_key: str, split: str) -> None:
    """A pair for the test or the validation; else a line drawing or a coloured picture."""
    paired = split in ("test", "val")
    if paired or split == "trainA":
        writer.line(f"{split}A" if paired else split, emoji, group=group_key)
    if paired or split == "trainB":
        writer.color(f"{split}B" if paired else split, emoji, group=group_key)


def _write_colourings(writer: _ImageWriter, tests: list[Emoji], emojis: list[Emoji]) -> dict[str, int]:
    """Write the colourings of each test drawing that has several distinct ones; the counts."""
    by_line: defaultdict[str, dict[str, Emoji]] = defaultdict(dict)
    for emoji in emojis:
        if emoji.drawable:
            by_line[emoji.line_hash].setdefault(emoji.color_hash, emoji)
    several = {test.name: list(by_line[test.line_hash].values()) for test in tests if len(by_line[test.line_hash]) > 1}
    for test, colourings in several.items():
        for emoji in colourings:
            writer.color(f"colourings/{test}", emoji)
    return {
        "drawings": len(several),
        "drawings_with_five_or_more": sum(len(colourings) >= 5 for colourings in several.values()),
        "files": sum(map(len, several.values())),
    }

"""A fixed part of a test set: evenly spread pictures, all of which can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from munit_fast.data import ImageError
from munit_fast.evaluate.pictures import Files, TestSet


def spread(count: int, total: int) -> list[int]:
    """`count` of the numbers 0..total-1 with even gaps; all of them where there are no more."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def subset(tests: TestSet, count: int) -> tuple[TestSet, list[str]]:
    """Some pictures of a test set, the same in every process: their places in the set choose them.

    The next picture takes the place of one that cannot be read, or whose partner cannot. They are read here, and kept
    in memory where they fit.

    Args:
        tests: The whole set.
        count: Pictures of each domain, of training pictures as well.

    Returns:
        The part, and a line for each picture that cannot be read.

    Raises:
        ImageError: Fewer than two pictures of a domain can be read.
    """
    notes: list[str] = []
    pictures: dict[str, Files] = {}
    numbers: Sequence[int] = ()
    if tests.paired:
        numbers, found = _readable([tests.pictures[d] for d in "ab"], count, notes)
        pictures = dict(zip("ab", found, strict=True))
    else:
        pictures = {d: _readable([tests.pictures[d]], count, notes)[1][0] for d in "ab"}
    train = {d: _readable([files], count, notes)[1][0] for d, files in tests.train.items()}
    colourings = [tests.colourings[i] for i in numbers] if tests.paired else []
    return replace(tests, pictures=pictures, train=train, colourings=colourings), notes


def _readable(together: Sequence[Files], count: int, notes: list[str]) -> tuple[Sequence[int], list[Files]]:
    """The numbers of `count` pictures that can be read in each of several sets, and these pictures of each set."""
    total = len(together[0])
    numbers, bad = spread(count, total), set[int]()
    while True:
        parts = [files.chosen(numbers) for files in together]
        failed = {place for part in parts for place in range(len(numbers)) if not _can_be_read(part, place, notes)}
        if not failed:
            break
        bad |= {numbers[place] for place in failed}
        taken = {number for place, number in enumerate(numbers) if place not in failed}
        kept: list[int] = []
        for place, number in enumerate(numbers):
            if place in failed:
                following = chain(range(number + 1, total), range(number))
                number = next((i for i in following if i not in bad and i not in taken), -1)
                taken.add(number)
            kept += [number] if number >= 0 else []
        numbers = kept
        if len(numbers) < 2:
            break
    if len(numbers) < 2:
        raise ImageError(
            f"{together[0].source.label}: {len(numbers)} of {total} images can be read; an evaluation compares sets, "
            f"and needs 2 of each domain{'; ' + notes[-1] if notes else ''}"
        )
    return numbers, parts


def _can_be_read(files: Files, place: int, notes: list[str]) -> bool:
    try:
        files[place]
    except ImageError as error:
        notes.append(str(error))
        return False
    return True

"""Data sets of the Hugging Face library `datasets`."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from munit_fast.data.picture import ImageError, one_line
from munit_fast.data.sources.base import HEAD, ImageSource, MissingClass, Pages
from munit_fast.data.sources.folders import open_file
from munit_fast.data.sources.names import is_image, plain, without_shared_folder
from munit_fast.utils import text
from munit_fast.utils.optional import require

_ROWS = 1000  # whose paths are read at a time


class DatasetSource(ImageSource):
    """The images of a column of a `datasets.Dataset`, in the order of its rows.

    A name is the path that the data set has for the image, where every row has one of its own; else the row's number.

    Args:
        dataset: With random access; a streaming one has none, so a run could not go on where it was.
        label: What messages call it.
        column: Of the images; None: the only one of type `datasets.Image`.
        classes: Only rows of these classes; empty: all rows.
        label_column: Of the classes; None: the only one of type `datasets.ClassLabel`, else "label".
        roots: Folders that images may lie in which the data set names but does not hold; None: anywhere.
        pages: As in `ImageSource`.
        axis: As in `ImageSource`.

    Raises:
        ImageError: No such column, or a streaming data set.
        MissingClass: No such class, or no row of it.
    """

    def __init__(
        self,
        dataset: Any,
        label: str = "data set",
        column: str | None = None,
        classes: Sequence[str] = (),
        label_column: str | None = None,
        roots: Sequence[str | os.PathLike[str]] | None = None,
        pages: Pages = "all",
        axis: int = 2,
    ) -> None:
        datasets = require("datasets", "hub", error=ImageError)
        if not isinstance(dataset, datasets.Dataset):
            raise ImageError(
                f"{label}: a {type(dataset).__name__} has no random access, so a run could not be resumed exactly; use "
                "one split of a data set that is not streamed"
            )
        self._roots = None if roots is None else [os.path.realpath(root) + os.sep for root in roots]
        features = dataset.features
        self._column = column or _only(features, datasets.Image, "column", label)
        if self._column not in features:
            raise ImageError(f"{label}: no column {self._column}; there are {', '.join(features)}")
        rows = _rows_of(dataset, classes, label_column, label)
        try:
            self._images = dataset.select_columns([self._column]).cast_column(
                self._column, datasets.Image(decode=False)
            )
            names = _names(self._images, self._column, rows)
            heads = _heads(self._images, self._column) if pages == "all" else []
        except Exception as error:  # pyarrow's, and those of datasets
            raise ImageError(f"{label}: column {self._column} does not hold images ({one_line(error)})") from error
        self._rows = dict(zip(names, rows))
        self._heads = {name: head for name, row in self._rows.items() if heads and (head := heads[row])}
        super().__init__(label, names, pages, axis=axis)
        self._heads = {}

    def head(self, file: str) -> bytes:
        """The first bytes of one of the images. Raises ImageError."""
        return self._heads.get(file) or super().head(file)

    def where(self, i: int) -> str:
        """What messages call image `i`."""
        return self.called(self.entries[i].file)

    def open(self, file: str) -> BinaryIO:
        """Open one of the images. Raises ImageError."""
        try:
            image = self._images[self._rows[file]][self._column] or {}
        except Exception as error:  # pyarrow's, of damaged files
            raise ImageError(f"{self.called(file)}: cannot be read ({one_line(error)})") from error
        if image.get("bytes"):
            return io.BytesIO(image["bytes"])
        path = image.get("path")
        if not path:
            raise ImageError(f"{self.called(file)}: the row has no image")
        try:
            real = os.path.realpath(path)
        except (OSError, ValueError) as error:
            raise ImageError(f"{self.called(file)}: {one_line(error)}") from error
        if self._roots is not None and not real.startswith(tuple(self._roots)):
            shown = text.one_line(path)
            raise ImageError(f"{self.called(file)}: {shown} lies outside the data set; use --allow_outside to read it")
        return open_file(Path(path))

    def called(self, name: str) -> str:
        """What messages call an image: its row, and its path where that tells more."""
        row = self._rows[name]
        return f"{self.label}, row {row}" + (
            "" if PurePosixPath(name).stem.isdecimal() else f" ({text.one_line(name)})"
        )


def _only(features: Any, kind: type, key: str, label: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        which = f"several ({', '.join(found)})" if found else f"none, of {', '.join(features)}"
        raise ImageError(f"{label}: which column holds the images? there are {which}; say ?{key}=NAME")
    return found[0]


def _rows_of(dataset: Any, classes: Sequence[str], column: str | None, label: str) -> list[int]:
    """The rows of these classes."""
    if not classes:
        return list(range(len(dataset)))
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    column = column or next((name for name, kind in kinds.items() if kind == "ClassLabel"), "label")
    if column not in kinds:
        raise ImageError(f"{label}: no column {column} with the classes; there are {', '.join(kinds)}")
    found = dataset.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()
    names = getattr(dataset.features[column], "names", None)
    texts = [names[value] if names and value is not None and 0 <= value < len(names) else str(value) for value in found]
    rows = [row for row, text in enumerate(texts) if text in classes]
    missing = [name for name in classes if name not in (names or texts)]
    if missing or not rows:
        raise MissingClass(label, missing or classes, names or set(texts))
    return rows


def _heads(images: Any, column: str) -> list[bytes | None]:
    """The first bytes of each row that holds its image itself; row by row `datasets` would read all of them."""
    compute = require("pyarrow.compute", "hub", error=ImageError)
    heads: list[bytes | None] = []
    for table in images.with_format("arrow").iter(_ROWS):
        for chunk in table.column(column).chunks:
            heads += compute.binary_slice(chunk.field("bytes"), 0, HEAD).to_pylist()
    return heads


def _names(images: Any, column: str, rows: Sequence[int]) -> list[str]:
    paths: list[str | None] = []
    for table in images.with_format("arrow").iter(_ROWS):
        paths += [(path or None) for chunk in table.column(column).chunks for path in chunk.field("path").to_pylist()]
    given = [plain(paths[row] or "") for row in rows]
    names = without_shared_folder(given)
    if len(set(names)) == len(names) and all(is_image(name) for name in names):
        return names
    digits = len(str(max(1, len(paths) - 1)))
    suffixes = [PurePosixPath(name).suffix if is_image(name) else "" for name in given]
    return [f"{row:0{digits}d}{suffix}" for row, suffix in zip(rows, suffixes)]

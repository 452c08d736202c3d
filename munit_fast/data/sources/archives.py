"""Images in archives that are read where they lie, nothing is unpacked: what zip and tar files have in common."""

from __future__ import annotations

import io
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from munit_fast.data.picture import MAX_PIXELS, ImageError, one_line
from munit_fast.data.readers import IMAGE_EXTENSIONS
from munit_fast.data.sources.base import HEAD, ImageSource, MissingClass, Pages
from munit_fast.data.sources.folders import open_file
from munit_fast.data.sources.names import below, left_out, plain, skipped_line, without_shared_folder
from munit_fast.utils import env

_BYTES_A_PIXEL = 8  # four channels of 16 bits


class Member(NamedTuple):
    """Where a file lies in an archive.

    Attributes:
        offset: Of its header (zip) or its content (tar).
        stored: Bytes that it takes there.
        size: Bytes that it has.
        method: How it is compressed, as zip files number it; 0: not.
        checksum: CRC-32 of its content, None where the archive has none.
    """

    offset: int
    stored: int
    size: int
    method: int = 0
    checksum: int | None = None


class ArchiveSource(ImageSource):
    """Images of one archive or of several shards; each is read by its offset, in any order and process.

    A name is that of the file in its archive, relative to the folder that all images share. Where two shards have a
    file of the same name, all names begin with their shard's.

    Args:
        paths: The archives.
        label: What messages call them; None: the path of a single one.
        pages: As in `ImageSource`.
        classes: Only images in these folders of the archives, as "trainA"; empty: all.
        axis: As in `ImageSource`.

    Raises:
        ImageError: An archive is missing, damaged or compressed as a whole, or there are no images in it.
        MissingClass: There are, but none in these folders.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        label: str | None = None,
        pages: Pages = "all",
        classes: Sequence[str] = (),
        axis: int = 2,
    ) -> None:
        self._archives = [Path(path) for path in paths]
        self._sizes: list[int] = []
        label = label or str(self._archives[0])
        left: list[tuple[str, str]] = []
        found = [(shard, *file) for shard, path in enumerate(self._archives) for file in self._files(path, left)]
        skipped = Counter(reason for _, reason in left)
        if not found:
            line = f"; {skipped_line(label, skipped)}" if skipped else ""
            raise ImageError(f"{label}: no images in it; looked for {' '.join(IMAGE_EXTENSIONS)}{line}")
        names = without_shared_folder([name for _, name, _ in found])
        if classes:
            kept = [i for i, name in enumerate(names) if below(name, classes)]
            missing = [folder for folder in classes if not any(below(names[i], [folder]) for i in kept)]
            if missing:
                raise MissingClass(label, missing, {name.rpartition("/")[0] for name in names if "/" in name})
            shared = found[0][1].removesuffix(names[0])
            folders = [folder.strip("/") for folder in classes]
            skipped = Counter(reason for name, reason in left if below(name.removeprefix(shared), folders))
            found, names = [found[i] for i in kept], without_shared_folder([names[i] for i in kept])
            label = f"{label}/{posixpath.commonpath(folders)}".rstrip("/")
        if len(set(names)) < len(names):
            shards = without_shared_folder([plain(os.path.abspath(path.with_suffix(""))) for path in self._archives])
            names = [f"{shards[shard]}/{name}" for (shard, _, _), name in zip(found, names)]
        order = sorted(range(len(names)), key=names.__getitem__)
        self._members = {names[i]: (found[i][0], found[i][2]) for i in order}
        super().__init__(label, list(self._members), pages, skipped, axis)

    def members(self, archive: BinaryIO) -> Iterator[tuple[str, Member | str]]:
        """The files of an archive: the name, and where it lies or why it cannot be read. Raises anything."""
        raise NotImplementedError

    def unpack(self, archive: BinaryIO, member: Member) -> bytes:
        """The content of a file. Raises anything."""
        raise NotImplementedError

    def unpack_start(self, archive: BinaryIO, member: Member, size: int) -> bytes:
        """The first bytes of a file, without reading all of it. Raises anything."""
        raise NotImplementedError

    def head(self, file: str) -> bytes:
        """The first bytes of one of the files. Raises ImageError."""
        shard, member = self._members[file]
        with open_file(self._archives[shard]) as archive:
            try:
                return self.unpack_start(archive, member, HEAD)
            except Exception as error:  # of damaged archives: zlib.error, struct.error, OSError
                raise ImageError(f"{self.called(file)}: damaged in its archive ({one_line(error)})") from error

    def open(self, file: str) -> BinaryIO:
        """Open one of the files. Raises ImageError."""
        shard, member = self._members[file]
        path = self._archives[shard]
        # Opened anew each time: processes that share a file share its place, and nothing has to be kept or locked.
        with open_file(path) as archive:
            if os.fstat(archive.fileno()).st_size != self._sizes[shard]:
                raise ImageError(f"{self.called(file)}: {path.name} has changed since the start; begin again")
            try:
                content = self.unpack(archive, member)
            except Exception as error:  # of damaged archives: zlib.error, struct.error, OSError
                raise ImageError(f"{self.called(file)}: damaged in its archive ({one_line(error)})") from error
        if not content:
            raise ImageError(f"{self.called(file)}: the file is empty")
        return io.BytesIO(content)

    def _files(self, path: Path, left: list[tuple[str, str]]) -> list[tuple[str, Member]]:
        """The images of an archive; what is left out goes to `left`, with the reason."""
        images: dict[str, Member] = {}
        most = env.max_pixels(MAX_PIXELS) * _BYTES_A_PIXEL
        with open_file(path) as archive:
            self._sizes.append(os.fstat(archive.fileno()).st_size)
            try:
                for name, member in self.members(archive):
                    name = plain(name)
                    if not isinstance(member, str):
                        member = _usable(member, most, self._sizes[-1])
                    reason = left_out(name) or (member if isinstance(member, str) else None)
                    if not isinstance(member, str) and reason is None:
                        reason = "replaced by a later file of the same name" if name in images else None
                        images[name] = member
                    if reason is not None:
                        left.append((name, reason))
            except ImageError as error:
                raise ImageError(f"{path}: {error}") from error
            except Exception as error:  # of damaged archives: anything
                raise ImageError(f"{path}: the archive is damaged or cut off ({one_line(error)})") from error
        return list(images.items())


def _usable(member: Member, most: int, archive_size: int) -> Member | str:
    if max(member.size, member.stored) > most:
        return f"larger than {most} bytes, see MUNIT_FAST_MAX_PIXELS"
    if member.offset < 0 or min(member.size, member.stored) < 0 or member.offset + member.stored > archive_size:
        return "outside the archive"
    return member

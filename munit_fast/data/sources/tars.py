"""Tar archives, webdataset's shards among them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from munit_fast.data.picture import ImageError
from munit_fast.data.sources.archives import ArchiveSource, Member
from munit_fast.utils.text import one_line

_BLOCK = 512
_WAY_OUT = "it has no random access; unpack it once with gunzip, bunzip2, unxz or zstd -d, and give the .tar"


class TarSource(ArchiveSource):
    """Images in plain tar archives. Of webdataset's samples (0001.jpg, 0001.json) the images are taken."""

    def notes(self) -> list[str]:
        """As of every source, and where webdataset's samples have several images: masks may be among them."""
        samples: dict[str, list[str]] = {}
        for file in dict.fromkeys(entry.file for entry in self.entries):
            folder, _, name = file.rpartition("/")
            samples.setdefault(f"{folder}/{name.partition('.')[0]}", []).append(file)
        several = [files for files in samples.values() if len(files) > 1]
        if not several:
            return super().notes()
        first = one_line(", ".join(several[0][:4]))
        return [
            *super().notes(),
            f"{self.label}: {len(several)} samples have several images ({first}), each of which is used; to use one "
            "kind, keep it in archives of its own",
        ]

    def members(self, archive: BinaryIO) -> Iterator[tuple[str, Member | str]]:
        """The files of an archive. Raises ImageError, or anything where it is damaged."""
        files: dict[str, Member] = {}  # what hard links lead to
        at = -1
        with _opened(archive) as opened:
            for info in opened:
                if info.offset <= at:  # a negative size would lead back for ever
                    raise ImageError(f"the archive is damaged at byte {info.offset}")
                at = info.offset
                if info.isdir():
                    continue
                if info.islnk() and info.linkname in files:
                    yield info.name, files[info.linkname]
                elif info.issym() or info.islnk():
                    yield info.name, "a link inside an archive"
                elif not info.isreg() or info.issparse():
                    yield info.name, "not a plain file"
                else:
                    files[info.name] = member = Member(info.offset_data, info.size, info.size)
                    yield info.name, member
            _check_end(archive, opened.offset, len(files))

    def unpack(self, archive: BinaryIO, member: Member) -> bytes:
        """The content of a file. Raises ImageError where the archive is too short."""
        archive.seek(member.offset)
        content = archive.read(member.size)
        if len(content) != member.size:
            raise ImageError("the archive is cut off")
        return content

    def unpack_start(self, archive: BinaryIO, member: Member, size: int) -> bytes:
        """The first bytes of a file."""
        archive.seek(member.offset)
        return archive.read(min(size, member.size))


def _opened(archive: BinaryIO) -> tarfile.TarFile:
    head = archive.read(6)
    archive.seek(0)
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise ImageError(f"a compressed archive: {_WAY_OUT}")
    try:
        return tarfile.open(fileobj=archive, mode="r:")
    except tarfile.ReadError as error:
        raise ImageError(f"not a tar archive ({error})") from error


def _check_end(archive: BinaryIO, offset: int, count: int) -> None:
    """tarfile takes a damaged header for the end."""
    archive.seek(offset)
    block = archive.read(_BLOCK)
    if block and block != bytes(_BLOCK):
        raise ImageError(f"the archive is damaged or cut off at byte {offset}, after {count} files")

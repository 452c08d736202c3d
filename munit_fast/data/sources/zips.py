"""Zip archives."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from munit_fast.data.picture import ImageError
from munit_fast.data.sources.archives import ArchiveSource, Member

_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_HEADER, _LENGTHS = 30, slice(26, 30)  # bytes of a file's header before its name; where it says how long that is
_ENCRYPTED = 0x1
_START = 4096  # compressed bytes, of which the first ones of a file are unpacked


class ZipSource(ArchiveSource):
    """Images in zip archives, stored or deflated."""

    def members(self, archive: BinaryIO) -> Iterator[tuple[str, Member | str]]:
        """The files of an archive. Raises ImageError, or anything where it is damaged."""
        try:
            with zipfile.ZipFile(archive) as opened:
                infos = opened.infolist()
        except zipfile.BadZipFile as error:
            raise ImageError(f"not a zip archive, or cut off ({error})") from error
        for info in infos:
            if not info.is_dir():
                yield info.filename, _member(info)

    def unpack(self, archive: BinaryIO, member: Member) -> bytes:
        """The content of a file. Raises ImageError, or anything where it is damaged."""
        _seek_content(archive, member)
        content = archive.read(member.stored)
        if member.method == _DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
        if len(content) != member.size or zlib.crc32(content) != member.checksum:
            raise ImageError("its checksum is wrong")
        return content

    def unpack_start(self, archive: BinaryIO, member: Member, size: int) -> bytes:
        """The first bytes of a file. Raises ImageError, or anything where it is damaged."""
        _seek_content(archive, member)
        content = archive.read(min(member.stored, _START))
        if member.method == _DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size)
        return content[:size]


def _seek_content(archive: BinaryIO, member: Member) -> None:
    archive.seek(member.offset)
    header = archive.read(_HEADER)
    if not header.startswith(b"PK\3\4"):
        raise ImageError("there is no file where the archive's directory has it")
    archive.seek(sum(struct.unpack("<HH", header[_LENGTHS])), 1)


def _member(info: zipfile.ZipInfo) -> Member | str:
    if info.flag_bits & _ENCRYPTED:
        return "encrypted"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link inside an archive"
    if info.compress_type not in (_STORED, _DEFLATED):
        return "neither stored nor deflated"
    return Member(info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)

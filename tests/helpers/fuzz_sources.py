"""Archives and data sets for the fuzzer."""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from helpers.fuzz_inputs import PIXELS, STEP, Target, check_message, mutate, mutated
from munit_fast.data import ImageError, ImageSource, open_source
from munit_fast.data.sources import DatasetSource
from munit_fast.data.sources.hub import parse


def _small_pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    pictures: dict[str, bytes] = {}
    for i, kind in enumerate(("png", "jpg", "bmp")):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(buffer, {"jpg": "jpeg"}.get(kind, kind))
        pictures[f"set/{i}.{kind}"] = buffer.getvalue()
    return pictures


def zip_inputs() -> st.SearchStrategy[bytes]:
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        for zip64 in (False, True):
            buffer = io.BytesIO()
            bomb = {"x/bomb.png": bytes(2**20)} if method != zipfile.ZIP_STORED else {}
            with zipfile.ZipFile(buffer, "w", method) as archive:
                for name, content in {**_small_pictures(), "set/0.json": b"{}", **bomb}.items():
                    info = zipfile.ZipInfo(name)
                    info.compress_type = method
                    with archive.open(info, "w", force_zip64=zip64) as file:
                        file.write(content)
                archive.comment = b"a comment"
            seeds.append(buffer.getvalue())
    return mutated(seeds)


def tar_inputs() -> st.SearchStrategy[bytes]:
    seeds = []
    for layout in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
            for name, content in {**_small_pictures(), "set/0.cls": b"1"}.items():
                info = tarfile.TarInfo(name if layout == tarfile.USTAR_FORMAT else f"{'é' * 60}/{name}")
                info.size, info.mtime = len(content), 1.5 if layout == tarfile.PAX_FORMAT else 1
                archive.addfile(info, io.BytesIO(content))
            for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE, tarfile.DIRTYPE):
                info = tarfile.TarInfo(f"odd{kind.decode()}.png")
                info.type, info.linkname = kind, "set/0.png"
                archive.addfile(info)
        seeds.append(buffer.getvalue()[:12_000])
    # What moves the blocks leaves no header at its place.
    in_place = st.lists(STEP.filter(lambda step: step[0] in ("flip", "set", "grow")), max_size=6)
    return mutated(seeds) | st.builds(mutate, st.sampled_from(seeds), in_place).map(with_header_sums)


def with_header_sums(data: bytes) -> bytes:
    """A tar archive with right checksums: tarfile would take a damaged header for the end otherwise."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % (sum(out[at : at + 512]) % 8**6)
    return bytes(out)


def dataset_inputs() -> st.SearchStrategy[bytes]:
    """Rows: the path and the bytes of an image, each after its length."""
    paths = st.text(max_size=20) | st.sampled_from(
        [
            "",
            "0.png",
            "../x.png",
            "/etc/passwd",
            "/dev/zero",
            "hf://a/b.png",
            "zip://a::b",
            "\0.png",
            "a#1.gif",
            "?split=x",
        ]
    )
    row = st.tuples(paths, mutated([*_small_pictures().values(), b""]))

    def joined(rows: list[tuple[str, bytes]]) -> bytes:
        parts = [part for path, content in rows for part in (path.encode("utf-8", "surrogatepass"), content)]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    return st.lists(row, min_size=1, max_size=4).map(joined)


def check_source(source: ImageSource) -> None:
    names = [source.name(i) for i in range(len(source))]
    assert names and len(set(names)) == len(names)
    for i, name in enumerate(names[:20]):
        assert not name.startswith("/") and ".." not in name.split("/"), name
        try:
            pixels = source.read(i).pixels
        except ImageError as error:
            check_message(error)
        else:
            assert 0 < pixels.shape[0] * pixels.shape[1] <= PIXELS
    for line in source.notes():
        assert line.isprintable() and len(line) < 2000


def archive_target(folder: Path, suffix: str) -> Target:
    path = folder / f"archive{suffix}"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            source = open_source(path)
        except ImageError as error:
            check_message(error)
        else:
            check_source(source)
        assert [other.name for other in folder.iterdir()] == [path.name]

    return run


def dataset_target(folder: Path) -> Target:
    import datasets

    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})

    def run(data: bytes) -> None:
        parts = []
        while data:
            length = int.from_bytes(data[:4], "big")
            parts.append(data[4 : 4 + length])
            data = data[4 + length :]
        texts = [path.decode(errors="replace") for path in parts[::2]]
        rows = [{"path": path or None, "bytes": content or None} for path, content in zip(texts, parts[1::2])]
        table = datasets.Dataset.from_dict({"image": rows}, features=features)
        try:
            check_source(DatasetSource(table, "x", "image", roots=[folder]))
        except ImageError as error:
            check_message(error)
        with contextlib.suppress(ImageError):
            parse(f"hf:{texts[0]}?{texts[-1]}")

    return run

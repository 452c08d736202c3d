"""Images in zip and tar archives."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import re
import stat
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.source_files import KINDS, png, write_folder, write_tar, write_zip, written
from munit_fast.data import ImageError, ImageSource, open_source
from munit_fast.data.sources import ArchiveSource, DatasetSource, FileSource, MissingClass, TarSource, ZipSource

FILES = {"b.png": png(1), "a/0.png": png(2), "a/1.png": png(3)}


def names(source: ImageSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_same_images(tmp_path: Path, kind: str) -> None:
    source = open_source(written(kind, tmp_path / "x", FILES))
    assert names(source) == (sorted(FILES) if kind != "saved" else ["0.png", "1.png", "b.png"])
    folder = open_source(write_folder(tmp_path / "plain", FILES))
    for i in range(3):
        assert np.array_equal(source.read(i).pixels, folder.read(i).pixels)
    copy = pickle.loads(pickle.dumps(source))
    assert names(copy) == names(source) and np.array_equal(copy.read(2).pixels, source.read(2).pixels)


@pytest.mark.parametrize("kind", ["zip", "tar", "saved"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_and_threads_read_at_once(tmp_path: Path, kind: str, method: str) -> None:
    source = open_source(written(kind, tmp_path / "x", {f"{i:02}.png": png(i) for i in range(24)}))
    wanted = [source.read(i).pixels for i in range(24)]
    with ThreadPoolExecutor(4) as threads:
        assert all(map(np.array_equal, [p.pixels for p in threads.map(source.read, range(24))], wanted))
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(source.read, range(24), chunksize=3)
    assert all(np.array_equal(p.pixels, w) for p, w in zip(found, wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_counted_by_content(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, jpeg = io.BytesIO(), io.BytesIO()
    frames = [Image.new("L", (64, 64), value) for value in range(5)]
    frames[0].save(pages, "TIFF", save_all=True, append_images=frames[1:])
    frames[0].save(jpeg, "JPEG")
    opened = []
    for owner in (FileSource, ArchiveSource, DatasetSource):
        real = owner.open
        monkeypatch.setattr(owner, "open", lambda self, file, real=real: opened.append(file) or real(self, file))
    files = {"a.jpg": pages.getvalue(), "b.jpg": jpeg.getvalue(), "c.jpg": png(0)}
    source = open_source(written(kind, tmp_path / "x", files))
    assert names(source) == [*(f"a.jpg#{i}" for i in range(5)), "b.jpg", "c.jpg"]
    assert kind == "folder" or set(opened) == {"a.jpg", "c.jpg"}  # of others the first bytes suffice
    assert source.read(4).pixels.max() == 4 and "1 file holds several" in "".join(source.notes())


def test_names_do_not_lead_anywhere(tmp_path: Path) -> None:
    files = {"../../up.png": png(0), "/abs.png": png(1), "c:\\w\\x.png": png(2), "./d/./e.png": png(3)}
    for source in (
        open_source(write_zip(tmp_path / "x.zip", files)),
        open_source(write_tar(tmp_path / "x.tar", files)),
    ):
        assert names(source) == sorted(["_/_/up.png", "abs.png", "c:/w/x.png", "d/e.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tar", "x.zip"]


def test_strange_names_do_not_speak_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("a\x1b[31m\0\nb.png", png(0)[:80]), ("c.js\non", b"x")):
            info = tarfile.TarInfo(name)
            info.pax_headers, info.size = {"path": name}, len(content)
            archive.addfile(info, io.BytesIO(content))
    source = open_source(path)
    with pytest.raises(ImageError) as refused:
        source.read(0)
    assert str(refused.value).isprintable() and all(line.isprintable() for line in source.notes())


def test_the_shared_folder_is_no_part_of_names(tmp_path: Path) -> None:
    files = {"set/trainA/0.png": png(0), "set/trainA/sub/1.png": png(1), "set/notes.txt": b"x"}
    assert names(open_source(write_zip(tmp_path / "x.zip", files))) == ["0.png", "sub/1.png"]


def test_folders_of_an_archive(tmp_path: Path) -> None:
    files = {f"set/{name}/{i}.png": png(i) for name in ("trainA", "trainB") for i in range(2)}
    path = write_tar(tmp_path / "x.tar", files | {"set/notes.txt": b"x", "set/trainB/0.json": b"x"})
    source = open_source(path, classes=["trainB"])
    assert names(source) == ["0.png", "1.png"] and source.where(0) == f"{path}/trainB/0.png"
    assert source.skipped == {"not an image (.json)": 1}
    assert open_source(path, classes=["trainA", "trainB"]).where(0) == f"{path}/trainA/0.png"
    assert np.array_equal(source.read(1).pixels, open_source(path).read(3).pixels)
    with pytest.raises(MissingClass, match=r"no class testA; there are trainA, trainB"):
        open_source(path, classes=["testA"])


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", png(0))
        for name in ("0.json", "1.cls", "2.json", ".hidden.png", "__MACOSX/._0.png"):
            archive.writestr(name, b"x")
        archive.writestr(zipfile.ZipInfo("folder/"), b"")
        archive.writestr("lzma.png", png(1), zipfile.ZIP_LZMA)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, b"0.png")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("0.png", png(7))
    source = open_source(path)
    assert source.skipped == {
        "not an image (.json)": 2,
        "not an image (.cls)": 1,
        "hidden": 2,
        "neither stored nor deflated": 1,
        "a link inside an archive": 1,
        "replaced by a later file of the same name": 1,
    }
    [line] = source.notes()
    assert line.startswith(f"8 files skipped in {path}: 3 not an image (.json, .cls), 2 hidden, ")
    later = open_source(write_zip(tmp_path / "later.zip", {"0.png": png(7)}))
    assert np.array_equal(source.read(0).pixels, later.read(0).pixels)


def test_encrypted_files_are_counted(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"0.png": png(0), "1.png": png(1)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    assert names(source := open_source(path)) == ["0.png"] and source.skipped == {"encrypted": 1}


def test_links_of_tar_files(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (("0.png", tarfile.REGTYPE, ""), ("1.png", tarfile.LNKTYPE, "0.png"),
                                   ("2.png", tarfile.SYMTYPE, "0.png"), ("3.png", tarfile.FIFOTYPE, "")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(png(0)) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(png(0)))
    source = open_source(path)
    assert names(source) == ["0.png", "1.png"]
    assert np.array_equal(source.read(0).pixels, source.read(1).pixels)
    assert source.skipped == {"a link inside an archive": 1, "not a plain file": 1}


# -- damage


@pytest.mark.parametrize("kind", ["zip", "stored"])
def test_a_damaged_file_is_one_bad_image(tmp_path: Path, kind: str) -> None:
    files = {"0.png": png(0), "1.png": png(1)}
    path = Path(written(kind, tmp_path / "x", files))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x03\x04", 4) + 300] ^= 0x40
    path.write_bytes(data)
    source = open_source(path)
    source.read(0)
    with pytest.raises(ImageError, match=rf"^{path}/1\.png: damaged in its archive \("):
        source.read(1)


def test_an_archive_cut_off_is_refused(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(4)}
    for write, name, words in ((write_zip, "x.zip", "cut off"), (write_tar, "x.tar", "damaged or cut off")):
        path = write(tmp_path / name, files)
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(ImageError, match=rf"^{path}: .*{words}"):
            open_source(path)


def test_a_damaged_header_of_a_tar_is_not_its_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(4)})
    with tarfile.open(path) as archive:
        at = archive.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    data[at + 150] ^= 1  # of the header's checksum
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"byte {at}, after 2 files"):
        open_source(path)


def test_an_archive_that_changes_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", FILES)
    source = open_source(path)
    write_tar(path, {"z.png": png(8, 64, 64), **FILES})
    with pytest.raises(ImageError, match=r"0\.png: x\.tar has changed"):
        source.read(0)
    path.unlink()
    with pytest.raises(ImageError, match="no such file"):
        source.read(0)


def test_what_is_no_archive(tmp_path: Path) -> None:
    for suffix in ("zip", "tar"):
        path = tmp_path / f"x.{suffix}"
        with pytest.raises(ImageError, match=rf"^{path}: no such file"):
            open_source(path)
        path.write_bytes(b"nothing of the kind" * 100)
        with pytest.raises(ImageError, match=rf"^{path}: not a {suffix} archive"):
            open_source(path)
        path.write_bytes(b"")
        with pytest.raises(ImageError, match="empty"):
            open_source(path)
    write_tar(tmp_path / "x.tar.gz", FILES, "w:gz")
    write_tar(tmp_path / "gz.tar", FILES, "w:gz")
    for name in ("x.tar.gz", "gz.tar"):
        with pytest.raises(ImageError, match=r"no random access.*gunzip"):
            open_source(tmp_path / name)
    with pytest.raises(ImageError, match=r"no images in it.*skipped"):
        open_source(write_zip(tmp_path / "none.zip", {"a.txt": b"x"}))


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUNIT_FAST_MAX_PIXELS", "10000")
    path = write_zip(tmp_path / "x.zip", {"0.png": png(0), "bomb.png": bytes(80_001), "most.png": bytes(80_000)})
    source = open_source(path)
    assert names(source) == ["0.png", "most.png"] and source.skipped.total() == 1
    assert "MUNIT_FAST_MAX_PIXELS" in source.notes()[0]


def test_a_directory_that_understates_a_bomb(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"0.png": png(0), "bomb.png": bytes(2**26)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    source = open_source(path)
    tracemalloc.start()
    with pytest.raises(ImageError, match="checksum"):
        source.read(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


# -- shards


def test_shards_by_a_pattern_or_a_folder(tmp_path: Path) -> None:
    files = {f"{i:04}.png": png(i) for i in range(7)}
    pattern = written("shards", tmp_path / "data", files)
    for spec in (pattern, str(tmp_path / "data-*.tar"), str(tmp_path)):
        source = open_source(spec)
        assert isinstance(source, TarSource) and names(source) == sorted(files) and source.label == spec
        assert source.skipped == {"not an image (.cls)": 7}
    assert np.array_equal(source.read(5).pixels, open_source(write_zip(tmp_path / "s.zip", files)).read(5).pixels)
    with pytest.raises(ImageError, match=r"data-000003\.tar: no such file"):
        open_source(pattern.replace("000002", "000003"))
    with pytest.raises(ImageError, match="count upwards"):
        open_source(str(tmp_path / "data-{5..1}.tar"))
    with pytest.raises(ImageError, match="no such files"):
        open_source(str(tmp_path / "other-*.tar"))


def test_an_image_beside_shards_is_not_a_folder_of_one(tmp_path: Path) -> None:
    written("shards", tmp_path / "data", {f"{i:04}.png": png(i) for i in range(7)})
    write_folder(tmp_path, {"preview.png": png(9)})
    way_out = f"{tmp_path}: holds 3 archives and 1 image: give {tmp_path}/data-*.tar, or move preview.png"
    with pytest.raises(ImageError, match=re.escape(way_out)):
        open_source(tmp_path)
    assert len(open_source(f"{tmp_path}/data-*.tar")) == 7
    write_folder(tmp_path, {f"{i}.png": png(9) for i in range(3)})  # images that came in an archive are more
    assert len(open_source(tmp_path)) == 4 and open_source(tmp_path).skipped == {"not an image (.tar)": 3}


def test_samples_with_several_images_are_said(tmp_path: Path) -> None:
    files = {f"{i}.{end}": png(i) for i in range(3) for end in ("seg.png", "rgb.png")}
    source = open_source(write_tar(tmp_path / "x.tar", files))
    assert len(source) == 6
    [note] = source.notes()
    assert "3 samples have several images (0.rgb.png, 0.seg.png)" in note
    assert not open_source(write_tar(tmp_path / "y.tar", {"a/0.png": png(0), "b/0.png": png(1)})).notes()


def test_shards_with_equal_names(tmp_path: Path) -> None:
    for i in range(2):
        write_zip(tmp_path / f"s{i}.zip", {"x/0.png": png(i)})
    source = open_source(str(tmp_path / "s{0..1}.zip"))
    assert isinstance(source, ZipSource) and names(source) == ["s0/0.png", "s1/0.png"]
    assert not np.array_equal(source.read(0).pixels, source.read(1).pixels)

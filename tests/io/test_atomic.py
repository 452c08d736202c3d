"""Files and folders that are whole or absent."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import sys
from pathlib import Path

import pytest

from munit_fast.data.prepare.writing import (
    DatasetError,
    prepared_manifest,
    staged_folder,
    tree_hash,
    unit_hash,
    write_manifest,
)
from munit_fast.io import atomic
from munit_fast.io.atomic import FileWriteError, atomic_write_bytes


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    atomic_write_bytes(target, b"old")
    atomic_write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic_write_bytes(tmp_path / "a", b"x")
        with staged_folder(tmp_path / "d"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o755


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(atomic.os, "fsync", fail)
    expected = FileWriteError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        atomic_write_bytes(target, b"new")
    if isinstance(failure, OSError):
        assert str(caught.value) == f"cannot write {target}: No space left on device"
        assert caught.value.errno == errno.ENOSPC  # type: ignore[attr-defined]
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_data_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda d: (calls.append("fsync"), fsync(d)))
    monkeypatch.setattr(atomic.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    atomic_write_bytes(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]  # the data, then the name, then the folder that holds the name


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match=r"cannot write .*nowhere.*: No such file or directory"):
        atomic_write_bytes(tmp_path / "nowhere" / "a", b"x")


def test_folders_and_devices_are_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match="it is a folder"):
        atomic_write_bytes(tmp_path, b"x")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileWriteError, match="a device or a pipe"):
            atomic_write_bytes(tmp_path / "pipe", b"x")
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(FileWriteError("cannot write x: full")))
    assert isinstance(error, FileWriteError) and str(error) == "cannot write x: full"


# -- folders


def test_a_staged_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged_folder(out) as stage:
        (stage / "a").write_text("x")
        assert not out.exists() and stage.parent == out.parent
    assert (out / "a").read_text() == "x"
    assert os.listdir(out.parent) == ["out"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with staged_folder(out) as stage:
        (stage / "a").write_text("x")
    assert os.listdir(out) == ["a"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("no"), OSError(errno.ENOSPC, "full")])
def test_a_failed_folder_vanishes(tmp_path: Path, failure: BaseException) -> None:
    expected = FileWriteError if isinstance(failure, OSError) else type(failure)

    def fail() -> None:
        with staged_folder(tmp_path / "out") as stage:
            (stage / "a").write_text("x")
            raise failure

    with pytest.raises(expected):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_folder_below_a_file_is_refused_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileWriteError, match=r"cannot write .*out"):
        staged_folder(tmp_path / "file" / "out").__enter__()


# -- manifests


def _prepared(out: Path, **parameters: int) -> None:
    with staged_folder(out) as stage:
        (stage / "a").write_text("x")
        write_manifest(stage, {"parameters": parameters, "files": {"a": {}}})


def test_a_prepared_folder_is_reused_only_with_its_parameters(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepared_manifest(out, {"size": 1}) is None
    _prepared(out, size=1)
    manifest = prepared_manifest(out, {"size": 1})
    assert manifest is not None and manifest["reused"] is True
    with pytest.raises(DatasetError, match="other parameters"):
        prepared_manifest(out, {"size": 2})


def test_a_prepared_folder_with_a_file_missing_is_refused(tmp_path: Path) -> None:
    _prepared(tmp_path / "out", size=1)
    (tmp_path / "out" / "a").unlink()
    with pytest.raises(DatasetError, match="misses 1 files, a among them"):
        prepared_manifest(tmp_path / "out", {"size": 1})


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_somebody_elses_folder_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DatasetError, match=r"no readable manifest\.json"):
        prepared_manifest(tmp_path, {})
    with pytest.raises(DatasetError, match="is not a folder"):
        prepared_manifest(tmp_path / "manifest.json", {})


def test_the_tree_hash_sees_names_and_contents(tmp_path: Path) -> None:
    hashes = []
    for name, content in (("a", "x"), ("a", "y"), ("b", "y")):
        folder = tmp_path / f"{name}{content}"
        folder.mkdir()
        (folder / name).write_text(content)
        (folder / "manifest.json").write_text(str(len(hashes)))
        hashes.append(tree_hash(folder))
    assert len(set(hashes)) == 3
    (folder / "manifest.json").write_text("another")
    assert tree_hash(folder) == hashes[-1]


def test_unit_hash_is_uniform_and_fixed() -> None:
    values = [unit_hash(str(i)) for i in range(2000)]
    assert all(0 <= v < 1 for v in values)
    assert abs(sum(v < 0.15 for v in values) / 2000 - 0.15) < 0.03
    assert unit_hash("1F600") == pytest.approx(0.6490090250449931, abs=1e-12)

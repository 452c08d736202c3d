"""Files and folders that are whole or absent."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import stat
import sys
from pathlib import Path

import pytest

from munit_fast.io import atomic
from munit_fast.io.atomic import FileWriteError, atomic_directory, atomic_path, atomic_write_bytes, remove_leftovers


@pytest.fixture(params=[True, False], ids=["durable", "not_durable"])
def durable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_writes_and_replaces(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "a.bin"
    atomic_write_bytes(target, b"old", durable=durable)
    atomic_write_bytes(target, b"new", durable=durable)
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic_write_bytes(tmp_path / "a", b"x")
        with atomic_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o755


@pytest.mark.parametrize("content", [None, b"old"])
def test_a_file_in_the_making_is_not_seen(tmp_path: Path, durable: bool, content: bytes | None) -> None:
    target = tmp_path / "a.bin"
    if content is not None:
        target.write_bytes(content)
    with atomic_path(target, durable=durable) as temporary:
        assert temporary.name == target.name  # torch.save writes the name into the file
        temporary.write_bytes(b"half")
        assert (target.read_bytes() if target.exists() else None) == content
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("content", [None, b"old"])
def test_a_killed_process_leaves_the_old_file(tmp_path: Path, durable: bool, content: bytes | None) -> None:
    target = tmp_path / "a.bin"
    if content is not None:
        target.write_bytes(content)
    pid = os.fork()
    if pid == 0:
        with atomic_path(target, durable=durable) as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert (target.read_bytes() if target.exists() else None) == content
    (leftover,) = (name for name in os.listdir(tmp_path) if name != target.name)
    remove_leftovers(tmp_path)
    assert leftover not in os.listdir(tmp_path) and target.exists() == (content is not None)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, failure: BaseException
) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr(atomic.os, call, fail)
    expected = FileWriteError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        atomic_write_bytes(target, b"new", durable=call == "fsync")
    if isinstance(failure, OSError):
        assert str(target) in str(caught.value) and "No space left on device" in str(caught.value)
        assert caught.value.errno == errno.ENOSPC  # type: ignore[attr-defined]
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_data_reaches_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda d: (calls.append(os.fstat(d).st_ino), fsync(d)))
    monkeypatch.setattr(atomic.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    atomic_write_bytes(tmp_path / "a", b"x", durable=durable)
    # The data, then the name, then the folder that holds the name.
    file, folder = (tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino
    assert calls == ([file, "replace", folder] if durable else ["replace"])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match="nowhere"):
        atomic_write_bytes(tmp_path / "nowhere" / "a", b"x")


def test_folders_and_devices_are_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match="a folder"):
        atomic_write_bytes(tmp_path, b"x")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileWriteError, match="pipe"):
            atomic_write_bytes(tmp_path / "pipe", b"x")
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(FileWriteError("cannot write x: full")))
    assert isinstance(error, FileWriteError) and str(error) == "cannot write x: full"


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with atomic_directory(out) as stage:
        (stage / "a").write_text("x")
        assert not out.exists() and list(out.parent.iterdir()) == [stage.parent]
    assert (out / "a").read_text() == "x"
    assert os.listdir(out.parent) == ["out"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with atomic_directory(out) as stage:
        (stage / "a").write_text("x")
    assert os.listdir(out) == ["a"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("no"), OSError(errno.ENOSPC, "full")])
def test_a_failed_folder_vanishes(tmp_path: Path, failure: BaseException) -> None:
    expected = FileWriteError if isinstance(failure, OSError) else type(failure)

    def fail() -> None:
        with atomic_directory(tmp_path / "out") as stage:
            (stage / "a").write_text("x")
            raise failure

    with pytest.raises(expected):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_folder_below_a_file_is_refused_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileWriteError, match="out"):
        atomic_directory(tmp_path / "file" / "out").__enter__()


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", tmp_path):
        with pytest.raises(FileWriteError, match="current folder"), atomic_directory(name) as folder:
            (folder / "x").touch()
    assert tmp_path.samefile(".") and not list(tmp_path.iterdir())

"""The manifest of a prepared data set, and the hashes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from munit_fast.data.prepare.writing import DatasetError, prepared_manifest, tree_hash, unit_hash, write_manifest
from munit_fast.io.atomic import atomic_directory


def _prepared(out: Path, **parameters: int) -> None:
    with atomic_directory(out) as stage:
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
    with pytest.raises(DatasetError, match=" 1 files, a "):
        prepared_manifest(tmp_path / "out", {"size": 1})


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_folder_with_other_content_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DatasetError, match=r"manifest\.json"):
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

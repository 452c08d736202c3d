"""What is finished stays, what is half done never shows, and the bytes do not depend on how the work was cut up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import munit_fast as mf
from munit_fast.data import ImageError
from munit_fast.data.picture import Picture
from munit_fast.io.atomic import FileWriteError
from munit_fast.translate import Shard, TranslateOptions, TranslateResult, translate_files
from munit_fast.translate.inputs import open_inputs
from munit_fast.translate.journal import FOLDER, Journal

HELPERS = Path(__file__).parents[1]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(11):
        Image.fromarray(rng.integers(0, 256, (32, 40 if i == 4 else 32, 3), dtype=np.uint8)).save(
            folder / f"{i:02d}.png"
        )
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


def options(**given: Any) -> TranslateOptions:
    return TranslateOptions(**{"num_style": 2, "batch_size": 2, "output_only": True} | given)


def translated(model: mf.MUNIT, source: Path, out: Path, **given: Any) -> tuple[TranslateResult, list[str]]:
    lines: list[str] = []
    return translate_files(model, source, out, options(**given), say=lines.append), lines


def test_processes_are_killed_at_random_moments(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, HELPERS / "helpers" / "crash_translate.py", tmp_path, "12"],
        env=os.environ | {"PYTHONPATH": str(HELPERS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "processes killed" in done.stdout


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_processes_and_threads(
    model: mf.MUNIT, many: Path, tmp_path: Path, size: int, workers: int
) -> None:
    translated(model, many, tmp_path / "one", extension="npy")
    shares = [
        translate_files(
            model, many, tmp_path / "parts", options(extension="npy", workers=workers), shard=Shard(rank, size)
        )
        for rank in range(size)
    ]
    assert files(tmp_path / "parts") == files(tmp_path / "one")
    written = [path for share in shares for path in share.written]
    assert len(written) == len(set(written)) == 22
    assert all(share.written for share in shares) and sum(share.total for share in shares) == 11


@pytest.mark.parametrize("dim", [4, 24])
def test_any_number_of_torch_threads(small_config: dict[str, Any], many: Path, tmp_path: Path, dim: int) -> None:
    """torchrun gives each process one thread."""
    torch.manual_seed(0)
    gen = small_config["gen"] | {"dim": dim, "mlp_dim": 64}
    model = mf.MUNIT(mf.make_config(small_config | {"gen": gen})).eval()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            translated(model, many, tmp_path / str(threads), extension="npy", num_style=5)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    expected = files(tmp_path / "1")
    assert all(files(tmp_path / str(threads)) == expected for threads in (2, 3, 5))


def test_finished_images_are_kept(model: mf.MUNIT, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    translated(model, many, out)
    expected, times = files(out), {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    seen: list[int] = []
    translate = mf.MUNIT.translate

    def watched(self: mf.MUNIT, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(x))
        return translate(self, x, *args, **kwargs)

    monkeypatch.setattr(mf.MUNIT, "translate", watched)
    result, lines = translated(model, many, out)
    assert (result.written, result.done_before, result.total, seen) == ([], 11, 11, [])
    assert lines == ["11 of 11 images were done already"]
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("*.png")}

    (out / "05_001.png").unlink()  # of the chunk 04, 05, whose images differ in size
    result, lines = translated(model, many, out)
    assert {path.name for path in result.written} == {"04_000.png", "04_001.png", "05_000.png", "05_001.png"}
    assert (result.done_before, seen, files(out)) == (9, [1, 1], expected)

    (out / "00_000.png").write_bytes((out / "00_000.png").read_bytes()[:-1])
    (out / "10_000.png").write_bytes(bytes(len(expected["10_000.png"])))  # the same size
    result, _ = translated(model, many, out)
    assert (result.done_before, files(out)) == (8, expected)
    assert translated(model, many, out)[0].done_before == 11


def test_a_changed_input_is_made_again(model: mf.MUNIT, many: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", many / "06.png"
    values = np.asarray(Image.open(file)).copy()
    Image.fromarray(values).save(file, format="BMP")  # whose size does not depend on the values
    translated(model, many, out, extension="npy")
    before, times = files(out), file.stat()
    values[0] = 0
    Image.fromarray(values).save(file, format="BMP")
    assert file.stat().st_size == times.st_size
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as archives are unpacked
    result, _ = translated(model, many, out, extension="npy")
    assert result.done_before == 9
    changed = {name for name, data in files(out).items() if data != before[name]}
    assert changed == {"06_000.npy", "06_001.npy"}
    for name in ("00.png", "01.png"):  # a chunk: every image has another place, and so other styles
        (many / name).unlink()
    assert translated(model, many, out, extension="npy")[0].done_before == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 11}, "seed was 10, is 11"),
        ({"extension": "bmp"}, "extension was 'png', is 'bmp'"),
        ({"batch_size": 3}, ""),
    ],
)
def test_another_translation_is_made_anew(
    model: mf.MUNIT, many: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    out = tmp_path / "out"
    translated(model, many, out)
    result, lines = translated(model, many, out, **change)
    assert result.done_before == 0 and len(result.written) == 22
    assert "everything is made anew" in lines[0] and said in lines[0]
    removed = "22 files of the earlier translation, which this one does not have, were removed"
    assert lines[1:] == ([removed] if "extension" in change else [])
    translated(model, many, tmp_path / "fresh", **change)
    assert files(out) == files(tmp_path / "fresh")
    assert len(list((out / FOLDER).glob("*.json"))) == 1


def test_what_is_not_made_again_is_removed(model: mf.MUNIT, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    translated(model, many, out, num_style=3, output_only=False)
    translated(model, many / "00.png", tmp_path / "one")
    before = {name: path for path in out.glob("*.png") if (name := path.name)}
    assert len(before) == 44
    (many / "10.png").unlink()
    before["00_001.png"].write_bytes(before["00_001.png"].read_bytes())  # the same bytes, at another time
    before["01_002.png"].write_bytes(b"mine")
    before["02_002.png"].rename(out / "elsewhere.png")
    (out / "02_002.png").symlink_to(out / "elsewhere.png")
    (out / "03_007.png").write_bytes(b"also mine")
    (tmp_path / "outside.png").write_bytes(b"not below the folder")
    [lines] = (out / FOLDER).glob("*.jsonl")
    found = (tmp_path / "outside.png").stat()
    for name in ("../outside.png", str(tmp_path / "outside.png")):
        with lines.open("a") as file:
            file.write(json.dumps({"chunk": "x", "files": [[name, found.st_size, found.st_mtime_ns]]}) + "\n")
    _, said = translated(model, many, out, num_style=1)
    # Of ten images two styles and the input, less three that were changed; none of the image that is gone.
    assert said[1:] == ["27 files of the earlier translation, which this one does not have, were removed"]
    mine = {"00_001.png", "01_002.png", "02_002.png", "03_007.png", "elsewhere.png"}
    mine |= {"10_input.png", *(f"10_00{style}.png" for style in range(3))}
    assert set(files(out)) == {f"{i:02d}_000.png" for i in range(10)} | mine
    assert (tmp_path / "outside.png").exists()
    result, said = translated(model, many, out, num_style=1)
    assert result.done_before == 10 and len(said) == 1
    assert not list((out / FOLDER).glob("*.before.jsonl"))


def test_nothing_is_removed_before_the_examples_are_read(
    model: mf.MUNIT, many: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    translated(model, many, out, num_style=3)
    expected = files(out)
    (pictures / "more" / "e.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"e\.png"):
            translated(model, many, out, style=pictures / "more")
    assert files(out) == expected
    (pictures / "more" / "e.png").unlink()
    example = out / "05_002.png"  # which is of the earlier run itself
    (out / "06_002.png").write_bytes(b"changed meanwhile")
    assert translated(model, many, out, style=example)[1][-1].startswith("20 files of the earlier translation")
    assert set(files(out)) == {f"{i:02d}_000.png" for i in range(11)} | {"05_002.png", "06_002.png"}


def test_processes_remove_nothing_of_each_other(model: mf.MUNIT, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for rank in range(2):
        translate_files(model, many, out, options(num_style=3), shard=Shard(rank, 2))
    for rank in (1, 0):
        translate_files(model, many, out, options(num_style=1), shard=Shard(rank, 2))
    assert set(files(out)) == {f"{i:02d}_000.png" for i in range(11)}


def test_other_weights_and_other_examples(model: mf.MUNIT, many: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    translated(model, many, out)
    with torch.no_grad():
        next(model.gen_b.dec.parameters()).view(-1)[0] += 1e-3
    result, lines = translated(model, many, out)
    assert result.done_before == 0 and "other weights" in lines[0]
    translated(model, many, out, style=pictures / "more")
    assert translated(model, many, out, style=pictures / "more")[0].done_before == 11
    Image.open(pictures / "a.png").save(pictures / "more" / "c.png")
    result, lines = translated(model, many, out, style=pictures / "more")
    assert result.done_before == 0 and "other style" in lines[0]


def test_translations_of_other_folders_are_kept(model: mf.MUNIT, many: Path, pictures: Path, tmp_path: Path) -> None:
    """Jobs that write different names to one folder do not disturb each other."""
    for source in (many, pictures):
        translated(model, source, tmp_path / "out")
    for source, count in ((many, 11), (pictures, 4)):
        result, lines = translated(model, source, tmp_path / "out")
        assert result.done_before == count and len(lines) == 1


def test_an_unreadable_image_is_tried_again(model: mf.MUNIT, many: Path, tmp_path: Path) -> None:
    (many / "03.png").write_bytes(b"no picture")
    result, _ = translated(model, many, tmp_path / "out")
    assert len(result.failures) == 1 and len(result.written) == 20
    result, _ = translated(model, many, tmp_path / "out")
    assert len(result.failures) == 1 and result.done_before == 9 and len(result.written) == 2


def test_all_images_of_a_process_are_unreadable(model: mf.MUNIT, many: Path, tmp_path: Path) -> None:
    """It must not fail before the others are done: torchrun would end them."""
    for i in (2, 3, 6, 7, 10):
        (many / f"{i:02d}.png").write_bytes(b"no picture")
    result = translate_files(model, many, tmp_path / "out", options(), shard=Shard(1, 2))
    assert len(result.failures) == 5 and result.written == []


def test_the_grid_of_what_is_finished(model: mf.MUNIT, many: Path, tmp_path: Path) -> None:
    translated(model, many, tmp_path / "whole", grid=tmp_path / "whole.png")
    translated(model, many, tmp_path / "out")
    result, _ = translated(model, many, tmp_path / "out", grid=tmp_path / "grid.png")
    assert result.written[-1] == tmp_path / "grid.png"
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    with pytest.raises(ValueError, match=r"--grid .*afterwards"):
        translate_files(model, many, tmp_path / "no", options(grid=tmp_path / "g.png"), shard=Shard(0, 2))
    assert not (tmp_path / "no").exists()


def test_an_error_stops_everything(model: mf.MUNIT, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "04_000.png").mkdir(parents=True)
    with pytest.raises(FileWriteError, match=r"04_000\.png"):
        translated(model, many, out)
    (out / "04_000.png").rmdir()
    result, _ = translated(model, many, out)
    assert result.done_before >= 4
    translated(model, many, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def test_interrupted_by_the_keyboard(
    model: mf.MUNIT, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls, translate = tmp_path / "out", 0, mf.MUNIT.translate

    def pressed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return translate(*args, **kwargs)

    monkeypatch.setattr(mf.MUNIT, "translate", pressed)
    with pytest.raises(KeyboardInterrupt):
        translated(model, many, out)
    assert [path for path in (out / FOLDER).iterdir() if path.is_dir()] == []
    result, _ = translated(model, many, out)
    assert 0 < result.done_before < 11
    translated(model, many, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def test_a_damaged_journal_costs_time_only(model: mf.MUNIT, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    translated(model, many, out)
    expected = files(out)
    [lines] = (out / FOLDER).glob("*.jsonl")
    [about] = (out / FOLDER).glob("*.json")
    for damage in (b"\xff\x00[[[", b'{"chunk": 3, "files": [[1]]}\nnull\n"x"\n{"files": 0}\n', b""):
        lines.write_bytes(damage)
        about.write_bytes(damage)
        assert translated(model, many, out)[0].done_before == 0
        assert files(out) == expected


def test_what_all_processes_agree_on(tmp_path: Path) -> None:
    """Which precision is faster is measured: two processes could find different ones."""
    with Journal(tmp_path, {"source": "x"}, 0) as first, Journal(tmp_path, {"source": "x"}, 1) as second:
        assert [first.agreed("precision", lambda: "bf16"), second.agreed("precision", lambda: "off")] == ["bf16"] * 2
        assert first._staging != second._staging
    (tmp_path / FOLDER / ".saving-0").mkdir()  # of a process that was killed
    with Journal(tmp_path, {"source": "x"}, 0) as later:
        assert not (tmp_path / FOLDER / ".saving-0").exists()
        assert later.agreed("precision", lambda: "off") == "bf16"


def test_single_images_leave_nothing_else(model: mf.MUNIT, pictures: Path, tmp_path: Path) -> None:
    translated(model, pictures / "a.png", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["output000.png", "output001.png"]


def test_memory_is_bounded(model: mf.MUNIT, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are neither read nor kept for writing far ahead of what is translated."""
    from munit_fast.translate import files as module
    from munit_fast.translate.pipeline import Writing

    reading = writing = most_ahead = most_behind = 0
    read, write, translate = module._Job._read, module._Job._write, mf.MUNIT.translate
    done = 0

    def reads(self: Any, place: int) -> Any:
        nonlocal reading, most_ahead
        reading += 1
        most_ahead = max(most_ahead, reading - done)
        return read(self, place)

    def computes(self: mf.MUNIT, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal done, most_behind
        done += len(x)
        most_behind = max(most_behind, done - writing)
        return translate(self, x, *args, **kwargs)

    def writes(self: Any, *args: Any) -> Any:
        nonlocal writing
        import time

        time.sleep(0.05)
        found = write(self, *args)
        writing += 1
        return found

    monkeypatch.setattr(module._Job, "_read", reads)
    monkeypatch.setattr(module._Job, "_write", writes)
    monkeypatch.setattr(mf.MUNIT, "translate", computes)
    defaults = Writing.__init__.__defaults__
    monkeypatch.setattr(Writing.__init__, "__defaults__", (1,))  # bytes: one batch at a time
    translated(model, many, tmp_path / "out")
    assert defaults is not None and defaults[0] > 2**20
    assert most_ahead <= 2 * 2 + 2 and most_behind <= 2 * 2


def test_sources_other_than_files(model: mf.MUNIT, tmp_path: Path) -> None:
    from munit_fast.data import ImageSource

    class Numbers(ImageSource):
        def __init__(self) -> None:
            super().__init__("numbers", ["0.bmp", "1.bmp", "2.bmp"], "first")
            self.seed = 0

        def version(self, i: int) -> str:
            return f"{i} {self.seed}"

        def read(self, i: int) -> Picture:
            if i == 1 and self.seed == 2:
                raise ImageError("numbers/1.bmp: gone")
            rng = np.random.default_rng([self.seed, i])
            return Picture(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), True, limits=(0.0, 255.0))

    source = Numbers()
    assert open_inputs(source, None, model.config) is source
    first = translate_files(model, source, tmp_path / "out", options(batch_size=1))
    assert [path.name for path in first.written] == [f"{i}_00{j}.png" for i in range(3) for j in range(2)]
    assert translate_files(model, source, tmp_path / "out", options(batch_size=1)).done_before == 3
    source.seed = 2
    result = translate_files(model, source, tmp_path / "out", options(batch_size=1))
    assert (result.done_before, len(result.written), result.failures) == (0, 4, ["numbers/1.bmp: gone"])


def test_the_journal_can_be_read_by_people(model: mf.MUNIT, many: Path, tmp_path: Path) -> None:
    translated(model, many, tmp_path / "out", seed=3)
    [about] = (tmp_path / "out" / FOLDER).glob("*.json")
    found = json.loads(about.read_text())
    assert found["precision"] == "off"
    assert found["identity"]["seed"] == 3 and found["identity"]["source"] == str(many.resolve())


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("x", "2"), ("-1", "2")])
def test_a_wrong_environment(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ValueError, match="RANK"):
        Shard.of_environment()


@pytest.mark.parametrize(("given", "said"), [({"batch_size": 0}, "--batch_size"), ({"workers": 65}, "--workers .*64")])
def test_numbers_out_of_range(model: mf.MUNIT, many: Path, tmp_path: Path, given: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        translated(model, many, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()

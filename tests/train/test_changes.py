"""Changed configurations: what --override changes, and what a resumed run takes over."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from helpers.runs import checkpoints, equal, events, run
from munit_fast import ConfigError, load_config, make_config
from munit_fast.config import Config
from munit_fast.io.checkpoints import load_file
from munit_fast.models.algorithm import override
from munit_fast.train.changes import BATCH, FREE, TRAINING_IMAGES, Change, RunConfig
from munit_fast.train.run_dir import RunDirectory


def said(config: dict[str, Any], data: Path, out: Path, **options: Any) -> str:
    """What a run prints."""
    console = Console(record=True, width=1000, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    run(config, data, out, console, **options)
    return console.export_text()


def rates(out: Path) -> list[float]:
    """The learning rate of each iteration."""
    return [rate for _, rate in RunDirectory(out, "small").read_run()["learning_rate"]]


def state(out: Path, iteration: int) -> Any:
    return load_file(checkpoints(out) / f"resume_{iteration:08d}.pt")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- --override ----


def test_values_are_yaml_and_checked() -> None:
    config, named = override(make_config({"gen": {"dim": 8}}), ["lr=5e-5", "gen.n_res=2", "new_size=null", "lr = 1e-5"])
    assert (config.lr, config.gen.dim, config.gen.n_res, config.new_size) == (1e-5, 8, 2, None)
    assert named == {"lr", "gen.n_res", "new_size"}
    untouched = make_config({})
    assert override(untouched, []) == (untouched, set())


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("lr", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("learn=3", r"did you mean lr\?"),
        ("zzz=3", "known keys"),
        ("batchsize=3", r"batch_size\?"),
        ("gen.dimm=3", r"gen\.dim\?"),
        ("dim=3", "belongs inside"),
        ("gen={dim: 3}", r"gen\.KEY"),
        ("lr.x=3", r"gen\.KEY"),
        ("lr=[1", "YAML"),
        ("lr=fast", "lr: .*fast"),
        ("lr=", "lr: "),
        ("crop_image_height=30", "crop_image_height: 30"),
        ("lr=!!python/object/apply:os.system [true]", "YAML"),
    ],
)
def test_impossible_overrides(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        override(make_config({}), [assignment])
    assert str(caught.value).startswith("--override") and "\n" not in str(caught.value)


def test_a_new_run_is_one_of_the_changed_configuration(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    run(small_config | {"lr": 0.01, "max_iter": 2}, picture_folders, tmp_path / "written")
    run(small_config, picture_folders, tmp_path / "overridden", overrides=["lr=0.01", "max_iter=2"])
    assert equal(*(state(tmp_path / name, 2)["networks"] for name in ("written", "overridden")))
    # It goes on as that one, although its file still has the old values.
    text = said(small_config, picture_folders, tmp_path / "overridden", resume=True, overrides=["max_iter=4"])
    assert "lr: 0.01 is kept" in text and rates(tmp_path / "overridden") == [0.01] * 4


# ---- resume ----


def test_every_key_has_a_rule() -> None:
    assert {*TRAINING_IMAGES, *BATCH} < set(Config.model_fields)
    assert {key for key in FREE if not key.startswith("show_channels")} < set(Config.model_fields)


def test_what_changes_a_run_is_refused_line_by_line(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    run(small_config, picture_folders, tmp_path)
    before = files(tmp_path)
    dis = small_config["dis"] | {"pad_type": "zero", "gan_type": "nsgan"}
    changes = {
        "gen": small_config["gen"] | {"dim": 8},
        "dis": dis,
        "input_dim_b": 1,
        "lr": 0.5,
        "recon_x_w": 3,
        "gan_w": 0,
    }
    options: dict[str, Any] = {"resume": True, "overrides": ["max_iter=6", "gan_w=2", "init=xavier"]}
    with pytest.raises(ConfigError) as caught:
        run(small_config | changes, picture_folders, tmp_path, **options)
    lines = {line.partition(":")[0]: line for line in str(caught.value).splitlines()}
    assert set(lines) == {"gen.dim", "dis.pad_type", "dis.gan_type", "input_dim_b", "lr", "recon_x_w", "init"}
    assert re.match(r"gen\.dim: 4 -> 8: .*networks.*old value", lines["gen.dim"])
    asked_for = {key for key, line in lines.items() if "--override" in line}
    assert asked_for == {"dis.gan_type", "lr", "recon_x_w"}  # the others not by that either
    assert lines["lr"] == "lr: 0.0001 -> 0.5: give --override lr=0.5 to change it, or put the old value back"
    after = files(tmp_path)
    assert {name for name in before if after[name] != before[name]} == set()
    assert set(after) - set(before) <= {"outputs/small/.lock"}


def test_what_only_steers_a_run_is_taken_over_and_named(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    run(small_config | {"max_iter": 2}, picture_folders, tmp_path / "parts")
    moved = tmp_path / "moved"
    shutil.copytree(picture_folders, moved)
    text = said(small_config | {"log_iter": 2}, moved, tmp_path / "parts", resume=True)
    assert "changed: max_iter: 2 -> 4" in text and "changed: log_iter: 1 -> 2" in text
    assert f"changed: data_root: {picture_folders} -> {moved}" in text
    run(small_config, picture_folders, tmp_path / "whole")
    assert equal(state(tmp_path / "whole", 4), state(tmp_path / "parts", 4))
    text = said(small_config | {"log_iter": 2}, moved, tmp_path / "parts", resume=True)
    assert "changed" not in text and "kept" not in text
    summary = json.loads((tmp_path / "parts/outputs/small/summary.json").read_text())
    assert summary["changed"][1] == {"iteration": 2, "key": "max_iter", "old": 2, "new": 4}
    assert len(summary["changed"]) == 3 and summary["faults"] == {}


def test_the_same_batch_in_other_parts(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    run(small_config | {"batch_size": 2}, picture_folders, tmp_path)
    parts = small_config | {"batch_size": 1, "accumulation": 2, "max_iter": 5}
    text = said(parts, picture_folders, tmp_path, resume=True)
    assert "changed: batch_size: 2 -> 1" in text and "changed: accumulation: 1 -> 2" in text
    with pytest.raises(ConfigError, match=r"^batch_size: 1 -> 2 \(4 images .*--override batch_size=2"):
        run(parts | {"batch_size": 2}, picture_folders, tmp_path, resume=True)


def test_other_training_images_are_asked_for(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    run(small_config, picture_folders, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(picture_folders, other)
    (other / "trainB" / "3.png").rename(other / "trainB" / "4.png")
    config = small_config | {"max_iter": 5}
    with pytest.raises(
        ConfigError, match=r"^data_root: .* -> .*other \(.*names\): give --override data_root="
    ) as caught:
        run(config, other, tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    run(config, other, tmp_path, resume=True, overrides=[f"data_root={other}"])


def test_training_images_that_change_in_their_place_are_said_and_recorded(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    run(small_config | {"max_iter": 2}, picture_folders, tmp_path)
    shutil.copy(picture_folders / "trainA" / "3.png", picture_folders / "trainA" / "more.png")
    (picture_folders / "trainB" / "3.png").rename(picture_folders / "trainB" / "4.png")
    text = said(small_config, picture_folders, tmp_path, resume=True)
    assert "domain A had 4 training images and has 5 now" in text and "domain B has other training images" in text
    summary = json.loads((tmp_path / "outputs/small/summary.json").read_text())
    told = {change["key"]: change for change in summary["changed"]}
    first, second = (told[f"training images of domain {domain}"] for domain in "AB")
    assert first["iteration"] == second["iteration"] == 2
    assert first["old"].startswith("4 (names ") and first["new"].startswith("5 (names ")
    assert second["old"] != second["new"] and second["new"].startswith("4 (names ")
    assert "domain" not in said(small_config | {"max_iter": 5}, picture_folders, tmp_path, resume=True)


def test_other_images_of_one_domain() -> None:
    """A list that is replaced for one domain is refused for the images of that one."""
    images = {"A": {"count": 3, "names": "a"}, "B": {"count": 3, "names": "b"}}
    notes = {"global_batch": 1, "images": images}
    change = Change("data_list_train_a", "old.txt", "new.txt")

    def settle(**now: Any) -> list[Change] | str:
        decided = RunConfig(make_config({}), "MUNIT", pending=[change])
        try:
            decided.settle(notes, notes | {"images": images | now}, {})
        except ConfigError as error:
            return str(error)
        return decided.changes

    other = {"count": 3, "names": "c"}
    assert settle() == [change]
    assert str(settle(A=other)).startswith("data_list_train_a: old.txt -> new.txt (training images of other names)")
    assert settle(B=other) == [change, Change("training images of domain B", "3 (names b)", "3 (names c)")]


def test_an_override_holds_from_then_on(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    """The rate follows its schedule, and later sessions keep it, also where none of them has saved a state since."""
    config = small_config | {"step_size": 2, "gamma": 0.5, "lr": 0.016}
    out = tmp_path / "parts"
    run(config | {"max_iter": 3}, picture_folders, out)
    changed = ["lr=0.008", "beta1=0.7", "beta2=0.9", "weight_decay=0.001", "recon_x_w=5"]
    text = said(config | {"max_iter": 3}, picture_folders, out, resume=True, overrides=changed)  # nothing is left to do
    assert "changed: lr: 0.016 -> 0.008" in text and "the learning rate after iteration 3 is 0.004" in text
    assert state(out, 3)["optimizers"]["gen"]["param_groups"][0]["initial_lr"] == 0.016
    text = said(config | {"max_iter": 5}, picture_folders, out, resume=True)
    assert "lr: 0.008 is kept, as this run was told; the file has 0.016" in text and "recon_x_w: 5 is kept" in text
    run(config | {"max_iter": 6, "lr": 0.008}, picture_folders, out, resume=True)  # the file may follow, or not
    assert rates(out) == [0.016, 0.008, 0.008, 0.002, 0.002, 0.001]
    for name in ("gen", "dis"):
        [group] = state(out, 6)["optimizers"][name]["param_groups"]
        assert (group["initial_lr"], group["lr"], group["betas"], group["weight_decay"]) == (
            *(0.008, 0.001, (0.7, 0.9), 0.001),
        )
    kept = load_config(out / "outputs/small/config.yaml")
    assert (kept.lr, kept.beta1, kept.recon_x_w, kept.trainer) == (0.008, 0.7, 5, "MUNIT")
    assert [e["key"] for e in events(out) if e["kind"] == "changed"][:2] == ["weight_decay", "beta1"]
    with pytest.raises(ConfigError, match=r"^lr: 0\.008 -> 0\.1: "):
        run(config | {"max_iter": 7, "lr": 0.1}, picture_folders, out, resume=True)
    # As if all of it had been so from iteration 4 on.
    single = tmp_path / "single"
    run(config | {"max_iter": 3}, picture_folders, single)
    run(config | {"max_iter": 6}, picture_folders, single, resume=True, overrides=changed)
    assert equal(state(single, 6)["networks"], state(out, 6)["networks"])
    run(config | {"max_iter": 6}, picture_folders, tmp_path / "other")
    assert not equal(state(tmp_path / "other", 6)["networks"], state(out, 6)["networks"])


def test_runs_of_earlier_versions_go_on(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    """Their config.yaml is the file that was given last; the optimizers may know of other values."""
    run(small_config, picture_folders, tmp_path)
    root = tmp_path / "outputs/small"

    def earlier(values: dict[str, Any]) -> None:
        (root / "config_as_given.yaml").unlink(missing_ok=True)
        (root / "config.yaml").write_text(yaml.safe_dump(values | {"data_root": str(picture_folders)}))

    earlier(small_config)
    text = said(small_config | {"max_iter": 5}, picture_folders, tmp_path, resume=True)
    assert text.count("changed: ") == 1 and "max_iter: 4 -> 5" in text
    earlier(small_config | {"lr": 0.5})  # which a resumed run did not take over
    with pytest.raises(ConfigError, match=r"^lr: 0\.0001 -> 0\.5 .*checkpoint.*--override lr=0\.5"):
        run(small_config | {"lr": 0.5}, picture_folders, tmp_path, resume=True)
    text = said(small_config | {"lr": 0.5}, picture_folders, tmp_path, resume=True, overrides=["lr=0.5"])
    assert "changed: lr: 0.0001 -> 0.5" in text
    (root / "config.yaml").unlink()
    (root / "config_as_given.yaml").unlink()
    assert run(small_config | {"max_iter": 6}, picture_folders, tmp_path, resume=True).iterations == 6
    (root / "config.yaml").write_text("max_iter: [")
    assert "config.yaml: not valid YAML" in said(small_config, picture_folders, tmp_path, resume=True)
    assert load_config(root / "config.yaml").trainer == "MUNIT"


# ---- the algorithm ----


def test_a_run_knows_its_algorithm(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    gen = {key: value for key, value in small_config["gen"].items() if key in ("dim", "n_res")}
    config = small_config | {"gen": gen}  # says nothing
    text = said(config | {"max_iter": 2}, picture_folders, tmp_path, trainer="UNIT")
    assert re.search(r"not in the configuration.*weight_decay 0\.0001.*recon_kl_w 0.*gen\.n_downsample 2", text)
    assert "style_dim" not in text and "recon_s_w" not in text
    assert run(config | {"max_iter": 3}, picture_folders, tmp_path, resume=True).iterations == 3  # no flag: as it began
    text = said(config | {"recon_s_w": 1, "recon_kl_w": 0}, picture_folders, tmp_path, resume=True)
    assert "UNIT does not read recon_s_w" in text and "not in the configuration" not in text
    with pytest.raises(ConfigError, match=r"^trainer: UNIT -> MUNIT: "):
        run(config, picture_folders, tmp_path, resume=True, trainer="MUNIT")
    root = tmp_path / "outputs/small"
    summary = json.loads((root / "summary.json").read_text())
    assert summary["trainer"] == "UNIT" and summary["filled"]["gen.n_downsample"] == 2
    assert "recon_kl_w" not in summary["filled"] and "max_iter" not in summary["filled"]
    values = yaml.safe_load((root / "config.yaml").read_text())
    assert values["trainer"] == "UNIT" and values["gen"]["n_downsample"] == 2 and "style_dim" not in values["gen"]
    assert "recon_s_w: 1" in (root / "config_as_given.yaml").read_text()

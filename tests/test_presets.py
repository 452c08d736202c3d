"""Presets: what they fill, what goes before them, and what a run keeps of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from rich.console import Console

from helpers.runs import checkpoints, equal, run
from munit_fast import MUNIT, ConfigError, load_config, make_config
from munit_fast.cli.options import PresetName
from munit_fast.config import PRESETS, Config, parse_config
from munit_fast.config.presets import Preset
from munit_fast.io.checkpoints import load_file
from munit_fast.models.algorithm import (
    ONLY,
    complete_text,
    complete_values,
    filled_values,
    flat,
    left_values,
    nested,
    override,
    preset_values,
    unread_keys,
    with_values,
)
from munit_fast.train import TrainOptions, train
from munit_fast.train.changes import Change
from munit_fast.train.optim import initial_rate

NAMES = list(PRESETS)


def values_of(config: Config) -> dict[str, Any]:
    return {key: value for key, value in flat(config.model_dump()).items() if not key.startswith("preset")}


def test_there_is_one_table() -> None:
    assert NAMES == list(get_args(Preset)) == [name.value for name in PresetName]
    every_key = set(values_of(make_config({})))
    for keys in PRESETS.values():
        assert set(keys) <= every_key
        # Where a preset gave a key of one algorithm, a configuration would be one for that algorithm.
        assert not {key for of_one in ONLY.values() for key in of_one} & set(keys)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_fills_what_is_not_given(name: Preset) -> None:
    found = make_config({"preset": name})
    assert found.preset == name and found.preset_keys == list(PRESETS[name])
    assert preset_values(found) == PRESETS[name]
    assert values_of(found) == values_of(make_config({})) | PRESETS[name]
    MUNIT(found)  # is one that networks can be made of


def test_published_is_the_default() -> None:
    assert values_of(make_config({"preset": "published"})) == values_of(make_config({}))
    assert make_config({}).preset is None and make_config({}).preset_keys is None


def test_what_is_given_goes_before_the_preset() -> None:
    given = {"preset": "small_data", "lr": 0.01, "shift_a": 0, "gen": {"dim": 8}, "dis": {"num_scales": 2}}
    found = make_config(given)
    assert (found.lr, found.shift_a, found.shift_b) == (0.01, 0, PRESETS["small_data"]["shift_b"])
    assert (found.gen.dim, found.gen.n_downsample, found.dis.num_scales) == (8, 1, 2)
    assert set(found.preset_keys or ()) == set(PRESETS["small_data"]) - {"lr", "shift_a", "dis.num_scales"}
    assert given == {"preset": "small_data", "lr": 0.01, "shift_a": 0, "gen": {"dim": 8}, "dis": {"num_scales": 2}}
    assert "lr" in PRESETS["small_data"]


@pytest.mark.parametrize("value", ["improve", "", 3, ["improved"], {"improved": 1}, True])
def test_an_unknown_preset_is_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^c\.yaml: preset: .*'published', 'improved' or 'small_data'") as caught:
        make_config({"preset": value}, source="c.yaml")
    assert "\n" not in str(caught.value)


def test_other_mistakes_are_told_with_a_preset_too() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"preset": "small_data", "gen": 3, "dis": {"dimension": 3}, "lr": "fast"})
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(ConfigError, match=r"crop_image_height: 17 .*gen\.n_downsample"):
        make_config({"preset": "small_data", "crop_image_height": 17})


def test_a_preset_beside_a_text_goes_before_the_one_inside() -> None:
    text = "preset: improved\nlr: 0.02\n"
    found = parse_config(text, preset="small_data")
    assert (
        found.preset == "small_data" and found.lr == 0.02 and found.gen.n_downsample == 1 and found.dis.norm == "none"
    )
    assert parse_config(text) == make_config({"preset": "improved", "lr": 0.02})


def test_an_override_goes_before_the_preset() -> None:
    config, _ = override(make_config({"preset": "small_data"}), ["lr=0.3", "gen.n_downsample=2", "beta1=0.1"])
    assert (config.lr, config.gen.n_downsample, config.beta1, config.dis.num_scales) == (0.3, 2, 0.1, 1)
    assert set(config.preset_keys or ()) == set(PRESETS["small_data"]) - {"lr", "gen.n_downsample"}
    for assignment in ("preset=improved", "preset_keys=[lr]"):
        with pytest.raises(ConfigError, match=r"^--override preset.*--preset NAME"):
            override(config, [assignment])


@pytest.mark.parametrize("algorithm", ["MUNIT", "UNIT"])
def test_a_complete_text_means_the_same_when_presets_have_changed(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_values(make_config({"preset": "small_data", "new_size": 300}), {"new_size": None})
    text = complete_text(config, algorithm)
    complete = complete_values(config, algorithm)
    monkeypatch.setitem(PRESETS, "small_data", {"lr": 1.0, "new_size": 500, "range_a": "auto", "gen.style_dim": 3})
    for found in (parse_config(text), make_config(nested(complete))):
        assert complete_values(found, algorithm) == complete and found.preset == "small_data"
        assert found.gen.style_dim == 8


def test_a_complete_text_takes_no_other_preset() -> None:
    for name in (None, "small_data"):
        text = complete_text(make_config({"preset": name}), "MUNIT")
        assert parse_config(text).preset == name and "preset_keys" in yaml.safe_load(text)
        with pytest.raises(
            ConfigError, match=r"^c\.yaml: this file is the complete .*config_as_given\.yaml$"
        ) as caught:
            parse_config(text, "c.yaml", preset="improved")
        assert ("without a preset" if name is None else "with preset 'small_data'") in str(caught.value)
    assert parse_config(text, preset="small_data") == parse_config(text)


def rates_of(config: Config) -> tuple[float, float]:
    hyperparameters = config.hyperparameters()
    return initial_rate(hyperparameters, "gen"), initial_rate(hyperparameters, "dis")


def test_a_given_lr_is_the_rate_of_both() -> None:
    improved = make_config({"preset": "improved"})
    assert rates_of(improved) == (0.0001, 0.0004)
    given = make_config({"preset": "improved", "lr": 5e-5})
    assert rates_of(given) == (5e-5, 5e-5) and not {"lr_gen", "lr_dis"} & set(given.preset_keys or ())
    overridden, named = override(improved, ["lr=5e-5"])
    assert overridden.model_dump(exclude={"preset_keys"}) == given.model_dump(exclude={"preset_keys"})
    assert overridden.preset_keys == given.preset_keys and named == {"lr", "lr_gen", "lr_dis"}
    # A rate that was given stays.
    assert rates_of(make_config({"preset": "improved", "lr": 5e-5, "lr_dis": 2e-5})) == (5e-5, 2e-5)
    assert rates_of(override(improved, ["lr=5e-5", "lr_gen=1e-5"])[0]) == (1e-5, 5e-5)
    assert rates_of(override(make_config({"preset": "improved", "lr_gen": 1e-5}), ["lr=5e-5"])[0]) == (1e-5, 5e-5)


def test_keys_that_nothing_reads() -> None:
    assert unread_keys(make_config({"lr": 1e-5, "lr_gen": 1e-5, "lr_dis": 1e-5}), "MUNIT") == ["lr"]
    for read in ({"lr": 1e-5, "lr_gen": 1e-5}, {"lr_gen": 1e-5, "lr_dis": 1e-5}, {"preset": "improved"}):
        assert "lr" not in unread_keys(make_config(read), "MUNIT")
    assert "lr" not in unread_keys(parse_config(complete_text(make_config({"preset": "improved"}), "MUNIT")), "MUNIT")
    filled = filled_values(make_config({}), "MUNIT")
    assert set(filled) - set(filled_values(make_config({"dis": {"arch": "residual"}}), "MUNIT")) == {"dis.num_scales"}
    assert set(filled) - set(filled_values(make_config({"lr_gen": 1e-5, "lr_dis": 1e-5}), "MUNIT")) == {"lr"}


def test_what_a_preset_leaves() -> None:
    given = {"preset": "improved", "init": "kaiming", "lr": 5e-5, "dis": {"arch": "residual", "gan_type": "lsgan"}}
    assert left_values(make_config(given)) == {"init": "kaiming", "lr": 5e-5, "dis.gan_type": "lsgan"}
    assert left_values(make_config({"preset": "improved"})) == left_values(make_config({"init": "kaiming"})) == {}


def test_problems_name_what_the_preset_gave() -> None:
    with pytest.raises(
        ConfigError, match=r"dis: norm: sn with arch: residual; .* \(preset improved gives dis\.arch\)$"
    ):
        make_config({"preset": "improved", "dis": {"norm": "sn"}})
    for alone in ({"dis": {"norm": "sn", "arch": "residual"}}, {"preset": "improved", "lr": -1}):
        with pytest.raises(ConfigError) as caught:
            make_config(alone)
        assert "gives" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"crop_image_height: 8 .*use at least 16, or fewer layers$") as caught:
        make_config({"crop_image_height": 8, "new_size": 300, "dis": {"arch": "residual"}})
    assert "scales" not in str(caught.value)


# -- runs


def said(config: dict[str, Any], data: Path, out: Path, preset: str | None = None, **options: Any) -> str:
    """What a run prints; preset: as --preset gives it."""
    console = Console(record=True, width=2000, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    text = yaml.safe_dump(config | {"data_root": str(data)})
    options = {"amp": "off"} | options
    train(parse_config(text, preset=preset), TrainOptions("small", out, **options), config_text=text, console=console)
    return console.export_text()


@pytest.fixture
def config(small_config: dict[str, Any]) -> dict[str, Any]:
    del small_config["dis"]["num_scales"]
    return small_config | {"max_iter": 2}


def test_a_run_with_a_preset_is_the_one_with_its_values(
    config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    text = said(config, picture_folders, tmp_path / "preset", "small_data", overrides=["scale_a=0.2"])
    assert text.count("filled by preset small_data: ") == 1
    line = next(line for line in text.splitlines() if "filled by" in line)
    assert "lr 0.0004" in line and "gen.n_downsample 1" in line and "scale_b 0.1" in line and "scale_a" not in line
    assert " lr " not in next(line for line in text.splitlines() if "as by default" in line)
    written = nested(flat(config) | PRESETS["small_data"] | {"scale_a": 0.2})
    run(written, picture_folders, tmp_path / "written")
    states = [load_file(checkpoints(tmp_path / name) / "resume_00000002.pt") for name in ("preset", "written")]
    assert equal(*states)
    kept = load_config(tmp_path / "preset/outputs/small/config.yaml")
    assert kept.preset == "small_data" and kept.lr == 0.0004 and kept.scale_a == 0.2
    assert "scale_a" not in (kept.preset_keys or ()) and "lr" in (kept.preset_keys or ())
    complete = yaml.safe_load((tmp_path / "preset/outputs/small/config.yaml").read_text())
    assert set(flat(complete)) >= set(PRESETS["small_data"])


def test_a_resumed_run_keeps_its_preset(
    config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --preset or without; and with other values of presets, as a later version may have."""
    overrides = ["lr=0.002"]
    said(config, picture_folders, tmp_path, "small_data", overrides=overrides)
    path = tmp_path / "outputs/small/config.yaml"
    values = {key: value for key, value in values_of(load_config(path)).items() if key != "max_iter"}
    text = said(config | {"max_iter": 3}, picture_folders, tmp_path, resume=True)
    assert "preset: small_data is kept, as this run was told; the file has null" in text and "filled by" not in text
    assert "lr: 0.002 is kept" in text and "scale_a" not in text and "n_downsample" not in text
    text = said(config | {"max_iter": 4}, picture_folders, tmp_path, "small_data", resume=True)
    assert "lr: 0.002 is kept" in text and "preset: " not in text
    monkeypatch.setitem(PRESETS, "small_data", PRESETS["small_data"] | {"scale_a": 0.5, "gan_w": 3})
    for preset in ("small_data", None):
        said(config | {"max_iter": 5}, picture_folders, tmp_path, preset, resume=True)
        kept = load_config(path)
        assert {key: value for key, value in values_of(kept).items() if key != "max_iter"} == values
        assert kept.preset == "small_data" and kept.preset_keys and "gan_w" not in kept.preset_keys
    summary = json.loads((tmp_path / "outputs/small/summary.json").read_text())
    assert {change["key"] for change in summary["changed"]} == {"max_iter"}


def test_a_resumed_run_takes_no_other_preset(config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    said(config, picture_folders, tmp_path)
    with pytest.raises(ConfigError) as caught:
        said(config, picture_folders, tmp_path, "small_data", resume=True)
    refused = {line.partition(":")[0] for line in str(caught.value).splitlines()}
    assert refused == set(PRESETS["small_data"])
    # A preset that changes nothing may be named.
    text = said(config | {"max_iter": 3}, picture_folders, tmp_path, "published", resume=True)
    assert "changed: preset: null -> published" in text
    assert load_config(tmp_path / "outputs/small/config.yaml").preset == "published"


def test_a_file_may_name_its_preset(config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    text = said(config | {"preset": "improved"}, picture_folders, tmp_path)
    assert "filled by preset improved: " in text and "dis.gan_type hinge" in text
    assert "preset" not in said(config | {"preset": "improved", "max_iter": 3}, picture_folders, tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"dis\.arch: residual -> multiscale: a run keeps its networks"):
        said(config | {"max_iter": 4}, picture_folders, tmp_path, resume=True)
    text = said(config | {"preset": "published"}, picture_folders, tmp_path / "published")
    assert "filled by preset published: nothing" in text


def test_a_run_says_what_its_preset_left(config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    text = said(config | {"init": "kaiming"}, picture_folders, tmp_path, "improved", overrides=["lr=5e-5"])
    [line] = [line for line in text.splitlines() if "not filled by" in line]
    assert line.startswith("given by the file or --override, so not filled by improved: init kaiming, ")
    assert "lr 5e-05" in line and "lr_gen" not in text and "dis.num_scales" not in text
    state = load_file(checkpoints(tmp_path) / "resume_00000002.pt")
    assert {state["optimizers"][name]["param_groups"][0]["initial_lr"] for name in ("gen", "dis")} == {5e-5}


@pytest.mark.parametrize("again", ["improved", None])
def test_an_override_of_lr_changes_both_rates_of_a_resumed_run(
    again: str | None, config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    said(config, picture_folders, tmp_path, "improved")
    path = tmp_path / "outputs/small/config.yaml"
    assert rates_of(load_config(path)) == (0.0001, 0.0004)
    changed = {"resume": True, "overrides": ["lr=5e-5"]}
    text = said(config | {"max_iter": 3}, picture_folders, tmp_path, again, **changed)
    assert "changed: lr_dis: 0.0004 -> null" in text and "the learning rate after iteration 2 is 5e-05" in text
    said(config | {"max_iter": 4}, picture_folders, tmp_path, again, resume=True)
    kept = load_config(path)
    assert rates_of(kept) == (5e-5, 5e-5) and not {"lr", "lr_gen", "lr_dis"} & set(kept.preset_keys or ())


def test_an_override_is_no_longer_of_the_preset(config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    path = tmp_path / "outputs/small/config.yaml"
    said(config, picture_folders, tmp_path, "small_data")
    # The second has the value of the preset: only its name tells.
    for number, (preset, override_) in enumerate([(None, "scale_a=0.2"), ("small_data", "shift_a=0.1"), (None, "")]):
        overrides = [override_] if override_ else []
        config["max_iter"] = 3 + number
        said(config, picture_folders, tmp_path, preset, resume=True, overrides=overrides)
        gone = {"scale_a"} if number == 0 else {"scale_a", "shift_a"}
        assert set(load_config(path).preset_keys or ()) == set(PRESETS["small_data"]) - gone - set(config)


def test_a_key_of_the_preset_that_the_file_comes_to_give(
    config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    """Though the value be the default, which the file had before without saying so."""
    said(config, picture_folders, tmp_path, "small_data")
    edited = config | {"max_iter": 3, "scale_a": 0, "diffaugment": []}
    with pytest.raises(ConfigError) as caught:
        said(edited, picture_folders, tmp_path, resume=True)
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == {"scale_a", "diffaugment"}
    assert "give --override scale_a=0 to change it" in str(caught.value)
    said(edited, picture_folders, tmp_path, resume=True, overrides=["scale_a=0", "diffaugment=[]"])
    assert load_config(tmp_path / "outputs/small/config.yaml").scale_a == 0


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        (["color", "translation", "cutout"], "'diffaugment=[color, translation, cutout]'"),
        ([], "'diffaugment=[]'"),
        (None, "diffaugment=null"),
        ("null", """'diffaugment='"'"'null'"'"''"""),
        ("a b", "'diffaugment=a b'"),
        (5e-5, "diffaugment=5e-05"),
    ],
)
def test_a_refusal_can_be_pasted(value: Any, typed: str) -> None:
    assert f"give --override {typed} to change it" in Change("diffaugment", 0, value).refusal()
    [assignment] = shlex.split(typed)
    read = yaml.safe_load(assignment.partition("=")[2])
    assert (float(read) if isinstance(value, float) else read) == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("color", r"use a list: \[color\]; got 'color'"),
        ("colour", r"use a list: \[color, translation, cutout\] or some of them; got 'colour'"),
        (["color", "cutout", "color"], "color is in the list more than once"),
        (["color"] * 4, "color is in the list more than once"),
        (["colour"], "'color', 'translation' or 'cutout'"),
        (3, "valid list"),
    ],
)
def test_transformations_are_a_list(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^configuration: diffaugment[^\n]*{words}[^\n]*$"):
        make_config({"diffaugment": value})
    assert make_config({"diffaugment": None, "preset": "small_data"}).diffaugment == []

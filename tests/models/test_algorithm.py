"""Which algorithm a configuration is for, and what of it that algorithm reads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from munit_fast import ConfigError, load_config, make_config, reference
from munit_fast.config import parse_config
from munit_fast.models.algorithm import (
    NOT_PUBLISHED,
    ONLY,
    choose_algorithm,
    complete_text,
    complete_values,
    filled_values,
    flat,
    nested,
    stated_algorithm,
    unread_keys,
)

CONFIGS = Path(__file__).parents[2] / "configs"


def published(name: str) -> dict[str, Any]:
    """A configuration as it is published: `edges_folder.yaml` has the same keys and values but for data_root."""
    values: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return values


@pytest.mark.parametrize(("name", "algorithm"), [("edges_folder.yaml", "MUNIT"), ("unit_edges_folder.yaml", "UNIT")])
def test_published_files_are_taken_as_they_are(name: str, algorithm: str) -> None:
    values = published(name) | ({"recon_h_w": 0} if algorithm == "UNIT" else {})
    config = make_config(values)
    for asked in ("auto", algorithm):
        assert choose_algorithm(config, asked) == algorithm
    assert unread_keys(config, algorithm) == [] and filled_values(config, algorithm) == {}
    other = {"MUNIT": "UNIT", "UNIT": "MUNIT"}[algorithm]
    with pytest.raises(ConfigError, match=f"one for {algorithm}: .*; give --trainer {algorithm}, or state") as caught:
        choose_algorithm(config, other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_files_say_what_they_are_for(path: Path) -> None:
    config = load_config(path)
    name = "UNIT" if path.name.startswith("unit") else "MUNIT"
    stated = stated_algorithm(config)
    assert stated is not None and stated[0] == name and unread_keys(config, name) == []


@pytest.mark.parametrize(
    ("values", "stated", "unread_by_munit"),
    [
        ({}, None, []),
        ({"lr": 0.1, "gen": {"dim": 8}}, None, []),
        ({"recon_kl_w": 0.01}, "UNIT", None),
        ({"recon_kl_cyc_w": 0}, "UNIT", None),
        ({"recon_kl_w": 0.01, "recon_s_w": 1}, "UNIT", None),
        ({"gen": {"style_dim": 8}}, "MUNIT", []),
        ({"recon_c_w": 1}, "MUNIT", []),
        ({"recon_kl_w": 0.01, "gen": {"style_dim": 8}}, None, ["recon_kl_w"]),
        ({"trainer": "MUNIT", "recon_kl_w": 0.01}, "MUNIT", ["recon_kl_w"]),
        ({"trainer": "UNIT", "gen": {"style_dim": 8}}, "UNIT", None),
        ({"recon_h_w": 1, "gen": {"style_dim": 8}}, "MUNIT", ["recon_h_w"]),
    ],
)
def test_keys_tell(values: dict[str, Any], stated: str | None, unread_by_munit: list[str] | None) -> None:
    config = make_config(values)
    found = stated_algorithm(config)
    assert (found and found[0]) == stated
    assert choose_algorithm(config) == (stated or "MUNIT")
    assert choose_algorithm(config, otherwise="UNIT") == (stated or "UNIT")
    if unread_by_munit is None:
        with pytest.raises(ConfigError, match="--trainer UNIT"):
            choose_algorithm(config, "MUNIT")
    else:
        assert choose_algorithm(config, "MUNIT") == "MUNIT"
        assert unread_keys(config, "MUNIT") == unread_by_munit
    if stated != "MUNIT":
        assert choose_algorithm(config, "UNIT") == "UNIT"


@pytest.mark.parametrize("algorithm", ["MUNIT", "UNIT"])
def test_an_algorithm_reads_its_keys_and_none_of_the_others(small_config: dict[str, Any], algorithm: str) -> None:
    trainer = {"MUNIT": reference.MUNIT_Trainer, "UNIT": reference.UNIT_Trainer}[algorithm]
    x_a, x_b = torch.rand(2, 1, 3, 32, 32) * 2 - 1

    def iteration(values: dict[str, Any]) -> None:
        made: Any = trainer(values)
        made.dis_update(x_a, x_b, values)
        made.gen_update(x_a, x_b, values)

    whole = make_config(small_config | {"recon_x_cyc_w": 1})
    complete = complete_values(whole, algorithm)
    iteration(nested(complete))
    for key in {*ONLY[algorithm]} - NOT_PUBLISHED:
        lacking = copy.deepcopy(complete)
        del lacking[key]
        with pytest.raises(KeyError, match=key.rpartition(".")[2]):
            iteration(nested(lacking))


@pytest.mark.parametrize("algorithm", ["MUNIT", "UNIT"])
def test_the_complete_text_is_the_configuration(small_config: dict[str, Any], algorithm: str) -> None:
    config = make_config(small_config | {"lr": "1e-5", "recon_kl_w": 0.3, "data_root": "bilder/übung"})
    found = parse_config(complete_text(config, algorithm))
    assert found.trainer == algorithm and found.lr == 1e-5 and found.data_root == "bilder/übung"
    assert complete_values(found, algorithm) == complete_values(config, algorithm)
    assert filled_values(found, algorithm) == {} and unread_keys(found, algorithm) == []
    assert found.gen.style_dim == (3 if algorithm == "MUNIT" else 8)  # UNIT's text has none


def test_what_was_filled_in() -> None:
    config = make_config(published("unit_edges_folder.yaml"))
    assert filled_values(config, "MUNIT") == {"gen.mlp_dim": 256, "gen.style_dim": 8, "recon_s_w": 1, "recon_c_w": 1}
    values = published("unit_edges_folder.yaml")
    del values["recon_kl_cyc_w"], values["beta1"], values["dis"]["norm"]
    assert filled_values(make_config(values), "UNIT") == {"beta1": 0.5, "recon_kl_cyc_w": 0, "dis.norm": "none"}
    assert flat(nested({"gen.dim": 1, "lr": 2})) == {"gen.dim": 1, "lr": 2}

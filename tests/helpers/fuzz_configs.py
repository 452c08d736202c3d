"""Configurations and lists for the fuzzer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from helpers.fuzz_inputs import ROOT, STEP, VALUES, Target, check_message, mutate, mutated
from munit_fast.config import Config, ConfigError, GeneratorConfig, load_config
from munit_fast.data import ImageError, read_list


def config_inputs() -> st.SearchStrategy[bytes]:
    seeds = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    names = [
        *Config.model_fields,
        *(f"gen.{name}" for name in GeneratorConfig.model_fields),
        "dis.n_layer",
        "dis.num_scales",
    ]

    def dump(values: dict[str, Any]) -> bytes:
        nested: dict[str, Any] = {}
        for name, value in values.items():
            section, _, key = name.rpartition(".")
            (nested.setdefault(section, {}) if section and isinstance(nested.get(section, {}), dict) else nested)[
                key
            ] = value
        return yaml.safe_dump(nested, allow_unicode=True).encode("utf-8", "surrogatepass")

    structured = st.dictionaries(st.sampled_from(names), VALUES, max_size=5).map(dump)
    return mutated(seeds) | structured | st.builds(mutate, structured, st.lists(STEP, max_size=3))


def list_inputs(root: Path) -> st.SearchStrategy[bytes]:
    lines = [
        "a.png",
        "sub/b.png",
        "sub/../a.png",
        "../secret.png",
        "link.png",
        "loop",
        "sub",
        "outside/secret.png",
        "a.png/x",
    ]
    lines += [
        str(root / "a.png"),
        str(root.parent / "secret.png"),
        "/etc/passwd",
        "./a.png",
        "",
        " ",
        "\0",
        "a" * 300,
        "é.png",
        "~/a.png",
    ]
    vocabulary = st.sampled_from(lines) | st.text(max_size=20)
    text = st.lists(vocabulary, max_size=6).map(lambda names: "\n".join(names).encode("utf-8", "surrogatepass"))
    return text | st.builds(mutate, text, st.lists(STEP, max_size=4))


def config_target(folder: Path) -> Target:
    path = folder / "config.yaml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            cfg = load_config(path)
        except ConfigError as error:
            check_message(error)
        else:
            assert cfg.hyperparameters()["gen"]["dim"] >= 1

    return run


def list_target(folder: Path) -> Target:
    root, path = folder / "root", folder / "list.txt"
    (root / "sub").mkdir(parents=True)
    for place in (root / "a.png", root / "sub" / "b.png", folder / "secret.png", root / "é.png"):
        place.write_bytes(b"x")
    (root / "link.png").symlink_to(folder / "secret.png")
    (root / "outside").symlink_to(folder)
    (root / "loop").symlink_to("loop")
    inside = os.path.realpath(root) + os.sep

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = read_list(path, root)
        except ImageError as error:
            check_message(error)
        else:
            assert found
            for image in found:
                assert os.path.realpath(image).startswith(inside)
                assert image.is_file()

    return run

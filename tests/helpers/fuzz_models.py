"""Portable files and folders of models for the fuzzer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from helpers.fuzz_inputs import GENERATOR, VALUES, Target, check_message, mutated
from munit_fast.config import make_config
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.models.munit import MUNIT, from_pretrained
from munit_fast.models.portable import write_portable


def portable_inputs(folder: Path) -> st.SearchStrategy[bytes]:
    """Whole files with some bytes changed, and files whose header and tensors are of different minds."""
    model = MUNIT(make_config({"gen": GENERATOR}))
    write_portable(folder / "seed.safetensors", model)
    whole = (folder / "seed.safetensors").read_bytes()
    with safe_open(str(folder / "seed.safetensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()

    def disagreeing(key: str, value: Any, dropped: str, tensor: torch.Tensor, name: str) -> bytes:
        config = yaml.safe_load(metadata["config"])
        config["gen"][key] = value
        kept = {k: v for k, v in tensors.items() if k != dropped} | {name: tensor}
        return save(kept, metadata | {"config": yaml.safe_dump(config)})

    sizes = st.sampled_from([0, 1, 2, 8, 2**16, 2**31, 10**12, -1, "relu", None])
    odd = st.sampled_from(
        [torch.zeros(3), torch.zeros(2, 3, 7, 7).to(torch.float8_e4m3fn), torch.zeros(0, dtype=torch.bool)]
    )
    names = st.sampled_from([*tensors, "a.enc_content.model.9.conv.weight", "c.x", "a", ""])
    return mutated([whole]) | st.builds(
        disagreeing, st.sampled_from(sorted(GENERATOR)), sizes, st.sampled_from(sorted(tensors)), odd, names
    )


def folder_inputs(folder: Path) -> st.SearchStrategy[bytes]:
    """config.json and model.safetensors, one after the other: either damaged, or of different minds."""
    MUNIT(make_config({"gen": GENERATOR})).save_pretrained(folder / "seed")
    config, weights = ((folder / "seed" / name).read_bytes() for name in ("config.json", "model.safetensors"))
    whole = json.loads(config)

    def changed(values: dict[str, Any], inner: dict[str, Any]) -> bytes:
        gen = whole["config"]["gen"] | inner
        return json.dumps(whole | {"config": whole["config"] | {"gen": gen}} | values, default=repr).encode()

    names = st.sampled_from(["library_name", "trainer", "config", "architectures", "_class_name", "x"])
    configs = mutated([config]) | st.builds(
        changed,
        st.dictionaries(names, VALUES, max_size=2),
        st.dictionaries(st.sampled_from([*sorted(GENERATOR), "x"]), VALUES, max_size=2),
    )
    files = st.tuples(configs, st.just(weights)) | st.tuples(st.just(config) | configs, mutated([weights]))
    return files.map(lambda pair: len(pair[0]).to_bytes(4, "big") + pair[0] + pair[1])


def portable_target(folder: Path) -> Target:
    path = folder / "model.safetensors"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            model = from_pretrained(path)
        except CheckpointError as error:
            check_message(error)
        else:
            assert sum(p.numel() for p in model.parameters()) <= len(data)  # two bytes a parameter; one in some dtypes

    return run


def folder_target(folder: Path) -> Target:
    saved = folder / "saved"
    saved.mkdir()

    def run(data: bytes) -> None:
        at = 4 + int.from_bytes(data[:4], "big")
        (saved / "config.json").write_bytes(data[4:at])
        (saved / "model.safetensors").write_bytes(data[at:])
        try:
            model = from_pretrained(saved)
        except CheckpointError as error:
            check_message(error)
            message = str(error)
            assert message.isprintable(), ascii(message)
        else:
            said = json.loads(data[4:at])
            assert said["library_name"] == "munit-fast" and said["trainer"] == "MUNIT"
            assert sum(p.numel() for p in model.parameters()) <= len(data) - at

    return run

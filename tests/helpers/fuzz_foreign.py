"""Checkpoints of other programs for the fuzzer."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch.optim.swa_utils import AveragedModel

from helpers.fuzz_inputs import GENERATOR, STEP, Target, check_message, mutate
from helpers.fuzz_states import small_trainer
from munit_fast.config import make_config
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.models import networks
from munit_fast.models.munit import MUNIT


def foreign_inputs() -> st.SearchStrategy[bytes]:
    """Checkpoints as other programs have them, some of them damaged: "p" and a .pt, or "s" and a .safetensors file."""
    trainer = small_trainer()
    parts: dict[str, Any] = {name: getattr(trainer, name).state_dict() for name in ("gen_a", "gen_b", "dis_a")}
    pieces = [*parts.values(), trainer.state_dict(), AveragedModel(trainer).state_dict(), trainer.gen_opt.state_dict()]
    pieces += [{}, [], 3, None, "x", torch.ones(2), {1: torch.ones(2)}, {"": {"": torch.ones(1)}}]
    names = ["a", "b", "gen_a", "gen_b", "genA", "netG_B", "gen_a_ema", "ema", "model", "state_dict", "net_G", "dis_a"]
    names += ["module", "_orig_mod", "module.gen_a", "n_averaged", "", ".", "a.b", "x\x1b]0;t\x07", "autoencoder_a"]
    names += ["content_encoder.model.0.layers.conv.weight", "enc_class_model.model.0.weight", "cnns.0.0.conv.weight"]

    def prefixed(prefix: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return {prefix: value}
        return {f"{prefix}.{key}" if isinstance(key, str) else key: item for key, item in value.items()}

    name = st.sampled_from(names) | st.text(max_size=4)
    piece = st.sampled_from(pieces)
    nests = st.recursive(
        piece,
        lambda inner: (
            st.dictionaries(name, inner, max_size=3)
            | st.lists(inner, max_size=2)
            | st.builds(prefixed, name, inner)
            | st.builds(lambda a, b: {"a": a, "b": b}, inner, inner)
        ),
        max_leaves=6,
    )

    def endless(value: Any, width: int, depth: int) -> Any:
        for _ in range(depth):
            value = {f"k{i}": value for i in range(width)}
        return value

    def saved(value: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return b"p" + buffer.getvalue()

    def flat(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return {prefix.removesuffix("."): value.detach().clone().contiguous()}
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return {name: tensor for key, item in items for name, tensor in flat(item, f"{prefix}{key}.").items()}

    def tensors(value: Any) -> bytes:
        return b"s" + save(flat(value))

    wide = st.builds(endless, nests, st.integers(1, 9), st.integers(1, 45)).map(saved)
    encodable = nests.filter(lambda value: "\\ud" not in ascii(list(flat(value))))
    files = nests.map(saved) | encodable.map(tensors)
    damaged = st.builds(lambda data, steps: data[:1] + mutate(data[1:], steps), files, st.lists(STEP, max_size=3))
    return st.integers(0, 15).flatmap(lambda turn: wide if turn == 0 else files if turn % 2 else damaged)


def foreign_target(folder: Path) -> Target:
    cfg = make_config({"gen": GENERATOR})
    model, bare = MUNIT(cfg), folder / "bare.pt"
    torch.save(networks.AdaINGen(3, GENERATOR).state_dict(), bare)

    def weights() -> torch.Tensor:
        return torch.cat([value.flatten() for value in model.state_dict().values()]).clone()

    def run(data: bytes) -> None:
        path = folder / ("x.safetensors" if data[:1] == b"s" else "x.pt")
        path.write_bytes(data[1:])
        ways: list[tuple[Any, bool]] = [(path, True), (path, False), ([bare, path], True), ([path, bare], True)]
        files, average = ways[zlib.crc32(data) % len(ways)]
        before = weights()
        try:
            model.load(files, average)
        except CheckpointError as error:
            check_message(error)
            message = str(error)
            assert message.isprintable(), ascii(message)
            assert torch.equal(before.nan_to_num(), weights().nan_to_num()), "half a checkpoint was loaded"
        else:
            assert all(note.isprintable() and len(note) < 2000 for note in model.notes), model.notes

    return run

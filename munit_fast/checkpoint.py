"""Checkpoint files in and out: always under weights_only, always whole, and a clear word when a file does not fit.

The published files are `gen_########.pt` and `dis_########.pt`, each {"a": state_dict, "b": state_dict}, and
`optimizer.pt`, {"gen": …, "dis": …}. Weights that NVIDIA published with MUNIT are licensed CC BY-NC-SA 4.0: they may
be loaded here, but not used commercially.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast.reference.files import newest_checkpoint, save_atomically, upgrade_state_dict

STYLES_FILE = "styles.pt"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file, what is wrong and what would work."""


def load_file(path: str | Path) -> Any:
    """What a .pt file holds, on the CPU. Only tensors and plain containers are accepted. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such checkpoint file'}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a foreign file can make the unpickler raise almost anything
        reason = str(error).strip().split("\n")[0]
        if "Unsupported" in str(error) or "weights_only" in str(error).lower():
            reason = "it holds Python objects, which could run code; only tensors are loaded"
        raise CheckpointError(f"{path}: not a checkpoint that can be loaded safely ({reason})") from None


def load_pair(path: str | Path, net_a: nn.Module, net_b: nn.Module) -> None:
    """Load {"a", "b"} state dicts of a gen_*.pt or dis_*.pt into two networks, or leave both as they were.

    Files written by PyTorch 0.3 are brought up to date. Raises CheckpointError when the file is of another program or
    of networks of another size.
    """
    states = load_file(path)
    if not isinstance(states, Mapping) or not {"a", "b"} <= set(states):
        raise CheckpointError(f"{path}: not a gen_*.pt or dis_*.pt file: it must hold the two networks 'a' and 'b'")
    upgraded = []
    for key, net in (("a", net_a), ("b", net_b)):
        state = states[key]
        if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
            raise CheckpointError(f"{path}: entry {key!r} is not a state_dict")
        state = upgrade_state_dict(state, net)
        _check_fit(path, key, state, net)
        upgraded.append(state)
    for state, net in zip(upgraded, (net_a, net_b)):
        net.load_state_dict(state)


def _check_fit(path: str | Path, key: str, state: Mapping[str, Tensor], net: nn.Module) -> None:
    own = net.state_dict()
    differences = [f"{name} is missing" for name in own if name not in state]
    differences += [f"{name} is not expected" for name in state if name not in own]
    differences += [
        f"{name} is {list(value.shape)} where {list(own[name].shape)} is needed"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if not differences:
        return
    found, wanted = describe_network(state), describe_network(own)
    if found and wanted:
        changed = [k for k in wanted if found.get(k) != wanted[k]]
        detail = ", ".join(f"{k} is {found.get(k, 'absent')} in the file and {wanted[k]} here" for k in changed)
        if detail:
            raise CheckpointError(f"{path}: made with another configuration: {detail}")
    raise CheckpointError(f"{path}: does not fit network {key!r}: {differences[0]} ({len(differences)} differences)")


def describe_network(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration values that a generator's or discriminator's state_dict shows; {} when it is neither."""
    if any(k.startswith("enc_content.") for k in state):
        return {"trainer": "MUNIT"} | _describe_generator(state, "enc_content.") | _describe_style(state)
    if any(k.startswith("enc.") for k in state):
        return {"trainer": "UNIT"} | _describe_generator(state, "enc.")
    if any(k.startswith("cnns.") for k in state):
        return _describe_discriminator(state)
    return {}


def _indices(state: Mapping[str, Tensor], pattern: str) -> set[int]:
    matches = (re.match(pattern, key) for key in state)
    return {int(m[1]) for m in matches if m}


def _shape(state: Mapping[str, Tensor], key: str, axis: int) -> int | None:
    value = state.get(key)
    return value.shape[axis] if isinstance(value, Tensor) and value.dim() > axis else None


def _describe_generator(state: Mapping[str, Tensor], encoder: str) -> dict[str, Any]:
    prefix = re.escape(encoder)
    return {
        "input channels": _shape(state, f"{encoder}model.0.conv.weight", 1),
        "gen.dim": _shape(state, f"{encoder}model.0.conv.weight", 0),
        "gen.n_downsample": len(_indices(state, rf"{prefix}model\.(\d+)\.conv\.weight")) - 1,
        "gen.n_res": len(_indices(state, rf"{prefix}model\.\d+\.model\.(\d+)\.")),
    }


def _describe_style(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "gen.style_dim": _shape(state, "mlp.model.0.fc.weight", 1),
        "gen.mlp_dim": _shape(state, "mlp.model.0.fc.weight", 0),
    }


def _describe_discriminator(state: Mapping[str, Tensor]) -> dict[str, Any]:
    spectral = any(k.endswith("weight_bar") for k in state)
    normed = any(".norm." in k for k in state)
    return {
        "input channels": _shape(state, "cnns.0.0.conv.weight", 1),
        "dis.dim": _shape(state, "cnns.0.0.conv.weight", 0),
        "dis.num_scales": len(_indices(state, r"cnns\.(\d+)\.")),
        "dis.n_layer": len(_indices(state, r"cnns\.0\.(\d+)\.")) - 1,
        "dis.norm": "sn" if spectral else "one with parameters" if normed else "one without parameters",
    }


def save_run(trainer: Any, folder: str | Path, iterations: int) -> None:
    """Write the published three files and the display styles after `iterations` completed iterations, each whole."""
    folder = Path(folder)
    if hasattr(trainer, "s_a"):
        save_atomically({"a": trainer.s_a.cpu(), "b": trainer.s_b.cpu()}, folder / STYLES_FILE)
    trainer.save(folder, iterations - 1)


def resume_run(trainer: Any, folder: str | Path) -> int:
    """Load the newest checkpoint of a run into a trainer; returns the completed iterations. Raises CheckpointError."""
    folder = Path(folder)
    try:
        gen_path, iterations = newest_checkpoint(folder, "gen")
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: nothing to resume from: no gen_########.pt there") from None
    load_pair(gen_path, trainer.gen_a, trainer.gen_b)
    load_pair(gen_path.with_name(gen_path.name.replace("gen_", "dis_")), trainer.dis_a, trainer.dis_b)
    optimizers = load_file(folder / "optimizer.pt")
    try:
        trainer.gen_opt.load_state_dict(optimizers["gen"])
        trainer.dis_opt.load_state_dict(optimizers["dis"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'optimizer.pt'}: does not fit this configuration: {error}") from None
    if hasattr(trainer, "s_a") and (folder / STYLES_FILE).is_file():
        styles = load_file(folder / STYLES_FILE)
        trainer.s_a, trainer.s_b = styles["a"], styles["b"]
    trainer.iterations = iterations
    return iterations

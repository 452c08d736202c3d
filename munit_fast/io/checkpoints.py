"""Checkpoint files: loaded under weights_only, written atomically, refused with the reason where they do not fit.

The published files are `gen_########.pt` and `dis_########.pt`, each {"a": state_dict, "b": state_dict}, and
`optimizer.pt`, {"gen": …, "dis": …}. Weights that NVIDIA published with MUNIT are licensed CC BY-NC-SA 4.0: they may
be loaded here, but not used commercially.
"""

from __future__ import annotations

import copy
import errno
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast.io.atomic import atomic_path
from munit_fast.io.weight_norms import ORIGINAL, fold_weight_norms, plain_name
from munit_fast.utils.text import one_line, printable

_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


class CheckpointError(ValueError):
    """A checkpoint cannot be used: it is missing, damaged, of another program or of another configuration.

    The message is one printable line: the file, what is wrong and what would work.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it may quote the names that a third-party file holds


class CheckpointReadError(CheckpointError):
    """A checkpoint could not be read because the disk or memory failed; the file itself may be good."""


def checkpoint_name(kind: str, iterations: int) -> str:
    """ "gen_00000010.pt" for kind "gen" and 10 completed iterations."""
    return f"{kind}_{iterations:08d}.pt"


def found_checkpoints(folder: str | Path, kind: str) -> dict[int, Path]:
    """The files of `kind` ("gen" or "dis") in `folder`, by completed iterations."""
    matches = ((re.fullmatch(rf"{kind}_(\d+)\.pt", path.name), path) for path in Path(folder).glob(f"{kind}_*.pt"))
    return {int(match[1]): path for match, path in matches if match}


def save_atomically(obj: Any, path: str | Path) -> None:
    """torch.save that leaves the whole file or nothing under `path`, flushed to the disk. Raises FileWriteError.

    Tensors are contiguous in the file, whatever layout they are trained in.
    """
    obj = _contiguous(obj)
    with atomic_path(path) as temporary:
        temporary.touch()  # a clear OSError from the file system itself, rather than torch's RuntimeError
        try:
            torch.save(obj, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk this way
            reason = f"could not be written whole; is the disk full? ({str(error).splitlines()[0]})"
            raise OSError(errno.ENOSPC, reason, str(path)) from None


def _contiguous(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.contiguous()
    if isinstance(value, dict):
        found = copy.copy(value)  # with a state_dict's metadata
        for key, item in value.items():
            found[key] = _contiguous(item)
        return found
    return [_contiguous(item) for item in value] if isinstance(value, list) else value


def load_file(path: str | Path) -> Any:
    """Load a .pt file without running code of it.

    Args:
        path: A file of torch.save, of any version.

    Returns:
        What it holds: tensors on the CPU in plain containers.

    Raises:
        CheckpointReadError: The disk or memory failed.
        CheckpointError: The file is missing, damaged, holds other objects, or unpacks to more than it has.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(
                f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such checkpoint file'}"
            )
        _refuse_bomb(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_expanded(found)
        return found
    except CheckpointError:
        raise
    except FileNotFoundError:  # another process removed it just now
        raise CheckpointError(f"{path}: no such checkpoint file") from None
    except Exception as error:  # a third-party file can make the unpickler raise almost anything
        if (failure := _failure_of_machine(error) or _failure_to_read(path)) is not None:
            raise CheckpointReadError(f"{path}: cannot be read: {failure}") from None
        reason = str(error).strip().split("\n")[0] or "it is empty or damaged"
        if "Unsupported" in str(error) or "weights_only" in str(error).lower():
            reason = "it holds Python objects, which could run code; only tensors are loaded: save its state_dict alone"
        raise CheckpointError(f"{path}: not a checkpoint that can be loaded safely ({reason})") from None


def _failure_of_machine(error: BaseException | None) -> str | None:
    """The reason where an exception, or one that it hides, comes from the disk or memory; else None."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # the latter: torch's allocator
            return "not enough memory"
        error = error.__cause__ or error.__context__
    return None


def _failure_to_read(path: Path) -> str | None:
    """Why the bytes of a file cannot be read, which zipfile and torch may have hidden; None if they can."""
    try:
        with path.open("rb") as file:
            while file.read(2**24):
                pass
    except OSError as error:
        return error.strerror or str(error)
    return None


def _refuse_expanded(content: Any) -> None:
    """Raise ValueError for a tensor of more elements than it has memory: strides of 0 turn bytes into terabytes."""
    seen: set[int] = set()
    stack = [content]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
                continue  # is_plain refuses these
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of shape {list(value.shape)} holds more than its storage")
        elif isinstance(value, Mapping):
            stack += value.values()
        elif isinstance(value, (list, tuple, set)):
            stack += value


def _refuse_bomb(path: Path) -> None:
    """Raise ValueError for an archive whose parts are larger than itself: compressed, or several parts in one place.

    torch.save does neither, and torch.load would unpack both: kilobytes that become all the memory there is.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        total = sum(part.file_size for part in archive.infolist())
    if total > path.stat().st_size:
        raise ValueError(f"its parts unpack to {total} bytes, more than the file has")


def save_snapshot(
    folder: str | Path,
    iterations: int,
    generators: Mapping[str, nn.Module],
    discriminators: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Write the published files of a training: dis_########.pt, gen_########.pt and optimizer.pt, in this order.

    Args:
        folder: An existing folder.
        iterations: The number of completed iterations, which names the files.
        generators: The two generators, {"a": network, "b": network}.
        discriminators: The two discriminators, likewise.
        optimizers: Their optimizers, {"gen": optimizer, "dis": optimizer}.

    Raises:
        FileWriteError: A file cannot be written; each is whole or absent.
    """
    folder = Path(folder)
    for kind, pair in (("dis", discriminators), ("gen", generators)):
        states = {key: pair[key].state_dict() for key in ("a", "b")}
        save_atomically(states, folder / checkpoint_name(kind, iterations))
    save_atomically({kind: optimizers[kind].state_dict() for kind in ("gen", "dis")}, folder / "optimizer.pt")


def load_snapshot(
    folder: str | Path, generators: Mapping[str, nn.Module], discriminators: Mapping[str, nn.Module]
) -> tuple[int, dict[str, Any]]:
    """Load the newest published files of a folder into the networks.

    Args:
        folder: Where gen_########.pt, dis_########.pt and optimizer.pt lie.
        generators: The two generators, {"a": network, "b": network}.
        discriminators: The two discriminators, likewise.

    Returns:
        The number of completed iterations and the content of optimizer.pt, {"gen": state_dict, "dis": state_dict}.

    Raises:
        FileNotFoundError: A file is missing.
        RuntimeError: A file does not fit the networks (from `load_state_dict`).
    """
    paths = {kind: found_checkpoints(folder, kind) for kind in ("gen", "dis")}
    complete = set(paths["gen"]) & set(paths["dis"])
    if not complete:
        raise FileNotFoundError(f"no gen_########.pt and dis_########.pt of one iteration in {folder}")
    iterations = max(complete)
    for kind, pair in (("gen", generators), ("dis", discriminators)):
        states = torch.load(paths[kind][iterations], map_location="cpu", weights_only=True)
        for key in ("a", "b"):
            pair[key].load_state_dict(upgrade_state_dict(states[key], pair[key]))
    return iterations, torch.load(Path(folder, "optimizer.pt"), map_location="cpu", weights_only=True)


def load_states(path: str | Path, content: Any, net_a: nn.Module, net_b: nn.Module) -> None:
    """Load the content of a gen_*.pt or dis_*.pt into two networks, or leave both as they were.

    Args:
        path: names the file in messages.
        content: {"a": state_dict, "b": state_dict}. One written by PyTorch 0.3 is brought up to date.
        net_a: gets "a".
        net_b: gets "b".

    Raises:
        CheckpointError: the content does not fit the networks; they are left as they were.
    """
    states = checked_pair(path, content, net_a, net_b)
    for key, net in (("a", net_a), ("b", net_b)):
        net.load_state_dict(states[key])


def load_average(path: str | Path, networks: Mapping[str, nn.Module]) -> dict[str, Mapping[str, Tensor]]:
    """The state dicts {"a", "b"} of an ema_*.pt that fit the networks {"a", "b"}. Raises CheckpointError."""
    return checked_pair(path, load_file(path), networks["a"], networks["b"])


def checked_pair(path: str | Path, states: Any, net_a: nn.Module, net_b: nn.Module) -> dict[str, Mapping[str, Tensor]]:
    """The state_dicts of a file as two networks take them.

    Args:
        path: names the file in messages.
        states: {"a": state_dict, "b": state_dict}, also one that PyTorch 0.3 wrote.
        net_a: is to take "a".
        net_b: is to take "b".

    Returns:
        {"a": state_dict, "b": state_dict}, brought up to date.

    Raises:
        CheckpointError: they do not fit the networks.
    """
    if not isinstance(states, Mapping) or not {"a", "b"} <= set(states):
        raise CheckpointError(f"{path}: not a gen_*.pt or dis_*.pt file: it must hold the two networks 'a' and 'b'")
    upgraded: dict[str, Mapping[str, Tensor]] = {}
    for key, net in (("a", net_a), ("b", net_b)):
        state = states[key]
        if not isinstance(state, Mapping) or not all(isinstance(k, str) and is_plain(v) for k, v in state.items()):
            raise CheckpointError(f"{path}: entry {key!r} is not a state_dict of plain tensors")
        upgraded[key] = upgrade_state_dict(state, net)
    try:
        check_fit(path, "a", upgraded["a"], net_a)
        check_fit(path, "b", upgraded["b"], net_b)
    except CheckpointError as error:
        if _fits(upgraded["a"], net_b) and _fits(upgraded["b"], net_a):
            raise CheckpointError(f"{error}; it fits with the domains exchanged") from None
        raise
    return upgraded


def _fits(state: Mapping[str, Tensor], net: nn.Module) -> bool:
    """Whether names and shapes are those of a network."""
    return {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in net.state_dict().items()
    }


def upgrade_state_dict(state_dict: Mapping[str, Tensor], module: nn.Module) -> OrderedDict[str, Tensor]:
    """A state_dict with the keys of a module; one that has them is left as it is.

    Of a network with spectral norms (`gen.weight_norm`), a module without them gets the weights that these compute.
    Files of PyTorch 0.3 carry running statistics on instance norms (dropped: nothing reads them) and lack the constant
    buffers of the AdaIN layers (taken from the module). Other differences are left for load_state_dict to report.

    Args:
        state_dict: The tensors of the file by name.
        module: The network that they are for.

    Returns:
        The tensors by the module's names.
    """
    own = module.state_dict()
    state_dict = fold_weight_norms(state_dict, own)
    upgraded = OrderedDict((k, v) for k, v in state_dict.items() if k in own or not k.endswith(_STATISTICS))
    for key, value in own.items():
        if key not in upgraded and key.endswith(_STATISTICS) and ".norm." in key:
            upgraded[key] = value
    return upgraded


def is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor of real numbers on the CPU: what a parameter can be copied from."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_complex()
        and not value.is_quantized
        and not value.is_nested
    )


def check_fit(path: str | Path, key: str, state: Mapping[str, Tensor], net: nn.Module) -> None:
    """Raise CheckpointError unless `state` has the names and shapes of a network; it names configuration keys.

    Args:
        path: The file, for the message.
        key: The network's name in the file, for the message.
        state: The tensors by name.
        net: The network.
    """
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
    trainers = {"MUNIT", "UNIT"}
    if {found.get("trainer"), wanted.get("trainer")} == trainers:
        raise CheckpointError(
            f"{path}: its trainer is {found['trainer']}, and {wanted['trainer']} was asked for; use --trainer "
            f"{found['trainer']}, in the library munit_fast.{found['trainer']}"
        )
    if found and "dis.dim" in found and "dis.dim" not in wanted:
        raise CheckpointError(f"{path}: holds discriminators; give the gen_########.pt beside it")
    if found and wanted:
        changed = [k for k in wanted if found.get(k) != wanted[k]]
        keys = {"input channels": f"input_dim_{key[-1]}"}  # whose networks are "a", "gen_a", …
        detail = ", ".join(
            f"{keys.get(k, k)} is {found.get(k, 'absent')} in the file and {wanted[k]} here" for k in changed
        )
        if detail:
            raise CheckpointError(f"{path}: network {key!r} was made with another configuration: {detail}")
    first = one_line(differences[0], 300)
    raise CheckpointError(f"{path}: does not fit network {key!r}: {first} ({len(differences)} in all)")


def describe_network(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration values that follow from a generator's or discriminator's state_dict; {} if it is neither."""
    norm = "spectral" if any(k.endswith(ORIGINAL) for k in state) else "none"
    state = {plain_name(k): value for k, value in state.items()}
    if any(k.startswith("enc_content.") for k in state):
        found = {"trainer": "MUNIT"} | _describe_generator(state, "enc_content.") | _describe_style(state)
        return found | {"gen.weight_norm": norm}
    if any(k.startswith("enc.") for k in state):
        return {"trainer": "UNIT"} | _describe_generator(state, "enc.") | {"gen.weight_norm": norm}
    if any(k.startswith("cnns.") for k in state):
        return _describe_discriminator(state) | {"dis.weight_norm": norm}
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
    residual = any(".skip." in k for k in state)
    return {
        "dis.arch": "residual" if residual else "multiscale",
        "input channels": _shape(state, "cnns.0.0.conv.weight", 1),
        "dis.dim": _shape(state, "cnns.0.0.conv.weight", 0),
        "dis.num_scales": len(_indices(state, r"cnns\.(\d+)\.")),
        "dis.n_layer": len(_indices(state, r"cnns\.0\.(\d+)\.")) - (2 if residual else 1),
        "dis.norm": "sn" if spectral else "one with parameters" if normed else "one without parameters",
    }

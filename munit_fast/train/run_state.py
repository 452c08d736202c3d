"""The whole state of a run as one file, resume_########.pt: whole or absent, checked when read, the newest ones kept.

A run that continues from it computes what it would have computed without the interruption. The published files lie
beside it for other programs; where there are none of ours, a run goes on from those.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from munit_fast.io.atomic import write_error
from munit_fast.io.checkpoints import (
    CheckpointError,
    CheckpointReadError,
    check_fit,
    checkpoint_name,
    found_checkpoints,
    is_plain,
    load_file,
    save_atomically,
    upgrade_state_dict,
)
from munit_fast.train.ema import images_seen

KEEP = 3  # states of a run
_NETWORKS = ("gen_a", "gen_b", "dis_a", "dis_b")


def run_state(trainer: Any, iterations: int, notes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that the iterations after the first `iterations` depend on, on the CPU, with its checksum.

    Args:
        trainer: the trainer.
        iterations: completed ones.
        notes: plain values that `apply_state` returns.
    """
    state: dict[str, Any] = {
        "iterations": iterations,
        "networks": {name: dict(getattr(trainer, name).state_dict()) for name in _NETWORKS},
        "optimizers": {"gen": trainer.gen_opt.state_dict(), "dis": trainer.dis_opt.state_dict()},
        "skips": trainer.skips.values,
        "scalers": trainer.scaler_states(),
        "notes": dict(notes or {}),
    }
    if trainer.average is not None and trainer.average.tensors:
        state["average"] = {"images": trainer.average.images, **trainer.average.states(trainer.generators)}
    if last := trainer.options.terms.last:
        state["last_losses"] = dict(last)
    if trainer.options.ada is not None:
        state["ada"] = trainer.options.ada.state()
    if hasattr(trainer, "s_a"):
        state["styles"] = {"a": trainer.s_a, "b": trainer.s_b}
    state = _on_cpu(state)
    return state | {"checksum": checksum(state)}


def checksum(state: Any) -> str:
    """SHA-256 of a nest of tensors, containers and plain values, in their order."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                digest.update(f"{key!r}:".encode())
                add(item)
            digest.update(b"}")
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
            digest.update(b"]")
        else:
            digest.update(f"{value!r},".encode())

    add(state)
    return digest.hexdigest()


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(item) for item in value)
    return value


# ---- write ----


def save_state(
    trainer: Any, folder: str | Path, iterations: int, notes: Mapping[str, Any] | None = None, keep: int = KEEP
) -> None:
    """Write resume_########.pt and remove all but the newest `keep` of them.

    A process killed at any moment leaves the states that were there, and the new one whole or not at all.

    Args:
        trainer: the trainer.
        folder: of the states.
        iterations: completed ones, the number in the file's name.
        notes: plain values that `apply_state` returns.
        keep: how many states stay.

    Raises:
        FileWriteError: the file could not be written.
    """
    folder = Path(folder)
    try:
        save_atomically(run_state(trainer, iterations, notes), folder / checkpoint_name("resume", iterations))
    except OSError as error:
        raise write_error(folder, error) from None
    found = found_checkpoints(folder, "resume")
    for old in sorted(found)[:-keep]:
        found[old].unlink(missing_ok=True)


def save_published(trainer: Any, folder: str | Path, iterations: int) -> None:
    """Write gen_########.pt, dis_########.pt, optimizer.pt and, if there is an average, ema_########.pt.

    Args:
        trainer: the trainer.
        folder: of the files.
        iterations: completed ones, the number in their names.

    Raises:
        FileWriteError: a file could not be written.
    """
    try:
        trainer.save(folder, iterations - 1)
    except OSError as error:
        raise write_error(folder, error) from None


# ---- read ----


@dataclass
class LoadedState:
    """The newest good state of a folder, and what is wrong with newer ones."""

    source: Path
    state: dict[str, Any]
    damaged: dict[Path, str] = field(default_factory=dict)

    def as_bytes(self) -> bytes:
        """The state as a file of it: for another process."""
        buffer = io.BytesIO()
        torch.save(self.state, buffer)
        return buffer.getvalue()

    def move_damaged_aside(self) -> None:
        """Rename the damaged files, so that they are neither read nor counted again."""
        for path in self.damaged:
            with suppress(OSError):  # a folder that cannot be written to will be reported when the run saves
                path.replace(path.with_name(path.name + ".damaged"))


def find_state(folder: str | Path) -> LoadedState:
    """The newest undamaged state of a folder; without resume_########.pt, that of the published files.

    Raises:
        CheckpointError: there is neither.
        CheckpointReadError: the disk or memory failed, which says nothing of the file.
    """
    folder = Path(folder)
    resumes = found_checkpoints(folder, "resume")
    damaged: dict[Path, str] = {}
    for iterations in sorted(resumes, reverse=True):
        path = resumes[iterations]
        try:
            return LoadedState(path, read_state(path), damaged)
        except CheckpointReadError:  # the file may be as good as ever: going on from an older one would lose work
            raise
        except CheckpointError as error:
            damaged[path] = str(error)
    if damaged:
        raise CheckpointError(
            "; ".join(damaged.values()) + "; no state is left to go on from exactly (without the resume_########.pt "
            "files, --resume takes the newest gen_########.pt, dis_########.pt and optimizer.pt)"
        )
    return _published(folder)


def read_state(path: Path) -> dict[str, Any]:
    """What a resume_########.pt holds.

    Raises:
        CheckpointError: it is missing, damaged or of another program.
        CheckpointReadError: the disk or memory failed.
    """
    state = load_file(path)
    if not isinstance(state, dict) or not isinstance(state.get("checksum"), str):
        raise CheckpointError(f"{path}: not a state of a run")
    content = {key: value for key, value in state.items() if key != "checksum"}
    try:
        found = checksum(content)
    except MemoryError:
        raise CheckpointReadError(f"{path}: cannot be read: not enough memory") from None
    except (RuntimeError, TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise CheckpointError(f"{path}: holds what no state does: {error}") from None
    if found != state["checksum"]:
        raise CheckpointError(f"{path}: damaged: its checksum is not that of its content")
    return state


def state_from_bytes(data: bytes, source: str) -> dict[str, Any]:
    """What `LoadedState.as_bytes` returned. Raises CheckpointError."""
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{source}: {error}") from None
    return dict(state)


def _published(folder: Path) -> LoadedState:
    """The state that the published files hold: networks and optimizers."""
    generators, discriminators, averages = (found_checkpoints(folder, kind) for kind in ("gen", "dis", "ema"))
    complete = set(generators) & set(discriminators)
    if not complete:
        raise CheckpointError(
            f"{folder}: nothing to resume from: no resume_########.pt, and no gen_########.pt, dis_########.pt and "
            "optimizer.pt of one iteration"
        )
    iterations = max(complete)
    networks: dict[str, Any] = {}
    for kind, path in (("gen", generators[iterations]), ("dis", discriminators[iterations])):
        pair = load_file(path)
        if not isinstance(pair, Mapping) or not {"a", "b"} <= set(pair):
            raise CheckpointError(f"{path}: not a {kind}_*.pt file: it must hold the two networks 'a' and 'b'")
        networks |= {f"{kind}_{key}": pair[key] for key in "ab"}
    source = folder / "optimizer.pt"
    state = {"iterations": iterations, "networks": networks, "optimizers": load_file(source)}
    if iterations in averages:
        average = load_file(averages[iterations])
        if not isinstance(average, Mapping):
            raise CheckpointError(f"{averages[iterations]}: not an ema_*.pt file")
        state["average"] = dict(average)
    return LoadedState(source, state)


def apply_state(trainer: Any, state: Mapping[str, Any], source: Path, processes: int = 1) -> tuple[int, dict[str, Any]]:
    """Load a state into a trainer, or leave the trainer as it was.

    Args:
        trainer: of the configuration that the state is of.
        state: as `find_state` or `state_from_bytes` returns it.
        source: the file, for messages.
        processes: that train together, for the images that an average of published files has seen.

    Returns:
        The completed iterations, and the notes that were saved with them.

    Raises:
        CheckpointError: the state is of another configuration.
    """
    try:
        return _apply_state(trainer, state, source, processes)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{source}: not a state of such a run: {reason}") from None


def _apply_state(trainer: Any, state: Mapping[str, Any], source: Path, processes: int) -> tuple[int, dict[str, Any]]:
    # Everything is checked before anything is changed.
    networks = _checked_networks(trainer, state, source)
    optimizers = _checked_optimizers(trainer, state, source)
    styles = _checked_styles(trainer, state, source)
    average = _checked_average(trainer, state, source)
    iterations = int(state["iterations"])
    images = images_seen(iterations, trainer.hyperparameters, processes)
    if average is not None:
        images = int(average.get("images", images))
    skips, last = _checked_skips(trainer, state, source), _checked_last_losses(trainer, state, source)
    ada = trainer.options.ada.checked(state["ada"]) if trainer.options.ada is not None and "ada" in state else None
    for name, values in networks.items():
        getattr(trainer, name).load_state_dict(values)
    trainer.load_optimizers(optimizers)
    for name, rows in styles.items():
        getattr(trainer, name)[: len(rows)] = rows[: len(getattr(trainer, name))]
    if average is not None:
        trainer.average.load(trainer.generators, average, images)
    if skips is not None:
        trainer.skips.values.copy_(skips)
    if ada is not None:
        trainer.options.ada.load(ada)
    trainer.load_scalers(state.get("scalers", {}))
    trainer.options.terms.last = last
    trainer.iterations = iterations
    return trainer.iterations, dict(state.get("notes", {}))


def _checked_networks(trainer: Any, state: Mapping[str, Any], source: Path) -> dict[str, Mapping[str, Tensor]]:
    found = {}
    for name in _NETWORKS:
        values = state["networks"].get(name)
        if not isinstance(values, Mapping) or not all(isinstance(k, str) and is_plain(v) for k, v in values.items()):
            raise CheckpointError(f"{source}: does not fit this configuration: no network {name}")
        found[name] = upgrade_state_dict(values, getattr(trainer, name))
        check_fit(source, name, found[name], getattr(trainer, name))
    return dict(found)


def _checked_average(trainer: Any, state: Mapping[str, Any], source: Path) -> Mapping[str, Any] | None:
    if "average" not in state or trainer.average is None:
        return None
    for key, network in trainer.generators.items():
        check_fit(source, f"average of generator {key}", state["average"][key], network)
    average: Mapping[str, Any] = state["average"]
    return average


def _checked_optimizers(trainer: Any, state: Any, source: Path) -> dict[str, Any]:
    """The two optimizer states if they fit the trainer's parameters. Raises CheckpointError."""
    try:
        for kind, optimizer in (("gen", trainer.gen_opt), ("dis", trainer.dis_opt)):
            found = state["optimizers"][kind]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if sum(len(group["params"]) for group in found["param_groups"]) != len(parameters):
                raise ValueError("another number of parameters")
            for index, moments in found["state"].items():
                if any(moments[m].shape != parameters[index].shape for m in ("exp_avg", "exp_avg_sq")):
                    raise ValueError("moments of another shape")
        return dict(state["optimizers"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{source}: does not fit this configuration: {error}") from None


def _checked_skips(trainer: Any, state: Any, source: Path) -> Tensor | None:
    """The record of skipped steps, int64 [1 + WINDOW]; None where the state has none."""
    if "skips" not in state:
        return None
    skips, own = state["skips"], trainer.skips.values
    if not is_plain(skips) or skips.shape != own.shape or skips.dtype != own.dtype:
        raise CheckpointError(f"{source}: not a state of such a run: a record of skipped steps of another shape")
    found: Tensor = skips
    return found


def _checked_last_losses(trainer: Any, state: Any, source: Path) -> dict[str, Tensor]:
    """The newest losses that only some iterations compute, scalars by their names, of the terms that are on."""
    values = state.get("last_losses", {})
    found = {name: values[name] for name in trainer.options.terms.lazy if name in values}
    if not all(is_plain(value) and value.dim() == 0 for value in found.values()):
        raise CheckpointError(f"{source}: not a state of such a run: last_losses are no numbers")
    return found


def _checked_styles(trainer: Any, state: Any, source: Path) -> dict[str, Tensor]:
    """The display styles {"s_a", "s_b"} of a state, each [N, style_dim, 1, 1]; {} where it has none."""
    if "styles" not in state or not hasattr(trainer, "s_a"):
        return {}
    try:
        styles = {"s_a": state["styles"]["a"], "s_b": state["styles"]["b"]}
        if any(rows.shape[1:] != trainer.s_a.shape[1:] for rows in styles.values()):
            raise ValueError("display styles of another shape")
        return styles
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source}: does not fit this configuration: {error}") from None

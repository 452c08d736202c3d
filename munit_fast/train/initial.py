"""What a run begins from instead of random weights: the networks of another run, or a model.

What fits by name and shape is taken, network by network; all else stays as it was initialised, and both are said.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from munit_fast.io.checkpoints import (
    CheckpointError,
    check_fit,
    describe_network,
    found_checkpoints,
    is_plain,
    upgrade_state_dict,
)
from munit_fast.io.foreign import find_discriminators, find_generators, read_content
from munit_fast.io.safetensors_file import SUFFIX, TensorFile
from munit_fast.models import hub, pretrained
from munit_fast.models.model_folder import CONFIG
from munit_fast.models.portable import PortableModel, as_portable, licence_lines
from munit_fast.train.run_state import find_state, read_state
from munit_fast.utils.text import one_line, printable

_GENERATORS, _DISCRIMINATORS = ("gen_a", "gen_b"), ("dis_a", "dis_b")
_CHECKPOINTS = (SUFFIX, ".pt", ".pth", ".ckpt", ".bin")
_BESIDE = re.compile(r"[a-z]+_(\d{8,})\.pt")  # gen_########.pt: its discriminators are in dis_########.pt
_SHOWN = 3  # tensors that a line names
_MISSING = "not there, or of another architecture, so with random weights"


@dataclass(frozen=True)
class Networks:
    """The networks of another run or model, on the CPU, not yet compared with any.

    Attributes:
        files: that they were read from.
        states: state_dicts of "gen_a", "gen_b" and, where the source has them, "dis_a" and "dis_b".
        about: the notes of a model's file: licence, attribution, how it was trained.
        remarks: what was recognised or passed over, a line each.
    """

    files: Sequence[Path]
    states: Mapping[str, Mapping[str, Any]] = field(repr=False)
    about: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Fit:
    """How much of a network was taken.

    Attributes:
        taken: tensors, without constants and running statistics.
        of: tensors that the network has.
        left: a reason for each tensor that was not taken.
    """

    taken: int
    of: int
    left: Sequence[str] = ()

    def __str__(self) -> str:
        if not self.left:
            return f"all {self.of} tensors"
        more = f" and {len(self.left) - _SHOWN} more" if len(self.left) > _SHOWN else ""
        return f"{self.taken} of {self.of} tensors; not taken: {', '.join(self.left[:_SHOWN])}{more}"


@dataclass(frozen=True)
class Initial:
    """What a run's networks began as.

    Attributes:
        source: as it was asked for.
        networks: what it held.
        checksums: SHA-256 of its files.
        fits: of "gen_a", "gen_b", "dis_a" and "dis_b"; those that are missing stayed as initialised.
    """

    source: str
    networks: Networks
    checksums: Sequence[str]
    fits: Mapping[str, Fit]

    @property
    def lines(self) -> list[str]:
        """What to print."""
        names = [path.name for path in self.networks.files]
        which = "" if names == [Path(self.source).name] else f" ({' and '.join(names)})"
        lines = [f"beginning from {self.source}{which}", *self.networks.remarks, *licence_lines(self.networks.about)]
        for kind, prefix in (("generator", "gen"), ("discriminator", "dis")):
            a, b = (str(self.fits.get(f"{prefix}_{domain}", _MISSING)) for domain in "ab")
            if a == b:
                lines.append(f"{kind}s a and b: {a}{' of each' if a.startswith('all') else ''}")
            else:
                lines += (f"{kind} a: {a}", f"{kind} b: {b}")
        return [printable(line) for line in lines]

    def notes(self) -> dict[str, Any]:
        """What the run's events and summary keep, as plain values."""
        return {
            "from": self.source,
            "message": "; ".join(self.lines),
            "files": [{"name": str(f), "sha256": c} for f, c in zip(self.networks.files, self.checksums, strict=True)],
            "taken": {name: [fit.taken, fit.of] for name, fit in self.fits.items()},
            "about": dict(self.networks.about),
        }


def begin_from(trainer: Any, source: str | Path) -> Initial:
    """Load what fits of a model into the networks of a new trainer; the moving average begins as the generators.

    Args:
        trainer: a trainer without an iteration done; it is left as it was where an error is raised.
        source: as `read_networks` takes it.

    Raises:
        CheckpointError: the source cannot be read, is of the other algorithm, has numbers that are not finite, or has
            no convolution that a generator could take.
        ValueError: there is no such source.
        ImportError: huggingface_hub is needed and not installed.
    """
    try:
        networks = read_networks(source)
        checksums = [_sha256(path) for path in networks.files]
        fits = _take(trainer, networks.states)
    except ValueError as error:
        kind = CheckpointError if isinstance(error, CheckpointError) else ValueError
        raise kind(f"--init_from {printable(str(source))}: {error}") from None
    return Initial(str(source), networks, checksums, fits)


def read_networks(source: str | Path) -> Networks:
    """Read the networks of another run or model.

    Of a run those are read that were trained, with the discriminators that judged them: the moving average only where
    its file is named.

    Args:
        source: A bundled model's name; a file: gen_########.pt or ema_########.pt (with the dis_########.pt beside it),
            resume_########.pt, a .safetensors file, a checkpoint of another program with the generators of both
            domains; a folder: of a run, its checkpoints, or of `save_pretrained`; or owner/name, a repository of the
            Hugging Face Hub.

    Raises:
        CheckpointError: The file, folder or repository cannot be used.
        ValueError: There is no such source.
        ImportError: huggingface_hub is needed and not installed.
    """
    path = Path(source)
    if str(source) not in pretrained.names():
        if path.is_dir() and not (path / CONFIG).is_file():
            return _of_run(path)
        if path.is_file() or path.suffix in _CHECKPOINTS:
            return _of_file(path)
    try:
        return hub.load(source, _of_model)
    except CheckpointError:
        raise
    except ValueError as error:
        reason = str(error).removeprefix("pretrained: ")
        raise ValueError(f"{reason}; or a checkpoint, or the folder of a run") from None


def _of_model(path: Path, model: PortableModel) -> Networks:
    return Networks([path], {f"gen_{domain}": model.states[domain] for domain in "ab"}, model.about)


def _of_run(folder: Path) -> Networks:
    """The newest state of a run, or its newest published files."""
    inside = folder / "checkpoints"
    if inside.is_dir():
        folder = inside
    if found_checkpoints(folder, "resume"):
        loaded = find_state(folder)
        return Networks([loaded.source], loaded.state["networks"], remarks=[*loaded.damaged.values()])
    if found := found_checkpoints(folder, "gen"):
        return _of_file(found[max(found)])
    raise CheckpointError(f"{folder}: holds neither resume_########.pt nor gen_########.pt of a run, nor a {CONFIG}")


def _of_file(path: Path) -> Networks:
    content = read_content(path)
    if isinstance(content, TensorFile) and content.is_portable:
        return _of_model(path, as_portable(path, content))
    if isinstance(content, Mapping) and {"networks", "optimizers", "checksum"} <= set(content):
        return Networks([path], read_state(path)["networks"])
    found = find_generators(path, content, average=False)
    remarks = [found.note] if found.note else []
    files, discriminators = [path], find_discriminators(path, content)
    if discriminators is None and (match := _BESIDE.fullmatch(path.name)):
        beside = path.with_name(f"dis_{match[1]}.pt")
        if beside.is_file():
            files, discriminators = [path, beside], find_discriminators(beside, read_content(beside))
            if discriminators is None:
                remarks.append(f"{beside}: holds no pair of discriminators")
    states = {f"gen_{domain}": found.states[domain] for domain in "ab"}
    states |= {f"dis_{domain}": state for domain, state in (discriminators or {}).items()}
    return Networks(files, states, remarks=remarks)


def _take(trainer: Any, states: Mapping[str, Mapping[str, Any]]) -> dict[str, Fit]:
    """Load what fits. Everything is checked before anything is changed."""
    fits: dict[str, Fit] = {}
    loaded: dict[str, dict[str, Tensor]] = {}
    for name in (*_GENERATORS, *_DISCRIMINATORS):
        if isinstance(states, Mapping) and name in states:
            network, state = getattr(trainer, name), states[name]
            if not isinstance(state, Mapping) or not all(isinstance(k, str) and is_plain(v) for k, v in state.items()):
                raise CheckpointError(f"{name} is not a state_dict of plain tensors")
            of = describe_network(state).get("trainer", trainer.algorithm)
            if of != trainer.algorithm:
                raise CheckpointError(f"holds networks of {of}, and this run trains {trainer.algorithm}")
            fits[name], loaded[name] = _compare(name, network, upgrade_state_dict(state, network))
            if name in _DISCRIMINATORS and not _has_convolution(loaded[name]):
                del fits[name], loaded[name]  # of another architecture: one bias of it would be no beginning
    if not any(_has_convolution(loaded.get(name, {})) for name in _GENERATORS):
        for name in _GENERATORS:
            if name in loaded:
                check_fit("no convolution of it fits", name, states[name], getattr(trainer, name))
        raise CheckpointError("holds no generators")
    for name, values in loaded.items():
        network = getattr(trainer, name)
        merged = network.state_dict()
        merged.update(values)
        network.load_state_dict(merged)
    if trainer.average is not None:
        average = {domain: network.state_dict() for domain, network in trainer.generators.items()}
        trainer.average.load(trainer.generators, average, images=0)  # which warms up, as it follows another task
    return fits


def _has_convolution(values: Mapping[str, Tensor]) -> bool:
    return any(value.dim() == 4 for value in values.values())


def _compare(name: str, network: nn.Module, state: Mapping[str, Tensor]) -> tuple[Fit, dict[str, Tensor]]:
    """How much of a state_dict fits, and that part of it."""
    own = network.state_dict()
    uncounted = {key for key, _ in network.named_buffers()}
    taken: dict[str, Tensor] = {}
    left = []
    for key, value in own.items():
        if key not in state:
            reason = "is not there"
        elif state[key].shape != value.shape:
            reason = f"is {list(value.shape)} here and {list(state[key].shape)} there"
        else:
            taken[key] = state[key].to(value.dtype)
            if not torch.isfinite(taken[key]).all():
                raise CheckpointError(f"{name}: {key} holds numbers that are not finite")
            continue
        if key not in uncounted:
            left.append(f"{key} {reason}")
    left += [f"{one_line(key, 100)} is not here" for key in state if key not in own]
    return Fit(len(taken.keys() - uncounted), len(own.keys() - uncounted), left), taken


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:  # a run that goes on removes its older states
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()

"""Generators in the files of other programs: wrapped, renamed, in containers, beside other networks, or alone.

A file is read as flat names (`tensor_names`). What lies before `enc_content.model.…` in them names a generator, and the
last part of it that ends in a or b its domain. Which generators a file means is never guessed: where more than one
answer is left, the file is refused with what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from munit_fast.io import imaginaire
from munit_fast.io.checkpoints import CheckpointError, describe_network, load_file
from munit_fast.io.safetensors_file import SUFFIX, TensorFile, read_tensors
from munit_fast.io.tensor_names import WRAPPERS, Name, NamedValues, dotted
from munit_fast.utils.text import printable

_PARTS = {"enc_content", "enc_style", "enc", "dec", "mlp"}  # of generators
_COUNTERS = {"n_averaged"}  # of torch.optim.swa_utils.AveragedModel
_AVERAGES = "ema|average|averaged|avg|swa|shadow"
_AVERAGE = re.compile(rf"(?:^|[_-])(?:{_AVERAGES})(?:[_-]|$)")
_DOMAIN = re.compile(rf"(?:(?:(.*)[_-])?([abAB])|(.*[a-z0-9])([AB]))((?:[_-](?:{_AVERAGES}))?)")  # a, gen_a, G-B, genB
_OTHERS = (
    (re.compile(r"(?:^|\.)enc_class_model\."), "generators of FUNIT"),
    (re.compile(r"(?:^|\.)model\.\d+\.conv_block\.\d+\.weight"), "a generator of CycleGAN or pix2pix"),
    (re.compile(r"(?:^|\.)(?:down|up)_blocks\.\d"), "a network of diffusers"),
    (re.compile(r"(?:^|\.)(?:features\.\d+|conv\d_\d)\.weight"), "a VGG"),
)


@dataclass(frozen=True)
class Generators:
    """The two generators of a file or of two.

    Attributes:
        states: {"a": state_dict, "b": state_dict}; not yet compared with a network.
        note: what was recognised, in one line; None for a file as MUNIT publishes it.
    """

    states: Mapping[str, Mapping[str, Any]]
    note: str | None = None


@dataclass
class _Network:
    name: Name
    state: dict[str, Any] = field(default_factory=dict)
    domain: str | None = None
    group: Name = ()  # the name without the domain
    average: bool = False


def read_content(path: str | Path) -> Any:
    """A TensorFile of a .safetensors file, else what `load_file` gives. Raises CheckpointError as both do."""
    return read_tensors(path) if Path(path).suffix == SUFFIX else load_file(path)


def find_generators(path: str | Path, content: Any, *, average: bool = True) -> Generators:
    """The generators of both domains in what a file holds.

    Args:
        path: names the file in messages.
        content: of `read_content`.
        average: which to take where a file has the generators and their moving average.

    Raises:
        CheckpointError: there are none, those of one domain only, or more than one pair of them.
    """
    found = NamedValues(path, content.tensors if isinstance(content, TensorFile) else content)
    networks, why = _choose(_generators(path, found), average)
    pairs: dict[Name, dict[str, _Network]] = {}
    for network in networks:
        if network.domain is not None:
            pairs.setdefault(network.group, {})[network.domain] = network
    pair = next(iter(pairs.values()), {})
    if len(networks) != 2 or set(pair) != {"a", "b"}:
        raise CheckpointError(f"{path}: {_not_a_pair(networks)}")
    published = all(pair[domain].name == (domain,) for domain in "ab") and not found.wrappers and not why
    note = None if published else printable(f"{path}: generators {_and(pair)}{_unwrapped(found)}{why}")
    return Generators({domain: pair[domain].state for domain in "ab"}, note)


def trainer_of(path: str | Path, content: Any) -> str | None:
    """ "MUNIT" or "UNIT", whose generators a file holds, by their tensors; None where these do not tell.

    Args:
        path: names the file in messages.
        content: of `read_content`.

    Raises:
        CheckpointError: there are no generators.
    """
    networks = _generators(path, NamedValues(path, content.tensors if isinstance(content, TensorFile) else content))
    found = {describe_network(network.state).get("trainer") for network in networks}
    return found.pop() if len(found) == 1 else None


def find_discriminators(path: str | Path, content: Any) -> dict[str, dict[str, Any]] | None:
    """The state_dicts {"a", "b"} of the two discriminators in what a file holds; None where it has no or several pairs.

    Args:
        path: names the file in messages.
        content: of `read_content`.

    Raises:
        CheckpointError: the file holds more names than networks do.
    """
    found = NamedValues(path, content.tensors if isinstance(content, TensorFile) else content)
    networks: dict[Name, _Network] = {}
    for name, value in found.values.items():
        at = next((i for i in range(len(name) - 1) if name[i] == "cnns" and name[i + 1].isdigit()), None)
        if at is not None:
            networks.setdefault(name[:at], _Network(name[:at])).state[".".join(name[at:])] = value
    for network in networks.values():
        _label(network, set())
    pair = {network.domain: network.state for network in networks.values() if network.domain is not None}
    groups = {network.group for network in networks.values()}
    return pair if len(networks) == 2 and len(groups) == 1 and set(pair) == {"a", "b"} else None


def join_generators(paths: Sequence[str | Path], contents: Sequence[Any], *, average: bool = True) -> Generators:
    """The generators of two files, domain A's first.

    Args:
        paths: name the files in messages.
        contents: of `read_content`.
        average: as in `find_generators`.

    Raises:
        CheckpointError: a file holds none, more than one, or that of the other domain.
    """
    pair: dict[str, _Network] = {}
    said = []
    for domain, path, content in zip("ab", paths, contents):
        found = NamedValues(path, content.tensors if isinstance(content, TensorFile) else content)
        networks, why = _choose(_generators(path, found), average)
        if len(networks) != 1:
            raise CheckpointError(
                f"{path}: holds the generators {_list(networks)}; of two files each must hold one, A's first"
            )
        if networks[0].domain not in (None, domain):
            raise CheckpointError(
                f"{path}: holds {dotted(networks[0].name)}, of domain {networks[0].domain.upper()}, but was given for "
                f"domain {domain.upper()}; give the file of domain A first, then that of B"
            )
        pair[domain] = networks[0]
        said.append(f"{path} for domain {domain.upper()}{_unwrapped(found)}{why}")
    return Generators({domain: pair[domain].state for domain in "ab"}, printable(f"generators of {'; '.join(said)}"))


def _generators(path: str | Path, found: NamedValues) -> list[_Network]:
    """The generators among named values. Raises CheckpointError where there are none, which says what there is."""
    networks: dict[Name, _Network] = {}
    others: dict[Name, None] = {}
    for name in found.values:
        for i in range(len(name) - 1):
            if name[i] in _PARTS and name[i + 1] == "model":
                networks.setdefault(name[:i], _Network(name[:i]))
                break
            if name[i] == "cnns" and name[i + 1].isdigit():
                others[name[:i]] = None
                break
    names = [".".join(name) for name in found.values]
    known = imaginaire.refusal(names) or next((words for form, words in _OTHERS if any(map(form.search, names))), None)
    if known and (not networks or "imaginaire" in known or "FUNIT" in known):
        raise CheckpointError(f"{path}: holds {known}")
    if not networks:
        raise CheckpointError(f"{path}: {_no_generator(found, list(others))}")
    averages = {name[:-1] for name in found.values if name and name[-1] in _COUNTERS}
    longest = max(map(len, networks))
    for name, value in found.values.items():
        owner = next((name[:i] for i in range(min(longest, len(name)), -1, -1) if name[:i] in networks), None)
        rest = name[len(owner or ()) :]
        # What lies beside the parts of a generator without a name of its own is of something else.
        if owner is not None and rest and rest[-1] not in _COUNTERS and (owner or rest[0] in _PARTS):
            networks[owner].state[".".join(rest)] = value
    for network in networks.values():
        _label(network, averages)
    return list(networks.values())


def _label(network: _Network, averages: set[Name]) -> None:
    """Read a generator's domain, and whether it is a moving average, off its name."""
    name = network.name
    network.group = name
    for i in range(len(name) - 1, -1, -1):
        if match := _DOMAIN.fullmatch(name[i]):
            network.domain = (match[2] or match[4]).lower()
            network.group = (*name[:i], f"{match[1] or match[3] or ''}*{match[5]}", *name[i + 1 :])
            break
    counted = any(name[:i] in averages for i in range(len(name) + 1))
    network.average = counted or any(_AVERAGE.search(part.lower()) for part in name)


def _choose(networks: list[_Network], average: bool) -> tuple[list[_Network], str]:
    """The generators or their moving average where a file has both, and a note of it."""
    kinds = {kind: [network for network in networks if network.average == kind] for kind in (True, False)}
    if not kinds[True]:
        return networks, ""
    if not kinds[False]:
        return networks, ", a moving average"
    if len({len(kinds[True]), len(kinds[False])}) == 2:
        return networks, ""
    other = _list(kinds[not average])
    said = f"their moving average (--no-ema takes {other})" if average else f"not their moving average, {other}"
    return kinds[average], f", {said}"


def _not_a_pair(networks: list[_Network]) -> str:
    both = "translation from A to B needs A's encoder and B's decoder"
    give = "give two files, domain A's first: --checkpoint A.pt --checkpoint B.pt, in Python load(['A.pt', 'B.pt'])"
    if len(networks) == 1:
        network = networks[0]
        whose = (
            f"{dotted(network.name)}, of domain {network.domain.upper()}" if network.domain else "of no named domain"
        )
        return f"holds one generator, {whose}; {both}: {give}"
    if len(networks) == 2:
        return f"holds the generators {_list(networks)}, whose names do not say which is domain A's; {give}"
    return f"holds {len(networks)} generators, {_list(networks)}; save the two that are meant as {{'a': …, 'b': …}}"


def _no_generator(found: NamedValues, discriminators: list[Name]) -> str:
    if discriminators:
        return (
            f"holds discriminators ({_list([_Network(name) for name in discriminators])}), which translate nothing; "
            "give the gen_########.pt beside it"
        )
    if found.optimizers and not any(isinstance(value, Tensor) for value in found.values.values()):
        return "holds the state of an optimizer, no networks; give the gen_########.pt beside it"
    wanted = "must hold the two networks 'a' and 'b', as gen_########.pt has them"
    names = [dotted(name) for name, value in found.values.items() if name and isinstance(value, Tensor)]
    if not names:
        return f"holds no tensors with names; it {wanted}"
    return f"holds no generator of MUNIT or UNIT, but {', '.join(names[:3])}{' …' if names[3:] else ''}; it {wanted}"


def _list(networks: Sequence[_Network]) -> str:
    names = [dotted(network.name) or "one without a name" for network in networks[:6]]
    return ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1] + (" …" if networks[6:] else "")


def _and(pair: Mapping[str, _Network]) -> str:
    return " and ".join(f"{dotted(pair[domain].name)} (domain {domain.upper()})" for domain in "ab")


def _unwrapped(found: NamedValues) -> str:
    names = [f"{name}. ({WRAPPERS[name]})" for name in found.wrappers]
    return f", without the prefix {' and '.join(names)}" if names else ""

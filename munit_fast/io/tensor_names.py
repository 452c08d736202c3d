"""The tensors of a checkpoint by their whole names, whatever containers and wrappers they lie in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from munit_fast.io.checkpoints import CheckpointError
from munit_fast.utils.text import one_line

Name = tuple[str, ...]  # the parts of a name between its dots

# A module that wraps another one has it under such a name, which no network of munit_fast uses.
WRAPPERS = {
    "module": "DataParallel, DDP or AveragedModel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
# A file can hold one container in many places, so that its content has no end: networks stay far below these.
MAX_PARTS, MAX_ENTRIES, MAX_CHARACTERS = 40, 100_000, 5_000_000


class NamedValues:
    """The values of nested mappings and lists under flat names, as `state_dict` would give them.

    A list's items are named by their places. Keys that are no text are left out, and so are states of optimizers.

    Args:
        path: names the file in messages.
        content: what the file holds.

    Attributes:
        values: tensors and plain values by the parts of their names, without those of wrappers.
        wrappers: the names of the wrappers that were left out.
        optimizers: the names of the states of optimizers.

    Raises:
        CheckpointError: the file holds more than networks do, or one name twice once the wrappers' are left out.
    """

    def __init__(self, path: str | Path, content: Any) -> None:
        self.values: dict[Name, Any] = {}
        self.wrappers: list[str] = []
        self.optimizers: list[Name] = []
        self._path = path
        self._entries = self._characters = 0
        self._lists: set[int] = set()
        self._add((), content)

    def _add(self, name: Name, value: Any) -> None:
        self._entries, self._characters = self._entries + 1, self._characters + sum(map(len, name))
        if len(name) > MAX_PARTS or self._entries > MAX_ENTRIES or self._characters > MAX_CHARACTERS:
            raise CheckpointError(f"{self._path}: holds more names, or deeper nests of them, than networks do")
        if isinstance(value, Mapping):
            if "param_groups" in value and "state" in value:
                self.optimizers.append(name)
                return
            for key, item in value.items():
                self._entries += 1
                if isinstance(key, str):
                    # Longer keys are no names; split, they would only take memory.
                    self._add((*name, *(key.split(".") if len(key) <= 1000 else [key])), item)
        elif isinstance(value, (list, tuple)):
            if id(value) not in self._lists:  # a long list of numbers, in many places, would take for ever
                self._lists.add(id(value))
                for i, item in enumerate(value):
                    if isinstance(item, (Mapping, list, tuple, Tensor)):
                        self._add((*name, str(i)), item)
        else:
            self._keep(name, value)

    def _keep(self, name: Name, value: Any) -> None:
        kept = name
        if not WRAPPERS.keys().isdisjoint(name):
            kept = tuple(part for part in name if part not in WRAPPERS)
            self.wrappers += [part for part in WRAPPERS if part in name and part not in self.wrappers]
        if kept in self.values:
            raise CheckpointError(f"{self._path}: holds {dotted(kept)} twice, with and without a wrapper's prefix")
        self.values[kept] = value


def dotted(name: Name) -> str:
    """A name for a message: one printable line of at most 100 characters."""
    text = one_line(".".join(name))
    return text if len(text) <= 100 else text[:97] + "..."

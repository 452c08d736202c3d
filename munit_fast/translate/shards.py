"""Which process translates what, and the pieces that a set is translated in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch

from munit_fast.data.sources import ImageSource
from munit_fast.train.distributed import process_group

_PATIENCE = timedelta(days=30)  # for the slowest of the processes


@dataclass(frozen=True)
class Chunk:
    """Consecutive images that are translated together, whatever else is: their bits may depend on each other.

    Attributes:
        places: In the source.
        key: A digest of their places, names and versions.
    """

    places: range
    key: str


@dataclass(frozen=True)
class Shard:
    """One of the processes that share a set.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_environment(cls) -> Shard:
        """The one that torchrun's environment describes. Raises ValueError where that makes no sense."""
        rank, size = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise ValueError(
                f"environment variables RANK={rank} and WORLD_SIZE={size} must be whole numbers, RANK less"
            )
        return cls(int(rank), int(size))

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}: " if self.size > 1 else ""

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process, where "cuda" is asked for. Raises ValueError where the machine has fewer."""
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ValueError(f"--nproc-per-node is more than the {torch.cuda.device_count()} GPUs of this machine")
        return torch.device("cuda", local)

    def chunks(self, source: ImageSource, batch_size: int, whole_files: bool = False) -> Iterator[Chunk]:
        """Its chunks: of all chunks of `batch_size` images, or of the images of one file, every `size`-th one."""
        starts: Sequence[int] = range(0, len(source), batch_size)
        if whole_files:
            files = [entry.file for entry in source.entries]
            starts = [place for place, file in enumerate(files) if place == 0 or file != files[place - 1]]
        for start, end in list(zip(starts, [*starts[1:], len(source)]))[self.rank :: self.size]:
            places = range(start, end)
            described = [[place, source.name(place), source.version(place)] for place in places]
            yield Chunk(places, hashlib.sha256(json.dumps(described).encode()).hexdigest())


def add_up(shard: Shard, counts: list[int]) -> list[int]:
    """Wait for the other processes and add up what they did.

    torchrun ends all processes when one of them fails, so none may report its failures before the others are done.

    Args:
        shard: Of this process.
        counts: What it did.

    Returns:
        The sums of all; `counts` where nothing but RANK and WORLD_SIZE says that there are others.

    Raises:
        LostPeerError: Another process is gone.
    """
    if shard.size == 1 or "MASTER_ADDR" not in os.environ:
        return counts
    with process_group(torch.device("cpu"), _PATIENCE.total_seconds()) as ranks:
        means = ranks.mean({str(i): count for i, count in enumerate(counts)})
    return [round(means[str(i)] * shard.size) for i in range(len(counts))]

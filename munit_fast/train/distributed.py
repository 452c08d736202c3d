"""The processes that train together, as torchrun starts them; one alone communicates nothing.

Their gradients are exchanged in `train/gradients.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


class PeerError(RuntimeError):
    """Another process of the job failed; the message is that process's."""


class LostPeerError(RuntimeError):
    """Another process of the job is gone."""


@dataclass
class Ranks:
    """This process among those that train together.

    What they exchange besides gradients goes through `control`, a gloo group: it never waits for a GPU.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    _asked: torch.Tensor | None = None
    _answer: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def should_stop(self, wanted: bool) -> bool:
        """Whether to stop now, the same on every rank: alone at once, else if any wanted to one call ago.

        The reduction runs beside the iteration, so no rank waits for its result.
        """
        if self.size == 1:
            return wanted
        before = False
        if self._answer is not None and self._asked is not None:
            self._answer.wait()
            before = bool(self._asked.item())
        self._asked = torch.tensor([int(wanted)])
        self._answer = dist.all_reduce(self._asked, dist.ReduceOp.MAX, group=self.control, async_op=True)
        return before

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over the ranks of values that all of them have."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return dict(zip(values, (total / self.size).tolist()))

    def max(self, value: int) -> int:
        """The largest of the ranks' values; no rank continues before all have given theirs."""
        if self.size == 1:
            return value
        found = torch.tensor([value])
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return int(found.item())

    def broadcast(self, data: bytes | None) -> bytes:
        """The main rank's `data`, on every rank."""
        if self.size == 1:
            return data or b""
        size = torch.tensor([len(data or b"")])
        dist.broadcast(size, 0, group=self.control)
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if data:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(buffer, 0, group=self.control)
        return bytes(buffer.numpy())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block on the main rank, then on the others; if it fails there, they raise its message as PeerError."""
        if not self.main:
            message = self.broadcast(None).decode()
            if message:
                raise PeerError(message)
            yield
            return
        try:
            yield
        except Exception as error:
            self.broadcast((str(error) or type(error).__name__).encode())
            raise
        self.broadcast(b"")


def restarted() -> bool:
    """Whether torchrun started this process again after a failure. A change of members does not count."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[Ranks]:
    """The process group that torchrun's environment describes; without it, this process alone.

    timeout: seconds after which a rank that is silent counts as lost. Raises ValueError when `device` is not there for
    this rank, LostPeerError when another rank is gone.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Ranks(device=device)
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(f"--nproc-per-node is more than the {torch.cuda.device_count()} GPUs of this machine")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    limit = timedelta(seconds=timeout)
    # torch 2.13 gives restarted processes the store of those before, where a rank may still find a dead one's address.
    store, rank, size = next(rendezvous("env://", timeout=limit))
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    control = dist.new_group(backend="gloo", timeout=limit)
    try:
        yield Ranks(rank, size, device, control)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # gloo's own errors are plain RuntimeErrors
            reason = str(error).partition("\n")[0]
            raise LostPeerError(f"rank {rank}: another process of the job is gone ({reason})") from error
        raise
    dist.destroy_process_group()  # not after a failure: it could wait for a rank that is lost


def broadcast_networks(*networks: nn.Module) -> None:
    """Give every process of the default group the first one's parameters and buffers.

    Args:
        networks: alike on all processes.

    Raises:
        RuntimeError: there is no process group.
    """
    if not dist.is_initialized():
        raise RuntimeError("torch.distributed is not initialised: start the processes with torchrun")
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            data = tensor.data.contiguous()
            dist.broadcast(data, 0)
            if data is not tensor.data:
                tensor.data.copy_(data)

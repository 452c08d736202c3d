"""An update's loss as a module, so that DistributedDataParallel's hooks average its gradients over the processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Objective(nn.Module):
    """loss(*arguments) as a forward; the parameters of `networks` are those that it is differentiated by."""

    def __init__(self, loss: Callable[..., Tensor], *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.loss = loss

    def forward(self, *arguments: Any) -> Tensor:
        return self.loss(*arguments)


def distributed(loss: Callable[..., Tensor], *networks: nn.Module) -> DistributedDataParallel:
    """The objective over all processes of the default group; the networks take the first process's parameters.

    Every process's loss is a mean over as many images, so the mean of the gradients is that of the whole batch.
    """
    if not dist.is_initialized():
        raise RuntimeError("torch.distributed is not initialised: start the processes with torchrun")
    unused = any(p.numel() == 0 for network in networks for p in network.parameters())  # gen.n_res: 0 has no AdaIN
    options: dict[str, Any] = {"gradient_as_bucket_view": True, "find_unused_parameters": unused}
    # Buffers are the same on every process, or read in evaluation only. torch 2.13 renames the flag.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    options["forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"] = False
    return DistributedDataParallel(Objective(loss, *networks), **options)

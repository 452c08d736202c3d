"""The same bits from the same tensors, in every process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_PRODUCTS = {
    torch.nn.functional.linear,
    torch.addmm,
    torch.bmm,
    torch.mm,
    torch.matmul,
    torch.einsum,
    torch.Tensor.mm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
}


class _ProductsInOneThread(TorchFunctionMode):
    """Products of matrices are computed by one thread: MKL's roundings depend on how many there are."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch.set_num_threads(threads)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside the block, the fast networks give bits that depend on their input alone, on machines of one kind.

    On a CPU that holds for any number of threads. On a GPU cuDNN takes its algorithms by the sizes of a convolution:
    what `tuned_convolutions` finds depends on the timing, and may differ between two processes.

    Args:
        device: Where the networks run.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    with ExitStack() as held:
        if device.type == "cpu":
            held.enter_context(_ProductsInOneThread())
        else:
            cudnn.benchmark, cudnn.deterministic = False, True
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic = before

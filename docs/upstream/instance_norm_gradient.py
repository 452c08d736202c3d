"""PyTorch's gradient of an instance norm is wrong on CPUs where one image's gradient comes in channels_last.

Plain torch; `python instance_norm_gradient.py` prints the relative errors. With torch 2.13.0 those marked below are 1.3
to 1.5 instead of a rounding error, in every dtype:

    instance_norm                   batch 1, gradient channels_last                                     wrong
    batch_norm of a reshaped x      batch 1, x channels_last or gradient channels_last, but not both    wrong

`x.view(1, N * C, H, W)` gives a dimension of size 1 another stride, so that `suggest_memory_format` calls the tensor
contiguous where `is_contiguous(memory_format=torch.channels_last)` calls it channels_last; a batch norm that gets no
such view is right, and so is an instance norm of [N, C, H * W].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def adain(x: Tensor) -> Tensor:
    """An instance norm as the batch norm of one image with N · C channels."""
    n, c, h, w = x.shape
    return F.batch_norm(x.reshape(1, n * c, h, w), None, None, training=True).view(n, c, h, w)


def formula(x: Tensor) -> Tensor:
    """The same by its definition."""
    return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()


def gradient(norm: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(norm(x), x, upstream)[0].double()


def error(norm: Callable[[Tensor], Tensor], batch: int, of_x: str, of_gradient: str, dtype: torch.dtype) -> float:
    """‖gradient - expected‖ / ‖expected‖, with x and the incoming gradient in the given layouts."""
    random = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(batch, 8, 7, 6, generator=random, dtype=torch.float64) for _ in range(2))
    expected = gradient(formula, x, upstream)
    x = x.to(dtype).contiguous(memory_format=LAYOUTS[of_x])
    upstream = upstream.to(dtype).contiguous(memory_format=LAYOUTS[of_gradient])
    return float((gradient(norm, x, upstream) - expected).norm() / expected.norm())


def main() -> None:
    print(f"torch {torch.__version__}, relative error of the gradient against the formula in float64")
    print(f"{'norm':15}{'batch':7}{'x':15}{'its gradient':15}{'float32':>9}{'float64':>9}")
    for norm in (F.instance_norm, adain):
        for batch in (1, 2):
            for of_x in LAYOUTS:
                for of_gradient in LAYOUTS:
                    found = [error(norm, batch, of_x, of_gradient, dtype) for dtype in (torch.float32, torch.float64)]
                    errors = "".join(f"{value:9.0e}" for value in found)
                    wrong = "  wrong" if max(found) > 1e-3 else ""
                    print(f"{norm.__name__:15}{batch:<7}{of_x:15}{of_gradient:15}{errors}{wrong}")


if __name__ == "__main__":
    main()

"""Small stand-ins for large golden tensors: evenly spaced elements, and random projections that keep distances."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

MAX_ELEMENTS = 512
PROJECTIONS = 24


def spaced(x: Tensor) -> Tensor:
    """At most MAX_ELEMENTS elements of x, evenly spaced."""
    flat = x.detach().flatten()
    return flat[:: -(-flat.numel() // MAX_ELEMENTS)].clone()


def project(x: Tensor) -> Tensor:
    """x itself if it is small, else PROJECTIONS random sums of its elements, float32.

    The projections are Gaussian (Johnson–Lindenstrauss), so ‖P(x) - P(y)‖ / ‖P(y)‖ estimates ‖x - y‖ / ‖y‖.
    """
    flat = x.detach().flatten().double()
    if flat.numel() <= PROJECTIONS:
        return flat.float()
    generator = torch.Generator().manual_seed(flat.numel())
    rows = [torch.randn(flat.numel(), generator=generator).double() @ flat for _ in range(PROJECTIONS)]
    return torch.stack(rows).float() / PROJECTIONS**0.5


def relative(found: Tensor, golden: Tensor) -> float:
    """The estimated relative distance of `found` from the tensor that `golden` was projected from."""
    return distance(found, golden) / float(golden.norm())


def distance(found: Tensor, golden: Tensor) -> float:
    """The estimated distance of `found` from the tensor that `golden` was projected from."""
    return float((project(found) - golden).norm())


def pack(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Many small tensors as one: a file spends about a kilobyte on each tensor."""
    return {
        "names": list(tensors),
        "sizes": [t.numel() for t in tensors.values()],
        "values": torch.cat([t.flatten().float() for t in tensors.values()]),
    }


def unpack(packed: dict[str, Any]) -> dict[str, Tensor]:
    """What `pack` packed, flattened."""
    return dict(zip(packed["names"], packed["values"].split(packed["sizes"]), strict=True))


def encode_steps(steps: Tensor) -> Tensor:
    """Numbers in [-1, 1] at a resolution of 1/127, compressed; Adam's first steps are nearly all -1 or 1."""
    levels = (steps.flatten() * 127).round().to(torch.int8)
    return torch.frombuffer(bytearray(zlib.compress(levels.numpy().tobytes(), 9)), dtype=torch.uint8)


def decode_steps(data: Tensor) -> Tensor:
    """What `encode_steps` was given, flattened."""
    levels = torch.frombuffer(bytearray(zlib.decompress(data.numpy().tobytes())), dtype=torch.int8)
    return levels.float() / 127

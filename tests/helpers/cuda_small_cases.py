"""Small epilogues and losses on a GPU through impl="cuda", held to the formulas: what compute-sanitizer watches.

    compute-sanitizer --tool racecheck python tests/helpers/cuda_small_cases.py

A process of its own, since the tool slows everything in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests; munit_fast comes from where they had it

from helpers import oracle
from munit_fast import functional as mf
from munit_fast.ops import cases
from munit_fast.ops.backends import cuda

SHAPES = ((2, 8, 7, 9), (1, 72, 12, 11), (1, 64, 33, 31), (2, 5, 7, 9), (1, 16, 9, 8))


def main() -> None:
    for way in cuda.WAYS:
        cuda._way = way
        for op in cases.OPS:
            block = cases.block_of(op)
            for i, (n, c, h, w) in enumerate(SHAPES):
                dtype, act = cuda.DTYPES[i % 3], ("prelu", "gelu", "selu", "gelu_tanh", "silu")[i]
                pad, mode = ((3, "reflect"), (2, "replicate"), (1, "zero"), (0, "reflect"), (1, "reflect"))[i]
                shape = (n, c * block**2, h, w)
                oracle.check(
                    cases.EpilogueCase(op, shape, dtype, "channels_last", act, pad, mode, i % 2 == 0), "cuda", "cuda"
                )
    pairs = [(torch.randn(n, device="cuda"), torch.randn(n, device="cuda")) for n in (1, 17, 4096, 70001)]
    for a, _ in pairs:
        a.requires_grad_()
    mf.l1_losses(pairs, impl="cuda").sum().backward()
    mf.lsgan_loss([a for a, _ in pairs], 1.0, impl="cuda").backward()
    torch.cuda.synchronize()
    print("PASSED")


if __name__ == "__main__":
    main()

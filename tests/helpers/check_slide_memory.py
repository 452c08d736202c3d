"""How much memory translations in tiles take: run by tests/tiles/test_run.py in a process of its own.

    python check_slide_memory.py FOLDER

prints megabytes: the peaks of a small image, of one with 16 times its pixels, of that with exact statistics, each in
a forked process, and what the features of one layer of the large image would take.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

from munit_fast.utils.env import set_process_defaults

set_process_defaults()

import numpy as np
import tifffile
import torch

from munit_fast import UNIT, make_config
from munit_fast.tiles import TileOptions, tiff_regions, translate_slide

DIM, SMALL, LARGE = 4, 512, 2048


def write(path: Path, side: int) -> None:
    patch = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tiles = (patch for _ in range((side // 32) ** 2))
    tifffile.imwrite(path, tiles, shape=(side, side, 3), dtype=np.uint8, tile=(32, 32), photometric="rgb")


def peak(folder: Path, name: str, statistics: Any) -> float:
    """Megabytes that a process of its own takes at most."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        torch.manual_seed(0)
        model = UNIT(make_config({"gen": {"dim": DIM, "n_res": 1}})).eval()
        options = TileOptions(tile=128, statistics=statistics, samples=4)
        translate_slide(model, folder / name, folder / "out.tif", options)
        os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        kilobytes = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return int(kilobytes) / 1024


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tiff_regions.CACHE_BYTES = 2**20  # of which a small image fills less
    for name, side in (("small.tif", SMALL), ("large.tif", LARGE)):
        write(folder / name, side)
    peaks = [
        peak(folder, *case) for case in (("small.tif", "sampled"), ("large.tif", "sampled"), ("large.tif", "exact"))
    ]
    print(*peaks, LARGE**2 * DIM * 4 / 2**20)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

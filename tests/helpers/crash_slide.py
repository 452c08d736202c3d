"""A translation in tiles that is killed again and again: run by tests/tiles/test_resume.py in a process of its own.

    python crash_slide.py FOLDER STATISTICS FLUSH_SECONDS

Every attempt is a forked process that kills itself, so that it costs a fraction of a second: after some tiles, or while
the file is written. The last one ends; its file must be, to the byte, that of the job that nobody disturbed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from munit_fast.utils.env import set_process_defaults

set_process_defaults()

import numpy as np
import tifffile
import torch

from munit_fast import MUNIT, make_config
from munit_fast.tiles import TileOptions, networks, run, storage, translate_slide

KILLS: list[int | str] = [1, 4, 9, 15, 20, "writing"]


def attempt(folder: Path, name: str, options: TileOptions, kill: int | str | None) -> tuple[int, int]:
    """Translate in a process of its own; its exit status and how many tiles it computed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        torch.manual_seed(0)
        model = MUNIT(make_config({"gen": {"dim": 4, "mlp_dim": 4, "style_dim": 2, "n_res": 1}})).eval()
        computed = 0
        tile = networks.Reader.tile

        def counted(self: networks.Reader, node: networks.Node, box: Any) -> torch.Tensor:
            nonlocal computed
            computed += 1
            os.write(writing, b".")
            return tile(self, node, box)

        def progress(done: int, total: int, name: str) -> None:
            if computed == kill:
                os.kill(os.getpid(), signal.SIGKILL)

        def killed_writing(*arguments: Any) -> None:
            storage.PixelFile.read = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
            write_tiff(*arguments)

        networks.Reader.tile = counted  # type: ignore[method-assign]
        write_tiff = run.write_tiff
        if kill == "writing":
            run.write_tiff = killed_writing  # type: ignore[assignment]
        translate_slide(model, folder / "in.tif", folder / name, options, style=torch.ones(2), progress=progress)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        computed = len(pipe.read())
    return os.waitpid(pid, 0)[1], computed


def main(folder: Path, statistics: Any, flush: float) -> None:
    torch.set_num_threads(1)
    storage.FLUSH_SECONDS = flush
    tifffile.imwrite(folder / "in.tif", np.random.default_rng(0).integers(0, 256, (90, 75, 3), dtype=np.uint8))
    options = TileOptions(tile=32, statistics=statistics, samples=4)
    status, whole = attempt(folder, "whole.tif", options, None)
    assert status == 0
    computed = 0
    for kill in KILLS:
        status, tiles = attempt(folder, "out.tif", options, kill)
        assert os.WIFSIGNALED(status), (kill, status)
        assert sorted(path.name for path in folder.iterdir()) == [".out.tif.tiles", "in.tif", "whole.tif"]
        computed += tiles
    status, tiles = attempt(folder, "out.tif", options, None)
    assert status == 0 and tiles == 0, "everything was done but the file"
    assert (folder / "out.tif").read_bytes() == (folder / "whole.tif").read_bytes()
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["in.tif", "out.tif", "whole.tif"], left
    print(whole, computed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))

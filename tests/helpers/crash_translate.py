"""Translations that are killed again and again: run by tests/translate/test_interrupted.py in a process of its own.

    python crash_translate.py FOLDER KILLS

Every attempt is a forked process. Some are killed by the clock, some before or after a file gets its name, some with
half a line in the journal. One, two or three processes share a set; one that was killed is started again while the
others go on. In the end the files must be, to the bit, those of the run that nobody disturbed, and nothing else may be
left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from munit_fast.utils.env import set_process_defaults

set_process_defaults()

import numpy as np
import torch
from PIL import Image

import munit_fast as mf
from helpers.crash import die, forked
from munit_fast.translate import Shard, TranslateOptions, translate_files
from munit_fast.translate.journal import FOLDER, Journal

torch.set_num_threads(1)


def pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "more").mkdir(parents=True)
    for i in range(31):
        size = (32, 32) if i % 5 else (32, 40)
        values = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / ("more" if i % 3 else "") / f"{i}.png")


def run(source: Path, out: Path, shard: Shard, batch_size: int, workers: int) -> None:
    torch.manual_seed(0)
    gen = {"dim": 2, "mlp_dim": 4, "style_dim": 2, "n_res": 1}
    dis = {"dim": 2, "n_layer": 2, "num_scales": 1}
    crop = {"new_size": 32, "crop_image_height": 32, "crop_image_width": 32}
    model = mf.MUNIT(mf.make_config({"gen": gen, "dis": dis, **crop}))
    options = TranslateOptions(num_style=2, extension="npy", batch_size=batch_size, workers=workers)
    translate_files(model.eval(), source, out, options, shard=shard)


def dying_run(draw: random.Random, *arguments: Any) -> Callable[[], None]:
    """A run whose process ends at some rename, or in the middle of a line of its journal."""
    count, kind = draw.randint(1, 80), draw.choice(["before", "after", "line"])

    def work() -> None:
        replace, finish = os.replace, Journal.finish
        calls = 0

        def dying_replace(*names: Any) -> None:
            nonlocal calls
            calls += 1
            if kind == "before" and calls == count:
                die()
            replace(*names)
            if kind == "after" and calls == count:
                die()

        def dying_finish(self: Journal, *given: Any) -> None:
            if kind == "line" and draw.random() < 0.2:
                assert self._lines is not None
                self._lines.write('{"chunk": "half a li')
                self._lines.flush()
                die()
            finish(self, *given)

        os.replace, Journal.finish = dying_replace, dying_finish  # type: ignore[assignment,method-assign]
        run(*arguments)

    return work


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


def check(expected: dict[str, bytes], out: Path) -> None:
    found = files(out)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    assert found == expected, [name for name in found if found[name] != expected[name]]
    left = [path.name for path in (out / FOLDER).iterdir() if path.is_dir()]
    assert not left, left


def main() -> None:
    root, kills = Path(sys.argv[1]), int(sys.argv[2])
    draw = random.Random(0)
    pictures(root / "pictures")
    begin = time.monotonic()
    assert os.waitpid(forked(lambda: run(root / "pictures", root / "whole", Shard(), 4, 2)), 0)[1] == 0
    seconds = time.monotonic() - begin
    expected = files(root / "whole")
    assert len(expected) == 31 * 3
    killed = sets = 0
    while killed < kills:
        sets += 1
        out, size, workers = root / f"parts{sets}", 1 + sets % 3, draw.randint(1, 3)
        jobs: dict[int, tuple[int, float]] = {}  # pid: rank, when it is killed
        waiting = list(range(size))
        while waiting or jobs:
            for rank in waiting:
                given = (root / "pictures", out, Shard(rank, size), 4, workers)
                if draw.random() < 0.5:
                    jobs[forked(dying_run(draw, *given))] = rank, time.monotonic() + 1e6
                else:
                    pid = forked(lambda given=given: run(*given))  # type: ignore[misc]
                    jobs[pid] = rank, time.monotonic() + draw.uniform(0, seconds)
            waiting = []
            for pid, (rank, end) in list(jobs.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del jobs[pid]
                    killed += os.WIFSIGNALED(status)
                    assert status == 0 or os.WIFSIGNALED(status), f"process {rank} of {size} failed"
                    waiting += [rank] if status else []
                elif time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
                    jobs[pid] = rank, time.monotonic() + 1e6
            time.sleep(0.01)
        check(expected, out)
    print(f"{killed} processes killed in {sets} translations")


if __name__ == "__main__":
    main()
